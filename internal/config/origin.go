package config

import "strings"

// origin is where a Config came from: the file, the position of each key, and what was set explicitly.
type origin struct {
	// file is the absolute name of the configuration file.
	file string
	// positions has every path that the file names.
	positions map[string]position
	// set has the decoded value of every path that the file or the environment sets to something that is not empty:
	// null, "", false, [] and {} (also a mapping of only such values) are the same as leaving the key out.
	set map[string]any
}

type position struct{ line, column int }

func newOrigin(file string) *origin {
	return &origin{file: file, positions: map[string]position{}, set: map[string]any{}}
}

// position returns where path stands in the file, or its nearest parent that does, or zero.
func (o *origin) position(path string) position {
	for path != "" && o != nil {
		if at, ok := o.positions[path]; ok {
			return at
		}
		path = path[:max(strings.LastIndexAny(path, ".["), 0)]
	}
	return position{}
}

// isSet reports whether path was set explicitly to something that is not empty.
func (c *Config) isSet(path string) bool {
	if c.origin == nil {
		return false
	}
	_, ok := c.origin.set[path]
	return ok
}

// isNamed reports whether the file has the key at all, empty or not.
func (c *Config) isNamed(path string) bool {
	if c.origin == nil {
		return false
	}
	_, ok := c.origin.positions[path]
	return ok
}

// file returns the name of the configuration file, or "" for a Config that was built by hand.
func (c *Config) file() string {
	if c.origin == nil {
		return ""
	}
	return c.origin.file
}
