package bootstrap_test

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"github.com/sds-server/sds-server/internal/bootstrap"
	"github.com/sds-server/sds-server/internal/testenv"
)

var update = flag.Bool("update", false, "write the golden files anew")

// variants are rendered, compared with testdata/NAME.yaml, and validated by Envoy. Paths of files begin with /certs,
// which is replaced where Envoy has to read them.
func variants() map[string]bootstrap.Options {
	unix := bootstrap.Options{
		NodeID: "canary-1", Cluster: "canary",
		AdminAddress: "127.0.0.1:19000", HTTPSAddress: "127.0.0.1:19443", HTTPAddress: "127.0.0.1:19080",
		ChallengeAddress: "127.0.0.1:18002",
		SDS:              bootstrap.SDS{UnixPath: "/run/sds-server/sds.sock"},
		Secrets:          []bootstrap.Secret{{Name: "web", DNSNames: []string{"a.example", "b.example"}}},
	}
	sotw := unix
	sotw.API = bootstrap.SotW

	onDemand := unix
	onDemand.API, onDemand.Secrets, onDemand.OnDemand = bootstrap.ADSDelta, nil, &bootstrap.OnDemand{}
	onDemandStreams := onDemand
	onDemandStreams.API, onDemandStreams.ALPNChallengeAddress = bootstrap.Delta, "127.0.0.1:18003"
	onDemandStreams.OnDemand = &bootstrap.OnDemand{DefaultName: "www.example", Prefetch: []string{"www.example", "a.example"}}

	adsDelta, adsSotw := unix, unix
	adsDelta.API, adsSotw.API = bootstrap.ADSDelta, bootstrap.ADSSotW

	mtls := unix
	mtls.NodeID, mtls.Cluster = "production-1", "production"
	mtls.SDS = bootstrap.SDS{
		Address: "127.0.0.1:18000", ServerName: "sds.internal",
		CertFile: "/certs/tls.crt", KeyFile: "/certs/tls.key", CAFile: "/certs/ca.crt",
	}

	channel := mtls
	channel.SDS.ChannelSDSFile = "/certs/channel.yaml"
	channel.SDS.Address, channel.SDS.ServerName = "127.0.0.1:18000", ""

	name := mtls
	name.SDS.Address, name.SDS.ServerName = "sds.internal:18000", ""

	several := unix
	adsSeveral := adsDelta
	adsSeveral.Secrets = []bootstrap.Secret{{Name: "a", DNSNames: []string{"a.example"}}, {Name: "b", DNSNames: []string{"b.example"}}}
	several.ALPNChallengeAddress = "127.0.0.1:18003"
	several.Secrets = []bootstrap.Secret{
		{Name: "a-ecdsa", DNSNames: []string{"a.example", "www.a.example"}},
		{Name: "a-rsa", DNSNames: []string{"WWW.a.example", "a.example"}},
		{Name: "wild", DNSNames: []string{"*.a.example", "a.example", "192.0.2.1"}},
		{Name: "rest", DNSNames: nil},
	}

	alpn := unix
	alpn.ALPNChallengeAddress = "127.0.0.1:18003"
	alpn.HTTPAddress = ""

	bare := bootstrap.Options{
		NodeID: "n", Cluster: "c", HTTPSAddress: ":443", HTTPAddress: "[::]:80",
		SDS: bootstrap.SDS{Address: "127.0.0.1:18004", Insecure: true}, Secrets: []bootstrap.Secret{{Name: "web"}},
	}
	plain := bare
	plain.HTTPSAddress, plain.Secrets = "", nil
	none := plain
	none.HTTPAddress = ""

	return map[string]bootstrap.Options{
		"unix-delta": unix, "unix-sotw": sotw, "ads-delta": adsDelta, "ads-sotw": adsSotw, "ads-several-secrets": adsSeveral, "mtls": mtls, "mtls-channel-sds": channel, "mtls-name": name,
		"on-demand": onDemand, "on-demand-streams": onDemandStreams, "several-secrets": several, "tls-alpn": alpn, "standard-ports": bare, "http-only": plain, "no-listener": none,
	}
}

func TestRenderedBootstrapIsTheGoldenOne(t *testing.T) {
	for name, options := range variants() {
		t.Run(name, func(t *testing.T) {
			got, err := bootstrap.Render(options)
			if err != nil {
				t.Fatal(err)
			}
			compare(t, filepath.Join("testdata", name+".yaml"), got)
		})
	}
	got, err := bootstrap.ChannelSecret(variants()["mtls-channel-sds"].SDS)
	if err != nil {
		t.Fatal(err)
	}
	compare(t, filepath.Join("testdata", "channel.yaml"), got)
}

func TestEveryGoldenFileHasAVariant(t *testing.T) {
	var want []string
	for name := range variants() {
		want = append(want, name+".yaml")
	}
	want = append(want, "channel.yaml")
	slices.Sort(want)
	entries, err := os.ReadDir("testdata")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("testdata (-want +got):\n%s", diff)
	}
}

func compare(t *testing.T, path string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, got, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("%s does not exist; run go test with -update", path)
	}
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

func TestEnvoyAcceptsEveryVariant(t *testing.T) {
	t.Parallel()
	dir := certificates(t)
	for name, options := range variants() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, path := range []*string{&options.SDS.CertFile, &options.SDS.KeyFile, &options.SDS.CAFile, &options.SDS.ChannelSDSFile} {
				*path = strings.Replace(*path, "/certs", dir, 1)
			}
			config, err := bootstrap.Render(options)
			if err != nil {
				t.Fatal(err)
			}
			if err := testenv.ValidateEnvoy(t.Context(), config); err != nil {
				t.Errorf("%v\n%s", err, config)
			}
		})
	}
}

// certificates makes the files of Envoy's client certificate, and the file that names them.
func certificates(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	ca, err := testenv.NewAuthority(dir, "channel")
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := ca.Issue(testenv.LeafOptions{IPs: []net.IP{net.IPv4(127, 0, 0, 1)}})
	if err != nil {
		t.Fatal(err)
	}
	sds := bootstrap.SDS{CertFile: filepath.Join(dir, "tls.crt"), KeyFile: filepath.Join(dir, "tls.key")}
	if err := leaf.Write(sds.CertFile, sds.KeyFile); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(ca.File, filepath.Join(dir, "ca.crt")); err != nil {
		t.Fatal(err)
	}
	channel, err := bootstrap.ChannelSecret(sds)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "channel.yaml"), channel, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestNoValueChangesTheStructure(t *testing.T) {
	hostile := []string{
		`x", evil: "y`, `a: b`, `{{.NodeID}}`, `}`, `# no comment`, `'`, `\`, `*sds`, `&sds`, `yes`, `1.0`, `null`, "naïve \u2028 <&>",
	}
	for _, value := range hostile {
		t.Run(value, func(t *testing.T) {
			options := variants()["unix-delta"]
			options.NodeID, options.Cluster = value, value
			options.SDS.UnixPath = "/run/" + value
			options.Secrets = []bootstrap.Secret{{Name: value, DNSNames: []string{"a.example"}}, {Name: "b", DNSNames: []string{"b.example"}}}
			data, err := bootstrap.Render(options)
			if err != nil {
				t.Fatal(err)
			}
			var got struct {
				Node struct {
					ID, Cluster string
				}
				StaticResources struct {
					Listeners []struct {
						FilterChains []struct{ Name string } `yaml:"filter_chains"`
					}
				} `yaml:"static_resources"`
			}
			if err := yaml.Unmarshal(data, &got); err != nil {
				t.Fatalf("%v\n%s", err, data)
			}
			if got.Node.ID != value || got.Node.Cluster != value {
				t.Errorf("got node %q in cluster %q, want %q in both", got.Node.ID, got.Node.Cluster, value)
			}
			if name := got.StaticResources.Listeners[0].FilterChains[0].Name; name != value {
				t.Errorf("got secret %q, want %q", name, value)
			}
			if !strings.Contains(string(data), "cluster_name: sds_server") {
				t.Errorf("the cluster is missing:\n%s", data)
			}
		})
	}
}

func TestWrongOptionsAreAllNamed(t *testing.T) {
	good := func() bootstrap.Options { return variants()["mtls"] }
	for _, tc := range []struct {
		name   string
		change func(*bootstrap.Options)
		want   []string
	}{
		{"nothing set", func(o *bootstrap.Options) { *o = bootstrap.Options{} }, []string{"NodeID: empty", "Cluster: empty", "SDS: neither"}},
		{"unknown API", func(o *bootstrap.Options) { o.API = "grpc" }, []string{`API: "grpc"`}},
		{"listener on a name", func(o *bootstrap.Options) { o.HTTPSAddress = "localhost:443" }, []string{"HTTPSAddress: Envoy listens on IP addresses"}},
		{"no port", func(o *bootstrap.Options) { o.HTTPAddress = "127.0.0.1" }, []string{"HTTPAddress: "}},
		{"bad port", func(o *bootstrap.Options) { o.AdminAddress = "127.0.0.1:65536" }, []string{"AdminAddress: port"}},
		{"no host", func(o *bootstrap.Options) { o.ChallengeAddress = ":18002" }, []string{"ChallengeAddress: "}},
		{"no secrets", func(o *bootstrap.Options) { o.Secrets = nil }, []string{"Secrets: empty"}},
		{"on demand and secrets", func(o *bootstrap.Options) { o.OnDemand = &bootstrap.OnDemand{} }, []string{"OnDemand: excludes Secrets"}},
		{"on demand by SotW", func(o *bootstrap.Options) {
			o.OnDemand, o.Secrets, o.API = &bootstrap.OnDemand{}, nil, bootstrap.ADSSotW
		}, []string{"OnDemand: needs delta"}},
		{"on demand without names", func(o *bootstrap.Options) {
			o.Secrets, o.OnDemand = nil, &bootstrap.OnDemand{DefaultName: "a\nb", Prefetch: []string{""}}
		}, []string{"OnDemand.DefaultName: ", "OnDemand.Prefetch[0]: empty"}},
		{"unnamed secret", func(o *bootstrap.Options) { o.Secrets[0].Name = "" }, []string{"Secrets[0].Name: empty"}},
		{"no files", func(o *bootstrap.Options) { o.SDS = bootstrap.SDS{Address: "127.0.0.1:1"} }, []string{"SDS.CertFile: empty", "SDS.KeyFile: empty", "SDS.CAFile: empty"}},
		{"both transports", func(o *bootstrap.Options) { o.SDS.UnixPath = "/run/s" }, []string{"SDS: UnixPath excludes"}},
		{"insecure with files", func(o *bootstrap.Options) { o.SDS.Insecure = true }, []string{"SDS: Insecure excludes"}},
		{"long socket path", func(o *bootstrap.Options) { o.SDS = bootstrap.SDS{UnixPath: "/" + strings.Repeat("x", 107)} }, []string{"SDS.UnixPath: 108 bytes"}},
		{"control character", func(o *bootstrap.Options) { o.NodeID = "a\nb" }, []string{"NodeID: "}},
		{"no UTF-8", func(o *bootstrap.Options) { o.NodeID = "a\xff" }, []string{"NodeID: "}},
		{"shadowed secret", func(o *bootstrap.Options) {
			o.Secrets = []bootstrap.Secret{
				{Name: "a", DNSNames: []string{"a.example", "b.example"}}, {Name: "b", DNSNames: []string{"b.example"}},
			}
		}, []string{"Secrets[1].DNSNames: each name"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			options := good()
			tc.change(&options)
			_, err := bootstrap.Render(options)
			for _, want := range tc.want {
				if got := fmt.Sprint(err); !strings.Contains(got, want) {
					t.Errorf("got %q, want it to contain %q", got, want)
				}
			}
		})
	}
	if _, err := bootstrap.ChannelSecret(bootstrap.SDS{CertFile: "/a/tls.crt", KeyFile: "/b/tls.key"}); err == nil {
		t.Error("a key in another directory than the certificate is accepted")
	}
}
