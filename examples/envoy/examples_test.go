// Package envoy_test boots the example configurations with a real Envoy.
package envoy_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sds-server/sds-server/internal/testenv"
)

// ports are what stands for the ports of an example.
type ports struct {
	admin, https, http, challenge int
}

func TestEachExampleBootsWithoutASecretAndRedirects(t *testing.T) {
	t.Parallel()
	for _, name := range examples(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			env := testenv.NewT(t)
			// The responder stands for sds-server's: what arrives here came by the ACME route.
			responder := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				fmt.Fprint(w, "answer to "+r.URL.Path)
			}))
			t.Cleanup(responder.Close)
			p := ports{admin: env.Port(), https: env.Port(), http: env.Port()}
			if _, err := fmt.Sscanf(responder.URL, "http://127.0.0.1:%d", &p.challenge); err != nil {
				t.Fatal(err)
			}
			envoy := env.Envoy(testenv.EnvoyOptions{Config: configuration(t, env, name, p)})
			if err := envoy.WaitReady(env.Ready()); err != nil {
				t.Fatal(err)
			}

			log, err := envoy.Log()
			if err != nil {
				t.Fatal(err)
			}
			if regexp.MustCompile(`(?i)\[(warning|error)\].*deprecated`).MatchString(log) {
				t.Errorf("Envoy warns of something deprecated:\n%s", log)
			}

			base := fmt.Sprintf("http://127.0.0.1:%d", p.http)
			if status, location, _ := get(t, base+"/x?y=1", "www.example.com"); status != http.StatusMovedPermanently || location != "https://www.example.com/x?y=1" {
				t.Errorf("got %d to %q, want 301 to https://www.example.com/x?y=1", status, location)
			}
			const path = "/.well-known/acme-challenge/token"
			if status, _, body := get(t, base+path, "www.example.com"); status != http.StatusOK || body != "answer to "+path {
				t.Errorf("challenge: got %d %q, want the responder's answer", status, body)
			}
			if _, _, err := testenv.Handshake(t.Context(), fmt.Sprintf("127.0.0.1:%d", p.https), "www.example.com", nil); err == nil {
				t.Error("a TLS handshake succeeded without a certificate")
			}
			for _, secret := range secrets(t, name) { // Envoy has a subscription to each
				if n, err := envoy.Stat(t.Context(), "sds."+secret+".update_attempt"); err != nil || n == 0 {
					t.Errorf("secret %s: %d attempts, %v", secret, n, err)
				}
			}
		})
	}
}

// secrets are the names that stand before each sds_config of an example.
func secrets(t *testing.T, name string) []string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, m := range regexp.MustCompile(`name: ([\w.-]+)(?:,| *(?:#.*)?\n) *sds_config:`).FindAllSubmatch(text, -1) {
		names = append(names, string(m[1]))
	}
	if len(names) == 0 || len(names) != bytes.Count(text, []byte("sds_config:")) {
		t.Fatalf("%s: found the secrets %q", name, names)
	}
	return names
}

func TestReadmeNamesEachExample(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var missing []string
	for _, file := range files {
		if !bytes.Contains(readme, []byte("`"+file+"`")) {
			missing = append(missing, file)
		}
	}
	if diff := cmp.Diff([]string(nil), missing); diff != "" {
		t.Errorf("not in README.md (-want +got):\n%s", diff)
	}
}

// examples are the files with a whole bootstrap.
func examples(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(data), "static_resources:") {
			names = append(names, file)
		}
	}
	if len(names) < 3 {
		t.Fatalf("got %v, want at least three examples", names)
	}
	return names
}

// configuration is an example with ports and paths of this test. No sds-server answers at any of them.
func configuration(t *testing.T, env *testenv.T, name string, p ports) []byte {
	t.Helper()
	config, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	replace := []string{
		"port_value: 9901", fmt.Sprintf("port_value: %d", p.admin),
		"address: 0.0.0.0, port_value: 443", fmt.Sprintf("address: 127.0.0.1, port_value: %d", p.https),
		"address: 0.0.0.0, port_value: 80", fmt.Sprintf("address: 127.0.0.1, port_value: %d", p.http),
		"port_value: 18002", fmt.Sprintf("port_value: %d", p.challenge),
	}
	if strings.HasPrefix(name, "unix-") {
		replace = append(replace, "/run/sds-server", env.Dir)
	} else {
		replace = append(replace, "port_value: 18000", fmt.Sprintf("port_value: %d", env.Port()), "/etc/envoy/", env.Dir+"/")
		channel(t, env)
	}
	config, err = testenv.Substitute(config, replace...)
	if err != nil {
		t.Fatal(err)
	}
	return config
}

// channel writes the client certificate of mtls-delta.yaml and the file that names it.
func channel(t *testing.T, env *testenv.T) {
	t.Helper()
	dir := filepath.Join(env.Dir, "sds")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	ca, err := testenv.NewAuthority(dir, "sds")
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := ca.Issue(testenv.LeafOptions{DNSNames: []string{"edge-1.example"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := leaf.Write(filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(ca.File, filepath.Join(dir, "ca.crt")); err != nil {
		t.Fatal(err)
	}
	file, err := os.ReadFile("sds-channel.yaml")
	if err != nil {
		t.Fatal(err)
	}
	file, err = testenv.Substitute(file, "/etc/envoy/", env.Dir+"/")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(env.Dir, "sds-channel.yaml"), file, 0o600); err != nil {
		t.Fatal(err)
	}
}

// get does not follow redirects.
func get(t *testing.T, url, host string) (status int, location, body string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = host
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header.Get("Location"), string(data)
}
