package seal_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/sds-server/sds-server/pkg/store/seal"
)

func TestKeyFileIsNeverOverwritten(t *testing.T) {
	path := newKey(t)
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v, want 0600", info.Mode(), err)
	}
	err = seal.GenerateKeyFile(path)
	wantFault(t, err, path, "exists already", "it was not changed")
	if !errors.Is(err, os.ErrExist) {
		t.Errorf("got %v, want %v", err, os.ErrExist)
	}
	if after, err := os.ReadFile(path); err != nil || string(after) != string(before) {
		t.Errorf("the key file was changed, %v", err)
	}
	dangling := filepath.Join(filepath.Dir(path), "link")
	if err := os.Symlink("nowhere", dangling); err != nil {
		t.Fatal(err)
	}
	wantFault(t, seal.GenerateKeyFile(dangling), dangling, "exists already", "not changed")
	lost := filepath.Join(filepath.Dir(path), "missing", "seal.key")
	wantFault(t, seal.GenerateKeyFile(lost), lost, "cannot be written", "make the directory")
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 2 {
		t.Errorf("directory holds %v, %v, want the key and the link", left, err)
	}
}

func TestKeyFilesDiffer(t *testing.T) {
	a, err := seal.LoadKeyFile(newKey(t))
	if err != nil {
		t.Fatal(err)
	}
	b, err := seal.LoadKeyFile(newKey(t))
	if err != nil {
		t.Fatal(err)
	}
	if a.String() == b.String() {
		t.Error("two generated keys are equal")
	}
}

func TestKeyFileThatOthersCanUseIsRefused(t *testing.T) {
	const foreign = 54321
	tests := []struct {
		mode    os.FileMode
		group   int
		message string // empty: accepted
	}{
		{0o600, foreign, ""},
		{0o400, foreign, ""},
		{0o640, os.Getegid(), ""},
		{0o440, os.Getegid(), ""},
		{0o640, foreign, "can be read by a group that is not ours"},
		{0o644, os.Getegid(), "can be read by everyone"},
		{0o604, os.Getegid(), "can be read by everyone"},
		{0o660, os.Getegid(), "can be written by others"},
		{0o602, os.Getegid(), "can be written by others"},
	}
	for _, tt := range tests {
		path := newKey(t)
		if err := os.Chown(path, -1, tt.group); err != nil {
			t.Fatalf("chown (this test needs root): %v", err)
		}
		if err := os.Chmod(path, tt.mode); err != nil {
			t.Fatal(err)
		}
		link := path + ".link"
		if err := os.Symlink(path, link); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{path, link} {
			_, err := seal.LoadKeyFile(name)
			if tt.message != "" {
				wantFault(t, err, name, tt.message, "chmod 0600 "+name)
			} else if err != nil {
				t.Errorf("mode %o, group %d: %v", tt.mode, tt.group, err)
			}
		}
	}
}

func TestWrongKeyFileIsOneSentence(t *testing.T) {
	directory := t.TempDir()
	good, err := os.ReadFile(newKey(t))
	if err != nil {
		t.Fatal(err)
	}
	identity := strings.TrimSpace(string(good[strings.Index(string(good), "AGE-SECRET-KEY-"):]))
	tests := []struct {
		name, content, message string
	}{
		{"empty", "", "not an age identity"},
		{"comments only", "# nothing\n", "not an age identity"},
		{"cut", identity[:40], "not an age identity"},
		{"one letter changed", identity[:30] + "!" + identity[31:], "not an age identity"},
		{"public key", "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p\n", "not an age identity"},
		{"binary", "\x00\xff\x00", "not an age identity"},
		{"two keys", identity + "\n" + identity + "\n", "holds 2 identities"},
		{"much too long", strings.Repeat("#", 1<<20) + "\n" + identity, "not an age identity"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(directory, tt.name)
			if err := os.WriteFile(path, []byte(tt.content), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := seal.LoadKeyFile(path)
			wantFault(t, err, path, tt.message, "AGE-SECRET-KEY-1")
			if strings.Contains(err.Error(), identity[20:30]) {
				t.Errorf("the error %q holds a part of the key", err)
			}
		})
	}
	_, err = seal.LoadKeyFile(directory)
	wantFault(t, err, directory, "not a regular file", "seal.key_file")
	fifo := filepath.Join(directory, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = seal.LoadKeyFile(fifo)
	wantFault(t, err, fifo, "not a regular file", "seal.key_file")
}
