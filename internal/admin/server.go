package admin

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os/user"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sds-server/sds-server/internal/identity"
	"github.com/sds-server/sds-server/pkg/cache"
	"github.com/sds-server/sds-server/pkg/issuer"
	"github.com/sds-server/sds-server/pkg/rollout"
	"github.com/sds-server/sds-server/pkg/sds"
	"github.com/sds-server/sds-server/pkg/secret"
)

// maxBody bounds a request: an imported chain and key are far smaller.
const maxBody = 1 << 20

// Live is what a reload changes.
type Live struct {
	Config       ConfigStatus
	Ready        bool
	Groups       []Group
	Issuers      []string
	Certificates []string
	SDS          []SDSListener
	Challenge    string // address of the HTTP-01 responder; empty if there is none
}

// Group is a configured node group.
type Group struct {
	Name       string
	Identities []string
	Allows     func(secret string) bool
}

// SDSListener is a configured SDS listener.
type SDSListener struct {
	Address string // socket path, or host:port
	Unix    bool
	Plain   bool     // loopback TCP without TLS
	Groups  []string // empty: all
	Names   []string // DNS names and addresses in the server's certificate
}

// Options configure a Server. Identities may be nil; then `identity issue` answers that there is no channel CA.
type Options struct {
	Version    string
	Cache      *cache.Cache
	Rollout    *rollout.Controller
	Issuer     *issuer.Loop
	SDS        *sds.Server
	Identities *identity.Authority
	Live       func() Live
	// Allowed decides about peers besides root and our own user.
	Allowed func(uid uint32) bool
	Log     *slog.Logger
}

// Server answers the operator API.
type Server struct {
	Options
	http *http.Server
}

// New returns a server that is not listening yet.
func New(opts Options) *Server {
	s := &Server{Options: opts}
	mux := http.NewServeMux()
	mux.Handle("GET /v1/status", s.read(s.status))
	mux.Handle("GET /v1/nodes", s.read(s.nodes))
	mux.Handle("GET /v1/secrets", s.read(s.secrets))
	mux.Handle("GET /v1/secrets/{name}", s.read(s.secret))
	mux.Handle("GET /v1/snapshots", s.read(s.snapshots))
	mux.Handle("GET /v1/snapshots/{number}", s.read(s.snapshot))
	mux.Handle("GET /v1/snapshots/{number}/diff/{other}", s.read(s.diff))
	mux.Handle("GET /v1/rollouts", s.read(s.rollouts))
	mux.Handle("GET /v1/bootstrap/{group}", s.read(s.bootstrap))
	mux.Handle("POST /v1/secrets", s.act(s.importSecret))
	mux.Handle("POST /v1/secrets/{name}/release", s.act(s.release))
	mux.Handle("POST /v1/promote", s.act(s.promote))
	mux.Handle("POST /v1/rollback", s.act(s.rollback))
	mux.Handle("POST /v1/identity", s.act(s.issueIdentity))
	mux.HandleFunc("POST /v1/renew", s.renew)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		answerError(w, fail(http.StatusNotFound, "no such operation: "+r.Method+" "+r.URL.Path, "command and server may be of different versions"))
	})
	s.http = &http.Server{
		Handler: s.authenticate(mux), ConnContext: withPeer, ReadHeaderTimeout: 10 * time.Second,
		ErrorLog: slog.NewLogLogger(opts.Log.Handler(), slog.LevelDebug),
	}
	return s
}

// Serve answers on l until ctx ends, then lets requests under way finish for a short time.
func (s *Server) Serve(ctx context.Context, l net.Listener) error { return ServeHTTP(ctx, s.http, l) }

type peerKey struct{}

// peer is who is at the other end of the socket.
type peer struct {
	uid uint32
	err error
}

func (p peer) String() string {
	id := strconv.FormatUint(uint64(p.uid), 10)
	if u, err := user.LookupId(id); err == nil {
		return u.Username
	}
	return "uid=" + id
}

// withPeer reads the credentials that the kernel vouches for (unix(7), SO_PEERCRED).
func withPeer(ctx context.Context, c net.Conn) context.Context {
	p := peer{err: errors.New("not a Unix socket")}
	if u, ok := c.(*net.UnixConn); ok {
		p = credentials(u)
	}
	return context.WithValue(ctx, peerKey{}, p)
}

func credentials(c *net.UnixConn) (p peer) {
	raw, err := c.SyscallConn()
	if err != nil {
		return peer{err: err}
	}
	err = raw.Control(func(fd uintptr) {
		var cred *unix.Ucred
		if cred, p.err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); p.err == nil {
			p.uid = cred.Uid
		}
	})
	if err != nil {
		p.err = err
	}
	return p
}

func peerOf(ctx context.Context) peer {
	p, _ := ctx.Value(peerKey{}).(peer)
	return p
}

func (s *Server) authenticate(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p := peerOf(r.Context())
		if p.err != nil || !s.Allowed(p.uid) {
			answerError(w, fail(http.StatusForbidden, "permission denied for "+p.String(), "run the command as root or as the server's user, or add the user to admin.users"))
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		next.ServeHTTP(w, r)
	})
}

// failure is an error with the answer's status code.
type failure struct {
	answer Error
	code   int
}

func (f *failure) Error() string { return f.answer.Message }

func fail(code int, message, hint string) error {
	return &failure{answer: Error{Message: message, Hint: hint}, code: code}
}

// read answers with what get returns.
func (s *Server) read(get func(*http.Request) (any, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		v, err := get(r)
		if err != nil {
			answerError(w, err)
			return
		}
		answer(w, v)
	})
}

// act is read for what changes something: it leaves a line in the log.
func (s *Server) act(do func(*http.Request) (any, error)) http.Handler {
	return s.read(func(r *http.Request) (any, error) {
		v, err := do(r)
		log := s.Log.With("operation", r.URL.Path, "by", peerOf(r.Context()).String())
		if err != nil {
			log.WarnContext(r.Context(), "operator command refused", "err", err)
			return nil, err
		}
		log.InfoContext(r.Context(), "operator command", "result", v)
		return v, nil
	})
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // a peer that went away has no use for an error
}

func answerError(w http.ResponseWriter, err error) {
	code, body := describe(err)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(body) // as above
}

// describe turns an error into an answer, in one place.
func describe(err error) (int, *Error) {
	var f *failure
	var refused *secret.Error
	switch {
	case errors.As(err, &f):
		return f.code, &f.answer
	case errors.As(err, &refused):
		return http.StatusUnprocessableEntity, &Error{Message: err.Error(), Hint: refused.Hint}
	case errors.Is(err, rollout.ErrHeld), errors.Is(err, rollout.ErrBehind):
		return http.StatusConflict, &Error{Message: err.Error(), Hint: "`secrets release NAME` lets a held version go; `promote --rollout ID` begins its rollout again"}
	case errors.Is(err, cache.ErrNoSnapshot), errors.Is(err, rollout.ErrNoRollout):
		return http.StatusNotFound, &Error{Message: err.Error(), Hint: "see `snapshots list` and `rollout history`"}
	default:
		return http.StatusConflict, &Error{Message: err.Error()}
	}
}

// body decodes a request strictly.
func body(r *http.Request, into any) error {
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return fail(http.StatusBadRequest, "request: "+err.Error(), "command and server may be of different versions")
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return fail(http.StatusBadRequest, "request: more than one value", "")
	}
	return nil
}
