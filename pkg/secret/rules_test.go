package secret

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// input is what ParseCertificate is given.
type input struct {
	name       string
	chain, key []byte
}

// refusal is one row: an input that breaks exactly these rules.
type refusal struct {
	name  string
	input func(t *testing.T, w *world) input
	want  func(w *world, e *Expectation) // changes the expectation; nil: the good one
	now   time.Time                      // zero: now
	rules []Rule
}

// judge parses and validates as every user of this package does.
func judge(in input, at time.Time, want Expectation) error {
	s, err := ParseCertificate(in.name, in.chain, in.key)
	if err != nil {
		return err
	}
	return s.Validate(at, want)
}

func runRefusals(t *testing.T, rows []refusal) {
	t.Helper()
	w := newWorld(t)
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			expectation := Expectation{DNSNames: []string{"a.example"}, Roots: w.roots()}
			if row.want != nil {
				row.want(w, &expectation)
			}
			at := now
			if !row.now.IsZero() {
				at = row.now
			}
			in := row.input(t, w)
			err := judge(in, at, expectation)
			if got := Rules(err); !slices.Equal(got, row.rules) {
				t.Fatalf("got rules %q, want %q: %v", got, row.rules, err)
			}
			if !strings.HasPrefix(err.Error(), fmt.Sprintf("secret %q: ", in.name)) || len(Hints(err)) == 0 {
				t.Errorf("got error %q with hints %q, want the name of the secret and a hint", err, Hints(err))
			}
		})
	}
}

// TestEveryRuleHasHintAndRow reads the constants from the source, so that a new rule cannot be forgotten.
func TestEveryRuleHasHintAndRow(t *testing.T) {
	source, err := os.ReadFile("rule.go")
	if err != nil {
		t.Fatal(err)
	}
	alone := map[Rule]bool{}
	for _, rows := range [][]refusal{envoyRejects, clientsReject, textRules, leafRules, chainRules, validateRules} {
		for _, row := range rows {
			if len(row.rules) == 1 {
				alone[row.rules[0]] = true
			}
		}
	}
	for _, row := range slices.Concat(envoyRejectsKinds, caRules, ticketRules, genericRules) {
		if len(row.rules) == 1 {
			alone[row.rules[0]] = true
		}
	}
	matches := regexp.MustCompile(`(?m)^\tRule\w+\s+Rule = "(\w+)"`).FindAllSubmatch(source, -1)
	if len(matches) != len(hints) {
		t.Errorf("got %d hints, want %d", len(hints), len(matches))
	}
	for _, match := range matches {
		rule := Rule(match[1])
		if hints[rule] == "" {
			t.Errorf("got no hint for %q, want one", rule)
		}
		if !alone[rule] {
			t.Errorf("got no row that breaks only %q, want one", rule)
		}
	}
}
