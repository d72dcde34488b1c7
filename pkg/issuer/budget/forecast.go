package budget

import (
	"container/heap"
	"net/netip"
	"time"

	"github.com/sds-server/sds-server/pkg/issuer"
)

// Wanted is a certificate that a forecast is about.
type Wanted struct {
	Name        string
	DNSNames    []string
	IPAddresses []netip.Addr
}

// Fit is when a certificate can be ordered.
type Fit struct {
	Name string
	// At is now where it fits at once.
	At time.Time
	// Limit and Scope are what it has to wait for; empty where it fits at once.
	Limit, Scope string
}

// Forecast says when each of the certificates could be issued again if all of them had to be, from now on: a mass revocation. The most urgent
// one comes first in wanted, and is ordered first; the reserve may be used. It is a simulation on a copy of the ledger. The windows that a CA
// suggests after a revocation have passed already, so only the exemption for the same identifiers counts. The result is in the order of wanted.
func (l *Ledger) Forecast(now time.Time, wanted []Wanted) []Fit {
	fits := make([]Fit, len(wanted))
	for i, w := range wanted {
		fits[i] = Fit{Name: w.Name, At: now}
	}
	f := &forecast{fits: fits, waiting: map[string]*waiting{}}
	f.prepare(l.book, l.rules, now.UnixNano(), wanted)
	for i := range wanted {
		f.try(i, now.UnixNano())
	}
	for len(f.wakes) > 0 {
		f.serve(f.wakes[0].at)
	}
	return fits
}

// forecast is a simulation. Its time goes from one moment to the next at which a bucket has room for the most urgent one that waits for it.
type forecast struct {
	fits    []Fit
	of      [][]*simulated      // by certificate
	waiting map[string]*waiting // by key of the bucket
	wakes   wakes
}

// simulated is a bucket of the copy, shared by all certificates that it is about.
type simulated struct {
	touch
	*entry
}

// waiting is what waits for one bucket.
type waiting struct {
	bucket *simulated
	queue  ints // certificates, the most urgent first
	wake   int64
}

// prepare copies what the certificates are about. Buckets that are only checked and have nothing used up are left out.
func (f *forecast) prepare(b *Book, r *rules, now int64, wanted []Wanted) {
	uses, renewals := make([]issuer.Use, len(wanted)), make([]bool, len(wanted))
	sets := make([]string, len(wanted))
	for i, w := range wanted {
		uses[i] = issuer.Use{Kind: issuer.UseOrder, DNSNames: w.DNSNames, IPAddresses: w.IPAddresses, Urgent: true}
		sets[i] = r.setTouch(w.DNSNames, w.IPAddresses).key
	}
	b.mu.Lock()
	for i, set := range sets {
		renewals[i] = b.entries[set].renewal(now, renewalWindow-renewalSpare)
	}
	b.mu.Unlock()
	touches := make([][]touch, len(wanted))
	for i, use := range uses {
		touches[i] = r.touches(use, renewals[i])
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	entries := map[string]*entry{}
	f.of = make([][]*simulated, len(wanted))
	for i, list := range touches {
		for _, t := range list {
			e := entries[t.key]
			if e == nil {
				if b.entries[t.key] == nil && !t.spend {
					continue
				}
				e = b.copy(t)
				e.at(t.limit, now)
				entries[t.key] = e
			}
			f.of[i] = append(f.of[i], &simulated{touch: t, entry: e})
		}
	}
}

// farthest is where the simulation ends, in the year 2100.
const farthest = 4102444800 * int64(time.Second)

// try orders a certificate at a time, or lets it wait for the bucket that has room last.
func (f *forecast) try(i int, at int64) {
	var last *simulated
	var next int64
	for _, s := range f.of[i] {
		if s.at(s.limit, at); s.check && !s.fits(s.limit, at, true) {
			if one := s.fitsAt(s.limit, at, true); last == nil || one > next {
				last, next = s, one
			}
		}
	}
	if last == nil {
		for _, s := range f.of[i] {
			if s.spend {
				s.bucket.spend(s.limit, at)
			}
		}
		f.fits[i].At = time.Unix(0, at).UTC()
		return
	}
	f.fits[i].Limit, f.fits[i].Scope = last.limit.name, last.name()
	if next >= farthest || next <= at { // it would never come to an end
		f.fits[i].At = time.Unix(0, farthest).UTC()
		return
	}
	q := f.waiting[last.key]
	if q == nil {
		q = &waiting{bucket: last}
		f.waiting[last.key] = q
	}
	heap.Push(&q.queue, i)
	f.wakeAt(q, next)
}

// serve orders what waits for the buckets that have room at a time, the most urgent one first.
func (f *forecast) serve(at int64) {
	var awake []*waiting
	for len(f.wakes) > 0 && f.wakes[0].at == at {
		q := f.waiting[heap.Pop(&f.wakes).(wake).key]
		if q.wake == at {
			q.wake = 0
			q.bucket.at(q.bucket.limit, at)
			awake = append(awake, q)
		}
	}
	for {
		var first *waiting
		for _, q := range awake {
			if len(q.queue) > 0 && q.bucket.fits(q.bucket.limit, at, true) && (first == nil || q.queue[0] < first.queue[0]) {
				first = q
			}
		}
		if first == nil {
			break
		}
		f.try(heap.Pop(&first.queue).(int), at)
	}
	for _, q := range awake {
		if len(q.queue) > 0 {
			f.wakeAt(q, q.bucket.fitsAt(q.bucket.limit, at, true))
		}
	}
}

func (f *forecast) wakeAt(q *waiting, at int64) {
	if q.wake == 0 || at < q.wake {
		q.wake = at
		heap.Push(&f.wakes, wake{at: at, key: q.bucket.key})
	}
}

// wake is when a bucket has room again.
type wake struct {
	at  int64
	key string
}

type wakes []wake

// Len implements heap.Interface.
func (w wakes) Len() int { return len(w) }

// Less implements heap.Interface.
func (w wakes) Less(i, j int) bool {
	return w[i].at < w[j].at || w[i].at == w[j].at && w[i].key < w[j].key
}

// Swap implements heap.Interface.
func (w wakes) Swap(i, j int) { w[i], w[j] = w[j], w[i] }

// Push implements heap.Interface.
func (w *wakes) Push(x any) { *w = append(*w, x.(wake)) }

// Pop implements heap.Interface.
func (w *wakes) Pop() any {
	last := (*w)[len(*w)-1]
	*w = (*w)[:len(*w)-1]
	return last
}

// ints is a heap of numbers, the smallest first.
type ints []int

// Len implements heap.Interface.
func (n ints) Len() int { return len(n) }

// Less implements heap.Interface.
func (n ints) Less(i, j int) bool { return n[i] < n[j] }

// Swap implements heap.Interface.
func (n ints) Swap(i, j int) { n[i], n[j] = n[j], n[i] }

// Push implements heap.Interface.
func (n *ints) Push(x any) { *n = append(*n, x.(int)) }

// Pop implements heap.Interface.
func (n *ints) Pop() any {
	last := (*n)[len(*n)-1]
	*n = (*n)[:len(*n)-1]
	return last
}
