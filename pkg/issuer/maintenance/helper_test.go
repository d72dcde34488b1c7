package maintenance

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// logs keeps what was logged.
type logs struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

// Write implements io.Writer.
func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

// count returns how many lines have a text.
func (l *logs) count(text string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.buf.String()) {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}

func (l *logs) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// pageServer is a real HTTP server whose connections are pipes, so that it can stand in a bubble of synctest.
type pageServer struct {
	conns chan net.Conn

	mu     sync.Mutex
	answer http.HandlerFunc // guarded by mu
	asked  int              // guarded by mu
}

func newPageServer(t *testing.T) *pageServer {
	t.Helper()
	s := &pageServer{conns: make(chan net.Conn)}
	server := &http.Server{Handler: s, ReadHeaderTimeout: time.Minute}
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(s) }) // ends with Close
	t.Cleanup(func() {
		_ = server.Close()
		serving.Wait()
	})
	return s
}

// Accept implements net.Listener.
func (s *pageServer) Accept() (net.Conn, error) {
	c, ok := <-s.conns
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}

// Close implements net.Listener.
func (s *pageServer) Close() error {
	close(s.conns)
	return nil
}

// Addr implements net.Listener.
func (s *pageServer) Addr() net.Addr { return &net.IPAddr{} }

// ServeHTTP implements http.Handler.
func (s *pageServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.asked++
	answer := s.answer
	s.mu.Unlock()
	answer(w, r)
}

func (s *pageServer) set(answer http.HandlerFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = answer
}

// says makes the page answer with a text from now on.
func (s *pageServer) says(text string) {
	s.set(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(text)) })
}

func (s *pageServer) times() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked
}

func (s *pageServer) transport() *http.Transport {
	return &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) {
		client, server := net.Pipe()
		s.conns <- server
		return client, nil
	}}
}

// run runs a monitor until the end of the test.
func run(t *testing.T, m *Monitor) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := m.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
}

// wantHold fails the test unless the issuer le is held now for a reason that has a text; empty: not held.
func wantHold(t *testing.T, m *Monitor, text string) time.Time {
	t.Helper()
	reason, until := m.Hold("le", time.Now())
	if (reason == "") != (text == "") || !strings.Contains(reason, text) {
		t.Errorf("%s: got hold %q, want %q", time.Now().Format(time.DateTime), reason, text)
	}
	if (reason == "") != until.IsZero() || reason != "" && !until.After(time.Now()) {
		t.Errorf("hold %q until %s: want a time to come exactly where there is a hold", reason, until)
	}
	return until
}
