package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sds-server/sds-server/internal/admin"
)

func (c *cli) promote() *cobra.Command {
	var req admin.GroupRequest
	cmd := &cobra.Command{
		Use: "promote --group G", Short: "Let what waits for a group go on", GroupID: "change", Args: cobra.NoArgs,
		Long: `Lets the rollouts that wait for the group go on, oldest first, earlier waves first; groups of one wave move together. One whose wave has stalled there,
as no node is left to ACK, goes on as well. With --rollout only that one; a rolled back rollout is begun again, and its manual and soft holds are
released. With --skip-earlier the group's wave goes first: earlier waves that have not begun follow it, and one under way is left as it stands; what nodes
have refused stays refused. With --to the difference to a snapshot is applied.

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
	cmd.Flags().BoolVar(&req.SkipEarlier, "skip-earlier", false, "do not wait for the waves before the group's")
	cmd.MarkFlagsMutuallyExclusive("rollout", "to")
	cmd.MarkFlagsMutuallyExclusive("skip-earlier", "to")
	return cmd
}

func (c *cli) rollback() *cobra.Command {
	var req admin.GroupRequest
	cmd := &cobra.Command{
		Use: "rollback --group G", Short: "Take a group's last move back", GroupID: "change", Args: cobra.NoArgs,
		Long: `Takes the last move of this one group back, ends the rollout that made it if it is under way, and holds the versions taken back until "secrets
release" or a "promote --rollout" of them. Other groups stay as they are: "rollout abort" and "rollout undo" take a rollout back in all groups.
With --to the difference to an earlier snapshot is applied; names that it did not know stay. Expired certificates are refused and named.`,
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
	if err := writeLines(c.out, promoted(p)); err != nil {
		return err
	}
	return c.printf("promoted %s; %s is at snapshot %d\n", strings.Join(p.Groups, ", "), p.Group, p.Snapshot)
}

// promoted names every change that was let go, with its rollout where it is known: a train of several changes has one.
func promoted(p admin.Promotion) []string {
	ids := make([]string, 0, len(p.Rollouts))
	for _, id := range p.Rollouts {
		ids = append(ids, fmt.Sprint(id))
	}
	of := func(int) string { return strings.Join(ids, ", ") }
	if len(ids) == len(p.Changes) { // each has one
		of = func(i int) string { return ids[i] }
	}
	lines := make([]string, 0, len(p.Changes))
	for i, change := range p.Changes {
		lines = append(lines, fmt.Sprintf("%s %s: %s", plural(strings.Count(of(i), ",")+1, "rollout"), of(i), change))
	}
	return lines
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
