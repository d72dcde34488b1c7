// Package bootstrap renders the Envoy configuration that `sds-server envoy bootstrap` prints: a whole file that boots,
// with the certificates of a node group over SDS, the ACME HTTP-01 route, and the settings that measurement has shown to
// matter. It knows Envoy's configuration and nothing of our other parts.
package bootstrap

import (
	"bytes"
	"cmp"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/template"
	"unicode"
)

// API is the variant of the SDS protocol.
type API string

// The variants. Delta is told about names that do not exist; state of the world (SotW) has no such answer. With ADS all secrets share one
// stream, but an Envoy has one ADS server only.
const (
	Delta    API = "delta"
	SotW     API = "sotw"
	ADSDelta API = "ads-delta"
	ADSSotW  API = "ads-sotw"
)

// Aggregated reports whether it is one of ADS.
func (a API) Aggregated() bool { return a == ADSDelta || a == ADSSotW }

// Type is Envoy's api_type.
func (a API) Type() string {
	if a == SotW || a == ADSSotW {
		return "GRPC"
	}
	return "DELTA_GRPC"
}

// Options says what Render writes. An address is "host:port".
type Options struct {
	// NodeID and Cluster are node.id and node.cluster; Cluster is the name of the node group. Required.
	NodeID, Cluster string
	// AdminAddress is Envoy's admin interface, which must not be reachable from outside; default "127.0.0.1:9901".
	AdminAddress string
	// HTTPSAddress is the TLS listener; empty: none, and Secrets is ignored.
	HTTPSAddress string
	// HTTPAddress is the plain listener with the ACME route and a redirect to HTTPS; empty: none.
	HTTPAddress string
	// ChallengeAddress is the HTTP-01 responder of sds-server; empty: no ACME route.
	ChallengeAddress string
	// ALPNChallengeAddress is the TLS-ALPN-01 responder of sds-server; empty: no filter chain for it.
	ALPNChallengeAddress string
	// SDS says how Envoy reaches sds-server.
	SDS SDS
	// API defaults to Delta.
	API API
	// Secrets are the certificates of the TLS listener. Excludes OnDemand.
	Secrets []Secret
	// OnDemand lets the TLS listener ask for a certificate by the name that a client asks for (SNI), when it does (Envoy 1.37 or newer). It needs
	// a delta API: SotW cannot say that there is none, and handshakes would wait for it until their time-out.
	OnDemand *OnDemand
}

// OnDemand is what on-demand certificates need to know.
type OnDemand struct {
	// DefaultName is asked for where a client names nothing; default "no-sni.invalid", which nobody has, so that its handshake fails.
	DefaultName string
	// Prefetch are names that are asked for at the start already; their first handshakes wait for nothing.
	Prefetch []string
}

// SDS is the way to sds-server: a Unix socket, or TCP with mutual TLS.
type SDS struct {
	// UnixPath is the path of the socket; it excludes all other fields.
	UnixPath string
	// Address is a TCP address.
	Address string
	// ServerName is what the certificate of sds-server must be valid for: a DNS name or an IP address; default: the host
	// of Address.
	ServerName string
	// CertFile, KeyFile and CAFile are PEM files: Envoy's client certificate, its key, and the CA of sds-server.
	CertFile, KeyFile, CAFile string
	// ChannelSDSFile is the path of a second file, with the content that ChannelSecret renders. With it, Envoy takes up a
	// changed CertFile without a restart; without it, only at its start.
	ChannelSDSFile string
	// Insecure leaves out TLS; it excludes the files above. sds-server accepts this on loopback only.
	Insecure bool
}

// Secret is one certificate of the TLS listener.
type Secret struct {
	// Name is the name of the secret in sds-server.
	Name string
	// DNSNames choose the certificate by SNI where there is more than one secret. "*.example" is allowed.
	DNSNames []string
}

// channelSecretName is the name of Envoy's client certificate in the file that ChannelSecret renders.
const channelSecretName = "sds_channel"

//go:embed bootstrap.yaml.tmpl
var bootstrapText string

//go:embed channel.yaml.tmpl
var channelText string

// Render returns the bootstrap as YAML. The error names every field that is missing or wrong.
func Render(o Options) ([]byte, error) {
	if o.AdminAddress == "" {
		o.AdminAddress = "127.0.0.1:9901"
	}
	if o.API == "" {
		o.API = Delta
	}
	var c checker
	v := view{
		Options:   o,
		Admin:     c.listener("AdminAddress", o.AdminAddress),
		HTTPS:     c.listener("HTTPSAddress", o.HTTPSAddress),
		HTTP:      c.listener("HTTPAddress", o.HTTPAddress),
		Challenge: c.endpoint("ChallengeAddress", o.ChallengeAddress),
		ALPN:      c.endpoint("ALPNChallengeAddress", o.ALPNChallengeAddress),
		SDSServer: c.sds(o.SDS),
		Channel:   channelSecretName,
	}
	c.required("NodeID", o.NodeID)
	c.required("Cluster", o.Cluster)
	if !slices.Contains([]API{Delta, SotW, ADSDelta, ADSSotW}, o.API) {
		c.add("API: %q is none of delta, sotw, ads-delta and ads-sotw", o.API)
	}
	if v.HTTPS != nil {
		if o.OnDemand != nil {
			v.Chains = c.onDemand(&v)
		} else {
			v.Chains = c.chains(o.Secrets)
		}
		if v.ALPN != nil {
			v.ALPNChains = alpnChains(v.Chains)
		}
	} else {
		v.ALPN = nil
	}
	if v.HTTP == nil {
		v.Challenge = nil
	}
	v.ServerNameIsIP = net.ParseIP(o.SDS.serverName()) != nil
	v.ServerName = o.SDS.serverName()
	if err := errors.Join(c.errs...); err != nil {
		return nil, fmt.Errorf("envoy bootstrap: %w", err)
	}
	return execute("bootstrap", bootstrapText, v)
}

// ChannelSecret returns the content of SDS.ChannelSDSFile. Envoy watches the directory of CertFile: CertFile and KeyFile
// must lie in one directory and be replaced by a rename.
func ChannelSecret(s SDS) ([]byte, error) {
	var c checker
	c.required("SDS.CertFile", s.CertFile)
	c.required("SDS.KeyFile", s.KeyFile)
	if filepath.Dir(s.CertFile) != filepath.Dir(s.KeyFile) {
		c.add("SDS.KeyFile: not in the directory of CertFile")
	}
	if err := errors.Join(c.errs...); err != nil {
		return nil, fmt.Errorf("envoy channel secret: %w", err)
	}
	return execute("channel", channelText, struct {
		SDS
		Name, Directory string
	}{s, channelSecretName, filepath.Dir(s.CertFile)})
}

// view is what the template sees.
type view struct {
	Options
	Admin, HTTPS, HTTP         *address
	Challenge, ALPN, SDSServer *address
	Chains                     []chain
	ALPNChains                 [][]string // server names of the chains for acme-tls/1
	ServerName, Channel        string
	ServerNameIsIP             bool
}

// Redirect is the port in the target of the redirect to HTTPS, 0 where it need not be written.
func (v view) Redirect() int {
	if v.HTTPS == nil || (v.HTTP.Port == 80 && v.HTTPS.Port == 443) {
		return 0
	}
	return v.HTTPS.Port
}

// Type is Envoy's discovery type of the cluster at an address.
func (a address) Type() string {
	if a.IsName {
		return "STRICT_DNS"
	}
	return "STATIC"
}

type address struct {
	Host   string
	Port   int
	IsName bool // a DNS name, not an IP address
}

// chain is a filter chain: the secrets that serve the same names.
type chain struct {
	ServerNames []string
	Secrets     []string
}

func (s SDS) serverName() string {
	if s.ServerName != "" {
		return s.ServerName
	}
	host, _, err := net.SplitHostPort(s.Address)
	if err != nil {
		return "" // reported where the address is checked
	}
	return host
}

// checker gathers all problems.
type checker struct {
	errs []error
}

func (c *checker) add(format string, args ...any) {
	c.errs = append(c.errs, fmt.Errorf(format, args...))
}

func (c *checker) required(field, value string) {
	if value == "" {
		c.add("%s: empty", field)
	}
	c.text(field, value)
}

// text refuses what neither belongs into a name or path nor can stand in YAML.
func (c *checker) text(field, value string) {
	if strings.ContainsFunc(value, func(r rune) bool { return unicode.IsControl(r) || r == unicode.ReplacementChar }) {
		c.add("%s: %q has a control character", field, value)
	}
}

func (c *checker) endpoint(field, value string) *address {
	if value == "" {
		return nil
	}
	c.text(field, value)
	host, portText, err := net.SplitHostPort(value)
	if err != nil {
		c.add("%s: %w", field, err)
		return nil
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		c.add("%s: port %q is no number up to 65535", field, portText)
		return nil
	}
	if host == "" {
		c.add("%s: %q has no host", field, value)
	}
	return &address{Host: host, Port: int(port), IsName: net.ParseIP(host) == nil}
}

func (c *checker) listener(field, value string) *address {
	if strings.HasPrefix(value, ":") {
		value = "0.0.0.0" + value
	}
	a := c.endpoint(field, value)
	if a != nil && a.IsName {
		c.add("%s: Envoy listens on IP addresses, %q is none", field, a.Host)
	}
	return a
}

func (c *checker) sds(s SDS) *address {
	for _, f := range []struct{ name, value string }{
		{"UnixPath", s.UnixPath},
		{"ServerName", s.ServerName},
		{"CertFile", s.CertFile},
		{"KeyFile", s.KeyFile},
		{"CAFile", s.CAFile},
		{"ChannelSDSFile", s.ChannelSDSFile},
	} {
		c.text("SDS."+f.name, f.value)
	}
	hasFiles := s.CertFile != "" || s.KeyFile != "" || s.CAFile != "" || s.ChannelSDSFile != ""
	switch {
	case s.UnixPath == "" && s.Address == "":
		c.add("SDS: neither UnixPath nor Address")
	case s.UnixPath != "" && (s.Address != "" || s.ServerName != "" || hasFiles || s.Insecure):
		c.add("SDS: UnixPath excludes Address and everything about TLS")
	case len(s.UnixPath) > 107:
		c.add("SDS.UnixPath: %d bytes long, a Unix socket may have 107", len(s.UnixPath))
	case s.Address != "" && s.Insecure && hasFiles:
		c.add("SDS: Insecure excludes the files of TLS")
	case s.Address != "" && !s.Insecure:
		c.required("SDS.CertFile", s.CertFile)
		c.required("SDS.KeyFile", s.KeyFile)
		c.required("SDS.CAFile", s.CAFile)
	}
	return c.endpoint("SDS.Address", s.Address)
}

// chains makes a filter chain for each set of names. Envoy refuses two chains with one name, so a name belongs to the
// first secret that has it, and secrets with the same names (RSA and ECDSA) share a chain. A single chain has no
// names: it serves whatever is asked for.
func (c *checker) chains(secrets []Secret) []chain {
	if len(secrets) == 0 {
		c.add("Secrets: empty, but HTTPSAddress is set")
		return nil
	}
	var chains []chain
	byNames := make(map[string]int)
	taken := make(map[string]bool)
	for i, s := range secrets {
		c.required(fmt.Sprintf("Secrets[%d].Name", i), s.Name)
		names := serverNames(s.DNSNames)
		for _, name := range names {
			c.text(fmt.Sprintf("Secrets[%d].DNSNames", i), name)
		}
		key := strings.Join(names, " ")
		if at, ok := byNames[key]; ok {
			chains[at].Secrets = append(chains[at].Secrets, s.Name)
			continue
		}
		byNames[key] = len(chains)
		free := slices.DeleteFunc(slices.Clone(names), func(name string) bool { return taken[name] })
		if len(free) == 0 && len(names) > 0 {
			c.add("Secrets[%d].DNSNames: each name belongs to a secret before", i)
		}
		for _, name := range free {
			taken[name] = true
		}
		chains = append(chains, chain{ServerNames: free, Secrets: []string{s.Name}})
	}
	if len(chains) == 1 {
		chains[0].ServerNames = nil
	}
	return chains
}

// onDemandChain is the name of the one filter chain that serves whatever is asked for.
const onDemandChain = "on_demand"

func (c *checker) onDemand(v *view) []chain {
	o := *v.OnDemand
	if len(v.Secrets) > 0 {
		c.add("OnDemand: excludes Secrets")
	}
	if v.API != Delta && v.API != ADSDelta {
		c.add("OnDemand: needs delta, %s cannot say that there is no secret of a name", v.API)
	}
	o.DefaultName = cmp.Or(o.DefaultName, "no-sni.invalid")
	c.text("OnDemand.DefaultName", o.DefaultName)
	for i, name := range o.Prefetch {
		c.required(fmt.Sprintf("OnDemand.Prefetch[%d]", i), name)
	}
	v.OnDemand = &o
	return []chain{{Secrets: []string{onDemandChain}}}
}

// serverNames are the names that an SNI can have, lower-case and sorted; SNI carries no IP addresses.
func serverNames(dnsNames []string) []string {
	var names []string
	for _, name := range dnsNames {
		if net.ParseIP(name) == nil {
			names = append(names, strings.ToLower(name))
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// alpnChains are the server names of the chains for acme-tls/1: Envoy matches server_names before application_protocols,
// so a chain without the names of the others would never be chosen for them. A second one, without names, stands beside
// a chain that serves all other names.
func alpnChains(chains []chain) [][]string {
	var names []string
	open := false
	for _, ch := range chains {
		names = append(names, ch.ServerNames...)
		open = open || len(ch.ServerNames) == 0
	}
	var all [][]string
	if len(names) > 0 {
		slices.Sort(names)
		all = append(all, names)
	}
	if open {
		all = append(all, nil)
	}
	return all
}

func execute(name, text string, data any) ([]byte, error) {
	t, err := template.New(name).Funcs(template.FuncMap{"q": quote, "list": quoteList}).Parse(text)
	if err != nil {
		return nil, fmt.Errorf("envoy %s: %w", name, err)
	}
	var out bytes.Buffer
	if err := t.Execute(&out, data); err != nil {
		return nil, fmt.Errorf("envoy %s: %w", name, err)
	}
	return out.Bytes(), nil
}

// quote writes a string as JSON, which is YAML, too; so no value can change the structure.
func quote(value string) (string, error) {
	data, err := json.Marshal(value)
	return string(data), err
}

func quoteList(values []string) (string, error) {
	quoted := make([]string, len(values))
	for i, value := range values {
		q, err := quote(value)
		if err != nil {
			return "", err
		}
		quoted[i] = q
	}
	return "[" + strings.Join(quoted, ", ") + "]", nil
}
