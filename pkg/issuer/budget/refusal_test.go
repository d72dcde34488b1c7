package budget

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sds-server/sds-server/pkg/issuer"
)

// TestRefusalCorrectsTheLimitThatItNames has the texts of Boulder: ratelimits/limiter.go, and the ones before 2025.
func TestRefusalCorrectsTheLimitThatItNames(t *testing.T) {
	set := setID([]string{"api.example.com", "www.example.org"})
	const all, none = "all", ""
	tests := []struct {
		name, message string
		after         time.Duration
		limit, scope  string // the one that is used up then; all: shut for that time; none
		want          time.Duration
	}{
		{
			"exact set", "too many certificates (5) already issued for this exact set of identifiers in the last 168h0m0s, retry after 2000-01-01 10:00:00 UTC: see https://letsencrypt.org/docs/rate-limits/#new-certificates-per-exact-set-of-identifiers",
			0, ExactSet, set, 10 * time.Hour,
		},
		{"exact set, Retry-After", "too many certificates (5) already issued for this exact set of domains in the last 168h0m0s, retry after 2000-01-01 10:00:00 UTC", 3 * time.Hour, ExactSet, set, 3 * time.Hour},
		{"exact set, until 2024", "Error creating new order :: too many certificates (5) already issued for this exact set of domains in the last 168 hours: sadfsadf.com, retry after 2000-01-01T05:00:00Z: see https://letsencrypt.org/docs/duplicate-certificate-limit/", 0, ExactSet, set, 5 * time.Hour},
		{"registered domain", `too many certificates (50) already issued for "example.com" in the last 168h0m0s, retry after 2000-01-01 02:00:00 UTC: see https://letsencrypt.org/docs/rate-limits/#new-certificates-per-registered-domain`, 0, RegisteredDomain, "example.com", 2 * time.Hour},
		{"registered domain, until 2024", "too many certificates already issued for: example.org, retry after 2000-01-01T05:00:00Z", 0, RegisteredDomain, "example.org", 5 * time.Hour},
		{"orders", "too many new orders (300) from this account in the last 3h0m0s, retry after 2000-01-01 00:30:00 UTC", 0, NewOrders, "", 30 * time.Minute},
		{"failed authorizations", `too many failed authorizations (5) for "api.example.com" in the last 1h0m0s, retry after 2000-01-01 00:12:00 UTC`, 0, FailedAuthorizations, "api.example.com", 12 * time.Minute},
		{"no time", "too many new orders", 0, NewOrders, "", 36 * time.Second},
		{"a time that has passed", "too many new orders, retry after 1999-01-01 00:30:00 UTC", 0, NewOrders, "", 36 * time.Second},
		{"another domain", `too many certificates (50) already issued for "example.net" in the last 168h0m0s`, time.Hour, all, "", time.Hour},
		{"unknown", "Service busy; retry later.", time.Hour, all, "", time.Hour},
		{"unknown, no time", "Service busy; retry later.", 0, all, "", 36 * time.Second},
		{"unknown, for a week", "come back later", 7 * 24 * time.Hour, all, "", longestUnnamed},
		{"unknown, for a week by its text", "come back later, retry after 2000-01-08 00:00:00 UTC", 0, all, "", longestUnnamed},
		{"another domain, for a week", `too many certificates (50) already issued for "example.net" in the last 168h0m0s`, 7 * 24 * time.Hour, all, "", longestUnnamed},
		{"orders, for years", "too many new orders", 10 * 365 * 24 * time.Hour, NewOrders, "", longestRefusal},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { // it is 2000-01-01
				s := openStore(t)
				l := letsEncrypt(t, s)
				use := urgent(order("www.example.org", "api.example.com"))
				mustSpend(t, l, use)
				if err := l.Refused(t.Context(), use, tt.after, tt.message); err != nil {
					t.Fatal(err)
				}
				l = letsEncrypt(t, s) // as it is stored
				e := spend(t, l, use)
				if e == nil || e.RetryAfter.Round(time.Second) != tt.want {
					t.Fatalf("spend after the refusal: %v, want it to wait for %v", e, tt.want)
				}
				if !strings.Contains(e.Message, "the CA has refused it by ") || tt.limit != all && e.Limit != tt.limit {
					t.Errorf("limit %q, message %q, want that the CA has refused it by %q", e.Limit, e.Message, tt.limit)
				}
				time.Sleep(tt.want) //nolint:forbidigo // the time of the bubble
				for _, one := range []struct {
					limit, scope string
					want         int64
				}{{NewOrders, "", 299}, {RegisteredDomain, "example.com", 49}, {RegisteredDomain, "example.org", 49}, {ExactSet, set, 4}, {FailedAuthorizations, "api.example.com", 5}, {FailedAuthorizations, "www.example.org", 5}} {
					want := one.want
					if one.limit == tt.limit && one.scope == tt.scope {
						want = 1
					}
					if got := left(l, one.limit, one.scope); got != want && (want <= 1 || got != want+1) { // refilled
						t.Errorf("%s %s: %d left then, want %d", one.limit, one.scope, got, want)
					}
				}
				if tt.limit != FailedAuthorizations && tt.limit != none {
					mustSpend(t, l, use)
				}
			})
		})
	}
}

func TestRefusedAccountWaits(t *testing.T) {
	l := letsEncrypt(t, openStore(t))
	use := issuer.Use{Kind: issuer.UseAccount, Urgent: true}
	mustSpend(t, l, use)
	if err := l.Refused(t.Context(), use, 0, "too many new registrations (10) from this IP address in the last 3h0m0s"); err != nil {
		t.Fatal(err)
	}
	if e := spend(t, l, use); e == nil || e.RetryAfter > 18*time.Minute || e.RetryAfter < 17*time.Minute {
		t.Errorf("account after the refusal: %v, want it to wait for 18m", e)
	}
	mustSpend(t, l, order("www.example.com"))
}
