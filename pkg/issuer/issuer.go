// Package issuer keeps the configured certificates fresh: it decides what is due, asks the certificate's issuer for a new one,
// and hands it to the sink that stores it and starts its way through the fleet.
//
// It stands second in the flow, between the configuration and the store: [Loop] holds one due time for each certificate, a few
// workers order what is due (package acme, below this one, speaks to the CA), and the sink commits the new version together with
// the loop's own state.
//
// Invariants: one order at a time for a certificate; no certificate that the store has is ordered again before it is due,
// whatever crashes in between, because its state is committed together with it; a failing certificate delays no other one; every
// failure leads to another try at a known time; the heartbeat stops only when the loop has stopped.
package issuer

import (
	"context"
	"net/netip"

	"github.com/sds-server/sds-server/pkg/secret"
	"github.com/sds-server/sds-server/pkg/store"
)

// Certificate is one configured certificate.
type Certificate struct {
	// Name is the SDS resource name.
	Name string
	// DNSNames and IPAddresses are what the certificate has to cover; together at least one. DNS names are lower case.
	DNSNames    []string
	IPAddresses []netip.Addr
	// Issuer is the name of the issuer that it is ordered from.
	Issuer string
	// KeyType is "ecdsa-p256", "ecdsa-p384", "rsa-2048", "rsa-3072" or "rsa-4096".
	KeyType string
	// Profile is asked of the CA; empty means the issuer's own default.
	Profile string
	// RenewBefore makes the renewal earlier than the rule of [NextRenewal]; it never makes it later.
	RenewBefore RenewBefore
}

// Request is what an Issuer is asked for.
type Request struct {
	// Secret is the name of the certificate.
	Secret string
	// DNSNames and IPAddresses are as in Certificate.
	DNSNames    []string
	IPAddresses []netip.Addr
	KeyType     string
	Profile     string
	// Replaces is the identifier (RFC 9773, Section 4.1) of the certificate that this one replaces, where the same CA has issued it;
	// otherwise empty.
	Replaces string
	// InWindow reports whether now is inside of that certificate's suggested window.
	InWindow bool
	// Urgent may use what the budget keeps back for emergencies.
	Urgent bool
	// Progress is told each step as it begins; nil tells nobody. It returns at once and may be called from any goroutine.
	Progress func(Step)
	// Profiled is told, before Obtain returns a certificate, the profile that it was ordered with (empty: the CA's choice): the issuer's own default
	// where Profile names none, and another one than both where the order is from before a change of the configuration. Nil tells nobody.
	Profiled func(profile string)
}

// Step is where an order stands.
type Step string

// The steps in their order. StepQueued and StepStoring are the loop's, the others the issuer's.
const (
	StepQueued      Step = "queued"
	StepOrdering    Step = "ordering"
	StepChallenges  Step = "challenges"
	StepFinalizing  Step = "finalizing"
	StepDownloading Step = "downloading"
	StepStoring     Step = "storing"
)

// Issuer obtains certificates from one CA. Obtain is called concurrently for different secrets, never for one secret at a time
// twice. It returns a secret that was validated against the request, with a key that was made for this order alone.
//
// What an implementation needs to go on after a crash it keeps in the store at OrderKey(request.Secret), and nowhere else: the
// loop deletes this key in the commit that stores the secret, so that until then Obtain can be called again and returns the same
// certificate. An order that leads nowhere any more is deleted by the implementation itself.
//
// Errors are *Error, or the cause of ctx when that has ended. The caller retries, never before Error.RetryAfter.
type Issuer interface {
	Obtain(ctx context.Context, request Request) (*secret.Secret, error)
}

// Sink takes what was issued. When Accept returns nil, the secret and all Operations are durable, in one commit that held the
// Conditions. When it returns an error, nothing of it was committed, or all of it was and the answer got lost: the loop looks.
// It is called concurrently for different secrets.
type Sink interface {
	Accept(ctx context.Context, issued Issued) (Accepted, error)
}

// Issued is a new certificate on its way into the store.
type Issued struct {
	Secret *secret.Secret
	// Issuer is the name of the issuer that it comes from.
	Issuer string
	// Profile is the one that it was ordered with; nil where the issuer does not say.
	Profile *string
	// Conditions and Operations belong into the commit that stores the secret's version: at most two of each, under 4 KiB.
	Conditions []store.Condition
	Operations []store.Operation
}

// Accepted says what became of a certificate.
type Accepted struct {
	Version secret.Version
	// Snapshot is the number of the snapshot that has it, Rollout the id of the rollout that carries it; 0 where there is none.
	Snapshot uint64
	Rollout  uint64
}

// OrderKey is the store key of the order that is under way for a secret; see [Issuer].
func OrderKey(name string) string { return store.Key("order", name) }

// StateKey is the store key of what the loop knows about a certificate; see [State]. Whoever removes a secret's versions from
// the store deletes it in the same commit, otherwise the certificate is not ordered again when it is configured again.
func StateKey(name string) string { return store.Key("certificate", name) }

// AccountKey is the store key of the account that an issuer has at its CA.
func AccountKey(issuer string) string { return store.Key("account", issuer) }
