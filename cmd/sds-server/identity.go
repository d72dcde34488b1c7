package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/sds-server/sds-server/internal/admin"
	"github.com/sds-server/sds-server/internal/bootstrap"
	"github.com/sds-server/sds-server/internal/identity"
)

func (c *cli) identity() *cobra.Command {
	cmd := &cobra.Command{Use: "identity", Short: "Client certificates for Envoys on the xDS channel", GroupID: "node"}
	cmd.AddCommand(c.identityIssue(), c.identityRenew())
	return parent(cmd)
}

func (c *cli) identityIssue() *cobra.Command {
	var req admin.IdentityRequest
	var dir, at string
	var life time.Duration
	cmd := &cobra.Command{
		Use: "issue --group G --node NAME --out DIR", Short: "Make a node's key, and have the server sign its certificate", Args: cobra.NoArgs,
		Long: `Makes a key in this command, sends only a certificate request to the server, and writes tls.crt, tls.key (0600), ca.crt and channel.yaml to the
directory; the first three are replaced at once. The identity in the certificate is the group's first URI glob with the node's name for its *.

channel.yaml is what "envoy bootstrap" refers to: by it Envoy takes up a renewed certificate without a restart. It names the files by their
path on Envoy's machine, which is --at where that is not DIR.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("life") {
				if life < time.Second || life%time.Second != 0 {
					return usage("--life %s: want whole seconds, 1s or more", life)
				}
				req.LifeSeconds, req.Days = int64(life/time.Second), 0
			}
			if at == "" {
				at = dir
			}
			channel, err := channelFile(at)
			if err != nil {
				return err
			}
			csr, key, err := identity.Request(req.Node)
			if err != nil {
				return err
			}
			req.CSRPEM = string(csr)
			var id admin.Identity
			if err := c.post(cmd.Context(), "/v1/identity", req, &id); err != nil {
				return err
			}
			if err := identity.WriteFiles(dir, []identity.File{channel}); err != nil {
				return err
			}
			return c.writeIdentity(dir, id, key)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&req.Group, "group", "", "the node's `group`")
	flags.StringVar(&req.Node, "node", "", "the node's `name`")
	flags.StringVar(&dir, "out", "", "`directory` for the files; it is made if it is missing")
	flags.StringVar(&at, "at", "", "`directory` in which Envoy finds the files (default: that of --out)")
	flags.IntVar(&req.Days, "days", 30, "life in days")
	flags.DurationVar(&life, "life", 0, "life as a `duration`, such as 36h, instead of --days")
	cmd.MarkFlagsMutuallyExclusive("days", "life")
	for _, f := range []string{"group", "node", "out"} {
		_ = cmd.MarkFlagRequired(f)
	}
	_ = cmd.MarkFlagDirname("out")
	_ = cmd.MarkFlagDirname("at")
	c.groupNames().flag(cmd, "group")
	return cmd
}

func (c *cli) identityRenew() *cobra.Command {
	return &cobra.Command{
		Use: "renew DIR", Short: "Renew the certificate in a directory, with a new key", Args: cobra.ExactArgs(1),
		Long: `Makes a new key in this command and has the server sign a certificate for it: for the node, the group and the life of the certificate in DIR, which
may have ended. tls.crt, tls.key and ca.crt are replaced at once and keep their owner and mode. An Envoy with the configuration of "envoy
bootstrap" uses them for its next connection; the server closes the old one when 5/6 of the old certificate's life are over.

To be run by a timer, more often than every 1/3 of the life.`,
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return nil, cobra.ShellCompDirectiveFilterDirs
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			old, err := os.ReadFile(filepath.Join(args[0], certName))
			if err != nil {
				return &hinted{fmt.Errorf("no certificate to renew: %w", err), "name the directory that `identity issue --out` wrote"}
			}
			csr, key, err := identity.Request("renewal") // the server keeps the name
			if err != nil {
				return err
			}
			var id admin.Identity
			if err := c.post(cmd.Context(), "/v1/identity/renew", admin.IdentityRenewal{CertPEM: string(old), CSRPEM: string(csr)}, &id); err != nil {
				return err
			}
			if _, err := os.Stat(filepath.Join(args[0], channelName)); errors.Is(err, fs.ErrNotExist) { // from an older version of this program
				channel, err := channelFile(args[0])
				if err != nil {
					return err
				}
				if err := identity.WriteFiles(args[0], []identity.File{channel}); err != nil {
					return err
				}
			}
			return c.writeIdentity(args[0], id, key)
		},
	}
}

// The files of an identity.
const (
	certName, keyName, caName = "tls.crt", "tls.key", "ca.crt"
	channelName               = "channel.yaml"
)

// writeIdentity puts a new certificate and its key in place, and says so.
func (c *cli) writeIdentity(dir string, id admin.Identity, key []byte) error {
	err := identity.Publish(dir, []identity.File{
		{Name: keyName, Data: key, Mode: 0o600}, {Name: certName, Data: []byte(id.CertPEM), Mode: 0o644}, {Name: caName, Data: []byte(id.CAPEM), Mode: 0o644},
	})
	if err != nil {
		return err
	}
	return c.print(id, func(io.Writer) error {
		return c.printf("%s until %s: %s, %s, %s\n", id.Identity, id.NotAfter.Format("2006-01-02"), filepath.Join(dir, certName),
			filepath.Join(dir, keyName), filepath.Join(dir, caName))
	})
}

// channelFile tells Envoy to watch the files of an identity.
func channelFile(dir string) (identity.File, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return identity.File{}, fmt.Errorf("identity directory: %w", err)
	}
	text, err := bootstrap.ChannelSecret(bootstrap.SDS{CertFile: filepath.Join(dir, certName), KeyFile: filepath.Join(dir, keyName)})
	if err != nil {
		return identity.File{}, usage("%s", err)
	}
	return identity.File{Name: channelName, Data: text, Mode: 0o644}, nil
}
