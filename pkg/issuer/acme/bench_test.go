package acme

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/go-acme/lego/v4/certificate"
	"github.com/go-acme/lego/v4/lego"
	"github.com/go-acme/lego/v4/registration"

	"github.com/sds-server/sds-server/internal/testenv"
)

// BenchmarkObtainHTTP01 measures a certificate for one name from a Pebble that validates without a sleep, by this package and by
// lego's own driver. Both talk to Pebble directly and make a new ECDSA key each time.
func BenchmarkObtainHTTP01(b *testing.B) {
	b.Run("sds-server", func(b *testing.B) {
		f := newFixture(b, testenv.PebbleOptions{})
		i := f.issuer(func(o *Options) { o.Directory = f.pebble.Directory })
		f.obtain(i, request("a.example"))
		f.accept(request("a.example"))
		for b.Loop() {
			f.obtain(i, request("a.example"))
			f.accept(request("a.example"))
		}
		b.ReportMetric(float64(b.Elapsed().Milliseconds())/float64(b.N), "ms/certificate")
	})
	b.Run("stock lego", func(b *testing.B) {
		f := newFixture(b, testenv.PebbleOptions{})
		client := stockClient(b, f)
		for b.Loop() {
			key, err := newKey("ecdsa-p256")
			if err != nil {
				b.Fatal(err)
			}
			der, err := newCSR(key, request("a.example"))
			if err != nil {
				b.Fatal(err)
			}
			csr, err := x509.ParseCertificateRequest(der)
			if err != nil {
				b.Fatal(err)
			}
			_, err = client.Certificate.ObtainForCSR(certificate.ObtainForCSRRequest{CSR: csr, Bundle: true, Profile: profile})
			if err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(b.Elapsed().Milliseconds())/float64(b.N), "ms/certificate")
	})
}

// stockClient is lego as its documentation shows it, with our responder as its provider.
func stockClient(b *testing.B, f *fixture) *lego.Client {
	b.Helper()
	key, err := newKey("ecdsa-p256")
	if err != nil {
		b.Fatal(err)
	}
	user := &stockUser{key: key}
	config := lego.NewConfig(user)
	config.CADirURL = f.pebble.Directory
	config.HTTPClient = &http.Client{
		Timeout:   30 * time.Second,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: f.pebble.Authority.Pool, MinVersion: tls.VersionTLS12}},
	}
	client, err := lego.NewClient(config)
	if err != nil {
		b.Fatal(err)
	}
	user.registration, err = client.Registration.Register(registration.RegisterOptions{TermsOfServiceAgreed: true})
	if err := errors.Join(err, client.Challenge.SetHTTP01Provider(stockProvider{f.responder})); err != nil {
		b.Fatal(err)
	}
	return client
}

type stockUser struct {
	key          crypto.Signer
	registration *registration.Resource
}

func (*stockUser) GetEmail() string                          { return "ops@example.com" }
func (u *stockUser) GetRegistration() *registration.Resource { return u.registration }
func (u *stockUser) GetPrivateKey() crypto.PrivateKey        { return u.key }

type stockProvider struct{ responder *Responder }

func (p stockProvider) Present(domain, token, keyAuth string) error {
	p.responder.Present(domain, token, keyAuth)
	return nil
}

func (p stockProvider) CleanUp(_, token, _ string) error {
	p.responder.CleanUp(token)
	return nil
}
