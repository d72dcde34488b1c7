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

func (c *cli) renew() *cobra.Command {
	req := admin.RenewRequest{}
	var timeout time.Duration
	cmd := &cobra.Command{
		Use: "renew NAME", Short: "Order a certificate now", GroupID: "change", Args: cobra.ArbitraryArgs, ValidArgsFunction: c.certificateNames().first,
		Long: `Orders a certificate now if it is due; with --force also before that, whatever back-off is running. With --wait=issued the command ends when the
new version is stored and on its way to the first wave, with --wait (done) when every wave has it.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case len(args) == 0:
				return usage("renew: name a certificate")
			case len(args) == 2 && (args[1] == "issued" || args[1] == "done"):
				return usage("renew: write --wait=%s", args[1])
			case len(args) > 1:
				return usage("not supported yet: renew of several certificates")
			case req.Wait != "" && req.Wait != "issued" && req.Wait != "done":
				return usage("--wait=%s: issued or done", req.Wait)
			case timeout <= 0:
				return usage("--timeout %s: not more than 0", timeout)
			}
			req.Name = args[0]
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			err := c.stream(ctx, req)
			if errors.Is(err, context.DeadlineExceeded) {
				return &hinted{fmt.Errorf("%s is not %s after %s", req.Name, awaited(req.Wait), timeout), "it goes on in the server; see `status` and `rollout status`"}
			}
			return err
		},
	}
	flags := cmd.Flags()
	flags.BoolVar(&req.Force, "force", false, "also when it is not due")
	flags.StringVar(&req.Reason, "reason", "", "why, for the log")
	flags.StringVar(&req.Wait, "wait", "", "wait until it is `issued` or done (all waves)")
	flags.Lookup("wait").NoOptDefVal = "done"
	flags.DurationVar(&timeout, "timeout", 10*time.Minute, "how long to wait")
	return cmd
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

// stream shows the progress of a renewal on standard error and its result on standard output.
func (c *cli) stream(ctx context.Context, req admin.RenewRequest) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	terminal, open := c.format == formatTable && isTerminal(c.errs), false
	say := func(end, text string) error {
		if open { // the line that stands there is an older one of the same step
			text = "\r\x1b[K" + text
		}
		open = end == ""
		if _, err := fmt.Fprint(c.errs, text+end); err != nil {
			return fmt.Errorf("print: %w", err)
		}
		return nil
	}
	defer func() {
		if open {
			_ = say("", "") // there is nowhere else to say it
		}
	}()
	return client.Stream(ctx, "/v1/renew", req, func(line []byte) (bool, error) {
		var r admin.Renewal
		if err := json.Unmarshal(line, &r); err != nil {
			return false, fmt.Errorf("answer of the server: %w", err)
		}
		switch {
		case r.Error != nil:
			return false, r.Error
		case r.Result != nil:
			return false, c.print(*r.Result, func(io.Writer) error { return c.printRenewed(*r.Result, req.Wait) })
		case terminal && r.Again:
			return true, say("", printable([]string{req.Name + ": " + r.Step})[0])
		case terminal:
			return true, say("\n", printable([]string{req.Name + ": " + r.Step})[0])
		}
		return true, nil
	})
}

func (c *cli) printRenewed(r admin.Renewed, wait string) error {
	switch {
	case r.Version == nil:
		return c.printf("%s: the renewal has begun; see `status`\n", r.Name)
	case wait == "issued":
		return c.printf("%s: issued version %s (serial %s) in %.2f s; rollout %s, snapshot %s\n", r.Name, shortVersion(r.Version), text(r.Serial),
			*r.IssuedSeconds, text(r.Rollout), text(r.Snapshot))
	default:
		return c.printf("%s: version %s (serial %s) is in every wave after %.2f s\n", r.Name, shortVersion(r.Version), text(r.Serial), *r.DoneSeconds)
	}
}
