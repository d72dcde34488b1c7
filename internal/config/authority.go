package config

import (
	"net/url"
	"time"
)

// authority is what this program knows of the rules of a public certificate authority, for warnings alone: they may change, and what is
// refused is refused by the authority.
type authority struct {
	name  string
	hosts []string // of its directories
	// profiles by name; "" is the one that an order without a profile gets.
	profiles map[string]profile
	// wildcards, addresses: whether it issues for them. wwwOnly: for one name, and the same with www.
	wildcards, addresses, wwwOnly bool
}

// profile is what an authority's profile allows.
type profile struct {
	name      string
	names     int // at most
	life      time.Duration
	addresses bool
}

const (
	letsEncryptHost        = "acme-v02.api.letsencrypt.org"
	letsEncryptStagingHost = "acme-staging-v02.api.letsencrypt.org"
)

// authorities are the known ones: Let's Encrypt by its page on profiles of 2026-07-14 and on rate limits of 2026-08-05, the others by a
// comparison of April 2026.
func authorities() []authority {
	classic := profile{name: "classic", names: 100, life: 90 * 24 * time.Hour}
	profiles := map[string]profile{
		"": classic, "classic": classic,
		"tlsserver":  {name: "tlsserver", names: 25, life: 45 * 24 * time.Hour},
		"shortlived": {name: "shortlived", names: 25, life: 160 * time.Hour, addresses: true},
	}
	ninety := map[string]profile{"": {names: maxNames, life: 90 * 24 * time.Hour}}
	return []authority{
		{name: "Let's Encrypt", hosts: []string{letsEncryptHost}, profiles: profiles, wildcards: true, addresses: true},
		{name: "Let's Encrypt (staging)", hosts: []string{letsEncryptStagingHost}, profiles: profiles, wildcards: true, addresses: true},
		{name: "Google Trust Services", hosts: []string{"dv.acme-v02.api.pki.goog", "dv.acme-v02.test-api.pki.goog"}, profiles: ninety, wildcards: true, addresses: true},
		{name: "ZeroSSL", hosts: []string{"acme.zerossl.com"}, profiles: ninety, wildcards: true},
		{name: "SSL.com", hosts: []string{"acme.ssl.com"}, profiles: ninety, wwwOnly: true},
		{name: "Actalis", hosts: []string{"acme-api.actalis.com"}, profiles: ninety, wwwOnly: true},
	}
}

// authorityOf returns what is known of an issuer's authority.
func authorityOf(is *Issuer) (authority, bool) {
	directory := is.Directory
	if directory == "" {
		directory, _ = Directory(is.CA)
	}
	u, err := url.Parse(directory)
	if err != nil {
		return authority{}, false
	}
	for _, a := range authorities() {
		for _, host := range a.hosts {
			if u.Hostname() == host {
				return a, true
			}
		}
	}
	return authority{}, false
}

// profileOf returns the profile that a certificate is ordered with there; false for one that is not known.
func (a *authority) profileOf(is *Issuer, c *Certificate) (profile, bool) {
	name := c.Profile
	if name == "" {
		name = is.Profile
	}
	p, ok := a.profiles[name]
	return p, ok
}
