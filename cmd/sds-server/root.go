package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sds-server/sds-server/internal/admin"
	"github.com/sds-server/sds-server/internal/config"
)

const defaultConfig = "/etc/sds-server/sds-server.yaml"

// cli is what every command has.
type cli struct {
	in        io.Reader
	out, errs io.Writer

	file   string // -c
	format string // -o

	began   bool   // the command line was understood, and a command runs
	subject string // what problems are about, instead of the configuration file
}

const (
	formatTable = "table"
	formatJSON  = "json"
)

func (c *cli) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "sds-server",
		Short: "Secret discovery server for fleets of Envoys: ACME certificates, staged by SDS",
		Long: `sds-server gives a fleet of Envoys their TLS secrets by SDS, keeps them fresh from ACME certificate
authorities, and moves every change through the fleet in waves: canary group first, then the rest, or back.

Commands talk to the running server on its admin socket (admin.address in the configuration file). Offline are
init, validate, version, completion and store.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 server not reachable.`,
		SilenceErrors: true, SilenceUsage: true, Version: version,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if c.format != formatTable && c.format != formatJSON {
				return usage("output format %q: table or json", c.format)
			}
			return nil
		},
	}
	root.CompletionOptions.HiddenDefaultCmd = false
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		if refused, ok := errors.AsType[*usageError](err); ok {
			return refused // said by the flag itself
		}
		return &usageError{err.Error(), helpHint}
	})
	flags := root.PersistentFlags()
	flags.StringVarP(&c.file, "config", "c", defaultConfig, "configuration `file`")
	flags.StringVarP(&c.format, "output", "o", formatTable, "output `format`: table or json")
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{formatTable, formatJSON}, cobra.ShellCompDirectiveNoFileComp))
	_ = root.MarkPersistentFlagFilename("config", "yaml", "yml")
	for _, g := range []*cobra.Group{
		{ID: "server", Title: "Server:"}, {ID: "look", Title: "Looking:"}, {ID: "change", Title: "Changing:"}, {ID: "node", Title: "Nodes:"},
	} {
		root.AddGroup(g)
	}
	root.AddCommand(
		c.serve(), c.validate(), c.init(), c.version(), c.store(),
		c.status(), c.nodes(), c.budget(), c.explain(), c.secrets(), c.snapshots(), c.rollout(), c.verify(), c.issuers(), c.audit(),
		c.renew(), c.promote(), c.rollback(),
		c.identity(), c.envoy(),
	)
	refuseUnbuilt(root)
	root.SetHelpCommandGroupID("server")
	root.SetCompletionCommandGroupID("server")
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	if completion := childNamed(root, "completion"); completion != nil {
		parent(completion) // else a shell that does not exist is no error
	}
	c.note(root)
	return root
}

// note makes every command say when it begins: what goes wrong before that is the command line.
func (c *cli) note(cmd *cobra.Command) {
	if do := cmd.RunE; do != nil {
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			c.began = true
			return do(cmd, args)
		}
	}
	for _, child := range cmd.Commands() {
		c.note(child)
	}
}

// asksForJSON looks for -o json in a command line that could not be understood.
func asksForJSON(args []string) bool {
	for i, a := range args {
		switch a {
		case "-ojson", "-o=json", "--output=json":
			return true
		case "-o", "--output":
			if i+1 < len(args) && args[i+1] == formatJSON {
				return true
			}
		}
	}
	return false
}

// usageError is a wrong command line: exit code 2.
type usageError struct{ text, hint string }

func (e *usageError) Error() string { return e.text }

const helpHint = "see `sds-server help`"

func usage(format string, args ...any) error {
	return &usageError{fmt.Sprintf(format, args...), helpHint}
}

// hinted is an error with what to do about it.
type hinted struct {
	error
	hint string
}

func (h *hinted) Unwrap() error { return h.error }

// client returns a client for the server that the configuration file names.
func (c *cli) client() (*admin.Client, error) {
	socket, err := config.AdminSocket(c.file)
	if err != nil {
		return nil, err
	}
	return admin.NewClient(socket), nil
}

func (c *cli) get(ctx context.Context, path string, v any) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	return client.Get(ctx, path, v)
}

func (c *cli) post(ctx context.Context, path string, body, v any) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	return client.Post(ctx, path, body, v)
}

// report prints an error for a person or, with -o json, for a program, and returns the exit code.
func (c *cli) report(err error) int {
	code, hint := c.classify(err)
	if c.format == formatJSON {
		_ = writeJSON(c.errs, admin.Error{Message: err.Error(), Hint: hint}) // there is nowhere else to say it
		return code
	}
	text := strings.TrimSpace(err.Error())
	if problems, ok := errors.AsType[config.Problems](err); ok {
		text = fmt.Sprintf("%s: %d %s", c.about(), len(problems), plural(len(problems), "problem"))
		for _, p := range problems {
			text += "\n  " + p.String()
		}
	}
	_, _ = fmt.Fprintf(c.errs, "error: %s\n", text) // as above
	if hint != "" {
		_, _ = fmt.Fprintf(c.errs, "hint: %s\n", hint)
	}
	return code
}

func (c *cli) about() string {
	if c.subject != "" {
		return c.subject
	}
	return c.file
}

func plural(n int, noun string) string {
	if n == 1 {
		return noun
	}
	return noun + "s"
}
