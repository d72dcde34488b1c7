package admin

import "time"

// Nodes is the answer of `nodes`.
type Nodes struct {
	Nodes []Node `json:"nodes"`
}

// Node is one Envoy.
type Node struct {
	ID        string       `json:"id"`
	Group     string       `json:"group"`
	Identity  string       `json:"identity"`
	Transport string       `json:"transport"` // unix, tls, plaintext
	Protocol  string       `json:"protocol"`  // sotw, delta, ads-sotw, ads-delta
	Connected bool         `json:"connected"`
	Since     *time.Time   `json:"since"`
	Snapshot  uint64       `json:"snapshot"`
	State     string       `json:"state"` // SYNCED, STALE, NACKED, OFFLINE
	Secrets   []NodeSecret `json:"secrets"`
}

// NodeSecret is how a node stands with one name that it subscribes to.
type NodeSecret struct {
	Name   string     `json:"name"`
	Want   *string    `json:"want"`
	Sent   *VersionAt `json:"sent"`
	Acked  *VersionAt `json:"acked"`
	Nacked *NackedAt  `json:"nacked"`
	Served *ServedAt  `json:"served"`
	// CoveredBy is the secret of which it is given the certificate, where that is not the one of this name.
	CoveredBy *string `json:"covered_by"`
}

// VersionAt is a version at a time.
type VersionAt struct {
	Version string    `json:"version"`
	At      time.Time `json:"at"`
}

// NackedAt is a refused version with Envoy's message.
type NackedAt struct {
	Version string    `json:"version"`
	At      time.Time `json:"at"`
	Message string    `json:"message"`
	Secret  *string   `json:"secret"` // of which it is a version, where that is not the one of this name
}

// ServedAt is what a handshake saw.
type ServedAt struct {
	Serial  string    `json:"serial"`
	Version *string   `json:"version"`
	At      time.Time `json:"at"`
}

// IdentityRequest asks for a node certificate.
type IdentityRequest struct {
	Group       string `json:"group"`
	Node        string `json:"node"`
	Days        int    `json:"days"`
	LifeSeconds int64  `json:"life_seconds,omitempty"` // instead of days
	CSRPEM      string `json:"csr_pem"`
}

// IdentityRenewal asks for a new certificate of the node that the old one was made for.
type IdentityRenewal struct {
	CertPEM string `json:"cert_pem"` // the old one
	CSRPEM  string `json:"csr_pem"`  // for the new key
}

// Identity is a signed node certificate.
type Identity struct {
	Identity string    `json:"identity"`
	Group    string    `json:"group"`
	Node     string    `json:"node"`
	CertPEM  string    `json:"cert_pem"`
	CAPEM    string    `json:"ca_pem"`
	NotAfter time.Time `json:"not_after"`
}

// BootstrapInfo is what the bootstrap of a group's Envoy is made of.
type BootstrapInfo struct {
	Group     string            `json:"group"`
	Listener  string            `json:"listener"` // address of the SDS listener for the group
	Unix      bool              `json:"unix"`
	Challenge string            `json:"challenge"` // address of the HTTP-01 responder; empty if there is none
	Secrets   []BootstrapSecret `json:"secrets"`
	Server    []string          `json:"server_names"` // of the server's certificate
	Plaintext bool              `json:"plaintext"`    // loopback TCP without TLS
}

// BootstrapSecret is a secret that the group may have.
type BootstrapSecret struct {
	Name     string   `json:"name"`
	DNSNames []string `json:"dns_names"`
}
