package docs_test

import (
	"maps"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/sds-server/sds-server/internal/config"
	"github.com/sds-server/sds-server/internal/testenv"
)

// composeFile is what the tests look at in docker-compose.yaml; other keys of the Compose specification are allowed.
type composeFile struct {
	Services map[string]service `yaml:"services"`
	Networks map[string]any     `yaml:"networks"`
	Volumes  map[string]any     `yaml:"volumes"`
}

type service struct {
	ContainerName string `yaml:"container_name"`
	Image         string `yaml:"image"`
	Build         *struct {
		Context string `yaml:"context"`
		Target  string `yaml:"target"`
	} `yaml:"build"`
	Command     []string          `yaml:"command"`
	Environment map[string]string `yaml:"environment"`
	User        string            `yaml:"user"`
	GroupAdd    []string          `yaml:"group_add"`
	Privileged  bool              `yaml:"privileged"`
	ReadOnly    bool              `yaml:"read_only"`
	CapAdd      []string          `yaml:"cap_add"`
	CapDrop     []string          `yaml:"cap_drop"`
	SecurityOpt []string          `yaml:"security_opt"`
	NetworkMode string            `yaml:"network_mode"`
	Networks    yaml.Node         `yaml:"networks"`
	Ports       []string          `yaml:"ports"`
	Volumes     []string          `yaml:"volumes"`
	DependsOn   map[string]struct {
		Condition string `yaml:"condition"`
	} `yaml:"depends_on"`
	HealthCheck *struct {
		Test []string `yaml:"test"`
	} `yaml:"healthcheck"`
}

func compose(t *testing.T) composeFile {
	t.Helper()
	var c composeFile
	if err := yaml.Unmarshal([]byte(read(t, "docker-compose.yaml")), &c); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"init", "pebble", "sds-server", "identities", "canary", "production"} {
		if _, ok := c.Services[name]; !ok {
			t.Fatalf("no service %q", name)
		}
	}
	return c
}

func TestComposeServicesHaveOnlyWhatTheyNeed(t *testing.T) {
	numeric := regexp.MustCompile(`^[1-9]\d*:[1-9]\d*$`)
	for name, s := range compose(t).Services {
		if !strings.HasPrefix(s.ContainerName, "sds-") {
			t.Errorf("%s: container name %q, want one that begins with sds-", name, s.ContainerName)
		}
		if s.Privileged || len(s.CapAdd) > 0 || !slices.Equal(s.CapDrop, []string{"ALL"}) || !slices.Contains(s.SecurityOpt, "no-new-privileges:true") {
			t.Errorf("%s: has more rights than it needs", name)
		}
		if !s.ReadOnly {
			t.Errorf("%s: its root file system can be written", name)
		}
		if !numeric.MatchString(s.User) {
			t.Errorf("%s: user %q, want the numbers of a user and a group, not root", name, s.User)
		}
		for _, port := range s.Ports {
			if !strings.HasPrefix(port, "127.0.0.1:") {
				t.Errorf("%s: port %s is open to the network", name, port)
			}
		}
	}
}

func TestComposeImagesAreOfOneVersion(t *testing.T) {
	pinned := regexp.MustCompile(`^[a-z0-9./-]+:v?\d+\.\d+\.\d+$`)
	dockerfile := read(t, "Dockerfile")
	for name, s := range compose(t).Services {
		switch {
		case s.Build != nil && (s.Build.Context != "." || !strings.Contains(dockerfile, " AS "+s.Build.Target+"\n")):
			t.Errorf("%s: builds %+v, no stage of Dockerfile", name, *s.Build)
		case s.Build == nil && !pinned.MatchString(s.Image):
			t.Errorf("%s: image %q is not pinned to a version", name, s.Image)
		case strings.Contains(s.Image, "envoy:") && s.Image != "envoyproxy/envoy:v"+testenv.EnvoyVersion:
			t.Errorf("%s: image %q, tested is %s", name, s.Image, testenv.EnvoyVersion)
		case strings.Contains(s.Image, "pebble:") && "v"+s.Image[strings.LastIndex(s.Image, ":")+1:] != testenv.PebbleVersion:
			t.Errorf("%s: image %q, tested is %s", name, s.Image, testenv.PebbleVersion)
		}
	}
}

func TestComposeVolumesExist(t *testing.T) {
	c := compose(t)
	used := map[string]bool{}
	for name, s := range c.Services {
		for _, volume := range s.Volumes {
			parts := strings.Split(volume, ":")
			if !strings.HasPrefix(parts[0], "./") {
				used[parts[0]] = true
				continue
			}
			if info, err := os.Stat(filepath.Join(root, parts[0])); err != nil || !info.IsDir() {
				t.Errorf("%s: %s is no folder (a single file is not followed when it is replaced)", name, parts[0])
			}
			if len(parts) != 3 || parts[2] != "ro" {
				t.Errorf("%s: %s can be written from the container", name, parts[0])
			}
		}
	}
	if got, want := slices.Sorted(maps.Keys(used)), slices.Sorted(maps.Keys(c.Volumes)); !slices.Equal(got, want) {
		t.Errorf("used volumes %v, declared %v", got, want)
	}
}

// TestComposeStartsInOrder: what is waited for has a health check or ends.
func TestComposeStartsInOrder(t *testing.T) {
	c := compose(t)
	for name, s := range c.Services {
		for dependency, on := range s.DependsOn {
			if on.Condition == "service_healthy" && c.Services[dependency].HealthCheck == nil {
				t.Errorf("%s waits for the health of %s, which has no check", name, dependency)
			}
		}
	}
	for _, name := range []string{"sds-server", "canary", "production"} {
		if c.Services[name].HealthCheck == nil {
			t.Errorf("%s has no health check", name)
		}
	}
	for service, dependency := range map[string]string{"sds-server": "init", "canary": "sds-server", "identities": "sds-server", "production": "identities"} {
		if _, ok := c.Services[service].DependsOn[dependency]; !ok {
			t.Errorf("%s does not wait for %s", service, dependency)
		}
	}
}

// TestComposeServerConfigurationIsValid runs the init of the compose file, and loads the configuration with what it made.
func TestComposeServerConfigurationIsValid(t *testing.T) {
	c := compose(t)
	dir := filepath.Join(t.TempDir(), "state")
	_, args, ok := strings.Cut(c.Services["init"].Command[0], "sds-server init ")
	if !ok {
		t.Fatalf("init runs %q, want sds-server init", c.Services["init"].Command)
	}
	args = strings.Replace(args, "/var/lib/sds-server", dir, 1)
	if code, _, errs := command(t, append([]string{"init"}, strings.Fields(args)...)...); code != 0 {
		t.Fatalf("init %s: exit code %d: %s", args, code, errs)
	}
	etc := filepath.Join(t.TempDir(), "etc")
	if err := os.CopyFS(etc, os.DirFS(filepath.Join(root, "deploy", "compose", "sds-server"))); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(etc, "sds-server.yaml")
	text, err := testenv.Substitute([]byte(read(t, "deploy/compose/sds-server/sds-server.yaml")), "/var/lib/sds-server", dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	checkAgainstServices(t, c, cfg)
}

// checkAgainstServices compares what the configuration says with what the containers are.
func checkAgainstServices(t *testing.T, c composeFile, cfg *config.Config) {
	t.Helper()
	socket := cfg.XDS.Listeners[0]
	uid, gid, ok := strings.Cut(socket.Owner, ":")
	server, canary := c.Services["sds-server"], c.Services["canary"]
	if !ok || !strings.HasPrefix(server.User, uid+":") || !slices.Contains(server.GroupAdd, gid) || !strings.HasSuffix(canary.User, ":"+gid) || socket.Mode != 0o660 {
		t.Errorf("socket of %s, mode %04o: the server is %s with groups %v, canary is %s", socket.Owner, socket.Mode, server.User, server.GroupAdd, canary.User)
	}
	if c.Services["init"].User != server.User || c.Services["identities"].User != server.User {
		t.Error("init, identities and sds-server are not of one user: files and the admin socket would be closed")
	}
	var names struct {
		Demo struct {
			Aliases []string `yaml:"aliases"`
		} `yaml:"demo"`
	}
	if err := server.Networks.Decode(&names); err != nil {
		t.Fatal(err)
	}
	if got, want := names.Demo.Aliases, cfg.Certificates[0].DNSNames; !slices.Equal(got, want) {
		t.Errorf("the CA finds the server by %v, the certificate is for %v", got, want)
	}
	_, port, err := net.SplitHostPort(cfg.Challenges.HTTP01.Address)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(read(t, "deploy/compose/pebble/pebble-config.json"), `"httpPort": `+port+",") {
		t.Errorf("the CA does not validate at port %s, where the server answers", port)
	}
}

func TestComposeEnvoyConfigurationsAreValid(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"canary.yaml", "production.yaml"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			text := []byte(read(t, "deploy/compose/envoy/"+name))
			if name == "production.yaml" {
				text = withIdentity(t, text)
			}
			if err := testenv.ValidateEnvoy(t.Context(), text); err != nil {
				t.Error(err)
			}
		})
	}
}

// withIdentity makes the files that production.yaml names, and has it name them.
func withIdentity(t *testing.T, text []byte) []byte {
	t.Helper()
	dir := t.TempDir()
	ca, err := testenv.NewAuthority(dir, "channel")
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := ca.Issue(testenv.LeafOptions{DNSNames: []string{"production-1"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := leaf.Write(filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(ca.File, filepath.Join(dir, "ca.crt")); err != nil {
		t.Fatal(err)
	}
	channel, err := testenv.Substitute([]byte(read(t, "deploy/compose/envoy/sds-channel.yaml")), "/identities/production", dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "sds-channel.yaml"), channel, 0o600); err != nil {
		t.Fatal(err)
	}
	text, err = testenv.Substitute(text, "/identities/production", dir, "/etc/envoy/sds-channel.yaml", filepath.Join(dir, "sds-channel.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestDockerfileBuildsAStaticServerThatIsNotRoot(t *testing.T) {
	text := read(t, "Dockerfile")
	version := regexp.MustCompile(`(?m)^go (\S+)$`).FindStringSubmatch(read(t, "go.mod"))
	for _, want := range []string{
		"FROM golang:" + version[1] + " AS build\n",
		"FROM envoyproxy/envoy:v" + testenv.EnvoyVersion + " AS setup\n",
		"FROM scratch AS server\n",
		"CGO_ENABLED=0 go build",
		"/etc/ssl/certs/ca-certificates.crt",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q", want)
		}
	}
	_, last, _ := strings.Cut(text, "FROM scratch AS server\n")
	if !strings.Contains(last, "\nUSER 65532:65532\n") || strings.Contains(last, "\nFROM ") {
		t.Error("the last stage is not the server as user 65532")
	}
	for _, m := range regexp.MustCompile(`(?m)^COPY ([a-z]+) `).FindAllStringSubmatch(text, -1) {
		if _, err := os.Stat(filepath.Join(root, m[1])); err != nil {
			t.Error(err)
		}
	}
}
