package integration

import (
	"crypto/x509"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sds-server/sds-server/internal/testenv"
	"github.com/sds-server/sds-server/pkg/secret"
)

// TestNothingOfTheNackTablePassesValidation has the rows that a stored record can express: what Envoy rejects, and what it serves though
// clients would not take it, breaks a rule.
func TestNothingOfTheNackTablePassesValidation(t *testing.T) {
	p := newPKI(t)
	roots := x509.NewCertPool()
	roots.AddCert(p.root.cert)
	for _, row := range nackRows() {
		t.Run(row.name, func(t *testing.T) {
			if (row.pair == nil) == (row.raw == nil) || row.parse != nil && row.raw == nil {
				t.Fatal("a row has either other content or a pair")
			}
			if row.raw != nil && row.parse == nil && len(row.rules) == 0 {
				return // there is no way to say it to pkg/secret
			}
			if row.verdict != agrees && len(row.rules) == 0 {
				t.Fatal("content that is not good breaks a rule")
			}
			expectation := secret.Expectation{DNSNames: []string{row.host()}, Roots: roots}
			if strings.HasSuffix(row.name, "roots unknown") {
				expectation.Roots = nil
			}
			parse := row.parse
			if parse == nil {
				in := row.pair(t, p, row.host())
				parse = func(name string) (*secret.Secret, error) { return secret.ParseCertificate(name, in.chain, in.key) }
			}
			s, err := parse(row.host())
			if err == nil {
				err = s.Validate(time.Now(), expectation)
			}
			if diff := cmp.Diff(row.rules, secret.Rules(err)); diff != "" {
				t.Errorf("broken rules (-want +got):\n%s\n%v", diff, err)
			}
		})
	}
}

// TestNackTableIsThatOfPkgSecret reads the rows of pkg/secret from its source, so that none can be forgotten on either side.
func TestNackTableIsThatOfPkgSecret(t *testing.T) {
	want := map[string][]string{"envoyRejects": {}, "envoyRejectsKinds": {}, "clientsReject": {}}
	for _, row := range nackRows() {
		switch {
		case row.parse != nil:
			want["envoyRejectsKinds"] = append(want["envoyRejectsKinds"], row.name)
		case row.pair == nil || row.verdict == agrees:
		case row.verdict == rejects:
			want["envoyRejects"] = append(want["envoyRejects"], row.name)
		default:
			want["clientsReject"] = append(want["clientsReject"], row.name)
		}
	}
	root, err := testenv.ModuleRoot()
	must(t, err)
	file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(root, "pkg", "secret", "envoy_test.go"), nil, 0)
	must(t, err)
	got := map[string][]string{}
	ast.Inspect(file, func(n ast.Node) bool {
		if spec, ok := n.(*ast.ValueSpec); ok && len(spec.Values) == 1 && want[spec.Names[0].Name] != nil {
			got[spec.Names[0].Name] = rowNames(t, spec.Values[0])
		}
		return true
	})
	for _, table := range slices.Sorted(maps.Keys(want)) {
		slices.Sort(want[table])
		slices.Sort(got[table])
		if diff := cmp.Diff(want[table], got[table]); diff != "" {
			t.Errorf("%s (-here +pkg/secret):\n%s", table, diff)
		}
	}
}

// rowNames are the values of the field name in the rows of a literal.
func rowNames(t *testing.T, literal ast.Expr) []string {
	t.Helper()
	rows, ok := literal.(*ast.CompositeLit)
	if !ok {
		t.Fatalf("%T is no literal of rows", literal)
	}
	var names []string
	for _, element := range rows.Elts {
		for _, field := range element.(*ast.CompositeLit).Elts {
			pair, ok := field.(*ast.KeyValueExpr)
			if !ok || pair.Key.(*ast.Ident).Name != "name" {
				continue
			}
			name, err := strconv.Unquote(pair.Value.(*ast.BasicLit).Value)
			must(t, err)
			names = append(names, name)
		}
	}
	return names
}
