package app

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"github.com/sds-server/sds-server/internal/config"
	"github.com/sds-server/sds-server/pkg/sds"
	"github.com/sds-server/sds-server/pkg/secret"
	"github.com/sds-server/sds-server/pkg/verify"
)

// wantedServed tells the probing what should be served where: what nodes subscribe to and their groups are at.
type wantedServed struct{ server *server }

var _ verify.Source = wantedServed{}

// Groups implements verify.Source.
func (w wantedServed) Groups(_ context.Context, names ...string) []verify.Group {
	cfg := w.server.config.Load()
	asked := func(group string) bool { return len(names) == 0 || slices.Contains(names, group) }
	members := map[string][]sds.Node{}
	for _, n := range w.server.edge.Nodes(names...) {
		if n.Connected {
			members[n.Group] = append(members[n.Group], n)
		}
	}
	var groups []verify.Group
	pools := rootPools{}
	for _, g := range cfg.Groups {
		if g.Verify == nil || !asked(g.Name) {
			continue
		}
		out := verify.Group{Name: g.Name, Timeout: g.Verify.Timeout, ServerNames: g.Verify.ServerNames}
		roots := func(issuer string) verify.Roots { return pools.of(cfg, g.Verify.RootsFile, issuer) }
		for _, e := range g.Verify.Endpoints {
			behind := slices.DeleteFunc(slices.Clone(members[g.Name]), func(n sds.Node) bool { return e.Node != "" && n.ID != e.Node })
			if len(behind) == 0 {
				out.Skipped = append(out.Skipped, skippedEndpoint(e))
				continue
			}
			t := w.target(e.Address, behind, roots)
			t.ServerNames = e.ServerNames
			if len(e.Secrets) > 0 {
				t.Secrets = slices.DeleteFunc(t.Secrets, func(s verify.Wanted) bool { return !slices.Contains(e.Secrets, s.Secret) })
			}
			if t.Node = e.Node; e.Node == "" {
				t.Nodes = nil // it may be any of them
			}
			out.Targets = append(out.Targets, t)
		}
		if g.Verify.NodePort != 0 {
			targets, skipped := w.nodeTargets(g.Verify.NodePort, members[g.Name], roots)
			out.Targets, out.Skipped = append(out.Targets, targets...), append(out.Skipped, skipped...)
		}
		groups = append(groups, out)
	}
	return groups
}

func skippedEndpoint(e config.Endpoint) string {
	if e.Node == "" {
		return e.Address + ": no node of the group is connected"
	}
	return fmt.Sprintf("%s: node %q is not connected in this group", e.Address, e.Node)
}

// nodeTargets are the nodes at their own addresses. Where several have one address, it is not known which of them listens.
func (w wantedServed) nodeTargets(port int, members []sds.Node, roots func(issuer string) verify.Roots) (targets []verify.Target, skipped []string) {
	byAddress := map[string][]sds.Node{}
	var order []string
	for _, n := range members {
		if !n.Address.IsValid() {
			skipped = append(skipped, fmt.Sprintf("node %q: its address is not known", n.ID))
			continue
		}
		address := netip.AddrPortFrom(n.Address, uint16(port)).String()
		if byAddress[address] == nil {
			order = append(order, address)
		}
		byAddress[address] = append(byAddress[address], n)
	}
	for _, address := range order {
		t := w.target(address, byAddress[address], roots)
		if len(byAddress[address]) == 1 {
			t.Node = byAddress[address][0].ID
		}
		targets = append(targets, t)
	}
	return targets, skipped
}

// target is an address with the certificates of the nodes that may be there.
func (w wantedServed) target(address string, nodes []sds.Node, roots func(issuer string) verify.Roots) verify.Target {
	t := verify.Target{Address: address}
	type asked struct{ name, secret string }
	seen := map[asked]bool{}
	for _, n := range nodes {
		if len(nodes) == 1 {
			t.Nodes = []verify.NodeKey{{Identity: n.Identity, ID: n.ID}}
		}
		for _, s := range n.Secrets {
			key := asked{s.Name, cmp.Or(s.CoveredBy, s.Name)}
			leaf, issuer, ok := w.leaf(key.secret, s.Want)
			if !ok || seen[key] {
				continue
			}
			seen[key] = true
			leaf.Roots = roots(issuer)
			t.Secrets = append(t.Secrets, verify.Wanted{Leaf: leaf, Asked: s.Name})
		}
	}
	return t
}

// leaf describes a version of a certificate that a group is at; false for everything else.
func (w wantedServed) leaf(name string, version secret.Version) (leaf verify.Leaf, issuer string, ok bool) {
	m, ok := w.server.cache.Meta(name, version)
	if !ok || m.Kind != secret.KindTLSCertificate {
		return verify.Leaf{}, "", false
	}
	return verify.Leaf{
		Secret: name, Version: version, SHA256: m.SHA256, KeyType: m.KeyType, DNSNames: m.DNSNames, IPAddresses: m.IPAddresses, NotAfter: m.NotAfter,
	}, m.Issuer, true
}

// Current implements verify.Source.
func (w wantedServed) Current(group, secretName string) (verify.Leaf, bool) {
	at, ok := w.server.cache.At(group)
	if !ok {
		return verify.Leaf{}, false
	}
	version, _ := at.Secrets.Version(secretName)
	leaf, _, ok := w.leaf(secretName, version)
	return leaf, ok
}

// Known implements verify.Source.
func (w wantedServed) Known(ctx context.Context, secretName, sha256 string) (secret.Version, bool) {
	metas, err := w.server.cache.Versions(ctx, secretName)
	if err != nil {
		return "", false // then it is just another certificate
	}
	for _, m := range metas {
		if m.SHA256 == sha256 {
			return m.Version, true
		}
	}
	return "", false
}

// rootPools are the roots files that were read, for one look at everything.
type rootPools map[string]verify.Roots

// of returns the roots for a certificate: those of the group's file, else of the issuer's, else the system's.
func (p rootPools) of(cfg *config.Config, file, issuer string) verify.Roots {
	if i := slices.IndexFunc(cfg.Issuers, func(i config.Issuer) bool { return i.Name == issuer }); file == "" && i >= 0 {
		if cfg.Issuers[i].Roots == "unchecked" {
			return verify.Roots{Unchecked: true, Name: "any roots"}
		}
		file = cfg.Issuers[i].RootsFile
	}
	if _, ok := p[file]; !ok {
		p[file] = readRoots(file)
	}
	return p[file]
}

func readRoots(file string) verify.Roots {
	if file == "" {
		pool, err := x509.SystemCertPool()
		return verify.Roots{Pool: pool, Name: "the system's roots", Err: err}
	}
	roots := verify.Roots{Pool: x509.NewCertPool(), Name: "the roots in " + file}
	text, err := os.ReadFile(file)
	if err == nil && !roots.Pool.AppendCertsFromPEM(text) {
		err = errors.New("there is no certificate in it")
	}
	roots.Err = err
	return roots
}
