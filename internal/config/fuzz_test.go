package config

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"
)

// FuzzParse looks for a file that crashes or hangs the decoder, or that is accepted but does not stand its own validation.
// Give -fuzzminimizetime 1x: coverage differs a little from run to run (maps), and minimizing would take all the time.
func FuzzParse(f *testing.F) {
	dir := newDir(f)
	for _, pattern := range []string{"good/*.yaml", "bad/*.yaml"} {
		for _, content := range readTestdata(f, pattern) {
			f.Add([]byte(strings.ReplaceAll(content, "{{dir}}", dir)))
		}
	}
	f.Add([]byte("a: &a [*a]\n"))
	f.Add([]byte("rollout: {<<: [*x, {watch: 1}], waves: [[[]]]}\n"))
	f.Add([]byte("? {a: b}\n: c\n"))
	f.Add([]byte("\xff\xfe"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 1<<16 {
			return // the size is bounded elsewhere
		}
		for _, table := range [][]unsupportedKey{unsupportedKeys(), nil} {
			cfg, err := parse(data, filepath.Join(dir, "sds-server.yaml"), table)
			if err == nil {
				if err := cfg.Validate(); err != nil {
					t.Errorf("accepted, but then: %v", err)
				}
				continue
			}
			problems, ok := errors.AsType[Problems](err)
			if !ok || len(problems) == 0 || cfg != nil {
				t.Fatalf("got %v, %v, want Problems alone", cfg, err)
			}
			for _, p := range problems {
				if p.Path == "" || p.Message == "" || strings.HasPrefix(p.Message, "decode: ") {
					t.Errorf("got the problem %+v, want a path and a message of our own", p)
				}
			}
		}
	})
}
