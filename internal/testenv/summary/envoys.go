package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/sds-server/sds-server/internal/testenv"
)

// envoyRun is one version of Envoy and what came out.
type envoyRun struct {
	version string
	*summary
	code int
}

// plan is what is run on several versions of Envoy.
type plan struct {
	versions []string
	last     string   // regular expression for the tests that are run on the last version alone; empty: none
	args     []string // of go test
}

// run runs the tests on each version, all of them also after a failure, and prints a table. It returns 1 if any has failed.
func (p plan) run(ctx context.Context, stdout, stderr io.Writer) int {
	var runs []envoyRun
	for i, version := range p.versions {
		fmt.Fprintf(stdout, "=== Envoy %s\n", version)
		env, err := envoyEnvironment(ctx, version, stdout)
		if err != nil {
			fmt.Fprintf(stderr, "error: %v\n", err)
			return 1
		}
		s, code := runTests(ctx, p.argsOf(i), env, stdout, stderr)
		runs = append(runs, envoyRun{version, s, code})
		if ctx.Err() != nil {
			break
		}
	}
	writeTable(stdout, runs)
	if len(runs) < len(p.versions) || slices.ContainsFunc(runs, func(r envoyRun) bool { return r.code != 0 }) {
		return 1
	}
	return 0
}

// argsOf are the arguments of go test for a version. What is skipped on every version is skipped besides: the last -skip counts.
func (p plan) argsOf(i int) []string {
	if p.last == "" || i == len(p.versions)-1 {
		return p.args
	}
	skip := p.last
	if at := slices.Index(p.args, "-skip"); at >= 0 && at+1 < len(p.args) {
		skip = p.args[at+1] + "|" + skip
	}
	packages := slices.IndexFunc(p.args, func(a string) bool { return strings.HasPrefix(a, "./") })
	if packages < 0 {
		packages = len(p.args)
	}
	return slices.Insert(slices.Clone(p.args), packages, "-skip", skip)
}

// envoyEnvironment has the tests use a version, which is installed where it is missing. It fails where the executable states another one.
func envoyEnvironment(ctx context.Context, version string, stdout io.Writer) ([]string, error) {
	path, err := testenv.EnsureEnvoy(ctx, version, func(format string, args ...any) { fmt.Fprintf(stdout, format+"\n", args...) })
	if err != nil {
		return nil, err
	}
	stated, err := testenv.EnvoyVersionOf(ctx, path)
	if err == nil && stated != version {
		err = fmt.Errorf("%s states %q", path, stated)
	}
	if err != nil {
		return nil, fmt.Errorf("envoy %s: %w", version, err)
	}
	return []string{"ENVOY_BIN=" + path}, nil
}

// writeTable prints a line for each version, and under it, without the package, which tests were skipped on it and why.
func writeTable(w io.Writer, runs []envoyRun) {
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "ENVOY\tPASSED\tFAILED\tSKIPPED\tREASONS")
	for _, r := range runs {
		reasons := []string{""}
		if len(r.reasons) > 0 {
			reasons = r.reasons
		}
		for i, reason := range reasons {
			reason = reason[strings.LastIndex(strings.SplitN(reason, " ", 2)[0], "/")+1:]
			if i == 0 {
				fmt.Fprintf(t, "%s\t%d\t%d\t%d\t%s\n", r.version, r.passed, r.failed, r.skipped, reason)
			} else {
				fmt.Fprintf(t, "\t\t\t\t%s\n", reason)
			}
		}
	}
	_ = t.Flush() // a terminal that has gone away needs no table
}
