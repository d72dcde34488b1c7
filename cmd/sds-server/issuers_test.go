package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sds-server/sds-server/internal/admin"
	"github.com/sds-server/sds-server/internal/testenv"
)

// statusPage is the status page of a CA, as a real HTTP server.
type statusPage struct {
	*httptest.Server

	mu   sync.Mutex
	says string // guarded by mu
}

func newStatusPage(t *testing.T, says string) *statusPage {
	t.Helper()
	p := &statusPage{says: says}
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		p.mu.Lock()
		defer p.mu.Unlock()
		_, _ = w.Write([]byte(p.says))
	}))
	t.Cleanup(p.Close)
	return p
}

const (
	pageWell    = `{"status":{"indicator":"none","description":"All Systems Operational"},"scheduled_maintenances":[]}`
	pageTrouble = `{"status":{"indicator":"critical","description":"Major Service Outage"},"scheduled_maintenances":[
		{"name":"Database upgrade","status":"scheduled","scheduled_for":"2099-01-01T00:00:00Z","scheduled_until":"2099-01-01T02:00:00Z"}]}`
)

const (
	issuerHeadShape = `"name":"","directory":"","up":true,"account":"","certificates":[""],"error":{"secret":"","kind":"temporary|rate_limited|rejected|validation|paused|budget|internal",
		"message":"","at":""},"hold":{"reason":"","until":""},"maintenance":{"name":"","from":"","to":""}`
	seenShape    = `{"at":"","terms":"","website":"","caa_identities":[""],"eab_required":true,"profiles":[{"name":"","description":""}],"renewal_info":true}`
	issuersShape = `{"issuers":[{` + issuerHeadShape + `}]}`
	issuerShape  = `{` + issuerHeadShape + `,"email":"","profile":"","eab":"","ca_file":"","roots_file":"","roots_unchecked":true,"maintenances":[{"name":"","from":"","to":""}],
		"status_page":{"url":"","at":"","trouble":"","since":"","announced":[{"name":"","from":"","to":""}],"error":""},"seen":` + seenShape + `,
		"warnings":[{"path":"","message":"","hint":""}]}`
	issuerTestShape = `{"name":"","ok":true,"account":"","checks":[{"check":"directory|tls|clock|nonce|terms|eab|account|profiles|renewal_info|caa|status_page|limits","result":"ok|warn|fail",
		"message":"","hint":""}],"seen":` + seenShape + `}`
)

func TestIssuers(t *testing.T) {
	t.Parallel()
	page := newStatusPage(t, pageTrouble)
	_, s := pebble(t, settings{Certs: []string{"issued.example"}, Dead: "dead.example"})
	from, to := time.Now().Add(time.Hour).UTC(), time.Now().Add(2*time.Hour).UTC()
	s.IssuerExtra = fmt.Sprintf(`, email: ops@example.com, maintenance: [{from: %q, to: %q}, {from: "2020-01-01T00:00:00Z", to: "2020-01-02T00:00:00Z"}], status_url: "%s/api/v2/summary.json"`,
		from.Format(time.RFC3339), to.Format(time.RFC3339), page.URL)
	b := newBox(t, s)
	b.start()
	b.versions(1)
	b.eventually(func() error { // the status page is looked at, and the dead one has failed
		var list admin.Issuers
		b.json(&list, "issuers", "list")
		if list.Issuers[0].Hold == nil || list.Issuers[1].Error == nil {
			return fmt.Errorf("%+v", list)
		}
		return nil
	})
	var list admin.Issuers
	b.json(&list, "issuers", "list")
	ca, dead := list.Issuers[0], list.Issuers[1]
	if ca.Name != "ca" || !ca.Up || ca.Account == nil || !slices.Equal(ca.Certificates, []string{"issued.example"}) || ca.Error != nil ||
		!strings.Contains(ca.Hold.Reason, "critical: Major Service Outage") || ca.Maintenance == nil || ca.Maintenance.Name != nil || !ca.Maintenance.From.Equal(from.Truncate(time.Second)) {
		t.Errorf("ca: got %+v", ca)
	}
	if dead.Name != "dead" || dead.Up || dead.Account != nil || dead.Error.Kind != "temporary" || dead.Error.Secret != "dead.example" {
		t.Errorf("dead: got %+v", dead)
	}
	if out := b.ok("issuers", "list"); !lineHas(out, "ca", "held:", "critical:") || !strings.Contains(out, "down") || !lineHas(out, "dead", "127.0.0.1:1") {
		t.Errorf("issuers list:\n%s", out)
	}
	if out := b.ok("status"); !lineHas(out, "ca", "held:", "critical:") || !strings.Contains(out, "down") {
		t.Errorf("status:\n%s", out)
	}
	out := b.ok("issuers", "show", "ca")
	for _, want := range []string{"ops@example.com", "offers profile", "terms of service", "Database upgrade", "since", "suggests when to renew   ", *ca.Account, "is over since", "pebble-ca.pem"} {
		if !strings.Contains(out, want) {
			t.Errorf("issuers show: no %q in\n%s", want, out)
		}
	}
	if out := b.ok("issuers", "show", "dead"); !strings.Contains(out, "`issuers test` asks now") {
		t.Errorf("issuers show dead:\n%s", out)
	}
	b.shape(issuersShape, "issuers", "list")
	b.shape(issuerShape, "issuers", "show", "ca")
	b.shape(issuerShape, "issuers", "show", "dead")
	b.shape(statusShape, "status")
	b.refused(1, `no issuer named "le"`, "issuers", "show", "le")
	b.refused(1, `no issuer named "le"`, "issuers", "test", "le")
	b.refused(2, "accepts 1 arg", "issuers", "test")
	for _, args := range [][]string{{"issuers", "show", ""}, {"issuers", "test", ""}} {
		if out := b.runIn(nil, append([]string{"__complete", "-c", b.Config()}, args...)...).out; !strings.HasPrefix(out, "ca\ndead\n") {
			t.Errorf("completion of %v: %q", args, out)
		}
	}
	if out := b.ok("issuers", "list") + b.ok("issuers", "show", "ca"); strings.Contains(out, "PRIVATE") {
		t.Errorf("a key: %s", out)
	}
}

func TestIssuersTest(t *testing.T) {
	t.Parallel()
	page := newStatusPage(t, pageWell)
	proxy, s := pebble(t, settings{Dead: "dead.example"})
	s.IssuerExtra = fmt.Sprintf(`, status_url: "%s"`, page.URL)
	b := newBox(t, s)
	b.start()
	b.eventually(func() error {
		if out := b.ok("issuers", "test", "ca"); !lineHas(out, "ok", "status_page") {
			return fmt.Errorf("the status page was not looked at: %s", out)
		}
		return nil
	})
	out := b.ok("issuers", "test", "ca")
	for _, check := range []string{"directory", "tls", "clock", "nonce", "terms", "eab", "account", "profiles", "renewal_info", "caa", "status_page", "limits"} {
		if !lineHas(out, "ok", check) {
			t.Errorf("%s is not ok in\n%s", check, out)
		}
	}
	if n := proxy.Count(testenv.KindNewAccount).Received; n != 0 {
		t.Errorf("%d accounts were asked for without --register", n)
	}
	var test admin.IssuerTest
	b.json(&test, "issuers", "test", "ca", "--register")
	if !test.OK || test.Account == nil || proxy.Count(testenv.KindNewAccount).Succeeded != 1 {
		t.Errorf("--register: got %+v after %d accounts", test, proxy.Count(testenv.KindNewAccount).Succeeded)
	}
	b.shape(issuerTestShape, "issuers", "test", "ca")
	b.shape(issuerTestShape, "issuers", "test", "dead")

	r := b.run("issuers", "test", "dead")
	if r.code != 1 || r.errs != "" || !lineHas(r.out, "fail", "directory", "refused") || !strings.Contains(r.out, "hint: ") {
		t.Errorf("dead: exit %d, %s%s", r.code, r.out, r.errs)
	}
	r = b.run("issuers", "test", "dead", "-o", "json")
	if err := json.Unmarshal([]byte(r.out), &test); err != nil || test.OK || r.code != 1 {
		t.Errorf("dead: exit %d, %v, %s", r.code, err, r.out)
	}
	if out := b.ok("audit", "list"); !lineHas(out, "issuers", "test", "register=true", "issuer=ca", "ok=true") || !lineHas(out, "issuer=dead", "ok=false") {
		t.Errorf("audit:\n%s", out)
	}
	// Another trust and a profile that is not there count with the next test, after the reload.
	s.IssuerExtra = ""
	s.CAFile, s.Certs = s.RootsFile, []string{"other.example"}
	b.configure(s)
	b.eventually(func() error {
		r := b.run("issuers", "test", "ca")
		if r.code != 1 || !lineHas(r.out, "fail", "tls") {
			return fmt.Errorf("exit %d: %s", r.code, r.out)
		}
		return nil
	})
}

// TestAMaintenanceHoldsWhatIsNotForced begins in a planned window, with two certificates that are due.
func TestAMaintenanceHoldsWhatIsNotForced(t *testing.T) {
	t.Parallel()
	proxy, s := pebble(t, settings{Certs: []string{"a.example", "b.example"}})
	end := time.Now().Add(time.Hour).UTC().Format(time.RFC3339)
	s.IssuerExtra = fmt.Sprintf(`, maintenance: [{from: "2020-01-01T00:00:00Z", to: %q}]`, end)
	b := newBox(t, s)
	b.start()
	b.eventually(func() error {
		if out := b.ok("issuers", "list"); !lineHas(out, "ca", "held:", "maintenance", "planned", end) {
			return fmt.Errorf("no hold in %s", out)
		}
		return nil
	})
	b.refused(1, `certificate "a.example" waits until `+end+": a maintenance is planned", "renew", "a.example")
	if r := b.run("renew", "a.example"); !strings.Contains(r.errs, "--force orders it now") {
		t.Errorf("got %s, want a hint to --force", r.errs)
	}
	r := b.run("renew", "--all")
	if r.code != 1 || !strings.Contains(r.out, "0 of 2 done, 2 waiting, the first until "+end) || !lineHas(r.out, "b.example", "waiting", "maintenance") {
		t.Errorf("renew --all: exit %d, %s%s", r.code, r.out, r.errs)
	}
	if out := b.ok("renew", "--all", "--dry-run"); !lineHas(out, "a.example", "waits:", "maintenance") {
		t.Errorf("dry run: %s", out)
	}
	if n := proxy.Count(testenv.KindNewOrder).Received; n != 0 {
		t.Fatalf("%d orders in the maintenance, want none", n)
	}
	b.ok("renew", "a.example", "--force", "--wait")
	if n := proxy.Count(testenv.KindNewOrder).Succeeded; n != 1 {
		t.Errorf("%d orders, want the forced one alone", n)
	}
	s.IssuerExtra = ""
	b.configure(s)
	b.allOK(2)
	if out := b.ok("issuers", "list"); strings.Contains(out, "held:") {
		t.Errorf("still held after the reload: %s", out)
	}
}
