package sds

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"github.com/sds-server/sds-server/pkg/secret"
	"github.com/sds-server/sds-server/pkg/store/bbolt"
)

// desk records pushes when it is told to: a disk that is as slow as a test wants.
type desk struct {
	mu   sync.Mutex
	auto bool // guarded by mu; records at once, before Record returns
	// Guarded by mu.
	waiting []order
	pushes  []Push
	durable map[string]bool // group, secret and version
}

type order struct {
	pushed func() Push
	done   func()
}

func newDesk() *desk { return &desk{durable: map[string]bool{}} }

// Record implements Pushes.
func (d *desk) Record(pushed func() Push, done func()) {
	d.mu.Lock()
	d.waiting = append(d.waiting, order{pushed, done})
	auto := d.auto
	d.mu.Unlock()
	if auto {
		d.write()
	}
}

// write makes what waits durable: all of it, or that of one secret; the others' records are made, and go on waiting.
func (d *desk) write(names ...string) {
	d.mu.Lock()
	waiting := d.waiting
	d.waiting = nil
	d.mu.Unlock()
	var written []order
	for _, w := range waiting {
		p := w.pushed()
		w.pushed = func() Push { return p }
		d.mu.Lock()
		if len(names) > 0 && !slices.Contains(names, p.Secret) {
			d.waiting = append(d.waiting, w)
			d.mu.Unlock()
			continue
		}
		written = append(written, w)
		if len(p.Nodes) > 0 {
			d.pushes = append(d.pushes, p)
			d.durable[p.Group+" "+p.Secret+" "+string(p.Version)] = true
		}
		d.mu.Unlock()
	}
	for _, w := range written {
		w.done()
	}
}

// said is what was recorded since it was asked last: "GROUP SECRET NODES".
func (d *desk) said() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []string
	for _, p := range d.pushes {
		out = append(out, fmt.Sprint(p.Group, " ", p.Secret, " ", strings.Join(p.Nodes, ",")))
	}
	d.pushes = nil
	return strings.Join(out, "; ")
}

func (d *desk) wants(t *testing.T, want string) {
	t.Helper()
	synctest.Wait()
	if got := d.said(); got != want {
		t.Errorf("got the records %q, want %q", got, want)
	}
}

func audited(t *testing.T, groups ...Group) (*fleet, *desk) {
	t.Helper()
	d := newDesk()
	f := &fleet{pushes: d}
	f.ca, f.log, f.groups = newIssuer(t), &recorder{}, groups
	if len(groups) == 0 {
		f.groups = everything("canary")
	}
	db, err := bbolt.Open(bbolt.Options{Path: filepath.Join(t.TempDir(), "store.db")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	f.store = &disk{Store: db}
	f.start(t)
	return f, d
}

// envoyIn opens a stream of a node of one of several groups.
func (f *fleet) envoyIn(t *testing.T, group string, protocol Protocol, id string) *envoy {
	t.Helper()
	return newEnvoy(t, dial(t, f.buffer, nil), protocol, &corev3.Node{Id: id, Cluster: group})
}

func TestNothingIsSentBeforeItIsRecorded(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f, d := audited(t)
		f.rotate(t, "canary", "a", "b")
		e := f.envoy(t, protocol, "edge-1")
		e.subscribe("a")
		e.silent()
		d.write()
		e.expect("a")
		d.wants(t, "canary a edge-1")

		f.rotate(t, "canary", "a")
		e.silent()
		d.write()
		e.expect("a")
		d.wants(t, "canary a edge-1")
		e.silent()
		d.write()
		d.wants(t, "")
	})
}

func TestFirstRecordNamesAllThatAreAboutToBeSentIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, d := audited(t, everything("canary", "production")...)
		f.rotate(t, "canary", "a")
		f.rotate(t, "production", "a")
		d.auto = true
		var all []*envoy
		for _, id := range []string{"edge-1", "edge-2", "edge-3"} {
			e := f.envoyIn(t, "canary", Delta, id)
			e.subscribe("a")
			e.expect("a")
			all = append(all, e)
		}
		d.wants(t, "canary a edge-1; canary a edge-2; canary a edge-3")
		all[2].leave()
		synctest.Wait()
		d.auto = false
		version := f.rotate(t, "canary", "a")
		f.Announce("canary", "a", version, 0) // whatever the streams have begun
		f.Announce("production", "a", version, 0)
		f.Announce("nowhere", "a", version, 0)
		f.Announce("canary", "b", version, 0)
		synctest.Wait()
		d.write()
		for _, e := range all[:2] {
			e.expect("a")
		}
		d.wants(t, "canary a edge-1,edge-2")

		// One that comes later is sent it at once, and recorded when there is room.
		late := f.envoyIn(t, "canary", Delta, "edge-4")
		late.subscribe("a")
		late.expect("a")
		d.wants(t, "")
		again := f.envoyIn(t, "canary", Delta, "edge-3")
		again.subscribe("a")
		again.expect("a")
		d.write()
		d.wants(t, "canary a edge-3,edge-4")
	})
}

func TestRecordThatWaitsHoldsUpNothingElse(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f, d := audited(t)
		f.rotate(t, "canary", "a", "b")
		d.auto = true
		e := f.envoy(t, protocol, "edge-1")
		e.subscribe("a", "b")
		for range 2 {
			e.ack(e.next())
		}
		d.said()
		d.auto = false
		old := f.rotate(t, "canary", "a")
		f.rotate(t, "canary", "b")
		synctest.Wait()
		d.write("b")
		e.expect("b")
		e.silent()
		// Meanwhile a moves on: the version that was held back is never sent.
		newest := f.rotate(t, "canary", "a")
		synctest.Wait()
		d.write()
		got := e.expect("a")
		if protocol.delta() && (got.version != newest || got.version == old) {
			t.Errorf("got version %s, want the newest", got.version)
		}
		e.silent()
	})
}

func TestDiskThatFailsKeepsNoKeyBack(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f, d := audited(t)
		d.auto = true // done is called before Record returns, as where the record cannot be made
		f.rotate(t, "canary", "a")
		e := f.envoy(t, protocol, "edge-1")
		e.subscribe("a")
		e.expect("a")
		f.rotate(t, "canary", "a")
		e.expect("a")
		e.silent()
	})
}

// A record that was announced for nodes that have gone names nobody: the first that comes is recorded before it is sent anything.
func TestVainRecordIsNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, d := audited(t)
		f.rotate(t, "canary", "a")
		d.auto = true
		e := f.envoy(t, Delta, "edge-1")
		e.subscribe("a")
		e.expect("a")
		d.said()
		d.auto = false
		e.leave()
		f.move(t, "canary", "a", "")
		v := f.rotate(t, "canary", "a")
		f.Announce("canary", "a", v, 0) // the node is known to have subscribed
		synctest.Wait()
		d.write()
		d.wants(t, "")
		next := f.envoy(t, Delta, "edge-2")
		next.subscribe("a")
		next.silent()
		d.write()
		next.expect("a")
		d.wants(t, "canary a edge-2")
	})
}

// A move that was announced and not stored is no push: when it comes after all, it is recorded, and waited for, as if nothing had been said.
func TestRetractedPushIsRecordedAgain(t *testing.T) {
	for _, made := range []bool{true, false} { // the record, before it is retracted
		synctest.Test(t, func(t *testing.T) {
			f, d := audited(t, everything("canary", "production")...)
			d.auto = true
			first := f.rotate(t, "canary", "a")
			nodes := []*envoy{f.envoyIn(t, "canary", Delta, "edge-1"), f.envoyIn(t, "canary", Delta, "edge-2")}
			for _, e := range nodes {
				e.subscribe("a")
				e.expect("a")
			}
			d.said()
			d.auto = false
			next := f.rotate(t, "production", "a") // stored, and not what canary is at
			if f.Announce("canary", "a", first, 2) || f.Announce("production", "a", next, 3) {
				t.Error("a record begins that is made already, or that names nobody")
			}
			if !f.Announce("canary", "a", next, 4) || f.Announce("canary", "a", next, 4) {
				t.Error("want one record to begin")
			}
			want := ""
			if made {
				d.write()
				want = "canary a edge-1,edge-2"
			}
			if got := f.Retract("canary", "a", next); got != made {
				t.Errorf("retract: got %v, want %v", got, made)
			}
			d.write()
			d.wants(t, want)
			if f.Retract("canary", "a", next) {
				t.Error("it is retracted twice")
			}

			f.move(t, "canary", "a", next)
			nodes[0].silent()
			nodes[1].silent()
			d.write()
			nodes[0].expect("a")
			nodes[1].expect("a")
			d.wants(t, "canary a edge-1,edge-2")
		})
	}
}

func TestNodeThatRejectedAVersionIsNotAboutToBeSentIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, d := audited(t)
		d.auto = true
		good := f.rotate(t, "canary", "a")
		e := f.envoy(t, Delta, "edge-1")
		e.subscribe("a")
		e.expect("a")
		bad := f.rotate(t, "canary", "a")
		e.nack(e.next(), "no")
		f.move(t, "canary", "a", good)
		synctest.Wait()
		d.said()
		other := f.envoy(t, Delta, "edge-2")
		other.subscribe("a")
		other.expect("a")
		f.rotate(t, "canary", "a")
		e.expect("a")
		other.expect("a")
		d.said()
		f.gate.mu.Lock()
		clear(f.gate.passed) // as if it were not known any more
		f.gate.mu.Unlock()
		d.auto = false
		f.move(t, "canary", "a", bad)
		synctest.Wait()
		d.write()
		other.expect("a")
		d.wants(t, "canary a edge-2")
	})
}

// A version that is not known any more is recorded again, also where the node was named before.
func TestForgottenRecordIsMadeAgain(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f, d := audited(t)
		d.auto = true
		f.rotate(t, "canary", "a")
		e := f.envoy(t, protocol, "edge-1")
		e.subscribe("a")
		e.expect("a")
		d.said()
		f.gate.mu.Lock()
		clear(f.gate.passed)
		f.gate.mu.Unlock()
		d.auto = false
		e.leave()
		e = f.envoy(t, protocol, "edge-1")
		e.subscribe("a")
		e.silent()
		d.write()
		e.expect("a")
		d.wants(t, "canary a edge-1")
	})
}

func TestQuestionThatWaitsForARecordIsAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, d := audited(t)
		d.auto = true
		f.rotate(t, "canary", "a")
		e := f.envoy(t, Delta, "edge-1")
		e.subscribe("a")
		e.expect("a")
		f.gate.mu.Lock()
		clear(f.gate.passed)
		f.gate.mu.Unlock()
		d.auto = false
		e.subscribe("a") // it has that version, and asks again
		e.silent()
		d.write()
		e.expect("a")
		e.silent()
	})
}

// Names of clients that one certificate covers are one record for a node.
func TestAliasesAreOneRecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, d := audited(t)
		f.rotate(t, "canary", "cert") // of www.example
		e := f.envoy(t, Delta, "edge-1")
		e.subscribe("www.example", "WWW.example", "www.example.")
		e.silent()
		d.write()
		for range 3 {
			e.ack(e.next())
		}
		d.wants(t, "canary cert edge-1")
		d.write()
		d.wants(t, "")
	})
}

// TestEveryKeyThatANodeHasIsRecorded drives nodes that come and go while groups move, and a disk that is slow.
func TestEveryKeyThatANodeHasIsRecorded(t *testing.T) {
	for seed := range uint64(40) {
		synctest.Test(t, func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 1))
			groups := []string{"canary", "production"}
			names := []string{"a", "b", "c"}
			f, d := audited(t, everything(groups...)...)
			versions := map[string][]secret.Version{}
			live := map[string]*envoy{}
			chains := map[string]secret.Version{}
			got := map[string]bool{}
			for range 60 {
				group, name := groups[random.IntN(2)], names[random.IntN(3)]
				id := fmt.Sprint(group, "-", random.IntN(3))
				switch random.IntN(6) {
				case 0:
					v := f.rotate(t, group, name)
					meta, _ := f.cache.Meta(name, v)
					chains[meta.ChainPEM] = v
					versions[name] = append(versions[name], v)
				case 1:
					if all := versions[name]; len(all) > 0 { // back, or forward again
						f.move(t, group, name, all[random.IntN(len(all))])
					}
				case 2:
					if live[id] == nil {
						live[id] = f.envoyIn(t, group, []Protocol{SotW, Delta}[random.IntN(2)], id)
						live[id].subscribe(names...)
					}
				case 3:
					if live[id] != nil {
						live[id].leave()
						delete(live, id)
					}
				default:
					d.write()
				}
				synctest.Wait()
				for id, e := range live {
					group, _, _ := strings.Cut(id, "-")
					for range len(e.answers) {
						a := e.next()
						version := chains[a.chain]
						if a.chain != "" && !d.has(group, a.name, version) {
							t.Fatalf("seed %d: %s was sent %s %s before it was recorded", seed, id, a.name, version.Short())
						}
						got[id+" "+a.name+" "+string(version)] = a.chain != ""
						e.ack(a)
					}
				}
			}
			d.write()
			synctest.Wait()
			d.write()
			for key, sent := range got {
				if sent && !d.named(key) {
					t.Errorf("seed %d: %s was sent and is in no record", seed, key)
				}
			}
		})
	}
}

func (d *desk) has(group, name string, version secret.Version) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.durable[group+" "+name+" "+string(version)]
}

// named reports whether a record names a node: "NODE SECRET VERSION".
func (d *desk) named(key string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.ContainsFunc(d.pushes, func(p Push) bool {
		return slices.ContainsFunc(p.Nodes, func(node string) bool { return node+" "+p.Secret+" "+string(p.Version) == key })
	})
}
