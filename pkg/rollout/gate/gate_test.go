package gate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// transport answers requests in memory, so that the tests of timers run in a bubble. Each request waits for a word, if there is a channel.
type transport struct {
	mu       sync.Mutex
	began    []time.Time
	underWay int
	most     int
	hold     chan struct{} // nil: no request waits
	err      error         // what all requests end by
	value    string
}

// RoundTrip implements http.RoundTripper.
func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	t.mu.Lock()
	t.began = append(t.began, time.Now())
	t.underWay++
	t.most = max(t.most, t.underWay)
	hold := t.hold
	t.mu.Unlock()
	defer func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.underWay--
	}()
	if hold != nil {
		select {
		case <-hold:
		case <-req.Context().Done():
			return nil, req.Context().Err()
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err != nil {
		return nil, t.err
	}
	body := fmt.Sprintf(`{"status":"success","data":{"resultType":"scalar","result":[%d,%q]}}`, time.Now().Unix(), t.value)
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body)), Request: req}, nil
}

func (t *transport) set(change func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	change()
}

func (t *transport) now() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.underWay
}

func (t *transport) count() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.began)
}

// inBubble runs a test in a bubble with a Reader over a transport in memory.
func inBubble(t *testing.T, gates []Gate, test func(t *testing.T, r *Reader, tr *transport, wakes *atomic.Int32)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		tr, wakes := &transport{value: "5"}, atomic.Int32{}
		r := &Reader{options: Options{Wake: func() { wakes.Add(1) }, Log: new(logs).logger()}, transport: tr}
		r.SetGates(gates)
		defer r.Close()
		test(t, r, tr, &wakes)
	})
}

var one = []Gate{{Name: "g", Prometheus: "http://p.example", Query: "q"}}

func TestReadNeverWaitsAndBeginsOneRequest(t *testing.T) {
	inBubble(t, one, func(t *testing.T, r *Reader, tr *transport, wakes *atomic.Int32) {
		tr.hold = make(chan struct{})
		since := time.Now()
		for range 10 {
			if got := r.Read(since); len(got) != 1 || got[0] != (Reading{Name: "g"}) {
				t.Fatalf("got %+v, want none yet", got)
			}
			synctest.Wait()
		}
		if n := tr.count(); n != 1 || wakes.Load() != 0 {
			t.Fatalf("got %d requests and %d wakes, want 1 and none", n, wakes.Load())
		}
		close(tr.hold)
		synctest.Wait()
		if got := r.Read(since)[0]; got.Value != 5 || got.Err != "" || !got.At.Equal(since) || wakes.Load() != 1 {
			t.Errorf("got %+v after %d wakes, want 5 after 1", got, wakes.Load())
		}
		// It is kept for whoever asks for it or an older one, for ever.
		time.Sleep(time.Hour) //nolint:forbidigo // the time of the bubble
		for range 10 {
			r.Read(since)
			r.Read(since.Add(-time.Hour))
		}
		synctest.Wait()
		if n := tr.count(); n != 1 {
			t.Errorf("got %d requests, want 1", n)
		}
	})
}

func TestReadingMustHaveBegunSince(t *testing.T) {
	inBubble(t, one, func(t *testing.T, r *Reader, tr *transport, wakes *atomic.Int32) {
		tr.hold = make(chan struct{})
		first := time.Now()
		r.Read(first)
		synctest.Wait()
		time.Sleep(2 * time.Second) //nolint:forbidigo // the time of the bubble
		since := time.Now()
		if got := r.Read(since)[0]; !got.At.IsZero() {
			t.Fatalf("got %+v, want none", got)
		}
		close(tr.hold)
		synctest.Wait()
		// The request under way began before: it does not count, and the wake brings the caller here again.
		if got := r.Read(since)[0]; !got.At.IsZero() || wakes.Load() != 1 {
			t.Fatalf("got %+v after %d wakes, want none after 1", got, wakes.Load())
		}
		if got := r.Read(first)[0]; !got.At.Equal(first) {
			t.Errorf("got %+v, want the one of %v", got, first)
		}
		time.Sleep(pause) //nolint:forbidigo // the time of the bubble
		synctest.Wait()
		if got := r.Read(since)[0]; got.At.Before(since) || got.Value != 5 || wakes.Load() != 2 {
			t.Errorf("got %+v after %d wakes, want one since %v after 2", got, wakes.Load(), since)
		}
	})
}

func TestFailingGateIsAskedOnceASecond(t *testing.T) {
	inBubble(t, one, func(t *testing.T, r *Reader, tr *transport, _ *atomic.Int32) {
		tr.err = errors.New("broken")
		since := time.Now()
		for range 100 { // for 10 s
			r.Read(since)
			time.Sleep(100 * time.Millisecond) //nolint:forbidigo // the time of the bubble
		}
		synctest.Wait()
		if n := tr.count(); n < 9 || n > 11 { // one at the begin, and perhaps one at the very end
			t.Errorf("got %d requests in 10 s, want one each second", n)
		}
		for i := 1; i < len(tr.began); i++ {
			if d := tr.began[i].Sub(tr.began[i-1]); d < failurePause {
				t.Errorf("got %v between two requests, want %v or more", d, failurePause)
			}
		}
		// A caller that is woken and asks again learns that it works again, without another clock.
		if got := r.Read(since)[0]; got.Err == "" {
			t.Errorf("got %+v, want an error", got)
		}
		tr.set(func() { tr.err = nil })
		time.Sleep(failurePause) //nolint:forbidigo // the time of the bubble
		synctest.Wait()
		if got := r.Read(since)[0]; got.Err != "" || got.Value != 5 {
			t.Errorf("got %+v, want 5", got)
		}
		n := tr.count()
		time.Sleep(time.Minute) //nolint:forbidigo // the time of the bubble
		if tr.count() != n {
			t.Error("it goes on asking when nobody reads")
		}
	})
}

// TestClockThatIsSetBack: since lies ahead, so that no reading is ever new enough.
func TestClockThatIsSetBack(t *testing.T) {
	inBubble(t, one, func(t *testing.T, r *Reader, tr *transport, _ *atomic.Int32) {
		ahead := time.Now().Add(time.Hour)
		r.options.Wake = func() { r.Read(ahead) }
		r.Read(ahead)
		time.Sleep(10 * time.Second) //nolint:forbidigo // the time of the bubble
		if n := tr.count(); n > int(10*time.Second/pause)+1 {
			t.Errorf("got %d requests in 10 s, want at most one in %v", n, pause)
		}
	})
}

func TestGatesAreReadApart(t *testing.T) {
	gates := []Gate{{Name: "b", Prometheus: "http://p.example", Query: "1"}, {Name: "a", Prometheus: "http://p.example", Query: "2", Timeout: time.Second}}
	inBubble(t, gates, func(t *testing.T, r *Reader, tr *transport, wakes *atomic.Int32) {
		tr.hold = make(chan struct{})
		since := time.Now()
		got := r.Read(since)
		if len(got) != 2 || got[0].Name != "b" || got[1].Name != "a" {
			t.Fatalf("got %+v, want b and a", got)
		}
		time.Sleep(2 * time.Second) //nolint:forbidigo // the time of the bubble
		got = r.Read(since)
		if !got[0].At.IsZero() || got[1].Err != "http://p.example: no answer within 1s" {
			t.Errorf("got %+v, want none of b, and the time-out of a", got)
		}
		time.Sleep(20 * time.Second) //nolint:forbidigo // the time of the bubble
		if got := r.Read(since)[0]; got.Err != "http://p.example: no answer within 10s" || wakes.Load() < 2 {
			t.Errorf("got %+v, want the time-out after 10 s at the latest", got)
		}
	})
}

func TestGatesAreReplaced(t *testing.T) {
	kept := Gate{Name: "kept", Prometheus: "http://p.example", Query: "q"}
	changed := Gate{Name: "changed", Prometheus: "http://p.example", Query: "q"}
	inBubble(t, []Gate{kept, changed}, func(t *testing.T, r *Reader, tr *transport, wakes *atomic.Int32) {
		since := time.Now()
		r.Read(since)
		synctest.Wait()
		time.Sleep(time.Second) //nolint:forbidigo // the time of the bubble
		tr.set(func() { tr.hold = make(chan struct{}) })
		later := time.Now()
		r.Read(later)
		synctest.Wait()
		if tr.now() != 2 {
			t.Fatalf("got %d requests under way, want 2", tr.now())
		}
		was := wakes.Load()
		changed.Query = "other"
		r.SetGates([]Gate{changed, kept, {Name: "new", Prometheus: "http://p.example", Query: "q"}})
		synctest.Wait()
		if tr.now() != 1 || wakes.Load() != was {
			t.Errorf("got %d requests under way and %d wakes, want 1 and none: the one of the old query ends", tr.now(), wakes.Load()-was)
		}
		got := r.Read(since)
		if len(got) != 3 || got[0] != (Reading{Name: "changed"}) || got[1].Value != 5 || got[2] != (Reading{Name: "new"}) {
			t.Errorf("got %+v, want the old reading of kept alone", got)
		}
		synctest.Wait()
		close(tr.hold)
		synctest.Wait()
		if got := r.Read(later); got[0].Value != 5 || got[1].Value != 5 || got[2].Value != 5 {
			t.Errorf("got %+v, want all", got)
		}
		if tr.most > 3 {
			t.Errorf("got %d requests at once, want at most one for each gate", tr.most)
		}
	})
}

func TestCloseEndsWhatIsUnderWay(t *testing.T) {
	inBubble(t, one, func(t *testing.T, r *Reader, tr *transport, wakes *atomic.Int32) {
		tr.hold = make(chan struct{})
		r.Read(time.Now())
		synctest.Wait()
		r.Close()
		if tr.now() != 0 || wakes.Load() != 0 {
			t.Errorf("got %d requests under way and %d wakes, want none", tr.now(), wakes.Load())
		}
		r.Read(time.Now().Add(-time.Hour))
		time.Sleep(time.Minute) //nolint:forbidigo // the time of the bubble
		if n := tr.count(); n != 1 {
			t.Errorf("got %d requests, want none after the end", n)
		}
		r.Close()
	})
}

// TestReaderForManyAtOnce is for the race detector.
func TestReaderForManyAtOnce(t *testing.T) {
	gates := []Gate{{Name: "a", Prometheus: "http://p.example", Query: "1"}, {Name: "b", Prometheus: "http://p.example", Query: "2"}}
	inBubble(t, gates, func(t *testing.T, r *Reader, tr *transport, _ *atomic.Int32) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		var all sync.WaitGroup
		for i := range 8 {
			all.Go(func() {
				for ctx.Err() == nil {
					r.Read(time.Now()) //nolint:contextcheck // requests outlive whoever asks
					if i == 0 {
						gates[0].Query += "1"
						r.SetGates([]Gate{gates[0], gates[1]})
					}
					time.Sleep(time.Duration(i+1) * 10 * time.Millisecond) //nolint:forbidigo // the time of the bubble
				}
			})
		}
		all.Wait()
		if tr.count() < 10 {
			t.Error("hardly anything was read")
		}
	})
}
