package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxValues bounds the values of one file, aliases expanded, so that a small file cannot become a huge configuration.
const maxValues = 1_000_000

// maxDepth bounds the nesting; the schema itself has under 10 levels.
const maxDepth = 32

// tree reads the YAML of a file against the shape of Config. viper would accept keys in any case, split them at dots, turn a
// text into a list of one and say nothing about positions or duplicates; so what viper is given has been checked here.
type tree struct {
	origin   *origin
	problems Problems
	values   int
}

// readTree returns the checked content of data for viper, together with its origin. Keys with a problem are left out; where
// nothing can be said about any key, the content is nil.
func readTree(data []byte, file string) (map[string]any, *origin, Problems) {
	t := &tree{origin: newOrigin(file)}
	root, problem := parseYAML(data, file)
	if problem != nil {
		return nil, t.origin, Problems{*problem}
	}
	if root == nil {
		return map[string]any{}, t.origin, nil
	}
	value, _ := t.mapping(root, reflect.TypeFor[Config](), "", 0)
	return value, t.origin, t.problems
}

// parseYAML returns the root node of data, or nil for an empty file.
func parseYAML(data []byte, file string) (*yaml.Node, *Problem) {
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	var document yaml.Node
	if err := decoder.Decode(&document); errors.Is(err, io.EOF) {
		return nil, nil
	} else if err != nil {
		return nil, syntaxProblem(err, file)
	}
	var second yaml.Node
	if err := decoder.Decode(&second); err == nil {
		return nil, &Problem{
			Path: fmt.Sprintf("%s:%d", file, second.Line), Line: second.Line,
			Message: "a second YAML document begins", Hint: "the configuration is one document: remove the line ---",
		}
	} else if !errors.Is(err, io.EOF) {
		return nil, syntaxProblem(err, file)
	}
	root := document.Content[0]
	if isNull(root) {
		return nil, nil
	}
	return root, nil
}

// syntaxProblem says where the YAML is broken. The parser's own error is "yaml: line N: what", where N can be missing.
func syntaxProblem(err error, file string) *Problem {
	message := strings.ReplaceAll(strings.TrimPrefix(err.Error(), "yaml: "), "\n", " ")
	p := &Problem{Path: file, Message: message}
	if m := regexp.MustCompile(`^line (\d+): (.*)$`).FindStringSubmatch(message); m != nil {
		p.Line, _ = strconv.Atoi(m[1]) // the expression matched digits
		p.Message = m[2]
	}
	// For errors of its parser (not of its scanner) the library counts lines from 0, and leaves out the 0.
	if regexp.MustCompile(`^did not find expected (<|node|'-'|key|',')|^found (undefined tag|duplicate %|incompatible)`).MatchString(p.Message) {
		p.Line++
	}
	if p.Line > 0 {
		p.Path = fmt.Sprintf("%s:%d", file, p.Line)
	}
	p.Message = "not valid YAML: " + p.Message
	return p
}

// add records a problem with the value at path, which is left out then.
func (t *tree) add(n *yaml.Node, path, message, hint string) {
	t.addCovering(n, path, message, hint, path)
}

func (t *tree) addCovering(n *yaml.Node, path, message, hint, covers string) {
	if path == "" {
		path = t.origin.file
	}
	t.problems = append(t.problems, Problem{
		Path: path, Message: message, Hint: hint,
		Line: n.Line, column: n.Column, covers: covers,
	})
}

// value reads n as typ. ok is false where there is nothing to keep: null, empty text for another kind, or a problem.
func (t *tree) value(n *yaml.Node, typ reflect.Type, path string, depth int) (value any, ok bool) {
	if t.values++; t.values > maxValues || depth > maxDepth {
		if t.values <= maxValues+1 {
			t.values = maxValues + 1 // one problem is enough, the rest of the file is not looked at
			t.add(n, path, "nested too deep or expands to too many values", "check the aliases")
		}
		return nil, false
	}
	if typ.Kind() == reflect.Pointer {
		typ = typ.Elem()
	}
	if n.Kind == yaml.AliasNode {
		return t.value(n.Alias, typ, path, depth+1)
	}
	if isNull(n) {
		return nil, false
	}
	switch kind := kindOf(typ); kind {
	case kindMapping:
		value, ok = t.mappingValue(n, typ, path, depth)
	case kindList:
		value, ok = t.list(n, typ, path, depth)
	default:
		value, ok = t.scalar(n, kind, path)
	}
	if ok && !t.isEmpty(value) {
		t.origin.set[path] = value
	}
	return value, ok
}

// mappingValue is mapping without a typed nil in the interface.
func (t *tree) mappingValue(n *yaml.Node, typ reflect.Type, path string, depth int) (any, bool) {
	m, ok := t.mapping(n, typ, path, depth)
	return m, ok
}

func (t *tree) mapping(n *yaml.Node, typ reflect.Type, path string, depth int) (map[string]any, bool) {
	if n.Kind != yaml.MappingNode {
		t.add(n, path, "want a mapping (key: value), got "+describe(n), "")
		return nil, false
	}
	fields := fieldsOf(typ)
	out := map[string]any{}
	for _, pair := range t.pairs(n, path, depth) {
		name := pair.key.Value
		keyPath := join(path, name)
		field, known := fields[name]
		if !known {
			t.addUnknown(pair.key, path, keysOf(typ))
			continue
		}
		t.origin.positions[keyPath] = position{pair.key.Line, pair.key.Column}
		if v, ok := t.value(pair.value, field.Type, keyPath, depth+1); ok {
			out[name] = v
		}
	}
	return out, true
}

// addUnknown records an unknown key. What it was probably meant to be is then not reported as missing.
func (t *tree) addUnknown(key *yaml.Node, path string, known []string) {
	covers := join(path, key.Value)
	if near := nearest(key.Value, known); near != "" {
		covers = join(path, near)
	}
	t.addCovering(key, join(path, key.Value), "unknown key", didYouMean(key.Value, known), covers)
}

type pair struct{ key, value *yaml.Node }

// pairs returns the entries of a mapping, those of merged mappings (<<) last and only where the key is not there yet.
func (t *tree) pairs(n *yaml.Node, path string, depth int) []pair {
	first := map[string]int{}
	var own, merged []pair
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if key.ShortTag() == "!!merge" {
			merged = append(merged, t.mergedPairs(value, path, depth+1)...)
			continue
		}
		if key.Kind == yaml.AliasNode {
			key = key.Alias
		}
		if key.Kind != yaml.ScalarNode {
			t.add(key, path, "want a name as key, got "+describe(key), "")
			continue
		}
		if line, dup := first[key.Value]; dup {
			t.addCovering(key, join(path, key.Value), fmt.Sprintf("duplicate key, first on line %d", line), "", "")
			continue
		}
		first[key.Value] = key.Line
		own = append(own, pair{key, value})
	}
	for _, p := range merged {
		if _, dup := first[p.key.Value]; !dup {
			first[p.key.Value] = p.key.Line
			own = append(own, p)
		}
	}
	return own
}

// mergedPairs returns the entries that a merge key brings in: those of one mapping, or of each in a list.
func (t *tree) mergedPairs(n *yaml.Node, path string, depth int) []pair {
	if t.values++; depth > maxDepth || t.values > maxValues {
		t.add(n, path, "nested too deep or expands to too many values", "check the aliases")
		return nil
	}
	switch n.Kind {
	case yaml.AliasNode:
		return t.mergedPairs(n.Alias, path, depth+1)
	case yaml.MappingNode:
		return t.pairs(n, path, depth)
	case yaml.SequenceNode:
		var all []pair
		for _, element := range n.Content {
			all = append(all, t.mergedPairs(element, path, depth+1)...)
		}
		return all
	default:
		t.add(n, path, "<<: want a mapping to merge, got "+describe(n), "")
		return nil
	}
}

func (t *tree) list(n *yaml.Node, typ reflect.Type, path string, depth int) (any, bool) {
	if n.Kind != yaml.SequenceNode {
		t.add(n, path, "want a list, got "+describe(n), "")
		return nil, false
	}
	out := make([]any, 0, len(n.Content))
	for i, element := range n.Content {
		elementPath := fmt.Sprintf("%s[%d]", path, i)
		t.origin.positions[elementPath] = position{element.Line, element.Column}
		before := len(t.problems)
		v, ok := t.value(element, typ.Elem(), elementPath, depth+1)
		if !ok {
			if len(t.problems) == before && t.values <= maxValues {
				t.add(element, elementPath, "empty", "")
			}
			v = reflect.Zero(typ.Elem()).Interface() // keeps the indexes of the others right
			if kindOf(typ.Elem()) == kindMapping {
				v = map[string]any{}
			}
		}
		out = append(out, v)
	}
	return out, true
}

func (t *tree) scalar(n *yaml.Node, k kind, path string) (any, bool) {
	if n.Kind != yaml.ScalarNode {
		t.add(n, path, "want "+k.String()+", got "+describe(n), "")
		return nil, false
	}
	tag := n.ShortTag()
	switch tag {
	case "!!str", "!!int", "!!float", "!!bool", "!!timestamp":
	default:
		t.add(n, path, fmt.Sprintf("unknown tag %s", tag), "")
		return nil, false
	}
	if k == kindText {
		if tag != "!!str" {
			t.add(n, path, "want text, got "+describe(n), fmt.Sprintf("quote it: %q", n.Value))
			return nil, false
		}
		return n.Value, true
	}
	if n.Value == "" {
		return nil, false
	}
	if tag == "!!str" && (k == kindBool || k == kindInt || k == kindFloat) {
		t.add(n, path, "want "+k.String()+", got "+describe(n), "")
		return nil, false
	}
	v, err := parseScalar(k, n.Value)
	if err != nil {
		t.add(n, path, err.Error(), "")
		return nil, false
	}
	return v, true
}

// isEmpty reports whether a value says nothing; see origin.set.
func (t *tree) isEmpty(value any) bool {
	switch v := value.(type) {
	case string:
		return v == ""
	case bool:
		return !v
	case []any:
		return len(v) == 0
	case map[string]any:
		for _, child := range v {
			if !t.isEmpty(child) {
				return false
			}
		}
		return true
	default:
		return false
	}
}

func isNull(n *yaml.Node) bool {
	return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null"
}

// describe names what stands at n, for messages.
func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	case yaml.AliasNode:
		return "an alias"
	}
	switch n.ShortTag() {
	case "!!int", "!!float":
		return "the number " + n.Value
	case "!!bool":
		return n.Value
	case "!!timestamp":
		return "the time " + n.Value
	default:
		return fmt.Sprintf("the text %q", n.Value)
	}
}

// join appends a key to a path.
func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// fieldsOf returns the fields of a struct type by their key in the file.
func fieldsOf(typ reflect.Type) map[string]reflect.StructField {
	fields := map[string]reflect.StructField{}
	for f := range typ.Fields() {
		if key := f.Tag.Get("mapstructure"); key != "" {
			fields[key] = f
		}
	}
	return fields
}

// keysOf returns the keys of a struct type in the order of the fields.
func keysOf(typ reflect.Type) []string {
	var keys []string
	for f := range typ.Fields() {
		if key := f.Tag.Get("mapstructure"); key != "" {
			keys = append(keys, key)
		}
	}
	return keys
}
