package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sds-server/sds-server/internal/admin"
)

func (c *cli) verify() *cobra.Command {
	var group string
	cmd := &cobra.Command{
		Use: "verify", Short: "Prove by TLS handshakes that every node serves what its group is at", GroupID: "look", Args: cobra.NoArgs,
		Long: `Makes full TLS handshakes with the addresses of groups[].verify, now: for each name of each certificate that a node subscribes to, as a client of
TLS 1.2 that knows RSA, one that knows ECDSA, and one of TLS 1.3, as far as these apply. The leaf has to be the one that the group is at, and
its chain has to reach the roots. An older leaf is looked at again until verify.timeout.

A listener that demands client certificates is judged by the leaf it showed. Nothing is changed, and no rollout waits for it yet.

Exit codes: 0 everything is served as wanted, 1 something is not, or nothing could be looked at.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v, err := c.runVerify(cmd.Context(), admin.VerifyRequest{Group: group})
			if err != nil {
				return err
			}
			if err := c.print(v, func(w io.Writer) error { return writeVerification(w, v) }); err != nil {
				return err
			}
			return verdict(v, group)
		},
	}
	cmd.Flags().StringVar(&group, "group", "", "only this `group`")
	c.groupNames().flag(cmd, "group")
	return cmd
}

// runVerify shows the progress on standard error and returns what came of it.
func (c *cli) runVerify(ctx context.Context, req admin.VerifyRequest) (admin.Verification, error) {
	v := admin.Verification{Groups: []admin.VerifiedGroup{}, Handshakes: []admin.VerifiedHandshake{}}
	client, err := c.client()
	if err != nil {
		return v, err
	}
	err = client.Stream(ctx, "/v1/verify", req, func(text []byte) (bool, error) {
		var line admin.VerifyLine
		if err := json.Unmarshal(text, &line); err != nil {
			return false, fmt.Errorf("answer of the server: %w", err)
		}
		switch {
		case line.Error != nil:
			return false, line.Error
		case line.Done:
			return false, nil
		case line.Group != nil:
			v.Groups = append(v.Groups, *line.Group)
		case line.Handshake != nil:
			v.Handshakes = append(v.Handshakes, *line.Handshake)
			return true, c.showHandshake(*line.Handshake)
		}
		return true, nil
	})
	slices.SortFunc(v.Groups, func(a, b admin.VerifiedGroup) int { return strings.Compare(a.Name, b.Name) })
	slices.SortStableFunc(v.Handshakes, func(a, b admin.VerifiedHandshake) int {
		return cmp.Or(strings.Compare(a.Group, b.Group), strings.Compare(a.Address, b.Address), strings.Compare(a.ServerName, b.ServerName), strings.Compare(a.Client, b.Client))
	})
	ok, failed := 0, 0
	for _, g := range v.Groups {
		ok, failed = ok+g.OK, failed+g.Failed
	}
	v.Served = ok > 0 && failed == 0
	return v, err
}

func (c *cli) showHandshake(h admin.VerifiedHandshake) error {
	if c.format != formatTable || !isTerminal(c.errs) {
		return nil
	}
	result := "served"
	if h.Error != nil {
		result = h.Error.Kind
	}
	_, err := fmt.Fprintln(c.errs, strings.Join(printable([]string{h.Group, h.Address, h.ServerName, h.Client + ":", result}), " "))
	return err
}

func writeVerification(w io.Writer, v admin.Verification) error {
	t := newTable("GROUP", "NODE", "ADDRESS", "NAME", "CLIENT", "SECRET", "WANT", "SERVED", "MS", "RESULT")
	for _, h := range v.Handshakes {
		ms, result := none, "ok"
		if h.Seconds != nil {
			ms = fmt.Sprintf("%.1f", *h.Seconds*1000)
		}
		switch {
		case h.Error != nil:
			result = h.Error.Kind + ": " + h.Error.Message
		case h.ClientCertificate:
			result = "ok (a client certificate is asked for)"
		}
		t.add(h.Group, text(h.Node), h.Address, h.ServerName, h.Client, h.Secret, short(h.Want), servedLeaf(h.Served), ms, result)
	}
	if len(t.rows) > 0 {
		if err := t.write(w); err != nil {
			return err
		}
	}
	for _, g := range v.Groups {
		lines := []string{fmt.Sprintf("group %s: %d of %d handshakes show what is wanted", g.Name, g.OK, g.OK+g.Failed)}
		if !g.Configured {
			lines = []string{fmt.Sprintf("group %s: has no verify in the configuration, nothing is known", g.Name)}
		}
		for _, s := range g.Skipped {
			lines = append(lines, fmt.Sprintf("group %s: not looked at: %s", g.Name, s))
		}
		if _, err := fmt.Fprintln(w, strings.Join(lines, "\n")); err != nil {
			return fmt.Errorf("print: %w", err)
		}
	}
	return nil
}

func servedLeaf(s *admin.ServedLeaf) string {
	switch {
	case s == nil:
		return none
	case s.Version == nil:
		return "serial " + shortText(&s.Serial)
	}
	return short(*s.Version)
}

// verdict is the command's error; nil where everything is served as wanted.
func verdict(v admin.Verification, group string) error {
	if v.Served {
		return nil
	}
	for _, h := range v.Handshakes {
		if h.Error != nil {
			failed := 0
			for _, g := range v.Groups {
				failed += g.Failed
			}
			return &hinted{fmt.Errorf("%d of %d handshakes do not show what is wanted; the first: %s", failed, len(v.Handshakes), h.Error.Message), h.Error.Hint}
		}
	}
	configured := slices.ContainsFunc(v.Groups, func(g admin.VerifiedGroup) bool { return g.Configured })
	switch {
	case !configured && group != "":
		return &hinted{fmt.Errorf("group %q has no verify: nothing can be looked at", group), "set endpoints or node_port in groups[].verify of the configuration"}
	case !configured:
		return &hinted{errors.New("no group has verify: nothing can be looked at"), "set endpoints or node_port in groups[].verify of the configuration"}
	}
	return &hinted{errors.New("nothing was looked at: no connected node subscribes to a certificate that could be asked for"), "see `nodes`, and verify.server_names"}
}
