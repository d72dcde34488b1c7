package watch

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestDirectoriesOnTheWay(t *testing.T) {
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	root, err := filepath.EvalSymlinks(t.TempDir())
	must(err)
	must(os.MkdirAll(filepath.Join(root, "a", "v1"), 0o700))
	must(os.WriteFile(filepath.Join(root, "a", "v1", "file"), nil, 0o600))
	must(os.Symlink("v1", filepath.Join(root, "a", "data")))
	must(os.Symlink(filepath.Join("data", "file"), filepath.Join(root, "a", "file")))
	must(os.Symlink(filepath.Join(root, "a"), filepath.Join(root, "link")))
	must(os.Symlink("loop", filepath.Join(root, "loop")))
	for path, want := range map[string][]string{
		"a/v1/file":   {"a/v1"},
		"a/data/file": {"a", "a/v1"},
		"link/file":   {"", "a", "a/v1"},
		"loop/file":   {""},
		"a/missing":   {"a"},
	} {
		var abs []string
		for _, dir := range want {
			abs = append(abs, filepath.Join(root, dir))
		}
		got := directories(filepath.Join(root, path))
		slices.Sort(abs)
		if diff := cmp.Diff(abs, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", path, diff)
		}
	}
}
