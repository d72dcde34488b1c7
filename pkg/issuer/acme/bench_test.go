package acme

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
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
			stockOrder(b, client)
		}
		b.ReportMetric(float64(b.Elapsed().Milliseconds())/float64(b.N), "ms/certificate")
	})
}

// BenchmarkOrders measures how many certificates a second come from a Pebble that validates without a sleep, and how many requests each of
// them takes, with 1 and with 16 orders under way at once, beside lego's own driver. A budget is asked, as in the server.
func BenchmarkOrders(b *testing.B) {
	for _, workers := range []int{1, 16} {
		b.Run(fmt.Sprintf("sds-server/workers=%d", workers), func(b *testing.B) {
			f := newFixture(b, testenv.PebbleOptions{})
			l := &ledger{}
			i := f.counted(l, func(o *Options) { o.Directory = f.pebble.Directory })
			f.obtain(i, request("a.example"))
			f.accept(request("a.example"))
			before := f.requests()
			var n atomic.Int64
			b.ResetTimer()
			var group sync.WaitGroup
			for w := range workers {
				group.Go(func() {
					for {
						one := n.Add(1)
						if one > int64(b.N) {
							return
						}
						r := request(fmt.Sprintf("n%d.example", one))
						r.Secret = fmt.Sprintf("worker-%d", w)
						if _, err := i.Obtain(b.Context(), r); err != nil {
							b.Errorf("order %d: %v", one, err)
							return
						}
						f.accept(r)
					}
				})
			}
			group.Wait()
			b.StopTimer()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "orders/s")
			b.ReportMetric((f.requests()-before)/float64(b.N), "requests/order")
		})
	}
	b.Run("stock lego/workers=1", func(b *testing.B) {
		f := newFixture(b, testenv.PebbleOptions{})
		client := stockClient(b, f)
		for b.Loop() {
			stockOrder(b, client)
		}
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "orders/s")
	})
}

// requests returns how many were counted.
func (f *fixture) requests() float64 {
	f.Helper()
	families, err := f.registry.Gather()
	if err != nil {
		f.Fatal(err)
	}
	sum := 0.0
	for _, family := range families {
		for _, m := range family.GetMetric() {
			sum += m.GetCounter().GetValue()
		}
	}
	return sum
}

// stockOrder obtains one certificate with a new key.
func stockOrder(b *testing.B, client *lego.Client) {
	b.Helper()
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
	if _, err = client.Certificate.ObtainForCSR(certificate.ObtainForCSRRequest{CSR: csr, Bundle: true, Profile: profile}); err != nil {
		b.Fatal(err)
	}
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
