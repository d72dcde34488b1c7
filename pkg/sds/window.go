package sds

import (
	"slices"
	"time"

	"github.com/sds-server/sds-server/pkg/cache"
)

const (
	windowResponses = 32
	// windowBytes is below what grpc-go lets a stream queue before SendMsg blocks (64 KiB that are not on the wire yet): bytes that
	// were not acknowledged are at least those that were not written. So a stream never blocks in a send, and always sees the end of its
	// rights, however little its Envoy reads. The last response may exceed it, as it may in grpc-go.
	windowBytes = 64 << 10
)

// flight is one response that was not acknowledged yet.
type flight struct {
	nonce    uint64
	name     string
	resource *cache.Resource // nil: a removal
	nothing  bool            // it said nothing
	at       time.Time
	size     int
}

// window is the responses of one stream that are under way, in the order in which they were sent.
type window struct {
	flights []flight
	bytes   int
	limit   int    // responses
	echoed  uint64 // the newest nonce that came back
}

// open reports whether one more response may be sent.
func (w *window) open() bool { return len(w.flights) < w.limit && w.bytes < windowBytes }

func (w *window) add(f flight) {
	w.flights = append(w.flights, f)
	w.bytes += f.size
}

// take ends the flight with a nonce; false if there is none. A SotW request that echoes a nonce has seen all before it, too: they
// leave the window without being acknowledged.
func (w *window) take(nonce string, andEarlier bool) (flight, bool) {
	n, ok := parseNonce(nonce)
	if !ok {
		return flight{}, false
	}
	i := slices.IndexFunc(w.flights, func(f flight) bool { return f.nonce == n })
	if i < 0 {
		return flight{}, false
	}
	found, first := w.flights[i], i
	if andEarlier {
		first = 0
	}
	for _, f := range w.flights[first : i+1] {
		w.bytes -= f.size
	}
	w.flights = slices.Delete(w.flights, first, i+1)
	w.echoed = max(w.echoed, n)
	return found, true
}

// repeats reports whether a nonce is the newest that came back: a SotW Envoy that changes its names says it once more.
func (w *window) repeats(nonce string) bool {
	n, ok := parseNonce(nonce)
	return ok && n == w.echoed && n > 0
}
