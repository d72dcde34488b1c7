// Package integration runs the whole product against the real parts: Envoy 1.40, Pebble, and the server as a process.
package integration

import (
	"context"
	"fmt"
	"os"
	"testing"

	"github.com/sds-server/sds-server/internal/testenv"
	"github.com/sds-server/sds-server/internal/testenv/fleet"
)

// serverBinary is the server under test, built with the race detector once for all tests of the package.
var serverBinary string //nolint:gochecknoglobals // TestMain has no other way to hand it to tests

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	if kind := os.Getenv(yardstickKind); kind != "" {
		return runYardstick(kind)
	}
	dir, err := os.MkdirTemp("", "sds-bin-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	// The race detector sleeps for 1 s at the end of each process: of each command, and of each check of the store.
	if err := os.Setenv("GORACE", "atexit_sleep_ms=0"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	race := os.Getenv("SDS_TEST_NO_RACE") == "" // benchmarks measure the product as it is shipped
	if serverBinary, err = testenv.BuildServer(context.Background(), dir, race); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

func binary(testing.TB) string { return serverBinary }

// newFleet makes a fleet in the directory of a test; its parts end with the test, and their logs are shown when it fails.
func newFleet(t *testenv.T, change ...func(*fleet.Options)) *fleet.Fleet {
	t.Helper()
	sockets, err := testenv.ShortDir()
	if err != nil {
		t.Fatal(err)
	}
	o := fleet.Options{Dir: t.Dir, Sockets: sockets, Binary: binary(t)}
	for _, c := range change {
		c(&o)
	}
	f, err := fleet.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() && f.Server != nil {
			t.Logf("sds-server:\n%s", f.Server.LogTail(80))
			for name, e := range f.Envoys {
				t.Logf("%s:\n%s", name, e.LogTail(30))
			}
		}
		if err := f.Stop(); err != nil {
			t.Errorf("stop: %v", err)
		}
		if err := os.RemoveAll(sockets); err != nil {
			t.Errorf("sockets: %v", err)
		}
	})
	return f
}

// startFleet starts CA, server and both Envoys, and waits until both serve the certificate of names[0].
func startFleet(t *testenv.T, s fleet.Settings, change ...func(*fleet.Options)) *fleet.Fleet {
	t.Helper()
	f := newFleet(t, change...)
	ctx := t.Ready()
	name := s.Certificates[0].Names[0]
	before := s
	before.Certificates = nil
	must(t, f.StartPebble(ctx))
	must(t, f.Init(ctx))
	must(t, f.Configure(before))
	must(t, f.StartServer(ctx))
	must(t, f.StartEnvoys(ctx, name))
	must(t, f.Reconfigure(ctx, s))
	for group := range f.Envoys {
		if _, err := f.WaitServed(ctx, group, name, ""); err != nil {
			t.Fatal(err)
		}
	}
	must(t, f.WaitSynced(ctx))
	return f
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
