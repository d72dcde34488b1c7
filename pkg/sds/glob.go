package sds

import "strings"

// glob is a pattern in which `*` is any run of characters, also an empty one. There is no other special character.
type glob []string // the literal parts between the stars

func newGlob(pattern string) glob { return strings.Split(pattern, "*") }

// match reports whether the whole of s fits. Taking the first fit of each middle part is enough, because what stands between
// may be anything.
func (g glob) match(s string) bool {
	s, ok := strings.CutPrefix(s, g[0])
	if !ok || len(g) == 1 {
		return ok && s == ""
	}
	last := len(g) - 1
	for _, part := range g[1:last] {
		i := strings.Index(s, part)
		if i < 0 {
			return false
		}
		s = s[i+len(part):]
	}
	return strings.HasSuffix(s, g[last])
}

// pathGlob is a glob whose stars do not cross a slash. So it is a glob for each part between slashes, and
// `spiffe://edge.example/canary/*` does not fit `spiffe://edge.example/canary/a/b`.
type pathGlob []glob

func newPathGlob(pattern string) pathGlob {
	parts := strings.Split(pattern, "/")
	g := make(pathGlob, len(parts))
	for i, p := range parts {
		g[i] = newGlob(p)
	}
	return g
}

func (g pathGlob) match(s string) bool {
	for i, part := range g {
		head, rest, more := strings.Cut(s, "/")
		if more == (i == len(g)-1) || !part.match(head) {
			return false
		}
		s = rest
	}
	return true
}

// String returns the pattern.
func (g glob) String() string { return strings.Join(g, "*") }

// String returns the pattern.
func (g pathGlob) String() string {
	parts := make([]string, len(g))
	for i, part := range g {
		parts[i] = part.String()
	}
	return strings.Join(parts, "/")
}
