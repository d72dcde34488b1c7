package secret

import "slices"

// MaxGenericSize is the most bytes of a generic secret. Envoy puts them into headers and signatures, where far less fits.
const MaxGenericSize = 64 << 10

// NewGeneric checks a generic secret: a token or a key that some Envoy extension asks for by name. Its bytes are any, and are
// served as they are. Neither they nor how many there are is ever shown.
//
// The error joins one [*Error] for each broken rule; see [Rules].
func NewGeneric(name string, data []byte) (*Secret, error) {
	p := &problems{secret: name}
	checkName(name, p)
	switch {
	case len(data) == 0:
		p.add(RuleEmptyGeneric, "generic secret: empty")
	case len(data) > MaxGenericSize:
		p.add(RuleGenericTooLarge, "generic secret: more than %d bytes", MaxGenericSize)
	}
	if p.found() {
		return nil, p.err()
	}
	c := &content{generic: slices.Clone(data)}
	return &Secret{name: name, kind: KindGenericSecret, content: func() *content { return c }}, nil
}
