package admin

import "time"

// VerifyRequest asks for handshakes with a group, or with all where it is empty; the answer is a stream of VerifyLine, the last of which has Done
// or Error set.
type VerifyRequest struct {
	Group string `json:"group"`
}

// VerifyLine is one line of the answer: one of its fields is set.
type VerifyLine struct {
	Handshake *VerifiedHandshake `json:"handshake,omitempty"`
	Group     *VerifiedGroup     `json:"group,omitempty"` // after its handshakes
	Done      bool               `json:"done,omitempty"`
	Error     *Error             `json:"error,omitempty"`
}

// Verification is what `verify` prints.
type Verification struct {
	Served     bool                `json:"served"` // something was looked at, and all of it is as wanted
	Groups     []VerifiedGroup     `json:"groups"`
	Handshakes []VerifiedHandshake `json:"handshakes"` // sorted by group, address, server_name and client
}

// VerifiedGroup counts the handshakes of a group.
type VerifiedGroup struct {
	Name       string   `json:"name"`
	Configured bool     `json:"configured"` // groups[].verify is set
	OK         int      `json:"ok"`
	Failed     int      `json:"failed"`
	Skipped    []string `json:"skipped"` // what could not be looked at, and why
}

// VerifiedHandshake is one handshake.
type VerifiedHandshake struct {
	Group             string          `json:"group"`
	Address           string          `json:"address"`
	Node              *string         `json:"node"` // id
	ServerName        string          `json:"server_name"`
	Client            string          `json:"client"` // tls1.2-rsa, tls1.2-ecdsa, tls1.3
	Secret            string          `json:"secret"`
	Want              string          `json:"want"` // version
	Served            *ServedLeaf     `json:"served"`
	OK                bool            `json:"ok"`
	At                time.Time       `json:"at"`
	Seconds           *float64        `json:"seconds"`            // of the last handshake, from the dial on
	Attempts          int             `json:"attempts"`           // 0: given up, since nothing answers at the address
	Completed         bool            `json:"completed"`          // the handshake went to its end
	ClientCertificate bool            `json:"client_certificate"` // one is asked for: judged by the leaf
	Error             *HandshakeError `json:"error"`
}

// ServedLeaf is the certificate that a handshake showed.
type ServedLeaf struct {
	Serial   string    `json:"serial"`
	Version  *string   `json:"version"` // null: of none that is known
	SHA256   string    `json:"sha256"`
	NotAfter time.Time `json:"not_after"`
}

// HandshakeError is why a handshake does not show what is wanted.
type HandshakeError struct {
	Kind    string `json:"kind"` // old_leaf, other_leaf, chain, alert, refused, timeout, broken, protocol, no_roots
	Message string `json:"message"`
	Hint    string `json:"hint"`
}
