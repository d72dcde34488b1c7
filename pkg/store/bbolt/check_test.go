package bbolt_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/sds-server/sds-server/pkg/store"
	"github.com/sds-server/sds-server/pkg/store/bbolt"
)

const pageSize = 4096

// seedVariable repeats random damage: its value is the seed that a failed test has printed.
const seedVariable = "BBOLT_TEST_SEED"

// sample writes a store with branch pages, overflow pages and free pages. It returns the bytes of its file and the listing
// at every revision.
func sample(t *testing.T) ([]byte, map[int64][]store.Entry) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "store.db")
	db := open(t, path)
	states := map[int64][]store.Entry{}
	for i := range 12 {
		var operations []store.Operation
		for j := range 40 {
			key := fmt.Sprintf("key/%02d/%02d", j, i)
			operations = append(operations, store.Put(key, []byte(strings.Repeat(key+" ", 1+j*3))))
		}
		operations = append(operations, store.Put("large", bytes.Repeat([]byte{byte(i)}, 30000)), store.Delete(fmt.Sprintf("key/05/%02d", i-1)))
		if _, err := db.Commit(t.Context(), nil, operations); err != nil {
			t.Fatal(err)
		}
		entries, revision, err := db.List(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		states[revision] = entries
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return content, states
}

// checkBytes writes content to a file and checks it in a child.
func checkBytes(t *testing.T, content []byte) (path string, err error) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "store.db")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	err = bbolt.CheckInChild(t.Context(), childCommand(t, "check"), path)
	after, readErr := os.ReadFile(path)
	if readErr != nil || !bytes.Equal(content, after) {
		t.Fatalf("the check has changed the file, %v", readErr)
	}
	return path, err
}

// wantDamage demands a Fault in one line, with a hint and the path.
func wantDamage(t *testing.T, what, path string, err error) {
	t.Helper()
	fault, ok := errors.AsType[*store.Fault](err)
	if !ok {
		t.Fatalf("%s: got %v, want a fault", what, err)
	}
	text := err.Error()
	if fault.Path != path || !strings.Contains(fault.Message, "store is damaged: ") || !strings.Contains(fault.Hint, "restore it from a copy") ||
		strings.Contains(text, "\n") || len(text) > 600 {
		t.Fatalf("%s: got %q with hint %q, want one line about damage to %s", what, text, fault.Hint, path)
	}
}

func clone(content []byte, change func(content []byte)) []byte {
	content = bytes.Clone(content)
	change(content)
	return content
}

// pagesOf returns the offsets of all pages with the given flags (1 branch, 2 leaf, 16 free list), free ones too.
func pagesOf(content []byte, flags uint16) []int {
	var offsets []int
	for at := 2 * pageSize; at+pageSize <= len(content); at += pageSize {
		id := binary.NativeEndian.Uint64(content[at:])
		if id == uint64(at/pageSize) && binary.NativeEndian.Uint16(content[at+8:]) == flags {
			offsets = append(offsets, at)
		}
	}
	return offsets
}

func TestCheckAcceptsSoundStore(t *testing.T) {
	content, _ := sample(t)
	if _, err := checkBytes(t, content); err != nil {
		t.Fatal(err)
	}
	missing := filepath.Join(t.TempDir(), "store.db")
	if err := bbolt.CheckInChild(t.Context(), childCommand(t, "check"), missing); err != nil {
		t.Errorf("store that does not exist yet: %v", err)
	}
	if _, err := os.Stat(missing); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the check has made a file: %v", err)
	}
}

// TestDamageBecomesOneSentence damages live parts of a store in ways of which each must be found.
func TestDamageBecomesOneSentence(t *testing.T) {
	content, _ := sample(t)
	branches := pagesOf(content, 1)
	if len(branches) == 0 {
		t.Fatal("the sample has no branch page")
	}
	// eachBranch changes the page number in the first element of every branch page.
	eachBranch := func(target func(at int) uint64) []byte {
		return clone(content, func(c []byte) {
			for _, at := range branches {
				binary.NativeEndian.PutUint64(c[at+16+8:], target(at))
			}
		})
	}
	const key = "key/07/11"
	tests := []struct {
		name    string
		content []byte
		want    string
	}{
		{"empty file", nil, "the file is empty"},
		{"text file", []byte("not a store\n"), "it is not a store"},
		{"zeros", make([]byte, len(content)), "it is not a store"},
		{"both first pages gone", clone(content, func(c []byte) { clear(c[:2*pageSize]) }), "it is not a store"},
		{"one page", content[:pageSize], ""},
		{"two pages", content[:2*pageSize], "the file is cut off"},
		{"cut in the middle", content[:len(content)/40], "the file is cut off"},
		{"page refers to itself", eachBranch(func(at int) uint64 { return uint64(at / pageSize) }), ""},
		{"page refers far beyond the end", eachBranch(func(int) uint64 { return 1 << 40 }), ""},
		{"page refers just beyond the end", eachBranch(func(int) uint64 { return uint64(len(content)/pageSize) + 8 }), ""},
		{"page refers to the first page", eachBranch(func(int) uint64 { return 0 }), ""},
		{"every free list of the wrong type", clone(content, func(c []byte) {
			for _, at := range pagesOf(content, 16) {
				binary.NativeEndian.PutUint16(c[at+8:], 2)
			}
		}), "free list"},
		{"value changed", bytes.ReplaceAll(content, []byte(key+" "+key), []byte(key+" Key/07/11")), `checksum of entry "key/07/11"`},
		{"key changed", bytes.ReplaceAll(content, []byte(key), []byte("key/07/1x")), `checksum of entry "key/07/1x"`},
		{"last entry of every page lost", clone(content, func(c []byte) {
			for _, at := range pagesOf(c, 2) {
				if n := binary.NativeEndian.Uint16(c[at+10:]); n > 5 {
					binary.NativeEndian.PutUint16(c[at+10:], n-1)
				}
			}
		}), "entries, there were 470"},
		{"format from the future", bytes.ReplaceAll(content, []byte("format1"), []byte("format2")), `format "2"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path, err := checkBytes(t, tt.content)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("got %v, want %q", err, tt.want)
			}
			if !strings.Contains(tt.want, "format") {
				wantDamage(t, tt.name, path, err)
			}
			t.Log(err)
		})
	}
}

// TestRandomDamageNeverEndsTheParent flips bits, overwrites pages and cuts the file at many places. If the check calls the
// store sound then it can be opened and read, and holds its last state or, where a first page was hit, the one before.
func TestRandomDamageNeverEndsTheParent(t *testing.T) {
	content, states := sample(t)
	seed := rand.Uint64()
	if v := os.Getenv(seedVariable); v != "" {
		var err error
		if seed, err = strconv.ParseUint(v, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%s=%d repeats this", seedVariable, seed)
	random := rand.New(rand.NewPCG(seed, 1))
	used := len(bytes.TrimRight(content, "\x00"))
	sound, found := 0, 0
	for i := range 90 {
		damagedContent := bytes.Clone(content)
		at := random.IntN(used)
		what := fmt.Sprintf("bit flipped at %d", at)
		switch i % 6 {
		case 0:
			damagedContent = damagedContent[:at]
			what = fmt.Sprintf("cut at %d", at)
		case 1:
			at -= at % pageSize
			for j := range pageSize {
				damagedContent[at+j] = byte(random.Uint32())
			}
			what = fmt.Sprintf("page at %d overwritten", at)
		case 2: // the head of a page, where it hurts most
			at -= at%pageSize - random.IntN(64)
			damagedContent[at] ^= 1 << random.IntN(8)
			what = fmt.Sprintf("bit flipped in the head of a page, at %d", at)
		default:
			damagedContent[at] ^= 1 << random.IntN(8)
		}
		path, err := checkBytes(t, damagedContent)
		if err != nil {
			found++
			if !strings.Contains(err.Error(), "has format") {
				wantDamage(t, what, path, err)
			}
			continue
		}
		sound++
		wantOneOf(t, what, path, states)
	}
	t.Logf("%d damages found, %d did not matter", found, sound)
	if found < 30 {
		t.Errorf("only %d of 90 damages were found", found)
	}
}

// wantOneOf opens a store that was called sound and compares it with its last two states.
func wantOneOf(t *testing.T, what, path string, states map[int64][]store.Entry) {
	t.Helper()
	db := open(t, path)
	entries, revision, err := db.List(t.Context(), "")
	if err != nil {
		t.Fatalf("%s: was called sound, but: %v", what, err)
	}
	want := states[revision]
	if revision < int64(len(states))-1 || len(entries) != len(want) {
		t.Fatalf("%s: was called sound, but has revision %d with %d entries", what, revision, len(entries))
	}
	for i, e := range entries {
		if e.Key != want[i].Key || e.Revision != want[i].Revision || !bytes.Equal(e.Value, want[i].Value) {
			t.Fatalf("%s: was called sound, but entry %q differs", what, e.Key)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestCheckOutlivesItsChild covers children that end without a report.
func TestCheckOutlivesItsChild(t *testing.T) {
	content, _ := sample(t)
	path := filepath.Join(t.TempDir(), "store.db")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name    string
		command []string
		want    string
	}{
		{"no command", nil, "no command"},
		{"missing command", []string{filepath.Join(t.TempDir(), "nothing")}, "no such file"},
		{"silent child", childCommand(t, "silent"), "ended without a result"},
		{"panic", childCommand(t, "panic"), "reading it ends the process: panic: a panic of the child"},
		{"bus error", []string{"sh", "-c", "kill -BUS $$"}, "reading it ends the process: signal: bus error"},
		{"killed", []string{"sh", "-c", "kill -KILL $$"}, "could not be checked: the check was killed"},
		{"other output", []string{"sh", "-c", "echo hello; exit 1"}, "reading it ends the process: exit status 1"},
		{"much output", []string{"sh", "-c", "yes | head -c 10000000; exit 3"}, "reading it ends the process: exit status 3"},
		{"lying child", []string{"sh", "-c", `echo '{"ok":true}'; exit 1`}, "reading it ends the process: exit status 1"},
	}
	for _, tt := range tests {
		if err := bbolt.CheckInChild(t.Context(), tt.command, path); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := bbolt.CheckInChild(ended, childCommand(t, "check"), path); !errors.Is(err, context.Canceled) {
		t.Errorf("ended context: got %v, want %v", err, context.Canceled)
	}
}

func TestCheckOfStoreInUseSaysSo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	db := open(t, path)
	err := bbolt.CheckInChild(t.Context(), childCommand(t, "check"), path)
	fault, ok := errors.AsType[*store.Fault](err)
	if !ok || fault.Path != path || !strings.Contains(fault.Message, "used by another process") || !strings.Contains(fault.Hint, "another sds-server") {
		t.Errorf("got %v, want that it is in use", err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if err := bbolt.CheckInChild(t.Context(), childCommand(t, "check"), path); err != nil {
		t.Errorf("after close: %v", err)
	}
}
