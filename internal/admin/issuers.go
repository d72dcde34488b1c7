package admin

import (
	"context"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sds-server/sds-server/pkg/issuer"
	"github.com/sds-server/sds-server/pkg/issuer/acme"
	"github.com/sds-server/sds-server/pkg/issuer/maintenance"
)

// inspectTime bounds an inspection: the command waits for answerTime.
const inspectTime = answerTime - 5*time.Second

// ConfiguredIssuer is a configured issuer.
type ConfiguredIssuer struct {
	Name, Directory, Email, Profile string
	EAB                             string // key id
	CAFile, RootsFile               string
	RootsUnchecked                  bool
	Windows                         []maintenance.Window
	// Warnings tell what the configuration would run into there.
	Warnings func(now time.Time) []Warning
	CA       CA
}

// CA is what an issuer tells of its certificate authority. Only Inspect asks the CA.
type CA interface {
	Account(ctx context.Context) (string, error)
	LastDirectory() (acme.Directory, bool)
	Inspect(ctx context.Context, o acme.InspectOptions) acme.Inspection
}

var _ CA = (*acme.Issuer)(nil)

func (l Live) issuer(name string) (ConfiguredIssuer, bool) {
	i := slices.IndexFunc(l.Issuers, func(c ConfiguredIssuer) bool { return c.Name == name })
	if i < 0 {
		return ConfiguredIssuer{}, false
	}
	return l.Issuers[i], true
}

func unknownIssuer(live Live, name string) error {
	var names []string
	for _, i := range live.Issuers {
		names = append(names, i.Name)
	}
	hint := "no issuer is configured"
	if len(names) > 0 {
		slices.Sort(names)
		hint = "issuers: " + strings.Join(names, ", ")
	}
	return fail(http.StatusNotFound, "no issuer named "+strconv.Quote(name), hint)
}

func (s *Server) issuers(r *http.Request) (any, error) {
	live := s.Live()
	out := Issuers{Issuers: []IssuerHead{}}
	for _, c := range live.Issuers {
		head, err := s.issuerHead(r.Context(), live, c)
		if err != nil {
			return nil, err
		}
		out.Issuers = append(out.Issuers, head)
	}
	slices.SortFunc(out.Issuers, func(a, b IssuerHead) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

func (s *Server) issuerHead(ctx context.Context, live Live, c ConfiguredIssuer) (IssuerHead, error) {
	now := time.Now()
	out := IssuerHead{Name: c.Name, Directory: c.Directory, Up: true, Certificates: []string{}, Hold: s.waits(c.Name, now)}
	for _, a := range s.Issuer.Issuers() {
		if a.Issuer == c.Name {
			out.Up = a.Up
			if w := a.Stopped; w != nil && out.Hold == nil { // the CA is down
				out.Hold = &IssuerHold{Reason: w.Message, Until: w.Until.UTC()}
			}
		}
	}
	account, err := c.CA.Account(ctx)
	if err != nil {
		return out, err
	}
	out.Account = optional(account)
	for _, cert := range live.Certificates {
		if slices.Contains(cert.Issuers, c.Name) {
			out.Certificates = append(out.Certificates, cert.Name)
		}
	}
	slices.Sort(out.Certificates)
	out.Error = lastError(s.Issuer.Status(), live, c.Name)
	if next, ok := s.Maintenance.Next(c.Name, now); ok {
		out.Maintenance = new(window(next))
	}
	return out, nil
}

// lastError is the newest failure of the certificates that are ordered at an issuer.
func lastError(status []issuer.Status, live Live, name string) *IssuerError {
	ordered := map[string]bool{}
	for _, cert := range live.Certificates {
		ordered[cert.Name] = len(cert.Issuers) > 0 && cert.Issuers[0] == name
	}
	var out *IssuerError
	for _, st := range status {
		if f := st.Failure; f != nil && ordered[st.Name] && (out == nil || f.At.After(out.At)) {
			out = &IssuerError{Secret: st.Name, Kind: string(f.Kind), Message: f.Message, At: f.At.UTC()}
		}
	}
	return out
}

// waits says why ordinary renewals wait at an issuer; nil where they do not.
func (s *Server) waits(name string, now time.Time) *IssuerHold {
	reason, until := s.Maintenance.Hold(name, now)
	if reason == "" {
		return nil
	}
	return &IssuerHold{Reason: reason, Until: until.UTC()}
}

func window(w maintenance.Window) Maintenance {
	return Maintenance{Name: optional(w.Name), From: w.From.UTC(), To: w.To.UTC()}
}

func windows(list []maintenance.Window) []Maintenance {
	out := make([]Maintenance, 0, len(list))
	for _, w := range list {
		out = append(out, window(w))
	}
	slices.SortStableFunc(out, func(a, b Maintenance) int { return a.From.Compare(b.From) })
	return out
}

func (s *Server) issuer(r *http.Request) (any, error) {
	live := s.Live()
	c, ok := live.issuer(r.PathValue("issuer"))
	if !ok {
		return nil, unknownIssuer(live, r.PathValue("issuer"))
	}
	head, err := s.issuerHead(r.Context(), live, c)
	if err != nil {
		return nil, err
	}
	out := Issuer{
		IssuerHead: head, Email: optional(c.Email), Profile: optional(c.Profile), EAB: optional(c.EAB), CAFile: optional(c.CAFile),
		RootsFile: optional(c.RootsFile), RootsUnchecked: c.RootsUnchecked, Maintenances: windows(c.Windows), Warnings: c.Warnings(time.Now()),
	}
	if p, ok := s.Maintenance.Page(c.Name); ok {
		out.StatusPage = &StatusPage{
			URL: p.URL, At: optionalTime(p.At), Trouble: optional(p.Trouble), Since: optionalTime(p.Since), Announced: windows(p.Announced),
			Error: optional(p.Failure),
		}
	}
	if d, ok := c.CA.LastDirectory(); ok {
		out.Seen = directory(d)
	}
	return out, nil
}

func directory(d acme.Directory) *IssuerDirectory {
	out := &IssuerDirectory{
		At: d.At.UTC(), Terms: optional(d.Terms), Website: optional(d.Website), CAAIdentities: sorted(d.CAAIdentities),
		EABRequired: d.EABRequired, Profiles: []IssuerProfile{}, RenewalInfo: d.RenewalInfo,
	}
	for name, text := range d.Profiles {
		out.Profiles = append(out.Profiles, IssuerProfile{Name: name, Description: text})
	}
	slices.SortFunc(out.Profiles, func(a, b IssuerProfile) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// testIssuer asks a CA now.
func (s *Server) testIssuer(r *http.Request) (any, error) {
	var req TestRequest
	if err := body(r, &req); err != nil {
		return nil, err
	}
	live := s.Live()
	c, ok := live.issuer(r.PathValue("issuer"))
	if !ok {
		return nil, unknownIssuer(live, r.PathValue("issuer"))
	}
	o := acme.InspectOptions{Register: req.Register}
	for _, cert := range live.Certificates {
		if slices.Contains(cert.Issuers, c.Name) {
			o.Profiles = append(o.Profiles, cert.Profile)
		}
	}
	ctx, cancel := context.WithTimeout(r.Context(), inspectTime)
	defer cancel()
	x := c.CA.Inspect(ctx, o)
	out := IssuerTest{Name: c.Name, OK: !x.Failed(), Account: optional(x.Account), Checks: []IssuerCheck{}}
	for _, check := range x.Checks {
		out.Checks = append(out.Checks, IssuerCheck{Check: check.Name, Result: string(check.Result), Message: check.Message, Hint: optional(check.Hint)})
	}
	if !x.Directory.At.IsZero() {
		out.Seen = directory(x.Directory)
	}
	out.Checks = append(out.Checks, s.pageCheck(c.Name)...)
	out.Checks = append(out.Checks, limitChecks(c.Warnings(time.Now()))...)
	return out, nil
}

// pageCheck tells what the status page says; it is a hint, so it fails nothing.
func (s *Server) pageCheck(name string) []IssuerCheck {
	p, ok := s.Maintenance.Page(name)
	check := IssuerCheck{Check: "status_page", Result: string(acme.CheckWarn)}
	switch {
	case !ok:
		return nil
	case p.Failure != "":
		check.Message, check.Hint = p.Failure, new("it holds no renewals; check status_url of the issuer")
	case p.At.IsZero():
		check.Message, check.Hint = "it was not looked at yet", new("ask again")
	case p.Trouble != "":
		check.Message, check.Hint = p.Trouble, new("ordinary renewals wait for a day at most; urgent ones do not")
	default:
		check.Result, check.Message = string(acme.CheckOK), "it says that all is well"
	}
	return []IssuerCheck{check}
}

// limitChecks are the warnings of the configuration.
func limitChecks(warnings []Warning) []IssuerCheck {
	if len(warnings) == 0 {
		return []IssuerCheck{{Check: "limits", Result: string(acme.CheckOK), Message: "the configuration runs into none that is known here"}}
	}
	out := make([]IssuerCheck, 0, len(warnings))
	for _, w := range warnings {
		out = append(out, IssuerCheck{Check: "limits", Result: string(acme.CheckWarn), Message: w.Path + ": " + w.Message, Hint: optional(w.Hint)})
	}
	return out
}
