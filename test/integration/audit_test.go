package integration

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/sds-server/sds-server/internal/admin"
	"github.com/sds-server/sds-server/internal/audit"
	"github.com/sds-server/sds-server/internal/testenv"
	"github.com/sds-server/sds-server/internal/testenv/fleet"
)

// TestRotationLeavesItsEntriesInOrder rotates a certificate on two real Envoys.
func TestRotationLeavesItsEntriesInOrder(t *testing.T) {
	e := testenv.NewT(t)
	f := startFleet(e, one(false))
	ctx := e.Ready()
	r := renew(ctx, t, f, "done")
	var list admin.AuditEntries
	must(t, f.JSON(ctx, &list, "audit", "list", "--secret", site))
	var got []string
	for _, a := range list.Entries {
		if a.Version == *r.Version || a.Event == admin.EventCommand {
			got = append(got, strings.TrimSpace(fmt.Sprint(a.Event, " ", a.Group, " ", strings.Join(a.Nodes, ","))))
		}
	}
	inOrder(t, got, "command", "push canary canary-1", "rollout_waiting canary", "rollout_moving canary",
		"push production production-1", "rollout_moving production", "rollout_done")
	inOrder(t, got, "rollout_waiting canary", "certificate_renewed")
	for _, event := range []string{"push canary canary-1", "push production production-1", "certificate_renewed", "rollout_done"} {
		if n := len(slices.DeleteFunc(slices.Clone(got), func(s string) bool { return s != event })); n != 1 {
			t.Errorf("%s stands there %d times, want once: %q", event, n, got)
		}
	}
	command := list.Entries[slices.IndexFunc(list.Entries, func(a audit.Entry) bool { return a.Event == admin.EventCommand })]
	if command.Who == "" || !strings.Contains(command.Detail, "renew") {
		t.Errorf("got %+v, want who asked for what", command)
	}
	var pushes admin.AuditEntries
	must(t, f.JSON(ctx, &pushes, "audit", "list", "--event", "push", "--group", fleet.Production, "--limit", "1"))
	if len(pushes.Entries) != 1 || !strings.Contains(pushes.Entries[0].Detail, "spiffe://sds-server/production/production-1") {
		t.Errorf("got %+v, want one push with the identity that was proven", pushes.Entries)
	}
	restartKeepsTheChain(ctx, t, f)
	checkByHand(t, filepath.Join(f.Dir, "data", "audit.jsonl"))
	noKeysIn(t, filepath.Join(f.Dir, "data", "audit.jsonl"))
}

// inOrder wants each of the lines behind the one before.
func inOrder(t *testing.T, got []string, want ...string) {
	t.Helper()
	rest := got
	for _, line := range want {
		i := slices.Index(rest, line)
		if i < 0 {
			t.Fatalf("%s is not there, or not in its order: %q", line, got)
		}
		rest = rest[i+1:]
	}
}

// restartKeepsTheChain kills the server and starts it again.
func restartKeepsTheChain(ctx context.Context, t *testing.T, f *fleet.Fleet) {
	t.Helper()
	var before, after admin.AuditReport
	must(t, f.JSON(ctx, &before, "audit", "verify"))
	must(t, f.Server.Kill())
	must(t, f.StartServer(ctx))
	must(t, f.WaitSynced(ctx))
	must(t, f.JSON(ctx, &after, "audit", "verify"))
	if !before.OK || !after.OK || *after.First != 1 || *after.Last <= *before.Last {
		t.Errorf("got %+v and after a kill %+v, want whole chains, and that the second goes on", before, after)
	}
}

// checkByHand checks the chain as docs/operations.md says that anybody can.
func checkByHand(t *testing.T, path string) {
	t.Helper()
	text, err := os.ReadFile(path)
	must(t, err)
	prev := strings.Repeat("0", 64)
	hash := regexp.MustCompile(`,"hash":"([0-9a-f]{64})"}$`)
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSuffix(line, "\n")
		stated := hash.FindStringSubmatch(line)
		if stated == nil {
			t.Fatalf("no hash in %s", line)
		}
		sum := sha256.Sum256([]byte(strings.TrimSuffix(line, stated[0]) + "}"))
		var entry struct{ Prev string }
		must(t, json.Unmarshal([]byte(line), &entry))
		if entry.Prev != prev || hex.EncodeToString(sum[:]) != stated[1] {
			t.Fatalf("broken at %s", line)
		}
		prev = stated[1]
	}
}

// noKeysIn searches a file for what only private keys have.
func noKeysIn(t *testing.T, path string) {
	t.Helper()
	text, err := os.ReadFile(path)
	must(t, err)
	for _, needle := range []string{"PRIVATE KEY", "AGE-SECRET-KEY", "BEGIN CERTIFICATE"} {
		if bytes.Contains(text, []byte(needle)) {
			t.Errorf("%s holds %q", path, needle)
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("got mode %v (%v), want 0600", info.Mode(), err)
	}
}
