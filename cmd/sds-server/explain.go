package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/sds-server/sds-server/internal/admin"
)

func (c *cli) explain() *cobra.Command {
	var identity, name string
	cmd := &cobra.Command{
		Use: "explain --identity ID --secret NAME", Short: "Which rule lets an identity have a secret, or not", GroupID: "look", Args: cobra.NoArgs,
		Long: `Says which rules decide whether a node with an identity may have a secret: a URI such as spiffe://edge.example/canary/edge-1, dns:NAME,
unix:uid=N, or plaintext. Where a listener without TLS decides, the rule is "listener". The secret need not exist. For a name that is no secret's
own, such as an on-demand Envoy asks for, it says which secret's certificate covers it; the secret rule is that of this one.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if identity == "" || name == "" {
				return usage("--identity and --secret: empty")
			}
			var e admin.Explanation
			if err := c.get(cmd.Context(), "/v1/explain?"+query("identity", identity)+"&"+query("secret", name), &e); err != nil {
				return err
			}
			return c.print(e, func(w io.Writer) error { return writeExplanation(w, e) })
		},
	}
	cmd.Flags().StringVar(&identity, "identity", "", "the `identity` that a node proves")
	cmd.Flags().StringVar(&name, "secret", "", "`name` of the secret")
	_ = cmd.MarkFlagRequired("identity")
	_ = cmd.MarkFlagRequired("secret")
	names(c.secretNames).flag(cmd, "secret")
	return cmd
}

func writeExplanation(w io.Writer, e admin.Explanation) error {
	verdict := "not allowed"
	if e.Allowed {
		verdict = "allowed"
	}
	if _, err := fmt.Fprintf(w, "%s: %s\n", verdict, printable([]string{e.Reason})[0]); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	groups := newTable("GROUP", "IDENTITY RULE", "DENY RULE", "COVERED BY", "SECRET RULE", "ALLOWED")
	for _, g := range e.Groups {
		groups.add(g.Name, text(g.IdentityRule), text(g.DenyRule), text(g.CoveredBy), text(g.SecretRule), yes(g.Allowed))
	}
	return writeTables(w, groups)
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
