package secret

import (
	"bytes"
	"slices"
)

const (
	// TicketKeySize is the size of a session ticket key in bytes; Envoy rejects every other.
	TicketKeySize = 80
	// MaxTicketKeys is the most keys of one secret: a client's ticket is looked up among all of them.
	MaxTicketKeys = 16
)

// The parts of a session ticket key (envoy/extensions/transport_sockets/tls/v3/common.proto, TlsSessionTicketKeys).
const (
	ticketNameSize = 16 // stands in the ticket, in the clear
	ticketHMACSize = 32
)

// NewTicketKeys checks TLS session ticket keys, of which the first one encrypts and all decrypt (RFC 5077, Section 4; RFC 8446,
// Section 4.6.1). Each has [TicketKeySize] bytes: 16 of name, 32 of an HMAC-SHA-256 key, 32 of an AES-256 key.
//
// Envoy finds a key by its name and takes the first of that name, so a second one would decrypt nothing. It also takes keys that
// are no secret, such as 80 zeros.
//
// The error joins one [*Error] for each broken rule; see [Rules].
func NewTicketKeys(name string, keys [][]byte) (*Secret, error) {
	p := &problems{secret: name}
	checkName(name, p)
	switch n := len(keys); {
	case n == 0:
		p.add(RuleEmptyTicketKeys, "session ticket keys: none")
	case n > MaxTicketKeys:
		p.add(RuleTooManyTicketKeys, "session ticket keys: %d, more than %d", n, MaxTicketKeys)
	}
	c := &content{}
	for i, key := range keys {
		switch {
		case len(key) != TicketKeySize:
			p.add(RuleTicketKeySize, "session ticket keys: key %d has %d bytes, not %d", i+1, len(key), TicketKeySize)
			continue
		case weakTicketKey(key):
			p.add(RuleTicketKeyWeak, "session ticket keys: key %d is not random", i+1)
		case slices.ContainsFunc(c.tickets, func(other []byte) bool { return bytes.Equal(ticketName(other), ticketName(key)) }):
			p.add(RuleDuplicateTicketKey, "session ticket keys: key %d has the name of an earlier one", i+1)
		}
		c.tickets = append(c.tickets, slices.Clone(key))
	}
	if p.found() {
		return nil, p.err()
	}
	return &Secret{name: name, kind: KindSessionTicketKeys, content: func() *content { return c }}, nil
}

func ticketName(key []byte) []byte { return key[:ticketNameSize] }

// weakTicketKey reports whether a part of a key is one byte over and over: a file of zeros, or a key that was only made room for.
func weakTicketKey(key []byte) bool {
	const secrets = ticketNameSize + ticketHMACSize
	for _, part := range [][]byte{key[:ticketNameSize], key[ticketNameSize:secrets], key[secrets:]} {
		if bytes.Count(part, part[:1]) == len(part) {
			return true
		}
	}
	return false
}
