package budget

import (
	"cmp"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/sds-server/sds-server/pkg/issuer"
)

// crossed returns why a use does not fit: the limit that lets it pass last. It is an *issuer.Error.
func (r *rules) crossed(now int64, urgent bool, of []*touched) error {
	var last *touched
	var at int64
	for _, t := range of {
		if !t.check || t.fits(t.limit, now, urgent) {
			continue
		}
		if one := t.fitsAt(t.limit, now, urgent); last == nil || one > at {
			last, at = t, one
		}
	}
	if last == nil {
		return nil
	}
	l := last.limit
	e := &issuer.Error{Kind: issuer.KindBudget, Issuer: r.Issuer, Limit: l.name, RetryAfter: time.Duration(max(at-now, 1)), Hint: hintFor(l.name)}
	if l.name != NewOrders && l.name != NewAccounts { // those are the account's: what is refused at one of them waits together
		e.Identifier = cmp.Or(last.touch.label, last.name()) // a label that was stored by an older version is not unique
	}
	when, what := time.Unix(0, at).UTC().Round(time.Second).Format(time.RFC3339), another(l.name, last.name())
	left := fmt.Sprintf("none of %d left", l.all.burst)
	if n := last.left(l, now, true); n > 0 {
		left = fmt.Sprintf("%d of %d left, for emergencies", n, l.all.burst)
	}
	e.Message = fmt.Sprintf("no room in the budget for %s: %s of %s has %s; nothing was asked of the CA, there is room again at %s", what, l.name, r.ca, left, when)
	if last.until > now {
		e.Message = fmt.Sprintf("no room in the budget for %s: the CA has refused it by %s of %s; nothing more is asked before %s", what, l.name, r.ca, when)
	}
	return e
}

// another says what a limit keeps from being done.
func another(limit, scope string) string {
	switch limit {
	case NewOrders:
		return "another order of this account"
	case RegisteredDomain:
		return "another certificate for " + scope + " and the names below it"
	case ExactSet:
		return "another certificate for exactly " + scope
	case FailedAuthorizations:
		return "an order for " + scope + ", whose validations fail"
	case ConsecutiveFailures:
		return "an order for " + scope + ", whose validations have failed without a success in between"
	}
	return "another account"
}

func hintFor(limit string) string {
	switch limit {
	case FailedAuthorizations, ConsecutiveFailures:
		return "mend what makes the validations fail (see `status`); it is tried again by itself, and earlier nowhere"
	}
	return "it is ordered by itself then; `sds-server budget` shows all limits. Where the CA allows you more, set issuers[].budget.limits"
}

// refusal is what a CA has said about one of its limits.
type refusal struct {
	// limit is the one that the message names; "" where it names none that is known.
	limit string
	// scope is the domain or identifier that it names; "" for every one that the use is about.
	scope string
	// retry is when it fits again, by the message; zero where that does not say.
	retry time.Time
}

// refusalTexts are the beginnings of what Boulder says (ratelimits/limiter.go, Decision.Result), and what it said before 2025.
var refusalTexts = []struct {
	limit string
	text  *regexp.Regexp
}{
	{ExactSet, regexp.MustCompile(`(?i)too many certificates .*exact set of (identifiers|domains)`)},
	{RegisteredDomain, regexp.MustCompile(`(?i)too many certificates .*issued for:? "?([^\s",]+)`)},
	{NewOrders, regexp.MustCompile(`(?i)too many new orders`)},
	{FailedAuthorizations, regexp.MustCompile(`(?i)too many failed authorizations(?:.* for "([^"]+)")?`)},
	{NewAccounts, regexp.MustCompile(`(?i)too many (?:new )?registrations`)},
}

// retryText is when a request fits again, as Boulder says it.
var retryText = regexp.MustCompile(`retry after (\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d ?(?:UTC|Z))`)

// readRefusal finds out which limit a message is about.
func readRefusal(message string) refusal {
	var out refusal
	if m := retryText.FindStringSubmatch(message); m != nil {
		text := strings.NewReplacer("T", " ", "UTC", "", "Z", "").Replace(m[1])
		out.retry, _ = time.Parse(time.DateTime, strings.TrimSpace(text)) // zero where it is no time
	}
	for _, one := range refusalTexts {
		m := one.text.FindStringSubmatch(message)
		if m == nil {
			continue
		}
		out.limit = one.limit
		if len(m) > 1 && one.limit != ExactSet {
			out.scope = strings.ToLower(m[1])
		}
		return out
	}
	return out
}

// longestUnnamed is how long a refusal shuts that names no limit of the use: it shuts limits that it is most likely not about, to urgent work as
// well, and nobody can open them. Asking once in that time costs the CA little.
const longestUnnamed = time.Hour

// apply corrects the buckets of a use. The limit that is named has one token at that time, and nothing before; a text that names none, or one
// that is not kept, shuts all that the use spends until then, for longestUnnamed at most, and takes nothing else away.
func (r refusal) apply(now int64, after time.Duration, of []*touched) {
	named := func(t *touched) bool {
		return t.limit.name == r.limit && (r.scope == "" || t.touch.scope == r.scope)
	}
	known := false
	soonest := int64(longestRefusal)
	for _, t := range of {
		known = known || named(t)
		if t.spend {
			soonest = min(soonest, t.limit.all.refill)
		}
	}
	for _, t := range of {
		if known && !named(t) {
			continue
		}
		if !known && !t.spend {
			continue
		}
		until := add(now, int64(after))
		if after <= 0 && !r.retry.IsZero() {
			until = r.retry.UnixNano()
		}
		if until <= now {
			until = add(now, t.limit.all.refill)
			if !known { // each of the slower ones would shut for a day what it is most likely not about
				until = add(now, soonest)
			}
		}
		if !known {
			until = min(until, add(now, int64(longestUnnamed)))
		}
		t.refuse(t.limit, now, until, known)
		t.changed = true
	}
}
