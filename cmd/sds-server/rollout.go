package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sds-server/sds-server/internal/admin"
)

func (c *cli) rollout() *cobra.Command {
	cmd := &cobra.Command{Use: "rollout", Short: "Changes on their way through the groups", GroupID: "look"}
	var watch bool
	status := &cobra.Command{
		Use: "status", Short: "Rollouts under way", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.repeat(cmd.Context(), watch, func(ctx context.Context) error {
				return c.showRollouts(ctx, "/v1/rollouts", "no rollout is under way")
			})
		},
	}
	status.Flags().BoolVar(&watch, "watch", false, "look again every second, until interrupted")
	history := &cobra.Command{
		Use: "history", Short: "Every rollout there was, the oldest first", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.showRollouts(cmd.Context(), "/v1/rollouts?all", "there was no rollout")
		},
	}
	cmd.AddCommand(status, history)
	return parent(cmd)
}

func (c *cli) showRollouts(ctx context.Context, path, empty string) error {
	var r admin.Rollouts
	if err := c.get(ctx, path, &r); err != nil {
		return err
	}
	return c.print(r, func(w io.Writer) error {
		if len(r.Rollouts) == 0 {
			return c.printf("%s\n", empty)
		}
		return writeRollouts(w, r)
	})
}

func writeRollouts(w io.Writer, r admin.Rollouts) error {
	t := newTable("ROLLOUT", "STATE", "STARTED", "CHANGE", "WAVE", "GROUPS", "WAVE STATE", "ACKED", "REASON")
	for _, one := range r.Rollouts {
		first := []string{fmt.Sprint(one.ID), string(one.State), one.Started.Format(time.RFC3339), changes(one.Change)}
		for i, wave := range one.Waves {
			reason := ""
			if i == min(one.Wave, len(one.Waves)-1) {
				reason = one.Reason
			}
			t.add(append(first, fmt.Sprint(i+1), strings.Join(wave.Groups, ","), string(wave.State),
				fmt.Sprintf("%d/%d", wave.Nodes.Acked, wave.Nodes.Expected), reason)...)
			first = []string{"", "", "", ""}
		}
	}
	return t.write(w)
}

func changes(all []admin.Change) string {
	parts := make([]string, 0, len(all))
	for _, c := range all {
		parts = append(parts, fmt.Sprintf("%s %s %s->%s", c.Kind, c.Secret, shortVersion(c.From), shortVersion(c.To)))
	}
	return strings.Join(parts, ", ")
}

func (c *cli) promote() *cobra.Command {
	var req admin.GroupRequest
	cmd := &cobra.Command{
		Use: "promote --group G", Short: "Let what waits for a group go on", GroupID: "change", Args: cobra.NoArgs,
		Long: `Lets the rollouts that wait for the group go on, oldest first, earlier waves first; groups of one wave move together. With --rollout only
that one; a rolled back rollout is begun again, and its manual holds are released. With --to the difference to a snapshot is applied.

Nothing waiting and nothing newer: exit 0, "already there". Nothing waiting although the group is behind (held, taken back): exit 1 with the
reason.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := notZero(cmd, "rollout", "to"); err != nil {
				return err
			}
			if req.To != 0 {
				var s admin.Step
				if err := c.post(cmd.Context(), "/v1/promote", req, &s); err != nil {
					return err
				}
				return c.print(s, func(io.Writer) error { return c.printStep(s) })
			}
			var p admin.Promotion
			if err := c.post(cmd.Context(), "/v1/promote", req, &p); err != nil {
				return err
			}
			return c.print(p, func(io.Writer) error { return c.printPromotion(p) })
		},
	}
	c.groupFlags(cmd, &req)
	cmd.Flags().Uint64Var(&req.Rollout, "rollout", 0, "only the rollout with this `id`")
	cmd.MarkFlagsMutuallyExclusive("rollout", "to")
	return cmd
}

func (c *cli) rollback() *cobra.Command {
	var req admin.GroupRequest
	cmd := &cobra.Command{
		Use: "rollback --group G", Short: "Take a group's last move back", GroupID: "change", Args: cobra.NoArgs,
		Long: `Takes the group's last move back, ends the rollout that made it, and holds the versions taken back until "secrets release" or a
"promote --rollout" of them. With --to the difference to an earlier snapshot is applied; names that it did not know stay. Expired certificates
are refused and named.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := notZero(cmd, "to"); err != nil {
				return err
			}
			var s admin.Step
			if err := c.post(cmd.Context(), "/v1/rollback", req, &s); err != nil {
				return err
			}
			return c.print(s, func(io.Writer) error { return c.printStep(s) })
		},
	}
	c.groupFlags(cmd, &req)
	return cmd
}

func (c *cli) groupFlags(cmd *cobra.Command, req *admin.GroupRequest) {
	cmd.Flags().StringVar(&req.Group, "group", "", "the `group` to move")
	cmd.Flags().Uint64Var(&req.To, "to", 0, "apply the difference to this `snapshot` (1 or more)")
	cmd.Flags().StringVar(&req.Reason, "reason", "", "why, for the log")
	_ = cmd.MarkFlagRequired("group")
	c.groupNames().flag(cmd, "group")
	names(c.snapshotNumbers).flag(cmd, "to")
}

// notZero refuses numbers that were given as 0: nothing has that number, and 0 means not given.
func notZero(cmd *cobra.Command, flags ...string) error {
	for _, name := range flags {
		if f := cmd.Flags().Lookup(name); f.Changed && f.Value.String() == "0" {
			return usage("--%s 0: there is no such %s", name, map[string]string{"to": "snapshot", "rollout": "rollout"}[name])
		}
	}
	return nil
}

func (c *cli) printPromotion(p admin.Promotion) error {
	if p.Already {
		return c.printf("%s is already there (snapshot %d)\n", p.Group, p.Snapshot)
	}
	for i, id := range p.Rollouts {
		if err := c.printf("rollout %d: %s\n", id, p.Changes[min(i, len(p.Changes)-1)]); err != nil {
			return err
		}
	}
	return c.printf("promoted %s; %s is at snapshot %d\n", strings.Join(p.Groups, ", "), p.Group, p.Snapshot)
}

func (c *cli) printStep(s admin.Step) error {
	if len(s.Changes) == 0 {
		return c.printf("%s is already there (snapshot %d)\n", s.Group, s.Snapshot)
	}
	for _, e := range s.Changes {
		if err := c.printf("%s: %s -> %s\n", e.Secret, shortVersion(e.From), shortVersion(e.To)); err != nil {
			return err
		}
	}
	for _, h := range s.Held {
		if err := c.printf("held: %s\n", h); err != nil {
			return err
		}
	}
	return c.printf("%s moved from snapshot %d to %d\n", s.Group, s.From, s.Snapshot)
}
