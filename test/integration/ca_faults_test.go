package integration

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sds-server/sds-server/internal/admin"
	"github.com/sds-server/sds-server/internal/testenv"
	"github.com/sds-server/sds-server/internal/testenv/fleet"
)

// badAnswer changes the chain that the CA answers, or makes another one; blocks are its PEM blocks, the leaf first.
type badAnswer func(t *faultyCA, blocks [][]byte) ([][]byte, error)

var badAnswers = []struct { //nolint:gochecknoglobals // a table
	name   string
	rule   string
	answer badAnswer
}{
	{"leaf only", "chain_incomplete", func(_ *faultyCA, blocks [][]byte) ([][]byte, error) { return blocks[:1], nil }},
	{"reordered", "leaf_not_first", func(_ *faultyCA, blocks [][]byte) ([][]byte, error) {
		slices.Reverse(blocks)
		return blocks, nil
	}},
	{"wrong key", "key_mismatch", func(ca *faultyCA, _ [][]byte) ([][]byte, error) {
		other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		return ca.sign(x509.Certificate{DNSNames: []string{site}}, other.Public())
	}},
	{"wrong name", "san_missing", func(ca *faultyCA, blocks [][]byte) ([][]byte, error) {
		key, err := publicKey(blocks[0])
		if err != nil {
			return nil, err
		}
		return ca.sign(x509.Certificate{DNSNames: []string{"other.test.example"}}, key)
	}},
	{"expired", "expired", func(ca *faultyCA, blocks [][]byte) ([][]byte, error) {
		key, err := publicKey(blocks[0])
		if err != nil {
			return nil, err
		}
		now := time.Now()
		return ca.sign(x509.Certificate{DNSNames: []string{site}, NotBefore: now.Add(-20 * time.Minute), NotAfter: now.Add(-10 * time.Minute)}, key)
	}},
}

// TestBadAnswerOfTheCAIsRefused shows for each bad chain: it is refused by one rule, which status names; it is logged once and counted;
// both Envoys serve the old certificate on; and the next order, at a CA that has come to its senses, is served.
func TestBadAnswerOfTheCAIsRefused(t *testing.T) {
	ca := startFaultyCA(t, 24*time.Hour)
	for _, bad := range badAnswers {
		t.Run(bad.name, func(t *testing.T) {
			failures, lines := ca.failures(t), ca.lines(t, "["+bad.rule+"]")
			ca.breakWith(bad.answer)
			_, err := ca.fleet.Run(ca.Ready(), "renew", site, "--force", "--wait=issued")
			if err == nil || !strings.Contains(err.Error(), bad.rule) {
				t.Errorf("renew: got %v, want an error that names %s", err, bad.rule)
			}
			ca.expectFailure(t, bad.rule)
			if got := ca.failures(t) - failures; got != 1 {
				t.Errorf("sds_issuance_total counts %d failures, want 1", got)
			}
			if got := ca.lines(t, "["+bad.rule+"]") - lines; got != 1 {
				t.Errorf("%d lines of the log name the rule, want 1", got)
			}
			ca.expectServed(t)
			ca.breakWith(nil)
			ca.serial = *renew(ca.Ready(), t, ca.fleet, "done").Serial
			ca.expectServed(t)
			ca.expectRecovered(t)
		})
	}
	ca.noHandshakeFailed(t)
}

// TestRefusedCertificateIsOrderedAgain leaves the next try to the server: a certificate that is due is ordered again after its back-off.
func TestRefusedCertificateIsOrderedAgain(t *testing.T) {
	ca := startFaultyCA(t, 5*time.Minute)
	ca.breakWith(badAnswers[0].answer)
	// Another name makes it due. Its first back-off is life/60, 5 s of these 5 minutes.
	ca.settings.Certificates[0].Names = append(ca.settings.Certificates[0].Names, "more.test.example")
	must(t, ca.fleet.Reconfigure(ca.Ready(), ca.settings))
	ca.expectFailure(t, badAnswers[0].rule)
	ca.expectServed(t)
	ca.breakWith(nil)
	must(t, testenv.Eventually(ca.Ready(), func(ctx context.Context) error {
		s, err := ca.fleet.Secret(ctx, site)
		if err != nil {
			return err
		}
		if ca.serial == *s.Versions[0].Serial {
			return errors.New("no new certificate is stored")
		}
		ca.serial = *s.Versions[0].Serial
		return nil
	}))
	ca.expectServed(t)
	ca.expectRecovered(t)
	ca.noHandshakeFailed(t)
}

// faultyCA is a fleet whose CA answers what the test wants, and a second CA that the server trusts as much.
type faultyCA struct {
	*testenv.T
	fleet    *fleet.Fleet
	proxy    *testenv.Proxy
	settings fleet.Settings
	loads    map[string]*testenv.Load
	serial   string // what both Envoys serve

	root    *x509.Certificate
	rootPEM []byte
	key     crypto.Signer
}

// startFaultyCA starts the fleet with certificates of the given life.
func startFaultyCA(t *testing.T, life time.Duration) *faultyCA {
	t.Helper()
	e := testenv.NewT(t)
	ca := &faultyCA{T: e, loads: map[string]*testenv.Load{}, settings: fleet.Settings{
		Certificates: []fleet.Certificate{{Names: []string{site}}},
	}}
	ca.fleet, ca.proxy = startBehindProxy(e, ca.settings, func(o *fleet.Options) {
		o.Pebble.Profiles = map[string]testenv.PebbleProfile{"default": {Validity: life}}
	})
	roots, err := ca.fleet.Pebble.Roots(e.Ready())
	must(t, err)
	for group, address := range ca.fleet.HTTPS {
		ca.loads[group] = gentleLoad(e, address, roots)
	}
	s, err := ca.fleet.Secret(e.Ready(), site)
	must(t, err)
	ca.serial = *s.Versions[0].Serial
	ca.trustSecondCA(t)
	ca.expectServed(t)
	return ca
}

// trustSecondCA makes a CA and adds its root to roots_file, so that a chain of it is refused for its fault alone. From here on nothing
// may call Pebble.Root, which writes that file.
func (ca *faultyCA) trustSecondCA(t *testing.T) {
	t.Helper()
	authority, err := testenv.NewAuthority(ca.Dir, "second")
	must(t, err)
	ca.rootPEM, err = os.ReadFile(authority.File)
	must(t, err)
	pair, err := tls.LoadX509KeyPair(authority.File, strings.TrimSuffix(authority.File, ".pem")+".key")
	must(t, err)
	signer, ok := pair.PrivateKey.(crypto.Signer)
	if !ok {
		t.Fatalf("the key of the second CA is a %T", pair.PrivateKey)
	}
	ca.root, ca.key = pair.Leaf, signer
	file, err := os.OpenFile(ca.fleet.Pebble.RootsFile, os.O_APPEND|os.O_WRONLY, 0)
	must(t, err)
	_, err = file.Write(ca.rootPEM)
	must(t, errors.Join(err, file.Close()))
}

// sign returns a chain of the second CA.
func (ca *faultyCA) sign(template x509.Certificate, key crypto.PublicKey) ([][]byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 100))
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial.Add(serial, big.NewInt(2))
	if template.NotAfter.IsZero() {
		template.NotBefore, template.NotAfter = time.Now().Add(-time.Minute), time.Now().Add(time.Hour)
	}
	template.KeyUsage, template.ExtKeyUsage = x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	der, err := x509.CreateCertificate(rand.Reader, &template, ca.root, key, ca.key)
	if err != nil {
		return nil, err
	}
	return [][]byte{pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), ca.rootPEM}, nil
}

// breakWith makes the CA answer each download with the bad chain; nil ends that.
func (ca *faultyCA) breakWith(answer badAnswer) {
	if answer == nil {
		ca.proxy.SetRewrite(nil)
		return
	}
	ca.proxy.SetRewrite(func(kind testenv.Kind, resp *http.Response) error {
		if kind != testenv.KindCert {
			return nil
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			return err
		}
		var blocks [][]byte
		for block, rest := pem.Decode(body); block != nil; block, rest = pem.Decode(rest) {
			blocks = append(blocks, pem.EncodeToMemory(block))
		}
		if len(blocks) != 2 {
			return fmt.Errorf("the CA answered %d certificates, want 2", len(blocks))
		}
		bad, err := answer(ca, blocks)
		if err != nil {
			return err
		}
		testenv.ReplaceBody(resp, slices.Concat(bad...))
		return nil
	})
}

func publicKey(block []byte) (crypto.PublicKey, error) {
	decoded, _ := pem.Decode(block)
	leaf, err := x509.ParseCertificate(decoded.Bytes)
	if err != nil {
		return nil, err
	}
	return leaf.PublicKey, nil
}

// certificate is what status says.
func (ca *faultyCA) certificate(ctx context.Context) (admin.CertificateStatus, error) {
	s, err := ca.fleet.Status(ctx)
	if err != nil {
		return admin.CertificateStatus{}, err
	}
	if len(s.Certificates) != 1 {
		return admin.CertificateStatus{}, fmt.Errorf("status has %d certificates, want 1", len(s.Certificates))
	}
	return s.Certificates[0], nil
}

// expectFailure waits until status names the rule, and nothing but the rule.
func (ca *faultyCA) expectFailure(t *testing.T, rule string) {
	t.Helper()
	must(t, testenv.Eventually(ca.Ready(), func(ctx context.Context) error {
		c, err := ca.certificate(ctx)
		switch {
		case err != nil:
			return err
		case c.Error == nil:
			return errors.New("status shows no error")
		case c.State != "failing" || c.Error.Kind != "rejected" || c.Error.Attempts == 0 || !strings.Contains(c.Error.Message, "["+rule+"]"):
			return fmt.Errorf("status shows state %s and error %+v, want failing, rejected, and [%s]", c.State, *c.Error, rule)
		}
		return nil
	}))
}

// expectRecovered waits until status shows no error.
func (ca *faultyCA) expectRecovered(t *testing.T) {
	t.Helper()
	must(t, testenv.Eventually(ca.Ready(), func(ctx context.Context) error {
		c, err := ca.certificate(ctx)
		switch {
		case err != nil:
			return err
		case c.State != "ok" || c.Error != nil || *c.Serial != ca.serial:
			return fmt.Errorf("status shows state %s, serial %s, error %v, want ok and serial %s", c.State, *c.Serial, c.Error, ca.serial)
		}
		return nil
	}))
}

// expectServed waits until each Envoy has served the certificate, and fails where one serves another one afterwards.
func (ca *faultyCA) expectServed(t *testing.T) {
	t.Helper()
	for group, load := range ca.loads {
		if _, err := load.WaitSerial(ca.Ready(), ca.serial); err != nil {
			t.Fatalf("%s: %v", group, err)
		}
		leaf, _, err := testenv.Handshake(ca.Ready(), ca.fleet.HTTPS[group], site, nil)
		must(t, err)
		if got := testenv.Serial(leaf); got != ca.serial {
			t.Errorf("%s serves serial %s, want %s", group, got, ca.serial)
		}
	}
}

func (ca *faultyCA) noHandshakeFailed(t *testing.T) {
	t.Helper()
	for group, load := range ca.loads {
		load.Stop()
		if load.Failed() > 0 || load.Made() == 0 {
			t.Errorf("%s: %d handshakes made, %d failed: %v", group, load.Made(), load.Failed(), load.Errors())
		}
	}
}

// failures is how many orders the server has counted as failed.
func (ca *faultyCA) failures(t *testing.T) int {
	t.Helper()
	return metric(ca.Ready(), t, ca.fleet, `sds_issuance_total{issuer="pebble",kind="rejected",result="failure"}`)
}

// lines is how many lines of the server's log contain text.
func (ca *faultyCA) lines(t *testing.T, text string) int {
	t.Helper()
	log, err := ca.fleet.Server.Log()
	must(t, err)
	n := 0
	for line := range strings.Lines(log) {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}

// metric returns the value of one series; 0 where it does not exist.
func metric(ctx context.Context, t testing.TB, f *fleet.Fleet, series string) int {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+f.Metrics+"/metrics", http.NoBody)
	must(t, err)
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	must(t, err)
	body, err := io.ReadAll(resp.Body)
	must(t, errors.Join(err, resp.Body.Close()))
	for line := range strings.Lines(string(body)) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), series+" "); ok {
			n, err := strconv.Atoi(value)
			must(t, err)
			return n
		}
	}
	return 0
}

// TestDeadCAStopsNothing starts the server while its CA is dead: Envoys that start then get what is stored. A CA that comes back
// without its memory issues again.
func TestDeadCAStopsNothing(t *testing.T) {
	e := testenv.NewT(t)
	port := e.Port()
	f := startFleet(e, one(false), func(o *fleet.Options) { o.Pebble.Port = port })
	roots, err := f.Pebble.Roots(e.Ready())
	must(t, err)
	s, err := f.Secret(e.Ready(), site)
	must(t, err)
	old := *s.Versions[0].Serial

	must(t, f.Pebble.Kill())
	must(t, f.Server.Stop())
	must(t, f.StartServer(e.Ready())) // waits for /readyz
	for group := range f.Envoys {
		must(t, f.Envoys[group].Stop())
	}
	must(t, f.StartEnvoys(e.Ready(), site))
	loads := map[string]*testenv.Load{}
	for group, address := range f.HTTPS {
		loads[group] = gentleLoad(e, address, roots)
		if _, err := loads[group].WaitSerial(e.Ready(), old); err != nil {
			t.Fatalf("%s, started while the CA is dead: %v", group, err)
		}
	}

	if _, err := f.Run(e.Ready(), "renew", site, "--force", "--wait=issued"); err == nil {
		t.Error("a renewal at a dead CA succeeded")
	}
	must(t, testenv.Eventually(e.Ready(), func(ctx context.Context) error {
		s, err := f.Status(ctx)
		if err != nil {
			return err
		}
		if c := s.Certificates[0]; c.Error == nil || c.Error.Kind != "temporary" || s.Issuers[0].Up {
			return fmt.Errorf("status shows error %v and issuer up %v, want a temporary one and down", c.Error, s.Issuers[0].Up)
		}
		return nil
	}))
	must(t, f.Server.WaitHTTP(e.Ready(), "http://"+f.Metrics+"/readyz"))
	for group, load := range loads {
		load.Stop() // the new Pebble has another root
		if load.Failed() > 0 {
			t.Errorf("%s: %d handshakes made, %d failed: %v", group, load.Made(), load.Failed(), load.Errors())
		}
	}

	must(t, f.StartPebble(e.Ready()))
	r := renew(e.Ready(), t, f, "done")
	for group := range f.Envoys {
		served(e.Ready(), t, f, group, *r.Serial)
	}
	must(t, f.Server.WaitLog(e.Ready(), "account registered"))
}
