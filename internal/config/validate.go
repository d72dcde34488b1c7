package config

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const (
	backendBolt = "bbolt"
	backendEtcd = "etcd"

	challengeHTTP01    = "http-01"
	challengeTLSALPN01 = "tls-alpn-01"
	challengeDNS01     = "dns-01"

	rootsChecked   = "checked"
	rootsUnchecked = "unchecked"

	unixScheme = "unix://"
)

// validator collects what is wrong. One method for each part of the file, in the order of the schema.
type validator struct {
	*Config

	// prior are the problems that were found while decoding.
	prior    Problems
	problems Problems
	// sockets are the addresses seen so far, for the rule that no two are the same.
	sockets []socket
}

// Validate checks every rule that needs no position in a file. It is what Load runs; a Config that was built by hand can be
// checked with it, too. It returns nil or Problems.
func (c *Config) Validate() error {
	if problems := c.validate(nil); len(problems) > 0 {
		return problems.arrange(c.origin)
	}
	return nil
}

func (c *Config) validate(prior Problems) Problems {
	v := &validator{Config: c, prior: prior}
	v.files()
	v.state()
	v.listeners()
	v.operator()
	v.challenges()
	v.issuers()
	v.secrets()
	v.groups()
	v.rollout()
	if c.Audit.Retention <= 0 && c.isSet("audit.retention") {
		v.add("audit.retention", "must be more than 0")
	}
	return v.problems
}

func (v *validator) add(path, format string, args ...any) {
	v.problems = append(v.problems, Problem{Path: path, Message: fmt.Sprintf(format, args...)})
}

func (v *validator) addHint(path, message, hint string) {
	v.problems = append(v.problems, Problem{Path: path, Message: message, Hint: hint})
}

// files checks every file that the configuration names.
func (v *validator) files() {
	for _, f := range v.Config.files() {
		if *f.name == "" || f.use == useName {
			continue
		}
		if message, hint := checkFile(*f.name, f.use); message != "" {
			v.addHint(f.path, *f.name+" "+message, hint)
		}
	}
}

// hasProblem reports whether something is wrong at or below path already.
func (v *validator) hasProblem(path string) bool {
	below := func(p Problem) bool { return isBelow(p.Path, path) }
	return slices.ContainsFunc(v.problems, below) || slices.ContainsFunc(v.prior, below)
}

// state checks data_dir, seal, store and replica.
func (v *validator) state() {
	if v.DataDir == "" {
		v.add("data_dir", "empty")
	} else if message := checkDir(v.DataDir); message != "" {
		v.add("data_dir", "%s %s", v.DataDir, message)
	}
	if v.Seal.KeyFile == "" {
		v.add("seal.key_file", "empty")
	} else if v.DataDir != "" && isInside(v.Seal.KeyFile, v.DataDir) {
		v.addHint("seal.key_file", v.Seal.KeyFile+" lies below data_dir",
			"keep the key apart from what it seals, or a copy of the directory gives everything away")
	}
	v.name("replica", v.Replica)
	v.oneOf("store.backend", v.Store.Backend, backendBolt, backendEtcd)
	if v.Store.Backend != backendEtcd {
		if v.isSet("store.etcd") {
			v.add("store.etcd", "only for backend: etcd")
		}
		return
	}
	if len(v.Store.Etcd.Endpoints) == 0 {
		v.add("store.etcd.endpoints", "empty")
	}
	for i, endpoint := range v.Store.Etcd.Endpoints {
		v.url(fmt.Sprintf("store.etcd.endpoints[%d]", i), endpoint, "http", "https")
	}
	if tls := v.Store.Etcd.TLS; tls != nil {
		v.keyPair("store.etcd.tls", tls.CertFile, tls.KeyFile)
	}
	if p := v.Store.Etcd.Prefix; !strings.HasPrefix(p, "/") || !strings.HasSuffix(p, "/") {
		v.add("store.etcd.prefix", "must begin and end with /")
	}
}

// operator checks admin and http.
func (v *validator) operator() {
	if _, ok := strings.CutPrefix(v.Admin.Address, unixScheme); !ok {
		v.addHint("admin.address", fmt.Sprintf("want a Unix socket, got %q", v.Admin.Address), "write unix:///PATH")
	} else {
		v.unixAddress("admin.address", v.Admin.Address)
	}
	for i, user := range v.Admin.Users {
		path := fmt.Sprintf("admin.users[%d]", i)
		if _, err := ParseUser(user); err != nil {
			v.add(path, "%v", err)
		} else if slices.Contains(v.Admin.Users[:i], user) {
			v.add(path, "%s is listed twice", user)
		}
	}
	loopback, ok := v.tcpAddress("http.address", v.HTTP.Address)
	if ok && !loopback && v.HTTP.TLS == nil && !v.HTTP.Insecure {
		v.addHint("http.address", v.HTTP.Address+" is not a loopback address", "set http.tls, or http.insecure: true for plain HTTP")
	}
	if v.HTTP.TLS != nil {
		v.requirePair("http.tls", v.HTTP.TLS.CertFile, v.HTTP.TLS.KeyFile)
		if v.HTTP.Insecure {
			v.add("http.insecure", "contradicts http.tls")
		}
	}
	for i, host := range v.HTTP.Hosts {
		path := fmt.Sprintf("http.hosts[%d]", i)
		if message := checkHost(strings.ToLower(host)); message != "" {
			v.add(path, "%s", message)
		}
	}
}

// challenges checks the listeners and the DNS providers.
func (v *validator) challenges() {
	if l := v.Challenges.HTTP01; l != nil {
		v.tcpAddress("challenges.http-01.address", l.Address)
	}
	if l := v.Challenges.TLSALPN01; l != nil {
		v.tcpAddress("challenges.tls-alpn-01.address", l.Address)
	}
	names := map[string]string{}
	for i, p := range v.Challenges.DNS01 {
		path := fmt.Sprintf("challenges.dns-01[%d].", i)
		v.uniqueName(names, path+"name", p.Name)
		if p.Provider == "" {
			v.add(path+"provider", "empty")
		} else if !isWord(p.Provider) {
			v.add(path+"provider", "%q is not the name of a provider", p.Provider)
		}
		if p.Provider == "exec" {
			v.commandsAllowed(path + "provider")
		}
		for j, resolver := range p.Resolvers {
			if _, _, message := splitAddress(resolver); message != "" {
				v.add(fmt.Sprintf("%sresolvers[%d]", path, j), "%s", message)
			}
		}
		v.atLeastOne(path+"propagation.attempts", p.Propagation.Attempts)
		v.positive(path+"propagation.interval", p.Propagation.Interval)
		if p.Propagation.Margin < 0 {
			v.add(path+"propagation.margin", "must not be negative")
		}
	}
}

// isInside reports whether name lies below dir (or is dir), symbolic links followed where they exist.
func isInside(name, dir string) bool {
	below := func(name, dir string) bool {
		rel, err := filepath.Rel(dir, name)
		return err == nil && rel != ".." && !strings.HasPrefix(rel, "../")
	}
	if below(name, dir) {
		return true
	}
	realName, nameErr := filepath.EvalSymlinks(name)
	realDir, dirErr := filepath.EvalSymlinks(dir)
	return nameErr == nil && dirErr == nil && below(realName, realDir)
}

// Rules that many keys share.

func (v *validator) oneOf(path, value string, allowed ...string) {
	if !slices.Contains(allowed, value) {
		hint := didYouMean(value, allowed)
		v.addHint(path, fmt.Sprintf("want %s, got %q", strings.Join(allowed, " or "), value), hint)
	}
}

func (v *validator) positive(path string, d time.Duration) {
	if d <= 0 {
		v.add(path, "must be more than 0")
	}
}

func (v *validator) atLeastOne(path string, n int) {
	if n < 1 {
		v.add(path, "must be 1 or more")
	}
}

func (v *validator) period(path string, from, to time.Time) {
	switch {
	case from.IsZero():
		v.add(path+".from", "empty")
	case to.IsZero():
		v.add(path+".to", "empty")
	case !from.Before(to):
		v.add(path+".to", "is not after from")
	}
}
