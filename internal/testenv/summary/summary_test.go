package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// write makes a module of one package with the given tests and makes it the working directory.
func write(t *testing.T, body string) {
	t.Helper()
	dir := t.TempDir()
	files := map[string]string{
		"go.mod":    "module m.example\n\ngo 1.26\n",
		"m_test.go": "package m\n\nimport \"testing\"\n\n" + body,
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(dir)
}

func TestSummaryOfRealRuns(t *testing.T) {
	for _, tc := range []struct {
		name, body string
		code       int
		contains   []string
		absent     []string
		totals     string
		end        string
	}{
		{
			name:   "all pass",
			body:   "func TestA(t *testing.T) { t.Log(\"quiet\"); t.Run(\"sub\", func(*testing.T) {}) }",
			totals: "2 passed, 0 failed, 0 skipped", end: "skipped: nothing\n",
			contains: []string{"ok    m.example"}, absent: []string{"quiet"},
		},
		{
			name:   "skips are named last with their reasons",
			body:   "func TestA(t *testing.T) {}\nfunc TestB(t *testing.T) { t.Skip(\"needs a moon\") }",
			totals: "1 passed, 0 failed, 1 skipped", end: "needs a moon\n", contains: []string{"skipped:\n  m.example TestB: m_test.go:"},
		},
		{
			name: "a failure shows its output in full", code: 1,
			body:   "func TestA(t *testing.T) { t.Log(\"before\"); t.Error(\"boom\") }\nfunc TestB(t *testing.T) { t.Log(\"quiet\") }",
			totals: "1 passed, 1 failed, 0 skipped", end: "skipped: nothing\n",
			contains: []string{"FAIL  m.example", "before", "boom"}, absent: []string{"quiet"},
		},
		{
			name: "a panic counts the test that had not ended", code: 1, body: "func TestA(t *testing.T) { panic(\"crash\") }",
			totals: "0 passed, 1 failed, 0 skipped", end: "skipped: nothing\n", contains: []string{"panic: crash"},
		},
		{
			name: "a package that does not build has failed", code: 1, body: "func TestA(t *testing.T) { undefined() }",
			totals: "0 passed, 1 failed, 0 skipped", end: "skipped: nothing\n", contains: []string{"undefined: undefined"},
		},
		{
			name: "an exit outside a test has failed", code: 1,
			body:   "func TestMain(m *testing.M) { panic(\"in main\") }",
			totals: "0 passed, 1 failed, 0 skipped", end: "skipped: nothing\n", contains: []string{"in main"},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			write(t, tc.body)
			var out, errs bytes.Buffer
			if got := run([]string{"-count=1", "./..."}, &out, &errs); got != tc.code {
				t.Errorf("got exit code %d, want %d\n%s", got, tc.code, errs.String())
			}
			text := out.String()
			if !strings.Contains(text, "\n"+tc.totals+"\n") {
				t.Errorf("no line %q alone in\n%s", tc.totals, text)
			}
			if !strings.HasSuffix(text, tc.end) {
				t.Errorf("does not end with %q:\n%s", tc.end, text)
			}
			for _, want := range tc.contains {
				if !strings.Contains(text, want) {
					t.Errorf("does not contain %q:\n%s", want, text)
				}
			}
			for _, not := range tc.absent {
				if strings.Contains(text, not) {
					t.Errorf("contains %q:\n%s", not, text)
				}
			}
		})
	}
}

func TestBadArgumentsFail(t *testing.T) {
	write(t, "func TestA(t *testing.T) {}")
	var out, errs bytes.Buffer
	if got := run([]string{"-no-such-flag", "./..."}, &out, &errs); got == 0 {
		t.Errorf("got exit code 0 for a flag that does not exist\n%s%s", out.String(), errs.String())
	}
}
