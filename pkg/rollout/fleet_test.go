package rollout

import (
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/sds-server/sds-server/pkg/cache"
	"github.com/sds-server/sds-server/pkg/secret"
)

// node is a scripted Envoy.
type node struct {
	id, group string
	names     []string // that it subscribes to
	dropped   []string // that it unsubscribed from
	silent    bool     // answers nothing
	deaf      bool     // is not sent anything: its stream does not move
	refuses   func(name string, v secret.Version) bool

	connected bool
	known     bool // to the server that runs now
	lastSeen  time.Time
	sent      map[string]secret.Version
	sentAt    map[string]time.Time
	acked     map[string]secret.Version
	nacked    map[string]map[secret.Version]bool
	serves    map[string]secret.Version // what it goes on with, also across our restarts
	received  map[string]secret.Version // last; bytes equal to these are ACKed unread, also when they had been refused
}

// fleet is a scripted Fleet: what the SDS edge knows.
type fleet struct {
	mu    sync.Mutex
	nodes []*node

	displaced string // group whose nodes would lose a name to a new secret
}

// Displaces implements Fleet.
func (f *fleet) Displaces(group, _ string, _ []string) bool { return group == f.displaced }

// Progress implements Fleet.
func (f *fleet) Progress(group string, want map[string]secret.Version) []NodeProgress {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []NodeProgress
	for _, n := range f.nodes {
		if n.group == group && n.known && slices.ContainsFunc(n.dropped, func(s string) bool { _, ok := want[s]; return ok }) {
			all = append(all, NodeProgress{Identity: "spiffe://" + n.id, Node: n.id, Unsubscribed: true})
			continue
		}
		if n.group != group || !n.known || !slices.ContainsFunc(n.names, func(s string) bool { _, ok := want[s]; return ok }) {
			continue
		}
		p := NodeProgress{Identity: "spiffe://" + n.id, Node: n.id, Connected: n.connected, Acked: true, LastSeen: n.lastSeen}
		if n.connected {
			p.LastSeen = time.Now()
		}
		for _, name := range slices.Sorted(maps.Keys(want)) {
			v := want[name]
			switch {
			case v == "" || !slices.Contains(n.names, name) || n.acked[name] == v:
				continue
			case n.nacked[name][v]:
				p.Nacked = &NACK{Secret: name, Version: v, Message: "Failed to load certificate chain"}
			case n.sent[name] == v:
				p.Since = n.sentAt[name]
			}
			p.Acked = false
		}
		all = append(all, p)
	}
	return all
}

// deliver sends every connected node what its group is at, and takes its answers.
func (f *fleet) deliver(c *cache.Cache) {
	f.send(func(group, name string) version {
		if res, _ := c.Resource(group, name); res != nil {
			return res.Version
		}
		return ""
	})
}

// send sends every connected node what at says that its group is at, and takes its answers.
func (f *fleet) send(at func(group, name string) version) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, n := range f.nodes {
		if !n.connected || n.deaf {
			continue
		}
		for _, name := range n.names {
			v := at(n.group, name)
			if v == "" {
				n.sent[name], n.acked[name] = "", ""
				continue
			}
			if n.nacked[name][v] {
				continue
			}
			if n.sent[name] != v {
				n.sent[name], n.sentAt[name] = v, time.Now()
			}
			again := n.received[name] == v
			switch {
			case n.acked[name] == v:
			case n.silent:
				continue
			case again:
				n.acked[name] = v
			case n.refuses != nil && n.refuses(name, v):
				if n.nacked[name] == nil {
					n.nacked[name] = map[secret.Version]bool{}
				}
				n.nacked[name][v] = true
			default:
				n.acked[name], n.serves[name] = v, v
			}
			n.received[name] = v
		}
	}
}

// lastGood reports whether a node that has refused a version of a secret goes on with this one.
func (f *fleet) lastGood(name string, v version) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.ContainsFunc(f.nodes, func(n *node) bool { return len(n.nacked[name]) > 0 && n.serves[name] == v })
}

func (f *fleet) edit(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

// forget is a restart of the server: what nodes ACKed is in its memory. Which there are is stored; those that were connected at the end count as
// seen now. Every connected node comes again, if it does.
func (f *fleet) forget(comeBack bool) {
	f.edit(func() {
		for _, n := range f.nodes {
			n.reset() // what it had refused is in the memory of the server, too
			if n.connected {
				n.connected, n.lastSeen = comeBack, time.Now()
			}
		}
	})
}

func (n *node) reset() {
	n.sent, n.sentAt, n.acked = map[string]secret.Version{}, map[string]time.Time{}, map[string]secret.Version{}
	n.nacked = map[string]map[secret.Version]bool{}
}

// connect begins a new stream. What the node has refused is still known.
func (n *node) connect() {
	nacked := n.nacked
	n.reset()
	n.connected, n.known, n.nacked = true, true, nacked
}

func (n *node) disconnect() { n.connected, n.lastSeen = false, time.Now() }
