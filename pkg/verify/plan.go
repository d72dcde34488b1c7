package verify

import (
	"cmp"
	"maps"
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
	// roundNames is how many names are asked for in a round for a rollout, likewise, where no server names are configured. All names of a certificate
	// change together; more than one is asked for since each may have a filter chain of its own. There are fewer where a round would come to more
	// than roundHandshakes: one takes a millisecond of a processor here.
	roundNames      = 4
	roundHandshakes = 2000
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
	// ServerNames are all that is asked for here, in the place of the group's. Empty: those.
	ServerNames []string
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
		checks = append(checks, t.plan(g, nil)...)
	}
	return checks
}

// plan returns the checks at the target: all, or those of a round where about is not nil.
func (t *Target) plan(g Group, about *scope) []Check {
	serverNames := t.names(g)
	index := leafIndex{}
	secrets, names, aliases, taken := map[string]bool{}, map[string]bool{}, map[string]int{}, map[string]int{}
	for _, w := range t.Secrets {
		if !secrets[w.Secret] {
			secrets[w.Secret] = true
			index.add(w.Leaf)
		}
		if w.Asked != w.Secret {
			if aliases[w.Secret]++; aliases[w.Secret] > maxAliases {
				continue
			}
		}
		if about != nil && about.want[w.Secret] != w.Version {
			continue
		}
		ask := w.names(serverNames)
		if about != nil && len(serverNames) == 0 {
			ask = ask[:min(len(ask), about.names-taken[w.Secret])]
			taken[w.Secret] += len(ask)
		}
		for _, name := range ask {
			names[name] = true
		}
	}
	var checks []Check
	for _, name := range slices.Sorted(maps.Keys(names)) {
		for _, one := range clients(index.candidates(name), about) {
			checks = append(checks, Check{
				Group: g.Name, Address: t.Address, Node: t.Node, Nodes: t.Nodes, ServerName: name, Client: one.client, Wanted: one.wanted, Timeout: g.Timeout,
			})
		}
	}
	return checks
}

// names are all that is asked for at the target, where there are any.
func (t *Target) names(g Group) []string {
	if len(t.ServerNames) > 0 {
		return t.ServerNames
	}
	return g.ServerNames
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
		if w.Asked == w.Secret && w.covers(name) || w.Asked != w.Secret && probed(w.Asked) == name {
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

// covers reports whether a client takes the leaf for a name.
func (l *Leaf) covers(name string) bool {
	if slices.Contains(l.DNSNames, name) || slices.Contains(l.IPAddresses, name) {
		return true
	}
	pattern, ok := pattern(name)
	return ok && slices.Contains(l.DNSNames, pattern)
}

// pattern is the wildcard that covers a name.
func pattern(name string) (string, bool) {
	first, rest, ok := strings.Cut(name, ".")
	return "*." + rest, ok && first != ""
}

// leafIndex finds leaves by their SANs: there may be thousands.
type leafIndex map[string][]Leaf

func (x leafIndex) add(l Leaf) {
	for _, name := range slices.Concat(l.DNSNames, l.IPAddresses) {
		x[name] = append(x[name], l)
	}
}

// candidates are the leaves that may be shown under a name, those with the name itself first, then by secret. Which of several it is, is for the
// configuration of the Envoy to say.
func (x leafIndex) candidates(name string) []Leaf {
	bySecret := func(a, b Leaf) int { return strings.Compare(a.Secret, b.Secret) }
	found := slices.SortedFunc(slices.Values(x[name]), bySecret)
	if pattern, ok := pattern(name); ok {
		for _, l := range slices.SortedFunc(slices.Values(x[pattern]), bySecret) {
			if !slices.ContainsFunc(found, func(f Leaf) bool { return f.Secret == l.Secret }) {
				found = append(found, l)
			}
		}
	}
	return found
}

// probe is a client, and what it has to be shown.
type probe struct {
	client Client
	wanted []Leaf
}

// clients returns which clients prove leaves that are candidates under one name. An RSA certificate is shown to an RSA-only client, one of ECDSA (or
// Ed25519) to a client that knows only that, and to TLS 1.3 that of ECDSA before that of RSA. In a round (about is not nil) the wanted secrets come
// first among equals, and what is to show one of the others first proves nothing.
func clients(leaves []Leaf, about *scope) []probe {
	var rsa, other []Leaf
	for _, l := range leaves {
		if l.rsa() {
			rsa = append(rsa, l)
		} else {
			other = append(other, l)
		}
	}
	if about != nil {
		wantedFirst := func(a, b Leaf) int { return cmp.Compare(about.rank(a), about.rank(b)) }
		slices.SortStableFunc(rsa, wantedFirst)
		slices.SortStableFunc(other, wantedFirst)
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
	return slices.DeleteFunc(probes, func(p probe) bool { return about != nil && about.rank(p.wanted[0]) > 0 })
}
