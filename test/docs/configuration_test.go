package docs_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sds-server/sds-server/internal/config"
)

// documented is a row of docs/configuration.md.
type documented struct {
	def, reload string
}

func documentedKeys(t *testing.T) map[string]documented {
	t.Helper()
	keys := map[string]documented{}
	for _, row := range cells(read(t, "docs/configuration.md")) {
		if row[0] == "key" {
			continue
		}
		names := code(row[0])
		if len(row) != 5 || len(names) != 1 {
			t.Fatalf("row %q: want a key and four more cells", row)
		}
		if _, dup := keys[names[0]]; dup {
			t.Errorf("%s stands there twice", names[0])
		}
		keys[names[0]] = documented{def: row[2], reload: row[4]}
	}
	return keys
}

// leaves calls visit for each key that has a value, in the order of the schema. Lists stand with their first element.
func leaves(v reflect.Value, path string, visit func(path string, v reflect.Value)) {
	switch v.Interface().(type) {
	case time.Time, config.RenewBefore, config.Amount:
		visit(path, v)
		return
	}
	switch {
	case v.Kind() == reflect.Pointer && v.IsNil():
	case v.Kind() == reflect.Pointer:
		leaves(v.Elem(), path, visit)
	case v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.Struct:
		if v.Len() > 0 {
			leaves(v.Index(0), path+"[]", visit)
		}
	case v.Kind() == reflect.Struct:
		for field, value := range v.Fields() {
			key := field.Tag.Get("mapstructure")
			if key == "" {
				continue
			}
			leaves(value, strings.TrimPrefix(path+"."+key, "."), visit)
		}
	default:
		visit(path, v)
	}
}

// full returns a configuration in which each key is there: every list has one element, no pointer is nil.
func full() *config.Config {
	c := new(config.Config)
	fill(reflect.ValueOf(c).Elem())
	return c
}

func fill(v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem())
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0))
	case reflect.Struct:
		for field, value := range v.Fields() {
			if field.Tag.Get("mapstructure") != "" {
				fill(value)
			}
		}
	}
}

// change gives a leaf another value.
func change(t *testing.T, v reflect.Value) {
	t.Helper()
	switch value := v.Addr().Interface().(type) {
	case *time.Time:
		*value = value.Add(time.Second)
		return
	case *config.RenewBefore:
		value.Duration++
		return
	case *config.Amount:
		value.Value++
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(v.String() + "x")
	case reflect.Bool:
		v.SetBool(!v.Bool())
	case reflect.Int, reflect.Int64:
		v.SetInt(v.Int() + 1)
	case reflect.Uint32:
		v.SetUint(v.Uint() + 1)
	case reflect.Float64:
		v.SetFloat(v.Float() + 1)
	case reflect.Slice:
		v.Set(reflect.Append(v, reflect.Zero(v.Type().Elem())))
	default:
		t.Fatalf("no other value for a %v", v.Type())
	}
}

func TestEachKeyIsDocumented(t *testing.T) {
	var want []string
	leaves(reflect.ValueOf(full()).Elem(), "", func(path string, _ reflect.Value) { want = append(want, path) })
	var got []string
	for key := range documentedKeys(t) {
		got = append(got, key)
	}
	slices.Sort(want)
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("keys (-program +docs/configuration.md):\n%s", diff)
	}
}

func TestDocumentedDefaultsAreTheDefaults(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"seal.key": "AGE-SECRET-KEY-1\n",
		"c.yaml": `seal: {key_file: seal.key}
xds: {listeners: [{address: "unix:///run/sds-server/sds.sock", groups: [edge]}]}
challenges: {http-01: {address: "127.0.0.1:18002"}}
issuers: [{name: le, ca: letsencrypt, accept_tos: true}]
certificates: [{name: www, dns_names: [www.example.com], issuers: [le]}]
groups: [{name: edge, secrets: ["*"]}]
`,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cfg, err := config.Load(filepath.Join(dir, "c.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	keys := documentedKeys(t)
	checked := 0
	leaves(reflect.ValueOf(cfg).Elem(), "", func(path string, v reflect.Value) {
		def := code(keys[path].def)
		if len(def) != 1 || path == "seal.key_file" || v.IsZero() && path == "store.etcd.prefix" { // set above; only with etcd
			return
		}
		checked++
		got := fmt.Sprint(v.Interface())
		switch value := v.Interface().(type) {
		case fs.FileMode:
			got = fmt.Sprintf(`"%04o"`, value)
		case time.Duration:
			if want, err := time.ParseDuration(def[0]); err == nil && want == value {
				return
			}
		}
		if got != def[0] {
			t.Errorf("%s: the default is %s, documented is %s", path, got, def[0])
		}
	})
	if checked < 20 {
		t.Errorf("got %d defaults, want more", checked)
	}
}

func TestReloadIsDocumentedAsItIs(t *testing.T) {
	keys := documentedKeys(t)
	leaves(reflect.ValueOf(full()).Elem(), "", func(path string, _ reflect.Value) {
		changed := full()
		leaves(reflect.ValueOf(changed).Elem(), "", func(p string, v reflect.Value) {
			if p == path {
				change(t, v)
			}
		})
		// The limits are no part of config.RestartKeys; internal/app reports them.
		want, reload := "live", keys[path].reload
		if len(config.RestartKeys(full(), changed)) > 0 || strings.HasPrefix(path, "xds.limits.") {
			want = "restart"
		}
		if reload != "refused" && strings.TrimSuffix(reload, ", partly refused") != want {
			t.Errorf("%s: documented is %q, want %q", path, reload, want)
		}
	})
}

// TestRefusedKeysAreDocumentedAsRefused loads a file that sets every key to a value that is refused as long as the feature is not built.
func TestRefusedKeysAreDocumentedAsRefused(t *testing.T) {
	_, err := config.Load(filepath.Join(root, "internal", "config", "testdata", "good", "all-keys.yaml"))
	problems, ok := errors.AsType[config.Problems](err)
	if !ok {
		t.Fatalf("got %v, want problems", err)
	}
	refused := map[string]bool{}
	for _, p := range problems {
		if key, ok := strings.CutPrefix(p.Message, "not supported yet: "); ok {
			refused[key] = true
		}
	}
	keys := documentedKeys(t)
	for key, row := range keys {
		isRefused := false
		for part := key; part != ""; part = part[:max(0, strings.LastIndex(part, "."))] {
			isRefused = isRefused || refused[part] || refused[strings.TrimSuffix(part, "[]")]
		}
		if got := strings.Contains(row.reload, "refused"); got != isRefused {
			t.Errorf("%s: documented as %q, but refused is %v", key, row.reload, isRefused)
		}
	}
	if len(refused) == 0 {
		t.Error("no key is refused any more: the word has no place in docs/configuration.md")
	}
}
