package main

import (
	"context"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sds-server/sds-server/internal/admin"
	"github.com/sds-server/sds-server/pkg/secret"
)

func (c *cli) secrets() *cobra.Command {
	cmd := &cobra.Command{Use: "secrets", Short: "Secrets and their versions; import a pair", GroupID: "look"}
	cmd.AddCommand(c.secretsList(), c.secretsShow(), c.secretsHistory(), c.secretsImport(), c.secretsHold(), c.secretsRelease())
	return parent(cmd)
}

// parent makes a command that only has subcommands say so when it is called alone or with a wrong one.
func parent(cmd *cobra.Command) *cobra.Command {
	cmd.Args = cobra.ArbitraryArgs
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return cmd.Help()
		}
		return usage("unknown command %q for %q", args[0], cmd.CommandPath())
	}
	return cmd
}

func (c *cli) secretsList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "Every secret with its newest version", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var s admin.Secrets
			if err := c.get(cmd.Context(), "/v1/secrets", &s); err != nil {
				return err
			}
			return c.print(s, func(w io.Writer) error {
				t := newTable("SECRET", "KIND", "VERSION", "SERIAL", "EXPIRES IN", "VERSIONS", "SOURCE")
				for _, h := range s.Secrets {
					t.add(h.Name, h.Kind, short(h.Version), shortText(h.Serial), until(h.NotAfter, time.Now()), fmt.Sprint(h.Versions), h.Source)
				}
				return t.write(w)
			})
		},
	}
}

func (c *cli) secretsShow() *cobra.Command {
	return &cobra.Command{
		Use: "show NAME", Short: "Every stored version of a secret in full; never a key", Args: cobra.ExactArgs(1), ValidArgsFunction: names(c.secretNames).first,
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := c.secret(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return c.print(s, func(w io.Writer) error { return writeSecret(w, s) })
		},
	}
}

func (c *cli) secretsHistory() *cobra.Command {
	return &cobra.Command{
		Use: "history NAME", Short: "The versions of a secret, the newest first", Args: cobra.ExactArgs(1), ValidArgsFunction: names(c.secretNames).first,
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := c.secret(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return c.print(s, func(w io.Writer) error {
				t := newTable("VERSION", "STATE", "CREATED", "SERIAL", "EXPIRES IN", "ISSUER", "GROUPS")
				for _, v := range s.Versions {
					t.add(short(v.Version), v.State, v.Created.Format(time.RFC3339), shortText(v.Serial), until(v.NotAfter, time.Now()),
						text(v.Issuer), strings.Join(v.Groups, ","))
				}
				return t.write(w)
			})
		},
	}
}

func (c *cli) secret(ctx context.Context, name string) (admin.Secret, error) {
	var s admin.Secret
	return s, c.get(ctx, "/v1/secrets/"+url.PathEscape(name), &s)
}

func writeSecret(w io.Writer, s admin.Secret) error {
	for _, v := range s.Versions {
		t := newTable("SECRET", s.Name)
		t.add("KIND", s.Kind)
		t.add("VERSION", v.Version)
		t.add("STATE", v.State)
		t.add("CREATED", v.Created.Format(time.RFC3339))
		if s.Kind == string(secret.KindTLSCertificate) {
			t.add("ISSUER", text(v.Issuer))
			t.add("SERIAL", text(v.Serial))
			t.add("DNS NAMES", strings.Join(v.DNSNames, ", "))
			t.add("ADDRESSES", strings.Join(v.Addresses, ", "))
			t.add("KEY TYPE", text(v.KeyType))
		}
		if v.NotAfter != nil {
			t.add("SHA-256", text(v.SHA256))
			t.add("NOT BEFORE", date(v.NotBefore))
			t.add("NOT AFTER", date(v.NotAfter))
		}
		t.add("GROUPS", strings.Join(v.Groups, ", "))
		if err := t.write(w); err != nil {
			return err
		}
		if v.ChainPEM == nil {
			continue
		}
		if _, err := fmt.Fprintf(w, "%s\n", *v.ChainPEM); err != nil {
			return fmt.Errorf("print: %w", err)
		}
	}
	return nil
}

func date(t *time.Time) string {
	if t == nil {
		return none
	}
	return t.Format(time.RFC3339)
}

func (c *cli) secretsImport() *cobra.Command {
	var chain, key, reason string
	cmd := &cobra.Command{
		Use: "import NAME --chain FILE --key FILE", Short: "Take in a certificate that was issued elsewhere", Args: cobra.ExactArgs(1),
		Long: `Takes in a certificate chain (PEM, leaf first) and its private key (PEM) under a name of its own. The pair has to pass every rule that an
issued certificate has to pass; what Envoy or a client would reject is refused here. The command reads the files itself.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			req := admin.ImportRequest{Name: args[0], Reason: reason}
			var err error
			if req.ChainPEM, err = readPEM(chain, secret.MaxChainSize); err != nil {
				return fmt.Errorf("chain: %w", err)
			}
			if req.KeyPEM, err = readPEM(key, secret.MaxKeySize); err != nil {
				return fmt.Errorf("key: %w", err)
			}
			var a admin.Accepted
			if err := c.post(cmd.Context(), "/v1/secrets", req, &a); err != nil {
				return err
			}
			return c.print(a, func(io.Writer) error {
				if a.Rollout == nil {
					return c.printf("%s version %s (serial %s) is in every group already\n", a.Name, short(a.Version), a.Serial)
				}
				return c.printf("imported %s version %s (serial %s); rollout %d, snapshot %d\n", a.Name, short(a.Version), a.Serial, *a.Rollout, a.Snapshot)
			})
		},
	}
	cmd.Flags().StringVar(&chain, "chain", "", "`file` with the certificate chain, leaf first")
	cmd.Flags().StringVar(&key, "key", "", "`file` with the private key")
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the log")
	_ = cmd.MarkFlagRequired("chain")
	_ = cmd.MarkFlagRequired("key")
	return cmd
}

func (c *cli) secretsHold() *cobra.Command {
	var req admin.HoldRequest
	cmd := &cobra.Command{
		Use: "hold NAME", Short: "Keep a version of a secret from going further", Args: cobra.ExactArgs(1), ValidArgsFunction: names(c.secretNames).first,
		Long: `Holds a version, the newest one unless --version names another, until "secrets release" or "rollout start". It goes to no further group; a rollout
that carries it ends, or goes on with the rest of its train. Groups that serve it go on to: "rollout abort" and "rollback --group" take it back there.
The hold is overruled when what is served would end otherwise.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			var h admin.HeldVersion
			if err := c.post(cmd.Context(), "/v1/secrets/"+url.PathEscape(args[0])+"/hold", req, &h); err != nil {
				return err
			}
			return c.print(h, func(io.Writer) error { return c.printHeld(h) })
		},
	}
	cmd.Flags().StringVar(&req.Version, "version", "", "this `version` (12 or more digits), not the newest one")
	cmd.Flags().StringVar(&req.Reason, "reason", "", "why, for the log")
	c.versionFlag(cmd, firstOf)
	return cmd
}

// firstOf is the name that a command's arguments begin with; empty if there are none.
func firstOf(args []string) string {
	if len(args) == 0 {
		return ""
	}
	return args[0]
}

func (c *cli) printHeld(h admin.HeldVersion) error {
	how := "is held"
	if h.Already {
		how = "is held already"
	}
	lines := []string{fmt.Sprintf("%s version %s %s (%s): %s", h.Secret, short(h.Version), how, h.Kind, h.Reason)}
	for _, id := range h.Rollouts {
		lines = append(lines, fmt.Sprintf("rollout %d goes no further with it", id))
	}
	if len(h.Groups) > 0 {
		lines = append(lines, strings.Join(h.Groups, ", ")+" go on serving it; `rollback --group` takes a group back")
	}
	return writeLines(c.out, lines)
}

func (c *cli) secretsRelease() *cobra.Command {
	var version string
	cmd := &cobra.Command{
		Use: "release NAME", Short: "Let held versions of a secret go again", Args: cobra.ExactArgs(1), ValidArgsFunction: c.heldNames().first,
		RunE: func(cmd *cobra.Command, args []string) error {
			var r admin.Released
			path := "/v1/secrets/" + url.PathEscape(args[0]) + "/release"
			if version != "" {
				path += "?" + query("version", version)
			}
			if err := c.post(cmd.Context(), path, struct{}{}, &r); err != nil {
				return err
			}
			return c.print(r, func(io.Writer) error {
				return c.printf("released %d %s of %s\n", r.Released, plural(r.Released, "version"), r.Name)
			})
		},
	}
	cmd.Flags().StringVar(&version, "version", "", "only this `version` (12 or more digits)")
	c.versionFlag(cmd, firstOf)
	return cmd
}

// query builds one parameter of a URL.
func query(key, value string) string { return url.Values{key: {value}}.Encode() }

// readPEM reads a file up to a little more than may be in it, so that the server says what is wrong with one that is too large.
func readPEM(path string, limit int64) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close() // only read
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	return string(b), err
}
