package gate

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/sds-server/sds-server/internal/testenv"
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

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func (l *logs) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// woken counts wakes and lets a test wait for the next one.
type woken chan struct{}

func newWoken() woken { return make(woken, 1000) }

func (w woken) wake() { w <- struct{}{} }

func (w woken) wait(tb testing.TB) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), 30*time.Second)
	defer cancel()
	select {
	case <-w:
	case <-ctx.Done():
		tb.Fatal("nobody was woken")
	}
}

// newReader returns a Reader that ends with the test.
func newReader(tb testing.TB, wake func(), gates ...Gate) *Reader {
	tb.Helper()
	r := NewReader(Options{Gates: gates, Wake: wake, Log: new(logs).logger()})
	tb.Cleanup(r.Close)
	return r
}

// readUntil asks until the reading of the only gate is as wanted.
func readUntil(tb testing.TB, r *Reader, since time.Time, want func(Reading) bool) Reading {
	tb.Helper()
	var last Reading
	err := testenv.Eventually(tb.Context(), func(context.Context) error {
		last = r.Read(since)[0] //nolint:contextcheck // requests outlive whoever asks
		if last.At.IsZero() || !want(last) {
			return fmt.Errorf("got %+v", last)
		}
		return nil
	})
	if err != nil {
		tb.Fatal(err)
	}
	return last
}

func whatever(Reading) bool { return true }
