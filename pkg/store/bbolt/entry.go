package bbolt

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"

	bolt "go.etcd.io/bbolt"

	"github.com/sds-server/sds-server/pkg/store"
)

const (
	// format is the version of the layout; another one is refused, never guessed at.
	format = "1"
	// headerBytes is the revision and the CRC in front of each value.
	headerBytes = 8 + 4
)

// Names in the file.
var (
	metaBucket    = []byte("meta")
	formatKey     = []byte("format")
	stateKey      = []byte("state")
	entriesBucket = []byte("entries")
	castagnoli    = crc32.MakeTable(crc32.Castagnoli)
)

// change is what one transaction did.
type change struct {
	revision int64
	events   []store.Event
	// applied is true once all operations are in the transaction: an error after that is one of the medium.
	applied bool
}

// apply checks conditions and applies operations within the caller's transaction. Operations that change nothing (deletions
// of absent keys) leave no event and, alone, give errUnchanged with the current revision.
func apply(tx *bolt.Tx, conditions []store.Condition, operations []store.Operation) (change, error) {
	entries := tx.Bucket(entriesBucket)
	if err := holds(entries, conditions); err != nil {
		return change{}, err
	}
	now, err := readState(tx)
	if err != nil {
		return change{}, err
	}
	before := now.revision
	now.revision++
	events := make([]store.Event, 0, len(operations))
	for _, o := range operations {
		event, changed, err := applyOne(entries, o, &now)
		if err != nil {
			return change{}, err
		}
		if changed {
			events = append(events, event)
		}
	}
	if len(events) == 0 {
		return change{revision: before}, errUnchanged
	}
	if err := now.write(tx); err != nil {
		return change{}, err
	}
	return change{revision: now.revision, events: events, applied: true}, nil
}

// applyOne applies one operation at now.revision and keeps the tally of now; changed is false if there was nothing to delete.
func applyOne(entries *bolt.Bucket, o store.Operation, now *state) (event store.Event, changed bool, err error) {
	key := []byte(o.Key)
	event.Entry = store.Entry{Key: o.Key, Revision: now.revision}
	old := entries.Get(key)
	if old != nil {
		if _, _, err := split(key, old); err != nil {
			return event, false, err
		}
		now.remove(old)
	}
	if o.Delete {
		event.Deleted = true
		if old == nil {
			return event, false, nil
		}
		return event, true, entries.Delete(key)
	}
	raw := encode(key, o.Value, now.revision)
	now.add(raw)
	event.Value = raw[headerBytes:]
	return event, true, entries.Put(key, raw)
}

// state is the one record beside the entries: the revision of the last commit and a tally, how many entries there are and
// the sum of their CRCs. The tally shows Check that entries are missing or old, which neither their CRCs nor bbolt's own
// check can.
type state struct {
	revision   int64
	count, sum uint64
}

func (s *state) add(raw []byte) {
	s.count++
	s.sum += uint64(binary.BigEndian.Uint32(raw[8:]))
}

func (s *state) remove(raw []byte) {
	s.count--
	s.sum -= uint64(binary.BigEndian.Uint32(raw[8:]))
}

// write puts s, and a CRC of it, into the transaction.
func (s *state) write(tx *bolt.Tx) error {
	raw := binary.BigEndian.AppendUint64(nil, uint64(s.revision))
	raw = binary.BigEndian.AppendUint64(raw, s.count)
	raw = binary.BigEndian.AppendUint64(raw, s.sum)
	raw = binary.BigEndian.AppendUint32(raw, crc32.Checksum(raw, castagnoli))
	return tx.Bucket(metaBucket).Put(stateKey, raw)
}

func readState(tx *bolt.Tx) (state, error) {
	raw := tx.Bucket(metaBucket).Get(stateKey)
	const size = 3 * 8
	if len(raw) != size+4 || binary.BigEndian.Uint32(raw[size:]) != crc32.Checksum(raw[:size], castagnoli) {
		return state{}, damaged(tx.DB().Path(), "its revision cannot be read", nil)
	}
	return state{
		revision: int64(binary.BigEndian.Uint64(raw)),
		count:    binary.BigEndian.Uint64(raw[8:]),
		sum:      binary.BigEndian.Uint64(raw[16:]),
	}, nil
}

// holds returns store.ErrConflict, with the key, for the first condition that does not hold.
func holds(entries *bolt.Bucket, conditions []store.Condition) error {
	for _, c := range conditions {
		key := []byte(c.Key)
		var revision int64
		if raw := entries.Get(key); raw != nil {
			_, r, err := split(key, raw)
			if err != nil {
				return err
			}
			revision = r
		}
		if revision != c.Revision {
			return fmt.Errorf("%q: %w", c.Key, store.ErrConflict)
		}
	}
	return nil
}

// encode returns the bytes that are stored at key.
func encode(key, value []byte, revision int64) []byte {
	raw := make([]byte, headerBytes+len(value))
	binary.BigEndian.PutUint64(raw, uint64(revision))
	copy(raw[headerBytes:], value)
	binary.BigEndian.PutUint32(raw[8:], checksum(key, raw))
	return raw
}

// decode returns the entry that raw holds, as a copy.
func decode(key, raw []byte) (store.Entry, error) {
	value, revision, err := split(key, raw)
	if err != nil {
		return store.Entry{}, err
	}
	return store.Entry{Key: string(key), Value: bytes.Clone(value), Revision: revision}, nil
}

// split checks raw and returns its value, which lies in raw, and its revision.
func split(key, raw []byte) ([]byte, int64, error) {
	if len(raw) < headerBytes || binary.BigEndian.Uint32(raw[8:]) != checksum(key, raw) {
		return nil, 0, &store.Fault{
			Path: string(key), Message: "entry is damaged: its checksum does not match",
			Hint: "restore the store from a copy; `sds-server store check` lists what is damaged",
		}
	}
	return raw[headerBytes:], int64(binary.BigEndian.Uint64(raw)), nil
}

// checksum covers the key, the revision and the value, but not its own four bytes.
func checksum(key, raw []byte) uint32 {
	sum := crc32.Update(0, castagnoli, key)
	sum = crc32.Update(sum, castagnoli, raw[:8])
	return crc32.Update(sum, castagnoli, raw[headerBytes:])
}
