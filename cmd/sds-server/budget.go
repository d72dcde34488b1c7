package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sds-server/sds-server/internal/admin"
)

const (
	// shownScopes is how many domains or names of one limit a table shows, shownLate how many certificates that have to wait.
	shownScopes = 5
	shownLate   = 20
	// barWidth is the number of characters of a bar.
	barWidth = 20
)

func (c *cli) budget() *cobra.Command {
	return &cobra.Command{
		Use: "budget", Short: "What the CAs still allow, and whether everything could be issued again today", GroupID: "look", Args: cobra.NoArgs,
		Long: `Shows what is left of the limits of each CA, when it refills, and whether every certificate could be issued again today, as after a mass
revocation: which ones would have to wait, for which limit, and until when. ORDINARY is what renewals may use; the rest is kept for emergencies.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var b admin.Budgets
			if err := c.get(cmd.Context(), "/v1/budget", &b); err != nil {
				return err
			}
			return c.print(b, func(w io.Writer) error { return writeBudgets(w, b, time.Now(), isTerminal(c.out)) })
		},
	}
}

func writeBudgets(w io.Writer, b admin.Budgets, now time.Time, bars bool) error {
	if len(b.Issuers) == 0 {
		return printTo(w, "no issuer is configured\n")
	}
	for i, is := range b.Issuers {
		if i > 0 {
			if err := printTo(w, "\n"); err != nil {
				return err
			}
		}
		if err := writeBudget(w, is, now, bars); err != nil {
			return err
		}
	}
	return nil
}

func writeBudget(w io.Writer, is admin.IssuerBudget, now time.Time, bars bool) error {
	if len(is.Limits) == 0 {
		return printTo(w, "issuer %s (%s): no limits are known; issuers[].budget.limits sets them\n", is.Name, is.CA)
	}
	if err := printTo(w, "issuer %s (%s)\n", is.Name, is.CA); err != nil {
		return err
	}
	head := []string{"LIMIT", "FOR", "LEFT", "ORDINARY", "ROOM IN", "FULL IN", "ONE MORE EVERY"}
	if bars {
		head = slices.Insert(head, 2, "")
	}
	t := newTable(head...)
	shown := map[string]int{}
	more := is.Omitted
	lowestFirst := func(a, b admin.BudgetLevel) int { return cmp.Compare(a.Available*b.Capacity, b.Available*a.Capacity) }
	for _, l := range slices.SortedStableFunc(slices.Values(is.Limits), lowestFirst) {
		if shown[l.Name]++; shown[l.Name] > shownScopes {
			more++
			continue
		}
		room := "now"
		if l.NextAt != nil {
			room = until(l.NextAt, now)
		}
		row := []string{
			l.Name, text(l.Scope), fmt.Sprintf("%d of %d", l.Available, l.Capacity), fmt.Sprintf("%d of %d", l.Ordinary, l.Capacity-l.Reserve), room,
			until(l.FullAt, now), every(time.Duration(l.RefillSeconds * float64(time.Second))),
		}
		if bars {
			row = slices.Insert(row, 2, bar(l.Limit))
		}
		t.add(row...)
	}
	if err := t.write(w); err != nil {
		return err
	}
	if more > 0 {
		if err := printTo(w, "and %d more domains or names that are not full (-o json shows %d)\n", more, more-is.Omitted); err != nil {
			return err
		}
	}
	return writeForecast(w, is.Forecast, now)
}

// every is a time between two.
func every(d time.Duration) string {
	if d < 2*time.Second {
		return d.Round(time.Microsecond).String()
	}
	return ago(d)
}

// bar draws a limit: what ordinary work may use, what is kept for emergencies, and what is used up.
func bar(l admin.Limit) string {
	part := func(n int) int { return (n*barWidth + l.Capacity - 1) / l.Capacity }
	left := part(l.Available)
	ordinary := min(left, part(l.Ordinary))
	return strings.Repeat("█", ordinary) + strings.Repeat("▒", left-ordinary) + strings.Repeat("·", barWidth-left)
}

func writeForecast(w io.Writer, f admin.Forecast, now time.Time) error {
	if f.Certificates == 0 {
		return nil
	}
	if len(f.Late) == 0 {
		return printTo(w, "if everything had to be issued again now: %s\n", allFit(f.Certificates))
	}
	last := slices.MaxFunc(f.Late, func(a, b admin.LateFit) int { return a.At.Compare(b.At) })
	if err := printTo(w, "if everything had to be issued again now: %d of %d certificates could be ordered at once, %d within a day, the last in %s\n",
		f.Now, f.Certificates, f.Day, until(&last.At, now)); err != nil {
		return err
	}
	t := newTable("CERTIFICATE", "WAITS", "FOR", "OF")
	for _, l := range f.Late[:min(len(f.Late), shownLate)] {
		t.add(l.Certificate, until(&l.At, now), l.Limit, text(l.Scope))
	}
	if err := t.write(w); err != nil {
		return err
	}
	if more := len(f.Late) - shownLate; more > 0 {
		return printTo(w, "and %d more (-o json shows all)\n", more)
	}
	return nil
}

func allFit(n int) string {
	if n == 1 {
		return "the one certificate could be ordered at once"
	}
	return fmt.Sprintf("all %d certificates could be ordered at once", n)
}

func printTo(w io.Writer, format string, args ...any) error {
	if _, err := fmt.Fprintf(w, format, args...); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}
