package app

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sds-server/sds-server/internal/config"
	"github.com/sds-server/sds-server/internal/identity"
	"github.com/sds-server/sds-server/internal/testenv"
	"github.com/sds-server/sds-server/pkg/store/bbolt"
	"github.com/sds-server/sds-server/pkg/store/seal"
)

// logBuffer is a log that can be read while it is written.
type logBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer // guarded by mu
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *logBuffer) count(text string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Count(b.text.String(), text)
}

// world is the channel of one listener, and the CA that made its files.
type world struct {
	*channels
	testing.TB
	files config.ListenerTLS
	text  *logBuffer
}

func newAuthority(t testing.TB) *identity.Authority {
	t.Helper()
	dir := t.TempDir()
	must(t, seal.GenerateKeyFile(filepath.Join(dir, "seal.key")))
	db, err := bbolt.Open(bbolt.Options{Path: filepath.Join(dir, "data", "store.db")})
	must(t, err)
	s, err := seal.Open(t.Context(), db, filepath.Join(dir, "seal.key"))
	must(t, err)
	t.Cleanup(func() { must(t, s.Close()) })
	ca, err := identity.Create(t.Context(), s, time.Now())
	must(t, err)
	return ca
}

// newWorld makes the files that init makes, with a certificate of some life.
func newWorld(t testing.TB, life time.Duration) *world {
	t.Helper()
	dir := t.TempDir()
	w := &world{TB: t, text: &logBuffer{}, files: config.ListenerTLS{
		CertFile: filepath.Join(dir, "server.crt"), KeyFile: filepath.Join(dir, "server.key"), ClientCAFile: filepath.Join(dir, "ca.crt"),
	}}
	w.channels = &channels{authority: newAuthority(t), log: slog.New(slog.NewTextHandler(w.text, nil))}
	w.write(w.pair(life))
	must(t, os.WriteFile(w.files.ClientCAFile, w.authority.CertificatePEM(), 0o600))
	_, err := w.open("127.0.0.1:18000", w.files)
	must(t, err)
	return w
}

func (w *world) pair(life time.Duration) (cert, key []byte) {
	w.Helper()
	cert, key, err := w.authority.Server(identity.Names{DNS: []string{"sds.example"}, IP: []net.IP{net.IPv4(127, 0, 0, 1)}}, time.Now(), life)
	must(w, err)
	return cert, key
}

// write renames a pair over the files.
func (w *world) write(cert, key []byte) {
	w.Helper()
	for path, data := range map[string][]byte{w.files.KeyFile: key, w.files.CertFile: cert} {
		must(w, os.WriteFile(path+".new", data, 0o600))
		must(w, os.Rename(path+".new", path))
	}
}

func (w *world) leaf() *x509.Certificate { return w.all[0].leaf() }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestRenewalIsDueAtAThirdOfTheLife(t *testing.T) {
	start := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	leaf := &x509.Certificate{NotBefore: start, NotAfter: start.Add(90 * time.Hour)}
	for at, want := range map[time.Duration]bool{0: false, 59 * time.Hour: false, 60 * time.Hour: true, 90 * time.Hour: true, 900 * time.Hour: true} {
		if got := renewalDue(leaf, start.Add(at)); got != want {
			t.Errorf("due after %v: %v, want %v", at, got, want)
		}
	}
}

func TestOwnCertificateIsRenewed(t *testing.T) {
	w := newWorld(t, 90*time.Hour)
	old, now := w.leaf(), time.Now()
	key, err := os.ReadFile(w.files.KeyFile)
	must(t, err)
	w.look(t.Context(), now.Add(50*time.Hour))
	w.look(t.Context(), now.Add(50*time.Hour))
	if !w.leaf().Equal(old) {
		t.Fatal("renewed before it was due")
	}

	w.look(t.Context(), now.Add(61*time.Hour))
	w.look(t.Context(), now.Add(61*time.Hour)) // takes it up
	renewed := w.leaf()
	if left := renewed.NotAfter.Sub(now.Add(61 * time.Hour)); left < serverLife-time.Minute || left > serverLife {
		t.Errorf("renewed for %v, want %v", left, serverLife)
	}
	if diff := cmp.Diff([]string{"sds.example", "127.0.0.1"}, certificateNames(w.all[0].tls)); diff != "" {
		t.Errorf("names of the renewed certificate (-want +got):\n%s", diff)
	}
	if renewedKey, err := os.ReadFile(w.files.KeyFile); err != nil || bytes.Equal(key, renewedKey) {
		t.Errorf("the key was not renewed: %v", err)
	}
	if info, err := os.Stat(w.files.KeyFile); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key has mode %v: %v", info.Mode(), err)
	}
	if !w.all[0].ok.Load() || w.text.count("level=WARN")+w.text.count("level=ERROR") > 0 {
		t.Errorf("a renewal warns: %s", &w.text.text)
	}
	w.look(t.Context(), now.Add(100*time.Hour))
	if n := w.text.count("channel renewed"); n != 1 {
		t.Errorf("renewed %d times, want once", n)
	}
}

func TestListenersWithTheSameFilesAreRenewedOnce(t *testing.T) {
	w := newWorld(t, 90*time.Hour)
	_, err := w.open("127.0.0.1:18005", w.files)
	must(t, err)
	now := time.Now().Add(61 * time.Hour)
	for range 3 {
		w.look(t.Context(), now)
	}
	if n := w.text.count("channel renewed"); n != 1 || !w.all[0].leaf().Equal(w.all[1].leaf()) {
		t.Errorf("renewed %d times, want once; the same certificate: %v", n, w.all[0].leaf().Equal(w.all[1].leaf()))
	}
}

func TestWhatIsNotRenewedIsWarnedOfOnceADay(t *testing.T) {
	for name, spoil := range map[string]func(w *world){
		"no CA":      func(w *world) { w.authority = nil },
		"another CA": func(w *world) { w.authority = newAuthority(w) },
		"two directories": func(w *world) {
			key := filepath.Join(w.TempDir(), "server.key")
			must(w, os.Rename(w.files.KeyFile, key))
			w.all[0].files.KeyFile = key
			w.all[0].seen = digest(w.all[0].files)
		},
		"a link of others": func(w *world) {
			must(w, os.Rename(w.files.KeyFile, w.files.KeyFile+".real"))
			must(w, os.Symlink(w.files.KeyFile+".real", w.files.KeyFile))
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 90*time.Hour)
			spoil(w)
			old, now := w.leaf(), time.Now().Add(61*time.Hour)
			before := digest(w.all[0].files)
			for minutes := range 25 * 60 {
				w.look(t.Context(), now.Add(time.Duration(minutes)*time.Minute))
			}
			if n := w.text.count("is not renewed by this server"); n != 2 {
				t.Errorf("%d warnings in 25 hours, want 2: %s", n, &w.text.text)
			}
			if !w.leaf().Equal(old) || digest(w.all[0].files) != before {
				t.Error("the files were changed")
			}
		})
	}
}

// TestFailedRenewalIsNotTriedAtEveryLook has a directory in which a renewal fails after it has begun.
func TestFailedRenewalIsNotTriedAtEveryLook(t *testing.T) {
	w := newWorld(t, 90*time.Hour)
	must(t, os.Mkdir(filepath.Join(filepath.Dir(w.files.CertFile), "..data"), 0o700)) // a link cannot be renamed over a directory
	now := time.Now().Add(61 * time.Hour)
	w.look(t.Context(), now)
	first := w.all[0].tried
	for range 10 {
		w.look(t.Context(), now.Add(channelDebounce))
	}
	if !w.all[0].tried.Equal(first) || w.text.count("is not renewed") != 1 {
		t.Errorf("tried again at %v after %v, %s", w.all[0].tried, first, &w.text.text)
	}
	w.look(t.Context(), now.Add(channelLook))
	if w.all[0].tried.Equal(first) {
		t.Error("not tried again after a minute")
	}
	if left, err := filepath.Glob(filepath.Join(filepath.Dir(w.files.CertFile), "..version-*")); err != nil || len(left) > 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
}

func TestBrokenFilesKeepTheOldCertificate(t *testing.T) {
	w := newWorld(t, 90*24*time.Hour)
	old, now := w.leaf(), time.Now()
	cert, _ := w.pair(90 * 24 * time.Hour)
	_, key := w.pair(90 * 24 * time.Hour)
	ended, endedKey, err := w.authority.Server(identity.Names{DNS: []string{"sds.example"}}, now.Add(-time.Hour), time.Minute)
	must(t, err)
	for name, pair := range map[string][2][]byte{"no pair": {cert, key}, "ended": {ended, endedKey}, "empty": {nil, nil}} {
		before := w.text.count("not reloaded")
		w.write(pair[0], pair[1])
		for range 3 {
			w.look(t.Context(), now)
		}
		if !w.leaf().Equal(old) || w.all[0].ok.Load() {
			t.Errorf("%s: in force %v, gauge %v; want the old certificate and false", name, !w.leaf().Equal(old), w.all[0].ok.Load())
		}
		if n := w.text.count("not reloaded") - before; n != 1 {
			t.Errorf("%s: logged %d times, want once", name, n)
		}
	}
	w.write(w.pair(90 * 24 * time.Hour))
	must(t, os.Chmod(w.files.KeyFile, 0o604))
	w.look(t.Context(), now)
	if !w.leaf().Equal(old) || w.all[0].ok.Load() {
		t.Error("a key that everyone can read was taken up")
	}
	must(t, os.Chmod(w.files.KeyFile, 0o600))
	w.look(t.Context(), now)
	if w.leaf().Equal(old) || !w.all[0].ok.Load() {
		t.Error("the repaired pair was not taken up")
	}
}

// TestChangesAreSeen runs the loop on real files.
func TestChangesAreSeen(t *testing.T) {
	swap := func(t *testing.T, w *world, dir string) { // the directory is a link that leads elsewhere now
		t.Helper()
		next := filepath.Join(filepath.Dir(dir), "next")
		must(t, os.Symlink(t.TempDir(), next))
		cert, key := w.pair(80 * 24 * time.Hour)
		for name, data := range map[string][]byte{"server.crt": cert, "server.key": key, "ca.crt": w.authority.CertificatePEM()} {
			must(t, os.WriteFile(filepath.Join(next, name), data, 0o600))
		}
		must(t, os.Rename(next, dir))
	}
	for name, change := range map[string]func(t *testing.T, w *world, dir string){
		"renamed over": func(_ *testing.T, w *world, _ string) { w.write(w.pair(80 * 24 * time.Hour)) },
		"written in place": func(t *testing.T, w *world, _ string) {
			cert, key := w.pair(80 * 24 * time.Hour)
			must(t, os.WriteFile(w.files.KeyFile, key, 0o600))
			must(t, os.WriteFile(w.files.CertFile, cert, 0o600))
		},
		"published": func(t *testing.T, w *world, dir string) {
			cert, key := w.pair(80 * 24 * time.Hour)
			must(t, identity.Publish(dir, []identity.File{{Name: "server.key", Data: key, Mode: 0o600}, {Name: "server.crt", Data: cert, Mode: 0o644}}))
		},
		"a link on the way swapped": swap,
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 90*24*time.Hour)
			dir := filepath.Join(t.TempDir(), "current")
			must(t, os.Symlink(filepath.Dir(w.files.CertFile), dir))
			for _, path := range []*string{&w.files.CertFile, &w.files.KeyFile, &w.files.ClientCAFile} {
				*path = filepath.Join(dir, filepath.Base(*path))
			}
			w.all[0].files = w.files
			w.run(t)
			for range 3 { // the watch follows the change
				old := w.all[0].tls.Config()
				change(t, w, dir)
				w.taken(t, old)
			}
			if n := w.text.count("level=ERROR"); n > 0 && name == "published" { // the others are not made at once
				t.Errorf("%d errors: %s", n, &w.text.text)
			}
		})
	}
}

// TestSignalLooksAtTheFiles has nothing but the signal: the files are where no watch reaches.
func TestSignalLooksAtTheFiles(t *testing.T) {
	w := newWorld(t, 90*24*time.Hour)
	signals := make(chan os.Signal)
	w.signals = signals
	done := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		defer close(done)
		w.loop(ctx, nil)
	}()
	t.Cleanup(func() { cancel(); <-done })
	for range 3 { // the first look comes by itself
		old := w.all[0].tls.Config()
		w.write(w.pair(80 * 24 * time.Hour))
		signals <- os.Interrupt
		w.taken(t, old)
	}
}

func (w *world) run(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		must(t, <-done)
	})
}

// taken waits until another configuration is in force.
func (w *world) taken(t *testing.T, old *tls.Config) {
	t.Helper()
	must(t, testenv.Eventually(t.Context(), func(context.Context) error {
		if now := w.all[0].tls.Config(); now == old || !w.all[0].ok.Load() {
			return errors.New("the old configuration is in force")
		}
		block, _ := pem.Decode(fileText(w.files.CertFile))
		if block == nil || !bytes.Equal(block.Bytes, w.all[0].leaf().Raw) {
			return errors.New("the file holds another certificate")
		}
		return nil
	}))
}

func fileText(path string) []byte {
	data, err := os.ReadFile(path)
	if err != nil {
		return []byte(fmt.Sprint(err))
	}
	return data
}
