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

func (c *cli) issuers() *cobra.Command {
	cmd := &cobra.Command{Use: "issuers", Short: "Certificate authorities: what is known of them, and whether they work", GroupID: "look"}
	cmd.AddCommand(c.issuersList(), c.issuersShow(), c.issuersTest())
	return parent(cmd)
}

func (c *cli) issuersList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "Every issuer with its state", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var list admin.Issuers
			if err := c.get(cmd.Context(), "/v1/issuers", &list); err != nil {
				return err
			}
			return c.print(list, func(w io.Writer) error { return writeIssuers(w, list, time.Now()) })
		},
	}
}

func writeIssuers(w io.Writer, list admin.Issuers, now time.Time) error {
	if len(list.Issuers) == 0 {
		if _, err := fmt.Fprintln(w, "no issuer is configured"); err != nil {
			return fmt.Errorf("print: %w", err)
		}
		return nil
	}
	t := newTable("ISSUER", "DIRECTORY", "STATE", "ACCOUNT", "CERTIFICATES", "NEXT MAINTENANCE", "LAST ERROR")
	for _, i := range list.Issuers {
		t.add(i.Name, host(i.Directory), issuerState(i.Up, i.Hold), text(i.Account), fmt.Sprint(len(i.Certificates)), maintenanceIn(i.Maintenance, now), issuerError(i.Error, now))
	}
	return t.write(w)
}

// issuerState is up, down, or why ordinary renewals wait there.
func issuerState(up bool, hold *admin.IssuerHold) string {
	state := "up"
	if !up {
		state = "down"
	}
	if hold != nil {
		state += ", held: " + hold.Reason
	}
	return state
}

func host(directory string) string {
	if u, err := url.Parse(directory); err == nil && u.Host != "" {
		return u.Host
	}
	return directory
}

func maintenanceIn(m *admin.Maintenance, now time.Time) string {
	if m == nil {
		return none
	}
	out := fmt.Sprintf("in %s, for %s", until(&m.From, now), ago(m.To.Sub(m.From)))
	if m.Name != nil {
		out += ": " + *m.Name
	}
	return out
}

func issuerError(e *admin.IssuerError, now time.Time) string {
	if e == nil {
		return none
	}
	return fmt.Sprintf("%s, %s ago: %s: %s", e.Kind, ago(now.Sub(e.At)), e.Secret, e.Message)
}

func (c *cli) issuersShow() *cobra.Command {
	return &cobra.Command{
		Use: "show NAME", Short: "One issuer, and what its directory said last", Args: cobra.ExactArgs(1), ValidArgsFunction: c.issuerNames().first,
		RunE: func(cmd *cobra.Command, args []string) error {
			var i admin.Issuer
			if err := c.get(cmd.Context(), "/v1/issuers/"+url.PathEscape(args[0]), &i); err != nil {
				return err
			}
			return c.print(i, func(w io.Writer) error { return writeIssuer(w, i, time.Now()) })
		},
	}
}

func writeIssuer(w io.Writer, i admin.Issuer, now time.Time) error {
	t := newTable(i.Name, i.Directory)
	t.add("state", issuerState(i.Up, i.Hold))
	t.add("account", text(i.Account))
	t.add("email", text(i.Email))
	t.add("external account binding", text(i.EAB))
	t.add("profile", text(i.Profile))
	t.add("https verified by", orWords(i.CAFile, "the system's roots"))
	t.add("chains verified to", chainRoots(i))
	t.add("certificates", fmt.Sprintf("%d: %s", len(i.Certificates), strings.Join(i.Certificates, ", ")))
	t.add("last error", issuerError(i.Error, now))
	for _, m := range i.Maintenances {
		t.add("maintenance", span(m))
	}
	if p := i.StatusPage; p != nil {
		t.add("status page", pageState(*p, now))
		for _, m := range p.Announced {
			t.add("announced", span(m))
		}
	}
	directoryRows(t, i.Seen, now)
	for _, warning := range i.Warnings {
		t.add("warning", warning.Path+": "+warning.Message)
	}
	return t.write(w)
}

func orWords(v *string, words string) string {
	if v == nil {
		return words
	}
	return *v
}

func chainRoots(i admin.Issuer) string {
	if i.RootsUnchecked {
		return "any root"
	}
	return orWords(i.RootsFile, "the system's roots")
}

func span(m admin.Maintenance) string {
	out := m.From.Format(time.RFC3339) + " to " + m.To.Format(time.RFC3339)
	if m.Name != nil {
		out += ": " + *m.Name
	}
	return out
}

func pageState(p admin.StatusPage, now time.Time) string {
	switch {
	case p.Error != nil:
		return "cannot be read: " + *p.Error
	case p.At == nil:
		return "not looked at yet"
	case p.Trouble != nil && p.Since != nil:
		return fmt.Sprintf("%s, since %s", *p.Trouble, p.Since.Format(time.RFC3339))
	}
	return fmt.Sprintf("all is well, %s ago", ago(now.Sub(*p.At)))
}

// directoryRows tell what the directory of a CA says.
func directoryRows(t *table, d *admin.IssuerDirectory, now time.Time) {
	if d == nil {
		t.add("directory", "not used since the start, or not with success; `issuers test` asks now")
		return
	}
	t.add("directory", "fetched "+ago(now.Sub(d.At))+" ago")
	t.add("terms of service", text(d.Terms))
	t.add("suggests when to renew", yesNo(d.RenewalInfo))
	t.add("wants an external account", yesNo(d.EABRequired))
	t.add("names in CAA records", orNone(d.CAAIdentities))
	for _, p := range d.Profiles {
		t.add("offers profile", p.Name+": "+p.Description)
	}
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func orNone(list []string) string {
	if len(list) == 0 {
		return none
	}
	return strings.Join(list, ", ")
}

func (c *cli) issuersTest() *cobra.Command {
	var req admin.TestRequest
	cmd := &cobra.Command{
		Use: "test NAME", Short: "Ask a certificate authority now whether it works with what is configured", Args: cobra.ExactArgs(1),
		ValidArgsFunction: c.issuerNames().first,
		Long: `Makes the server ask the CA now: is its directory reached, its HTTPS believed, our account known, and does it do what is configured? Orders
nothing, and registers an account only with --register. Exit code 1 where a check has failed.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			var test admin.IssuerTest
			if err := c.post(cmd.Context(), "/v1/issuers/"+url.PathEscape(args[0])+"/test", req, &test); err != nil {
				return err
			}
			if err := c.print(test, func(w io.Writer) error { return writeIssuerTest(w, test) }); err != nil {
				return err
			}
			if !test.OK {
				return &exitError{exitFailed}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&req.Register, "register", false, "register the account where the CA does not have it")
	return cmd
}

// writeIssuerTest prints a line for each check, and what to do under those that are not ok.
func writeIssuerTest(w io.Writer, test admin.IssuerTest) error {
	t := newTable("RESULT", "CHECK", "FOUND")
	for _, check := range test.Checks {
		t.add(check.Result, check.Check, check.Message)
		if check.Result != "ok" && check.Hint != nil {
			t.add("", "", "hint: "+*check.Hint)
		}
	}
	return t.write(w)
}
