package testenv_test

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"testing"

	"github.com/sds-server/sds-server/internal/testenv"
)

func TestPebbleServesDirectoryProfilesAndRoot(t *testing.T) {
	t.Parallel()
	env := testenv.NewT(t)
	pebble := env.Pebble(testenv.PebbleOptions{Profiles: map[string]testenv.PebbleProfile{"short": {Validity: 60e9}}})

	var directory struct {
		NewOrder string `json:"newOrder"`
		Meta     struct {
			Profiles map[string]string `json:"profiles"`
		} `json:"meta"`
	}
	if err := json.Unmarshal(fetch(t, pebble.Client(), pebble.Directory), &directory); err != nil {
		t.Fatal(err)
	}
	if directory.NewOrder == "" {
		t.Error("the directory has no newOrder")
	}
	if _, ok := directory.Meta.Profiles["short"]; !ok || len(directory.Meta.Profiles) != 1 {
		t.Errorf("got profiles %v, want short alone", directory.Meta.Profiles)
	}

	root, err := pebble.Root(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !root.IsCA || root.CheckSignatureFrom(root) != nil {
		t.Error("the root is no self-signed CA")
	}
	if data, err := os.ReadFile(pebble.RootsFile); err != nil || len(data) == 0 {
		t.Errorf("the roots file: %d bytes, %v", len(data), err)
	}

	// A second start in the same directory: other roots, the same trust for HTTPS.
	if err := pebble.Stop(); err != nil {
		t.Fatal(err)
	}
	again := env.Pebble(testenv.PebbleOptions{})
	fetch(t, pebble.Client(), again.Directory)
	second, err := again.Root(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if second.Equal(root) {
		t.Error("the root is the same after a new start")
	}
}

func TestDNSAnswersEveryNameWithLoopback(t *testing.T) {
	t.Parallel()
	dns, err := testenv.StartDNS(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, network := range []string{"udp", "tcp"} {
		resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, dns.Address)
		}}
		addrs, err := resolver.LookupHost(t.Context(), "a."+network+".example")
		if err != nil || len(addrs) != 1 || addrs[0] != "127.0.0.1" {
			t.Errorf("%s: got %v, %v, want 127.0.0.1 alone", network, addrs, err)
		}
		if got := dns.Queries("a." + network + ".example"); got != 1 {
			t.Errorf("%s: got %d queries, want 1", network, got)
		}
	}
	if err := dns.Close(); err != nil {
		t.Error(err)
	}
	if err := dns.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
}

func fetch(t *testing.T, client *http.Client, url string) []byte {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("GET %s: %s, %v: %s", url, resp.Status, err, body)
	}
	return body
}
