package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"golang.org/x/sys/unix"

	"github.com/sds-server/sds-server/internal/admin"
	"github.com/sds-server/sds-server/internal/config"
	"github.com/sds-server/sds-server/pkg/store"
)

// classify gives an error its exit code and hint.
func (c *cli) classify(err error) (code int, hint string) {
	var (
		wrong    *usageError
		problems config.Problems
		remote   *admin.Error
		fault    *store.Fault
		h        *hinted
	)
	switch {
	case errors.As(err, &wrong):
		return exitUsage, wrong.hint
	case !c.began: // cobra's own words
		return exitUsage, helpHint
	case errors.As(err, &problems):
		return exitUsage, c.problemsHint()
	case errors.Is(err, admin.ErrUnreachable):
		return exitUnreachable, "is `sds-server serve` running with this configuration file (-c), and may you use its admin socket?"
	case errors.As(err, &remote):
		return exitFailed, remote.Hint
	case errors.As(err, &fault):
		return exitFailed, fault.Hint
	case errors.As(err, &h):
		return exitFailed, h.hint
	case errors.Is(err, fs.ErrPermission):
		return exitFailed, "run as root or as the server's user"
	case errors.Is(err, fs.ErrNotExist):
		return exitFailed, "check the path"
	}
	return exitFailed, ""
}

func (c *cli) problemsHint() string {
	if c.subject != "" {
		return "correct them and try again; nothing was made"
	}
	return "`sds-server validate` checks the file without starting anything"
}

func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}

// table is rows of cells in aligned columns.
type table struct {
	head []string
	rows [][]string
}

func newTable(head ...string) *table { return &table{head: head} }

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

func (t *table) write(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	for _, row := range append([][]string{t.head}, t.rows...) {
		if _, err := fmt.Fprintln(tw, strings.Join(printable(row), "\t")); err != nil {
			return fmt.Errorf("print: %w", err)
		}
	}
	if err := tw.Flush(); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}

// printable replaces what would break a table or speak to the terminal: messages come from Envoys and CAs.
func printable(row []string) []string {
	out := make([]string, len(row))
	for i, cell := range row {
		out[i] = strings.Map(func(r rune) rune {
			if !unicode.IsPrint(r) {
				return ' '
			}
			return r
		}, cell)
	}
	return out
}

// isTerminal reports whether a person looks at w.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// print writes v as JSON, or what human prints.
func (c *cli) print(v any, human func(w io.Writer) error) error {
	if c.format == formatJSON {
		return writeJSON(c.out, v)
	}
	return human(c.out)
}

func (c *cli) printf(format string, args ...any) error {
	if _, err := fmt.Fprintf(c.out, format, args...); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}

const none = "-"

func text[T any](v *T) string {
	if v == nil {
		return none
	}
	return fmt.Sprint(*v)
}

func shortVersion(v *string) string {
	if v == nil {
		return none
	}
	return short(*v)
}

func short(version string) string { return version[:min(12, len(version))] }

// until says how far away a time is, as people say it: "61d", "5h", "in the past".
func until(t *time.Time, now time.Time) string {
	if t == nil {
		return none
	}
	d := t.Sub(now)
	switch {
	case d < 0:
		return ago(-d) + " ago"
	default:
		return ago(d)
	}
}

func ago(d time.Duration) string {
	switch {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%dd", int(d.Hours()/24))
	case d >= 2*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	case d >= 2*time.Minute:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	default:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	}
}
