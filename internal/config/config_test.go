package config

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func loadGood(t *testing.T, name string) (*Config, string) {
	t.Helper()
	content := readTestdata(t, "good/"+name+".yaml")[name]
	dir := newDir(t)
	_, allFeatures := directives(content)
	cfg, err := loadIn(t, dir, content, allFeatures)
	if err != nil {
		t.Fatal(err)
	}
	return cfg, dir
}

func TestDefaultsAreThoseOfTheInterfaces(t *testing.T) {
	cfg, dir := loadGood(t, "minimal")
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	want := &Config{
		DataDir: dir + "/data",
		Seal:    Seal{KeyFile: dir + "/seal.key"},
		Store:   Store{Backend: "bbolt"},
		Replica: host,
		XDS: XDS{
			Listeners: []Listener{{Address: "unix:///run/sds-server/sds.sock", Mode: 0o600, Groups: []string{"edge"}}},
			Limits:    Limits{20_000, 20_000, 2_000, 20_000, 1_000, 1_000},
		},
		Admin:      Admin{Address: "unix:///run/sds-server/admin.sock"},
		HTTP:       HTTP{Address: "127.0.0.1:18001"},
		Challenges: Challenges{HTTP01: &ChallengeListener{Address: "127.0.0.1:18002"}},
		Issuers: []Issuer{{
			Name: "le", CA: "letsencrypt", Directory: "https://acme-v02.api.letsencrypt.org/directory",
			Roots: "checked", Email: "ops@example.com", AcceptTOS: true, Budget: Budget{Share: 0.8},
		}},
		Certificates: []Certificate{{
			Name: "www.example.com", DNSNames: []string{"www.example.com", "example.com"},
			Issuers: []string{"le"}, Challenge: "http-01", KeyType: "ecdsa-p256",
		}},
		Groups: []Group{{Name: "edge", Secrets: []string{"*"}}},
		Rollout: Rollout{
			Waves: [][]string{{"edge"}}, Promotion: "auto", Watch: 5 * time.Minute, AckTimeout: time.Minute, MinAcked: 100,
			NodeGrace: 10 * time.Minute, EmptyGroup: "wait", RetryAfter: time.Hour, UndoWindow: 30 * time.Minute,
			Hook: Hook{Timeout: time.Minute},
		},
		Audit: Audit{Retention: 26280 * time.Hour},
	}
	cfg.origin = nil
	if diff := cmp.Diff(want, cfg, cmp.AllowUnexported(Config{})); diff != "" {
		t.Errorf("configuration (-want +got):\n%s", diff)
	}
}

func TestValuesAreDecoded(t *testing.T) {
	cfg, dir := loadGood(t, "all-keys")
	for _, tt := range []struct {
		path      string
		got, want any
	}{
		{"mode", cfg.XDS.Listeners[0].Mode, fs.FileMode(0o660)},
		{"relative file", cfg.XDS.Listeners[1].TLS.CertFile, dir + "/s.crt"},
		{"relative file in a list", cfg.ValidationContexts[0].CAFiles[0], dir + "/ca.crt"},
		{"name of a file to come", cfg.Audit.File, dir + "/audit.jsonl"},
		{"limit", cfg.XDS.Limits.NodesPerIdentity, 6},
		{"float", cfg.Issuers[0].Budget.Share, 0.5},
		{"duration", cfg.Issuers[0].Budget.Limits[0].Refill, 34 * time.Hour},
		{"quoted time", cfg.Issuers[0].Maintenance[0].From, time.Date(2026, 12, 1, 2, 0, 0, 0, time.UTC)},
		{"plain time", cfg.Issuers[0].Maintenance[0].To, time.Date(2026, 12, 1, 4, 0, 0, 0, time.UTC)},
		{"directory", cfg.Issuers[1].Directory, "https://127.0.0.1:14000/dir"},
		{"share of life", cfg.Certificates[0].RenewBefore, RenewBefore{Percent: 33}},
		{"backup", *cfg.Certificates[1].Backup, Backup{Secret: "imported"}},
		{"zero that was set", *cfg.Rollout.Gates[0].Max, 0.0},
		{"share", *cfg.Rollout.Gates[0].MaxIncrease, Amount{Value: 50, Percent: true}},
		{"default in a list", cfg.Certificates[1].KeyType, "ecdsa-p256"},
	} {
		t.Run(tt.path, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, tt.got); diff != "" {
				t.Errorf("value (-want +got):\n%s", diff)
			}
		})
	}
}

func TestDNSNamesAreLowerCase(t *testing.T) {
	cfg, _ := loadGood(t, "supported")
	if got, want := cfg.Certificates[0].DNSNames[0], "www.example.com"; got != want {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestMergedKeysGiveWayToOwnKeys(t *testing.T) {
	cfg, _ := loadGood(t, "anchors")
	got := []string{cfg.Issuers[1].Name, cfg.Issuers[1].CA, cfg.Certificates[1].Issuers[0], cfg.Rollout.Waves[0][0]}
	if diff := cmp.Diff([]string{"staging", "letsencrypt-staging", "le", "edge"}, got); diff != "" {
		t.Errorf("values (-want +got):\n%s", diff)
	}
}

// schemaPaths returns every key of the schema, lists as [].
func schemaPaths(typ reflect.Type, path string) []string {
	for typ.Kind() == reflect.Pointer {
		typ = typ.Elem()
	}
	switch kindOf(typ) {
	case kindMapping:
		var paths []string
		for f := range typ.Fields() {
			if key := f.Tag.Get("mapstructure"); key != "" {
				paths = append(paths, schemaPaths(f.Type, join(path, key))...)
			}
		}
		return paths
	case kindList:
		return schemaPaths(typ.Elem(), path+"[]")
	default:
		return []string{path}
	}
}

var indexes = regexp.MustCompile(`\[\d+\]`)

func TestEveryKeyIsInTheFileWithAllKeys(t *testing.T) {
	cfg, _ := loadGood(t, "all-keys")
	var named []string
	for path := range cfg.origin.positions {
		named = append(named, indexes.ReplaceAllString(path, "[]"))
	}
	for _, path := range schemaPaths(reflect.TypeFor[Config](), "") {
		if !slices.Contains(named, path) {
			t.Errorf("testdata/good/all-keys.yaml does not set %s", path)
		}
	}
}

func TestUnsupportedKeysAreRefusedWithoutNoise(t *testing.T) {
	dir := newDir(t)
	_, err := loadIn(t, dir, readTestdata(t, "good/all-keys.yaml")["all-keys"], false)
	fired := map[string]bool{}
	for _, line := range errorLines(t, err, dir) {
		path, rest, _ := strings.Cut(line, ": not supported yet: ")
		key, _, _ := strings.Cut(rest, "; ")
		if indexes.ReplaceAllString(path, "[]") != key {
			t.Errorf("got %q, want only lines of the form KEY: not supported yet: KEY", line)
		}
		fired[key] = true
	}
	for _, u := range unsupportedKeys() {
		if !fired[u.key] {
			t.Errorf("the row %s refused nothing", u.key)
		}
		delete(fired, u.key)
	}
	if len(fired) > 0 {
		t.Errorf("refused without a row: %v", slices.Sorted(maps.Keys(fired)))
	}
}

func TestUnsupportedKeysNameKeysOfTheSchema(t *testing.T) {
	paths := schemaPaths(reflect.TypeFor[Config](), "")
	for _, u := range unsupportedKeys() {
		if !slices.ContainsFunc(paths, func(p string) bool { return isBelow(p, u.key) }) {
			t.Errorf("%s is no key", u.key)
		}
	}
}

func TestRefusedKeyHidesOnlyItsOwnDetails(t *testing.T) {
	dir := newDir(t)
	content := readTestdata(t, "good/minimal.yaml")["minimal"] +
		"rollout: {promotion: never}\nstore: {etcd: {prefix: broken}}\ndrills: true\n"
	_, err := loadIn(t, dir, content, false)
	want := []string{
		`rollout.promotion: want auto or manual, got "never"`,
		"store.etcd: not supported yet: store.etcd",
		"drills: not supported yet: drills",
	}
	if diff := cmp.Diff(want, errorLines(t, err, dir)); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
}

func TestEnvironmentOverridesScalars(t *testing.T) {
	t.Setenv("SDS_SERVER_HTTP_ADDRESS", "127.0.0.1:28001")
	t.Setenv("SDS_SERVER_DATA_DIR", "elsewhere")
	t.Setenv("SDS_SERVER_XDS_LIMITS_STREAMS_PER_PEER", "7")
	t.Setenv("SDS_SERVER_ROLLOUT_ACK_TIMEOUT", "90s")
	t.Setenv("SDS_SERVER_CHALLENGES_HTTP_01_ADDRESS", "127.0.0.1:28002")
	t.Setenv("SDS_SERVER_HTTP_INSECURE", "true")
	t.Setenv("SDS_SERVER_REPLICA", "")                     // empty is the same as not set
	t.Setenv("SDS_SERVER_PORT_18000_TCP_ADDR", "10.0.0.1") // Kubernetes
	t.Setenv("SDS_SERVER_SERVICE_PORT_GRPC", "18000")      // Kubernetes
	cfg, dir := loadGood(t, "minimal")
	got := []any{cfg.HTTP.Address, cfg.DataDir, cfg.XDS.Limits.StreamsPerPeer, cfg.Rollout.AckTimeout, cfg.Challenges.HTTP01.Address, cfg.HTTP.Insecure}
	want := []any{"127.0.0.1:28001", dir + "/elsewhere", 7, 90 * time.Second, "127.0.0.1:28002", true}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("values (-want +got):\n%s", diff)
	}
}

func TestEveryScalarOutsideOfListsHasItsVariable(t *testing.T) {
	names := map[string]string{}
	for _, key := range scalarKeys(reflect.TypeFor[Config](), "") {
		if other, dup := names[key.env()]; dup {
			t.Errorf("%s and %s share %s", key.path, other, key.env())
		}
		names[key.env()] = key.path
	}
	for _, path := range schemaPaths(reflect.TypeFor[Config](), "") {
		_, has := names[(scalarKey{path: path}).env()]
		if want := !strings.Contains(path, "[]"); has != want {
			t.Errorf("%s has a variable: %v, want %v", path, has, want)
		}
	}
}

func TestEnvironmentIsStrict(t *testing.T) {
	t.Setenv("SDS_SERVER_HTTP_ADRESS", "127.0.0.1:1")
	t.Setenv("SDS_SERVER_ZZZ", "x")
	t.Setenv("SDS_SERVER_ROLLOUT_MIN_ACKED", "all")
	t.Setenv("SDS_SERVER_ROLLOUT_ACK_TIMEOUT", "60")
	t.Setenv("SDS_SERVER_DRILLS", "true")
	t.Setenv("SDS_SERVER_HTTP_INSECURE", "1")
	t.Setenv("SDS_SERVER_STORE_BACKEND", "sqlite")
	dir := newDir(t)
	_, err := loadIn(t, dir, readTestdata(t, "good/minimal.yaml")["minimal"], false)
	got := errorLines(t, err, dir)
	want := []string{
		`SDS_SERVER_HTTP_ADRESS: unknown environment variable; did you mean SDS_SERVER_HTTP_ADDRESS?`,
		`SDS_SERVER_HTTP_INSECURE: want true or false, got "1"`,
		`SDS_SERVER_ROLLOUT_ACK_TIMEOUT: want a duration such as 90s, 5m or 12h, got "60"`,
		`SDS_SERVER_ROLLOUT_MIN_ACKED: want a whole number, got "all"`,
		`SDS_SERVER_ZZZ: unknown environment variable`,
		`drills: not supported yet: drills`,
		`store.backend: want bbolt or etcd, got "sqlite"`,
	}
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
}

func TestMissingFileIsOneProblemWithAHint(t *testing.T) {
	dir := t.TempDir()
	_, err := Load(filepath.Join(dir, "nowhere.yaml"))
	want := []string{"{{dir}}/nowhere.yaml: the configuration file does not exist; " +
		"name it with -c FILE, or make one with: sds-server init --dir DIR"}
	if diff := cmp.Diff(want, errorLines(t, err, dir)); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
	_, err = Load(dir)
	if diff := cmp.Diff([]string{"{{dir}}: the configuration file is not a regular file"}, errorLines(t, err, dir)); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
}

func TestEmptyFileSaysWhatIsMissing(t *testing.T) {
	for _, content := range []string{"", "# nothing\n", "---\n", "~\n", "{}\n"} {
		dir := newDir(t)
		_, err := loadIn(t, dir, content, false)
		got := errorLines(t, err, dir)
		for _, want := range []string{"xds.listeners: empty", "groups: empty; without a group no Envoy may have anything"} {
			if !slices.Contains(got, want) {
				t.Errorf("%q: got %q, want the line %q", content, got, want)
			}
		}
	}
}

func TestProblemsCarryTheirLine(t *testing.T) {
	content := readTestdata(t, "good/minimal.yaml")["minimal"]
	before := strings.Count(content, "\n")
	content += "rollout:\n  promotion: never\n  watsh: 5m\n"
	_, err := loadIn(t, newDir(t), content, false)
	problems, ok := errors.AsType[Problems](err)
	if !ok || len(problems) != 2 {
		t.Fatalf("got %v, want two problems", err)
	}
	if got, want := [2]int{problems[0].Line, problems[1].Line}, [2]int{before + 2, before + 3}; got != want {
		t.Errorf("got lines %v, want %v", got, want)
	}
}

func TestAliasesCannotBlowUp(t *testing.T) {
	var b strings.Builder
	b.WriteString("rollout:\n  waves:\n    - &a0 [x, x, x, x, x, x, x, x, x, x]\n")
	for i := range 12 {
		fmt.Fprintf(&b, "    - &a%d [%s*a%d]\n", i+1, strings.Repeat(fmt.Sprintf("*a%d, ", i), 9), i)
	}
	merges := "a0: &m0 {x: 1}\n"
	for i := range 24 {
		merges += fmt.Sprintf("a%d: &m%d {<<: [%s*m%d]}\n", i+1, i+1, strings.Repeat(fmt.Sprintf("*m%d, ", i), 9), i)
	}
	for name, content := range map[string]string{
		"lists":     b.String(),
		"merges":    merges + "rollout: {<<: *m24}\n",
		"recursion": "rollout: &r {<<: *r, hook: *r}\n",
		"depth":     "rollout: " + strings.Repeat("[", 5000) + strings.Repeat("]", 5000),
	} {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			cfg, err := loadIn(t, newDir(t), content, true)
			if cfg != nil || err == nil {
				t.Errorf("got %v, want problems", cfg)
			}
			if took := time.Since(start); took > 20*time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
}

// fakeInfo is a file of another group, which only root could make.
type fakeInfo struct {
	fs.FileInfo
	mode fs.FileMode
	gid  uint32
}

func (f fakeInfo) Mode() fs.FileMode { return f.mode }
func (f fakeInfo) Sys() any          { return &syscall.Stat_t{Gid: f.gid} }

func TestKeyIsOpenToOurGroupOnly(t *testing.T) {
	ours := uint32(os.Getegid())
	const stranger = 4_000_000_000
	for _, tt := range []struct {
		name string
		mode fs.FileMode
		gid  uint32
		want string
	}{
		{"private", 0o600, stranger, ""},
		{"read by our group", 0o640, ours, ""},
		{"read by another group", 0o640, stranger, "is open to a group that is not ours (mode 0640)"},
		{"written by another group", 0o620, stranger, "is open to a group that is not ours (mode 0620)"},
		{"read by everyone", 0o644, ours, "is readable by everyone (mode 0644)"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, _ := checkKeyRights("key", fakeInfo{mode: tt.mode, gid: tt.gid})
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestProgramsNeedAConfigurationThatStrangersCannotChange(t *testing.T) {
	for name, tt := range map[string]struct{ section, path string }{
		"hook": {"rollout: {hook: {command: [/bin/true]}}\n", "rollout.hook.command[0]"},
		"exec": {"challenges: {http-01: {address: \"127.0.0.1:18002\"}, dns-01: [{name: e, provider: exec}]}\n", "challenges.dns-01[0].provider"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := newDir(t)
			content := strings.Replace(readTestdata(t, "good/minimal.yaml")["minimal"], "challenges:\n  http-01: {address: \"127.0.0.1:18002\"}\n", "", 1)
			if name == "hook" {
				content = readTestdata(t, "good/minimal.yaml")["minimal"]
			}
			file := write(t, dir, content+tt.section)
			if _, err := parse([]byte(content+tt.section), file, nil); err != nil {
				t.Fatalf("got problems with mode 0600:\n%v", err)
			}
			if err := os.Chmod(file, 0o622); err != nil {
				t.Fatal(err)
			}
			_, err := parse([]byte(content+tt.section), file, nil)
			want := []string{tt.path + ": no program is run for a configuration that others can change " +
				"({{dir}}/sds-server.yaml has mode 0622); chmod go-w {{dir}}/sds-server.yaml"}
			if diff := cmp.Diff(want, errorLines(t, err, dir)); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
		})
	}
}

func TestSealKeyIsFoundBelowDataDirThroughLinks(t *testing.T) {
	dir := newDir(t)
	if err := os.Symlink(filepath.Join(dir, "data"), filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	content := strings.Replace(readTestdata(t, "good/minimal.yaml")["minimal"], "seal.key", "link/seal.key", 1)
	_, err := loadIn(t, dir, content, false)
	if got := errorLines(t, err, dir); len(got) != 1 || !strings.HasPrefix(got[0], "seal.key_file: {{dir}}/link/seal.key lies below data_dir") {
		t.Errorf("got %q, want one line about seal.key_file", got)
	}
}

func TestRenewBefore(t *testing.T) {
	const life = 90 * 24 * time.Hour
	for _, tt := range []struct {
		value RenewBefore
		text  string
		of    time.Duration
	}{
		{RenewBefore{}, "", 0},
		{RenewBefore{Duration: 720 * time.Hour}, "720h0m0s", 720 * time.Hour},
		{RenewBefore{Percent: 50}, "50%", life / 2},
	} {
		if got := tt.value.String(); got != tt.text {
			t.Errorf("got %q, want %q", got, tt.text)
		}
		if got := tt.value.Of(life); got != tt.of {
			t.Errorf("%v of %v: got %v, want %v", tt.value, life, got, tt.of)
		}
	}
}

func TestOwners(t *testing.T) {
	for owner, want := range map[string][2]int{"root": {0, -1}, "root:root": {0, 0}, "0:0": {0, 0}, "4000001:4000002": {4000001, 4000002}} {
		uid, gid, err := ParseOwner(owner)
		if err != nil || uid != want[0] || gid != want[1] {
			t.Errorf("%s: got %d, %d, %v, want %v", owner, uid, gid, err, want)
		}
	}
}

func TestUnknownOwnersAreErrors(t *testing.T) {
	for _, owner := range []string{"", ":", "root:", ":root", "no-such-user", "-1", "root:-1", "root:root:root", "99999999999"} {
		if uid, gid, err := ParseOwner(owner); err == nil {
			t.Errorf("%q: got %d, %d, want an error", owner, uid, gid)
		}
	}
}

func TestValidateWorksOnAConfigBuiltByHand(t *testing.T) {
	err := (&Config{}).Validate()
	if err == nil || !strings.Contains(err.Error(), "xds.listeners: empty") {
		t.Errorf("got %v, want problems", err)
	}
}

func TestEveryDirectoryIsAnHTTPSURL(t *testing.T) {
	for code := range directories() {
		url, ok := Directory(code)
		v := &validator{Config: &Config{}}
		if v.url("x", url, "https"); !ok || len(v.problems) > 0 {
			t.Errorf("%s: %v", code, v.problems)
		}
	}
}
