package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/sds-server/sds-server/internal/admin"
)

// renewFlags are those of `renew` that are no part of its request.
type renewFlags struct {
	dryRun  bool
	timeout time.Duration
}

func (c *cli) renew() *cobra.Command {
	req, f := admin.RenewRequest{}, renewFlags{}
	cmd := &cobra.Command{
		Use: "renew NAME... | --all", Short: "Order certificates now", GroupID: "change", Args: cobra.ArbitraryArgs, ValidArgsFunction: c.certificateNames().rest,
		Long: `Orders certificates now if they are due; with --force also before that, whatever back-off or maintenance is running. A budget is never overridden:
what it does not let through is named, with when it does, and is ordered then. With --wait=issued the command ends when the new version is
stored and on its way to the first wave, with --wait (done) when every wave has it.

--all takes every certificate. --all --issued-by ISSUER takes those whose last version that issuer has issued, due or not, the most urgent first, and
may use the reserve of its budget: for a CA that is about to revoke them. An interrupted command leaves the server at work. The
same command again goes on with what is left, for a day; with --again it begins anew.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkRenew(&req, f, args); err != nil {
				return err
			}
			if f.dryRun {
				return c.planRenewal(cmd.Context(), req)
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), f.timeout)
			defer cancel()
			stream := renewStream{cli: c, request: req}
			return stream.explain(stream.run(ctx), f.timeout)
		},
	}
	flags := cmd.Flags()
	flags.BoolVar(&req.All, "all", false, "every certificate")
	flags.StringVar(&req.IssuedBy, "issued-by", "", "with --all: only what this `issuer` has issued, due or not")
	flags.StringVar(&req.Issuer, "issuer", "", "order at this `issuer`, this time")
	flags.BoolVar(&req.Force, "force", false, "also when it is not due")
	flags.BoolVar(&req.Again, "again", false, "also what the same command has renewed within a day")
	flags.BoolVar(&f.dryRun, "dry-run", false, "show what would be ordered, in which order, and what the budget says; order nothing")
	flags.StringVar(&req.Reason, "reason", "", "why, for the log and the audit trail")
	flags.StringVar(&req.Wait, "wait", "", "wait until it is `issued` or done (all waves)")
	flags.Lookup("wait").NoOptDefVal = "done"
	flags.DurationVar(&f.timeout, "timeout", 10*time.Minute, "how long to wait")
	c.issuerNames().flag(cmd, "issued-by")
	c.issuerNames().flag(cmd, "issuer")
	return cmd
}

// checkRenew judges the command line and completes the request.
func checkRenew(req *admin.RenewRequest, f renewFlags, args []string) error {
	last := ""
	if len(args) > 1 {
		last = args[len(args)-1]
	}
	switch {
	case req.All && len(args) > 0:
		return usage("renew: either name certificates, or --all")
	case req.IssuedBy != "" && !req.All:
		return usage("--issued-by goes with --all")
	case !req.All && len(args) == 0:
		return usage("renew: name a certificate, or --all")
	case req.Wait == "done" && (last == "issued" || last == "done"):
		return usage("renew: write --wait=%s", last)
	case req.Wait != "" && req.Wait != "issued" && req.Wait != "done":
		return usage("--wait=%s: issued or done", req.Wait)
	case f.timeout <= 0:
		return usage("--timeout %s: not more than 0", f.timeout)
	}
	if len(args) == 1 {
		req.Name = args[0]
	} else {
		req.Names = args
	}
	return nil
}

// awaited is what a renewal waits for, in words.
func awaited(wait string) string {
	switch wait {
	case "issued":
		return "issued"
	case "done":
		return "in every wave"
	}
	return "begun"
}

// renewStream shows the progress of renewals on standard error and their result on standard output.
type renewStream struct {
	*cli

	request admin.RenewRequest
	open    bool              // the line that stands there is an older one of the same step
	last    *admin.RenewBatch // the last that was told
}

// notYet says what is not as it was waited for.
func (s *renewStream) notYet() string {
	if s.last == nil {
		return s.request.Name + " is not " + awaited(s.request.Wait)
	}
	return "not everything is " + awaited(s.request.Wait) + ": " + batchCounts(*s.last)
}

// explain says that what was begun goes on where the command alone has ended.
func (s *renewStream) explain(err error, timeout time.Duration) error {
	const goesOn = "it goes on in the server; see `status` and `rollout status`"
	again := goesOn
	if s.request.Name == "" {
		again = goesOn + ", or run the same command again: it goes on with what is left"
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return &hinted{fmt.Errorf("%s after %s", s.notYet(), timeout), again}
	case errors.Is(err, context.Canceled):
		return &hinted{fmt.Errorf("interrupted: %s", s.notYet()), again}
	}
	return err
}

func (s *renewStream) run(ctx context.Context) error {
	client, err := s.client()
	if err != nil {
		return err
	}
	defer func() {
		if s.open {
			_ = s.say("", "") // there is nowhere else to say it
		}
	}()
	return client.Stream(ctx, "/v1/renew", s.request, s.line)
}

// say writes a line of progress over the one of the same step.
func (s *renewStream) say(end, text string) error {
	if s.open {
		text = "\r\x1b[K" + text
	}
	s.open = end == ""
	if _, err := fmt.Fprint(s.errs, text+end); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}

// line takes one line of the answer; it returns false behind the last.
func (s *renewStream) line(data []byte) (bool, error) {
	var r admin.Renewal
	if err := json.Unmarshal(data, &r); err != nil {
		return false, fmt.Errorf("answer of the server: %w", err)
	}
	terminal := s.format == formatTable && isTerminal(s.errs)
	switch {
	case r.Error != nil:
		return false, r.Error
	case r.Result != nil:
		return false, s.print(*r.Result, func(io.Writer) error { return s.printRenewed(*r.Result, s.request.Wait) })
	case r.Batch != nil && r.Batch.Over:
		return false, s.printBatch(*r.Batch)
	case r.Batch != nil:
		s.last = r.Batch
		if terminal {
			return true, s.say("", printable([]string{"renew: " + batchCounts(*r.Batch)})[0])
		}
	case terminal && r.Again:
		return true, s.say("", printable([]string{s.request.Name + ": " + r.Step})[0])
	case terminal:
		return true, s.say("\n", printable([]string{s.request.Name + ": " + r.Step})[0])
	}
	return true, nil
}

func (s *renewStream) printRenewed(r admin.Renewed, wait string) error {
	switch {
	case r.Version == nil:
		return s.printf("%s: the renewal has begun; see `status`\n", r.Name)
	case wait == "issued":
		return s.printf("%s: issued version %s (serial %s) in %.2f s; rollout %s, snapshot %s\n", r.Name, shortVersion(r.Version), text(r.Serial),
			*r.IssuedSeconds, text(r.Rollout), text(r.Snapshot))
	default:
		return s.printf("%s: version %s (serial %s) is in every wave after %.2f s\n", r.Name, shortVersion(r.Version), text(r.Serial), *r.DoneSeconds)
	}
}
