package identity

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

func pairOf(text string) []File {
	return []File{{Name: "tls.key", Data: []byte(text), Mode: 0o600}, {Name: "tls.crt", Data: []byte(text), Mode: 0o644}}
}

// holds checks the content behind the names, that they are links of the layout, and that one version is there.
func holds(t *testing.T, dir, want string) {
	t.Helper()
	for _, f := range pairOf(want) {
		path := filepath.Join(dir, f.Name)
		if data, err := os.ReadFile(path); err != nil || string(data) != want {
			t.Errorf("%s: %q, %v; want %q", f.Name, data, err, want)
		}
		if target, err := os.Readlink(path); err != nil || target != "..data/"+f.Name {
			t.Errorf("%s leads to %q, %v", f.Name, target, err)
		}
	}
	if left, err := filepath.Glob(filepath.Join(dir, "..version-*")); err != nil || len(left) != 1 {
		t.Errorf("versions %v, want one: others are keys that lie about", left)
	}
	if left, err := filepath.Glob(filepath.Join(dir, ".*.new")); err != nil || len(left) != 0 {
		t.Errorf("left over: %v", left)
	}
}

func publish(t *testing.T, dir, text string) {
	t.Helper()
	if err := Publish(dir, pairOf(text)); err != nil {
		t.Fatal(err)
	}
}

func TestPublishMakesAndReplaces(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "made", "here")
	publish(t, dir, "one")
	holds(t, dir, "one")
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("directory: %v, %v", info.Mode(), err)
	}
	if info, err := os.Stat(filepath.Join(dir, "tls.key")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("key: %v, %v", info.Mode(), err)
	}
	publish(t, dir, "two")
	holds(t, dir, "two")
}

func TestPublishKeepsModes(t *testing.T) {
	dir := t.TempDir()
	publish(t, dir, "one")
	key := filepath.Join(dir, "tls.key")
	if err := errors.Join(os.Chmod(key, 0o640), os.Chmod(dir, 0o750)); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 { // only root gives files away
		if err := errors.Join(os.Chown(key, 12345, 12346), os.Chown(dir, 0, 12346)); err != nil {
			t.Fatal(err)
		}
	}
	publish(t, dir, "two")
	holds(t, dir, "two")
	like := map[string]string{"tls.key": "-rw-r-----", "tls.crt": "-rw-r--r--", "..data/.": "drwxr-x---"}
	for name, want := range like {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().String() != want {
			t.Errorf("%s: %v, %v; want %s", name, info.Mode(), err, want)
		}
	}
	if os.Geteuid() == 0 {
		for name, want := range map[string]string{"tls.key": "12345 12346", "tls.crt": "0 0", "..data/.": "0 12346"} {
			if got := ownerOf(t, filepath.Join(dir, name)); got != want {
				t.Errorf("%s: owner %s, want %s", name, got, want)
			}
		}
	}
}

func TestPublishTakesOverPlainFiles(t *testing.T) {
	dir := t.TempDir()
	for _, f := range pairOf("plain") {
		if err := os.WriteFile(filepath.Join(dir, f.Name), f.Data, f.Mode); err != nil {
			t.Fatal(err)
		}
	}
	publish(t, dir, "one")
	holds(t, dir, "one")
	// And one that somebody copied over a link.
	path := filepath.Join(dir, "tls.crt")
	if err := errors.Join(os.Remove(path), os.WriteFile(path, []byte("plain"), 0o644)); err != nil {
		t.Fatal(err)
	}
	publish(t, dir, "two")
	holds(t, dir, "two")
}

func TestPublishLeavesForeignLinksAlone(t *testing.T) {
	dir := t.TempDir()
	elsewhere := filepath.Join(t.TempDir(), "real")
	path := filepath.Join(dir, "tls.key")
	if err := errors.Join(os.WriteFile(elsewhere, []byte("theirs"), 0o600), os.Symlink(elsewhere, path)); err != nil {
		t.Fatal(err)
	}
	if err := Publish(dir, pairOf("ours")); err == nil || !strings.Contains(err.Error(), "did not make") {
		t.Errorf("got %v, want an error about the link", err)
	}
	if data, err := os.ReadFile(path); err != nil || string(data) != "theirs" {
		t.Errorf("the file holds %q, %v", data, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "tls.crt")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("tls.crt was written: %v", err)
	}
}

// TestReadersSeeWholePairs reads by way of one resolved version, as a reader that cares does, while versions follow each other.
func TestReadersSeeWholePairs(t *testing.T) {
	dir := t.TempDir()
	for _, f := range pairOf("plain") { // taken over under the readers, too
		if err := os.WriteFile(filepath.Join(dir, f.Name), f.Data, f.Mode); err != nil {
			t.Fatal(err)
		}
	}
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				for _, f := range pairOf("") { // never missing, never empty
					if data, err := os.ReadFile(filepath.Join(dir, f.Name)); err == nil && len(data) == 0 {
						t.Errorf("%s is empty", f.Name)
					} else if errors.Is(err, fs.ErrNotExist) {
						if _, err := os.Lstat(filepath.Join(dir, f.Name)); err != nil {
							t.Errorf("%s: %v", f.Name, err)
						}
					}
				}
				version, err := filepath.EvalSymlinks(filepath.Join(dir, "..data"))
				if err != nil {
					continue // before the first
				}
				key, err1 := os.ReadFile(filepath.Join(version, "tls.key"))
				cert, err2 := os.ReadFile(filepath.Join(version, "tls.crt"))
				if err1 == nil && err2 == nil && !bytes.Equal(key, cert) {
					t.Errorf("%s and %s in one version", key, cert)
				}
			}
		})
	}
	var writers sync.WaitGroup
	for w := range 2 { // two commands at once
		writers.Go(func() {
			for i := range 20 {
				if err := Publish(dir, pairOf(fmt.Sprintf("%d-%d", w, i))); err != nil {
					t.Error(err)
				}
			}
		})
	}
	writers.Wait()
	close(stop)
	readers.Wait()
	data, err := os.ReadFile(filepath.Join(dir, "tls.crt"))
	if err != nil {
		t.Fatal(err)
	}
	holds(t, dir, string(data))
}

func TestCrashWhileTakingOverLeavesAPair(t *testing.T) {
	// The links are made one by one: after the first, the names lead to two places with the same content.
	dir := t.TempDir()
	for _, f := range pairOf("plain") {
		if err := os.WriteFile(filepath.Join(dir, f.Name), f.Data, f.Mode); err != nil {
			t.Fatal(err)
		}
	}
	p, err := newPublisher(dir)
	if err != nil {
		t.Fatal(err)
	}
	files := pairOf("plain")
	info := make([]os.FileInfo, len(files))
	for i, f := range files {
		if info[i], err = os.Stat(filepath.Join(dir, f.Name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(p.swap(files, info), p.link("tls.key")); err != nil {
		t.Fatal(err)
	}
	p.close() // here the machine stops
	for _, f := range files {
		if data, err := os.ReadFile(filepath.Join(dir, f.Name)); err != nil || string(data) != "plain" {
			t.Errorf("%s: %q, %v", f.Name, data, err)
		}
	}
	publish(t, dir, "next")
	holds(t, dir, "next")
}

func TestHolderOfANodeCertificate(t *testing.T) {
	s := newStore(t)
	ca, err := Create(t.Context(), s, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	csr, _, err := Request("edge-1")
	if err != nil {
		t.Fatal(err)
	}
	const uri = "spiffe://edge.example/canary/edge-1"
	cert, err := ca.Node(csr, "edge-1", uri, time.Now().Add(-100*time.Hour), 36*time.Hour) // it has ended
	if err != nil {
		t.Fatal(err)
	}
	if h, err := ca.Holder(cert.PEM); err != nil || h != (Holder{Node: "edge-1", URI: uri, Life: 36 * time.Hour}) {
		t.Errorf("got %+v, %v", h, err)
	}
	server, _, err := ca.Server(Names{DNS: []string{"sds.example"}}, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ca.Holder(server); !errors.Is(err, ErrNoNode) {
		t.Errorf("the server's certificate: got %v, want ErrNoNode", err)
	}
	other, err := Create(t.Context(), newStore(t), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Holder(cert.PEM); !errors.Is(err, ErrForeign) {
		t.Errorf("another CA: got %v, want ErrForeign", err)
	}
	for _, text := range []string{"", "no PEM", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", string(csr)} {
		if _, err := ca.Holder([]byte(text)); err == nil {
			t.Errorf("%q: no error", text)
		}
	}
}

func TestServerCertificateIsRenewedByItsOwnCAOnly(t *testing.T) {
	now := time.Now()
	ca, err := Create(t.Context(), newStore(t), now)
	if err != nil {
		t.Fatal(err)
	}
	text, _, err := ca.Server(Names{DNS: []string{"sds.example"}}, now, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	old := leafOf(t, text)
	renewed, key, err := ca.RenewServer(old, now, 48*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	leaf := leafOf(t, renewed)
	if leaf.NotAfter.Before(now.Add(47*time.Hour)) || len(leaf.DNSNames) != 1 || leaf.DNSNames[0] != "sds.example" || len(key) == 0 {
		t.Errorf("renewed until %v for %v", leaf.NotAfter, leaf.DNSNames)
	}
	other, err := Create(t.Context(), newStore(t), now)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := other.RenewServer(old, now, time.Hour); !errors.Is(err, ErrForeign) {
		t.Errorf("another CA: got %v, want ErrForeign", err)
	}
	// At the end of the CA nothing is gained, and a renewal at every look would follow.
	end := now.Add(authorityLife)
	text, _, err = ca.Server(Names{DNS: []string{"sds.example"}}, end.Add(-time.Hour), 48*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := ca.RenewServer(leafOf(t, text), end.Add(-time.Minute), 48*time.Hour); err == nil {
		t.Error("renewed over the end of the CA")
	}
}

func ownerOf(t *testing.T, path string) string {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		t.Fatal("no owner")
	}
	return fmt.Sprintf("%d %d", stat.Uid, stat.Gid)
}
