package docs_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sds-server/sds-server/internal/testenv"
)

// TestCompatibilityIsWhatMakeTestEnvoysRuns compares the table with the Makefile and with the tests that it names: their versions, that they
// are run at all, and from which version on they show what they show.
func TestCompatibilityIsWhatMakeTestEnvoysRuns(t *testing.T) {
	versions, skipped := makeVariable(t, "ENVOYS"), append(makeTests(t, "NOT_ENVOY"), makeTests(t, "ANY_ENVOY")...)
	rows := cells(section(t, read(t, "docs/compatibility.md"), "## What each version can do", "\n## "))
	if len(rows) < 10 {
		t.Fatalf("got %d rows, want more", len(rows))
	}
	header := rows[0][1 : len(rows[0])-1]
	if diff := cmp.Diff(strings.Fields(versions), header); diff != "" {
		t.Fatalf("versions (-Makefile +docs/compatibility.md):\n%s", diff)
	}
	if last := header[len(header)-1]; last != testenv.EnvoyVersion {
		t.Errorf("the last version is %s, want that of make test: %s", last, testenv.EnvoyVersion)
	}
	minimums := envoyTests(t)
	for _, name := range skipped {
		if _, ok := minimums[name]; !ok {
			t.Errorf("the Makefile leaves out %s: there is no such test", name)
		}
	}
	for _, row := range rows[1:] {
		names := code(row[len(row)-1])
		if len(names) != 1 || len(row) != len(header)+2 {
			t.Errorf("%q: want a cell for each version, and one test", row)
			continue
		}
		minimum, ok := minimums[names[0]]
		if !ok || slices.Contains(skipped, names[0]) {
			t.Errorf("%s: no test of that name is run on every version by make test-envoys", names[0])
			continue
		}
		for i, version := range header {
			want := "yes"
			if older(t, version, minimum) {
				want = "no"
			}
			if got := row[i+1]; got != want {
				t.Errorf("%s: %s on %s, but the test says %s", names[0], got, version, want)
			}
		}
	}
}

// makeVariable is the value of a variable in the Makefile.
func makeVariable(t *testing.T, name string) string {
	t.Helper()
	m := regexp.MustCompile(`(?m)^` + name + `\s*[?:]?= (.+)$`).FindStringSubmatch(read(t, "Makefile"))
	if m == nil {
		t.Fatalf("the Makefile has no variable %s", name)
	}
	return m[1]
}

// makeTests are the names in a variable of the Makefile that is a regular expression for tests.
func makeTests(t *testing.T, name string) []string {
	t.Helper()
	names := regexp.MustCompile(`^\^\((.+)\)\$\$$`).FindStringSubmatch(makeVariable(t, name))
	if names == nil {
		t.Fatalf("%s is not ^(NAME|NAME)$$", name)
	}
	return strings.Split(names[1], "|")
}

// envoyTests are the tests of the folders that make test-envoys runs, with the version of Envoy that each asks for; "" is any.
func envoyTests(t *testing.T) map[string]string {
	t.Helper()
	target := section(t, read(t, "Makefile"), "\ntest-envoys:", "\n.PHONY")
	minimums := map[string]string{}
	for _, folder := range regexp.MustCompile(`\./((?:test|examples)/\S+)`).FindAllStringSubmatch(target, -1) {
		files, err := filepath.Glob(filepath.Join(root, folder[1], "*_test.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range files {
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range file.Decls {
				if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && strings.HasPrefix(f.Name.Name, "Test") {
					minimums[f.Name.Name] = minimumEnvoy(t, f)
				}
			}
		}
	}
	return minimums
}

// minimumEnvoy is the version that a test gives to NeedEnvoy or EnvoyAtLeast.
func minimumEnvoy(t *testing.T, f *ast.FuncDecl) string {
	t.Helper()
	minimum := ""
	ast.Inspect(f, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		name, ok := call.Fun.(*ast.SelectorExpr)
		if !ok || !slices.Contains([]string{"NeedEnvoy", "EnvoyAtLeast"}, name.Sel.Name) {
			return true
		}
		lit, ok := call.Args[1].(*ast.BasicLit)
		if !ok {
			t.Fatalf("%s: the version is no literal", f.Name.Name)
		}
		var err error
		if minimum, err = strconv.Unquote(lit.Value); err != nil {
			t.Fatal(err)
		}
		return true
	})
	return minimum
}

// older compares two versions, number by number.
func older(t *testing.T, version, minimum string) bool {
	t.Helper()
	numbers := func(v string) (all []int) {
		for part := range strings.SplitSeq(v, ".") {
			n, err := strconv.Atoi(part)
			if err != nil {
				t.Fatalf("version %q: %v", v, err)
			}
			all = append(all, n)
		}
		return all
	}
	return minimum != "" && slices.Compare(numbers(version), numbers(minimum)) < 0
}
