package app

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/sds-server/sds-server/internal/admin"
	"github.com/sds-server/sds-server/internal/config"
	"github.com/sds-server/sds-server/pkg/sds"
	"github.com/sds-server/sds-server/pkg/store"
)

// doors are the open listeners.
type doors struct {
	sds       []sds.Listener
	admin     net.Listener
	http      net.Listener
	challenge net.Listener // nil: HTTP-01 is not configured
}

// listen opens every listener, or none.
func (s *server) listen(ctx context.Context, cfg *config.Config) (d *doors, err error) {
	d = &doors{}
	defer func() {
		if err != nil {
			d.close()
		}
	}()
	for _, l := range cfg.XDS.Listeners {
		one, err := openSDS(ctx, l)
		if err != nil {
			return d, err
		}
		d.sds = append(d.sds, one)
	}
	path, _ := socketPath(cfg.Admin.Address)
	if d.admin, err = sds.ListenUnix(ctx, path, s.adminMode(cfg), -1, -1); err != nil {
		return d, fmt.Errorf("admin.address: %w", err)
	}
	if d.http, err = listenTCP(ctx, "http.address", cfg.HTTP.Address); err != nil {
		return d, err
	}
	if c := cfg.Challenges.HTTP01; c != nil {
		if d.challenge, err = listenTCP(ctx, "challenges.http-01.address", c.Address); err != nil {
			return d, err
		}
	}
	return d, nil
}

func (d *doors) close() {
	for _, l := range d.sds {
		_ = l.Close() // the error that led here is the one to show
	}
	for _, l := range []net.Listener{d.admin, d.http, d.challenge} {
		if l != nil {
			_ = l.Close()
		}
	}
}

func openSDS(ctx context.Context, l config.Listener) (sds.Listener, error) {
	out := sds.Listener{Groups: l.Groups}
	if path, ok := socketPath(l.Address); ok {
		uid, gid, err := -1, -1, error(nil)
		if l.Owner != "" {
			if uid, gid, err = config.ParseOwner(l.Owner); err != nil {
				return out, fmt.Errorf("xds listener %s: owner: %w", l.Address, err)
			}
		}
		out.Unix = true
		if out.Listener, err = sds.ListenUnix(ctx, path, l.Mode, uid, gid); err != nil {
			return out, fmt.Errorf("xds listener: %w", err)
		}
		return out, nil
	}
	var err error
	if l.TLS != nil {
		if out.TLS, err = sds.TLSConfig(l.TLS.CertFile, l.TLS.KeyFile, l.TLS.ClientCAFile); err != nil {
			return out, fmt.Errorf("xds listener %s: %w", l.Address, err)
		}
	}
	out.Listener, err = listenTCP(ctx, "xds.listeners", l.Address)
	return out, err
}

func listenTCP(ctx context.Context, key, address string) (net.Listener, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", address)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, &store.Fault{Path: key, Message: "address " + address + " is in use", Hint: "is another sds-server running? `ss -ltnp` shows who listens"}
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	return l, nil
}

// adminMode is 0600, or 0660 where users besides our own are let in; who they are is decided by SO_PEERCRED.
func (s *server) adminMode(*config.Config) os.FileMode { return 0o600 }

// operator reports whether a peer of the admin socket may act: root, our own user, or one of admin.users.
func (s *server) operator(uid uint32) bool {
	if uid == 0 || int64(uid) == int64(os.Getuid()) {
		return true
	}
	return slices.ContainsFunc(s.config.Load().Admin.Users, func(name string) bool {
		id, err := config.ParseUser(name)
		return err == nil && int64(id) == int64(uid)
	})
}

func (s *server) httpServer() *http.Server {
	return admin.HTTP(admin.HTTPOptions{
		Gatherer: s.registry, Hosts: s.config.Load().HTTP.Hosts, Log: s.log.With("part", "http"),
		Ready: func() error {
			if !s.ready.Load() {
				return errors.New("not ready: starting or stopping")
			}
			return nil
		},
	})
}

// challengeServer answers HTTP-01: small requests from the CA's validators, by way of Envoy.
func (s *server) challengeServer() *http.Server {
	return &http.Server{
		Handler: s.responder, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 5 * time.Second, WriteTimeout: 5 * time.Second,
		MaxHeaderBytes: 16 << 10,
	}
}

// certificateNames are the names that a listener's certificate is valid for.
func certificateNames(file, key string) []string {
	pair, err := tls.LoadX509KeyPair(file, key)
	if err != nil {
		return nil // the listener opened with it; it was replaced by something broken since
	}
	leaf, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		return nil
	}
	names := slices.Clone(leaf.DNSNames)
	for _, ip := range leaf.IPAddresses {
		names = append(names, ip.String())
	}
	return names
}
