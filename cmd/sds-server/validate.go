package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/sds-server/sds-server/internal/config"
)

func (c *cli) validate() *cobra.Command {
	return &cobra.Command{
		Use: "validate", Short: "Check the configuration file without starting anything", GroupID: "server", Args: cobra.NoArgs,
		Long: `Checks the configuration file as the server does when it starts or reloads. What is valid and would run into a limit or a rule of its
certificate authorities, as far as they are known, is told as a warning: exit code 0 all the same.`,
		RunE: func(*cobra.Command, []string) error {
			cfg, err := config.Load(c.file)
			if err != nil {
				return err
			}
			warnings := validationWarnings(cfg.Warnings(time.Now()))
			if err := c.warn(warnings); err != nil {
				return err
			}
			v := validation{OK: true, Certificates: len(cfg.Certificates), Groups: len(cfg.Groups), Warnings: warnings}
			return c.print(v, func(io.Writer) error {
				return c.printf("%s: ok (%d %s, %d %s)\n", c.file, len(cfg.Certificates), plural(len(cfg.Certificates), "certificate"),
					len(cfg.Groups), plural(len(cfg.Groups), "group"))
			})
		},
	}
}

// validation is what `validate` prints.
type validation struct {
	OK           bool      `json:"ok"`
	Certificates int       `json:"certificates"`
	Groups       int       `json:"groups"`
	Warnings     []warning `json:"warnings"`
}

// warning is what a valid configuration would run into.
type warning struct {
	Path    string `json:"path"`
	Line    *int   `json:"line"`
	Message string `json:"message"`
	Hint    string `json:"hint"`
}

func validationWarnings(problems config.Problems) []warning {
	out := make([]warning, 0, len(problems))
	for _, p := range problems {
		w := warning{Path: p.Path, Message: p.Message, Hint: p.Hint}
		if p.Line > 0 {
			w.Line = &p.Line
		}
		out = append(out, w)
	}
	return out
}

// warn tells the warnings on standard error; with -o json they are in the answer.
func (c *cli) warn(warnings []warning) error {
	if c.format == formatJSON {
		return nil
	}
	for _, w := range warnings {
		text := "warning: " + w.Path + ": " + w.Message
		if w.Hint != "" {
			text += "; " + w.Hint
		}
		if _, err := fmt.Fprintln(c.errs, printable([]string{text})[0]); err != nil {
			return fmt.Errorf("print: %w", err)
		}
	}
	return nil
}
