// Package gate gets the evidence of a rollout that comes from outside: values of Prometheus, and what a command of the operator says.
//
// It stands beside the rollout in the data flow. The rollout asks whenever it takes a step, and is answered from memory: [Reader] keeps the
// newest reading of each query, [Hook] how each run of the command stands. What is missing is begun in the background, and the rollout is woken
// when it is there. What the answers mean, and how long one is waited for, is the rollout's to say.
//
// Invariants: Read and Run never wait; at most one request is under way for each gate, and at most one run for each rollout; every request
// and run has a deadline; whatever is not one finite number is an error and never a value; a command is not run if others can change what is run.
package gate

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/api"
	v1 "github.com/prometheus/client_golang/api/prometheus/v1"
)

const (
	// maxRequest is how long one request may take at most: a gate that waits longer asks again.
	maxRequest = 10 * time.Second
	// failurePause is the time from the end of a request that failed to the next one for the gate.
	failurePause = time.Second
	// pause is the same after a request that was answered. It keeps a caller that asks again on each wake, or whose clock was set back, from
	// asking without an end.
	pause = 500 * time.Millisecond
)

// Gate is a query of which the newest value is wanted.
type Gate struct {
	// Name tells gates apart.
	Name string
	// Prometheus is the base URL of an HTTP API of Prometheus.
	Prometheus string
	// Query is PromQL whose answer is one number: a scalar, or an instant vector with one element.
	Query string
	// Timeout bounds a request; default, and at most, 10 s.
	Timeout time.Duration
}

// Reading is the answer to one request.
type Reading struct {
	Name string
	// At is when the request began; zero: there is no reading yet.
	At time.Time
	// Value is a finite number, in the unit of the query.
	Value float64
	// Err is why there is no value, and what to do, in one line; then Value means nothing.
	Err string
}

// Options configure a Reader. Log is required.
type Options struct {
	// Gates are those of the start; see SetGates.
	Gates []Gate
	// Wake is called after each reading, without any lock; it may call Read. Default: nobody is woken.
	Wake func()
	// Log gets a line when a gate begins to fail, and when it is read again.
	Log *slog.Logger
}

// Reader keeps the newest reading of each gate. All methods are safe for concurrent use.
type Reader struct {
	options   Options
	transport http.RoundTripper
	running   sync.WaitGroup

	mu     sync.Mutex
	gates  []*gate // guarded by mu, as what they hold; in the order of the configuration
	closed bool    // guarded by mu
}

// gate is a Gate with what is known of it.
type gate struct {
	Gate
	api     v1.API
	err     error              // why there is no api
	newest  Reading            // its At is zero: none yet
	ended   time.Time          // when the newest reading was there
	cancel  context.CancelFunc // of the request under way; nil: there is none
	timer   *time.Timer        // begins a request; nil: none is to begin
	dropped bool               // no longer configured
}

// NewReader returns a Reader that has read nothing yet. It asks nobody until Read is called.
func NewReader(o Options) *Reader {
	if o.Wake == nil {
		o.Wake = func() {}
	}
	r := &Reader{options: o, transport: newTransport()}
	r.SetGates(o.Gates)
	return r
}

func newTransport() http.RoundTripper {
	return &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            (&net.Dialer{Timeout: maxRequest}).DialContext,
		TLSHandshakeTimeout:    maxRequest,
		ResponseHeaderTimeout:  maxRequest,
		IdleConnTimeout:        30 * time.Second,
		MaxIdleConnsPerHost:    4,
		MaxResponseHeaderBytes: 64 << 10,
	}
}

// SetGates puts other gates in the place of those before. Those that stay as they were keep their readings; of the others, requests end.
func (r *Reader) SetGates(gates []Gate) {
	r.mu.Lock()
	defer r.mu.Unlock()
	kept := map[Gate]*gate{}
	for _, g := range r.gates {
		kept[g.Gate] = g
	}
	r.gates = nil
	for _, each := range gates {
		if each.Timeout <= 0 || each.Timeout > maxRequest {
			each.Timeout = maxRequest
		}
		g := kept[each]
		if g == nil {
			g = r.newGate(each)
		}
		delete(kept, each)
		r.gates = append(r.gates, g)
	}
	for _, g := range kept {
		g.drop()
	}
}

func (r *Reader) newGate(each Gate) *gate {
	g := &gate{Gate: each}
	client, err := api.NewClient(api.Config{
		Address: each.Prometheus,
		Client:  &http.Client{Transport: bounded{r.transport}, CheckRedirect: refuseRedirect, Timeout: each.Timeout},
	})
	if err != nil {
		g.err = fmt.Errorf("the address of Prometheus: %w", err)
		return g
	}
	g.api = v1.NewAPI(client)
	return g
}

// drop ends what is under way for a gate; the caller holds the lock.
func (g *gate) drop() {
	g.dropped = true
	if g.cancel != nil {
		g.cancel()
	}
	if g.timer != nil {
		g.timer.Stop()
	}
}

// Read returns a reading for each gate, in the order of the configuration: the newest one whose request began at or after since. Where there is
// none, or it is an error, a request begins, not sooner than a second after one that failed. Read never waits: until there is a reading, its
// At is zero.
func (r *Reader) Read(since time.Time) []Reading {
	r.mu.Lock()
	defer r.mu.Unlock()
	readings := make([]Reading, 0, len(r.gates))
	for _, g := range r.gates {
		reading := Reading{Name: g.Name}
		if !g.newest.At.IsZero() && !g.newest.At.Before(since) {
			reading = g.newest
		}
		if reading.At.IsZero() || reading.Err != "" {
			r.begin(g)
		}
		readings = append(readings, reading)
	}
	return readings
}

// begin sees to it that there will be another reading; the caller holds the lock.
func (r *Reader) begin(g *gate) {
	if r.closed || g.dropped || g.cancel != nil || g.timer != nil {
		return
	}
	next := g.ended.Add(pause)
	if g.newest.Err != "" {
		next = g.ended.Add(failurePause)
	}
	wait := time.Until(next)
	if g.newest.At.IsZero() || wait <= 0 {
		r.request(g)
		return
	}
	g.timer = time.AfterFunc(wait, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		g.timer = nil
		if !r.closed && !g.dropped {
			r.request(g)
		}
	})
}

// request begins a request; the caller holds the lock.
func (r *Reader) request(g *gate) {
	ctx, cancel := context.WithTimeout(context.Background(), g.Timeout)
	g.cancel = cancel
	reading := Reading{Name: g.Name, At: time.Now()}
	r.running.Go(func() {
		defer cancel()
		value, err := g.ask(ctx, reading.At)
		if err != nil {
			reading.Err = oneLine(err.Error())
		} else {
			reading.Value = value
		}
		r.took(ctx, g, reading)
	})
}

// took takes over a reading and wakes who waits for it.
func (r *Reader) took(ctx context.Context, g *gate, reading Reading) {
	r.mu.Lock()
	before := g.newest
	g.cancel = nil
	g.ended = time.Now()
	g.newest = reading
	ignored := r.closed || g.dropped
	r.mu.Unlock()
	if ignored {
		return
	}
	log := r.options.Log.With("gate", g.Name)
	switch {
	case reading.Err != "" && reading.Err != before.Err:
		log.InfoContext(ctx, "gate has no value", "err", reading.Err)
	case reading.Err == "" && before.Err != "":
		log.InfoContext(ctx, "gate has a value again", "value", reading.Value)
	default:
		log.DebugContext(ctx, "gate read", "value", reading.Value, "err", reading.Err)
	}
	r.options.Wake()
}

// Close ends all requests and waits for their end; nobody is woken any more, and nothing more is read.
func (r *Reader) Close() {
	r.mu.Lock()
	r.closed = true
	for _, g := range r.gates {
		g.drop()
	}
	r.mu.Unlock()
	r.running.Wait()
	if t, ok := r.transport.(*http.Transport); ok {
		t.CloseIdleConnections()
	}
}
