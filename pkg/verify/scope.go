package verify

import "github.com/sds-server/sds-server/pkg/secret"

// scope is what a round is about.
type scope struct {
	want  map[string]secret.Version
	names int // that are asked for of each secret at each target
}

// newScope returns the one for the wanted versions in a group.
func newScope(g Group, want map[string]secret.Version) *scope {
	pairs := 0
	for _, t := range g.Targets {
		of := map[string]bool{}
		for _, w := range t.Secrets {
			if want[w.Secret] == w.Version {
				of[w.Secret] = true
			}
		}
		pairs += len(of)
	}
	const clients = 2 // of each, at least
	return &scope{want, min(max(roundHandshakes/max(clients*pairs, 1), 1), roundNames)}
}

// rank is 0 for a leaf of a wanted secret.
func (s *scope) rank(l Leaf) int {
	if _, ok := s.want[l.Secret]; ok {
		return 0
	}
	return 1
}
