package verify

import (
	"crypto/tls"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sds-server/sds-server/pkg/secret"
)

// prober is a Monitor that runs until the end of the test.
type prober struct {
	*testing.T
	*Monitor
	wants *wants
	woken chan struct{}
}

func startProber(t *testing.T, groups ...Group) *prober {
	t.Helper()
	p := &prober{T: t, wants: &wants{groups: groups, current: map[string]Leaf{}, known: map[string]secret.Version{}}, woken: make(chan struct{}, 1)}
	for _, g := range groups {
		for _, target := range g.Targets {
			for _, w := range target.Secrets {
				p.wants.current[w.Secret] = w.Leaf
			}
		}
	}
	var err error
	p.Monitor, err = New(Options{
		Source: p.wants, Log: testLog(t), Registerer: prometheus.NewRegistry(), Wake: func() {
			select {
			case p.woken <- struct{}{}:
			default:
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	background(t, p.Monitor.Run)
	return p
}

// ended asks until a round has ended.
func (p *prober) ended(group string, want map[string]secret.Version, since time.Time) Round {
	p.Helper()
	for {
		if round := p.Look(group, want, since); !round.Ended.IsZero() {
			return round
		}
		select {
		case <-p.woken:
		case <-time.After(20 * time.Second):
			p.Fatalf("no round has ended: %+v", p.Look(group, want, since))
		}
	}
}

// brief is a finding without its message.
func brief(findings []Finding) (all []string) {
	for _, f := range findings {
		all = append(all, fmt.Sprintf("%s %s %s %s %v", f.Secret, f.Version, f.Node, f.Kind, f.Unseen))
	}
	return all
}

func one(name string, timeout time.Duration, targets ...Target) Group {
	return Group{Name: name, Timeout: timeout, Targets: targets}
}

func want(version secret.Version) map[string]secret.Version {
	return map[string]secret.Version{"www": version}
}

func TestRoundIsMadeOnceForEachTimeThatIsAskedFor(t *testing.T) {
	ca := newPKI(t)
	pair := ca.pair(t, ecKey(t), site)
	l := serve(t, &tls.Config{Certificates: []tls.Certificate{pair}})
	p := startProber(t, one("g", 10*time.Second, target(l.address, ca.leaf(pair, "www", "v1"))))
	since := time.Now()
	if r := p.Look("g", want("v1"), since); !r.Began.IsZero() {
		t.Errorf("got %+v at once, want nothing yet", r)
	}
	first := p.ended("g", want("v1"), since)
	if first.Began.Before(since) || first.Ended.Before(first.Began) || first.Targets != 1 || first.OK != 2 || first.Failed != 0 || len(first.Findings) != 0 {
		t.Fatalf("got %+v, want two handshakes with one target", first)
	}
	for _, since := range []time.Time{{}, since, first.Began} {
		if r := p.Look("g", want("v1"), since); !r.Began.Equal(first.Began) {
			t.Errorf("since %v: got the round of %v, want that of %v", since, r.Began, first.Began)
		}
	}
	second := p.ended("g", want("v1"), first.Began.Add(time.Nanosecond))
	if !second.Began.After(first.Began) || second.OK != 2 {
		t.Errorf("got %+v, want another round", second)
	}
	l.mu.Lock()
	if n := len(l.states); n != 4 {
		t.Errorf("%d handshakes, want 4", n)
	}
	l.mu.Unlock()
	ahead := time.Now().Add(time.Hour)
	if r := p.ended("g", want("v1"), ahead); !r.Began.After(second.Began) {
		t.Errorf("a time to come: got %+v, want a round that begins now", r)
	}
}

func TestRoundFindsWhatIsWrong(t *testing.T) {
	ca, stranger := newPKI(t), newPKI(t)
	old, next, foreign := ca.pair(t, ecKey(t), site), ca.pair(t, ecKey(t), site), stranger.pair(t, ecKey(t), site)
	only := func(c tls.Certificate) *tls.Config { return &tls.Config{Certificates: []tls.Certificate{c}} }
	rejected := ca.leaf(foreign, "www", "v2")
	demanding := only(next)
	demanding.ClientAuth = tls.RequireAnyClientCert
	for _, test := range []struct {
		name       string
		address    string
		leaf       Leaf
		ok, failed int
		want       []string
	}{
		{"served", serve(t, only(next)).address, ca.leaf(next, "www", "v2"), 2, 0, nil},
		{"client certificates are demanded", serve(t, demanding).address, ca.leaf(next, "www", "v2"), 2, 0, nil},
		{"old", serve(t, only(old)).address, ca.leaf(next, "www", "v2"), 0, 2, []string{"www v2 n old_leaf false"}},
		{"chain", serve(t, only(foreign)).address, rejected, 0, 2, []string{"www v2 n chain false"}},
		{"alert", serve(t, &tls.Config{GetCertificate: noCertificate}).address, rejected, 0, 2, []string{"www v2 n alert false"}},
		{"refused", nobody, rejected, 0, 2, []string{"www v2 n refused true"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := startProber(t, one("g", 500*time.Millisecond, target(test.address, test.leaf)))
			p.wants.known[ca.leaf(old, "", "").SHA256] = "v1"
			r := p.ended("g", want("v2"), time.Now())
			if r.Targets != 1 || r.OK != test.ok || r.Failed != test.failed || !slices.Equal(brief(r.Findings), test.want) {
				t.Errorf("got %+v, want %d and %d, %v", r, test.ok, test.failed, test.want)
			}
			for _, f := range r.Findings {
				if !strings.Contains(f.Message, test.address) {
					t.Errorf("%q does not say where", f.Message)
				}
			}
		})
	}
}

// An Envoy that is just starting does not listen, or closes connections.
func TestRoundWaitsForAnEnvoyThatStarts(t *testing.T) {
	ca := newPKI(t)
	pair := ca.pair(t, ecKey(t), site)
	for _, closes := range []bool{false, true} {
		t.Run(fmt.Sprintf("closes %v", closes), func(t *testing.T) {
			l := listen(t)
			address := l.Addr().String()
			if !closes {
				_ = l.Close() // nobody listens to its error
			}
			p := startProber(t)
			p.wants.groups = []Group{one("g", 20*time.Second, target(address, ca.leaf(pair, "www", "v1")))}
			p.wants.current["www"] = ca.leaf(pair, "www", "v1")
			p.wants.before = func(look int) {
				switch {
				case look < 3 && closes:
					go func() {
						if conn, err := l.Accept(); err == nil {
							_ = conn.Close()
						}
					}()
				case look == 3 && closes:
					answer(t, l, &tls.Config{Certificates: []tls.Certificate{pair}})
				case look == 3:
					again, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", address)
					if err != nil {
						t.Error(err)
						return
					}
					answer(t, again, &tls.Config{Certificates: []tls.Certificate{pair}})
				}
			}
			if r := p.ended("g", want("v1"), time.Now()); r.OK != 2 || r.Failed != 0 {
				t.Errorf("got %+v, want that the certificate is seen in the end", r)
			}
		})
	}
}

// A target that hangs costs a round one time-out, however many names there are.
func TestRoundAsksOnceWhatHangs(t *testing.T) {
	ca := newPKI(t)
	silent := listen(t)
	t.Cleanup(func() { _ = silent.Close() })
	var came atomic.Int64
	go func() {
		for {
			if _, err := silent.Accept(); err != nil {
				return
			}
			came.Add(1)
		}
	}()
	pair := ca.pair(t, ecKey(t), "a.example", "b.example", "c.example", "d.example")
	p := startProber(t, one("g", 2*time.Second, target(silent.Addr().String(), ca.leaf(pair, "www", "v1"))))
	r := p.ended("g", want("v1"), time.Now())
	if r.OK != 0 || r.Failed != 8 || !slices.Equal(brief(r.Findings), []string{"www v1 n timeout true"}) || came.Load() > 1 {
		t.Errorf("got %+v after %d connections, want 8 failures after one", r, came.Load())
	}
}

// What no waiting mends ends the round, though another node of the group hangs.
func TestRoundEndsAtAChainThatClientsReject(t *testing.T) {
	ca, stranger := newPKI(t), newPKI(t)
	foreign := stranger.pair(t, ecKey(t), site)
	l := serve(t, &tls.Config{Certificates: []tls.Certificate{foreign}})
	silent := listen(t)
	t.Cleanup(func() { _ = silent.Close() })
	leaf := ca.leaf(foreign, "www", "v1")
	p := startProber(t, one("g", time.Hour, target(silent.Addr().String(), leaf), target(l.address, leaf)))
	r := p.ended("g", want("v1"), time.Now())
	if r.Targets != 2 || !slices.Equal(brief(r.Findings), []string{"www v1 n chain false"}) {
		t.Errorf("got %+v, want the chain", r)
	}
}

// A group whose nodes hang takes nothing from another one.
func TestRoundOfAGroupThatHangsDelaysNoOther(t *testing.T) {
	silent, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = silent.Close() })
	ca := newPKI(t)
	pair := ca.pair(t, ecKey(t), site)
	leaf := ca.leaf(pair, "www", "v1")
	l := serve(t, &tls.Config{Certificates: []tls.Certificate{pair}})
	_, port, err := net.SplitHostPort(silent.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	hung := one("hung", time.Hour)
	for i := range allSlots + 10 {
		hung.Targets = append(hung.Targets, target(fmt.Sprintf("127.1.%d.%d:%s", i/200, 1+i%200, port), leaf))
	}
	p := startProber(t, hung, one("g", 20*time.Second, target(l.address, leaf)))
	p.Look("hung", want("v1"), time.Now())
	for range roundSlots { // so many are under way
		if _, err := silent.Accept(); err != nil {
			t.Fatal(err)
		}
	}
	if r := p.ended("g", want("v1"), time.Now()); r.OK != 2 {
		t.Errorf("got %+v, want two handshakes", r)
	}
	if r := p.Look("hung", want("v1"), time.Time{}); r.Began.IsZero() || !r.Ended.IsZero() || r.Targets != allSlots+10 {
		t.Errorf("got %+v, want that it is under way", r)
	}
	p.rounds.mu.Lock()
	l2 := p.rounds.known[lookKey("hung", want("v1"))]
	p.rounds.mu.Unlock()
	p.rounds.due(time.Now().Add(keepRound)) // a minute without a question ends it
	for {
		p.rounds.mu.Lock()
		running := l2.running
		p.rounds.mu.Unlock()
		if !running {
			return
		}
		<-p.woken
	}
}

func TestRoundIsForgottenThatNobodyAsksFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := startProber(t)
		began := p.ended("g", want("v1"), time.Time{}).Began
		for range 5 { // asking keeps it
			<-time.After(keepRound - time.Second)
			if r := p.Look("g", want("v1"), time.Time{}); !r.Began.Equal(began) {
				t.Fatalf("got %+v, want the round of %v", r, began)
			}
		}
		<-time.After(2 * keepRound)
		p.rounds.mu.Lock()
		defer p.rounds.mu.Unlock()
		if n := len(p.rounds.known); n != 0 {
			t.Errorf("%d rounds are kept, want none", n)
		}
	})
}

// A group that has no verify, or no node that asks for the secret, has nothing to be looked at.
func TestRoundWithoutTargets(t *testing.T) {
	ca := newPKI(t)
	leaf := ca.leaf(ca.pair(t, ecKey(t), "b.example"), "other", "v1")
	p := startProber(t, one("g", time.Second, target(nobody, leaf)))
	for _, group := range []string{"g", "none"} {
		if r := p.ended(group, want("v1"), time.Now()); r.Targets != 0 || r.OK != 0 || r.Failed != 0 || len(r.Findings) != 0 {
			t.Errorf("%s: got %+v, want nothing", group, r)
		}
	}
}

// What is wrong with another secret is none of this round's business, also where both have a certificate for the name.
func TestRoundIsAboutItsSecrets(t *testing.T) {
	ca := newPKI(t)
	mine, others, foreign := ca.pair(t, ecKey(t), site), ca.pair(t, ecKey(t), site), ca.pair(t, ecKey(t), site)
	leaf, other := ca.leaf(mine, "www", "v2"), ca.leaf(foreign, "a-other", "v2")
	l := serve(t, &tls.Config{Certificates: []tls.Certificate{others}})
	p := startProber(t, one("g", 300*time.Millisecond, target(l.address, leaf, other)))
	p.wants.known[ca.leaf(others, "", "").SHA256] = "v1" // of the first that is asked about
	if r := p.ended("g", map[string]secret.Version{"a-other": "v2"}, time.Now()); !slices.Equal(brief(r.Findings), []string{"a-other v2 n old_leaf false"}) {
		t.Errorf("got %+v, want the old leaf of a-other", r)
	}
	served := serve(t, &tls.Config{Certificates: []tls.Certificate{foreign}})
	p.wants.mu.Lock()
	p.wants.groups = []Group{one("g", 300*time.Millisecond, target(served.address, leaf, other))}
	p.wants.mu.Unlock()
	if r := p.ended("g", want("v2"), time.Now()); r.Targets != 1 || r.OK != 0 || r.Failed != 0 || len(r.Findings) != 0 {
		t.Errorf("got %+v, want nothing: the certificate of a-other is what a-other is wanted to be", r)
	}
	if r := p.ended("g", map[string]secret.Version{"a-other": "v2"}, time.Now()); r.OK != 2 {
		t.Errorf("got %+v, want that a-other is proven", r)
	}
}

// Whether anybody was shown the wanted version is asked for each secret alone: that others of a train are good speaks for none that is not.
func TestRoundCountsWhatIsServedBySecret(t *testing.T) {
	ca := newPKI(t)
	good, bad, old := ca.pair(t, ecKey(t), site), ca.pair(t, ecKey(t), "b.example"), ca.pair(t, ecKey(t), "b.example")
	first := serve(t, &tls.Config{Certificates: []tls.Certificate{good}})
	second := serve(t, &tls.Config{Certificates: []tls.Certificate{old}})
	p := startProber(t, one("g", 300*time.Millisecond, target(first.address, ca.leaf(good, "www", "v2")), target(second.address, ca.leaf(bad, "b", "v2"))))
	p.wants.known[ca.leaf(old, "", "").SHA256] = "v1"
	both := map[string]secret.Version{"www": "v2", "b": "v2"}
	r := p.ended("g", both, time.Now())
	if r.OK != 2 || r.Failed != 2 || r.Served["www"] != 2 || r.Served["b"] != 0 {
		t.Fatalf("got %+v, want two handshakes that show www, and none that shows b", r)
	}
	r.Served["b"] = 7
	if again := p.Look("g", both, r.Began); again.Served["b"] != 0 {
		t.Error("the caller's copy is the monitor's own")
	}
}

// A group that is at something else proves nothing about the wanted version, and accuses nobody.
func TestRoundOfAGroupThatHasMoved(t *testing.T) {
	ca := newPKI(t)
	first, second := ca.pair(t, ecKey(t), site), ca.pair(t, ecKey(t), site)
	l := serve(t, &tls.Config{Certificates: []tls.Certificate{first}})
	p := startProber(t, one("g", 300*time.Millisecond, target(l.address, ca.leaf(first, "www", "v1"))))
	if r := p.ended("g", want("v2"), time.Now()); r.Targets != 1 || r.OK+r.Failed != 0 || !slices.Equal(brief(r.Findings), []string{"www v2 n moved true"}) {
		t.Errorf("before: got %+v, want that it is said", r)
	}
	p.wants.mu.Lock()
	p.wants.groups = []Group{one("g", 300*time.Millisecond, target(l.address, ca.leaf(second, "www", "v2")))}
	p.wants.mu.Unlock()
	if r := p.ended("g", want("v2"), time.Now()); r.OK != 0 || !slices.Equal(brief(r.Findings), []string{"www v2 n moved true"}) {
		t.Errorf("meanwhile: got %+v, want that it is said", r)
	}
	if f, ok := p.Mismatch("g", "www", "v2"); ok {
		t.Errorf("a mismatch is kept: %+v", f)
	}
}

func TestFindingsAreBoundedAndProofComesFirst(t *testing.T) {
	r, l := newRounds(), &lookout{about: map[string]bool{}}
	for i := range 30 {
		node := fmt.Sprint(i / 2)
		r.find(l, Finding{Secret: "www", Node: node, Kind: string(Refused), Unseen: true}, "x")
		r.find(l, Finding{Secret: "www", Node: node, Kind: string(OldLeaf)}, "x")
	}
	if n := len(l.round.Findings); n != maxFindings {
		t.Fatalf("%d findings, want %d", n, maxFindings)
	}
	for i, f := range l.round.Findings {
		if (f.Kind == string(OldLeaf)) != (i < 15) {
			t.Errorf("finding %d is %s, want the 15 that prove something first", i, f.Kind)
		}
	}
}

func TestMismatchIsOfTheVersionThatWasWanted(t *testing.T) {
	ca := newPKI(t)
	pair := ca.pair(t, ecKey(t), site)
	l := serve(t, &tls.Config{GetCertificate: noCertificate})
	p := startProber(t, one("g", time.Second, target(l.address, ca.leaf(pair, "www", "v2"))))
	if f, ok := p.Mismatch("g", "www", "v2"); ok {
		t.Errorf("got %+v before anything was seen", f)
	}
	p.round(t.Context(), p.wants.Groups(t.Context()))
	select {
	case <-p.woken:
	default:
		t.Error("nobody is told of what was found")
	}
	if f, ok := p.Mismatch("g", "www", "v2"); !ok || f.Kind != string(Alert) || f.Node != "n" || f.Version != "v2" || f.Unseen || f.Message == "" {
		t.Errorf("got %+v %v, want the alert", f, ok)
	}
	for _, other := range [][3]string{{"g", "www", "v1"}, {"g", "other", "v2"}, {"h", "www", "v2"}} {
		if f, ok := p.Mismatch(other[0], other[1], secret.Version(other[2])); ok {
			t.Errorf("%v: got %+v", other, f)
		}
	}
}

// A round tells the metrics and what nodes served of its secrets, and leaves the others alone.
func TestRoundIsTakenOver(t *testing.T) {
	ca := newPKI(t)
	pair := ca.pair(t, ecKey(t), site)
	l := serve(t, &tls.Config{Certificates: []tls.Certificate{pair}})
	p := startProber(t, one("g", time.Second, target(l.address, ca.leaf(pair, "www", "v2"))))
	bad := state{mismatch: &Failure{Kind: OldLeaf}, finding: Finding{Version: "v2"}}
	p.mu.Lock()
	p.pairs[pairOf("www")], p.pairs[pairOf("other")] = bad, bad
	p.mu.Unlock()
	p.ended("g", want("v2"), time.Now())
	if s := p.Served("g", NodeKey{"id", "n"}, "www"); s == nil || s.Version != "v2" {
		t.Errorf("served is %+v, want v2", s)
	}
	if f, ok := p.Mismatch("g", "www", "v2"); ok {
		t.Errorf("www: %+v, want that it has ended", f)
	}
	if _, ok := p.Mismatch("g", "other", "v2"); !ok {
		t.Error("the mismatch of another secret is gone")
	}
}

func pairOf(name string) pair { return pair{"g", name} }
