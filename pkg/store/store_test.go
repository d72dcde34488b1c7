package store_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/sds-server/sds-server/pkg/store"
)

func TestKeyGivesEveryNameItsOwnPrefix(t *testing.T) {
	tests := []struct {
		parts []string
		want  string
	}{
		{[]string{"secret", "www.example.com"}, "secret/www.example.com"},
		{[]string{"secret", "a/b", "c"}, "secret/a%2Fb/c"},
		{[]string{"secret", "a", "b/c"}, "secret/a/b%2Fc"},
		{[]string{"secret", "*.example.com"}, "secret/%2A.example.com"},
		{[]string{"secret", "100%", ""}, "secret/100%25/"},
		{[]string{"ä\x00\xff ?#"}, "%C3%A4%00%FF%20%3F%23"},
	}
	for _, tt := range tests {
		got := store.Key(tt.parts...)
		if got != tt.want {
			t.Errorf("Key(%q): got %q, want %q", tt.parts, got, tt.want)
		}
		if parts := store.Parts(got); !slices.Equal(parts, tt.parts) {
			t.Errorf("Parts(%q): got %q, want %q", got, parts, tt.parts)
		}
	}
	if got := store.Parts("a/%zz"); !slices.Equal(got, []string{"a", "%zz"}) {
		t.Errorf("part that cannot be unescaped: got %q", got)
	}
}

func TestMediumFaultSaysWhatToDo(t *testing.T) {
	tests := []struct {
		name    string
		err     error
		message string
		hint    string
	}{
		{"full", &fs.PathError{Op: "write", Path: "/d/store.db", Err: syscall.ENOSPC}, "/d/store.db: store cannot be written, the disk is full: no space left on device", "free some space on the file system of /d"},
		{"quota", syscall.EDQUOT, "/d/store.db: store cannot be written, the disk is full: disk quota exceeded", "free some space"},
		{"read-only", &os.LinkError{Op: "link", Err: syscall.EROFS}, "/d/store.db: store cannot be written, the file system is read-only: read-only file system", "mount the file system of /d writable"},
		{"permission", &fs.PathError{Op: "open", Err: syscall.EACCES}, "/d/store.db: store cannot be written: permission denied", "let the user of this process"},
		{"broken disk", syscall.EIO, "/d/store.db: store cannot be written: input/output error", "keep a copy"},
		{"other", errors.New("what else"), "/d/store.db: store cannot be written: what else", ""},
	}
	for _, tt := range tests {
		fault := store.MediumFault("/d/store.db", "store cannot be written", tt.err)
		if fault.Error() != tt.message || !strings.Contains(fault.Hint, tt.hint) || (tt.hint == "") != (fault.Hint == "") {
			t.Errorf("%s: got %q with hint %q, want %q, %q", tt.name, fault.Error(), fault.Hint, tt.message, tt.hint)
		}
	}
	if err := error(&store.Fault{Path: "p", Message: "m"}); err.Error() != "p: m" || errors.Unwrap(err) != nil {
		t.Errorf("fault without a cause: got %q", err)
	}
}

func TestPublishNeverOverwrites(t *testing.T) {
	directory := t.TempDir()
	path, temporary := filepath.Join(directory, "file"), filepath.Join(directory, "file.new")
	for _, content := range []string{"first", "second"} {
		if err := os.WriteFile(temporary, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		err := store.Publish(temporary, path)
		if want := content == "second"; errors.Is(err, os.ErrExist) != want || !want && err != nil {
			t.Errorf("publish %s: got %v, want exists %v", content, err, want)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != "first" {
			t.Errorf("file holds %q, %v, want first", got, err)
		}
		if _, err := os.Stat(temporary); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("temporary file: %v, want that it is gone", err)
		}
	}
}
