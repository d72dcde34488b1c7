package config

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// warnConfig is a valid configuration with these issuers and certificates (YAML of lists).
func warnConfig(t *testing.T, issuers, certificates string) *Config {
	t.Helper()
	dir := newDir(t)
	cfg, err := loadIn(t, dir, `data_dir: data
seal: {key_file: seal.key}
xds: {listeners: [{address: "unix:///run/sds-server/sds.sock", groups: [edge]}]}
challenges: {http-01: {address: "127.0.0.1:18002"}, dns-01: [{name: dns, provider: rfc2136}]}
groups: [{name: edge, secrets: ["*"]}]
issuers: `+issuers+`
certificates: `+certificates+"\n", true)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func names(n int) string {
	var out []string
	for i := range n {
		out = append(out, fmt.Sprintf("n%d.example.com", i))
	}
	return "[" + strings.Join(out, ", ") + "]"
}

func TestWarnings(t *testing.T) {
	const (
		le      = `[{name: le, ca: letsencrypt, accept_tos: true}]`
		server  = `[{name: le, ca: letsencrypt, accept_tos: true, profile: tlsserver}]`
		private = `[{name: le, directory: "https://ca.example/dir", accept_tos: true, profile: tlsserver}]`
		ssl     = `[{name: le, ca: sslcomecc, accept_tos: true}]`
	)
	for _, tt := range []struct {
		name, issuers, certificates string
		want                        []string // paths, with a part of the message
	}{
		{"nothing", le, `[{name: a, dns_names: [a.example.com], issuers: [le]}]`, nil},
		{"100 names of classic", le, `[{name: a, dns_names: ` + names(100) + `, issuers: [le]}]`, nil},
		{"25 names of tlsserver", server, `[{name: a, dns_names: ` + names(25) + `, issuers: [le]}]`, nil},
		{"26 names of tlsserver", server, `[{name: a, dns_names: ` + names(26) + `, issuers: [le]}]`, []string{"certificates[0].dns_names: 26 names, but Let's Encrypt, profile tlsserver takes 25"}},
		{"the certificate's profile counts", server, `[{name: a, dns_names: ` + names(26) + `, profile: classic, issuers: [le]}]`, nil},
		{"a profile that is not known", server, `[{name: a, dns_names: ` + names(26) + `, profile: new, issuers: [le]}]`, nil},
		{"any number at a private CA", private, `[{name: a, dns_names: ` + names(26) + `, ip_addresses: [10.0.0.1], renew_before: 90%, issuers: [le]}, {name: b, dns_names: [b.example], issuers: [le]}]`, nil},
		{"the same names at a private CA", private, `[{name: b, dns_names: [b.example], issuers: [le]}, {name: c, dns_names: [b.example], issuers: [le]}]`, []string{"issuers[0]: the certificates b, c are for exactly the same names; one"}},
		{"addresses without shortlived", le, `[{name: a, ip_addresses: [192.0.2.1], issuers: [le]}]`, []string{"certificates[0].ip_addresses: Let's Encrypt, profile classic issues for no IP address"}},
		{"addresses with shortlived", le, `[{name: a, ip_addresses: [192.0.2.1], profile: shortlived, issuers: [le]}]`, nil},
		{"addresses at ZeroSSL", `[{name: le, ca: zerossl, accept_tos: true}]`, `[{name: a, ip_addresses: [192.0.2.1], issuers: [le]}]`, []string{"certificates[0].ip_addresses: ZeroSSL issues for no IP address"}},
		{"a wildcard at SSL.com", ssl, `[{name: a, dns_names: ["*.example.com"], challenge: dns-01, dns: dns, issuers: [le]}]`, []string{`certificates[0].dns_names[0]: SSL.com issues for no wildcard`}},
		{"a wildcard at Let's Encrypt", le, `[{name: a, dns_names: ["*.example.com"], challenge: dns-01, dns: dns, issuers: [le]}]`, nil},
		{"two names at SSL.com", ssl, `[{name: a, dns_names: [a.example.com, b.example.com], issuers: [le]}]`, []string{"certificates[0].dns_names: SSL.com issues for one name"}},
		{"with www at SSL.com", ssl, `[{name: a, dns_names: [www.example.com, example.com], issuers: [le]}]`, nil},
		{
			"the same names", le, `[{name: a, dns_names: [a.example.com, b.example.com], issuers: [le]}, {name: b, dns_names: [b.example.com, a.example.com], issuers: [le]}]`,
			[]string{`issuers[0]: the certificates a, b are for exactly the same names and share the 5 of exact_set`},
		},
		{"the same names for another type of key", le, `[{name: a, dns_names: [a.example.com], issuers: [le]}, {name: b, dns_names: [a.example.com], key_type: rsa-2048, issuers: [le]}]`, nil},
		{
			"too often for the limit", le, `[{name: a, dns_names: [a.example.com], profile: shortlived, issuers: [le]}, {name: b, dns_names: [a.example.com], profile: shortlived, key_type: rsa-2048, issuers: [le]}]`,
			[]string{`issuers[0]: certificate a would be ordered every 40.0 h`},
		},
		{
			"more addresses than a share of the limit", `[{name: le, ca: letsencrypt, accept_tos: true, budget: {limits: [{name: registered_domain, burst: 2, refill: 1h}]}}]`,
			`[{name: a, ip_addresses: ["192.0.2.1"], profile: shortlived, issuers: [le]}, {name: b, ip_addresses: ["192.0.2.1"], profile: shortlived, key_type: rsa-2048, issuers: [le]}]`,
			[]string{"issuers[0]: 2 certificates for 192.0.2.1", "issuers[0]: certificate a would be ordered every 40.0 h"},
		},
		{"3/4 of the life", le, `[{name: a, dns_names: [a.example.com], renew_before: 1620h, issuers: [le]}]`, nil},
		{"more than 3/4 of the life", le, `[{name: a, dns_names: [a.example.com], renew_before: 1621h, issuers: [le]}]`, []string{"certificates[0].renew_before: 1621h0m0s before the end is more than 3/4 of the life (90 days)"}},
		{"720h of a short life", le, `[{name: a, dns_names: [a.example.com], profile: shortlived, renew_before: 720h, issuers: [le]}]`, []string{"issuers[0]: certificate a would be ordered every 40.0 h", "certificates[0].renew_before: 720h0m0s before the end is more than 3/4 of the life (160 hours)"}},
		{"per cent of the life", le, `[{name: a, dns_names: [a.example.com], renew_before: 76%, issuers: [le]}]`, []string{"certificates[0].renew_before: 76%"}},
		{
			"windows", `[{name: le, ca: letsencrypt, accept_tos: true, maintenance: [{from: "2026-11-01T00:00:00Z", to: "2026-11-02T00:00:00Z"},
				{from: "2026-12-01T00:00:00Z", to: "2026-12-02T00:00:00Z"}, {from: "2026-12-01T00:00:00Z", to: "2027-12-02T00:00:00Z"}]}]`, `[]`,
			[]string{"issuers[0].maintenance[0]: is over since 2026-11-02T00:00:00Z", "issuers[0].maintenance[2]: takes 366 days"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := warnConfig(t, tt.issuers, tt.certificates)
			var got []string
			for i, p := range cfg.Warnings(time.Date(2026, 11, 24, 0, 0, 0, 0, time.UTC)) {
				line := p.Path + ": " + p.Message
				if p.Hint == "" || p.Line == 0 {
					t.Errorf("%s: no hint or line", line)
				}
				if i < len(tt.want) && strings.HasPrefix(line, tt.want[i]) {
					line = tt.want[i]
				}
				got = append(got, line)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("warnings (-want +got):\n%s", diff)
			}
		})
	}
}

func TestWarningsOfOneIssuer(t *testing.T) {
	cfg := warnConfig(t, `[{name: le, ca: letsencrypt, accept_tos: true, maintenance: [{from: "2020-01-01T00:00:00Z", to: "2020-01-02T00:00:00Z"}]}, {name: zero, ca: zerossl, accept_tos: true}]`,
		`[{name: a, ip_addresses: ["192.0.2.1"], issuers: [zero]}, {name: b, ip_addresses: ["192.0.2.1"], issuers: [le, zero]}]`)
	for issuer, want := range map[string][]string{
		"le":      {"issuers[0].maintenance[0]", "certificates[1].ip_addresses"},
		"zero":    {"certificates[0].ip_addresses", "certificates[1].ip_addresses"},
		"unknown": nil,
	} {
		var got []string
		for _, p := range cfg.IssuerWarnings(issuer, time.Now()) {
			got = append(got, p.Path)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", issuer, diff)
		}
	}
}
