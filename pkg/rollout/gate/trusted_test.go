package gate

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// tree makes a directory with a program and a configuration; everything in it is ours alone.
func tree(tb testing.TB) (dir, program, config string) {
	tb.Helper()
	dir = tb.TempDir()
	program, config = filepath.Join(dir, "a", "b", "hook"), filepath.Join(dir, "c", "sds-server.yaml")
	for _, d := range []string{filepath.Dir(program), filepath.Dir(config)} {
		must(tb, os.MkdirAll(d, 0o755))
	}
	must(tb, os.WriteFile(program, []byte("#!/bin/sh\nexit 0\n"), 0o755))
	must(tb, os.WriteFile(config, []byte("{}\n"), 0o600))
	return dir, program, config
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// TestCommandsThatOthersCanChangeAreRefused, both when asked and by a run.
func TestCommandsThatOthersCanChangeAreRefused(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		change func(tb testing.TB, dir, program, config string) (command string)
		want   string // DIR is the directory; empty: it is run
	}{
		{"ours", func(_ testing.TB, _, program, _ string) string { return program }, ""},
		{"program, by others", func(tb testing.TB, _, program, _ string) string {
			must(tb, os.Chmod(program, 0o757))
			return program
		}, "DIR/a/b/hook is a program that others can change (DIR/a/b/hook has mode 0757)"},
		{"program, by the group", func(tb testing.TB, _, program, _ string) string {
			must(tb, os.Chmod(program, 0o775))
			return program
		}, "DIR/a/b/hook is a program that others can change (DIR/a/b/hook has mode 0775)"},
		{"its directory", func(tb testing.TB, _, program, _ string) string {
			must(tb, os.Chmod(filepath.Dir(program), 0o777))
			return program
		}, "DIR/a/b/hook is a program that others can change (DIR/a/b has mode 0777)"},
		{"a directory above", func(tb testing.TB, dir, program, _ string) string {
			must(tb, os.Chmod(filepath.Join(dir, "a"), 0o775))
			return program
		}, "DIR/a/b/hook is a program that others can change (DIR/a has mode 0775)"},
		{"sticky directory", func(tb testing.TB, dir, program, _ string) string {
			must(tb, os.Chmod(filepath.Join(dir, "a"), 0o777|os.ModeSticky))
			return program
		}, ""},
		{"link", func(tb testing.TB, dir, program, _ string) string {
			link := filepath.Join(dir, "link")
			must(tb, os.Symlink(program, link))
			return link
		}, ""},
		{"relative link", func(tb testing.TB, dir, _, _ string) string {
			link := filepath.Join(dir, "c", "link")
			must(tb, os.Symlink("../a/./b/hook", link))
			return link
		}, ""},
		{"link into a directory of others", func(tb testing.TB, dir, program, _ string) string {
			link := filepath.Join(dir, "link")
			must(tb, os.Symlink(program, link))
			must(tb, os.Chmod(filepath.Dir(program), 0o777))
			return link
		}, "DIR/link is a program that others can change (DIR/a/b has mode 0777)"},
		{"link by way of a directory of others", func(tb testing.TB, dir, program, _ string) string {
			theirs := filepath.Join(dir, "theirs")
			must(tb, os.Mkdir(theirs, 0o755))
			must(tb, os.Symlink(program, filepath.Join(theirs, "link")))
			must(tb, os.Symlink(filepath.Join(theirs, "link"), filepath.Join(dir, "link")))
			must(tb, os.Chmod(theirs, 0o777))
			return filepath.Join(dir, "link")
		}, "DIR/link is a program that others can change (DIR/theirs has mode 0777)"},
		{"linked directory", func(tb testing.TB, dir, _, _ string) string {
			must(tb, os.Symlink("a", filepath.Join(dir, "d")))
			must(tb, os.Chmod(filepath.Join(dir, "a"), 0o777))
			return filepath.Join(dir, "d", "b", "hook")
		}, "DIR/d/b/hook is a program that others can change (DIR/a has mode 0777)"},
		{"configuration", func(tb testing.TB, _, program, config string) string {
			must(tb, os.Chmod(config, 0o606))
			return program
		}, "no program is run for a configuration that others can change (DIR/c/sds-server.yaml has mode 0606)"},
		{"directory of the configuration", func(tb testing.TB, dir, program, _ string) string {
			must(tb, os.Chmod(filepath.Join(dir, "c"), 0o775))
			return program
		}, "no program is run for a configuration that others can change (DIR/c has mode 0775)"},
		{"no configuration", func(tb testing.TB, _, program, config string) string {
			must(tb, os.Remove(config))
			return program
		}, "no program is run for a configuration that cannot be read: no such file or directory"},
		{"owner", func(tb testing.TB, _, program, _ string) string {
			if os.Geteuid() != 0 {
				tb.Skip("only root can give files away")
			}
			must(tb, os.Chown(program, 65534, 65534))
			return program
		}, "DIR/a/b/hook is a program that others can change (DIR/a/b/hook belongs to another user)"},
		{"not executable", func(tb testing.TB, _, program, _ string) string {
			must(tb, os.Chmod(program, 0o644))
			return program
		}, "DIR/a/b/hook is not a program"},
		{"directory", func(_ testing.TB, dir, _, _ string) string { return dir }, "DIR is not a program"},
		{"missing", func(_ testing.TB, dir, _, _ string) string { return filepath.Join(dir, "none") }, "DIR/none does not exist"},
		{"relative", func(_ testing.TB, _, _, _ string) string { return "hook" }, `want the absolute path of a program, got "hook"`},
		{"links in a circle", func(tb testing.TB, dir, _, _ string) string {
			must(tb, os.Symlink("y", filepath.Join(dir, "x")))
			must(tb, os.Symlink("x", filepath.Join(dir, "y")))
			return filepath.Join(dir, "x")
		}, "DIR/x cannot be read: too many levels of symbolic links"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir, program, config := tree(t)
			command := []string{tt.change(t, dir, program, config)}
			want := strings.ReplaceAll(tt.want, "DIR", dir)
			got := ""
			if err := CheckCommand(command, config); err != nil {
				got = err.Error()
			}
			if got != want {
				t.Errorf("got %q, want %q", got, want)
			}
			if want == "" {
				return // a script that was just written may be busy when something else is started meanwhile
			}
			if ran := result(t, Command{Argv: command, ConfigFile: config}, Wave{}); ran.OK || ran.Failed != "" || ran.Err != cut(want, maxText) {
				t.Errorf("a run: got %+v, want the error %q", ran, want)
			}
		})
	}
	if err := CheckCommand(nil, ""); err == nil {
		t.Error("an empty command is taken")
	}
	if err := CheckCommand([]string{"/bin/sh"}, ""); err != nil {
		t.Errorf("/bin/sh: %v", err)
	}
}
