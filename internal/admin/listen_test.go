package admin

import (
	"os"
	"path/filepath"
	"testing"
)

func TestListenModes(t *testing.T) {
	for _, row := range []struct {
		name        string
		others      bool
		made        os.FileMode // mode that the directory has before; 0: it is not there
		socket, dir os.FileMode
	}{
		{"alone", false, 0, 0o600, 0o700},
		{"alone, directory there", false, 0o755, 0o600, 0o755},
		{"others", true, 0, 0o666, 0o711},
		{"others, directory of a group", true, 0o750, 0o666, 0o751},
		{"others, directory open", true, 0o755, 0o666, 0o755},
	} {
		t.Run(row.name, func(t *testing.T) {
			base, err := os.MkdirTemp("", "sds")
			if err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(base)
			dir := filepath.Join(base, "d")
			if row.made != 0 {
				if err := os.Mkdir(dir, row.made); err != nil {
					t.Fatal(err)
				}
			}
			path := filepath.Join(dir, "a.sock")
			l, err := Listen(t.Context(), path, row.others, func(uint32) bool { return true })
			if err != nil {
				t.Fatal(err)
			}
			for path, want := range map[string]os.FileMode{path: row.socket, dir: row.dir} {
				if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
					t.Errorf("%s: got %v, %v, want mode %04o", path, info.Mode(), err, want)
				}
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Lstat(path); err == nil {
				t.Error("the socket was left behind")
			}
			want := base // a temporary directory lets only its owner through
			if row.dir&0o001 == 0 {
				want = dir
			}
			if got := Closed(path); got != want {
				t.Errorf("the first closed directory is %q, want %q", got, want)
			}
		})
	}
}

func TestDirectoryOthersCanWriteToIsRefused(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(t.Context(), filepath.Join(dir, "a.sock"), true, func(uint32) bool { return true }); err == nil {
		t.Error("opened a socket where anybody can put another one in its place")
	}
}

func TestOneLine(t *testing.T) {
	if got, want := oneLine("a\nb\r\n\nc"), "a; b; c"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
