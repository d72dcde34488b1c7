package docs_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestReadmeConfigurationIsValidAndShort(t *testing.T) {
	config := section(t, read(t, "README.md"), "```yaml\n", "```")
	if n := strings.Count(config, "\n"); n > 20 {
		t.Errorf("the configuration has %d lines, want at most 20", n)
	}
	dir := filepath.Join(t.TempDir(), "sds-server")
	if code, _, errs := command(t, "init", "--dir", dir); code != 0 {
		t.Fatalf("init: exit code %d: %s", code, errs)
	}
	file := filepath.Join(dir, "sds-server.yaml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	code, out, errs := command(t, "validate", "-c", file)
	if want := file + ": ok (1 certificate, 2 groups)\n"; code != 0 || out != want {
		t.Errorf("got exit code %d, %q, %s; want 0, %q", code, out, errs, want)
	}
}

func TestMakeTargetsInTextsExist(t *testing.T) {
	makefile := read(t, "Makefile")
	found := 0
	for _, name := range texts(t) {
		for _, m := range regexp.MustCompile("(?m)(?:^|`)make ([a-z-]+)").FindAllStringSubmatch(read(t, name), -1) {
			found++
			if !strings.Contains(makefile, "\n"+m[1]+":") {
				t.Errorf("%s: no target of the Makefile is named %q", name, m[1])
			}
		}
	}
	if found < 5 {
		t.Errorf("got %d targets, want more", found)
	}
}

func TestLinksLeadToFiles(t *testing.T) {
	found := 0
	for _, name := range texts(t) {
		for _, m := range regexp.MustCompile(`\]\(([^)#:]+)[^):]*\)`).FindAllStringSubmatch(read(t, name), -1) {
			found++
			if _, err := os.Stat(filepath.Join(root, filepath.Dir(name), m[1])); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	if found < 5 {
		t.Errorf("got %d links, want more", found)
	}
}

func TestMetricsInTextsAreListed(t *testing.T) {
	listed := read(t, "docs/metrics.md")
	found := 0
	for _, name := range []string{"README.md", "docs/operations.md", "docs/configuration.md"} {
		for _, metric := range regexp.MustCompile(`\bsds_[a-z_]+`).FindAllString(read(t, name), -1) {
			if metric == "sds_config" || metric == "sds_server" { // words of Envoy's configuration
				continue
			}
			found++
			if !regexp.MustCompile(`\b(sds_)?` + strings.TrimPrefix(metric, "sds_") + `\b`).MatchString(listed) {
				t.Errorf("%s: %s is not in docs/metrics.md", name, metric)
			}
		}
	}
	if found < 8 {
		t.Errorf("got %d metrics, want more", found)
	}
}

func TestReadmeLayoutNamesEachFolder(t *testing.T) {
	var named []string
	for _, row := range cells(section(t, read(t, "README.md"), "## Layout", "\n## ")) {
		for _, folder := range code(row[0]) {
			if info, err := os.Stat(filepath.Join(root, folder)); err != nil || !info.IsDir() {
				t.Errorf("%s is no folder", folder)
			}
			named = append(named, folder)
		}
	}
	for _, pattern := range []string{"cmd/*", "internal/*", "pkg/*", "test", "examples/*", "deploy", "docs"} {
		folders, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil || len(folders) == 0 {
			t.Fatalf("%s: %v, %v", pattern, folders, err)
		}
		for _, folder := range folders {
			if rel, err := filepath.Rel(root, folder); err != nil || !slices.Contains(named, rel) {
				t.Errorf("%s is not named (%v)", rel, err)
			}
		}
	}
}

// TestCommandsInTextsExist asks the program for the help of each command line, and looks for each flag in it.
func TestCommandsInTextsExist(t *testing.T) {
	lines := map[string]string{}
	for _, name := range texts(t) {
		for _, m := range regexp.MustCompile("(?m)(?:^|`)sds-server ([a-z][^`#|>]*)").FindAllStringSubmatch(read(t, name), -1) {
			lines[strings.Join(strings.Fields(m[1]), " ")] = name
		}
	}
	if len(lines) < 20 {
		t.Fatalf("got %d command lines, want more", len(lines))
	}
	for line, name := range lines {
		words := strings.Fields(line)
		path := []string{words[0]}
		if len(words) > 1 && slices.Contains([]string{"secrets", "snapshots", "rollout", "identity", "envoy", "store", "audit"}, words[0]) {
			path = append(path, words[1])
		}
		code, help, errs := command(t, append(slices.Clone(path), "--help")...)
		if code != 0 || !strings.Contains(help, "Usage:\n  sds-server "+strings.Join(path, " ")) {
			t.Errorf("%s: sds-server %s: exit code %d: %s%s", name, line, code, help, errs)
			continue
		}
		for _, flag := range regexp.MustCompile(`(?:^|\s)(--?[a-z][a-z-]*)`).FindAllStringSubmatch(line, -1) {
			if !regexp.MustCompile(`(?m)^\s.*` + flag[1] + `\b`).MatchString(help) {
				t.Errorf("%s: sds-server %s: no flag %s", name, line, flag[1])
			}
		}
	}
}

func TestRefusedCommandsAreThoseOfTheReadme(t *testing.T) {
	refused := code(section(t, read(t, "README.md"), "Commands:\n", "\n## "))
	slices.Sort(refused)
	if diff := cmp.Diff(unbuilt(t), refused); diff != "" {
		t.Errorf("refused commands (-program +README):\n%s", diff)
	}
	for _, line := range refused {
		code, _, errs := command(t, strings.Fields(line)...)
		if want := "not supported yet: " + line + "\n"; code != 2 || !strings.Contains(errs, want) {
			t.Errorf("sds-server %s: got exit code %d, %q; want 2, %q", line, code, errs, want)
		}
	}
}

// unbuilt reads the program's table.
func unbuilt(t *testing.T) []string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(root, "cmd", "sds-server", "unbuilt.go"), nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, d := range file.Decls {
		ast.Inspect(d, func(n ast.Node) bool {
			spec, ok := n.(*ast.ValueSpec)
			if !ok || spec.Names[0].Name != "unbuilt" {
				return true
			}
			ast.Inspect(spec, func(n ast.Node) bool {
				if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
					path, err := strconv.Unquote(lit.Value)
					if err != nil {
						t.Fatal(err)
					}
					all = append(all, path)
				}
				return true
			})
			return false
		})
	}
	slices.Sort(all)
	return all
}

func TestChangelogEntriesHaveTheirForm(t *testing.T) {
	form := regexp.MustCompile(`^- \[(FEATURE|CHANGE|BUGFIX|SECURITY)\] [a-z]+: [A-Z"` + "`" + `].*[^.]\.$`)
	entries := 0
	for line := range strings.Lines(read(t, "CHANGELOG.md")) {
		line = strings.TrimRight(line, "\n")
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		entries++
		if !form.MatchString(line) {
			t.Errorf("%q is not `- [KIND] area: Sentence.`", line)
		}
	}
	if entries == 0 {
		t.Error("no entries")
	}
}
