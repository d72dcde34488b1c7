package docs_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sds-server/sds-server/pkg/issuer"
	"github.com/sds-server/sds-server/pkg/issuer/acme"
)

// TestEveryCauseOfAFailingOrderIsExplained compares the table in docs/operations.md with what the program says.
func TestEveryCauseOfAFailingOrderIsExplained(t *testing.T) {
	t.Parallel()
	text := section(t, read(t, "docs/operations.md"), "### What a failing order says, and what to do\n", "\n## ")
	var got []string
	for _, row := range cells(text) {
		if row[0] == "kind" {
			continue
		}
		if len(row) != 4 || len(code(row[0])) != 1 || len(code(row[1])) != 1 {
			t.Fatalf("row %q: want kind, cause, what has happened and what to do", row)
		}
		got = append(got, fmt.Sprintf("%s | %s | %s | %s", code(row[0])[0], code(row[1])[0], row[2], row[3]))
	}
	var want []string
	for _, e := range acme.Explanations() {
		want = append(want, fmt.Sprintf("%s | %s | %s | %s", e.Kind, e.Cause, e.When, e.Hint))
	}
	slices.Sort(got)
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("docs/operations.md differs from the program (-want +got):\n%s", diff)
	}
}

// TestEveryKindOfFailureIsListed looks for each kind in the description of the metric that has it as a label.
func TestEveryKindOfFailureIsListed(t *testing.T) {
	t.Parallel()
	for _, row := range cells(read(t, "docs/metrics.md")) {
		if !strings.HasPrefix(row[0], "`sds_certificate_renewal_failing{") {
			continue
		}
		got := code(row[2])[1:] // the first is "kind"
		want := []string{
			string(issuer.KindTemporary), string(issuer.KindRateLimited), string(issuer.KindValidation), string(issuer.KindRejected),
			string(issuer.KindPaused), string(issuer.KindBudget), string(issuer.KindInternal),
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("kinds (-want +got):\n%s", diff)
		}
		return
	}
	t.Error("the metric is not listed")
}
