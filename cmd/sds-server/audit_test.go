package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sds-server/sds-server/internal/admin"
	"github.com/sds-server/sds-server/internal/audit"
)

const (
	auditShape = `{"entries":[{"seq":1,"at":"","event":"","who":"","secret":"","version":"","nodes":[""],"group":"","detail":"","prev":"","hash":""}]}`
	checkShape = `{"ok":true,"file":"","entries":1,"first":1,"last":1,"hash":"","bad":0,"line":1,"problem":""}`
)

func (b *box) auditFile() string { return filepath.Join(b.Dir, "data", "audit.jsonl") }

// trail lists entries, each as one text.
func (b *box) trail(args ...string) []string {
	b.Helper()
	var list admin.AuditEntries
	b.json(&list, append([]string{"audit", "list"}, args...)...)
	var out []string
	for _, e := range list.Entries {
		out = append(out, strings.Join(slices.DeleteFunc([]string{e.Event, e.Secret, e.Group, strings.Join(e.Nodes, ","), e.Detail}, func(s string) bool { return s == "" }), " "))
	}
	return out
}

// TestTrailSaysWhoDidWhat drives a server by its operator commands.
func TestTrailSaysWhoDidWhat(t *testing.T) {
	t.Parallel()
	b := newBox(t, settings{Manual: true})
	p := b.start()
	n := connect(t, b.SDSSocket(), "n1", "canary", "www")
	b.ok("secrets", "import", "www", "--chain", filepath.Join(pairs, "a1.crt"), "--key", filepath.Join(pairs, "a1.key"), "--reason", "first of all")
	b.eventually(func() error { return n.has("www", "") })
	b.importPair("www", "a2")
	b.eventually(func() error {
		if r := b.run("promote", "--group", "production", "--reason", "looks good"); !strings.Contains(r.out, "promoted") {
			return fmt.Errorf("%s%s", r.out, r.errs)
		}
		return nil
	})
	b.ok("rollback", "--group", "production", "--reason", "it does not")
	b.ok("secrets", "release", "www")
	b.refused(1, "no such version", "secrets", "release", "www")
	b.ok("identity", "issue", "--group", "canary", "--node", "n7", "--out", filepath.Join(b.Dir, "id"))
	b.reconfigure(settings{Manual: true, Groups: []string{"canary", "production", "third"}})
	b.must(writeText(b.Config(), "nonsense: 1\nadmin: {address: \"unix://"+b.AdminSocket()+"\"}\n"))
	b.status(func(s admin.Status) error {
		if s.Config.OK {
			return fmt.Errorf("the configuration is still ok")
		}
		return nil
	})
	got := b.trail("--limit", "1000")
	rest := got
	for _, want := range []string{
		"server_started",
		"push www canary n1 with snapshot 2, to unix:uid=", // recorded while its move is stored
		"rollout_waiting www canary,production rollout 1: import: first of all",
		"rollout_moving www canary,production rollout 1: wave 1",
		"command www secrets import snapshot=2 rollout=1; reason: first of all",
		"push www canary n1 with snapshot 3, to unix:uid=",
		"rollout_waiting www canary rollout 2: import",
		"rollout_waiting www production rollout 2: for a promotion of production",
		"rollout_moving www production rollout 2: wave 2",
		"command production promote rollouts=[2] ",
		"version_held www manual: ",
		"command production rollback ",
		"version_released www manual",
		"command www secrets release released=1",
		"command www secrets release; refused: no such version",
		"command canary identity issue node=n7 days=30 ",
		"config_reloaded " + b.Config(),
		"config_refused " + b.Config(),
	} {
		i := slices.IndexFunc(rest, func(line string) bool { return strings.HasPrefix(line, want) })
		if i < 0 {
			t.Fatalf("%q is not there, or not in its order:\n%s", want, strings.Join(got, "\n"))
		}
		rest = rest[i+1:]
	}
	me, err := user.Current()
	b.must(err)
	var list admin.AuditEntries
	b.json(&list, "audit", "list", "--event", "command")
	for _, e := range list.Entries {
		if e.Who != me.Username {
			t.Errorf("got %+v, want %s", e, me.Username)
		}
	}
	if lines := b.trail("--event", "command", "--secret", "www", "--limit", "1"); len(lines) != 1 || !strings.Contains(lines[0], "refused") {
		t.Errorf("got %q, want the newest alone", lines)
	}
	if lines := b.trail("--since", "0s"); len(lines) != 0 {
		t.Errorf("got %q, want none", lines)
	}
	b.must(p.Stop())
	text, err := readText(b.auditFile())
	b.must(err)
	if !strings.Contains(text[strings.LastIndex(strings.TrimSpace(text), "\n"):], `"event":"server_stopped"`) {
		t.Error("the end of the server is not its last entry")
	}
}

func TestAuditAnswersHaveTheirPinnedShape(t *testing.T) {
	t.Parallel()
	b := newBox(t, settings{})
	b.start()
	n := connect(t, b.SDSSocket(), "n1", "canary", "www")
	b.importPair("www", "a1")
	b.eventually(func() error { return n.has("www", "") })
	for shape, args := range map[string][]string{auditShape: {"audit", "list"}, checkShape: {"audit", "verify"}} {
		var want, got any
		b.must(json.Unmarshal([]byte(shape), &want))
		b.json(&got, args...)
		for _, problem := range compareShape(want, got, strings.Join(args, " ")) {
			if !strings.Contains(problem, "sorted") { // by number, not by secret
				t.Error(problem)
			}
		}
	}
	if out := b.ok("audit", "list", "--limit", "3"); strings.Count(out, "\n") != 4 || !strings.HasPrefix(out, "ENTRY ") {
		t.Errorf("got %s, want a head and 3 entries", out)
	}
	if out := b.ok("audit", "list", "--secret", "none"); out != "no entry passes the filters\n" {
		t.Errorf("got %s", out)
	}
	if out := b.ok("audit", "verify"); !strings.Contains(out, "are as they were written") {
		t.Errorf("got %s", out)
	}
	b.refused(2, "at least 1", "audit", "list", "--limit", "0")
	b.refused(2, "neither a time", "audit", "list", "--since", "yesterday")
	b.refused(1, "not between 1 and 10000", "audit", "list", "--limit", "20000")
}

// TestTamperedTrailIsNamed changes the file under a running server, and before its start.
func TestTamperedTrailIsNamed(t *testing.T) {
	t.Parallel()
	b := newBox(t, settings{})
	p := b.start()
	b.importPair("www", "a1")
	b.importPair("other", "b1")
	b.ok("audit", "verify")
	good, err := os.ReadFile(b.auditFile())
	b.must(err)
	bad := bytes.Replace(good, []byte(`"secret":"www"`), []byte(`"secret":"wwx"`), 1)
	line := bytes.Count(good[:bytes.Index(good, []byte(`"secret":"www"`))], []byte("\n")) + 1
	b.must(os.WriteFile(b.auditFile(), bad, 0o600))
	named := fmt.Sprintf("audit.jsonl: line %d: its hash does not fit: it was changed; bad lines: 1", line)
	b.refused(1, named, "audit", "verify")
	b.metric("sds_audit_broken 1")
	r := b.run("audit", "verify", "-o", "json")
	var report admin.AuditReport
	b.must(json.Unmarshal([]byte(r.out), &report))
	if r.code != 1 || report.OK || report.Line == nil || *report.Line != uint64(line) || !strings.Contains(r.errs, `"error"`) {
		t.Errorf("got %+v, want line %d", r, line)
	}
	b.must(p.Stop())
	p = b.start() // it stops nothing, and is loud
	b.eventually(func() error {
		log, err := p.Log()
		if err == nil && !strings.Contains(log, "audit file is damaged") {
			return fmt.Errorf("not in the log: %s", log)
		}
		return err
	})
	b.refused(1, named, "audit", "verify")
	b.must(os.WriteFile(b.auditFile(), good[:bytes.LastIndexByte(good[:len(good)-1], '\n')+1], 0o600))
	b.refused(1, "entries are missing", "audit", "verify")
}

func (b *box) metric(line string) {
	b.Helper()
	b.eventually(func() error {
		if _, text := b.fetch("/metrics", ""); !strings.Contains(text, "\n"+line+"\n") {
			return fmt.Errorf("%q is not among the metrics", line)
		}
		return nil
	})
}

// TestFullAuditDiskStopsNoKey has the audit file on a disk of its own.
func TestFullAuditDiskStopsNoKey(t *testing.T) {
	t.Parallel()
	small := filepath.Join(t.TempDir(), "small")
	if err := os.Mkdir(small, 0o700); err != nil {
		t.Fatal(err)
	}
	mount(t, small, "-t", "tmpfs", "-o", "size=512k,mode=0700", "tmpfs")
	file := filepath.Join(small, "audit.jsonl")
	b := newBox(t, settings{Extra: "audit: {file: " + file + "}"})
	p := b.start()
	n := connect(t, b.SDSSocket(), "n1", "canary", "www", "other")
	b.importPair("www", "a1")
	b.eventually(func() error { return n.has("www", "") })
	filler := filepath.Join(small, "filler")
	fill(t, filler)
	for i := range 20 { // until what is left of the last page is full, too
		pair := []string{"a1", "a2"}[i%2]
		b.importPair("www", pair)
		b.importPair("other", pair)
	}
	b.metric("sds_audit_failing 1")
	b.importPair("third", "b1")
	late := connect(t, b.SDSSocket(), "n2", "canary", "third")
	b.eventually(func() error { return late.has("third", "") })
	if code, _ := b.fetch("/readyz", ""); code != 200 {
		t.Errorf("got %d, want ready", code)
	}
	b.must(os.Remove(filler))
	b.metric("sds_audit_failing 0")
	b.ok("audit", "verify")
	got := b.trail("--limit", "1000")
	for _, want := range []string{"push third canary n2", "audit_resumed", "command third"} {
		if !slices.ContainsFunc(got, func(line string) bool { return strings.HasPrefix(line, want) }) {
			t.Errorf("%q is not there:\n%s", want, strings.Join(got, "\n"))
		}
	}
	b.must(p.Stop())
	log, err := p.Log()
	b.must(err)
	if n := strings.Count(log, "audit file cannot be written"); n != 1 {
		t.Errorf("it was logged %d times, want once", n)
	}
}

// TestAuditFileThatCannotBeUsedIsAFault wants a sentence instead of a server that records nothing.
func TestAuditFileThatCannotBeUsedIsAFault(t *testing.T) {
	t.Parallel()
	b := newBox(t, settings{Extra: "audit: {file: nowhere/audit.jsonl}"})
	b.serveFails(1, "nowhere/audit.jsonl: the audit file cannot be opened")
	b.configure(settings{Extra: "audit: {file: shared.jsonl}"})
	other, err := audit.Open(audit.Options{Path: filepath.Join(b.Dir, "shared.jsonl"), Retention: 1, Log: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry()})
	b.must(err)
	defer func() { b.must(other.Close(b.Context())) }()
	b.serveFails(1, "another process writes it")
}
