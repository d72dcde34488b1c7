package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sds-server/sds-server/internal/admin"
)

// defaultEntries is how many entries `audit list` shows.
const defaultEntries = 100

func (c *cli) audit() *cobra.Command {
	cmd := &cobra.Command{Use: "audit", Short: "What happened, who did it, and which node was sent what", GroupID: "look"}
	cmd.AddCommand(c.auditList(), c.auditVerify())
	return parent(cmd)
}

func (c *cli) auditList() *cobra.Command {
	var limit int
	var since, secret, group, event string
	cmd := &cobra.Command{
		Use: "list", Short: "The newest entries of the audit trail", Args: cobra.NoArgs,
		Long: `Shows the newest entries that pass every filter, the oldest first. The file itself (audit.file) has all of them, one line of JSON each.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if limit < 1 {
				return usage("--limit %d: at least 1", limit)
			}
			q := url.Values{"limit": {strconv.Itoa(limit)}}
			if since != "" {
				at, err := parseSince(since, time.Now())
				if err != nil {
					return err
				}
				q.Set("since", at.UTC().Format(time.RFC3339Nano))
			}
			for key, value := range map[string]string{"secret": secret, "group": group, "event": event} {
				if value != "" {
					q.Set(key, value)
				}
			}
			var a admin.AuditEntries
			if err := c.get(cmd.Context(), "/v1/audit?"+q.Encode(), &a); err != nil {
				return err
			}
			return c.print(a, func(w io.Writer) error { return writeAudit(w, a) })
		},
	}
	cmd.Flags().IntVar(&limit, "limit", defaultEntries, "how many at most, the newest `number`")
	cmd.Flags().StringVar(&since, "since", "", "only what happened since a `time`, such as 2026-11-24T12:00:00Z, or in the last 24h")
	cmd.Flags().StringVar(&secret, "secret", "", "only about this `secret`")
	cmd.Flags().StringVar(&group, "group", "", "only about this `group`")
	cmd.Flags().StringVar(&event, "event", "", "only this `event`, or those that begin with it: push, command, rollout, certificate, version, config, server, audit")
	names(c.secretNames).flag(cmd, "secret")
	c.groupNames().flag(cmd, "group")
	_ = cmd.RegisterFlagCompletionFunc("event", cobra.FixedCompletions(
		[]string{"push", "command", "rollout", "certificate", "version", "config", "server", "audit"}, cobra.ShellCompDirectiveNoFileComp))
	for _, flag := range []string{"limit", "since"} {
		_ = cmd.RegisterFlagCompletionFunc(flag, cobra.NoFileCompletions)
	}
	return cmd
}

// parseSince reads a time, or a duration before now.
func parseSince(text string, now time.Time) (time.Time, error) {
	if d, err := time.ParseDuration(text); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return at, usage("--since %q: neither a time such as 2026-11-24T12:00:00Z nor a duration such as 24h", text)
	}
	return at, nil
}

func writeAudit(w io.Writer, a admin.AuditEntries) error {
	if len(a.Entries) == 0 {
		_, err := fmt.Fprintln(w, "no entry passes the filters")
		return err
	}
	t := newTable("ENTRY", "AT", "EVENT", "WHO", "GROUP", "SECRET", "VERSION", "NODES", "DETAIL")
	for _, e := range a.Entries {
		cell := func(text string) string {
			if text == "" {
				return none
			}
			return text
		}
		t.add(fmt.Sprint(e.Seq), e.At.Format(time.RFC3339), e.Event, cell(e.Who), cell(e.Group), cell(e.Secret), cell(short(e.Version)),
			cell(strings.Join(e.Nodes, ",")), e.Detail)
	}
	return t.write(w)
}

func (c *cli) auditVerify() *cobra.Command {
	return &cobra.Command{
		Use: "verify", Short: "Check that no entry was changed, removed, moved or added", Args: cobra.NoArgs,
		Long: `Checks the whole chain of the audit file, and that it ends where the running server has written last. The hash that it shows proves later, noted
elsewhere, that the file was not written anew as a whole.

Exit codes: 0 the chain is whole, 1 it is not: the first bad line is named.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			report, err := c.verifyAudit(cmd.Context())
			if err != nil {
				return err
			}
			err = c.print(report, func(io.Writer) error {
				if !report.OK {
					return nil // the error says it
				}
				return c.printf("%s: %d entries, %s to %s, are as they were written; the hash of the last one is %s\n",
					report.File, report.Entries, text(report.First), text(report.Last), text(report.Hash))
			})
			if err != nil || report.OK {
				return err
			}
			return &hinted{
				fmt.Errorf("%s: line %s: %s; bad lines: %d", report.File, text(report.Line), text(report.Problem), report.Bad),
				"keep a copy of the file and find out who could write to it; the server goes on behind its last entry",
			}
		},
	}
}

func (c *cli) verifyAudit(ctx context.Context) (admin.AuditReport, error) {
	var out admin.AuditReport
	client, err := c.client()
	if err != nil {
		return out, err
	}
	err = client.Stream(ctx, "/v1/audit/verify", nil, func(line []byte) (bool, error) {
		var answer admin.AuditLine
		if err := json.Unmarshal(line, &answer); err != nil {
			return false, fmt.Errorf("answer of the server: %w", err)
		}
		if answer.Error != nil {
			return false, answer.Error
		}
		if answer.Report != nil {
			out = *answer.Report
		}
		return false, nil
	})
	return out, err
}
