package config

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/sds-server/sds-server/pkg/secret"
)

// maxNames is the most names of one certificate that public authorities accept.
const maxNames = 100

// maxTicketKeys leaves room for the key that nodes learn.
const maxTicketKeys = secret.MaxTicketKeys - 1

// secrets checks everything that becomes an SDS resource. All kinds share one space of names.
func (v *validator) secrets() {
	names := map[string]string{}
	for i := range v.Certificates {
		path := fmt.Sprintf("certificates[%d]", i)
		v.secretName(path+".name", v.Certificates[i].Name)
		v.unique(names, path+".name", v.Certificates[i].Name)
		v.certificate(path, &v.Certificates[i])
	}
	for i, s := range v.ValidationContexts {
		path := fmt.Sprintf("validation_contexts[%d]", i)
		v.secretName(path+".name", s.Name)
		v.unique(names, path+".name", s.Name)
		v.caFiles(path+".ca_files", s)
	}
	for i, s := range v.SessionTicketKeys {
		path := fmt.Sprintf("session_ticket_keys[%d]", i)
		v.secretName(path+".name", s.Name)
		v.unique(names, path+".name", s.Name)
		v.positive(path+".rotate", s.Rotate)
		v.atLeastOne(path+".keep", s.Keep)
		if s.Keep > maxTicketKeys {
			v.add(path+".keep", "must be %d or less", maxTicketKeys)
		}
	}
	for i, s := range v.GenericSecrets {
		path := fmt.Sprintf("generic_secrets[%d]", i)
		v.secretName(path+".name", s.Name)
		v.unique(names, path+".name", s.Name)
		v.genericFile(path+".file", s)
	}
}

// caFiles judges CA certificates as the running server does, but for what needs a clock: a server is to start also when they have expired meanwhile.
func (v *validator) caFiles(path string, c ValidationContext) {
	if len(c.CAFiles) == 0 {
		v.add(path, "empty")
	}
	var contents [][]byte
	for _, name := range c.CAFiles {
		data, err := os.ReadFile(name)
		if err != nil {
			return // the rule of files says so
		}
		contents = append(contents, data)
	}
	if len(contents) == 0 || v.hasProblem(path) {
		return
	}
	_, err := secret.ParseValidationContext(c.Name, contents...)
	v.secretProblems(path, err)
}

// genericFile judges the content of a generic secret.
func (v *validator) genericFile(path string, g GenericSecret) {
	if g.File == "" {
		v.add(path, "empty")
		return
	}
	data, err := os.ReadFile(g.File)
	if err != nil || v.hasProblem(path) {
		return // likewise
	}
	_, err = secret.ParseGeneric(g.Name, data)
	v.secretProblems(path, err)
}

// secretProblems reports the rules that a secret breaks; those of its name are reported elsewhere.
func (v *validator) secretProblems(path string, err error) {
	for _, problem := range secret.Problems(err) {
		if problem.Rule != secret.RuleName {
			v.addHint(path, problem.Detail, problem.Hint)
		}
	}
}

func (v *validator) certificate(path string, c *Certificate) {
	v.identifiers(path, c)
	v.challenge(path, c)
	if len(c.Issuers) == 0 {
		v.add(path+".issuers", "empty")
	}
	for i, name := range c.Issuers {
		element := fmt.Sprintf("%s.issuers[%d]", path, i)
		if slices.Contains(c.Issuers[:i], name) {
			v.add(element, "%q is listed twice", name)
			continue
		}
		v.knownIssuer(element, name)
	}
	v.oneOf(path+".key_type", c.KeyType, "ecdsa-p256", "ecdsa-p384", "rsa-2048", "rsa-3072", "rsa-4096")
	if c.Backup == nil {
		return
	}
	switch {
	case (c.Backup.Issuer == "") == (c.Backup.Secret == ""):
		v.add(path+".backup", "needs either issuer or secret")
	case c.Backup.Issuer != "":
		v.knownIssuer(path+".backup.issuer", c.Backup.Issuer)
	case c.Backup.Secret == c.Name:
		v.add(path+".backup.secret", "is the certificate itself")
	default:
		v.secretName(path+".backup.secret", c.Backup.Secret)
	}
}

// identifiers checks dns_names and ip_addresses.
func (v *validator) identifiers(path string, c *Certificate) {
	if len(c.DNSNames) == 0 && len(c.IPAddresses) == 0 {
		v.add(path+".dns_names", "empty")
	}
	if n := len(c.DNSNames) + len(c.IPAddresses); n > maxNames {
		v.add(path+".dns_names", "%d names, at most %d fit into a certificate", n, maxNames)
	}
	for i, name := range c.DNSNames {
		element := fmt.Sprintf("%s.dns_names[%d]", path, i)
		base, wildcard := strings.CutPrefix(name, "*.")
		if message, hint := checkDNSName(base); message != "" {
			if strings.Contains(base, "*") {
				message = fmt.Sprintf("%q: a wildcard is the whole first label", name)
			}
			v.addHint(element, message, hint)
		} else if slices.Contains(c.DNSNames[:i], name) {
			v.add(element, "%q is listed twice", name)
		} else if wildcard && c.Challenge != challengeDNS01 {
			v.add(element, "%q needs challenge: dns-01", name)
		}
	}
	var seen []netip.Addr
	for i, text := range c.IPAddresses {
		element := fmt.Sprintf("%s.ip_addresses[%d]", path, i)
		ip, err := netip.ParseAddr(text)
		switch {
		case err != nil || ip.Zone() != "":
			v.add(element, "%q is not an IP address", text)
		case slices.Contains(seen, ip.Unmap()):
			v.add(element, "%s is listed twice", text)
		case c.Challenge == challengeDNS01:
			v.add(element, "dns-01 cannot prove an IP address")
		}
		seen = append(seen, ip.Unmap())
	}
}

// challenge wants a kind that is configured, and a DNS provider exactly where one is needed.
func (v *validator) challenge(path string, c *Certificate) {
	v.oneOf(path+".challenge", c.Challenge, challengeHTTP01, challengeTLSALPN01, challengeDNS01)
	missing := c.Challenge == challengeHTTP01 && v.Challenges.HTTP01 == nil ||
		c.Challenge == challengeTLSALPN01 && v.Challenges.TLSALPN01 == nil ||
		c.Challenge == challengeDNS01 && len(v.Challenges.DNS01) == 0
	if missing {
		v.addHint(path+".challenge", c.Challenge+" is not configured", "add it to challenges")
		return
	}
	if c.Challenge != challengeDNS01 {
		if c.DNS != "" {
			v.add(path+".dns", "only for challenge: dns-01")
		}
		return
	}
	var names []string
	for _, p := range v.Challenges.DNS01 {
		names = append(names, p.Name)
	}
	if c.DNS == "" {
		v.addHint(path+".dns", "empty", "name one of challenges.dns-01")
	} else if !slices.Contains(names, c.DNS) {
		v.addHint(path+".dns", fmt.Sprintf("no DNS provider is named %q", c.DNS), didYouMean(c.DNS, names))
	}
}
