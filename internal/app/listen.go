package app

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
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
	for i, l := range cfg.XDS.Listeners {
		one, err := s.openSDS(ctx, fmt.Sprintf("xds.listeners[%d]", i), l)
		if err != nil {
			return d, err
		}
		d.sds = append(d.sds, one)
	}
	if d.admin, err = s.openAdmin(ctx, cfg); err != nil {
		return d, err
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

func (s *server) openSDS(ctx context.Context, key string, l config.Listener) (sds.Listener, error) {
	out := sds.Listener{Groups: l.Groups}
	if path, ok := socketPath(l.Address); ok {
		uid, gid, err := -1, -1, error(nil)
		if l.Owner != "" {
			if uid, gid, err = config.ParseOwner(l.Owner); err != nil {
				return out, fmt.Errorf("%s.owner: %w", key, err)
			}
		}
		out.Unix = true
		if out.Listener, err = sds.ListenUnix(ctx, path, l.Mode, uid, gid); err != nil {
			return out, socketFault(key+".address", err)
		}
		return out, nil
	}
	var err error
	if l.TLS != nil {
		if out.Channel, err = s.channels.open(l.Address, *l.TLS); err != nil {
			return out, fmt.Errorf("%s.tls: %w", key, err)
		}
	}
	out.Listener, err = listenTCP(ctx, key+".address", l.Address)
	return out, err
}

func (s *server) openAdmin(ctx context.Context, cfg *config.Config) (net.Listener, error) {
	path, _ := socketPath(cfg.Admin.Address)
	others := len(cfg.Admin.Users) > 0
	l, err := admin.Listen(ctx, path, others, operators(cfg))
	if err != nil {
		return nil, socketFault("admin.address", err)
	}
	if dir := admin.Closed(path); others && dir != "" {
		s.log.WarnContext(ctx, "admin.users cannot reach the admin socket: a directory above it does not let them through", "directory", dir)
	}
	return l, nil
}

// socketFault says what to do about a Unix socket that cannot be opened.
func socketFault(key string, err error) error {
	fault := &store.Fault{Path: key, Message: err.Error(), Hint: "choose a path in a directory of its own that the server may write to"}
	switch {
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
	case errors.Is(err, fs.ErrNotExist):
		fault.Hint = "make the directory above the socket's own one"
	default:
		fault.Hint = "is another sds-server running? stop it, or choose another path"
	}
	return fault
}

func listenTCP(ctx context.Context, key, address string) (net.Listener, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", address)
	if err == nil {
		return l, nil
	}
	fault := &store.Fault{Path: key, Message: "cannot listen on " + address + ": " + innermost(err).Error()}
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		fault.Message, fault.Hint = "address "+address+" is in use", "is another sds-server running? `ss -ltnp` shows who listens"
	case errors.Is(err, fs.ErrPermission):
		fault.Hint = "a port under 1024 needs CAP_NET_BIND_SERVICE, or choose a higher one"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		fault.Hint = "this machine has no such address; `ip address` shows what it has"
	}
	return nil, fault
}

// innermost is the cause that has no further one.
func innermost(err error) error {
	for {
		next := errors.Unwrap(err)
		if next == nil {
			return err
		}
		err = next
	}
}

// operators are root, our own user, and admin.users, which need a restart to change.
func operators(cfg *config.Config) func(uid uint32) bool {
	allowed := map[int64]bool{0: true, int64(os.Geteuid()): true}
	for _, name := range cfg.Admin.Users {
		if id, err := config.ParseUser(name); err == nil { // validated when it was loaded; a user may be gone since
			allowed[int64(id)] = true
		}
	}
	return func(uid uint32) bool { return allowed[int64(uid)] }
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
		MaxHeaderBytes: 16 << 10, ErrorLog: slog.NewLogLogger(s.log.With("part", "http-01").Handler(), slog.LevelDebug),
	}
}
