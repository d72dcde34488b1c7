package integration

import (
	"crypto/x509"
	"time"

	"github.com/sds-server/sds-server/internal/testenv"
	"github.com/sds-server/sds-server/internal/testenv/fleet"
)

// gentleLoad starts handshakes for the site, about 50 a second. Where other tests take the processors, an Envoy gets none for seconds:
// only a handshake that takes longer than that has failed.
func gentleLoad(t *testenv.T, address string, roots *x509.CertPool) *testenv.Load {
	t.Helper()
	return t.Load(testenv.LoadOptions{
		Address: address, ServerName: site, Roots: roots, Workers: 1, Pause: 20 * time.Millisecond, Timeout: 20 * time.Second,
	})
}

// startBehindProxy is startFleet with a proxy between the server and its CA.
func startBehindProxy(t *testenv.T, s fleet.Settings, change ...func(*fleet.Options)) (*fleet.Fleet, *testenv.Proxy) {
	t.Helper()
	f := newFleet(t, change...)
	ctx := t.Ready()
	must(t, f.StartPebble(ctx))
	proxy := t.Proxy(f.Pebble)
	f.Directory = proxy.Directory
	must(t, f.Init(ctx))
	must(t, f.Configure(fleet.Settings{}))
	must(t, f.StartServer(ctx))
	must(t, f.StartEnvoys(ctx, s.Certificates[0].Names[0]))
	must(t, f.Reconfigure(ctx, s))
	for group := range f.Envoys {
		if _, err := f.WaitServed(ctx, group, s.Certificates[0].Names[0], ""); err != nil {
			t.Fatal(err)
		}
	}
	must(t, f.WaitSynced(ctx))
	return f, proxy
}
