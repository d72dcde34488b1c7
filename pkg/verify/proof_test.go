package verify

import (
	"crypto"
	"crypto/tls"
	"errors"
	"testing"
	"time"
)

// The background looks at what each group serves, not at the first one alone.
func TestBackgroundLooksAtEveryGroup(t *testing.T) {
	leaf := func(name string) Wanted {
		return Wanted{Leaf: Leaf{Secret: name, Version: "v", KeyType: "ecdsa-p256", DNSNames: []string{name + ".example"}, NotAfter: time.Now().Add(time.Hour)}, Asked: name}
	}
	groups := []Group{
		{Name: "canary", Timeout: time.Second, Targets: []Target{{Address: "127.0.0.1:1", Secrets: []Wanted{leaf("www")}}}},
		{Name: "production", Timeout: time.Second, Targets: []Target{{Address: "127.0.0.1:2", Secrets: []Wanted{leaf("www")}}}},
	}
	looked := map[string]bool{}
	for _, checks := range soonest(groups) {
		for _, c := range checks {
			looked[c.Group+" "+c.Address] = true
		}
	}
	for _, want := range []string{"canary 127.0.0.1:1", "production 127.0.0.1:2"} {
		if !looked[want] {
			t.Errorf("nothing looks at %s: %v", want, looked)
		}
	}
}

// A listener that speaks TLS 1.3 alone (tls_minimum_protocol_version), or 1.2 alone, serves its certificate well: a client that it cannot speak with proves nothing.
func TestListenerOfOneProtocolVersion(t *testing.T) {
	p := newPKI(t)
	for name, key := range map[string]crypto.Signer{"rsa": rsaKey(t, 0), "ecdsa": ecKey(t)} {
		pair := p.pair(t, key, site)
		for _, config := range []*tls.Config{
			{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13},
			{Certificates: []tls.Certificate{pair}, MaxVersion: tls.VersionTLS12},
		} {
			l := serve(t, config)
			for _, r := range look(t, &wants{}, 5*time.Second, target(l.address, p.leaf(pair, "www", "v1"))) {
				if r.Failure != nil && r.Failure.Kind.Mismatch() {
					t.Errorf("%s, %s, versions %#x-%#x: %s: %v", name, r.Client, config.MinVersion, config.MaxVersion, r.Failure.Kind, r.Failure)
				}
			}
		}
	}
}

// Roots that this server cannot read say nothing about a certificate.
func TestUnreadableRootsProveNothing(t *testing.T) {
	p := newPKI(t)
	pair := p.pair(t, ecKey(t), site)
	leaf := p.leaf(pair, "www", "v1")
	leaf.Roots = Roots{Name: "the roots in /etc/roots.pem", Err: errors.New("open /etc/roots.pem: no such file or directory")}
	l := serve(t, &tls.Config{Certificates: []tls.Certificate{pair}})
	for _, r := range look(t, &wants{}, 5*time.Second, target(l.address, leaf)) {
		if r.Failure == nil || r.Failure.Kind.Mismatch() {
			t.Errorf("%s: %+v", r.Client, r.Failure)
		}
	}
}
