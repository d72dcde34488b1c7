package issuer_test

import (
	"testing"
	"time"

	"github.com/sds-server/sds-server/pkg/issuer"
)

const day = 24 * time.Hour

func constant(v float64) func() float64 { return func() float64 { return v } }

func TestNextRenewal(t *testing.T) {
	t.Parallel()
	begin := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	tests := []struct {
		name   string
		life   time.Duration
		after  time.Duration // now, after begin
		before issuer.RenewBefore
		random float64
		want   time.Duration // after begin
	}{
		{name: "60 s: half", life: time.Minute, want: 30 * time.Second},
		{name: "60 s, spread", life: time.Minute, random: 1, want: 29400 * time.Millisecond},
		{name: "1 h: half", life: time.Hour, want: 30 * time.Minute},
		{name: "6 d: half", life: 6 * day, want: 3 * day},
		{name: "10 d: a third", life: 10 * day, want: 160 * time.Hour},
		{name: "45 d: a third", life: 45 * day, want: 30 * day},
		{name: "45 d, spread", life: 45 * day, random: 1, want: 30*day - 45*day/100},
		{name: "90 d: a third", life: 90 * day, want: 60 * day},
		{name: "90 d, half of the spread", life: 90 * day, random: 0.5, want: 60*day - 90*day/200},
		{name: "90 d, earlier by time", life: 90 * day, before: issuer.RenewBefore{Duration: 45 * day}, want: 45 * day},
		{name: "90 d, earlier by fraction", life: 90 * day, before: issuer.RenewBefore{Fraction: 0.5}, want: 45 * day},
		{name: "90 d, never later", life: 90 * day, before: issuer.RenewBefore{Duration: day}, want: 60 * day},
		{name: "6 d, renew_before longer than the life", life: 6 * day, before: issuer.RenewBefore{Duration: 30 * day}, want: 36 * time.Hour},
		{name: "overdue: now", life: 90 * day, after: 80 * day, want: 80 * day},
		{name: "expired: now", life: 90 * day, after: 100 * day, want: 100 * day},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got := issuer.NextRenewal(begin.Add(tt.after), begin, begin.Add(tt.life), tt.before, constant(tt.random))
			if want := begin.Add(tt.want); !got.Equal(want) {
				t.Errorf("got %v after begin, want %v", got.Sub(begin), tt.want)
			}
		})
	}
}

func TestBackoff(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	temporary := &issuer.Error{Kind: issuer.KindTemporary}
	validation, paused := &issuer.Error{Kind: issuer.KindValidation}, &issuer.Error{Kind: issuer.KindPaused}
	tests := []struct {
		name     string
		attempts int
		life     time.Duration // 0: never issued
		left     time.Duration
		err      *issuer.Error
		jitter   float64 // -1 is the shortest wait, 1 the longest
		want     time.Duration
	}{
		{name: "90 d, first", attempts: 1, life: 90 * day, left: 30 * day, want: time.Minute},
		{name: "90 d, second", attempts: 2, life: 90 * day, left: 30 * day, want: 10 * time.Minute},
		{name: "90 d, third", attempts: 3, life: 90 * day, left: 30 * day, want: 100 * time.Minute},
		{name: "90 d, fourth", attempts: 4, life: 90 * day, left: 30 * day, want: 1000 * time.Minute},
		{name: "90 d, at most a day", attempts: 5, life: 90 * day, left: 30 * day, want: day},
		{name: "90 d, after very many", attempts: 1 << 40, life: 90 * day, left: 30 * day, want: day},
		{name: "90 d, a tenth of what is left", attempts: 5, life: 90 * day, left: 10 * time.Hour, want: time.Hour},
		{name: "90 d, the end is near", attempts: 5, life: 90 * day, left: time.Minute, want: time.Minute},
		{name: "60 s, first", attempts: 1, life: time.Minute, left: 30 * time.Second, want: time.Second},
		{name: "60 s, second", attempts: 2, life: time.Minute, left: 29 * time.Second, want: 2900 * time.Millisecond},
		{name: "60 s, never under a second", attempts: 9, life: time.Minute, left: time.Second, want: time.Second},
		{name: "never issued, first", attempts: 1, want: 10 * time.Second},
		{name: "never issued, second", attempts: 2, want: time.Minute},
		{name: "never issued, third", attempts: 3, want: 10 * time.Minute},
		{name: "never issued, fourth", attempts: 4, want: 15 * time.Minute},
		{name: "never issued, at most 6 h", attempts: 100, want: 6 * time.Hour},
		{name: "expired is as never issued", attempts: 1, life: 90 * day, left: -time.Hour, want: 10 * time.Second},
		{name: "expired, at most an hour", attempts: 100, life: 90 * day, left: -time.Hour, want: time.Hour},
		{name: "expired, short life", attempts: 100, life: time.Hour, left: -time.Hour, want: 6 * time.Minute},
		{name: "not further into the last twentieth than its begin", attempts: 5, life: 100 * day, left: 5*day + 2*time.Hour, want: 2 * time.Hour},
		{name: "last twentieth, at most an hour", attempts: 5, life: 100 * day, left: 4 * day, want: time.Hour},
		{name: "validation, first", attempts: 1, err: validation, want: time.Minute},
		{name: "validation, second", attempts: 2, err: validation, want: 10 * time.Minute},
		{name: "validation, third", attempts: 3, err: validation, want: 100 * time.Minute},
		{name: "validation, at most 6 h", attempts: 100, err: validation, want: 6 * time.Hour},
		{name: "validation, the end is near", attempts: 9, life: 90 * day, left: time.Minute, err: validation, want: 30 * time.Minute},
		{name: "validation, 60 s", attempts: 9, life: time.Minute, left: 20 * time.Second, err: validation, want: 2 * time.Second},
		{name: "paused: a day and a little", attempts: 1, life: 6 * day, left: day, err: paused, want: day + day/10},
		{name: "paused: not earlier", attempts: 1, jitter: -1, err: paused, want: day},
		{name: "jitter down", attempts: 2, life: 90 * day, left: 30 * day, jitter: -1, want: 8 * time.Minute},
		{name: "jitter up", attempts: 2, life: 90 * day, left: 30 * day, jitter: 1, want: 12 * time.Minute},
		{
			name: "never before Retry-After", attempts: 1, life: 90 * day, left: 30 * day,
			err: &issuer.Error{Kind: issuer.KindRateLimited, RetryAfter: 34 * time.Hour}, want: 34 * time.Hour,
		},
		{
			name: "jitter keeps Retry-After", attempts: 1, life: 90 * day, left: 30 * day, jitter: -1,
			err: &issuer.Error{Kind: issuer.KindTemporary, RetryAfter: time.Minute}, want: time.Minute,
		},
		{
			name: "Retry-After of a week, half of 6 d: tried at the last twentieth", attempts: 1, life: 6 * day, left: 3 * day,
			err: &issuer.Error{Kind: issuer.KindTemporary, RetryAfter: 7 * day}, want: 3*day - 6*day/20,
		},
		{
			name: "the same with a 429 that names no limit", attempts: 1, life: 6 * day, left: 3 * day,
			err: &issuer.Error{Kind: issuer.KindRateLimited, RetryAfter: 7 * day}, want: 3*day - 6*day/20,
		},
		{
			name: "a limit that has a name", attempts: 1, life: 6 * day, left: 3 * day,
			err: &issuer.Error{Kind: issuer.KindRateLimited, Limit: "l", RetryAfter: 7 * day}, want: 7 * day,
		},
		{
			name: "Retry-After of a week in the last twentieth", attempts: 1, life: 6 * day, left: 4 * time.Hour,
			err: &issuer.Error{Kind: issuer.KindTemporary, RetryAfter: 7 * day}, want: time.Hour,
		},
		{
			name: "Retry-After of a week, a minute before the end", attempts: 1, life: 6 * day, left: time.Minute,
			err: &issuer.Error{Kind: issuer.KindTemporary, RetryAfter: 7 * day}, want: time.Minute,
		},
		{
			name: "Retry-After of a week, 60 s", attempts: 1, life: time.Minute, left: 2 * time.Second,
			err: &issuer.Error{Kind: issuer.KindTemporary, RetryAfter: 7 * day}, want: time.Second,
		},
		{
			name: "Retry-After of a week, expired", attempts: 1, life: 6 * day, left: -time.Minute,
			err: &issuer.Error{Kind: issuer.KindTemporary, RetryAfter: 7 * day}, want: time.Hour,
		},
		{
			name: "Retry-After of a week, never issued", attempts: 1,
			err: &issuer.Error{Kind: issuer.KindTemporary, RetryAfter: 7 * day}, want: 7 * day,
		},
		{name: "rate limit without a time", attempts: 1, err: &issuer.Error{Kind: issuer.KindRateLimited}, want: time.Hour},
		{
			name: "rate limit without a time, short life", attempts: 1, life: time.Hour, left: 20 * time.Minute,
			err: &issuer.Error{Kind: issuer.KindRateLimited}, want: 2 * time.Minute,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var notBefore, notAfter time.Time
			if tt.life != 0 {
				notAfter = now.Add(tt.left)
				notBefore = notAfter.Add(-tt.life)
			}
			err := tt.err
			if err == nil {
				err = temporary
			}
			got := issuer.Backoff(tt.attempts, now, notBefore, notAfter, err, constant((1+tt.jitter)/2))
			if diff := (got - tt.want).Abs(); diff > time.Millisecond {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

// TestBackoffKeepsValidationLimit replays a name that never validates against Let's Encrypt's limits: 5 failures an hour, one more
// every 12 minutes, of which one is left to people, and a paused name after 1,152 failures in a row.
func TestBackoffKeepsValidationLimit(t *testing.T) {
	t.Parallel()
	begin := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	for name, end := range map[string]time.Time{
		"never issued": {}, "90 d": begin.Add(30 * day), "90 d, soon over": begin.Add(4 * time.Hour), "expired": begin.Add(-time.Hour),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var notBefore time.Time
			if !end.IsZero() {
				notBefore = end.Add(-90 * day)
			}
			var failures []time.Time
			for at := begin; at.Before(begin.Add(180 * day)); {
				failures = append(failures, at)
				if n := len(failures); n > 4 && at.Sub(failures[n-5]) <= time.Hour {
					t.Fatalf("failure %d is the fifth within %v", n, at.Sub(failures[n-5]))
				}
				at = at.Add(issuer.Backoff(len(failures), at, notBefore, end, &issuer.Error{Kind: issuer.KindValidation}, constant(0)))
			}
			if len(failures) >= 1152 {
				t.Errorf("got %d failures in 180 days, want less than 1152", len(failures))
			}
		})
	}
}
