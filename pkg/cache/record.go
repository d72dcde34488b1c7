package cache

import (
	"cmp"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/sds-server/sds-server/pkg/secret"
	"github.com/sds-server/sds-server/pkg/store"
)

// Where things stand in the store.
const (
	secretPrefix   = "secret"
	snapshotPrefix = "snapshot"
	pagePrefix     = "snapshot-page"
	groupPrefix    = "group"
	versionKeyPath = "meta/version-key"
)

// versionKeyBytes is the size of the key of the version HMAC.
const versionKeyBytes = 32

// Source says where a secret version came from.
type Source string

// The sources of a secret version.
const (
	SourceACME   Source = "acme"   // issued by this server
	SourceImport Source = "import" // handed in by an operator
	SourceFile   Source = "file"   // read from files that the configuration names
	SourceServer Source = "server" // made by this server itself: session ticket keys
)

// Origin says where a secret comes from; its fields are those of Meta.
type Origin struct {
	Source  Source
	Issuer  string
	Profile *string
}

// Meta describes one stored version of a secret. It holds nothing private; what the kind does not have is empty.
type Meta struct {
	Name        string         `json:"name"`
	Kind        secret.Kind    `json:"kind"`
	Version     secret.Version `json:"version"`
	Created     time.Time      `json:"created"` // just before the commit that stored it; strictly growing for one name
	Source      Source         `json:"source"`
	Issuer      string         `json:"issuer,omitempty"`  // configured name of the issuer; empty for imports
	Profile     *string        `json:"profile,omitempty"` // that the issuer was asked for; empty: its choice; nil: not known, as of old versions and imports
	Serial      string         `json:"serial"`            // lower-case hex
	SHA256      string         `json:"sha256"`            // of the leaf's DER; of a validation context, of ChainPEM
	DNSNames    []string       `json:"dns_names"`
	IPAddresses []string       `json:"ip_addresses,omitempty"`
	NotBefore   time.Time      `json:"not_before"`
	NotAfter    time.Time      `json:"not_after"` // zero: it never ends
	KeyType     string         `json:"key_type"`
	ChainPEM    string         `json:"chain_pem"` // of a validation context, its CA certificates
}

// Ended reports whether a version can no longer be used at now.
func (m Meta) Ended(now time.Time) bool { return !m.NotAfter.IsZero() && !now.Before(m.NotAfter) }

// record is a stored version: Meta and what is private, which leaves this package only inside a Resource.
type record struct {
	Meta
	KeyPEM     string   `json:"key_pem,omitempty"`
	TicketKeys [][]byte `json:"ticket_keys,omitempty"`
	Generic    []byte   `json:"generic,omitempty"`
}

func newRecord(meta Meta, s *secret.Secret) record {
	return record{Meta: meta, KeyPEM: string(s.KeyPEM()), TicketKeys: s.TicketKeys(), Generic: s.Generic()}
}

func describe(s *secret.Secret, version secret.Version, from Origin, now time.Time) Meta {
	m := Meta{
		Name: s.Name(), Kind: s.Kind(), Version: version, Created: now.UTC(), Source: from.Source, Issuer: from.Issuer, Profile: from.Profile,
		Serial: s.Serial(), SHA256: s.SHA256(), DNSNames: s.DNSNames(), NotBefore: s.NotBefore().UTC(), NotAfter: s.NotAfter().UTC(),
		KeyType: s.KeyType(), ChainPEM: string(s.ChainPEM()),
	}
	for _, ip := range s.IPAddresses() {
		m.IPAddresses = append(m.IPAddresses, ip.String())
	}
	return m
}

func newestFirst(a, b Meta) int {
	return cmp.Or(strings.Compare(a.Name, b.Name), b.Created.Compare(a.Created), strings.Compare(string(a.Version), string(b.Version)))
}

func secretKey(name string, version secret.Version) string {
	return store.Key(secretPrefix, name, string(version))
}

// snapshotRecord is a stored snapshot: the difference to its parent, or the full set. Sets too large for one commit stand in pages.
type snapshotRecord struct {
	Number  uint64                    `json:"number"`
	Parent  uint64                    `json:"parent,omitempty"`
	Reason  string                    `json:"reason"`
	Created time.Time                 `json:"created"`
	Digest  string                    `json:"digest"` // hex of Set.digest
	Full    bool                      `json:"full,omitempty"`
	Entries map[string]secret.Version `json:"entries,omitempty"` // an empty version removes the name
	Pages   int                       `json:"pages,omitempty"`   // entries stand under pageKey(number, 0..Pages-1) instead
}

func snapshotKey(number uint64) string {
	return store.Key(snapshotPrefix, fmt.Sprintf("%020d", number))
}

func pageKey(number uint64, page int) string {
	return store.Key(pagePrefix, fmt.Sprintf("%020d", number), strconv.Itoa(page))
}

// groupRecord is where a group is at, and how it came there.
type groupRecord struct {
	Name     string    `json:"name"`
	Snapshot uint64    `json:"snapshot"`
	Moved    time.Time `json:"moved"`
	Moves    []Move    `json:"moves,omitempty"` // the last keptMoves moves forward, oldest first
}

// keptMoves is how many moves of a group can be taken back, one after another.
const keptMoves = 16

// keptEntries is how many entries a stored move may have; the entries of a larger one are the difference of its snapshots.
const keptEntries = 16

// Move is one change of a group, as it was for this group.
type Move struct {
	Rollout uint64    `json:"rollout"` // 0: not by a rollout
	From    uint64    `json:"from"`    // snapshot before
	To      uint64    `json:"to"`      // snapshot after
	At      time.Time `json:"at"`
	Entries []Entry   `json:"entries,omitempty"` // absent where there are many; see Cache.Entries
}

// Entry is one secret of a change: From is what stood there before, To what stands there after. Empty means absent.
type Entry struct {
	Secret string         `json:"secret"`
	From   secret.Version `json:"from"`
	To     secret.Version `json:"to"`
}

func groupKey(name string) string { return store.Key(groupPrefix, name) }

func decode(e store.Entry, into any) error {
	if err := json.Unmarshal(e.Value, into); err != nil {
		return fmt.Errorf("stored value at %s: %w", e.Key, err)
	}
	return nil
}

// now is the wall clock in UTC, as records hold it.
func now() time.Time { return time.Now().UTC() }

// mustJSON encodes the package's own record types, which always encode.
func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("encode %T: %v", v, err))
	}
	return b
}
