package secret

import (
	"bytes"
	"slices"
	"unicode"
	"unicode/utf8"
)

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

// ParseGeneric makes a generic secret of the content of a file. The end of the line is no part of a content that is one line of text.
func ParseGeneric(name string, file []byte) (*Secret, error) { return NewGeneric(name, trimLine(file)) }

// trimLine takes the end of the line off a content that is one line of text: editors and echo write it, nobody means it, and in the header of a request
// it would be refused. Other content stays as it is, because each byte of it may count.
func trimLine(data []byte) []byte {
	line, found := bytes.CutSuffix(data, []byte("\n"))
	if !found {
		return data
	}
	line = bytes.TrimSuffix(line, []byte("\r"))
	if !utf8.Valid(line) || bytes.ContainsFunc(line, unicode.IsControl) {
		return data
	}
	return line
}
