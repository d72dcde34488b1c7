package verify

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"time"
)

const (
	// wildcardLabel stands for the * of a wildcard.
	wildcardLabel = "sds-verify"
	// maxNames bounds for one secret at one target how many names are asked for. An on-demand node may have a thousand names under one secret.
	maxNames = 100
	// maxAliases bounds how many of them are names that a node asked for itself (on-demand).
	maxAliases = 8
)

// Group is what is to be proven of a node group.
type Group struct {
	Name string
	// Timeout bounds each handshake, and for how long a target is looked at again that serves an older certificate.
	Timeout time.Duration
	// ServerNames are all that is asked for, where they are covered by a wanted certificate. Empty: the names of the certificates.
	ServerNames []string
	// Targets are where to look.
	Targets []Target
	// Skipped says what cannot be looked at, and why: "address or node: reason".
	Skipped []string
}

// Target is one address, and what should be served there.
type Target struct {
	Address string // host:port
	Node    string // id; empty where it is not known which node is there
	Nodes   []NodeKey
	Secrets []Wanted
}

// Wanted is a certificate that a node subscribes to, as its group wants it.
type Wanted struct {
	Leaf
	// Asked is the name that the node subscribes to: that of the secret, or one that its certificate covers (on-demand).
	Asked string
}

// Plan returns the checks that prove the group, target by target, sorted by name and client.
func Plan(g Group) []Check {
	var checks []Check
	for _, t := range g.Targets {
		checks = append(checks, t.plan(g)...)
	}
	return checks
}

func (t *Target) plan(g Group) []Check {
	var leaves []Leaf
	names := map[string]bool{}
	aliases := map[string]int{}
	for _, w := range t.Secrets {
		if !slices.ContainsFunc(leaves, func(l Leaf) bool { return l.Secret == w.Secret }) {
			leaves = append(leaves, w.Leaf)
		}
		if w.Asked != w.Secret {
			if aliases[w.Secret]++; aliases[w.Secret] > maxAliases {
				continue
			}
		}
		for _, name := range w.names(g.ServerNames) {
			names[name] = true
		}
	}
	var checks []Check
	for _, name := range sortedKeys(names) {
		for _, one := range clients(candidates(leaves, name)) {
			checks = append(checks, Check{
				Group: g.Name, Address: t.Address, Node: t.Node, Nodes: t.Nodes, ServerName: name, Client: one.client, Wanted: one.wanted, Timeout: g.Timeout,
			})
		}
	}
	return checks
}

// names are those that are asked for.
func (w *Wanted) names(serverNames []string) []string {
	own := []string{w.Asked}
	if w.Asked == w.Secret {
		if own = w.DNSNames; len(own) == 0 {
			own = w.IPAddresses // without a name there is no SNI
		}
	}
	var names []string
	if len(serverNames) == 0 {
		for _, name := range own {
			names = append(names, probed(name))
		}
	}
	for _, name := range serverNames {
		name = probed(name)
		if w.Asked == w.Secret && w.covers(name) != uncovered || w.Asked != w.Secret && probed(w.Asked) == name {
			names = append(names, name)
		}
	}
	return names[:min(len(names), maxNames)]
}

// probed is the name that is asked for: a * is none.
func probed(name string) string {
	name = strings.ToLower(name)
	if rest, ok := strings.CutPrefix(name, "*."); ok {
		return wildcardLabel + "." + rest
	}
	return name
}

// coverage is how a certificate covers a name.
type coverage int

const (
	exact coverage = iota
	wildcard
	uncovered
)

func (l *Leaf) covers(name string) coverage {
	if slices.Contains(l.DNSNames, name) {
		return exact
	}
	if address, err := netip.ParseAddr(name); err == nil {
		if slices.Contains(l.IPAddresses, address.Unmap().String()) {
			return exact
		}
		return uncovered
	}
	if first, rest, ok := strings.Cut(name, "."); ok && first != "" && slices.Contains(l.DNSNames, "*."+rest) {
		return wildcard
	}
	return uncovered
}

// candidates are the leaves that may be shown under a name, the one with the name itself first. Which of several it is, is for the configuration of
// the Envoy to say.
func candidates(leaves []Leaf, name string) []Leaf {
	var found []Leaf
	for _, l := range leaves {
		if l.covers(name) != uncovered {
			found = append(found, l)
		}
	}
	slices.SortFunc(found, func(a, b Leaf) int {
		return cmp.Or(cmp.Compare(a.covers(name), b.covers(name)), strings.Compare(a.Secret, b.Secret))
	})
	return found
}

// probe is a client, and what it has to be shown.
type probe struct {
	client Client
	wanted []Leaf
}

// clients returns which clients prove leaves that are candidates under one name. An RSA certificate is shown to an RSA-only client, one of ECDSA (or
// Ed25519) to a client that knows only that, and to TLS 1.3 that of ECDSA before that of RSA.
func clients(leaves []Leaf) []probe {
	var rsa, other []Leaf
	for _, l := range leaves {
		if l.rsa() {
			rsa = append(rsa, l)
		} else {
			other = append(other, l)
		}
	}
	var probes []probe
	if len(rsa) > 0 {
		probes = append(probes, probe{TLS12RSA, rsa})
	}
	if len(other) > 0 {
		probes = append(probes, probe{TLS12ECDSA, other})
	}
	if len(leaves) > 0 {
		probes = append(probes, probe{TLS13, slices.Concat(other, rsa)})
	}
	return probes
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
