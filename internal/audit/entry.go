package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

// The events that this package records itself. Those of the server's parts are named where they are recorded.
const (
	// EventBegins is the first entry of a file from which older entries were dropped. It stands in place of the last of them: Seq is its
	// number, and Prev its hash. The next entry refers to that, not to this one.
	EventBegins = "audit_begins"
	// EventPruned says, at its place in the chain, which entries were dropped: by it an EventBegins is believed.
	EventPruned = "audit_pruned"
	// EventRepaired says that an unfinished entry at the end was cut off, as a crash leaves it.
	EventRepaired = "audit_repaired"
	// EventResumed says that the file can be written again, and how many entries were lost meanwhile.
	EventResumed = "audit_resumed"
)

const (
	// maxLine bounds a line, in bytes.
	maxLine = 4 << 20
	// maxDetail is how much of Entry.Detail is kept, in bytes.
	maxDetail = 4 << 10
)

// genesis is Prev of the first entry there is.
var genesis = strings.Repeat("0", sha256.Size*2)

// Entry is one event. An empty field is one that the event does not have.
type Entry struct {
	Seq     uint64    // from 1, without gaps; given when it is written
	At      time.Time // when it happened; given when it is recorded, if zero
	Event   string    // such as push or rollout_moving
	Who     string    // operator as the admin socket authenticated it; empty: the server itself
	Secret  string
	Version string   // 64 hex digits
	Nodes   []string // ids of Envoys
	Group   string   // of several they stand in one text, separated by commas
	Detail  string   // for people
	Prev    string   // Hash of the entry before; 64 zeros in the first one
	Hash    string   // see seal
}

// record is an entry as it stands in the file and in answers: the members in this order, what is absent is null.
type record struct {
	Seq     uint64   `json:"seq"`
	At      string   `json:"at"`
	Event   string   `json:"event"`
	Who     *string  `json:"who"`
	Secret  *string  `json:"secret"`
	Version *string  `json:"version"`
	Nodes   []string `json:"nodes"`
	Group   *string  `json:"group"`
	Detail  *string  `json:"detail"`
	Prev    string   `json:"prev"`
	Hash    *string  `json:"hash,omitempty"`
}

// MarshalJSON implements json.Marshaler: the form of the file.
func (e Entry) MarshalJSON() ([]byte, error) {
	r := record{
		Seq: e.Seq, At: e.At.UTC().Format(time.RFC3339Nano), Event: e.Event, Who: optional(e.Who), Secret: optional(e.Secret), Version: optional(e.Version),
		Nodes: append([]string{}, e.Nodes...), Group: optional(e.Group), Detail: optional(e.Detail), Prev: e.Prev, Hash: optional(e.Hash),
	}
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(r); err != nil {
		return nil, fmt.Errorf("encode audit entry: %w", err)
	}
	return bytes.TrimSuffix(out.Bytes(), []byte("\n")), nil
}

// UnmarshalJSON implements json.Unmarshaler. Members that are not known are left out: later versions may have more.
func (e *Entry) UnmarshalJSON(b []byte) error {
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return err
	}
	at, err := time.Parse(time.RFC3339Nano, r.At)
	if err != nil {
		return fmt.Errorf("time of audit entry: %w", err)
	}
	*e = Entry{
		Seq: r.Seq, At: at, Event: r.Event, Who: value(r.Who), Secret: value(r.Secret), Version: value(r.Version), Nodes: r.Nodes,
		Group: value(r.Group), Detail: value(r.Detail), Prev: r.Prev, Hash: value(r.Hash),
	}
	return nil
}

func optional(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func value(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// What stands around the hash at the end of a line.
const (
	hashOpen  = `,"hash":"`
	hashClose = `"}`
	hashWidth = len(hashOpen) + sha256.Size*2 + len(hashClose)
)

// seal completes an entry and returns its line. What is hashed is the line as it stands in the file, without its line end and without the hash
// member, which is the last one: the bytes before `,"hash":"`, and `}`. The hash is SHA-256, in lower-case hex.
func (e *Entry) seal() ([]byte, error) {
	if len(e.Detail) > maxDetail {
		e.Detail = e.Detail[:maxDetail]
	}
	e.Hash = ""
	body, err := e.MarshalJSON()
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(body)
	e.Hash = hex.EncodeToString(sum[:])
	line := append(body[:len(body)-1], hashOpen...)
	return append(append(append(line, e.Hash...), hashClose...), '\n'), nil
}

var (
	errNoEntry = errors.New("it is no entry")
	errChanged = errors.New("its hash does not fit: it was changed")
)

// parse reads a line without its end, and checks its own hash; the entry's place in the chain is not looked at.
func parse(line []byte) (Entry, error) {
	var e Entry
	at := len(line) - hashWidth
	if at < 1 || string(line[at:at+len(hashOpen)]) != hashOpen || !bytes.HasSuffix(line, []byte(hashClose)) {
		return e, errNoEntry
	}
	body := append(bytes.Clone(line[:at]), '}')
	sum := sha256.Sum256(body)
	stated := string(line[at+len(hashOpen) : len(line)-len(hashClose)])
	if stated != hex.EncodeToString(sum[:]) {
		return e, errChanged
	}
	if err := json.Unmarshal(body, &e); err != nil {
		return e, errNoEntry
	}
	e.Hash = stated
	return e, nil
}
