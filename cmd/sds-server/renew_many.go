package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/sds-server/sds-server/internal/admin"
)

// maxShown is how many certificates a table tells of; -o json has all.
const maxShown = 40

// batchCounts is how a renewal of several stands, in one line.
func batchCounts(b admin.RenewBatch) string {
	parts := []string{fmt.Sprintf("%d of %d done", b.Done, b.Total)}
	for _, p := range []struct {
		n    int
		text string
	}{{b.Issued, "issued and on the way"}, {b.Ordering, "under way or in the queue"}, {b.Waiting, "waiting"}, {b.Failed, "failed"}, {b.NotDue, "not due"}} {
		if p.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", p.n, p.text))
		}
	}
	out := strings.Join(parts, ", ")
	if b.Until != nil && b.Waiting > 0 {
		out += ", the first until " + b.Until.Format(time.RFC3339)
	}
	if b.Step != nil {
		out += "; " + *b.Step
	}
	return out
}

// printBatch prints the result. What has failed or waits makes the exit code 1, also where it is only begun.
func (s *renewStream) printBatch(b admin.RenewBatch) error {
	if s.open {
		if err := s.say("", ""); err != nil {
			return err
		}
	}
	err := s.print(b, func(w io.Writer) error { return writeBatch(w, b, time.Now()) })
	switch {
	case err != nil:
		return err
	case b.Failed > 0, b.Waiting > 0:
		return &exitError{exitFailed}
	}
	return nil
}

func writeBatch(w io.Writer, b admin.RenewBatch, now time.Time) error {
	lines := []string{batchCounts(b)}
	if b.Since != nil {
		lines = append(lines, fmt.Sprintf("goes on with what was begun %s ago: %d %s renewed since; --again orders these, too",
			ago(now.Sub(*b.Since)), b.Already, plural(b.Already, "certificate")))
	}
	if n := len(b.Later); n > 0 {
		last := slices.MaxFunc(b.Later, func(x, y admin.RenewLater) int { return x.At.Compare(y.At) })
		lines = append(lines, fmt.Sprintf("%d %s not fit into the budget within a day; the last is ordered on %s (%s)", n, doesNot(n), last.At.Format(time.RFC3339), last.Limit))
	}
	if b.NotDue > 0 && b.NotDue == b.Total {
		lines = append(lines, "--force orders them now")
	}
	if _, err := fmt.Fprintln(w, strings.Join(lines, "\n")); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	t := newTable("CERTIFICATE", "STATE", "VERSION", "ROLLOUT", "UNTIL", "WHY")
	more := 0
	for _, c := range b.Certificates {
		if c.State == "not_due" && b.NotDue > maxShown || len(t.rows) == maxShown {
			more++
			continue
		}
		t.add(c.Name, c.State, shortVersion(c.Version), text(c.Rollout), until(c.Until, now), text(c.Message))
	}
	if err := writeTables(w, t); err != nil || more == 0 {
		return err
	}
	if _, err := fmt.Fprintf(w, "and %d more; -o json has all\n", more); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}

func doesNot(n int) string {
	if n == 1 {
		return "does"
	}
	return "do"
}

// planRenewal shows what a renewal would order.
func (c *cli) planRenewal(ctx context.Context, req admin.RenewRequest) error {
	var plan admin.RenewPlan
	if err := c.post(ctx, "/v1/renew/plan", req, &plan); err != nil {
		return err
	}
	return c.print(plan, func(w io.Writer) error { return writePlan(w, plan, time.Now()) })
}

func writePlan(w io.Writer, plan admin.RenewPlan, now time.Time) error {
	head := fmt.Sprintf("%d %s would be ordered", len(plan.Certificates), plural(len(plan.Certificates), "certificate"))
	if plan.NotDue > 0 {
		head += fmt.Sprintf("; %d not due: --force orders them, too", plan.NotDue)
	}
	if plan.Since != nil {
		head += fmt.Sprintf("; %d renewed since the same command was begun %s ago: --again orders them, too", plan.Already, ago(now.Sub(*plan.Since)))
	}
	if _, err := fmt.Fprintln(w, head); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	t := newTable("", "CERTIFICATE", "ISSUER", "ISSUED BY", "EXPIRES IN", "URGENT", "ORDERED", "LIMIT")
	byPosition := slices.SortedFunc(slices.Values(plan.Certificates), func(a, b admin.PlannedRenewal) int { return cmp.Compare(a.Position, b.Position) })
	for _, p := range byPosition {
		when := "at once"
		switch {
		case p.At != nil:
			when = "in " + until(p.At, now)
		case p.Hold != nil:
			when = "waits: " + *p.Hold
		}
		limit := text(p.Limit)
		if p.Scope != nil {
			limit += " of " + *p.Scope
		}
		t.add(fmt.Sprint(p.Position), p.Name, p.Issuer, text(p.IssuedBy), until(p.NotAfter, now), yesNo(p.Urgent), when, limit)
	}
	return writeTables(w, t)
}
