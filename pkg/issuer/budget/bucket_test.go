package budget

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// authority is a CA's bucket as its documentation describes it, kept as the list of everything it has counted and computed anew from the
// beginning at each question.
type authority struct {
	burst, refill int64
	counted       []int64 // times, in order
}

// missing is how much of the bucket is used up at a time, in nanoseconds of refilling.
func (a *authority) missing(at int64) int64 {
	var missing, last int64
	for _, t := range a.counted {
		missing = max(0, missing-(t-last)) + a.refill
		last = t
	}
	return max(0, missing-(at-last))
}

func (a *authority) fits(at int64) bool { return a.missing(at)+a.refill <= a.burst*a.refill }

// later is something that happens at the CA, or a use that is given back.
type later struct {
	at   int64
	back bool
}

// TestBothKindsOfWorkTogetherNeverCrossTheLineOfTheCA runs random histories of ordinary, urgent and exempt uses, of which some are counted by
// the CA at any time within the grace and some are given back instead, against a ledger that knows only what the CA has counted. What is
// exempt is not checked, and counted where it fits.
func TestBothKindsOfWorkTogetherNeverCrossTheLineOfTheCA(t *testing.T) {
	histories := 3000
	if testing.Short() {
		histories = 300
	}
	spent := map[bool]int{}
	for seed := range uint64(histories) {
		r := rand.New(rand.NewPCG(seed, 7))
		l := newLimit(Limit{Name: ExactSet, Burst: 1 + r.IntN(12), Refill: time.Duration(1 + r.Int64N(int64(40*time.Hour)))}, 0.05+0.95*r.Float64())
		l.grace = []int64{0, 1, int64(time.Minute), int64(8 * time.Hour), int64(90 * time.Hour)}[r.IntN(5)]
		ca := &authority{burst: l.all.burst, refill: l.all.refill}
		var b bucket
		var open []later
		exempt := r.IntN(2) == 0
		now := int64(1e18)
		for range 120 {
			next := now + r.Int64N(2*l.all.refill)/int64(1+r.IntN(8))
			for len(open) > 0 && open[0].at <= next {
				o := open[0]
				open = open[1:]
				switch {
				case o.back:
					b.at(l, max(o.at, now))
					b.giveBack()
				case ca.fits(o.at):
					ca.counted = append(ca.counted, o.at)
				case !exempt: // otherwise another one may have been counted in between, which does not hurt: the CA checks earlier
					t.Fatalf("seed %d: burst %d, refill %v, grace %v: the CA counts a use that crosses its line", seed, l.all.burst,
						time.Duration(l.all.refill), time.Duration(l.grace))
				}
			}
			now = next
			b.at(l, now)
			o := later{at: now}
			free, urgent := exempt && r.IntN(8) == 0, r.IntN(3) == 0
			if !free && !b.fits(l, now, urgent) {
				checkWaits(t, b.clone(), l, now, urgent)
				continue
			}
			if !free && !ca.fits(now) {
				t.Fatalf("seed %d: a use fits here that the CA refuses", seed)
			}
			b.spend(l, now)
			spent[urgent]++
			if l.grace > 0 {
				o.at += r.Int64N(l.grace + 1)
				o.back = r.IntN(4) == 0
			}
			open = append(open, o)
			slices.SortStableFunc(open, func(a, b later) int { return int(min(1, max(-1, a.at-b.at))) })
		}
	}
	if spent[false] < histories || spent[true] < histories {
		t.Fatalf("uses: %v, want many of both kinds", spent)
	}
}

// checkWaits checks that a use fits at the time that is said, and not before.
func checkWaits(t *testing.T, b bucket, l *limit, now int64, urgent bool) {
	t.Helper()
	at := b.fitsAt(l, now, urgent)
	if at <= now {
		t.Fatalf("refused now, but said to fit at once")
	}
	before := b.clone()
	before.at(l, at-1)
	if before.fits(l, at-1, urgent) {
		t.Fatalf("fits before the time that was said")
	}
	b.at(l, at)
	if !b.fits(l, at, urgent) {
		t.Fatalf("does not fit at the time that was said")
	}
}

// TestWhatIsCountedAtOnceIsKnownExactly compares with the CA where there is no grace: nothing is kept back from urgent work.
func TestWhatIsCountedAtOnceIsKnownExactly(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	l := newLimit(Limit{Name: FailedAuthorizations, Burst: 5, Refill: 12 * time.Minute}, 0.8)
	ca := &authority{burst: 5, refill: int64(12 * time.Minute)}
	var b bucket
	now := int64(1e18)
	for range 400 {
		now += r.Int64N(int64(30 * time.Minute))
		b.at(l, now)
		if got, want := b.fits(l, now, true), ca.fits(now); got != want {
			t.Fatalf("fits %v, at the CA %v", got, want)
		}
		if got, want := b.debt(l, now, true), ca.missing(now); got != want {
			t.Fatalf("debt %v, at the CA %v", got, want)
		}
		if b.fits(l, now, true) {
			b.spend(l, now)
			ca.counted = append(ca.counted, now)
		}
	}
}

func TestOrdinaryWorkLeavesTheReserve(t *testing.T) {
	tests := []struct {
		name                   string
		burst                  int
		share                  float64
		wantOrdinary, wantLeft int
	}{
		{"5 at 80 %", 5, 0.8, 4, 1},
		{"300 at 80 %", 300, 0.8, 240, 60},
		{"10 at 70 %", 10, 0.7, 7, 3},
		{"everything", 5, 1, 5, 0},
		{"at least one", 1, 0.1, 1, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := newLimit(Limit{Name: ExactSet, Burst: tt.burst, Refill: time.Hour}, tt.share)
			var b bucket
			now := int64(1e18)
			b.at(l, now)
			ordinary, left := 0, 0
			for b.fits(l, now, false) {
				b.spend(l, now)
				ordinary++
			}
			for b.fits(l, now, true) {
				b.spend(l, now)
				left++
			}
			if ordinary != tt.wantOrdinary || left != tt.wantLeft {
				t.Errorf("ordinary work got %d, urgent %d, want %d and %d", ordinary, left, tt.wantOrdinary, tt.wantLeft)
			}
		})
	}
}

// TestOrdinaryWorkIsRefilledAtItsShare: in the long run ordinary work gets the share of what the CA allows, to within its burst.
func TestOrdinaryWorkIsRefilledAtItsShare(t *testing.T) {
	l := newLimit(Limit{Name: FailedAuthorizations, Burst: 10, Refill: time.Hour}, 0.8)
	var b bucket
	now, n := int64(1e18), 0
	for range 1000 * 6 { // 1,000 hours
		b.at(l, now)
		if b.fits(l, now, false) {
			b.spend(l, now)
			n++
		}
		now += int64(10 * time.Minute)
	}
	if n < 800-1 || n > 800+8 {
		t.Errorf("%d ordinary uses in 1000 hours, want 800 and a burst of 8 at most", n)
	}
}

func TestReturnGivesBackExactly(t *testing.T) {
	for seed := range uint64(500) {
		r := rand.New(rand.NewPCG(seed, 3))
		l := newLimit(Limit{Name: ExactSet, Burst: 20, Refill: time.Hour}, 0.8)
		var with, without bucket
		now, back := int64(1e18), false
		extra := r.IntN(10)
		for i := range 15 {
			with.at(l, now)
			without.at(l, now)
			if i == extra {
				with.spend(l, now)
			}
			if r.IntN(2) == 0 {
				with.spend(l, now)
				without.spend(l, now)
			}
			now += r.Int64N(int64(20 * time.Minute))
			if i > extra && !back {
				with.at(l, now)
				without.at(l, now)
				if back = with.giveBack(); !back {
					t.Fatal("nothing was given back")
				}
			}
			if back {
				if got, want := with.left(l, now, true), without.left(l, now, true); got != want {
					t.Fatalf("seed %d: %d left after the return, want %d as without the use", seed, got, want)
				}
				if got, want := with.fullAt(l, now), without.fullAt(l, now); got < want {
					t.Fatalf("seed %d: full at %d after the return, before %d as without the use", seed, got, want)
				}
			}
		}
	}
}

func TestClockThatGoesBackDoesNotOpenTheBucket(t *testing.T) {
	for _, limit := range []string{ExactSet, FailedAuthorizations} { // with what is held, and without
		l := newLimit(Limit{Name: limit, Burst: 5, Refill: time.Hour}, 0.8)
		for _, back := range []time.Duration{time.Second, 10 * time.Minute, 10 * time.Hour, 30 * 24 * time.Hour, 40 * 365 * 24 * time.Hour} {
			var b bucket
			now := int64(2e18)
			for b.at(l, now); b.fits(l, now, true); {
				b.spend(l, now)
			}
			now -= int64(back)
			b.at(l, now)
			if n := b.left(l, now, true); n != 0 {
				t.Errorf("%s, %v back: %d are left, want 0", limit, back, n)
			}
			// It does not stay shut for longer than it takes to fill a bucket.
			now += l.grace + 2*l.step() + 7*int64(time.Hour)
			if b.at(l, now); b.fullAt(l, now) != 0 {
				t.Errorf("%s, %v back: not full at the end, but in %v", limit, back, time.Duration(b.fullAt(l, now)-now))
			}
		}
	}
}

func TestHeldUsesAreStoredInFewGroups(t *testing.T) {
	l := newLimit(Limit{Name: RegisteredDomain, Burst: 30000, Refill: time.Second / 30000}, 0.8)
	var b bucket
	now := int64(1e18)
	for range 2000 {
		now += int64(time.Minute)
		b.at(l, now)
		b.spend(l, now)
		if n := len(b.held); n > holdSteps+1 {
			t.Fatalf("%d groups, want %d at most", n, holdSteps+1)
		}
	}
	if n := b.heldTokens(); n < 480 || n > 540 {
		t.Errorf("%d uses are held, want those of the last 8 to 9 hours", n)
	}
}

func TestRefusalShutsTheBucketUntilThen(t *testing.T) {
	l := newLimit(Limit{Name: ExactSet, Burst: 5, Refill: time.Hour}, 0.8)
	for _, drained := range []bool{true, false} {
		var b bucket
		now := int64(1e18)
		b.at(l, now)
		b.spend(l, now)
		until := now + int64(10*time.Hour)
		b.refuse(l, now, until, drained)
		if at := b.fitsAt(l, now, true); at != until {
			t.Errorf("drained %v: fits in %v, want 10h", drained, time.Duration(at-now))
		}
		b.at(l, until)
		want := int64(1)
		if !drained {
			want = 5
		}
		if got := b.left(l, until, true); got != want {
			t.Errorf("drained %v: %d left then, want %d", drained, got, want)
		}
		if drained && b.fits(l, until, false) {
			t.Error("the token that is there then is the reserve's, ordinary work gets it")
		}
	}
}

func TestChangedLimitKeepsWhatIsMissing(t *testing.T) {
	var b bucket
	now := int64(1e18)
	was := newLimit(Limit{Name: FailedAuthorizations, Burst: 10, Refill: time.Hour}, 0.8)
	b.at(was, now)
	for range 6 {
		b.spend(was, now)
	}
	is := newLimit(Limit{Name: FailedAuthorizations, Burst: 100, Refill: time.Minute}, 0.5)
	b.at(is, now)
	if got := b.left(is, now, true); got != 94 {
		t.Errorf("%d left of 100, want 94", got)
	}
	if got := b.left(is, now, false); got != 44 {
		t.Errorf("%d left of 50 for ordinary work, want 44", got)
	}
}
