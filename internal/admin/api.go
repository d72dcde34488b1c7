// Package admin is the operator API: HTTP and JSON on a Unix socket, for the command line.
//
// It reads every part of the server and acts through the rollout controller and the issuance loop; it holds no state. Peers are root,
// our own user, and the configured users (SO_PEERCRED). It never opens a path that a client names, and no answer holds a key.
package admin

import (
	"time"

	"github.com/sds-server/sds-server/pkg/rollout"
)

// Error is what a failed request answers, and what `-o json` prints on standard error.
type Error struct {
	Message string `json:"error"`
	Hint    string `json:"hint"`
}

func (e *Error) Error() string { return e.Message }

// Status is the answer of `status`.
type Status struct {
	Version        string              `json:"version"`
	Leader         bool                `json:"leader"`
	Ready          bool                `json:"ready"`
	Config         ConfigStatus        `json:"config"`
	SnapshotLatest uint64              `json:"snapshot_latest"`
	Certificates   []CertificateStatus `json:"certificates"`
	Secrets        []SecretStatus      `json:"secrets"` // the configured ones that are no certificates
	Groups         []GroupStatus       `json:"groups"`
	Rollouts       []RolloutState      `json:"rollouts"`
	Issuers        []IssuerStatus      `json:"issuers"`
	Held           []Hold              `json:"held"`
}

// Hold is a version that is kept back.
type Hold struct {
	Secret  string           `json:"secret"`
	Version string           `json:"version"`
	Kind    rollout.HoldKind `json:"kind"`
	Reason  string           `json:"reason"`
	Since   time.Time        `json:"since"`
}

// ConfigStatus tells about the last load of the configuration.
type ConfigStatus struct {
	OK       bool      `json:"ok"`
	LoadedAt time.Time `json:"loaded_at"`
	Error    *string   `json:"error"`
}

// CertificateStatus is one configured certificate.
type CertificateStatus struct {
	Name        string            `json:"name"`
	State       string            `json:"state"` // pending, ok, renewing, failing, expired
	Version     *string           `json:"version"`
	Serial      *string           `json:"serial"`
	Issuer      *string           `json:"issuer"`
	NotBefore   *time.Time        `json:"not_before"`
	NotAfter    *time.Time        `json:"not_after"`
	NextRenewal *time.Time        `json:"next_renewal"`
	LastRenewal *time.Time        `json:"last_renewal"`
	Error       *CertificateError `json:"error"`
	Groups      []GroupVersion    `json:"groups"`
}

// SecretStatus is one configured secret that no CA issues.
type SecretStatus struct {
	Name         string         `json:"name"`
	Kind         string         `json:"kind"`
	State        string         `json:"state"` // pending, ok, learning (session ticket keys), held, failing, expired
	Version      *string        `json:"version"`
	NotAfter     *time.Time     `json:"not_after"`     // of the CA certificate that ends next
	NextRotation *time.Time     `json:"next_rotation"` // of session ticket keys
	Error        *string        `json:"error"`
	Groups       []GroupVersion `json:"groups"`
}

// CertificateError is the last failure of an order that no success followed.
type CertificateError struct {
	Kind     string    `json:"kind"`
	Message  string    `json:"message"`
	At       time.Time `json:"at"`
	Attempts int       `json:"attempts"`
}

// GroupVersion is what a group serves under a secret's name.
type GroupVersion struct {
	Name    string  `json:"name"`
	Version *string `json:"version"`
}

// GroupStatus counts a group's nodes.
type GroupStatus struct {
	Name      string `json:"name"`
	Snapshot  uint64 `json:"snapshot"`
	Connected int    `json:"connected"`
	Synced    int    `json:"synced"`
	Stale     int    `json:"stale"`
	Nacked    int    `json:"nacked"`
}

// RolloutState is a rollout under way.
type RolloutState struct {
	ID    uint64        `json:"id"`
	State rollout.State `json:"state"`
}

// IssuerStatus is one configured issuer.
type IssuerStatus struct {
	Name   string  `json:"name"`
	Up     bool    `json:"up"`
	Limits []Limit `json:"limits"`
}

// Limit is one budget of an issuer.
type Limit struct {
	Name      string     `json:"name"`
	Available int        `json:"available"`
	Capacity  int        `json:"capacity"`
	FullAt    *time.Time `json:"full_at"`
}

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

// Snapshots is the answer of `snapshots list`.
type Snapshots struct {
	Snapshots []SnapshotHead `json:"snapshots"`
}

// SnapshotHead is a snapshot without its secrets.
type SnapshotHead struct {
	Number  uint64   `json:"number"`
	Parent  *uint64  `json:"parent"`
	Reason  string   `json:"reason"`
	Created string   `json:"created"`
	Groups  []string `json:"groups"` // that are at it
}

// Snapshot is the answer of `snapshots show`.
type Snapshot struct {
	Number  uint64        `json:"number"`
	Parent  *uint64       `json:"parent"`
	Reason  string        `json:"reason"`
	Created time.Time     `json:"created"`
	Secrets []NameVersion `json:"secrets"`
}

// NameVersion is a secret in a snapshot.
type NameVersion struct {
	Name    string `json:"name"`
	Version string `json:"version"`
}

// Diff is the answer of `snapshots diff`.
type Diff struct {
	From    uint64      `json:"from"`
	To      uint64      `json:"to"`
	Changes []DiffEntry `json:"changes"`
}

// DiffEntry is one secret that differs; null is absent.
type DiffEntry struct {
	Secret string  `json:"secret"`
	From   *string `json:"from"`
	To     *string `json:"to"`
}

// Rollouts is the answer of `rollout status` and `rollout history`.
type Rollouts struct {
	Rollouts []Rollout `json:"rollouts"`
}

// Rollout is one rollout as it is printed.
type Rollout struct {
	ID       uint64        `json:"id"`
	State    rollout.State `json:"state"`
	Reason   string        `json:"reason"`
	Started  time.Time     `json:"started"`
	Deadline *time.Time    `json:"deadline"`
	Change   []Change      `json:"change"`
	Wave     int           `json:"wave"` // index of the wave under way; their number when all are done
	Waves    []Wave        `json:"waves"`
	Log      []Event       `json:"log"` // the oldest first
}

// Event is one transition of a rollout; by is null for the server itself.
type Event struct {
	At     time.Time     `json:"at"`
	State  rollout.State `json:"state"`
	Reason string        `json:"reason"`
	By     *string       `json:"by"`
}

// Change is one secret of a rollout; null is absent.
type Change struct {
	Secret string       `json:"secret"`
	From   *string      `json:"from"`
	To     *string      `json:"to"`
	Kind   rollout.Kind `json:"kind"`
}

// Wave is one wave of a rollout.
type Wave struct {
	Groups     []string      `json:"groups"`
	State      rollout.State `json:"state"`
	Snapshot   *uint64       `json:"snapshot"`
	Ends       *time.Time    `json:"ends"`
	Nodes      rollout.Nodes `json:"nodes"`
	Handshakes Handshakes    `json:"handshakes"`
	Gates      []struct{}    `json:"gates"`
}

// Handshakes counts the verifying handshakes of a wave.
type Handshakes struct {
	OK        int     `json:"ok"`
	Failed    int     `json:"failed"`
	LastError *string `json:"last_error"`
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

// GroupRequest asks for a promotion or a rollback of a group.
type GroupRequest struct {
	Group   string `json:"group"`
	Rollout uint64 `json:"rollout,omitempty"`
	To      uint64 `json:"to,omitempty"`
	Reason  string `json:"reason,omitempty"`
}

// Promotion is the answer of `promote`.
type Promotion struct {
	Group    string   `json:"group"`
	Rollouts []uint64 `json:"rollouts"` // let go, the oldest first
	Changes  []string `json:"changes"`  // each in words
	Groups   []string `json:"groups"`   // that move with it, earlier waves first
	Snapshot uint64   `json:"snapshot"` // where the group is now
	Already  bool     `json:"already"`  // nothing waited, and there is nothing newer
}

// Step is the answer of `rollback` and of `promote --to`.
type Step struct {
	Group    string      `json:"group"`
	From     uint64      `json:"from"` // snapshot before
	Snapshot uint64      `json:"snapshot"`
	Rollouts []uint64    `json:"rollouts"` // under way, that this has ended
	Changes  []DiffEntry `json:"changes"`
	Held     []string    `json:"held"` // versions taken back, as "secret version"
}

// RenewRequest asks for a renewal; the answer is a stream of Renewal lines, the last of which has Done or Error set.
type RenewRequest struct {
	Name   string `json:"name"`
	Force  bool   `json:"force"`
	Wait   string `json:"wait"` // "" (start only), issued, done
	Reason string `json:"reason"`
}

// Renewal is one line of progress of a renewal.
type Renewal struct {
	Step   string   `json:"step,omitempty"` // what is going on
	Result *Renewed `json:"result,omitempty"`
	Error  *Error   `json:"error,omitempty"`
}

// Renewed is the answer of `renew --wait`.
type Renewed struct {
	Name          string   `json:"name"`
	Version       *string  `json:"version"`
	Serial        *string  `json:"serial"`
	Snapshot      *uint64  `json:"snapshot"`
	Rollout       *uint64  `json:"rollout"`
	IssuedSeconds *float64 `json:"issued_seconds"`
	DoneSeconds   *float64 `json:"done_seconds"`
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

// Released is the answer of `secrets release`.
type Released struct {
	Name     string `json:"name"`
	Released int    `json:"released"`
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
