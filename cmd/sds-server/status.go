package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sds-server/sds-server/internal/admin"
)

// watchInterval is how often a --watch looks again.
const watchInterval = time.Second

func (c *cli) status() *cobra.Command {
	var watch bool
	cmd := &cobra.Command{
		Use: "status", Short: "Certificates, groups, rollouts and issuers at a glance", GroupID: "look", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.repeat(cmd.Context(), watch, func(ctx context.Context) error {
				var s admin.Status
				if err := c.get(ctx, "/v1/status", &s); err != nil {
					return err
				}
				return c.print(s, func(w io.Writer) error { return writeStatus(w, s, time.Now()) })
			})
		},
	}
	cmd.Flags().BoolVar(&watch, "watch", false, "look again every second, until interrupted")
	return cmd
}

func (c *cli) nodes() *cobra.Command {
	var watch bool
	var group string
	cmd := &cobra.Command{
		Use: "nodes", Short: "Every Envoy: what it should have, was sent, ACKed and NACKed", GroupID: "look", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.repeat(cmd.Context(), watch, func(ctx context.Context) error {
				var n admin.Nodes
				if err := c.get(ctx, "/v1/nodes?"+query("group", group), &n); err != nil {
					return err
				}
				return c.print(n, func(w io.Writer) error { return writeNodes(w, n, time.Now()) })
			})
		},
	}
	cmd.Flags().BoolVar(&watch, "watch", false, "look again every second, until interrupted")
	cmd.Flags().StringVar(&group, "group", "", "only this `group`")
	c.groupNames().flag(cmd, "group")
	return cmd
}

// repeat shows something once, or again and again until it is interrupted: on a terminal in place, else one after the other. A server
// that restarts meanwhile is waited for.
func (c *cli) repeat(ctx context.Context, watch bool, show func(context.Context) error) error {
	if !watch {
		return show(ctx)
	}
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for seen := false; ; {
		err := c.frame(ctx, show)
		end, ended := errors.AsType[*over](err)
		switch {
		case ctx.Err() != nil:
			return nil
		case ended:
			return end.err
		case err == nil:
			seen = true
		case !seen || !errors.Is(err, admin.ErrUnreachable):
			return err
		default:
			c.report(err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// frame shows something in place of what is on the terminal, in one write: it does not flicker. Elsewhere it follows what was shown before.
func (c *cli) frame(ctx context.Context, show func(context.Context) error) error {
	if c.format != formatTable || !isTerminal(c.out) {
		return show(ctx)
	}
	var text bytes.Buffer
	screen := c.out
	c.out = &text
	err := show(ctx)
	c.out = screen
	if text.Len() == 0 {
		return err
	}
	return errors.Join(c.printf("\x1b[H\x1b[2J%s", text.Bytes()), err)
}

func writeStatus(w io.Writer, s admin.Status, now time.Time) error {
	state := "ready"
	if !s.Ready {
		state = "not ready"
	}
	if _, err := fmt.Fprintf(w, "sds-server %s: %s, latest snapshot %d\n", s.Version, state, s.SnapshotLatest); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	if !s.Config.OK {
		if _, err := fmt.Fprintf(w, "configuration: the last reload was refused, the one of %s is in force: %s\n",
			s.Config.LoadedAt.Format(time.RFC3339), text(s.Config.Error)); err != nil {
			return fmt.Errorf("print: %w", err)
		}
	}
	certs := newTable("CERTIFICATE", "STATE", "VERSION", "SERIAL", "EXPIRES IN", "RENEWS IN", "GROUPS", "ERROR")
	for _, cert := range s.Certificates {
		certs.add(cert.Name, cert.State, shortVersion(cert.Version), shortText(cert.Serial), until(cert.NotAfter, now), until(cert.NextRenewal, now),
			groupVersions(cert.Groups), certificateError(cert, now))
	}
	secrets := newTable("SECRET", "KIND", "STATE", "VERSION", "EXPIRES IN", "ROTATES IN", "GROUPS", "ERROR")
	for _, st := range s.Secrets {
		secrets.add(st.Name, st.Kind, st.State, shortVersion(st.Version), until(st.NotAfter, now), until(st.NextRotation, now), groupVersions(st.Groups),
			text(st.Error))
	}
	groups := newTable("GROUP", "SNAPSHOT", "CONNECTED", "SYNCED", "STALE", "NACKED")
	for _, g := range s.Groups {
		groups.add(g.Name, fmt.Sprint(g.Snapshot), fmt.Sprint(g.Connected), fmt.Sprint(g.Synced), fmt.Sprint(g.Stale), fmt.Sprint(g.Nacked))
	}
	rollouts := newTable("ROLLOUT", "STATE")
	for _, r := range s.Rollouts {
		rollouts.add(fmt.Sprint(r.ID), string(r.State))
	}
	held := newTable("HELD", "VERSION", "KIND", "SINCE", "REASON")
	for _, h := range s.Held {
		held.add(h.Secret, short(h.Version), string(h.Kind), ago(now.Sub(h.Since))+" ago", h.Reason)
	}
	issuers := newTable("ISSUER", "STATE")
	for _, i := range s.Issuers {
		issuers.add(i.Name, issuerState(i.Up, i.Hold))
	}
	return writeTables(w, certs, secrets, groups, rollouts, held, issuers)
}

// writeTables prints the tables that have rows, with an empty line before each.
func writeTables(w io.Writer, tables ...*table) error {
	for _, t := range tables {
		if len(t.rows) == 0 {
			continue
		}
		if _, err := fmt.Fprintln(w); err != nil {
			return fmt.Errorf("print: %w", err)
		}
		if err := t.write(w); err != nil {
			return err
		}
	}
	return nil
}

func groupVersions(groups []admin.GroupVersion) string {
	parts := make([]string, 0, len(groups))
	for _, g := range groups {
		parts = append(parts, g.Name+"="+shortVersion(g.Version))
	}
	return strings.Join(parts, " ")
}

// certificateError says what went wrong with a certificate, or what keeps it from being ordered.
func certificateError(c admin.CertificateStatus, now time.Time) string {
	switch {
	case c.Error != nil:
		return fmt.Sprintf("%s (%d %s): %s", c.Error.Kind, c.Error.Attempts, plural(c.Error.Attempts, "attempt"), c.Error.Message)
	case c.Waiting != nil:
		return fmt.Sprintf("waits for %s: %s", until(&c.Waiting.Until, now), c.Waiting.Message)
	}
	return none
}

func shortText(s *string) string {
	if s == nil {
		return none
	}
	if len(*s) > 20 {
		return (*s)[:20] + "…"
	}
	return *s
}

func writeNodes(w io.Writer, n admin.Nodes, now time.Time) error {
	t := newTable("NODE", "GROUP", "STATE", "TRANSPORT", "PROTOCOL", "SINCE", "SECRET", "WANT", "SENT", "ACKED", "SERVED", "NACKED")
	for _, node := range n.Nodes {
		since := none
		if node.Since != nil {
			since = ago(now.Sub(*node.Since))
		}
		first := []string{node.ID, node.Group, node.State, node.Transport, node.Protocol, since}
		if len(node.Secrets) == 0 {
			t.add(append(first, none, none, none, none, none, none)...)
		}
		for _, row := range nodeRows(node.Secrets) {
			t.add(append(first, row...)...)
			first = []string{"", "", "", "", "", ""}
		}
	}
	if len(t.rows) == 0 {
		_, err := fmt.Fprintln(w, "no node has connected")
		return err
	}
	return t.write(w)
}

// nodeRows are the rows of one node. An on-demand Envoy may have a thousand names under one certificate: those that stand alike share a row.
func nodeRows(secrets []admin.NodeSecret) [][]string {
	rows := make([][]string, 0, len(secrets))
	alike := map[string]int{} // the row of the first one
	more := map[int]int{}
	for _, s := range secrets {
		row := []string{s.Name, shortVersion(s.Want), versionAt(s.Sent), versionAt(s.Acked), servedAt(s.Served), nackedAt(s.Nacked)}
		if s.CoveredBy != nil {
			key := strings.Join(slices.Concat(row[1:], []string{*s.CoveredBy}), "\x00")
			if first, ok := alike[key]; ok {
				more[first]++
				continue
			}
			alike[key] = len(rows)
			row[0] += " by " + *s.CoveredBy
		}
		rows = append(rows, row)
	}
	for i, n := range more {
		rows[i][0] += fmt.Sprintf(" and %d more", n)
	}
	return rows
}

func versionAt(v *admin.VersionAt) string {
	if v == nil {
		return none
	}
	return short(v.Version)
}

func servedAt(s *admin.ServedAt) string {
	switch {
	case s == nil:
		return none
	case s.Version == nil:
		return "serial " + shortText(&s.Serial)
	}
	return short(*s.Version)
}

func nackedAt(v *admin.NackedAt) string {
	if v == nil {
		return none
	}
	return short(v.Version) + " " + v.Message
}
