package config

import (
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/net/idna"
)

// name checks the name of something that only this program knows: a group, an issuer, a provider, a gate, a replica.
func (v *validator) name(path, name string) {
	switch {
	case name == "":
		v.add(path, "empty")
	case len(name) > 63:
		v.add(path, "longer than 63 bytes")
	case !isPlain(name, "._-"):
		v.add(path, "%q has other characters than letters, digits, '.', '_' and '-', or does not begin with a letter or digit", name)
	}
}

// secretName checks an SDS resource name. "*" is not one: in a group it is a glob, and on a stream it asks for everything.
func (v *validator) secretName(path, name string) {
	switch {
	case name == "":
		v.add(path, "empty")
	case len(name) > 253:
		v.add(path, "longer than 253 bytes")
	case strings.Contains(name, "*"):
		v.addHint(path, fmt.Sprintf("%q has a '*'", name), "name the secret freely, such as wildcard.example.com")
	case !isPlain(name, "._:/@-"):
		v.add(path, "%q has other characters than letters, digits and ._:/@-, or does not begin with a letter or digit", name)
	}
}

// unique records a name that path defines, and is a problem if it was defined before.
func (v *validator) unique(names map[string]string, path, name string) {
	if first, dup := names[name]; dup && name != "" {
		v.add(path, "%q is also %s", name, first)
		return
	}
	names[name] = path
}

func (v *validator) uniqueName(names map[string]string, path, name string) {
	v.name(path, name)
	v.unique(names, path, name)
}

// isPlain reports whether s begins with an ASCII letter or digit and has only those and the further characters.
func isPlain(s, further string) bool {
	for i := range len(s) {
		c := s[i]
		isLetter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !isLetter && (i == 0 || strings.IndexByte(further, c) < 0) {
			return false
		}
	}
	return s != ""
}

// isWord reports whether s has only lower-case letters, digits and '_', as codes in tables do.
func isWord(s string) bool {
	return s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789_") == ""
}

// checkHost returns what is wrong with a lower-case DNS name or an IP address, or "".
func checkHost(host string) string {
	if _, err := netip.ParseAddr(host); err == nil {
		return ""
	}
	message, _ := checkDNSName(host)
	return message
}

// checkDNSName returns what is wrong with a lower-case DNS name without wildcard (RFC 1123, Section 2.1), or "".
func checkDNSName(name string) (message, hint string) {
	if strings.ContainsFunc(name, func(r rune) bool { return r > 127 }) {
		if ascii, err := idna.Lookup.ToASCII(name); err == nil {
			hint = "write " + ascii
		}
		return fmt.Sprintf("%q is not in its ASCII form", name), hint
	}
	if name == "" {
		return "empty", ""
	}
	if len(name) > 253 {
		return "longer than 253 bytes", ""
	}
	labels := strings.Split(name, ".")
	for _, label := range labels {
		if len(label) > 63 || !isPlain(label, "-") || label[len(label)-1] == '-' || strings.ToLower(label) != label {
			return fmt.Sprintf("%q is not a DNS name (label %q)", name, label), ""
		}
		if strings.HasPrefix(label, "xn--") {
			if _, err := idna.Lookup.ToUnicode(label); err != nil {
				return fmt.Sprintf("%q is not a DNS name (label %q is no A-label)", name, label), ""
			}
		}
	}
	if strings.Trim(labels[len(labels)-1], "0123456789") == "" {
		return fmt.Sprintf("%q is not a DNS name", name), "IP addresses belong into ip_addresses"
	}
	return "", ""
}

// checkGlob returns what is wrong with a glob, or "". Only '*' is special; what other tools give a meaning is refused, so
// that nobody relies on it.
func checkGlob(glob string) string {
	switch {
	case glob == "":
		return "empty"
	case strings.ContainsAny(glob, `?[]{}\`):
		return fmt.Sprintf(`%q: globs know only '*', none of ?[]{}\`, glob)
	case strings.Contains(glob, "**"):
		return fmt.Sprintf("%q: '**' is not a glob", glob)
	default:
		return ""
	}
}
