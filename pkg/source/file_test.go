package source

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/sds-server/sds-server/internal/testenv"
	"github.com/sds-server/sds-server/pkg/secret"
)

// newCA makes the certificate of a CA.
func newCA(t testing.TB, begin, end time.Time) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA " + rand.Text()}, NotBefore: begin, NotAfter: end,
		BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func goodCA(t testing.TB) []byte {
	t.Helper()
	return newCA(t, time.Now().Add(-time.Hour), time.Now().Add(1000*time.Hour))
}

func write(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// watched is a world whose Source watches real files.
func watched(t *testing.T, c Config) *world {
	t.Helper()
	w := newWorld(t)
	w.watch = true
	w.start(c)
	return w
}

// eventually polls what both groups serve under a name.
func (w *world) eventually(name, want string) {
	w.t.Helper()
	err := testenv.Eventually(w.t.Context(), func(context.Context) error {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.move()
		s := w.groups[0][name]
		if s == nil || w.groups[1][name] != s {
			return errors.New("not served")
		}
		if got := string(s.Generic()) + string(s.ChainPEM()); got != want {
			return fmt.Errorf("serves %q, want %q", got, want)
		}
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

// TestFilesAreWatched changes a file in each way in which files are changed.
func TestFilesAreWatched(t *testing.T) {
	for _, row := range []struct {
		name   string
		make   func(t *testing.T, dir, content string) // the first time
		change func(t *testing.T, dir, content string)
	}{
		{"in place", inPlace, inPlace},
		{"rename", inPlace, func(t *testing.T, dir, content string) {
			write(t, filepath.Join(dir, "new"), []byte(content))
			if err := os.Rename(filepath.Join(dir, "new"), filepath.Join(dir, "token")); err != nil {
				t.Fatal(err)
			}
		}},
		{"symbolic link to a directory, as Kubernetes does", mounted, mounted},
		{"gone and back", inPlace, func(t *testing.T, dir, content string) {
			if err := os.Remove(filepath.Join(dir, "token")); err != nil {
				t.Fatal(err)
			}
			inPlace(t, dir, content)
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			row.make(t, dir, "0")
			w := watched(t, Config{Generics: []Generic{{Name: "token", File: filepath.Join(dir, "token")}}})
			w.eventually("token", "0")
			for n := range 4 {
				content := fmt.Sprint(n + 1)
				row.change(t, dir, content)
				w.eventually("token", content)
			}
			w.stop()
			if got := w.accepted("token"); got != 5 {
				t.Errorf("%d versions were handed on, want 5", got)
			}
		})
	}
}

func inPlace(t *testing.T, dir, content string) {
	t.Helper()
	write(t, filepath.Join(dir, "token"), []byte(content))
}

func mounted(t *testing.T, dir, content string) {
	t.Helper()
	version, err := os.MkdirTemp(dir, "..v")
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(version, "token"), []byte(content))
	if err := os.Symlink(filepath.Base(version), filepath.Join(dir, "..new")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(dir, "..new"), filepath.Join(dir, "..data")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("..data/token", filepath.Join(dir, "token")); err != nil && !errors.Is(err, os.ErrExist) {
		t.Fatal(err)
	}
}

func TestConfigurationIsTakenUpAtOnce(t *testing.T) {
	dir := t.TempDir()
	inPlace(t, dir, "content")
	w := watched(t, Config{})
	w.Set(Config{Generics: []Generic{{Name: "late", File: filepath.Join(dir, "token")}}})
	w.eventually("late", "content")
	inPlace(t, dir, "other")
	w.eventually("late", "other")
	if st := w.status("late"); st.Kind != secret.KindGenericSecret || st.Err != nil {
		t.Errorf("status %+v", st)
	}
}

// one is a Source of one CA file in a bubble, in which every look is due to time alone.
func one(t *testing.T) (w *world, path string) {
	t.Helper()
	w, path = newWorld(t), filepath.Join(t.TempDir(), "ca.pem")
	return w, path
}

func caConfig(paths ...string) Config {
	return Config{ValidationContexts: []ValidationContext{{Name: "ca", Files: paths}}}
}

// Something else may be due while a file is being written.
func TestContentHasToStandAlsoWhereSomethingElseIsDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, path := one(t)
		write(t, path, goodCA(t))
		w.start(caConfig(path))
		w.stop()
		write(t, path, goodCA(t))
		found := time.Now()
		for _, row := range []struct {
			at   time.Duration
			want int
		}{{0, 1}, {1, 1}, {debounce - 1, 1}, {debounce, 2}} {
			w.look(t.Context(), found.Add(row.at))
			if got := w.accepted("ca"); got != row.want {
				t.Errorf("after %v: %d contents were handed on, want %d", row.at, got, row.want)
			}
		}
	})
}

func TestBadFileKeepsTheLastGoodAndIsLoggedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, path := one(t)
		good := goodCA(t)
		write(t, path, good)
		w.start(caConfig(path))
		for n, bad := range map[string][]byte{
			"cut off":  good[:len(good)/2],
			"empty":    nil,
			"junk":     []byte("junk"),
			"a key":    append(good, "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"...),
			"all over": newCA(t, time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)),
		} {
			write(t, path, bad)
			before := strings.Count(w.log.String(), "level=ERROR")
			w.wait(10 * lookInterval)
			if got := string(w.served("ca").ChainPEM()); got != string(good) {
				t.Errorf("%s: something else is served", n)
			}
			st := w.status("ca")
			if st.Err == nil || len(secret.Rules(st.Err)) == 0 || st.Version == "" {
				t.Errorf("%s: status %+v, want an error with a rule", n, st)
			}
			if got := strings.Count(w.log.String(), "level=ERROR") - before; got != 1 {
				t.Errorf("%s: %d errors in the log, want 1:\n%s", n, got, w.log)
			}
			w.expectMetric("sds_source_last_load_successful", 0)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		w.wait(2 * lookInterval)
		if st := w.status("ca"); !errors.Is(st.Err, os.ErrNotExist) || string(w.served("ca").ChainPEM()) != string(good) {
			t.Errorf("without the file: status %+v", st)
		}
		write(t, path, good)
		w.wait(2 * lookInterval)
		if st := w.status("ca"); st.Err != nil || w.accepted("ca") != 1 {
			t.Errorf("good again: status %+v, %d versions handed on", st, w.accepted("ca"))
		}
		w.expectMetric("sds_source_last_load_successful", 1)
	})
}

// expectMetric compares the one series of a metric.
func (w *world) expectMetric(name string, want float64) {
	w.t.Helper()
	text := fmt.Sprintf("%s{secret=%q} %v\n", name, "ca", want)
	families, err := w.registry.Gather()
	if err != nil {
		w.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			if got := f.GetMetric()[0].GetGauge().GetValue(); got != want {
				w.t.Errorf("got %s %v, want %s", name, got, text)
			}
			return
		}
	}
	w.t.Errorf("no metric %s", name)
}

// TestContentThatDoesNotStandIsNotTakenUp writes a file again before it was found twice.
func TestContentThatDoesNotStandIsNotTakenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, path := one(t)
		first, second, last := goodCA(t), goodCA(t), goodCA(t)
		write(t, path, first)
		w.start(caConfig(path))
		synctest.Wait()
		write(t, path, second)
		<-time.After(lookInterval + debounce/2) // found once
		write(t, path, last)
		w.wait(2 * lookInterval)
		if got := string(w.served("ca").ChainPEM()); got != string(last) || w.accepted("ca") != 2 {
			t.Errorf("%d versions were handed on, want the first and the last", w.accepted("ca"))
		}
	})
}

// TestClockMakesAFileGood has CA certificates that begin later.
func TestClockMakesAFileGood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, path := one(t)
		later := newCA(t, time.Now().Add(time.Hour), time.Now().Add(2*time.Hour))
		write(t, path, later)
		w.start(caConfig(path))
		if st := w.status("ca"); st.Err == nil || st.Version != "" {
			t.Errorf("status %+v, want that it is not valid yet", st)
		}
		w.wait(time.Hour + 2*lookInterval)
		if got := string(w.served("ca").ChainPEM()); got != string(later) {
			t.Error("something else is served")
		}
		w.expectMetric("sds_validation_context_not_after_timestamp_seconds", float64(w.served("ca").NotAfter().Unix()))
	})
}

func TestHeldFileWaitsForAnOperator(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, path := one(t)
		write(t, path, goodCA(t))
		w.start(caConfig(path))
		w.hold("ca")
		w.restart(caConfig(path)) // the server comes back while the version is held
		w.wait(10 * lookInterval)
		if st := w.status("ca"); st.Held == "" || st.Err != nil {
			t.Errorf("status %+v, want held", st)
		}
		if got := strings.Count(w.log.String(), "level=WARN"); got != 1 {
			t.Errorf("%d warnings, want 1:\n%s", got, w.log)
		}
		w.release()
		w.wait(2 * lookInterval)
		if st := w.status("ca"); st.Held != "" {
			t.Errorf("status %+v, want that nothing holds it", st)
		}
	})
}

func TestFailedStoreIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, path := one(t)
		content := goodCA(t)
		write(t, path, content)
		w.fail = errors.New("disk full")
		w.start(caConfig(path))
		w.wait(3 * lookInterval)
		if st := w.status("ca"); st.Err == nil || strings.Count(w.log.String(), "disk full") != 1 {
			t.Errorf("status %+v, log:\n%s", st, w.log)
		}
		w.mu.Lock()
		w.fail = nil
		w.mu.Unlock()
		w.wait(2 * lookInterval)
		if got := string(w.served("ca").ChainPEM()); got != string(content) {
			t.Error("it is not served")
		}
	})
}

// TestSecretThatIsServedNowhereIsHandedOnAgain: its name was taken out of the configuration, and came back before this package noticed.
func TestSecretThatIsServedNowhereIsHandedOnAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, path := one(t)
		content := goodCA(t)
		write(t, path, content)
		w.start(caConfig(path))
		w.remove("ca")
		w.wait(2 * lookInterval)
		if got := string(w.served("ca").ChainPEM()); got != string(content) {
			t.Error("it is not served again")
		}
	})
}

func TestSeveralFilesAreOneSecret(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, path := one(t)
		other := path + ".2"
		write(t, path, goodCA(t))
		write(t, other, goodCA(t))
		w.start(caConfig(path, other))
		if got := len(w.served("ca").Chain()); got != 2 {
			t.Errorf("%d certificates, want 2", got)
		}
		w.Set(caConfig(other))
		w.wait(time.Second)
		if got := len(w.served("ca").Chain()); got != 1 {
			t.Errorf("without the first file: %d certificates, want 1", got)
		}
		w.Set(Config{})
		w.wait(time.Second)
		if got := w.Status(); len(got) != 0 {
			t.Errorf("without the secret: status %+v", got)
		}
		if n := testutil.CollectAndCount(newCollector(w.Source)); n != 0 {
			t.Errorf("without the secret: %d series", n)
		}
	})
}

func TestPrivateFileThatStrangersCanReadIsNotTakenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, path := one(t)
		write(t, path, []byte("token"))
		open := errors.New("open to everyone")
		w.check = func(string) error { return open }
		w.start(Config{Generics: []Generic{{Name: "token", File: path}}, ValidationContexts: []ValidationContext{{Name: "ca", Files: []string{path}}}})
		if st := w.status("token"); !errors.Is(st.Err, open) || w.accepted("token") != 0 {
			t.Errorf("status %+v", st)
		}
		if st := w.status("ca"); errors.Is(st.Err, open) { // CA certificates are public
			t.Errorf("status %+v", st)
		}
	})
}

func TestWhatIsNoFileIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, path := one(t)
		if err := os.Mkdir(path, 0o700); err != nil {
			t.Fatal(err)
		}
		w.start(caConfig(path))
		if st := w.status("ca"); st.Err == nil || !strings.Contains(st.Err.Error(), "not a regular file") {
			t.Errorf("status %+v", st)
		}
	})
}
