package maintenance

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

const (
	allWell = `{"page":{"id":"x"},"status":{"indicator":"none","description":"All Systems Operational"},"incidents":[],"scheduled_maintenances":[]}`
	outage  = `{"status":{"indicator":"critical","description":"Major Service Outage"},"scheduled_maintenances":[]}`
)

// pageMonitor is a monitor of the issuer le with a status page, without jitter.
func pageMonitor(t *testing.T, s *pageServer) (*Monitor, *logs) {
	t.Helper()
	l := &logs{}
	m := New(Options{Logger: l.logger(), Transport: s.transport(), Random: func() float64 { return .5 }})
	m.Set([]Issuer{{Name: "le", StatusURL: "http://status.example/api/v2/summary.json"}, {Name: "other"}})
	return m, l
}

// pass lets time go by and what is due then end.
func pass(t *testing.T, d time.Duration) {
	t.Helper()
	timer := time.NewTimer(d)
	<-timer.C
	synctest.Wait()
}

func TestAPageInTroubleHoldsUntilItIsWellAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newPageServer(t)
		s.says(allWell)
		m, l := pageMonitor(t, s)
		run(t, m)
		synctest.Wait()
		wantHold(t, m, "")
		s.says(outage)
		pass(t, DefaultInterval)
		began := time.Now()
		wantHold(t, m, "critical: Major Service Outage")
		if reason, _ := m.Hold("other", time.Now()); reason != "" {
			t.Errorf("an issuer without a page is held: %s", reason)
		}
		pass(t, 2*time.Hour)
		wantHold(t, m, "critical")
		if p, ok := m.Page("le"); !ok || p.Trouble == "" || !p.Since.Equal(began) {
			t.Errorf("got %+v, want a trouble since %s", p, began)
		}
		s.says(allWell)
		pass(t, DefaultInterval)
		wantHold(t, m, "")
		for text, want := range map[string]int{"ordinary renewals there wait": 1, "no trouble any more": 1, "cannot be read": 0} {
			if n := l.count(text); n != want {
				t.Errorf("%d log lines with %q, want %d", n, text, want)
			}
		}
	})
}

func TestTroubleHoldsNoLongerThanItsBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newPageServer(t)
		s.says(outage)
		m, l := pageMonitor(t, s)
		run(t, m)
		synctest.Wait()
		pass(t, MaxHold-DefaultInterval)
		until := wantHold(t, m, "critical")
		if last := time.Now().Add(DefaultInterval); until.After(last) {
			t.Errorf("held until %s, want %s at most", until, last)
		}
		pass(t, DefaultInterval)
		wantHold(t, m, "")
		pass(t, 10*24*time.Hour)
		wantHold(t, m, "")
		if n := l.count("it is ignored until"); n != 1 {
			t.Errorf("%d log lines say that it is ignored, want 1", n)
		}
		// Once it was well, it is believed again.
		s.says(allWell)
		pass(t, DefaultInterval)
		s.says(outage)
		pass(t, DefaultInterval)
		wantHold(t, m, "critical")
		pass(t, MaxHold)
		wantHold(t, m, "")
		if n := l.count("it is ignored until"); n != 2 {
			t.Errorf("%d log lines say that it is ignored, want one for each time", n)
		}
	})
}

// TestABoundCountsFromTheBeginThatThePageTells: a restart of the server does not make the hold longer.
func TestABoundCountsFromTheBeginThatThePageTells(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newPageServer(t)
		began := time.Now().Add(-20 * time.Hour)
		s.says(fmt.Sprintf(`{"status":{"indicator":"major","description":"Outage"},"incidents":[{"name":"API down","impact":"major","status":"investigating","started_at":%q}]}`,
			began.Format(time.RFC3339)))
		m, _ := pageMonitor(t, s)
		run(t, m)
		synctest.Wait()
		wantHold(t, m, "API down")
		pass(t, 4*time.Hour)
		wantHold(t, m, "")
	})
}

func TestErrorsOfAPageHoldNothing(t *testing.T) {
	for name, answer := range map[string]http.HandlerFunc{
		"status 500": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500); _, _ = w.Write([]byte(outage)) },
		"HTML":       func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>down</html>")) },
		"other JSON": func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"status":"down"}`)) },
		"null":       func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`null`)) },
		"too long": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(outage + strings.Repeat(" ", maxPage)))
		},
		"no answer": func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		"half an answer": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			_, _ = w.Write([]byte(outage))
		},
		"endless forward": func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/again", http.StatusFound) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newPageServer(t)
				s.set(answer)
				m, l := pageMonitor(t, s)
				run(t, m)
				pass(t, time.Hour)
				wantHold(t, m, "")
				if p, _ := m.Page("le"); p.Failure == "" {
					t.Errorf("got %+v, want a failure", p)
				}
				if n := l.count("cannot be read"); n != 1 || s.times() < 3 {
					t.Errorf("%d log lines after %d looks, want 1 after several", n, s.times())
				}
				s.says(allWell)
				pass(t, DefaultInterval+requestTime)
				if p, _ := m.Page("le"); p.Failure != "" || l.count("can be read again") != 1 {
					t.Errorf("got %+v, want no failure, and one log line", p)
				}
			})
		})
	}
}

// TestAnAnswerIsBelievedOnlyForAWhile: a page that says trouble and then nothing more must not hold for a day.
func TestAnAnswerIsBelievedOnlyForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newPageServer(t)
		s.says(outage)
		m, _ := pageMonitor(t, s)
		run(t, m)
		synctest.Wait()
		s.set(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) })
		pass(t, believedLooks*DefaultInterval-time.Second)
		wantHold(t, m, "critical")
		pass(t, time.Second)
		wantHold(t, m, "")
	})
}

func TestOnePageThatHangsDelaysNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newPageServer(t)
		s.set(func(w http.ResponseWriter, r *http.Request) {
			if r.Host == "hangs.example" {
				<-r.Context().Done()
				return
			}
			_, _ = w.Write([]byte(outage))
		})
		m := New(Options{Logger: (&logs{}).logger(), Transport: s.transport()})
		m.Set([]Issuer{{Name: "a", StatusURL: "http://hangs.example/"}, {Name: "le", StatusURL: "http://answers.example/"}})
		run(t, m)
		synctest.Wait()
		wantHold(t, m, "critical")
	})
}

func TestIssuersShareAPageAndAReloadKeepsIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newPageServer(t)
		s.says(outage)
		m, l := pageMonitor(t, s)
		const url = "http://status.example/api/v2/summary.json"
		m.Set([]Issuer{{Name: "le", StatusURL: url}, {Name: "staging", StatusURL: url}})
		run(t, m)
		synctest.Wait()
		if s.times() != 1 || l.count("issuers=\"[le staging]\"") != 1 {
			t.Errorf("%d looks, want 1 for both", s.times())
		}
		m.Set([]Issuer{{Name: "le", StatusURL: url}})
		synctest.Wait()
		wantHold(t, m, "critical")
		if reason, _ := m.Hold("staging", time.Now()); reason != "" || s.times() != 1 {
			t.Errorf("an issuer that is gone: hold %q after %d looks", reason, s.times())
		}
		m.Set([]Issuer{{Name: "le"}})
		wantHold(t, m, "")
		asked := s.times()
		pass(t, time.Hour)
		if s.times() != asked {
			t.Error("a page that is configured no more is looked at")
		}
	})
}

func TestPlannedWindows(t *testing.T) {
	at := func(hour int) time.Time { return time.Date(2026, 12, 1, hour, 0, 0, 0, time.UTC) }
	m := New(Options{Logger: (&logs{}).logger()})
	m.Set([]Issuer{{Name: "le", Windows: []Window{{From: at(4), To: at(6)}, {From: at(2), To: at(5)}, {From: at(6), To: at(7)}, {From: at(10), To: at(60)}}}})
	for _, tt := range []struct {
		now, until, next time.Time
	}{
		{now: at(1), next: at(2)},
		{now: at(2), until: at(7), next: at(4)},
		{now: at(5), until: at(7), next: at(6)},
		{now: at(6), until: at(7), next: at(10)},
		{now: at(7), next: at(10)},
		{now: at(10), until: at(60)}, // no bound: the operator wants it so
		{now: at(59), until: at(60)},
		{now: at(60)},
	} {
		reason, until := m.Hold("le", tt.now)
		if !until.Equal(tt.until) || (reason == "") != tt.until.IsZero() {
			t.Errorf("at %s: held until %s (%q), want %s", tt.now, until, reason, tt.until)
		}
		if next, ok := m.Next("le", tt.now); !next.From.Equal(tt.next) || ok == tt.next.IsZero() {
			t.Errorf("at %s: next %+v, want one at %s", tt.now, next, tt.next)
		}
	}
	if reason, until := m.Hold("unknown", at(3)); reason != "" || !until.IsZero() {
		t.Errorf("an issuer that is not configured is held: %q until %s", reason, until)
	}
}

// TestARealServerIsAsked looks at a page over TCP, with the transport of the product.
func TestARealServerIsAsked(t *testing.T) {
	asked := make(chan *http.Request, 10)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r
		_, _ = w.Write([]byte(outage))
	}))
	defer server.Close()
	l := &logs{}
	m := New(Options{Logger: l.logger(), UserAgent: "sds-server/test"})
	m.Set([]Issuer{{Name: "le", StatusURL: strings.Replace(server.URL, "http://", "http://user:secret@", 1)}})
	run(t, m)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if reason, _ := m.Hold("le", time.Now()); reason != "" {
			break
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal("the page is not seen")
		}
	}
	if r := <-asked; r.UserAgent() != "sds-server/test" || r.Method != http.MethodGet {
		t.Errorf("got %s by %q", r.Method, r.UserAgent())
	}
	if l.count("secret") != 0 || l.count("critical") != 1 {
		t.Error("the log has a password, or does not tell the trouble")
	}
}
