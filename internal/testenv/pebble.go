package testenv

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// PebbleOptions says how StartPebble runs Pebble. The zero value of every field but Dir works.
type PebbleOptions struct {
	// Name is used in errors and for files; default "pebble". Two Pebbles in one directory need two names.
	Name string
	// Dir takes configuration, certificates and log. A second start in the same directory keeps the trust of HTTPS.
	Dir string
	// Port and ManagementPort are listened on; default: free ones.
	Port, ManagementPort int
	// HTTPPort and TLSPort are where HTTP-01 and TLS-ALPN-01 are validated; default: a free port, where nobody answers.
	HTTPPort, TLSPort int
	// Profiles are the certificate profiles by name; default: "default" with 90 days. Always name one in an order:
	// without, Pebble picks one at random.
	Profiles map[string]PebbleProfile
	// EAB are the external account keys, base64url without padding, by key id. Not empty: accounts must be bound.
	EAB map[string]string
	// ChainLength is the number of intermediates; default 1.
	ChainLength int
	// AlternateRoots is the number of further roots, each with a chain of its own.
	AlternateRoots int
	// KeyAlgorithm of the CA: "ecdsa" (default, starts fast) or "rsa".
	KeyAlgorithm string
	// NonceReject is the percentage of good nonces that are refused; default 0.
	NonceReject int
	// AuthzReuse is the percentage of valid authorizations that are used again; default 0.
	AuthzReuse int
	// OrdersPerPage is the length of a page of an account's list of orders; default 3.
	OrdersPerPage int
	// VASleep makes the validation wait up to 5 s, as Pebble does by default; default: no wait.
	VASleep bool
	// AlwaysValid makes every validation succeed without a look.
	AlwaysValid bool
	// RetryAfterAuthz and RetryAfterOrder are sent with pending authorizations and orders, in seconds; default: none.
	RetryAfterAuthz, RetryAfterOrder int
	// BlockedDomains are refused with rejectedIdentifier.
	BlockedDomains []string
	// Binary is the executable; default: EnsureTools.
	Binary string
}

// PebbleProfile is a certificate profile.
type PebbleProfile struct {
	// Validity is the life of a certificate, in whole seconds; default 90 days.
	Validity time.Duration
	// CommonName puts the first name into the subject.
	CommonName bool
}

// Pebble is a running Pebble. It forgets everything when it stops; a new start makes new roots.
type Pebble struct {
	*Process
	// Directory is the URL of the ACME directory, Management of the management interface (without a slash at the end).
	Directory, Management string
	// CAFile is the trust for the HTTPS of both; Authority is the CA in it.
	CAFile    string
	Authority *Authority
	// RootsFile is written by Root: the root that issued chains reach.
	RootsFile string
	// DNS is what Pebble resolves names with.
	DNS *DNS
}

// StartPebble starts Pebble and waits until it answers.
func StartPebble(ctx context.Context, o PebbleOptions) (*Pebble, error) {
	if o.Name == "" {
		o.Name = "pebble"
	}
	p, err := startPebble(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", o.Name, err)
	}
	return p, nil
}

func startPebble(ctx context.Context, o PebbleOptions) (*Pebble, error) {
	if o.Binary == "" {
		tools, err := EnsureTools(ctx, nil)
		if err != nil {
			return nil, err
		}
		o.Binary = tools.Pebble
	}
	for _, port := range []*int{&o.Port, &o.ManagementPort, &o.HTTPPort, &o.TLSPort} {
		if *port != 0 {
			continue
		}
		free, err := FreePort()
		if err != nil {
			return nil, err
		}
		*port = free
	}
	authority, err := NewAuthority(o.Dir, o.Name)
	if err != nil {
		return nil, err
	}
	config, err := o.write(authority)
	if err != nil {
		return nil, err
	}
	dns, err := StartDNS(ctx)
	if err != nil {
		return nil, err
	}
	p := &Pebble{
		Directory:  "https://" + loopback(o.Port) + "/dir",
		Management: "https://" + loopback(o.ManagementPort),
		CAFile:     authority.File,
		Authority:  authority,
		RootsFile:  filepath.Join(o.Dir, o.Name+"-root.pem"),
		DNS:        dns,
	}
	p.Process, err = StartProcess(ctx, ProcessOptions{
		Name: o.Name, Path: o.Binary, LogDir: o.Dir, Env: o.env(),
		Args: []string{"-config", config, "-dnsserver", dns.Address},
	})
	if err != nil {
		return nil, errors.Join(err, dns.Close())
	}
	err = p.eventually(ctx, func(ctx context.Context) error {
		if _, err := get(ctx, p.Client(), p.Directory); err != nil {
			return err
		}
		_, err := p.Root(ctx)
		return err
	})
	if err != nil {
		return nil, errors.Join(err, p.Kill())
	}
	return p, nil
}

// write writes the certificate of HTTPS and the configuration, and returns the latter's path.
func (o PebbleOptions) write(authority *Authority) (string, error) {
	certFile, keyFile := filepath.Join(o.Dir, o.Name+"-https.pem"), filepath.Join(o.Dir, o.Name+"-https.key")
	leaf, err := authority.Local()
	if err != nil {
		return "", err
	}
	if err := leaf.Write(certFile, keyFile); err != nil {
		return "", err
	}
	if len(o.Profiles) == 0 {
		o.Profiles = map[string]PebbleProfile{"default": {}}
	}
	profiles := make(map[string]any, len(o.Profiles))
	for name, profile := range o.Profiles {
		validity := profile.Validity
		if validity == 0 {
			validity = 90 * 24 * time.Hour
		}
		profiles[name] = map[string]any{
			"description":       name,
			"validityPeriod":    int64(validity / time.Second),
			"promoteCommonName": profile.CommonName,
		}
	}
	algorithm := o.KeyAlgorithm
	if algorithm == "" {
		algorithm = "ecdsa"
	}
	data, err := json.MarshalIndent(map[string]any{"pebble": map[string]any{
		"listenAddress":                  loopback(o.Port),
		"managementListenAddress":        loopback(o.ManagementPort),
		"certificate":                    certFile,
		"privateKey":                     keyFile,
		"httpPort":                       o.HTTPPort,
		"tlsPort":                        o.TLSPort,
		"externalAccountBindingRequired": len(o.EAB) > 0,
		"externalAccountMACKeys":         o.EAB,
		"domainBlocklist":                o.BlockedDomains,
		"retryAfter":                     map[string]int{"authz": o.RetryAfterAuthz, "order": o.RetryAfterOrder},
		"keyAlgorithm":                   algorithm,
		"profiles":                       profiles,
	}}, "", "  ")
	if err != nil {
		return "", err
	}
	path := filepath.Join(o.Dir, o.Name+".json")
	return path, os.WriteFile(path, data, 0o600)
}

// env names every setting that Pebble takes from its environment, so that none comes from ours.
func (o PebbleOptions) env() []string {
	sleep, valid := "1", ""
	if o.VASleep {
		sleep = "0"
	}
	if o.AlwaysValid {
		valid = "1"
	}
	return []string{
		"PEBBLE_VA_NOSLEEP=" + sleep,
		"PEBBLE_VA_SLEEPTIME=5",
		"PEBBLE_VA_ALWAYS_VALID=" + valid,
		"PEBBLE_WFE_NONCEREJECT=" + strconv.Itoa(o.NonceReject),
		"PEBBLE_WFE_ORDERS_PER_PAGE=" + strconv.Itoa(cmp.Or(o.OrdersPerPage, 3)),
		"PEBBLE_AUTHZREUSE=" + strconv.Itoa(o.AuthzReuse),
		"PEBBLE_CHAIN_LENGTH=" + strconv.Itoa(max(1, o.ChainLength)),
		"PEBBLE_ALTERNATE_ROOTS=" + strconv.Itoa(o.AlternateRoots),
	}
}

// Client makes a client that trusts the HTTPS of Pebble, and nothing else.
func (p *Pebble) Client() *http.Client {
	return trustingClient(p.Authority.Pool)
}

// Root returns the first root of the issued chains and writes it (PEM) to RootsFile.
func (p *Pebble) Root(ctx context.Context) (*x509.Certificate, error) {
	return p.RootNumber(ctx, 0, p.RootsFile)
}

// RootNumber is Root for the n-th root (0 is the default one, see AlternateRoots); file may be "".
func (p *Pebble) RootNumber(ctx context.Context, n int, file string) (*x509.Certificate, error) {
	data, err := get(ctx, p.Client(), p.Management+"/roots/"+strconv.Itoa(n))
	if err != nil {
		return nil, fmt.Errorf("pebble: root %d: %w", n, err)
	}
	root, err := parseCert(data)
	if err != nil {
		return nil, fmt.Errorf("pebble: root %d: %w", n, err)
	}
	if file != "" {
		if err := os.WriteFile(file, data, 0o600); err != nil {
			return nil, fmt.Errorf("pebble: root %d: %w", n, err)
		}
	}
	return root, nil
}

// Roots is Root as a pool.
func (p *Pebble) Roots(ctx context.Context) (*x509.CertPool, error) {
	root, err := p.Root(ctx)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AddCert(root)
	return pool, nil
}

// SetRenewalInfo makes Pebble answer renewal information of a certificate (RFC 9773) with a text, which may be no JSON; "" is its
// own answer again. chain is PEM, the certificate first.
func (p *Pebble) SetRenewalInfo(ctx context.Context, chain []byte, answer string) error {
	body, err := json.Marshal(map[string]string{"Certificate": string(chain), "ARIResponse": answer})
	if err != nil {
		return fmt.Errorf("pebble: renewal info: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.Management+"/set-renewal-info/", bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("pebble: renewal info: %w", err)
	}
	resp, err := p.Client().Do(req)
	if err != nil {
		return fmt.Errorf("pebble: renewal info: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("pebble: renewal info: %s", resp.Status)
	}
	return nil
}

// SetWindow is SetRenewalInfo with a suggested window.
func (p *Pebble) SetWindow(ctx context.Context, chain []byte, start, end time.Time) error {
	return p.SetRenewalInfo(ctx, chain, fmt.Sprintf(`{"suggestedWindow":{"start":%q,"end":%q}}`,
		start.UTC().Format(time.RFC3339), end.UTC().Format(time.RFC3339)))
}

// Stop ends Pebble and its DNS server.
func (p *Pebble) Stop() error { return errors.Join(p.Process.Stop(), p.DNS.Close()) }

// Kill ends Pebble with SIGKILL, and its DNS server.
func (p *Pebble) Kill() error { return errors.Join(p.Process.Kill(), p.DNS.Close()) }

func trustingClient(pool *x509.CertPool) *http.Client {
	return &http.Client{
		Timeout: 5 * time.Second,
		Transport: &http.Transport{
			DisableKeepAlives: true,
			TLSClientConfig:   &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12},
		},
	}
}
