package main

import (
	"io"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/sds-server/sds-server/internal/admin"
	"github.com/sds-server/sds-server/internal/identity"
)

func (c *cli) identity() *cobra.Command {
	cmd := &cobra.Command{Use: "identity", Short: "Client certificates for Envoys on the xDS channel", GroupID: "node"}
	cmd.AddCommand(c.identityIssue())
	return parent(cmd)
}

func (c *cli) identityIssue() *cobra.Command {
	var req admin.IdentityRequest
	var dir string
	cmd := &cobra.Command{
		Use: "issue --group G --node NAME --out DIR", Short: "Make a node's key, and have the server sign its certificate", Args: cobra.NoArgs,
		Long: `Makes a key in this command, sends only a certificate request to the server, and writes tls.crt, tls.key (0600) and ca.crt to the directory. The
identity in the certificate is the group's first URI glob with the node's name for its *.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			csr, key, err := identity.Request(req.Node)
			if err != nil {
				return err
			}
			req.CSRPEM = string(csr)
			var id admin.Identity
			if err := c.post(cmd.Context(), "/v1/identity", req, &id); err != nil {
				return err
			}
			files := []identity.File{
				{Name: "tls.key", Data: key, Mode: 0o600}, {Name: "tls.crt", Data: []byte(id.CertPEM), Mode: 0o644}, {Name: "ca.crt", Data: []byte(id.CAPEM), Mode: 0o644},
			}
			if err := identity.WriteFiles(dir, files); err != nil {
				return err
			}
			return c.print(id, func(io.Writer) error {
				return c.printf("%s until %s: %s, %s, %s\n", id.Identity, id.NotAfter.Format("2006-01-02"), filepath.Join(dir, "tls.crt"),
					filepath.Join(dir, "tls.key"), filepath.Join(dir, "ca.crt"))
			})
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&req.Group, "group", "", "the node's `group`")
	flags.StringVar(&req.Node, "node", "", "the node's `name`")
	flags.StringVar(&dir, "out", "", "`directory` for the files; it is made if it is missing")
	flags.IntVar(&req.Days, "days", 30, "life in days")
	for _, f := range []string{"group", "node", "out"} {
		_ = cmd.MarkFlagRequired(f)
	}
	_ = cmd.MarkFlagDirname("out")
	c.groupNames().flag(cmd, "group")
	return cmd
}
