package config

import (
	"maps"
	"regexp"
	"slices"
)

// unsupportedKey is a key whose feature is not built yet. It is decoded and has its rules, but a file that sets it is
// refused: a setting that silently does nothing is worse than none.
type unsupportedKey struct {
	// key with [] for the elements of lists, such as issuers[].maintenance.
	key string
	// refuses says for which values; nil means for each that is not empty.
	refuses func(value any) bool
	// hint says what can be done now.
	hint string
}

// unsupportedKeys is the table; it gets shorter with every feature, and ends empty.
func unsupportedKeys() []unsupportedKey {
	is := func(refused any) func(any) bool {
		return func(value any) bool { return value == refused }
	}
	return []unsupportedKey{
		{key: "store.backend", refuses: is(backendEtcd), hint: "use bbolt"},
		{key: "store.etcd"},
		{key: "http.tls", hint: "listen on loopback"},
		{key: "challenges.tls-alpn-01", hint: "use http-01"},
		{key: "challenges.dns-01", hint: "use http-01"},
		{key: "issuers[].preferred_chain"},
		{key: "issuers[].revocation"},
		{key: "certificates[].issuers", refuses: hasSeveral, hint: "name one issuer"},
		{key: "certificates[].challenge", refuses: isLaterChallenge, hint: "use http-01"},
		{key: "certificates[].backup"},
		{key: "drills"},
	}
}

func hasSeveral(value any) bool {
	list, ok := value.([]any)
	return ok && len(list) > 1
}

func isLaterChallenge(value any) bool {
	return value == challengeTLSALPN01 || value == challengeDNS01
}

// refusals returns one problem for each place where c sets a key of the table.
func refusals(c *Config, table []unsupportedKey) Problems {
	var problems Problems
	index := regexp.MustCompile(`\[\d+\]`)
	for _, path := range slices.Sorted(maps.Keys(c.origin.set)) {
		key := index.ReplaceAllString(path, "[]")
		for _, u := range table {
			if u.key == key && (u.refuses == nil || u.refuses(c.origin.set[path])) {
				problems = append(problems, Problem{Path: path, Message: "not supported yet: " + u.key, Hint: u.hint})
			}
		}
	}
	return problems
}

// dropBelow removes what lies at or under a refused path: while the key cannot be used at all, its details are noise.
func dropBelow(problems, refused Problems) Problems {
	return slices.DeleteFunc(problems, func(p Problem) bool {
		return slices.ContainsFunc(refused, func(r Problem) bool { return isBelow(p.Path, r.Path) })
	})
}
