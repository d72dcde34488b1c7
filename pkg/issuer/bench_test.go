package issuer_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sds-server/sds-server/internal/testenv"
	"github.com/sds-server/sds-server/pkg/issuer"
	"github.com/sds-server/sds-server/pkg/issuer/acme"
	"github.com/sds-server/sds-server/pkg/issuer/issuertest"
	"github.com/sds-server/sds-server/pkg/store"
	"github.com/sds-server/sds-server/pkg/store/bbolt"
	"github.com/sds-server/sds-server/pkg/store/seal"
)

const manyCertificates = 100_000

// many configures certificates, with states as a CA with advice leaves them, that are due over the next 30 days.
func many(n int) (certs []issuer.Certificate, states []issuer.State) {
	now := time.Now()
	for i := range n {
		c := certificate(fmt.Sprintf("host-%06d.customer-%04d.example.com", i, i%5000))
		begin := now.Add(-time.Duration(float64(60*day) * float64(i+1) / float64(n+1)))
		certs = append(certs, c)
		states = append(states, issuer.State{
			NotBefore: begin, NotAfter: begin.Add(90 * day), Serial: fmt.Sprintf("04%034x", i), Issuer: "ca", Wanted: issuer.Wanted(c),
			LastRenewal: begin, NextRenewal: begin.Add(60 * day),
			Advice: issuer.Advice{
				ID: fmt.Sprintf("aYhba4dGQEHhs3uEe6CuLN4ByNQ.%024x", i), Start: begin.Add(60 * day), End: begin.Add(61 * day), At: begin.Add(60*day + time.Hour),
				Asked: now, Next: now.Add(6 * time.Hour),
			},
		})
	}
	return certs, states
}

// realStore is a sealed bbolt store with states in it.
func realStore(b *testing.B, states []issuer.State, certs []issuer.Certificate) store.Store {
	b.Helper()
	dir := b.TempDir()
	inner, err := bbolt.Open(bbolt.Options{Path: filepath.Join(dir, "store.db")})
	if err != nil {
		b.Fatal(err)
	}
	key := filepath.Join(b.TempDir(), "seal.key")
	if err := seal.GenerateKeyFile(key); err != nil {
		b.Fatal(err)
	}
	s, err := seal.Open(b.Context(), inner, key)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := s.Close(); err != nil {
			b.Error(err)
		}
	})
	fill(b, s, states, certs)
	return s
}

func fill(b *testing.B, s store.Store, states []issuer.State, certs []issuer.Certificate) {
	b.Helper()
	var operations []store.Operation
	for i, state := range states {
		value, err := json.Marshal(state)
		if err != nil {
			b.Fatal(err)
		}
		operations = append(operations, store.Put(issuer.StateKey(certs[i].Name), value))
		if len(operations) < store.MaxOperations && i < len(states)-1 {
			continue
		}
		if _, err := s.Commit(b.Context(), nil, operations); err != nil {
			b.Fatal(err)
		}
		operations = operations[:0]
	}
}

func newLoop(b *testing.B, o issuer.Options) *issuer.Loop {
	b.Helper()
	o.Logger, o.Registerer = slog.New(slog.DiscardHandler), prometheus.NewRegistry()
	l, err := issuer.New(o)
	if err != nil {
		b.Fatal(err)
	}
	return l
}

// newReadyLoop also returns what is closed when the loop has read its state and looks for what is due.
func newReadyLoop(b *testing.B, s store.Store) (*issuer.Loop, <-chan struct{}) {
	b.Helper()
	ready := make(chan struct{})
	begun := sync.OnceFunc(func() { close(ready) })
	return newLoop(b, issuer.Options{Store: s, Hold: func(string, time.Time) (string, time.Time) {
		begun()
		return "", time.Time{}
	}}), ready
}

// processCPU is what the process has used so far: on a shared machine it says more than the time.
func processCPU(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// quiet is an issuer whose CA gives advice, and is never asked.
type quiet struct{ issuer.Issuer }

func (quiet) RenewalInfo(context.Context, string) (issuer.RenewalInfo, error) {
	return issuer.RenewalInfo{}, issuer.ErrNoAdvice
}

// BenchmarkStart measures the start of a loop with 100,000 certificates on a real, sealed store until it waits for the first one, and the
// memory that it keeps for each, what is configured included.
func BenchmarkStart(b *testing.B) {
	certs, states := many(manyCertificates)
	s := realStore(b, states, certs)
	stored := 0
	for i := range states {
		value, err := json.Marshal(states[i])
		if err != nil {
			b.Fatal(err)
		}
		stored += len(value)
	}
	var before, after runtime.MemStats
	var cpu time.Duration
	for b.Loop() {
		b.StopTimer()
		runtime.GC()
		runtime.ReadMemStats(&before)
		certs, _ = many(manyCertificates)
		l, ready := newReadyLoop(b, s)
		cpu -= processCPU(b)
		b.StartTimer()
		l.SetIssuers(map[string]issuer.Issuer{"ca": quiet{}})
		l.SetCertificates(certs)
		ctx, cancel := context.WithCancel(b.Context())
		done := make(chan error, 1)
		go func() { done <- l.Run(ctx) }()
		<-ready
		b.StopTimer()
		cpu += processCPU(b)
		runtime.GC()
		runtime.ReadMemStats(&after)
		cancel()
		if err := <-done; err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	b.ReportMetric(b.Elapsed().Seconds()/float64(b.N), "s/start")
	b.ReportMetric(cpu.Seconds()/float64(b.N), "cpu-s/start")
	b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/manyCertificates, "B/certificate")
	b.ReportMetric(float64(stored)/manyCertificates, "B/stored")
}

// BenchmarkNext measures what an order costs the loop besides: to put its certificate to where it belongs, and to find what is due
// next. It grows with the logarithm of their number.
func BenchmarkNext(b *testing.B) {
	for _, n := range []int{100, 1000, 10_000, manyCertificates} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			certs, states := many(n)
			s := issuertest.NewStore()
			s.Forget()
			fill(b, s, states, certs)
			l, ready := newReadyLoop(b, s)
			l.SetIssuers(map[string]issuer.Issuer{"ca": quiet{}})
			l.SetCertificates(certs)
			ctx, cancel := context.WithCancel(b.Context())
			done := make(chan error, 1)
			go func() { done <- l.Run(ctx) }()
			<-ready
			cancel()
			if err := <-done; err != nil {
				b.Fatal(err)
			}
			i := 0
			for b.Loop() {
				i = (i + 7919) % n
				l.Next(b.Context(), certs[i].Name)
			}
		})
	}
}

// BenchmarkOrders measures how many certificates a second the loop gets from a Pebble that validates each name by HTTP-01 without a
// sleep, on a real, sealed store.
func BenchmarkOrders(b *testing.B) {
	for _, workers := range []int{1, 16} {
		b.Run(fmt.Sprintf("workers %d", workers), func(b *testing.B) {
			e := testenv.NewT(b)
			responder := &acme.Responder{}
			http01 := e.Port()
			serveChallenges(b, http01, responder)
			pebble := e.Pebble(testenv.PebbleOptions{HTTPPort: http01, Profiles: map[string]testenv.PebbleProfile{"default": {}}})
			registry := prometheus.NewRegistry()
			metrics, err := acme.NewMetrics(registry)
			if err != nil {
				b.Fatal(err)
			}
			s := realStore(b, nil, nil)
			ca, err := acme.New(acme.Options{
				Name: "ca", Directory: pebble.Directory, CAFile: pebble.CAFile, RootsFile: pebble.RootsFile, AcceptTOS: true, Profile: "default",
				Store: s, Responder: responder, Metrics: metrics, Logger: slog.New(slog.DiscardHandler),
			})
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(ca.Close)
			l := newLoop(b, issuer.Options{Store: s, Sink: committing{s}, Workers: workers})
			l.SetIssuers(map[string]issuer.Issuer{"ca": ca})
			ctx, cancel := context.WithCancel(b.Context())
			done := make(chan error, 1)
			go func() { done <- l.Run(ctx) }()
			certs := []issuer.Certificate{certificate("first.example")}
			l.SetCertificates(certs) // the account is made by the first order
			if _, err := l.Renew(b.Context(), certs[0].Name, issuer.Renewal{Force: true}); err != nil {
				b.Fatal(err)
			}
			b.ResetTimer()
			for i := range b.N {
				certs = append(certs, certificate(fmt.Sprintf("host%d.example", i)))
			}
			l.SetCertificates(certs)
			var waiting sync.WaitGroup
			for _, c := range certs[1:] {
				waiting.Go(func() {
					if _, err := l.Renew(b.Context(), c.Name, issuer.Renewal{}); err != nil && !isNotDue(err) {
						b.Error(err)
					}
				})
			}
			waiting.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "certificates/s")
			b.StopTimer()
			cancel()
			if err := <-done; err != nil {
				b.Fatal(err)
			}
		})
	}
}

func isNotDue(err error) bool {
	_, ok := err.(*issuer.NotDueError) //nolint:errorlint // Renew returns it as it is
	return ok
}

// committing is a sink that stores, as the rollout controller does.
type committing struct{ store store.Store }

func (s committing) Accept(ctx context.Context, i issuer.Issued) (issuer.Accepted, error) {
	put := store.Put(store.Key("secret", i.Secret.Name()), append(i.Secret.ChainPEM(), i.Secret.KeyPEM()...))
	_, err := s.store.Commit(ctx, i.Conditions, append(i.Operations, put))
	return issuer.Accepted{Version: i.Secret.Version([]byte("key"))}, err
}

// serveChallenges stands in for Envoy's port 80.
func serveChallenges(b *testing.B, port int, handler http.Handler) {
	b.Helper()
	l, err := (&net.ListenConfig{}).Listen(b.Context(), "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		b.Fatal(err)
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second}
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(l) }) // ends with Close
	b.Cleanup(func() {
		_ = server.Close()
		serving.Wait()
	})
}
