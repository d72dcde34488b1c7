package config

import "reflect"

// restartKey is a part of the configuration that cannot change while the server runs.
type restartKey struct {
	path string
	// part returns a pointer to it.
	part func(*Config) any
}

func restartKeys() []restartKey {
	return []restartKey{
		{"data_dir", func(c *Config) any { return &c.DataDir }},
		{"seal", func(c *Config) any { return &c.Seal }},
		{"store", func(c *Config) any { return &c.Store }},
		{"replica", func(c *Config) any { return &c.Replica }},
		{"xds.listeners", func(c *Config) any { return &c.XDS.Listeners }},
		{"admin", func(c *Config) any { return &c.Admin }},
		{"http", func(c *Config) any { return &c.HTTP }},
		{"challenges.http-01", func(c *Config) any { return &c.Challenges.HTTP01 }},
		{"challenges.tls-alpn-01", func(c *Config) any { return &c.Challenges.TLSALPN01 }},
		{"audit", func(c *Config) any { return &c.Audit }},
	}
}

// RestartKeys returns the keys that differ between the two and need a restart, such as data_dir, in the order of the file.
func RestartKeys(running, loaded *Config) []string {
	var paths []string
	for _, k := range restartKeys() {
		if !reflect.DeepEqual(k.part(running), k.part(loaded)) {
			paths = append(paths, k.path)
		}
	}
	return paths
}

// KeepRestartKeys returns loaded with the values of running for every key that needs a restart. Neither is changed.
func KeepRestartKeys(running, loaded *Config) *Config {
	kept := *loaded
	for _, k := range restartKeys() {
		reflect.ValueOf(k.part(&kept)).Elem().Set(reflect.ValueOf(k.part(running)).Elem())
	}
	return &kept
}

// Equal reports whether the two mean the same, wherever in which file they were written.
func (c *Config) Equal(other *Config) bool {
	a, b := *c, *other
	a.origin, b.origin = nil, nil
	return reflect.DeepEqual(a, b)
}
