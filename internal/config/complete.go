package config

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"time"
)

// complete sets the defaults inside of lists, makes file names absolute and brings names into their usual form.
// It runs before validation, so that the rules see what would be used.
func (c *Config) complete() {
	if c.Replica == "" {
		// Without a host name the replica stays empty, and the rule for names says so.
		c.Replica, _ = os.Hostname()
	}
	if c.HTTP.TLS != nil && *c.HTTP.TLS == (ServerTLS{}) {
		c.HTTP.TLS = nil
	}
	if c.Store.Backend == backendEtcd && c.Store.Etcd.Prefix == "" {
		c.Store.Etcd.Prefix = "/sds-server/"
	}
	for i := range c.XDS.Listeners {
		l := &c.XDS.Listeners[i]
		if strings.HasPrefix(l.Address, "unix:") {
			setDefault(c, &l.Mode, fmt.Sprintf("xds.listeners[%d].mode", i), 0o600)
		}
	}
	for i := range c.Challenges.DNS01 {
		p, path := &c.Challenges.DNS01[i].Propagation, fmt.Sprintf("challenges.dns-01[%d].propagation.", i)
		setDefault(c, &p.Attempts, path+"attempts", 12)
		setDefault(c, &p.Interval, path+"interval", 10*time.Second)
		setDefault(c, &p.Margin, path+"margin", 30*time.Second)
	}
	for i := range c.Issuers {
		path := fmt.Sprintf("issuers[%d].", i)
		setDefault(c, &c.Issuers[i].Roots, path+"roots", rootsChecked)
		setDefault(c, &c.Issuers[i].Budget.Share, path+"budget.share", 0.8)
	}
	c.completeSecrets()
	c.completeRollout()
	for _, f := range c.files() {
		if *f.name != "" && !filepath.IsAbs(*f.name) {
			*f.name = filepath.Join(filepath.Dir(c.file()), *f.name)
		}
	}
}

func (c *Config) completeSecrets() {
	for i := range c.Certificates {
		cert, path := &c.Certificates[i], fmt.Sprintf("certificates[%d].", i)
		setDefault(c, &cert.Challenge, path+"challenge", challengeHTTP01)
		setDefault(c, &cert.KeyType, path+"key_type", "ecdsa-p256")
		for j, name := range cert.DNSNames {
			cert.DNSNames[j] = strings.ToLower(name)
		}
	}
	for i := range c.SessionTicketKeys {
		k, path := &c.SessionTicketKeys[i], fmt.Sprintf("session_ticket_keys[%d].", i)
		setDefault(c, &k.Rotate, path+"rotate", 12*time.Hour)
		setDefault(c, &k.Keep, path+"keep", 3)
	}
	for i := range c.Groups {
		if v := c.Groups[i].Verify; v != nil {
			setDefault(c, &v.Timeout, fmt.Sprintf("groups[%d].verify.timeout", i), 10*time.Second)
		}
	}
}

func (c *Config) completeRollout() {
	if !c.isSet("rollout.waves") && len(c.Rollout.Waves) == 0 {
		for _, g := range c.Groups {
			c.Rollout.Waves = append(c.Rollout.Waves, []string{g.Name})
		}
	}
	for i := range c.Rollout.Gates {
		setDefault(c, &c.Rollout.Gates[i].Timeout, fmt.Sprintf("rollout.gates[%d].timeout", i), time.Minute)
	}
	for i := range c.Rollout.Windows {
		setDefault(c, &c.Rollout.Windows[i].TimeZone, fmt.Sprintf("rollout.windows[%d].time_zone", i), "UTC")
	}
}

// finish fills in what follows from a valid configuration.
func (c *Config) finish() {
	for i := range c.Issuers {
		if url, ok := Directory(c.Issuers[i].CA); ok {
			c.Issuers[i].Directory = url
		}
	}
}

// setDefault sets a value that was left out. One that was set to zero explicitly stays: the rules will refuse it.
func setDefault[T comparable](c *Config, value *T, path string, to T) {
	var zero T
	if *value == zero && !c.isSet(path) {
		*value = to
	}
}

// fileUse says what a file name in the configuration is for: the tag `file` of the field.
type fileUse string

const (
	useName fileUse = "name" // only a name; what is there is not looked at
	useCert fileUse = "cert" // PEM with at least one certificate
	useKey  fileUse = "key"  // private: rights are checked
)

type fileName struct {
	path string
	use  fileUse
	name *string
}

// files returns every file name of the configuration, in the order of the schema.
func (c *Config) files() []fileName {
	var out []fileName
	collectFiles(reflect.ValueOf(c).Elem(), "", "", &out)
	return out
}

func collectFiles(v reflect.Value, path string, use fileUse, out *[]fileName) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			collectFiles(v.Elem(), path, use, out)
		}
	case reflect.Slice:
		for i := range v.Len() {
			collectFiles(v.Index(i), fmt.Sprintf("%s[%d]", path, i), use, out)
		}
	case reflect.Struct:
		for f, field := range v.Fields() {
			if key := f.Tag.Get("mapstructure"); key != "" {
				collectFiles(field, join(path, key), fileUse(f.Tag.Get("file")), out)
			}
		}
	case reflect.String:
		if name, ok := reflect.TypeAssert[*string](v.Addr()); ok && use != "" {
			*out = append(*out, fileName{path, use, name})
		}
	}
}
