package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sds-server/sds-server/internal/admin"
)

// The answers of `-o json` as they are pinned. A text with bars lists the values that are possible.
const (
	limitNames  = "new_orders|registered_domain|exact_set|failed_authorizations|consecutive_failures|new_accounts"
	limitShape  = `{"name":"` + limitNames + `","scope":"","available":1,"ordinary":1,"capacity":1,"reserve":1,"next_at":"","full_at":""}`
	budgetShape = `{"issuers":[{"name":"","ca":"","limits":[{"name":"` + limitNames + `","scope":"","available":1,"ordinary":1,"capacity":1,"reserve":1,"next_at":"","full_at":"",
		"refill_seconds":0.0}],"omitted":0,"forecast":{"certificates":1,"now":1,"day":1,"late":[{"certificate":"","at":"","limit":"` + limitNames + `","scope":""}]}}]}`
	statusShape = `{"version":"","leader":true,"ready":true,"config":{"ok":true,"loaded_at":"","error":null},"snapshot_latest":9,
		"certificates":[{"name":"","state":"pending|ok|renewing|failing|expired","version":"","serial":"","issuer":"","not_before":"","not_after":"","next_renewal":"",
		"last_renewal":"","error":{"kind":"","message":"","at":"","attempts":0},"waiting":{"kind":"budget|temporary","message":"","until":""},
		"renewal_info":{"start":"","end":"","explanation":"","asked":""},"groups":[{"name":"","version":""}]}],
		"secrets":[{"name":"","kind":"tls_certificate|validation_context|session_ticket_keys|generic_secret","state":"pending|ok|learning|held|failing|expired",
		"version":"","not_after":"","next_rotation":"","error":"","groups":[{"name":"","version":""}]}],
		"groups":[{"name":"","snapshot":9,"connected":2,"synced":2,"stale":0,"nacked":0}],"rollouts":[{"id":4,"state":"waiting|moving|verifying|watching|paused"}],
		"issuers":[{"name":"","up":true,"limits":[` + limitShape + `],"hold":{"reason":"","until":""}}],
		"held":[{"secret":"","version":"","kind":"hard|soft|manual","reason":"","since":"","deadline":""}]}`
	nodesShape = `{"nodes":[{"id":"","group":"","identity":"","transport":"unix|tls|plaintext","protocol":"sotw|delta|ads-sotw|ads-delta","connected":true,"since":"",
		"snapshot":9,"state":"SYNCED|STALE|NACKED|OFFLINE","secrets":[{"name":"","want":"","sent":{"version":"","at":""},"acked":{"version":"","at":""},
		"nacked":{"version":"","at":"","message":"","secret":""},"served":{"serial":"","version":"","at":""},"covered_by":""}]}]}`
	rolloutStates = "waiting|moving|verifying|watching|paused|done|superseded|rolled_back|aborted"
	changeShape   = `{"secret":"","from":"","to":"","kind":"renewal|chain|add|remove|emergency","left":""}`
	rolloutsShape = `{"rollouts":[{"id":4,"state":"` + rolloutStates + `","reason":"","started":"","finished":"","deadline":"","paused":false,"taking_back":false,
		"joined":4,"change":[` + changeShape + `],"wave":0,"waves":[{"groups":[""],"state":"pending|moving|verifying|watching|done|rolled_back","snapshot":9,"ends":"",
		"nodes":{"expected":2,"acked":2,"nacked":0},"handshakes":{"ok":4,"failed":0,"last_error":null},"gates":[{"name":"","value":0,"before":0,"max":0,"ok":true,"error":""}],
		"watch_seconds":0.0,"watched_seconds":0.0}],"log":[{"at":"","state":"` + rolloutStates + `","reason":"","by":""}]}]}`
	controlShape = `{"id":4,"state":"` + rolloutStates + `","reason":"","already":false,"change":[` + changeShape + `],"groups":[""],"held":[""]}`
	holdShape    = `{"secret":"","version":"","kind":"hard|soft|manual","reason":"","since":"","deadline":"","rollouts":[4],"groups":[""],"already":false}`
	secretShape  = `{"name":"","kind":"tls_certificate|validation_context|session_ticket_keys|generic_secret","versions":[{"version":"",
		"state":"current|previous|held|backup","created":"","issuer":"","profile":"","serial":"","sha256":"","dns_names":[""],"not_before":"","not_after":"","key_type":"",
		"chain_pem":"","groups":[""],"ip_addresses":[""]}]}`
	snapshotShape = `{"number":9,"parent":8,"reason":"","created":"","secrets":[{"name":"","version":""}]}`
	verifyShape   = `{"served":true,"groups":[{"name":"","configured":true,"ok":1,"failed":0,"skipped":[""]}],"handshakes":[{"group":"","address":"","node":"",
		"server_name":"","client":"tls1.2-rsa|tls1.2-ecdsa|tls1.3","secret":"","want":"","served":{"serial":"","version":"","sha256":"","not_after":""},"ok":true,"at":"",
		"seconds":0.0,"attempts":1,"completed":true,"client_certificate":false,
		"error":{"kind":"old_leaf|other_leaf|chain|alert|refused|timeout|broken","message":"","hint":""}}]}`
	renewShape = `{"name":"","version":"","serial":"","snapshot":9,"rollout":4,"issued_seconds":0.0,"done_seconds":0.0}`
)

// TestAnswersHaveTheirPinnedShape drives a server until everything that can be in an answer is in one.
func TestAnswersHaveTheirPinnedShape(t *testing.T) {
	t.Parallel()
	extra, _ := otherKinds(t)
	_, s := pebble(t, settings{Manual: true, Certs: []string{"issued.example"}, Dead: "dead.example", Extra: extra})
	b := newBox(t, s)
	b.start()

	check := func(shape string, args ...string) {
		t.Helper()
		var want, got any
		b.must(json.Unmarshal([]byte(shape), &want))
		b.json(&got, args...)
		for _, problem := range compareShape(want, got, strings.Join(args, " ")) {
			t.Error(problem)
		}
	}
	// Empty, or nearly.
	check(nodesShape, "nodes")
	check(statusShape, "status")

	n := connect(t, b.SDSSocket(), "n1", "canary", "www", "issued.example")
	b.importPair("www", "a1")
	b.eventually(func() error { return n.has("www", "") })
	b.eventually(func() error { return n.has("issued.example", "") })
	check(renewShape, "renew", "issued.example", "--force", "--wait=issued")
	check(renewShape, "renew", "issued.example", "--force")
	b.eventually(func() error {
		if r := b.run("promote", "--group", "production"); !strings.Contains(r.out, "promoted") {
			return fmt.Errorf("%s%s", r.out, r.errs)
		}
		return nil
	})
	n.refuse("what is this?\x1b[31m")
	b.importPair("www", "a2")
	b.eventually(func() error {
		if out := b.ok("status"); !strings.Contains(out, "hard") {
			return fmt.Errorf("no hard hold in %s", out)
		}
		return nil
	})
	n.refuse("")
	b.importPair("other", "b1")
	check(statusShape, "status")
	check(nodesShape, "nodes")
	check(nodesShape, "nodes", "--group", "canary")
	check(rolloutsShape, "rollout", "status")
	check(rolloutsShape, "rollout", "history")
	check(rolloutsShape, "rollout", "history", "--secret", "www")
	check(rolloutsShape, "rollout", "status", "1")
	check(secretShape, "secrets", "show", "www")
	for _, name := range []string{"corp-ca", "tickets", "token"} {
		check(secretShape, "secrets", "show", name)
	}
	check(secretShape, "secrets", "history", "issued.example")
	for number := range 3 {
		check(snapshotShape, "snapshots", "show", fmt.Sprint(number+1))
	}
	if out := b.ok("nodes"); strings.ContainsRune(out, 0x1b) {
		t.Errorf("a node speaks to the terminal: %q", out)
	}
	b.importPair("other", "a3")
	check(holdShape, "secrets", "hold", "other", "--reason", "why not")
	check(controlShape, "rollout", "start", "--secret", "other")
	var history admin.Rollouts
	b.json(&history, "rollout", "history", "--secret", "other")
	id := fmt.Sprint(history.Rollouts[len(history.Rollouts)-1].ID)
	for _, verb := range []string{"pause", "resume", "abort"} {
		check(controlShape, "rollout", verb, id, "--reason", "to see it")
		check(controlShape, "rollout", verb, id)
		check(rolloutsShape, "rollout", "status", id)
	}
	n.close()
	b.eventually(func() error {
		if out := b.ok("nodes"); !strings.Contains(out, "OFFLINE") {
			return fmt.Errorf("n1 is not offline in %s", out)
		}
		return nil
	})
	check(nodesShape, "nodes")
}

// compareShape lists where got is not as want: keys that are missing or not pinned, other types, values that are not possible, lists
// that are null or not sorted by name, times that are not UTC. What is absent is null.
func compareShape(want, got any, path string) []string {
	switch want := want.(type) {
	case map[string]any:
		return compareObject(want, got, path)
	case []any:
		list, ok := got.([]any)
		if !ok {
			return []string{fmt.Sprintf("%s: got %v, want a list", path, got)}
		}
		var problems, names []string
		for i, element := range list {
			problems = append(problems, compareShape(want[0], element, fmt.Sprintf("%s[%d]", path, i))...)
			switch e := element.(type) {
			case string:
				names = append(names, e)
			case map[string]any:
				for _, key := range []string{"name", "secret"} {
					if name, ok := e[key].(string); ok {
						names = append(names, name)
					}
				}
			}
		}
		if !slices.IsSorted(names) && !strings.HasSuffix(path, "versions") {
			problems = append(problems, fmt.Sprintf("%s: %q is not sorted", path, names))
		}
		return problems
	}
	return compareScalar(want, got, path)
}

func compareObject(want map[string]any, got any, path string) []string {
	if got == nil {
		return nil
	}
	object, ok := got.(map[string]any)
	if !ok {
		return []string{fmt.Sprintf("%s: got %v, want an object", path, got)}
	}
	var problems []string
	for key := range object {
		if _, ok := want[key]; !ok {
			problems = append(problems, fmt.Sprintf("%s.%s is not pinned", path, key))
		}
	}
	for key, value := range want {
		have, ok := object[key]
		if !ok {
			problems = append(problems, fmt.Sprintf("%s.%s is missing", path, key))
			continue
		}
		problems = append(problems, compareShape(value, have, path+"."+key)...)
	}
	return problems
}

func compareScalar(want, got any, path string) []string {
	if want == nil || got == nil {
		return nil
	}
	text, ok := got.(string)
	if !ok {
		if fmt.Sprintf("%T", want) != fmt.Sprintf("%T", got) {
			return []string{fmt.Sprintf("%s: got %v, want like %v", path, got, want)}
		}
		return nil
	}
	possible, ok := want.(string)
	key := path[strings.LastIndex(path, ".")+1:]
	switch {
	case !ok:
		return []string{fmt.Sprintf("%s: got %q, want like %v", path, text, want)}
	case strings.Contains(possible, "|") && !slices.Contains(strings.Split(possible, "|"), text):
		return []string{fmt.Sprintf("%s: got %q, want one of %s", path, text, possible)}
	case text == "" && key != "reason":
		return []string{fmt.Sprintf("%s: got an empty text, want null", path)}
	case slices.Contains([]string{"at", "since", "created", "started", "loaded_at", "not_before", "not_after", "next_renewal", "last_renewal", "next_rotation", "deadline", "ends", "finished", "full_at", "until"}, key):
		if _, err := time.Parse(time.RFC3339Nano, text); err != nil || !strings.HasSuffix(text, "Z") {
			return []string{fmt.Sprintf("%s: got %q, want RFC 3339 in UTC", path, text)}
		}
	}
	return nil
}
