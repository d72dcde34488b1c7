package cache

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/sds-server/sds-server/pkg/secret"
	"github.com/sds-server/sds-server/pkg/store"
)

func TestSnapshotsAreDifferencesAndAFullSetEvery256(t *testing.T) {
	b := newBench(t, "a")
	version := b.put("s")
	const moves = 2*fullEvery + 10
	for i := range moves { // one pair under ever more names: never the same set twice
		name := fmt.Sprintf("n%d", i)
		before := b.at("a").Number
		p := b.Plan()
		p.keep(resource{Resource: &Resource{Name: name, Version: version}})
		if _, err := p.Move(b.ctx(), "a", map[string]secret.Version{name: version}, Why{}); err != nil {
			t.Fatal(err)
		}
		if err := p.Commit(b.ctx()); err != nil {
			t.Fatal(err)
		}
		if at := b.at("a"); at.Parent != before || at.Number == before {
			t.Fatalf("snapshot %d has parent %d, want a new one of %d", at.Number, at.Parent, before)
		}
	}
	full, chain := 0, 0
	for n := uint64(1); n <= b.Latest(); n++ {
		r, err := b.snapshots.record(b.ctx(), n)
		if err != nil {
			t.Fatal(err)
		}
		if chain++; r.Full {
			full, chain = full+1, 0
		} else if len(r.Entries) != 1 {
			t.Fatalf("snapshot %d holds %d entries, want its difference of 1", n, len(r.Entries))
		}
		if chain >= fullEvery {
			t.Fatalf("snapshot %d is the %d-th difference after a full set, want fewer than %d", n, chain, fullEvery)
		}
	}
	if want := moves/fullEvery + 1; full != want {
		t.Errorf("%d full sets for %d snapshots, want %d", full, b.Latest(), want)
	}
	for _, n := range []uint64{1, 2, fullEvery, fullEvery + 1, fullEvery + 2, 2 * fullEvery, b.Latest()} {
		s, err := b.Snapshot(b.ctx(), n)
		if err != nil || s.Number != n || s.Secrets.Len() != int(n)-1 {
			t.Errorf("snapshot %d reads back as %v, %v; want %d secrets", n, s, err, n-1)
		}
	}
}

func TestEqualSetsAreOneSnapshotAlsoAfterARestart(t *testing.T) {
	b := newBench(t, "a", "b")
	v1 := b.put("s", "a")
	first := b.at("a").Number
	v2 := b.put("s", "a")
	b.move("b", Why{}, map[string]secret.Version{"s": v1})
	if got := b.at("b").Number; got != first {
		t.Errorf("group b is at snapshot %d, want %d, which holds the same", got, first)
	}
	latest := b.Latest()
	b.reopen()
	b.move("b", Why{}, map[string]secret.Version{"s": v2})
	b.move("a", Why{}, map[string]secret.Version{"s": v1})
	b.move("a", Why{}, map[string]secret.Version{"s": ""})
	if got := []uint64{b.at("a").Number, b.at("b").Number, b.Latest()}; got[0] != 1 || got[1] != latest || got[2] != latest {
		t.Errorf("after a restart: groups at %v, want 1 and %d, and no new snapshot", got, latest)
	}
}

func TestLargeSetIsStoredInPagesWithinTheLimits(t *testing.T) {
	b := newBench(t, "a", "b")
	res := b.put("s")
	const n = 10_000
	changes := map[string]secret.Version{}
	p := b.Plan()
	for i := range n {
		name := fmt.Sprintf("%05d%s", i, strings.Repeat("<ä", 83)) // 254 bytes; as JSON far more
		changes[name] = res
		p.keep(resource{Resource: &Resource{Name: name, Version: res}})
	}
	if _, err := p.Move(b.ctx(), "a", changes, Why{Reason: "many"}); err != nil {
		t.Fatal(err)
	}
	if err := p.Commit(b.ctx()); err != nil {
		t.Fatal(err)
	}
	read, err := b.Snapshot(b.ctx(), b.at("a").Number)
	if err != nil {
		t.Fatal(err)
	}
	if read.Secrets.Len() != n || !read.Secrets.Equal(b.at("a").Secrets) {
		t.Errorf("%d secrets were read back, want the %d that were stored", read.Secrets.Len(), n)
	}
	pages, _, err := b.disk.List(b.ctx(), pagePrefix+"/")
	if err != nil || len(pages) < 2 {
		t.Errorf("%d pages, %v; want several", len(pages), err)
	}
	if entries, err := b.Entries(b.ctx(), b.Moves("a")[0]); err != nil || len(entries) != n || entries[0].To != res {
		t.Errorf("the move has %d entries, %v; want %d", len(entries), err, n)
	}
}

func TestUnnamedPagesAreSweptAtOpen(t *testing.T) {
	b := newBench(t, "a")
	res := b.put("s")
	many := func(p *Plan, n int) {
		changes := map[string]secret.Version{}
		for i := range n {
			name := fmt.Sprintf("name-%d", i)
			changes[name] = res
			p.keep(resource{Resource: &Resource{Name: name, Version: res}})
		}
		if _, err := p.Move(b.ctx(), "a", changes, Why{}); err != nil {
			t.Fatal(err)
		}
	}
	before := b.state()
	p := b.Plan()
	many(p, 12_000)
	written := 0
	b.disk.before = func() bool { written++; return written > len(p.pages) } // the pages are stored, the commit that names them is not
	if err := p.Commit(b.ctx()); !errors.Is(err, errDisk) {
		t.Fatalf("got %v, want %v", err, errDisk)
	}
	b.disk.before = nil
	count := func() int {
		pages, _, err := b.disk.List(b.ctx(), pagePrefix+"/")
		if err != nil {
			t.Fatal(err)
		}
		return len(pages)
	}
	if count() < 2 {
		t.Fatalf("%d pages were stored, want at least 2", count())
	}
	b.reopen()
	if count() != 0 || b.state() != before {
		t.Errorf("after a restart: %d pages, want none, and %s, want %s", count(), b.state(), before)
	}
}

func TestNamedPagesSurviveTheSweep(t *testing.T) {
	b := newBench(t, "a")
	changes := map[string]secret.Version{}
	p := b.Plan()
	s := newSecret(t, "s")
	for i := range 600 { // one pair under many names
		name := fmt.Sprintf("%s-%d", strings.Repeat("long", 40), i)
		m := describe(s, b.Version(s), Origin{Source: SourceImport}, now())
		m.Name = name
		changes[name] = m.Version
		r := record{Meta: m, KeyPEM: string(s.KeyPEM())}
		if _, err := b.disk.Commit(b.ctx(), nil, []store.Operation{store.Put(secretKey(name, m.Version), mustJSON(r))}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := p.Move(b.ctx(), "a", changes, Why{}); err != nil {
		t.Fatal(err)
	}
	if len(p.pages) == 0 {
		t.Fatal("the set is stored without pages")
	}
	if err := p.Commit(b.ctx()); err != nil {
		t.Fatal(err)
	}
	before := b.state()
	b.reopen()
	if after := b.state(); after != before {
		t.Errorf("after a restart: %s, want %s", after, before)
	}
}

func TestDamagedRecordIsNamed(t *testing.T) {
	number := snapshotKey(3)
	set := func(edit func(*snapshotRecord)) func([]byte) []byte {
		return func(b []byte) []byte {
			var r snapshotRecord
			if err := json.Unmarshal(b, &r); err != nil {
				panic(err)
			}
			edit(&r)
			return mustJSON(r)
		}
	}
	for name, test := range map[string]struct {
		key    string
		damage func([]byte) []byte
		want   string
	}{
		"cut snapshot":              {number, func(b []byte) []byte { return b[:len(b)/2] }, number},
		"snapshot of another key":   {number, set(func(r *snapshotRecord) { r.Number = 2 }), number},
		"snapshot without content":  {number, set(func(r *snapshotRecord) { r.Entries = nil }), "snapshot 3"},
		"snapshot without a parent": {number, set(func(r *snapshotRecord) { r.Parent = 0 }), "snapshot 0"},
		"snapshot that is its own":  {number, set(func(r *snapshotRecord) { r.Parent = 3 }), "snapshot 3"},
		"snapshot without its page": {number, set(func(r *snapshotRecord) { r.Pages = 1 }), "snapshot 3, page 0"},
		"cut group":                 {groupKey("a"), func(b []byte) []byte { return b[1:] }, groupKey("a")},
		"group of another key":      {groupKey("a"), func([]byte) []byte { return mustJSON(groupRecord{Name: "b", Snapshot: 1}) }, groupKey("a")},
		"group at no snapshot":      {groupKey("a"), func([]byte) []byte { return mustJSON(groupRecord{Name: "a", Snapshot: 9}) }, "snapshot 9"},
		"cut version key":           {versionKeyPath, func(b []byte) []byte { return b[:7] }, versionKeyPath},
		"cut secret":                {"", func(b []byte) []byte { return b[:len(b)-9] }, "secret/s/"},
		"secret of another key": {"", func(b []byte) []byte {
			return []byte(strings.Replace(string(b), `"name":"s"`, `"name":"t"`, 1))
		}, "secret/s/"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, "a")
			b.put("s", "a")
			key := test.key
			if key == "" {
				key = secretKey("s", b.put("s", "a"))
			} else {
				b.put("s", "a")
			}
			e, err := b.disk.Get(b.ctx(), key)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := b.disk.Commit(b.ctx(), nil, []store.Operation{store.Put(key, test.damage(e.Value))}); err != nil {
				t.Fatal(err)
			}
			_, err = b.load()
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("got %v, want an error that names %s", err, test.want)
			}
			if strings.Contains(err.Error(), "PRIVATE KEY") {
				t.Errorf("the error shows a key: %v", err)
			}
		})
	}
}

func TestUnknownSnapshotIsAnError(t *testing.T) {
	b := newBench(t, "a")
	if _, err := b.Snapshot(b.ctx(), 7); !errors.Is(err, ErrNoSnapshot) {
		t.Errorf("got %v, want %v", err, ErrNoSnapshot)
	}
	heads, err := b.Heads(b.ctx())
	if err != nil || len(heads) != 1 || heads[0].Number != 1 || heads[0].Reason != "empty" || heads[0].Created == "" {
		t.Errorf("got heads %v, %v; want the empty snapshot 1", heads, err)
	}
}
