package admin

import "time"

// Secrets is the answer of `secrets list`.
type Secrets struct {
	Secrets []SecretHead `json:"secrets"`
}

// SecretHead is one secret with its newest version.
type SecretHead struct {
	Name     string     `json:"name"`
	Kind     string     `json:"kind"`
	Version  string     `json:"version"`
	Serial   *string    `json:"serial"`
	NotAfter *time.Time `json:"not_after"`
	Versions int        `json:"versions"`
	Source   string     `json:"source"`
}

// Secret is the answer of `secrets show` and `secrets history`.
type Secret struct {
	Name     string          `json:"name"`
	Kind     string          `json:"kind"`
	Versions []SecretVersion `json:"versions"` // the newest first
}

// SecretVersion is one stored version; it never holds anything private. What the kind does not have is null or empty.
type SecretVersion struct {
	Version   string     `json:"version"`
	State     string     `json:"state"` // current, previous, held, backup
	Created   time.Time  `json:"created"`
	Issuer    *string    `json:"issuer"`
	Profile   *string    `json:"profile"` // that the issuer was asked for; null where the choice was left to it, or it is not known
	Serial    *string    `json:"serial"`
	SHA256    *string    `json:"sha256"`
	DNSNames  []string   `json:"dns_names"`
	Addresses []string   `json:"ip_addresses"`
	NotBefore *time.Time `json:"not_before"`
	NotAfter  *time.Time `json:"not_after"`
	KeyType   *string    `json:"key_type"`
	ChainPEM  *string    `json:"chain_pem"` // of a validation context, its CA certificates
	Groups    []string   `json:"groups"`    // that are at it; a current version without any waits for its first wave
}

// ImportRequest hands in a pair; the command reads the files, the server never opens a path that a client names.
type ImportRequest struct {
	Name     string `json:"name"`
	ChainPEM string `json:"chain_pem"`
	KeyPEM   string `json:"key_pem"`
	Reason   string `json:"reason"`
}

// Accepted is the answer of `secrets import`.
type Accepted struct {
	Name     string  `json:"name"`
	Version  string  `json:"version"`
	Serial   string  `json:"serial"`
	Snapshot uint64  `json:"snapshot"`
	Rollout  *uint64 `json:"rollout"`
}

// Released is the answer of `secrets release`.
type Released struct {
	Name     string `json:"name"`
	Released int    `json:"released"`
}

// HoldRequest asks for a version to be held.
type HoldRequest struct {
	Version string `json:"version,omitempty"` // 12 or more digits; empty: the newest one
	Reason  string `json:"reason,omitempty"`
}

// HeldVersion is the answer of `secrets hold`.
type HeldVersion struct {
	Hold
	Rollouts []uint64 `json:"rollouts"` // that it has left
	Groups   []string `json:"groups"`   // that serve it, and go on to
	Already  bool     `json:"already"`
}
