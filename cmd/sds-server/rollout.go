package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sds-server/sds-server/internal/admin"
	"github.com/sds-server/sds-server/pkg/rollout"
)

func (c *cli) rollout() *cobra.Command {
	cmd := &cobra.Command{Use: "rollout", Short: "Changes on their way through the groups: look, begin, stop, take back", GroupID: "look"}
	cmd.AddCommand(c.rolloutStatus(), c.rolloutHistory(), c.rolloutStart(), c.rolloutPause(), c.rolloutResume(), c.rolloutAbort(), c.rolloutUndo())
	return parent(cmd)
}

func (c *cli) rolloutStatus() *cobra.Command {
	var watch bool
	cmd := &cobra.Command{
		Use: "status [ID]", Short: "Rollouts under way, or one rollout with everything that is known of it", Args: cobra.MaximumNArgs(1),
		Long: `Without an ID: the rollouts under way, each with its waves, and what is not as it should be. With an ID: that rollout, ended or not, with all of
its changes, waves, gates and transitions.

With --watch it looks again every second: on a terminal in place, else it prints what has happened since. With an ID it ends with the rollout:
exit code 0 when that is done, 1 with the reason when it is not. A rollout that goes on with another one is followed there.`,
		ValidArgsFunction: c.rolloutIDs(func(admin.Rollout) bool { return true }).first,
		RunE: func(cmd *cobra.Command, args []string) error {
			w := &watcher{cli: c, seen: map[uint64]*said{}}
			if len(args) > 0 {
				var err error
				if w.id, err = rolloutID(args[0]); err != nil {
					return err
				}
			}
			switch {
			case !watch:
				return w.show(cmd.Context())
			case w.id == 0 && (c.format == formatJSON || isTerminal(c.out)):
				return c.repeat(cmd.Context(), true, w.show)
			case c.format == formatJSON || isTerminal(c.out):
				return c.repeat(cmd.Context(), true, w.showToTheEnd)
			default:
				return c.repeat(cmd.Context(), true, w.tell)
			}
		},
	}
	cmd.Flags().BoolVar(&watch, "watch", false, "look again every second, until interrupted or, with an ID, to its end")
	return cmd
}

func (c *cli) rolloutHistory() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use: "history", Short: "Every rollout there was, the oldest first", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			path := "/v1/rollouts?all"
			if name != "" {
				path += "&" + query("secret", name)
			}
			var r admin.Rollouts
			if err := c.get(cmd.Context(), path, &r); err != nil {
				return err
			}
			return c.print(r, func(w io.Writer) error {
				if len(r.Rollouts) == 0 {
					return c.printf("there was no rollout\n")
				}
				return writeHistory(w, r)
			})
		},
	}
	cmd.Flags().StringVar(&name, "secret", "", "only those that change the secret with this `name`")
	names(c.secretNames).flag(cmd, "secret")
	return cmd
}

func (c *cli) rolloutStart() *cobra.Command {
	var req admin.StartRequest
	cmd := &cobra.Command{
		Use: "start --secret NAME", Short: "Roll a stored version of a secret out", Args: cobra.NoArgs,
		Long: `Begins a rollout of a stored version, the newest one unless --version names another: through all waves, as after a renewal. Manual and soft holds
on it are released; one that is held hard has to be released first ("secrets release"), and an expired one is refused. What was under way for the
secret is superseded. Where a rollout carries the version already, or every group serves it, nothing changes.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var done admin.Controlled
			if err := c.post(cmd.Context(), "/v1/rollouts", req, &done); err != nil {
				return err
			}
			return c.print(done, func(io.Writer) error {
				switch {
				case done.ID == nil:
					return c.printf("%s: every group serves the version already\n", req.Secret)
				case done.Already:
					return c.printf("rollout %d brings it already: %s\n", *done.ID, standing(done.State, done.Reason))
				}
				return c.printControlled(done, "")
			})
		},
	}
	cmd.Flags().StringVar(&req.Secret, "secret", "", "`name` of the secret")
	cmd.Flags().StringVar(&req.Version, "version", "", "this `version` (12 or more digits), not the newest one")
	cmd.Flags().StringVar(&req.Reason, "reason", "", "why, for the log")
	_ = cmd.MarkFlagRequired("secret")
	names(c.secretNames).flag(cmd, "secret")
	c.versionFlag(cmd, func([]string) string { return req.Secret })
	return cmd
}

func (c *cli) rolloutPause() *cobra.Command {
	return c.control("pause", "Stop a rollout where it is", `Stops a rollout where it is, until "rollout resume". Its groups keep what they have: what was switched stays switched, and the watch stands still. It
holds no group meanwhile: other secrets go through the same groups. A NACK of what it has switched still takes that back, a newer version of the
same secret supersedes it, and a deadline overrules it. An emergency cannot be paused.`, "is paused",
		func(r admin.Rollout) bool { return !r.State.Ended() && !r.Paused })
}

func (c *cli) rolloutResume() *cobra.Command {
	return c.control("resume", "Let a paused rollout go on", `Lets a paused rollout go on, as soon as no other change moves its groups. The watch goes on with what was left of it.`, "is not paused",
		func(r admin.Rollout) bool { return r.Paused })
}

func (c *cli) rolloutAbort() *cobra.Command {
	return c.control("abort", "End a rollout under way and take it back everywhere", `Ends a rollout that is under way or paused: it is taken back in every group that it has moved, each to what that group had before, and its versions are
held until "secrets release" or "rollout start". One that is done is taken back by "rollout undo", and one group alone by "rollback --group".`, "is aborted",
		func(r admin.Rollout) bool { return !r.State.Ended() })
}

func (c *cli) rolloutUndo() *cobra.Command {
	return c.control("undo", "Take a rollout that is done back everywhere", `Takes a rollout back that is done, in every group that it has moved, and holds its versions until "secrets release" or "rollout start". Only within
rollout.undo_window after its end; later, "rollback --group" takes one group back. One that is under way is taken back by "rollout abort". What
has passed since, an addition or another secret, stays.`, "is taken back",
		func(r admin.Rollout) bool { return r.State == rollout.Done })
}

// control is a command for one rollout. What is so already is said with the words of already.
func (c *cli) control(verb, short, long, already string, fits func(admin.Rollout) bool) *cobra.Command {
	var req admin.ReasonRequest
	cmd := &cobra.Command{
		Use: verb + " ID", Short: short, Long: long, Args: cobra.ExactArgs(1), ValidArgsFunction: c.rolloutIDs(fits).first,
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := rolloutID(args[0])
			if err != nil {
				return err
			}
			var done admin.Controlled
			if err := c.post(cmd.Context(), fmt.Sprintf("/v1/rollouts/%d/%s", id, verb), req, &done); err != nil {
				return err
			}
			return c.print(done, func(io.Writer) error {
				if done.Already {
					return c.printf("rollout %d %s already: %s\n", id, already, standing(done.State, done.Reason))
				}
				back := ""
				if verb == "abort" || verb == "undo" {
					back = "taken back"
				}
				return c.printControlled(done, back)
			})
		},
	}
	cmd.Flags().StringVar(&req.Reason, "reason", "", "why, for the log")
	return cmd
}

// rolloutID reads the id of a rollout; none has the number 0.
func rolloutID(text string) (uint64, error) {
	id, err := strconv.ParseUint(text, 10, 64)
	if err != nil || id == 0 {
		return 0, &usageError{fmt.Sprintf("rollout %q: not the number of a rollout", text), "`rollout status` and `rollout history` show the numbers"}
	}
	return id, nil
}

// printControlled says what became of a rollout, and of what its groups and versions are now where it was taken back.
func (c *cli) printControlled(done admin.Controlled, back string) error {
	lines := []string{fmt.Sprintf("rollout %d: %s", *done.ID, standing(done.State, done.Reason))}
	for _, change := range done.Change {
		lines = append(lines, changeInWords(change))
	}
	if back != "" {
		switch {
		case !done.State.Ended():
			lines = append(lines, fmt.Sprintf("it is being taken back; see `rollout status %d`", *done.ID))
		case len(done.Groups) == 0:
			lines = append(lines, "no group was moved")
		default:
			lines = append(lines, back+": "+strings.Join(done.Groups, ", "))
		}
		for _, h := range done.Held {
			lines = append(lines, "held: "+h)
		}
	}
	return writeLines(c.out, lines)
}

// standing is a state with its reason.
func standing(state rollout.State, reason string) string {
	if reason == "" || strings.HasPrefix(reason, string(state)) {
		return cmp.Or(reason, string(state))
	}
	return string(state) + ": " + reason
}

func changeInWords(c admin.Change) string {
	return fmt.Sprintf("%s of %s: %s -> %s", c.Kind, c.Secret, shortVersion(c.From), shortVersion(c.To))
}

// rolloutIDs are the rollouts that fit, the newest first.
func (c *cli) rolloutIDs(fits func(admin.Rollout) bool) names {
	return func(ctx context.Context) []string {
		var r admin.Rollouts
		if c.get(ctx, "/v1/rollouts?all", &r) != nil {
			return nil
		}
		var out []string
		for _, one := range slices.Backward(r.Rollouts) {
			if fits(one) {
				out = append(out, fmt.Sprintf("%d\t%s: %s", one.ID, one.State, changes(one.Change)))
			}
		}
		return out
	}
}

// versionFlag completes --version with the stored versions of the secret that name returns for the arguments.
func (c *cli) versionFlag(cmd *cobra.Command, name func(args []string) string) {
	_ = cmd.RegisterFlagCompletionFunc("version", func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		return names(func(ctx context.Context) []string {
			s, err := c.secret(ctx, name(args))
			if err != nil {
				return nil
			}
			out := make([]string, 0, len(s.Versions))
			for _, v := range s.Versions {
				out = append(out, fmt.Sprintf("%s\t%s, of %s", short(v.Version), v.State, v.Created.Format(time.RFC3339)))
			}
			return out
		}).propose(cmd.Context())
	}) // the flag exists, and has no other completion
}
