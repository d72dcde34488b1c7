package acme

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	legoacme "github.com/go-acme/lego/v4/acme"
	"github.com/go-acme/lego/v4/acme/api"

	"github.com/sds-server/sds-server/pkg/issuer"
	"github.com/sds-server/sds-server/pkg/store"
)

const hintAccount = "ask the CA why; an issuer of another name gets an account of its own"

// InspectOptions say what an inspection looks at besides the CA itself.
type InspectOptions struct {
	// Register registers the account where the CA does not have it. Otherwise an inspection changes nothing.
	Register bool
	// Profiles are those that certificates ask for at this issuer. That of the issuer itself is looked at anyway.
	Profiles []string
}

// Inspection is what a CA shows of itself and of our account.
type Inspection struct {
	// Directory is what its directory says; the zero value where it could not be read.
	Directory Directory
	// Account is the URL of our account; empty if there is none.
	Account string
	// Checks are in the order in which they were made. Where the directory cannot be read it is the last one.
	Checks []Check
}

// Failed reports whether a check has failed.
func (i *Inspection) Failed() bool {
	return slices.ContainsFunc(i.Checks, func(c Check) bool { return c.Result == CheckFail })
}

// Directory is what a CA's directory says (RFC 8555, Section 7.1.1). Texts are as the CA wrote them, without control characters.
type Directory struct {
	// At is when it was fetched.
	At time.Time
	// Terms is the URL of the terms of service, Website that of a page about the CA; empty where there is none.
	Terms, Website string
	// CAAIdentities are the names for CAA records that allow this CA.
	CAAIdentities []string
	// EABRequired reports whether accounts have to be bound to external ones.
	EABRequired bool
	// Profiles are descriptions by name.
	Profiles map[string]string
	// RenewalInfo reports whether the CA suggests when to renew (RFC 9773).
	RenewalInfo bool
}

// Check is one thing that was looked at.
type Check struct {
	// Name is one of directory, tls, clock, nonce, terms, eab, account, profiles, renewal_info, caa.
	Name   string
	Result CheckResult
	// Message says what was found, Hint what to do about it; Hint may be empty.
	Message, Hint string
}

// CheckResult is how a check came out.
type CheckResult string

// The results of a check: as it has to be, not what it should be, and orders will fail.
const (
	CheckOK   CheckResult = "ok"
	CheckWarn CheckResult = "warn"
	CheckFail CheckResult = "fail"
)

// LastDirectory returns the directory as it was fetched last; false if it has not been since the start, or could not be used then. It
// asks nothing of the CA.
func (i *Issuer) LastDirectory() (Directory, bool) {
	i.conn.mu.Lock()
	body, at := i.conn.directory, i.conn.directoryAt
	i.conn.mu.Unlock()
	d, err := parseDirectory(body)
	if err != nil {
		return Directory{}, false
	}
	return readDirectory(d, at), true
}

// Account returns the URL of our account as the store knows it; empty if there is none. It asks nothing of the CA.
func (i *Issuer) Account(ctx context.Context) (string, error) {
	a, err := i.storedAccount(ctx)
	return a.KID, err
}

// Inspect asks the CA now: whether it can be reached and trusted, whether it knows our account, and whether it does what is configured. It
// changes nothing unless Register is set.
func (i *Issuer) Inspect(ctx context.Context, o InspectOptions) Inspection {
	x := &inspector{issuer: i, options: o}
	if x.directory(ctx) {
		x.nonce(ctx)
		x.terms()
		x.eab(ctx)
		x.account(ctx)
		x.profiles()
		x.renewalInfo()
		x.caa()
	}
	return x.result
}

// inspector is one inspection under way.
type inspector struct {
	issuer  *Issuer
	options InspectOptions
	found   legoacme.Directory
	result  Inspection
}

func (x *inspector) add(name string, result CheckResult, hint, format string, args ...any) {
	x.result.Checks = append(x.result.Checks, Check{Name: name, Result: result, Message: printable(fmt.Sprintf(format, args...)), Hint: hint})
}

func (x *inspector) terms() {
	terms := x.found.Meta.TermsOfService
	switch {
	case terms == "":
		x.add("terms", CheckOK, "", "the CA has no terms of service")
	case x.issuer.options.AcceptTOS:
		x.add("terms", CheckOK, "", "accepted: %s", terms)
	default:
		x.add("terms", CheckFail, "read them, and set accept_tos: true", "not accepted: %s", terms)
	}
}

// eab compares what the CA asks for with what is configured. An account that is there needs no binding any more.
func (x *inspector) eab(ctx context.Context) {
	needed, configured := x.found.Meta.ExternalAccountRequired, x.issuer.options.EAB != nil
	if configured {
		if _, err := x.issuer.readEAB(); err != nil {
			x.add("eab", CheckFail, "set eab.hmac_key_file to a file with the key as the CA shows it", "%v", err)
			return
		}
	}
	account, _ := x.issuer.storedAccount(ctx) // the check of the account tells the error
	switch {
	case needed && configured:
		x.add("eab", CheckOK, "", "required, and configured: %s", x.issuer.options.EAB.KID)
	case needed && account.KID != "":
		x.add("eab", CheckWarn, "set eab of the issuer, for the case that the account has to be registered again", "required for new accounts, and not configured")
	case needed:
		x.add("eab", CheckFail, hintOf("externalAccountRequired"), "required, and not configured")
	case configured:
		x.add("eab", CheckOK, "", "configured, and not required")
	default:
		x.add("eab", CheckOK, "", "not required")
	}
}

// account asks the CA about our account, which tries signature, nonce and key as well.
func (x *inspector) account(ctx context.Context) {
	stored, err := x.issuer.storedAccount(ctx)
	if err != nil {
		x.add("account", CheckFail, hintOf(causeOurSide), "%v", err)
		return
	}
	if stored.KID == "" {
		x.register(ctx, "")
		return
	}
	x.result.Account = stored.KID
	signer, err := decodeKey(stored.Key)
	if err != nil {
		x.add("account", CheckFail, hintOf(causeOurSide), "%v", err)
		return
	}
	var got legoacme.Account
	err = x.issuer.conn.call(ctx, accountKey{signer: signer, kid: stored.KID}, endpointAccount, func(core *api.Core) (err error) {
		got, err = core.Accounts.Get(stored.KID)
		return err
	})
	f, _ := errors.AsType[*failure](err)
	switch {
	case err == nil:
		x.judgeAccount(stored.KID, got)
	case f != nil && f.problem() != nil && f.problem().Type == problemAccountDoesNotExist:
		x.register(ctx, stored.KID)
	default:
		x.accountFailed(ctx, err)
	}
}

// register is for an account that the CA does not have; lost is its URL where it had it once.
func (x *inspector) register(ctx context.Context, lost string) {
	if !x.options.Register {
		if lost != "" {
			x.add("account", CheckWarn, "the next order registers it again; `issuers test --register` does it now", "the CA does not know it any more: %s", lost)
			return
		}
		x.add("account", CheckOK, "", "none yet; the first order registers one, or `issuers test --register`")
		return
	}
	key, err := x.issuer.ensureAccount(ctx, lost)
	if err != nil {
		x.accountFailed(ctx, err)
		return
	}
	x.result.Account = key.kid
	x.add("account", CheckOK, "", "registered: %s", key.kid)
}

func (x *inspector) accountFailed(ctx context.Context, err error) {
	hint := ""
	err = x.issuer.classify(ctx, "account", err)
	if e, ok := errors.AsType[*issuer.Error](err); ok {
		hint = e.Hint
	}
	if f, ok := errors.AsType[*failure](err); ok && f.problem() != nil && f.problem().Type == problemUnauthorized {
		hint = hintAccount // the usual one is about names
	}
	x.add("account", CheckFail, hint, "%v", err)
}

func (x *inspector) judgeAccount(kid string, got legoacme.Account) {
	email := x.issuer.options.Email
	switch {
	case got.Status != legoacme.StatusValid:
		x.add("account", CheckFail, hintAccount, "%s is %s", kid, got.Status)
	case email != "" && len(got.Contact) > 0 && !slices.Contains(got.Contact, "mailto:"+email):
		x.add("account", CheckWarn, "the contact of an account is not changed by this program", "%s is valid; its contact is %s, and email is %s", kid, strings.Join(got.Contact, ", "), email)
	default:
		x.add("account", CheckOK, "", "%s is valid", kid)
	}
}

// profiles looks for each profile that would be asked for.
func (x *inspector) profiles() {
	offered := x.found.Meta.Profiles
	wanted := slices.DeleteFunc(append(slices.Clone(x.options.Profiles), x.issuer.options.Profile), func(p string) bool { return p == "" })
	slices.Sort(wanted)
	wanted = slices.Compact(wanted)
	missing := slices.DeleteFunc(slices.Clone(wanted), func(p string) bool { _, ok := offered[p]; return ok })
	list := strings.Join(slices.Sorted(maps.Keys(offered)), ", ")
	switch {
	case len(missing) > 0 && len(offered) == 0:
		x.add("profiles", CheckWarn, "leave profile empty, unless you know that the CA has it", "the CA offers none, and %s is configured", strings.Join(missing, ", "))
	case len(missing) > 0:
		x.add("profiles", CheckFail, hintOf("invalidProfile"), "%s: not among those that the CA offers: %s", strings.Join(missing, ", "), list)
	case len(offered) == 0:
		x.add("profiles", CheckOK, "", "the CA offers none")
	case len(wanted) == 0:
		x.add("profiles", CheckOK, "", "none is configured, so the CA chooses among %s", list)
	default:
		x.add("profiles", CheckOK, "", "%s, of %s", strings.Join(wanted, ", "), list)
	}
}

func (x *inspector) renewalInfo() {
	if x.found.RenewalInfo == "" {
		x.add("renewal_info", CheckOK, "", "the CA does not suggest when to renew: it is 1/3 of the life before the end, 1/2 under 10 days")
		return
	}
	x.add("renewal_info", CheckOK, "", "the CA suggests when to renew (RFC 9773)")
}

func (x *inspector) caa() {
	if len(x.found.Meta.CaaIdentities) == 0 {
		x.add("caa", CheckOK, "", "the CA names no identity for CAA records")
		return
	}
	x.add("caa", CheckOK, "", "where names have CAA records, one has to allow %s", strings.Join(x.found.Meta.CaaIdentities, " or "))
}

// storedAccount reads the account for this directory, without making one; the zero value if there is none.
func (i *Issuer) storedAccount(ctx context.Context) (account, error) {
	entry, err := i.options.Store.Get(ctx, issuer.AccountKey(i.options.Name))
	switch {
	case errors.Is(err, store.ErrNotFound):
		return account{}, nil
	case err != nil:
		return account{}, fmt.Errorf("read: %w", err)
	}
	var a account
	if err := json.Unmarshal(entry.Value, &a); err != nil {
		return account{}, fmt.Errorf("%s: %w", entry.Key, err)
	}
	if a.Directory != i.options.Directory {
		return account{}, nil // that of another CA
	}
	return a, nil
}

// parseDirectory wants what an order needs.
func parseDirectory(body []byte) (legoacme.Directory, error) {
	var d legoacme.Directory
	if err := json.Unmarshal(body, &d); err != nil {
		return d, errors.New("the answer is not the JSON of an ACME directory")
	}
	if d.NewNonceURL == "" || d.NewAccountURL == "" || d.NewOrderURL == "" {
		return d, errors.New("the answer is not an ACME directory: newNonce, newAccount or newOrder is missing")
	}
	return d, nil
}

func readDirectory(d legoacme.Directory, at time.Time) Directory {
	out := Directory{
		At: at.UTC(), Terms: printable(d.Meta.TermsOfService), Website: printable(d.Meta.Website), EABRequired: d.Meta.ExternalAccountRequired,
		Profiles: make(map[string]string, len(d.Meta.Profiles)), RenewalInfo: d.RenewalInfo != "",
	}
	for _, identity := range d.Meta.CaaIdentities {
		out.CAAIdentities = append(out.CAAIdentities, printable(identity))
	}
	for name, text := range d.Meta.Profiles {
		out.Profiles[printable(name)] = printable(text)
	}
	return out
}
