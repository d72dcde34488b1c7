package budget

import (
	"context"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/sds-server/sds-server/pkg/store"
)

// keyPrefix begins all keys: budget/ISSUER/LIMIT/SCOPE for what an account has used up, budget/DIRECTORY/LIMIT/SCOPE for what all accounts
// at a CA share.
const keyPrefix = "budget"

const (
	// sweepInterval is how often buckets that are full again are deleted, mostSwept how many at one time.
	sweepInterval = time.Hour
	mostSwept     = 20 * chunk
)

// Book is what has been used up of all CAs. It is kept in memory and in the store, where every change is made first; another process may
// change the same store. Its methods may be called from several goroutines.
type Book struct {
	store store.Store
	log   *slog.Logger
	turn  chan struct{} // held by the one that changes the store

	mu sync.Mutex
	// The following are guarded by mu.
	entries map[string]*entry
	ledgers map[string]*Ledger
	queue   []*change // that wait for their turn
	swept   int64
}

// Open reads what has been used up. An entry that cannot be read counts as used up, and is logged.
func Open(ctx context.Context, s store.Store, log *slog.Logger) (*Book, error) {
	b := &Book{store: s, log: log, turn: make(chan struct{}, 1), entries: map[string]*entry{}, ledgers: map[string]*Ledger{}}
	entries, _, err := s.List(ctx, keyPrefix+"/")
	if err != nil {
		return nil, fmt.Errorf("budget: %w", err)
	}
	for _, raw := range entries {
		b.entries[raw.Key] = b.read(ctx, raw)
	}
	return b, nil
}

func (b *Book) read(ctx context.Context, raw store.Entry) *entry {
	e, err := decode(raw.Value, raw.Revision)
	if err != nil {
		b.log.ErrorContext(ctx, "what was used up of a limit of a CA cannot be read; it counts as used up now", "key", raw.Key, "err", err)
		e = &entry{damaged: true, revision: raw.Revision}
	}
	if parts := store.Parts(raw.Key); len(parts) == 4 {
		e.owner, e.of, e.scope = parts[1], parts[2], parts[3]
	}
	return e
}

// Ledger makes the ledger of an issuer: the one in force, where it has the same options.
func (b *Book) Ledger(o Options) (*Ledger, error) {
	r, err := newRules(o)
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if l := b.ledgers[o.Issuer]; l != nil && reflect.DeepEqual(l.rules.Options, r.Options) {
		return l, nil
	}
	return &Ledger{book: b, rules: r}, nil
}

// Set puts ledgers in force: they are those that Of finds, and that metrics tell of.
func (b *Book) Set(all []*Ledger) {
	ledgers := make(map[string]*Ledger, len(all))
	for _, l := range all {
		ledgers[l.rules.Issuer] = l
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ledgers = ledgers
}

// Of returns the ledger in force of an issuer; where there is none, one without limits.
func (b *Book) Of(issuer string) *Ledger {
	b.mu.Lock()
	defer b.mu.Unlock()
	if l := b.ledgers[issuer]; l != nil {
		return l
	}
	return &Ledger{book: b, rules: &rules{Options: Options{Issuer: issuer}}}
}

// sweep deletes entries that say nothing any more, now and then. What fails is tried again; it does no harm meanwhile.
func (b *Book) sweep(ctx context.Context, now int64) {
	b.mu.Lock()
	var old []*touched
	if now-b.swept >= int64(sweepInterval) || now < b.swept {
		b.swept = now
		limits := b.limits()
		for key, e := range b.entries {
			l := limits[[2]string{e.owner, e.of}]
			if l != nil {
				e.at(l, now)
			}
			if l != nil && !e.keep(now) || l == nil && e.last()+int64(longestRefusal) < now {
				old = append(old, &touched{touch: touch{key: key}, entry: e.clone()})
			}
			if len(old) == mostSwept {
				b.swept = now - int64(sweepInterval) + int64(time.Minute) // there are more
				break
			}
		}
	}
	b.mu.Unlock()
	for part := range slices.Chunk(old, chunk) {
		if err := b.write(ctx, now, part); err != nil {
			b.log.DebugContext(ctx, "full budgets were not deleted", "err", err)
			return
		}
	}
}

// limits lists the limits in force by owner and name; mu is held.
func (b *Book) limits() map[[2]string]*limit {
	out := map[[2]string]*limit{}
	for _, l := range b.ledgers {
		for name, one := range l.rules.limits {
			out[[2]string{l.rules.owner(name), name}] = one
		}
	}
	return out
}
