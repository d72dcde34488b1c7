package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
)

// event is a line of `go test -json` (see `go doc test2json`).
type event struct {
	Action      string
	Package     string
	ImportPath  string
	Test        string
	Elapsed     float64
	Output      string
	FailedBuild string
}

// summary gathers the events of all packages. Subtests are counted like tests.
type summary struct {
	out                     io.Writer
	passed, failed, skipped int

	packages map[string]*packageLog
	builds   map[string][]string // output of the compiler by import path
	reasons  []string            // one line for each skipped test
}

// packageLog keeps the output of a package until it is known whether it is of interest.
type packageLog struct {
	output map[string][]string // by test; "" is the package itself
	failed []string            // in the order of their ends
	open   map[string]bool     // started and not ended
}

func newSummary(out io.Writer) *summary {
	return &summary{out: out, packages: make(map[string]*packageLog), builds: make(map[string][]string)}
}

// read takes events until the end of r. A line that is no event is printed as it is.
func (s *summary) read(r io.Reader) error {
	in := bufio.NewReader(r)
	for {
		line, err := in.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if json.Unmarshal(line, &e) == nil && e.Action != "" {
				s.add(e)
			} else {
				fmt.Fprintf(s.out, "%s\n", strings.TrimRight(string(line), "\n"))
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (s *summary) add(e event) {
	if e.Action == "build-output" {
		s.builds[e.ImportPath] = append(s.builds[e.ImportPath], e.Output)
		return
	}
	if e.Package == "" {
		return
	}
	p := s.packages[e.Package]
	if p == nil {
		p = &packageLog{output: make(map[string][]string), open: make(map[string]bool)}
		s.packages[e.Package] = p
	}
	switch {
	case e.Action == "output":
		p.output[e.Test] = append(p.output[e.Test], e.Output)
	case e.Test == "":
		s.endPackage(p, e)
	default:
		s.test(p, e)
	}
}

func (s *summary) test(p *packageLog, e event) {
	switch e.Action {
	case "run":
		p.open[e.Test] = true
		return
	case "pass":
		s.passed++
		delete(p.output, e.Test)
	case "fail":
		s.failed++
		p.failed = append(p.failed, e.Test)
	case "skip":
		s.skipped++
		s.reasons = append(s.reasons, fmt.Sprintf("%s %s: %s", e.Package, e.Test, reason(p.output[e.Test])))
		delete(p.output, e.Test)
	default:
		return
	}
	delete(p.open, e.Test)
}

// reason joins what a skipped test has said, without the lines of the test runner itself.
func reason(output []string) string {
	var said []string
	for line := range strings.SplitSeq(strings.Join(output, ""), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "=== ") || strings.HasPrefix(line, "--- ") {
			continue
		}
		said = append(said, line)
	}
	if len(said) == 0 {
		return "no reason given"
	}
	return strings.Join(said, " ")
}

// endPackage prints the line of a package that has passed, or everything that explains a failure: the compiler's
// output, the failed tests, the tests that had not ended (time-out, crash), and the package's own output.
func (s *summary) endPackage(p *packageLog, e event) {
	switch e.Action {
	case "pass":
		fmt.Fprintf(s.out, "ok    %s %.1fs\n", e.Package, e.Elapsed)
		return
	case "skip":
		fmt.Fprintf(s.out, "-     %s has no tests\n", e.Package)
		return
	case "fail":
	default:
		return
	}
	fmt.Fprintf(s.out, "FAIL  %s %.1fs\n", e.Package, e.Elapsed)
	for _, line := range s.builds[e.FailedBuild] {
		fmt.Fprint(s.out, line)
	}
	open := make([]string, 0, len(p.open))
	for test := range p.open {
		open = append(open, test)
	}
	slices.Sort(open)
	s.failed += len(open)
	if len(open) == 0 && len(p.failed) == 0 {
		s.failed++ // the package itself: it was not built, or ended outside a test
	}
	for _, test := range slices.Concat(p.failed, open, []string{""}) {
		fmt.Fprint(s.out, strings.Join(p.output[test], ""))
	}
	p.output, p.open = make(map[string][]string), make(map[string]bool)
}

// finish prints the totals and what was skipped.
func (s *summary) finish() {
	fmt.Fprintf(s.out, "\n%d passed, %d failed, %d skipped\n\n", s.passed, s.failed, s.skipped)
	if len(s.reasons) == 0 {
		fmt.Fprintln(s.out, "skipped: nothing")
		return
	}
	slices.Sort(s.reasons)
	fmt.Fprintln(s.out, "skipped:")
	for _, line := range s.reasons {
		fmt.Fprintln(s.out, "  "+line)
	}
}
