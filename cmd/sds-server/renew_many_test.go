package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sds-server/sds-server/internal/admin"
	"github.com/sds-server/sds-server/internal/testenv"
)

const (
	batchShape = `{"over":true,"total":1,"done":1,"issued":1,"ordering":1,"waiting":1,"failed":1,"not_due":1,"since":"","already":1,"step":"","until":"",
		"later":[{"name":"","at":"","limit":"","scope":""}],
		"certificates":[{"name":"","state":"done|issued|ordering|waiting|failed|not_due","version":"","rollout":1,"message":"","until":""}],"seconds":0.0}`
	planShape = `{"since":"","already":1,"not_due":1,"certificates":[{"name":"","position":1,"issuer":"","issued_by":"","not_after":"","due":"","urgent":true,
		"at":"","limit":"","scope":"","hold":""}]}`
)

// manyBox runs a server with n certificates of a CA, all issued: c0.example and so on. more is YAML behind the keys of the issuer.
func manyBox(t *testing.T, n int, more string) (*box, *testenv.Process, *testenv.Proxy, []string) {
	t.Helper()
	var names []string
	for i := range n {
		names = append(names, fmt.Sprintf("c%d.example", i))
	}
	proxy, s := pebble(t, settings{Certs: names, IssuerExtra: more})
	b := newBox(t, s)
	p := b.start()
	b.allOK(n)
	return b, p, proxy, names
}

// allOK waits until n certificates are issued and nothing is under way.
func (b *box) allOK(n int) {
	b.Helper()
	b.status(func(s admin.Status) error {
		ok := 0
		for _, c := range s.Certificates {
			if c.State == "ok" && c.Version != nil {
				ok++
			}
		}
		if ok != n || len(s.Rollouts) > 0 {
			return fmt.Errorf("%d certificates are ok, want %d; rollouts %v", ok, n, s.Rollouts)
		}
		return nil
	})
}

// versionsOf is how many versions each secret has.
func (b *box) versionsOf() map[string]int {
	b.Helper()
	var list admin.Secrets
	b.json(&list, "secrets", "list")
	out := map[string]int{}
	for _, s := range list.Secrets {
		out[s.Name] = s.Versions
	}
	return out
}

func TestRenewSeveral(t *testing.T) {
	t.Parallel()
	b, _, proxy, names := manyBox(t, 4, "")
	ordered := func() int { return proxy.Count(testenv.KindNewOrder).Succeeded }
	before := ordered()
	// What is not due is left alone, and a dry run changes nothing.
	var batch admin.RenewBatch
	b.json(&batch, "renew", "--all", "--wait")
	if batch.Total != 4 || batch.NotDue != 4 || batch.Done != 0 || !batch.Over {
		t.Errorf("renew --all: %+v", batch)
	}
	if out := b.ok("renew", "--all"); !strings.Contains(out, "0 of 4 done, 4 not due") || !strings.Contains(out, "--force orders them now") {
		t.Errorf("renew --all: %s", out)
	}
	if out := b.ok("renew", "--all", "--dry-run"); !strings.Contains(out, "0 certificates would be ordered; 4 not due") {
		t.Errorf("renew --all --dry-run: %s", out)
	}
	var plan admin.RenewPlan
	b.json(&plan, "renew", "--all", "--issued-by", "ca", "--dry-run")
	if len(plan.Certificates) != 4 || plan.Certificates[0].Name != names[0] || *plan.Certificates[0].IssuedBy != "ca" || plan.Certificates[0].At != nil || !plan.Certificates[0].Urgent {
		t.Errorf("dry run: %+v", plan)
	}
	b.shape(planShape, "renew", names[0], "--force", "--dry-run")
	if n := ordered(); n != before {
		t.Fatalf("%d orders, want none", n-before)
	}
	b.json(&batch, "renew", names[0], names[2], names[2], "--force", "--wait", "--reason", "because")
	if batch.Total != 2 || batch.Done != 2 || batch.Certificates[0].Version == nil || batch.Certificates[0].State != "done" || ordered() != before+2 {
		t.Errorf("two by name: %+v, %d orders", batch, ordered()-before)
	}
	out := b.ok("audit", "list")
	if !strings.Contains(out, "names=c0.example,c2.example") || !strings.Contains(out, "because") {
		t.Errorf("audit:\n%s", out)
	}
	b.shape(batchShape, "renew", "--all", "--force", "--wait=issued")
	if n := ordered() - before; n != 6 {
		t.Errorf("%d orders, want 6", n)
	}
	if out := b.ok("renew", "--all", "--issued-by", "ca", "--wait"); !strings.Contains(out, "4 of 4 done") {
		t.Errorf("got %s", out)
	}
	b.allOK(4)
	if got := b.versionsOf(); !maps.Equal(got, map[string]int{names[0]: 3, names[1]: 3, names[2]: 3, names[3]: 3}) || ordered()-before != 10 {
		t.Errorf("versions %v after %d orders, want 3 (at most) of each after 10", got, ordered()-before)
	}
}

func TestRenewRefusesWhatItCannotMean(t *testing.T) {
	t.Parallel()
	b, _, _, _ := manyBox(t, 1, "")
	for _, tt := range []struct {
		code int
		want string
		args []string
	}{
		{2, "name a certificate, or --all", nil},
		{2, "either name certificates, or --all", []string{"c0.example", "--all"}},
		{2, "--issued-by goes with --all", []string{"c0.example", "--issued-by", "ca"}},
		{2, "write --wait=issued", []string{"c0.example", "--wait", "issued"}},
		{1, `no certificate named "www" is configured`, []string{"c0.example", "www", "--force"}},
		{1, `no certificate named "www" is configured`, []string{"www", "--dry-run"}},
		{1, `no certificate was issued by "le"`, []string{"--all", "--issued-by", "le"}},
		{1, "certificates come from ca (1)", []string{"--all", "--issued-by", "le"}},
		{1, `no issuer named "le"`, []string{"--all", "--force", "--issuer", "le"}},
		{1, `issuer "le": no such issuer is configured`, []string{"c0.example", "--force", "--issuer", "le"}},
	} {
		b.refused(tt.code, tt.want, append([]string{"renew"}, tt.args...)...)
	}
	complete := func(args ...string) string {
		return b.runIn(nil, append([]string{"__complete", "-c", b.Config(), "renew"}, args...)...).out
	}
	if out := complete(""); !strings.HasPrefix(out, "c0.example\n") {
		t.Errorf("completion: %q", out)
	}
	if out := complete("c0.example", ""); strings.Contains(out, "c0.example") {
		t.Errorf("completion of a second name: %q", out)
	}
	for _, flag := range []string{"--issued-by", "--issuer"} {
		if out := complete("--all", flag, ""); !strings.HasPrefix(out, "ca\n") {
			t.Errorf("completion of %s: %q", flag, out)
		}
	}
}

// TestRenewAtAnotherIssuer moves certificates to a second CA and back, and finds them by who issued them.
func TestRenewAtAnotherIssuer(t *testing.T) {
	t.Parallel()
	second := testenv.NewT(t).Pebble(testenv.PebbleOptions{Name: "second", AlwaysValid: true})
	if _, err := second.Root(t.Context()); err != nil {
		t.Fatal(err)
	}
	other := fmt.Sprintf("\n  - {name: other, directory: %q, ca_file: %s, roots_file: %s, accept_tos: true, profile: default", second.Directory, second.CAFile, second.RootsFile)
	b, _, _, names := manyBox(t, 3, "}"+other) // it closes the issuer before; the template closes this one
	b.ok("renew", names[1], "--force", "--issuer", "other", "--wait")
	var plan admin.RenewPlan
	b.json(&plan, "renew", "--all", "--issued-by", "other", "--dry-run")
	if len(plan.Certificates) != 1 || plan.Certificates[0].Name != names[1] || plan.Certificates[0].Issuer != "ca" || *plan.Certificates[0].IssuedBy != "other" {
		t.Errorf("issued by the other: %+v", plan)
	}
	var batch admin.RenewBatch
	b.json(&batch, "renew", "--all", "--issued-by", "ca", "--issuer", "other", "--wait")
	if batch.Done != 2 || batch.Total != 2 {
		t.Errorf("got %+v, want the two others done", batch)
	}
	b.refused(1, "certificates come from other (3)", "renew", "--all", "--issued-by", "ca")
	b.json(&batch, "renew", "--all", "--issued-by", "other", "--wait")
	if batch.Done != 3 {
		t.Errorf("home again: %+v", batch)
	}
}

// TestRenewNeverOverridesABudget has room for five orders a year: three are used up by the first certificates.
func TestRenewNeverOverridesABudget(t *testing.T) {
	t.Parallel()
	b, _, proxy, names := manyBox(t, 3, ", budget: {share: 0.8, limits: [{name: new_orders, burst: 5, refill: 8760h}]}")
	b.ok("renew", names[0], "--force", "--wait") // the fourth, the last of the share of 80 %
	ordered := func() int { return proxy.Count(testenv.KindNewOrder).Succeeded - 4 }
	if n := ordered(); n != 0 {
		t.Fatalf("%d orders were placed, want 4", n+4)
	}
	r := b.run("renew", names[0], "--force", "--wait=issued")
	checkRefusal(t, r, 1, "new_orders")
	if !strings.Contains(r.errs, "retry after") {
		t.Errorf("got %s, want when it refills", r.errs)
	}
	b.refused(1, "new_orders", "renew", names[0], "--force")
	if n := ordered(); n != 0 {
		t.Fatalf("%d orders over the budget, want none", n)
	}
	var plan admin.RenewPlan
	b.json(&plan, "renew", "--all", "--issued-by", "ca", "--dry-run")
	late := 0
	for _, p := range plan.Certificates {
		if p.At != nil && *p.Limit == "new_orders" {
			late++
		}
	}
	if late != 2 {
		t.Errorf("dry run: %+v: want one that fits into the reserve, and two that do not", plan.Certificates)
	}
	if out := b.ok("renew", "--all", "--issued-by", "ca", "--dry-run"); !lineHas(out, "3", "ca", "in", "new_orders") {
		t.Errorf("dry run: %s", out)
	}
	// A mass revocation may use the reserve: one more.
	r = b.run("renew", "--all", "--issued-by", "ca", "--wait", "--timeout", "3s")
	if r.code != 1 || !strings.Contains(r.errs, "error: not everything is in every wave: 1 of 3 done, 2 waiting, the first until 20") || ordered() != 1 {
		t.Errorf("exit %d after %d orders: %s%s", r.code, ordered(), r.out, r.errs)
	}
	r = b.run("renew", "--all", "--issued-by", "ca", "-o", "json")
	var batch admin.RenewBatch
	if err := json.Unmarshal([]byte(r.out), &batch); err != nil {
		t.Fatalf("%v: %s%s", err, r.out, r.errs)
	}
	if r.code != 1 || batch.Total != 2 || batch.Waiting != 2 || batch.Already != 1 || batch.Since == nil || batch.Until == nil || len(batch.Later) != 2 || ordered() != 1 {
		t.Errorf("exit %d: %+v", r.code, batch)
	}
	r = b.run("renew", "--all", "--issued-by", "ca")
	for _, want := range []string{"0 of 2 done, 2 waiting, the first until 20", "goes on with what was begun", "1 certificate renewed since", "2 do not fit into the budget within a day", "new_orders"} {
		if !strings.Contains(r.out, want) {
			t.Errorf("no %q in %s", want, r.out)
		}
	}
	b.shape(batchShape, "renew", "--all", "--issued-by", "ca")
	b.shape(planShape, "renew", "--all", "--issued-by", "ca", "--dry-run")
}

// TestAnInterruptedRenewalOfManyGoesOn interrupts the command, kills the server while orders are under way, and runs the command again.
func TestAnInterruptedRenewalOfManyGoesOn(t *testing.T) {
	t.Parallel()
	const n = 6
	b, p, proxy, names := manyBox(t, n, "")
	holds := []*testenv.Hold{}
	for range 4 { // as many as are ordered at once: two wait in the queue
		holds = append(holds, proxy.Hold(testenv.KindFinalize, testenv.Before))
	}
	cmd := exec.CommandContext(t.Context(), b.binary, "renew", "--all", "--force", "--wait", "-c", b.Config())
	var errs strings.Builder
	cmd.Stderr = &errs
	b.must(cmd.Start())
	for _, h := range holds {
		<-h.Reached()
	}
	b.must(cmd.Process.Signal(syscall.SIGINT))
	_ = cmd.Wait() // its exit code is looked at
	if code := cmd.ProcessState.ExitCode(); code != 1 || !strings.Contains(errs.String(), "error: interrupted: not everything is in every wave: 0 of 6 done, 6 under way") || !strings.Contains(errs.String(), "it goes on with what is left") {
		t.Errorf("exit %d: %s", code, errs.String())
	}
	ctx, cancel := b.within(testTime)
	defer cancel()
	b.must(p.WaitLog(ctx, "operator went away; what was begun goes on"))
	for _, h := range holds[1:] {
		h.Release()
	}
	// All but one end without the command, those in the queue as well.
	b.eventually(func() error {
		renewed := 0
		for _, v := range b.versionsOf() {
			if v == 2 {
				renewed++
			}
		}
		if renewed != n-1 {
			return fmt.Errorf("%d are renewed, want %d", renewed, n-1)
		}
		return nil
	})
	b.must(p.Kill())
	holds[0].Release()
	b.start()
	var batch admin.RenewBatch
	b.eventually(func() error { // the order that was cut may have been taken up again by itself
		batch = admin.RenewBatch{}
		b.json(&batch, "renew", "--all", "--force", "--wait")
		return nil
	})
	if batch.Already != n-1 && batch.Already != n || batch.Total+batch.Already != n || batch.Done != batch.Total || batch.Since == nil {
		t.Errorf("again: %+v", batch)
	}
	if got := b.versionsOf(); slices.Max(slices.Collect(maps.Values(got))) != 2 || slices.Min(slices.Collect(maps.Values(got))) != 2 {
		t.Errorf("versions %v, want 2 of each of %v", got, names)
	}
	// Nothing is left: the same command begins anew.
	b.json(&batch, "renew", "--all", "--force", "--wait")
	if batch.Total != n || batch.Done != n || batch.Since != nil {
		t.Errorf("anew: %+v", batch)
	}
}

// TestRenewManyWaitsForEveryWave waits for a promotion, and for a rollout that is aborted.
func TestRenewManyWaitsForEveryWave(t *testing.T) {
	t.Parallel()
	_, s := pebble(t, settings{Certs: []string{"a.example", "b.example"}, Manual: true})
	b := newBox(t, s)
	b.start()
	b.allOK(2)
	r := b.run("renew", "a.example", "b.example", "--force", "--wait", "--timeout", "3s")
	if r.code != 1 || !strings.Contains(r.errs, "not everything is in every wave: 0 of 2 done, 2 issued and on the way; rollout ") {
		t.Errorf("exit %d: %s%s", r.code, r.out, r.errs)
	}
	var before admin.Status
	b.json(&before, "status")
	waiting := make(chan result, 1)
	go func() { waiting <- b.run("renew", "--all", "--force", "--again", "--wait", "-o", "json") }()
	var last uint64
	b.status(func(s admin.Status) error { // those of the first time are superseded; the two may travel in one
		for _, r := range s.Rollouts {
			if r.ID <= before.Rollouts[len(before.Rollouts)-1].ID || r.State != "waiting" {
				return fmt.Errorf("rollouts %v, want new ones that wait", s.Rollouts)
			}
			last = r.ID
		}
		if v := b.versionsOf(); v["a.example"] != 3 || v["b.example"] != 3 || last == 0 {
			return fmt.Errorf("versions %v, want 3 of each", v)
		}
		return nil
	})
	var aborted admin.Rollouts
	b.json(&aborted, "rollout", "status", fmt.Sprint(last))
	lost := len(aborted.Rollouts[0].Change)
	b.ok("rollout", "abort", fmt.Sprint(last), "--reason", "to see it")
	b.run("promote", "--group", "production") // what is left
	r = <-waiting
	var batch admin.RenewBatch
	if err := json.Unmarshal([]byte(r.out), &batch); err != nil || r.code != 1 || batch.Done != 2-lost || batch.Failed != lost {
		t.Errorf("exit %d, %v: want %d failed: %s%s", r.code, err, lost, r.out, r.errs)
	}
	for _, c := range batch.Certificates {
		if c.State == "failed" && (c.Version == nil || !strings.Contains(*c.Message, "aborted")) {
			t.Errorf("got %+v, want a version, and that its rollout was aborted", c)
		}
	}
}

// TestRenewManyTellsWhatFails has a CA that refuses one of the names.
func TestRenewManyTellsWhatFails(t *testing.T) {
	t.Parallel()
	env := testenv.NewT(t)
	ca := env.Pebble(testenv.PebbleOptions{AlwaysValid: true, BlockedDomains: []string{"bad.example"}})
	if _, err := ca.Root(t.Context()); err != nil {
		t.Fatal(err)
	}
	s := settings{Issuer: ca.Directory, CAFile: ca.CAFile, RootsFile: ca.RootsFile, Certs: []string{"a.example", "bad.example"}}
	b := newBox(t, s)
	b.start()
	b.status(func(s admin.Status) error {
		if s.Certificates[0].State != "ok" || s.Certificates[1].State != "failing" {
			return fmt.Errorf("%+v", s.Certificates)
		}
		return nil
	})
	r := b.run("renew", "--all", "--force", "--wait")
	if r.code != 1 || !strings.Contains(r.out, "1 of 2 done, 1 failed") || !lineHas(r.out, "bad.example", "failed") || !strings.Contains(r.out, "rejectedIdentifier") {
		t.Errorf("exit %d: %s%s", r.code, r.out, r.errs)
	}
	r = b.run("renew", "--all", "--force", "--wait", "-o", "json")
	var batch admin.RenewBatch
	if err := json.Unmarshal([]byte(r.out), &batch); err != nil || r.code != 1 || batch.Failed != 1 || batch.Already != 1 {
		t.Errorf("exit %d: %v, %+v", r.code, err, batch)
	}
	if batch.Seconds > time.Minute.Seconds() {
		t.Errorf("it took %v s", batch.Seconds)
	}
}
