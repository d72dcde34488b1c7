package main

import (
	"fmt"
	"io"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sds-server/sds-server/internal/admin"
)

func (c *cli) snapshots() *cobra.Command {
	cmd := &cobra.Command{Use: "snapshots", Short: "Numbered sets of secret versions", GroupID: "look"}
	cmd.AddCommand(
		&cobra.Command{
			Use: "list", Short: "Every snapshot, and which groups are at it", Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				var s admin.Snapshots
				if err := c.get(cmd.Context(), "/v1/snapshots", &s); err != nil {
					return err
				}
				return c.print(s, func(w io.Writer) error {
					t := newTable("SNAPSHOT", "PARENT", "CREATED", "GROUPS", "REASON")
					for _, h := range s.Snapshots {
						t.add(fmt.Sprint(h.Number), text(h.Parent), h.Created, strings.Join(h.Groups, ","), h.Reason)
					}
					return t.write(w)
				})
			},
		},
		&cobra.Command{
			Use: "show N", Short: "The secrets of a snapshot", Args: cobra.ExactArgs(1), ValidArgsFunction: names(c.snapshotNumbers).first,
			RunE: func(cmd *cobra.Command, args []string) error {
				var s admin.Snapshot
				if err := c.get(cmd.Context(), "/v1/snapshots/"+url.PathEscape(args[0]), &s); err != nil {
					return err
				}
				return c.print(s, func(w io.Writer) error {
					t := newTable("SECRET", "VERSION")
					for _, e := range s.Secrets {
						t.add(e.Name, short(e.Version))
					}
					if _, err := fmt.Fprintf(w, "snapshot %d, parent %s, %s: %s\n", s.Number, text(s.Parent), s.Created.Format(time.RFC3339), s.Reason); err != nil {
						return fmt.Errorf("print: %w", err)
					}
					return t.write(w)
				})
			},
		},
		&cobra.Command{
			Use: "diff A B", Short: "What differs between two snapshots", Args: cobra.ExactArgs(2),
			ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
				if len(args) > 1 {
					return nil, cobra.ShellCompDirectiveNoFileComp
				}
				return names(c.snapshotNumbers).propose(cmd.Context())
			},
			RunE: func(cmd *cobra.Command, args []string) error {
				var d admin.Diff
				if err := c.get(cmd.Context(), "/v1/snapshots/"+url.PathEscape(args[0])+"/diff/"+url.PathEscape(args[1]), &d); err != nil {
					return err
				}
				return c.print(d, func(w io.Writer) error {
					t := newTable("SECRET", args[0], args[1])
					for _, e := range d.Changes {
						t.add(e.Secret, shortVersion(e.From), shortVersion(e.To))
					}
					return t.write(w)
				})
			},
		},
	)
	return parent(cmd)
}
