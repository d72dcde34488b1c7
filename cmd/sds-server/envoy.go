package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sds-server/sds-server/internal/admin"
	"github.com/sds-server/sds-server/internal/bootstrap"
)

func (c *cli) envoy() *cobra.Command {
	cmd := &cobra.Command{Use: "envoy", Short: "Configuration for Envoys", GroupID: "node"}
	cmd.AddCommand(c.envoyBootstrap())
	return parent(cmd)
}

// bootstrapFlags are what the server cannot know about an Envoy.
type bootstrapFlags struct {
	group, node, identity, sds string
	https, http, admin         string
	sotw, ads, channelSecret   bool
	onDemand, prefetch         bool
	defaultName                string
	secrets                    []string
}

func (c *cli) envoyBootstrap() *cobra.Command {
	var f bootstrapFlags
	cmd := &cobra.Command{
		Use: "bootstrap --group G", Short: "Print an Envoy configuration that boots", Args: cobra.NoArgs,
		Long: `Prints a whole Envoy configuration for a node of the group: delta SDS from this server for every certificate that the group may have, a plain
HTTP listener that routes ACME HTTP-01 challenges here and redirects the rest to HTTPS, and settings that were measured to matter.

Over TCP the files of "identity issue --out DIR" are expected in --identity: tls.crt, tls.key, ca.crt, and channel.yaml, by which Envoy takes up a
renewed client certificate without a restart. With --channel-secret that file is printed instead, for certificates of another CA.

With --on-demand, Envoy (1.37 or newer) asks for a certificate when a client wants it, by the name in its SNI: for the secret of that name, or
the best one of the group that covers it. It asks over one stream (ADS), unless --ads=false.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.check(cmd.Flags().Changed("ads")); err != nil {
				return err
			}
			text, err := c.renderBootstrap(cmd.Context(), f)
			if err != nil {
				return err
			}
			return c.print(map[string]string{"config": string(text)}, func(io.Writer) error { return c.printf("%s", text) })
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.group, "group", "", "the node's `group`")
	flags.StringVar(&f.node, "node", "", "node.id (default: the host name)")
	flags.StringVar(&f.identity, "identity", "/etc/envoy/sds", "`directory` with tls.crt, tls.key, ca.crt and channel.yaml, for TCP")
	flags.StringVar(&f.sds, "sds-address", "", "HOST:PORT at which Envoy reaches this server (default: the listener's own address)")
	flags.StringVar(&f.https, "https", "0.0.0.0:443", "address of the TLS listener; empty for none")
	flags.StringVar(&f.http, "http", "0.0.0.0:80", "address of the plain HTTP listener; empty for none")
	flags.StringVar(&f.admin, "admin", "127.0.0.1:9901", "address of Envoy's admin interface")
	flags.StringArrayVar(&f.secrets, "secret", nil, "only this `secret`, also one that does not exist yet; repeat it (default: all that the group may have)")
	flags.BoolVar(&f.ads, "ads", false, "one stream for all secrets (ADS), for an Envoy that has no other ADS server")
	flags.BoolVar(&f.sotw, "sotw", false, "state of the world instead of delta")
	flags.BoolVar(&f.onDemand, "on-demand", false, "ask for a certificate when a client wants it, by its SNI; with --secret, for those at the start, too")
	flags.BoolVar(&f.prefetch, "prefetch", false, "with --on-demand, ask at the start for every DNS name in the group's certificates")
	flags.StringVar(&f.defaultName, "default-name", "", "with --on-demand, the `name` to ask for where a client has no SNI (default: its handshake fails)")
	flags.BoolVar(&f.channelSecret, "channel-secret", false, "print channel.yaml instead")
	_ = cmd.MarkFlagRequired("group")
	_ = cmd.MarkFlagDirname("identity")
	c.groupNames().flag(cmd, "group")
	names(c.secretNames).flag(cmd, "secret")
	return cmd
}

// check refuses flags that do not go together, and takes ADS for on-demand certificates unless it is asked not to.
func (f *bootstrapFlags) check(adsChanged bool) error {
	switch {
	case f.onDemand && f.sotw:
		return usage("--on-demand and --sotw: only delta can say that there is no secret of a name")
	case !f.onDemand && (f.prefetch || f.defaultName != ""):
		return usage("--prefetch and --default-name: only with --on-demand")
	}
	f.ads = f.ads || f.onDemand && !adsChanged
	return nil
}

func (c *cli) renderBootstrap(ctx context.Context, f bootstrapFlags) ([]byte, error) {
	var info admin.BootstrapInfo
	if err := c.get(ctx, "/v1/bootstrap/"+url.PathEscape(f.group), &info); err != nil {
		return nil, err
	}
	o, err := f.options(info)
	if err != nil {
		return nil, err
	}
	if f.channelSecret {
		if info.Unix {
			return nil, usage("group %q is served on a Unix socket: there is no client certificate", f.group)
		}
		return bootstrap.ChannelSecret(o.SDS)
	}
	text, err := bootstrap.Render(o)
	if err != nil { // everything else in it comes from a configuration that was checked
		return nil, usage("%s", flagNames.Replace(err.Error()))
	}
	return text, nil
}

// flagNames replaces the options of the renderer by the flags that set them.
var flagNames = strings.NewReplacer(
	"OnDemand.DefaultName", "--default-name", "OnDemand.Prefetch", "--secret", "AdminAddress", "--admin", "HTTPSAddress", "--https", "HTTPAddress", "--http", "NodeID", "--node", "SDS.Address", "--sds-address", "envoy bootstrap: ", "",
)

func (f bootstrapFlags) options(info admin.BootstrapInfo) (bootstrap.Options, error) {
	o := bootstrap.Options{
		NodeID: f.node, Cluster: f.group, AdminAddress: f.admin, HTTPSAddress: f.https, HTTPAddress: f.http,
		ChallengeAddress: info.Challenge, API: bootstrap.Delta,
	}
	switch {
	case f.ads && f.sotw:
		o.API = bootstrap.ADSSotW
	case f.ads:
		o.API = bootstrap.ADSDelta
	case f.sotw:
		o.API = bootstrap.SotW
	}
	if o.NodeID == "" {
		host, err := os.Hostname()
		if err != nil {
			return o, fmt.Errorf("host name: %w", err)
		}
		o.NodeID = host
	}
	if f.onDemand {
		o.OnDemand = &bootstrap.OnDemand{DefaultName: f.defaultName, Prefetch: f.names(info.Secrets)}
	} else {
		for _, s := range f.wanted(info.Secrets) {
			o.Secrets = append(o.Secrets, bootstrap.Secret{Name: s.Name, DNSNames: s.DNSNames})
		}
	}
	if o.OnDemand == nil && len(o.Secrets) == 0 {
		o.HTTPSAddress = ""
	}
	if info.Unix {
		o.SDS = bootstrap.SDS{UnixPath: info.Listener}
		return o, nil
	}
	address := info.Listener
	if f.sds != "" {
		address = f.sds
	}
	dir, err := filepath.Abs(f.identity)
	if err != nil {
		return o, fmt.Errorf("identity directory: %w", err)
	}
	o.SDS = bootstrap.SDS{
		Address: address, CertFile: filepath.Join(dir, certName), KeyFile: filepath.Join(dir, keyName), CAFile: filepath.Join(dir, caName),
		ServerName: serverName(address, info.Server), Insecure: info.Plaintext,
	}
	if info.Plaintext {
		o.SDS.CertFile, o.SDS.KeyFile, o.SDS.CAFile = "", "", ""
	} else { // Envoy cannot watch what stands in its bootstrap, static secrets included
		o.SDS.ChannelSDSFile = filepath.Join(dir, channelName)
	}
	return o, nil
}

// wanted are the secrets that were asked for, with their names as far as they are known.
func (f bootstrapFlags) wanted(known []admin.BootstrapSecret) []admin.BootstrapSecret {
	if len(f.secrets) == 0 {
		return known
	}
	var out []admin.BootstrapSecret
	for _, name := range f.secrets {
		one := admin.BootstrapSecret{Name: name}
		if i := slices.IndexFunc(known, func(s admin.BootstrapSecret) bool { return s.Name == name }); i >= 0 {
			one = known[i]
		}
		out = append(out, one)
	}
	return out
}

// names are those that an on-demand Envoy asks for at its start. They are names that clients ask for, not those of secrets: what Envoy has
// under another name it asks for again.
func (f bootstrapFlags) names(known []admin.BootstrapSecret) []string {
	names := slices.Clone(f.secrets)
	if f.prefetch {
		for _, s := range known {
			for _, name := range s.DNSNames {
				if net.ParseIP(name) == nil && !strings.HasPrefix(name, "*.") {
					names = append(names, name)
				}
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// serverName is what Envoy checks in the server's certificate: the host that it dials if the certificate names it, else the first name.
func serverName(address string, names []string) string {
	host, _, err := net.SplitHostPort(address)
	if err != nil || len(names) == 0 {
		return ""
	}
	if slices.Contains(names, host) {
		return host
	}
	return names[0]
}
