package cache

import (
	"crypto/sha256"
	"hash/fnv"
	"iter"
	"slices"
	"strings"

	"github.com/sds-server/sds-server/pkg/secret"
)

// shardCount is how many parts a Set has. A change copies the array of slices (6 KiB) and the touched shards, never the rest.
const shardCount = 256

// member is one secret of a Set.
type member struct {
	name    string
	version secret.Version
}

// Set is an immutable {secret name -> version}. The zero value is the empty set. With returns a new Set that shares every
// shard that did not change, so that a thousand snapshots of ten thousand secrets cost their differences only.
type Set struct {
	shards [shardCount][]member // each sorted by name
	size   int
	digest [sha256.Size]byte // XOR of the members' hashes: equal sets have equal digests, whatever their history
}

// shardOf spreads names evenly (FNV-1a).
func shardOf(name string) int {
	h := fnv.New32a()
	h.Write([]byte(name)) // never fails
	return int(h.Sum32() % shardCount)
}

// Len returns the number of secrets.
func (s *Set) Len() int { return s.size }

// Version returns the version of the named secret; false if the set does not hold it.
func (s *Set) Version(name string) (secret.Version, bool) {
	shard := s.shards[shardOf(name)]
	i, found := find(shard, name)
	if !found {
		return "", false
	}
	return shard[i].version, true
}

// All yields every secret, sorted by name.
func (s *Set) All() iter.Seq2[string, secret.Version] {
	return func(yield func(string, secret.Version) bool) {
		all := make([]member, 0, s.size)
		for _, shard := range s.shards {
			all = append(all, shard...)
		}
		slices.SortFunc(all, func(a, b member) int { return strings.Compare(a.name, b.name) })
		for _, m := range all {
			if !yield(m.name, m.version) {
				return
			}
		}
	}
}

// With returns the set after changes: an empty version removes the name.
func (s *Set) With(changes map[string]secret.Version) *Set {
	next := *s
	owned := make(map[int]bool, len(changes))
	for name, version := range changes {
		n := shardOf(name)
		if !owned[n] {
			next.shards[n] = slices.Clone(next.shards[n])
			owned[n] = true
		}
		next.put(n, name, version)
	}
	return &next
}

func (s *Set) put(n int, name string, version secret.Version) {
	i, found := find(s.shards[n], name)
	if found {
		s.mix(s.shards[n][i])
	}
	switch {
	case version == "" && found:
		s.shards[n] = slices.Delete(s.shards[n], i, i+1)
		s.size--
	case version == "":
	case found:
		s.shards[n][i].version = version
		s.mix(s.shards[n][i])
	default:
		s.shards[n] = slices.Insert(s.shards[n], i, member{name: name, version: version})
		s.size++
		s.mix(s.shards[n][i])
	}
}

// mix adds a member to the digest, or takes it out: XOR is its own inverse.
func (s *Set) mix(m member) {
	sum := sha256.Sum256([]byte(m.name + "\x00" + string(m.version)))
	for i := range s.digest {
		s.digest[i] ^= sum[i]
	}
}

// Equal reports whether both sets hold the same secrets at the same versions.
func (s *Set) Equal(other *Set) bool {
	if s.size != other.size || s.digest != other.digest {
		return false
	}
	for n := range s.shards {
		if a, b := s.shards[n], other.shards[n]; !shared(a, b) && !slices.Equal(a, b) {
			return false
		}
	}
	return true
}

// shared reports whether two shards are one, as they are when no change since their common origin touched them.
func shared(a, b []member) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}

// Diff returns what has to change to get from s to other: an empty version is a removal.
func (s *Set) Diff(other *Set) map[string]secret.Version {
	diff := map[string]secret.Version{}
	for n := range s.shards {
		a, b := s.shards[n], other.shards[n]
		if shared(a, b) {
			continue
		}
		for _, m := range b {
			if v, ok := s.Version(m.name); !ok || v != m.version {
				diff[m.name] = m.version
			}
		}
		for _, m := range a {
			if _, ok := other.Version(m.name); !ok {
				diff[m.name] = ""
			}
		}
	}
	return diff
}

func find(shard []member, name string) (int, bool) {
	return slices.BinarySearchFunc(shard, name, func(m member, name string) int { return strings.Compare(m.name, name) })
}
