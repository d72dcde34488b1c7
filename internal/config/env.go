package config

import (
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
)

// envPrefix begins the name of every environment variable that overrides a key.
const envPrefix = "SDS_SERVER_"

// scalarKey is a key outside of lists that the environment can override.
type scalarKey struct {
	path string
	kind kind
}

// env returns the name of the variable: http.address is SDS_SERVER_HTTP_ADDRESS.
func (k scalarKey) env() string {
	return envPrefix + strings.ToUpper(strings.NewReplacer(".", "_", "-", "_").Replace(k.path))
}

// scalarKeys returns every scalar of the schema that is not inside a list, in the order of the schema.
func scalarKeys(typ reflect.Type, path string) []scalarKey {
	var keys []scalarKey
	for f := range typ.Fields() {
		name := f.Tag.Get("mapstructure")
		if name == "" {
			continue
		}
		t := f.Type
		if t.Kind() == reflect.Pointer {
			t = t.Elem()
		}
		switch k := kindOf(t); k {
		case kindMapping:
			keys = append(keys, scalarKeys(t, join(path, name))...)
		case kindList:
		default:
			keys = append(keys, scalarKey{join(path, name), k})
		}
	}
	return keys
}

// readEnv returns the keys that the environment overrides. Values that cannot be read, and variables with our prefix that
// name no key, are problems: a misspelt override must not be silent. An empty variable is the same as none.
func readEnv(o *origin) ([]scalarKey, Problems) {
	var (
		bound    []scalarKey
		problems Problems
		names    []string
	)
	for _, key := range scalarKeys(reflect.TypeFor[Config](), "") {
		name := key.env()
		names = append(names, name)
		text := os.Getenv(name)
		if text == "" {
			continue
		}
		value, err := parseScalar(key.kind, text)
		if err != nil {
			problems = append(problems, Problem{Path: name, Message: err.Error()})
			continue
		}
		bound = append(bound, key)
		o.override(key.path, value)
	}
	for _, entry := range slices.Sorted(slices.Values(os.Environ())) {
		name, value, _ := strings.Cut(entry, "=")
		if !strings.HasPrefix(name, envPrefix) || value == "" || slices.Contains(names, name) || isServiceLink(name) {
			continue
		}
		problems = append(problems, Problem{Path: name, Message: "unknown environment variable", Hint: didYouMean(name, names)})
	}
	return bound, problems
}

// override records that the environment set path, and with it every mapping around it.
func (o *origin) override(path string, value any) {
	if value == false {
		delete(o.set, path)
		return
	}
	o.set[path] = value
	for i := range path {
		if path[i] == '.' {
			if _, ok := o.set[path[:i]]; !ok {
				o.set[path[:i]] = map[string]any{}
			}
		}
	}
}

// isServiceLink reports whether Kubernetes made the variable for a Service with our name: it puts SDS_SERVER_PORT and the
// like into every pod of the namespace, which says nothing about the configuration.
func isServiceLink(name string) bool {
	return regexp.MustCompile(`^SDS_SERVER_(SERVICE_(HOST|PORT(_[A-Z0-9_]+)?)|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)$`).MatchString(name)
}
