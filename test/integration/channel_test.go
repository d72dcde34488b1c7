package integration

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sds-server/sds-server/internal/identity"
	"github.com/sds-server/sds-server/internal/testenv"
	"github.com/sds-server/sds-server/internal/testenv/fleet"
	"github.com/sds-server/sds-server/pkg/store/bbolt"
	"github.com/sds-server/sds-server/pkg/store/seal"
)

// production is the node that comes over mutual TLS.
const production = fleet.Production + "-1"

// TestServerCertificateAndClientCAReload changes every file of the mutual TLS listener under a real Envoy.
func TestServerCertificateAndClientCAReload(t *testing.T) {
	e := testenv.NewT(t)
	f := newFleet(e)
	ctx := patient(t)
	must(t, f.StartPebble(ctx))
	must(t, f.Init(ctx))
	must(t, f.Configure(fleet.Settings{}))
	other, err := testenv.NewAuthority(e.Dir, "other")
	must(t, err)
	xds := filepath.Join(f.Dir, "xds")
	ours, err := os.ReadFile(filepath.Join(xds, "ca.crt"))
	must(t, err)
	theirs, err := os.ReadFile(other.File)
	must(t, err)
	both := slices.Concat(ours, theirs)
	replace(t, filepath.Join(xds, "ca.crt"), both)
	must(t, f.StartServer(ctx))

	// Production has a certificate of the other CA, and trusts a server of either.
	must(t, f.Issue(ctx, fleet.Production))
	uri, err := url.Parse("spiffe://sds-server/production/" + production)
	must(t, err)
	client, err := other.Issue(testenv.LeafOptions{URIs: []*url.URL{uri}})
	must(t, err)
	must(t, identity.Publish(f.Identity(fleet.Production), []identity.File{
		{Name: "tls.key", Data: client.KeyPEM, Mode: 0o600}, {Name: "tls.crt", Data: client.CertPEM, Mode: 0o644}, {Name: "ca.crt", Data: both, Mode: 0o644},
	}))
	must(t, f.StartEnvoy(ctx, fleet.Canary, site))
	must(t, f.BootEnvoy(ctx, fleet.Production, site))
	must(t, f.Reconfigure(ctx, one(false)))
	served(ctx, t, f, fleet.Production, "")
	must(t, f.WaitSynced(ctx))
	load, err := f.Load(ctx, fleet.Production, site, 1)
	must(t, err)
	defer load.Stop()
	connections, err := f.Envoys[fleet.Production].Stat(ctx, "cluster.sds_server.upstream_cx_total")
	must(t, err)

	// Another certificate, of the other CA: new connections have it, the stream stays.
	server, err := other.Issue(testenv.LeafOptions{DNSNames: []string{"localhost"}, IPs: []net.IP{net.IPv4(127, 0, 0, 1)}})
	must(t, err)
	replace(t, filepath.Join(xds, "server.key"), server.KeyPEM)
	replace(t, filepath.Join(xds, "server.crt"), server.CertPEM)
	serverServes(ctx, t, f, server.TLS.Leaf)
	served(ctx, t, f, fleet.Production, *renew(ctx, t, f, "done").Serial)
	if now, err := f.Envoys[fleet.Production].Stat(ctx, "cluster.sds_server.upstream_cx_total"); err != nil || now != connections {
		t.Errorf("%d connections to the server (%v), want the same %d", now, err, connections)
	}

	// A key that does not fit: the old certificate stays, it is said once, and the gauge falls.
	wrong, err := other.Issue(testenv.LeafOptions{DNSNames: []string{"localhost"}})
	must(t, err)
	reloaded := `sds_channel_last_reload_successful{listener="` + f.SDS + `"}`
	replace(t, filepath.Join(xds, "server.key"), wrong.KeyPEM)
	must(t, waitMetric(ctx, f, reloaded, func(v float64) bool { return v == 0 }))
	must(t, f.Server.Signal(syscall.SIGHUP))
	must(t, f.Server.Signal(syscall.SIGHUP))
	serverServes(ctx, t, f, server.TLS.Leaf)
	replace(t, filepath.Join(xds, "server.key"), server.KeyPEM)
	must(t, waitMetric(ctx, f, reloaded, func(v float64) bool { return v == 1 }))
	log, err := f.Server.Log()
	must(t, err)
	if n := strings.Count(log, "certificate of the xDS channel not reloaded"); n != 1 {
		t.Errorf("the broken pair is logged %d times, want once", n)
	}

	// The other CA leaves the bundle: production's connection is closed, and it is refused until it has a certificate of ours.
	replace(t, filepath.Join(xds, "ca.crt"), ours)
	must(t, connected(ctx, f, false))
	serial := *renew(ctx, t, f, "issued").Serial
	served(ctx, t, f, fleet.Canary, serial)
	must(t, f.Issue(ctx, fleet.Production))
	must(t, connected(ctx, f, true))
	served(ctx, t, f, fleet.Production, serial)
	noneFailed(t, load)
}

// TestClientCertificateRenewal renews the client certificate of a real Envoy in time, and then too late.
func TestClientCertificateRenewal(t *testing.T) {
	e := testenv.NewT(t)
	f := startFleet(e, one(false))
	ctx := patient(t)
	must(t, f.Envoys[fleet.Production].Stop())
	must(t, f.Issue(ctx, fleet.Production, "--life", "25s"))
	old := certificate(t, f)
	must(t, f.BootEnvoy(ctx, fleet.Production, site))
	must(t, connected(ctx, f, true))
	load, err := f.Load(ctx, fleet.Production, site, 1)
	must(t, err)
	defer load.Stop()
	ends := func(cert *x509.Certificate) {
		t.Helper()
		must(t, waitMetric(ctx, f, `sds_node_certificate_not_after_timestamp_seconds{group="production"}`, func(v float64) bool { return int64(v) == cert.NotAfter.Unix() }))
	}
	ends(old)
	served(ctx, t, f, fleet.Production, *renew(ctx, t, f, "done").Serial)

	// In time: Envoy comes back with the new certificate before the old one ends. Certificates count whole seconds: one later, the ends differ.
	must(t, testenv.Eventually(ctx, func(context.Context) error {
		if !time.Now().Add(25 * time.Second).Truncate(time.Second).After(old.NotAfter) {
			return errors.New("a new certificate would end in the same second")
		}
		return nil
	}))
	_, err = f.Run(ctx, "identity", "renew", f.Identity(fleet.Production))
	must(t, err)
	renewed := certificate(t, f)
	if !renewed.NotAfter.After(old.NotAfter) {
		t.Fatalf("the renewed certificate ends at %v, the old one at %v", renewed.NotAfter, old.NotAfter)
	}
	ends(renewed)
	if !time.Now().Before(old.NotAfter) {
		t.Error("Envoy came back when the old certificate had ended")
	}
	served(ctx, t, f, fleet.Production, *renew(ctx, t, f, "done").Serial)

	// Too late: the connection ends with the certificate, Envoy serves what it has, and comes back when there is a new one.
	must(t, testenv.Eventually(ctx, func(context.Context) error { // 5/6 of the life: it is warned of at the next look at the files
		if left := time.Until(renewed.NotAfter.Add(-renewed.NotAfter.Sub(renewed.NotBefore) / 6)); left > -2*time.Second {
			return fmt.Errorf("%v until Envoy has to come back", left)
		}
		return nil
	}))
	must(t, connected(ctx, f, true))
	must(t, f.Server.Signal(syscall.SIGHUP))
	must(t, f.Server.WaitLog(ctx, "client certificate of a node ends, and was not renewed"))
	must(t, testenv.Eventually(ctx, func(context.Context) error {
		if left := time.Until(renewed.NotAfter); left > 0 {
			return fmt.Errorf("the certificate lasts for %v", left)
		}
		return nil
	}))
	must(t, connected(ctx, f, false))
	serial := *renew(ctx, t, f, "issued").Serial
	served(ctx, t, f, fleet.Canary, serial)
	if _, seen := load.Seen(serial); seen {
		t.Error("production serves what was issued after the end of its client certificate")
	}
	_, err = f.Run(ctx, "identity", "renew", f.Identity(fleet.Production))
	must(t, err)
	must(t, connected(ctx, f, true))
	served(ctx, t, f, fleet.Production, serial)
	noneFailed(t, load)
}

// TestServerRenewsItsOwnCertificate starts with a certificate of the channel's CA that is about to end.
func TestServerRenewsItsOwnCertificate(t *testing.T) {
	e := testenv.NewT(t)
	f := newFleet(e)
	ctx := patient(t)
	must(t, f.StartPebble(ctx))
	must(t, f.Init(ctx))
	must(t, f.Configure(one(false)))
	old := shortServer(ctx, t, f, 20*time.Second)
	must(t, f.StartServer(ctx))
	must(t, f.StartEnvoys(ctx, site))
	must(t, f.Server.WaitLog(ctx, "certificate of the xDS channel renewed"))
	must(t, f.Server.WaitLog(ctx, "certificate of the xDS channel reloaded"))
	got, _, err := testenv.Handshake(ctx, f.SDS, "localhost", nil)
	must(t, err)
	if got.NotAfter.Before(old.NotAfter.Add(800*24*time.Hour)) || fmt.Sprint(got.DNSNames, got.IPAddresses) != fmt.Sprint(old.DNSNames, old.IPAddresses) {
		t.Errorf("the server has a certificate for %v %v until %v", got.DNSNames, got.IPAddresses, got.NotAfter)
	}
	served(ctx, t, f, fleet.Production, "")
	// The next start finds a whole pair.
	must(t, f.Server.Stop())
	must(t, f.StartServer(ctx))
	serverServes(ctx, t, f, got)
	must(t, connected(ctx, f, true))
}

// shortServer gives a server that does not run yet a certificate with a short life.
func shortServer(ctx context.Context, t testing.TB, f *fleet.Fleet, life time.Duration) *x509.Certificate {
	t.Helper()
	db, err := bbolt.Open(bbolt.Options{Path: filepath.Join(f.Dir, "data", "store.db")})
	must(t, err)
	s, err := seal.Open(ctx, db, filepath.Join(f.Dir, "seal.key"))
	must(t, err)
	defer func() { must(t, s.Close()) }()
	ca, err := identity.Load(ctx, s)
	must(t, err)
	cert, key, err := ca.Server(identity.Names{DNS: []string{"localhost"}, IP: []net.IP{net.IPv4(127, 0, 0, 1).To4()}}, time.Now(), life)
	must(t, err)
	xds := filepath.Join(f.Dir, "xds")
	replace(t, filepath.Join(xds, "server.key"), key)
	replace(t, filepath.Join(xds, "server.crt"), cert)
	block, _ := pem.Decode(cert)
	leaf, err := x509.ParseCertificate(block.Bytes)
	must(t, err)
	return leaf
}

// TestStaticSecretsAreNotWatched is why the bootstrap needs a second file.
func TestStaticSecretsAreNotWatched(t *testing.T) {
	e := testenv.NewT(t)
	f := startFleet(e, one(false))
	ctx := patient(t)
	dir := f.Identity(fleet.Production)
	must(t, f.Envoys[fleet.Production].Stop())
	config, err := os.ReadFile(filepath.Join(f.Dir, "envoy", "production.yaml"))
	must(t, err)
	channel := fmt.Sprintf("sds_config: {path_config_source: {path: %q}}", filepath.Join(dir, "channel.yaml"))
	config, err = testenv.Substitute(config,
		"            "+channel+"\n", "",
		"static_resources:\n", fmt.Sprintf(`static_resources:
  secrets:
  - name: sds_channel
    tls_certificate:
      certificate_chain: {filename: %[1]s/tls.crt}
      private_key: {filename: %[1]s/tls.key}
      watched_directory: {path: %[1]s}
`, dir))
	must(t, err)
	envoy := e.Envoy(testenv.EnvoyOptions{Name: "static", Config: config})
	must(t, envoy.WaitReady(ctx))
	must(t, connected(ctx, f, true))
	old := certificate(t, f)
	_, err = f.Run(ctx, "identity", "renew", dir)
	must(t, err)
	// A restart of the server makes Envoy connect anew: with what it has.
	must(t, f.Server.Stop())
	must(t, f.StartServer(ctx))
	must(t, connected(ctx, f, true))
	must(t, waitMetric(ctx, f, `sds_node_certificate_not_after_timestamp_seconds{group="production"}`, func(v float64) bool { return int64(v) == old.NotAfter.Unix() }))
}

// replace renames a new file over an old one.
func replace(t testing.TB, path string, data []byte) {
	t.Helper()
	must(t, os.WriteFile(path+".new", data, 0o600))
	must(t, os.Rename(path+".new", path))
}

// certificate is the one that production has in its directory.
func certificate(t testing.TB, f *fleet.Fleet) *x509.Certificate {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(f.Identity(fleet.Production), "tls.crt"))
	must(t, err)
	block, _ := pem.Decode(text)
	if block == nil {
		t.Fatal("tls.crt is no PEM")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	must(t, err)
	return cert
}

// serverServes waits until new connections to the server have the certificate.
func serverServes(ctx context.Context, t testing.TB, f *fleet.Fleet, want *x509.Certificate) {
	t.Helper()
	must(t, testenv.Eventually(ctx, func(ctx context.Context) error {
		got, _, err := testenv.Handshake(ctx, f.SDS, "localhost", nil)
		if err != nil {
			return err
		}
		if !bytes.Equal(got.Raw, want.Raw) {
			return errors.New("another certificate: " + testenv.Serial(got))
		}
		return nil
	}))
}

// connected waits until production is, or is not.
func connected(ctx context.Context, f *fleet.Fleet, want bool) error {
	return testenv.Eventually(ctx, func(ctx context.Context) error {
		nodes, err := f.Nodes(ctx)
		if err != nil {
			return err
		}
		for _, n := range nodes.Nodes {
			if n.ID == production && n.Connected == want {
				return nil
			}
		}
		return fmt.Errorf("%+v, want %s connected: %v", nodes.Nodes, production, want)
	})
}

// waitMetric waits until a series has a value.
func waitMetric(ctx context.Context, f *fleet.Fleet, series string, want func(float64) bool) error {
	return testenv.Eventually(ctx, func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+f.Metrics+"/metrics", http.NoBody)
		if err != nil {
			return err
		}
		client := &http.Client{Timeout: 5 * time.Second}
		defer client.CloseIdleConnections()
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close() // it is read to its end
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(body)) {
			if value, ok := strings.CutPrefix(strings.TrimSpace(line), series+" "); ok {
				v, err := strconv.ParseFloat(value, 64)
				if err == nil && want(v) {
					return nil
				}
				return fmt.Errorf("%s is %s (%w)", series, value, err)
			}
		}
		return errors.New("no series " + series)
	})
}

// noneFailed ends a load of which every handshake has to have succeeded.
func noneFailed(t testing.TB, load *testenv.Load) {
	t.Helper()
	load.Stop()
	if load.Failed() > 0 || load.Made() == 0 {
		t.Errorf("%d handshakes made, %d failed: %v", load.Made(), load.Failed(), load.Errors())
	}
}

// patient is a context for tests that wait for the end of a certificate.
func patient(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}
