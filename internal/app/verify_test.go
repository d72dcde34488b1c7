package app

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sds-server/sds-server/internal/config"
	"github.com/sds-server/sds-server/internal/testenv"
	"github.com/sds-server/sds-server/pkg/sds"
	"github.com/sds-server/sds-server/pkg/verify"
)

// The roots are those of the group, else of the issuer, else the system's.
func TestRootsThatServedChainsHaveToReach(t *testing.T) {
	dir := t.TempDir()
	group, err := testenv.NewAuthority(dir, "group")
	if err != nil {
		t.Fatal(err)
	}
	issuer, err := testenv.NewAuthority(dir, "issuer")
	if err != nil {
		t.Fatal(err)
	}
	empty := filepath.Join(dir, "empty.pem")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := &config.Config{Issuers: []config.Issuer{{Name: "own", RootsFile: issuer.File}, {Name: "any", Roots: "unchecked"}, {Name: "public"}}}
	for _, test := range []struct {
		name, file, issuer string
		want               verify.Roots // without Err; a Pool that is nil is not compared
		broken             bool
	}{
		{"the group's before the issuer's", group.File, "own", verify.Roots{Name: "the roots in " + group.File, Pool: group.Pool}, false},
		{"the group's before unchecked", group.File, "any", verify.Roots{Name: "the roots in " + group.File, Pool: group.Pool}, false},
		{"the issuer's", "", "own", verify.Roots{Name: "the roots in " + issuer.File, Pool: issuer.Pool}, false},
		{"unchecked", "", "any", verify.Roots{Name: "any roots", Unchecked: true}, false},
		{"the system's", "", "public", verify.Roots{Name: "the system's roots"}, false},
		{"an imported pair", "", "", verify.Roots{Name: "the system's roots"}, false},
		{"a file without certificates", empty, "", verify.Roots{Name: "the roots in " + empty}, true},
		{"no file", filepath.Join(dir, "gone.pem"), "", verify.Roots{Name: "the roots in " + filepath.Join(dir, "gone.pem")}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := rootPools{}.of(cfg, test.file, test.issuer)
			if got.Name != test.want.Name || got.Unchecked != test.want.Unchecked || (got.Err != nil) != test.broken {
				t.Errorf("got %+v, want %+v, broken %v", got, test.want, test.broken)
			}
			if test.want.Pool != nil && !got.Pool.Equal(test.want.Pool) {
				t.Error("the pool is not that of the file")
			}
		})
	}
}

// Nodes are looked at where they connect from. Of several at one address nobody knows which one listens.
func TestTargetsOfNodePort(t *testing.T) {
	node := func(id, address string) sds.Node {
		n := sds.Node{ID: id, Identity: "spiffe://x/" + id, Connected: true}
		if address != "" {
			n.Address = netip.MustParseAddr(address)
		}
		return n
	}
	targets, skipped := wantedServed{}.nodeTargets(443, []sds.Node{
		node("a", "192.0.2.1"), node("b", "2001:db8::1"), node("c", "127.0.0.1"), node("d", "127.0.0.1"), node("e", ""),
	}, nil)
	want := []verify.Target{
		{Address: "192.0.2.1:443", Node: "a", Nodes: []verify.NodeKey{{Identity: "spiffe://x/a", ID: "a"}}},
		{Address: "[2001:db8::1]:443", Node: "b", Nodes: []verify.NodeKey{{Identity: "spiffe://x/b", ID: "b"}}},
		{Address: "127.0.0.1:443"},
	}
	if diff := cmp.Diff(want, targets); diff != "" {
		t.Errorf("targets (-want +got):\n%s", diff)
	}
	if !slices.Equal(skipped, []string{`node "e": its address is not known`}) {
		t.Errorf("skipped: %v", skipped)
	}
}
