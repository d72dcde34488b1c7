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
	// Deadline is when it is overruled, because what is served ends soon.
	Deadline *time.Time `json:"deadline"`
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
	Waiting     *Waiting          `json:"waiting"`      // it is due, and something keeps it from being ordered
	RenewalInfo *RenewalInfo      `json:"renewal_info"` // what the CA suggests; null where it has not said anything
	Groups      []GroupVersion    `json:"groups"`
}

// Waiting is why a certificate that is due is not ordered.
type Waiting struct {
	Kind    *string   `json:"kind"` // budget, temporary; null for a pause such as a maintenance
	Message string    `json:"message"`
	Until   time.Time `json:"until"` // when it is tried again at the earliest
}

// RenewalInfo is the window in which the CA wants a certificate to be renewed (RFC 9773).
type RenewalInfo struct {
	Start       time.Time `json:"start"`
	End         time.Time `json:"end"`
	Explanation *string   `json:"explanation"` // URL of a page
	Asked       time.Time `json:"asked"`
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
	Name   string      `json:"name"`
	Up     bool        `json:"up"`
	Limits []Limit     `json:"limits"`
	Hold   *IssuerHold `json:"hold"` // why ordinary renewals wait there
}
