package sds

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
)

// maxSetBytes bounds the names of one node in the store. A node with more of them counts for every secret of its group while it is away.
const maxSetBytes = 256 << 10

// nameSet is the secrets of a node, as the store has them. Many nodes have the same ones, and share it. It is immutable.
type nameSet struct {
	digest string   // of the names; empty for every name
	names  []string // sorted
	bytes  int      // in the store
}

// everyName stands for sets that are too large to be stored: whoever has it may be waiting for any secret.
var everyName = &nameSet{}

// newNameSet makes one of sorted names without repetition.
func newNameSet(names []string) *nameSet {
	s := &nameSet{names: names}
	h := sha256.New()
	var length [8]byte
	for _, name := range names {
		h.Write(binary.BigEndian.AppendUint64(length[:0], uint64(len(name))))
		h.Write([]byte(name))
		s.bytes += len(name) + 3
	}
	s.digest = base64.RawURLEncoding.EncodeToString(h.Sum(nil)[:16])
	return s
}

// has reports whether a secret is one of them. A nil set has none.
func (s *nameSet) has(name string) bool {
	switch s {
	case nil:
		return false
	case everyName:
		return true
	}
	_, ok := slices.BinarySearch(s.names, name)
	return ok
}

func (s *nameSet) encode() ([]byte, error) {
	b, err := json.Marshal(s.names)
	if err != nil {
		return nil, fmt.Errorf("encode names of secrets: %w", err)
	}
	return b, nil
}

// decodeNameSet reads what encode wrote.
func decodeNameSet(b []byte) (*nameSet, error) {
	var names []string
	if err := json.Unmarshal(b, &names); err != nil {
		return nil, err
	}
	slices.Sort(names)
	return newNameSet(slices.Compact(names)), nil
}

// listing finds the nodes of a group by the secrets that the store says they have. The ledger's lock guards it.
type listing struct {
	nodes map[*nameSet]map[*node]struct{}
	sets  map[string]map[*nameSet]struct{} // by secret
}

func newListing() *listing {
	return &listing{nodes: map[*nameSet]map[*node]struct{}{}, sets: map[string]map[*nameSet]struct{}{}}
}

func (l *listing) add(s *nameSet, n *node) {
	if s == nil {
		return
	}
	if l.nodes[s] == nil {
		l.nodes[s] = map[*node]struct{}{}
		for _, name := range s.names {
			if l.sets[name] == nil {
				l.sets[name] = map[*nameSet]struct{}{}
			}
			l.sets[name][s] = struct{}{}
		}
	}
	l.nodes[s][n] = struct{}{}
}

func (l *listing) remove(s *nameSet, n *node) {
	if s == nil {
		return
	}
	delete(l.nodes[s], n)
	if len(l.nodes[s]) > 0 {
		return
	}
	delete(l.nodes, s)
	for _, name := range s.names {
		delete(l.sets[name], s)
		if len(l.sets[name]) == 0 {
			delete(l.sets, name)
		}
	}
}

// collect adds the nodes that have a secret to found.
func (l *listing) collect(name string, found map[*node]struct{}) {
	for s := range l.sets[name] {
		for n := range l.nodes[s] {
			found[n] = struct{}{}
		}
	}
	for n := range l.nodes[everyName] {
		found[n] = struct{}{}
	}
}
