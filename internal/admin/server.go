package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/sds-server/sds-server/internal/audit"
	"github.com/sds-server/sds-server/internal/identity"
	"github.com/sds-server/sds-server/pkg/cache"
	"github.com/sds-server/sds-server/pkg/issuer"
	"github.com/sds-server/sds-server/pkg/issuer/budget"
	"github.com/sds-server/sds-server/pkg/issuer/maintenance"
	"github.com/sds-server/sds-server/pkg/rollout"
	"github.com/sds-server/sds-server/pkg/sds"
	"github.com/sds-server/sds-server/pkg/secret"
	"github.com/sds-server/sds-server/pkg/source"
	"github.com/sds-server/sds-server/pkg/store"
	"github.com/sds-server/sds-server/pkg/verify"
)

// maxBody bounds a request: an imported chain and key are far smaller.
const maxBody = 1 << 20

// Live is what a reload changes. It is read only.
type Live struct {
	Config       ConfigStatus
	Ready        bool
	Groups       []Group
	Certificates []Certificate
	Issuers      []ConfiguredIssuer
	Managed      []string // names of all configured secrets, of every kind
	SDS          []SDSListener
	Challenge    string // address of the HTTP-01 responder; empty if there is none
}

// Group is a configured node group.
type Group struct {
	Name       string
	Identities []string
	Allows     func(secret string) bool
}

// Certificate is a configured certificate.
type Certificate struct {
	Name     string
	DNSNames []string
	// IPAddresses are those that it covers as well.
	IPAddresses []netip.Addr
	Issuers     []string // in the order of failover
	Profile     string   // empty: that of the issuer
}

// SDSListener is a configured SDS listener.
type SDSListener struct {
	Address string // socket path, or host:port
	Unix    bool
	Plain   bool     // loopback TCP without TLS
	Groups  []string // empty: all
	Names   []string // DNS names and addresses in the server's certificate
}

func (l Live) group(name string) (Group, bool) {
	i := slices.IndexFunc(l.Groups, func(g Group) bool { return g.Name == name })
	if i < 0 {
		return Group{}, false
	}
	return l.Groups[i], true
}

// Options configure a Server. Identities may be nil; then `identity issue` answers that there is no channel CA.
type Options struct {
	Version    string
	Cache      *cache.Cache
	Rollout    *rollout.Controller
	Issuer     *issuer.Loop
	Sources    *source.Source
	SDS        *sds.Server
	Identities *identity.Authority
	Verify     *verify.Monitor
	Store      store.Store  // keeps what a renewal of many has begun
	Budget     *budget.Book // what the CAs still allow
	// Maintenance knows when issuers are left alone.
	Maintenance *maintenance.Monitor
	Audit       *audit.Log
	Live        func() Live
	// Allowed decides who may use the API, by uid.
	Allowed func(uid uint32) bool
	Log     *slog.Logger
}

// Server answers the operator API.
type Server struct {
	Options
	http     *http.Server
	stopOnce sync.Once
	stopping chan struct{} // closed when the server shuts down: what only waits ends
}

// New returns a server that is not listening yet.
func New(opts Options) *Server {
	s := &Server{Options: opts, stopping: make(chan struct{})}
	mux := http.NewServeMux()
	mux.Handle("GET /v1/status", s.read(s.status))
	mux.Handle("GET /v1/nodes", s.read(s.nodes))
	mux.Handle("GET /v1/explain", s.read(s.explain))
	mux.Handle("GET /v1/secrets", s.read(s.secrets))
	mux.Handle("GET /v1/secrets/{name}", s.read(s.secret))
	mux.Handle("GET /v1/snapshots", s.read(s.snapshots))
	mux.Handle("GET /v1/snapshots/{number}", s.read(s.snapshot))
	mux.Handle("GET /v1/snapshots/{number}/diff/{other}", s.read(s.diff))
	mux.Handle("GET /v1/rollouts", s.read(s.rollouts))
	mux.Handle("GET /v1/rollouts/{id}", s.read(s.rollout))
	mux.Handle("GET /v1/issuers", s.read(s.issuers))
	mux.Handle("GET /v1/issuers/{issuer}", s.read(s.issuer))
	mux.Handle("GET /v1/audit", s.read(s.auditList))
	mux.Handle("GET /v1/budget", s.read(s.budgets))
	mux.Handle("GET /v1/bootstrap/{group}", s.read(s.bootstrap))
	mux.Handle("POST /v1/secrets", s.act(s.importSecret))
	mux.Handle("POST /v1/secrets/{name}/release", s.act(s.release))
	mux.Handle("POST /v1/secrets/{name}/hold", s.act(s.hold))
	mux.Handle("POST /v1/rollouts", s.act(s.startRollout))
	mux.Handle("POST /v1/rollouts/{id}/pause", s.act(s.control(s.Rollout.Pause)))
	mux.Handle("POST /v1/rollouts/{id}/resume", s.act(s.control(s.Rollout.Resume)))
	mux.Handle("POST /v1/rollouts/{id}/abort", s.act(s.control(s.Rollout.Abort)))
	mux.Handle("POST /v1/rollouts/{id}/undo", s.act(s.control(s.Rollout.Undo)))
	mux.Handle("POST /v1/promote", s.act(s.promote))
	mux.Handle("POST /v1/rollback", s.act(s.rollback))
	mux.Handle("POST /v1/identity", s.act(s.issueIdentity))
	mux.Handle("POST /v1/identity/renew", s.act(s.renewIdentity))
	mux.Handle("POST /v1/issuers/{issuer}/test", s.act(s.testIssuer))
	mux.Handle("POST /v1/renew/plan", s.read(s.planRenewal))
	mux.HandleFunc("POST /v1/renew", s.renew)
	mux.HandleFunc("POST /v1/verify", s.verify)
	mux.HandleFunc("POST /v1/audit/verify", s.auditVerify)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		answerError(w, fail(http.StatusNotFound, "no such operation: "+r.Method+" "+r.URL.Path, "command and server may be of different versions"))
	})
	s.http = &http.Server{
		Handler: s.catch(s.authenticate(mux)), ConnContext: withPeer, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute,
		ErrorLog: slog.NewLogLogger(opts.Log.Handler(), slog.LevelDebug),
	}
	return s
}

// Serve answers on l until ctx ends, then lets requests under way finish for a short time; those that only wait for a rollout end at once.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { s.stopOnce.Do(func() { close(s.stopping) }) })
	defer stop()
	return ServeHTTP(ctx, s.http, l)
}

// catch turns a panic into an answer and a line in the log; the server goes on.
func (s *Server) catch(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer s.recovered(w, r)
		next.ServeHTTP(w, r)
	})
}

// recovered is deferred.
func (s *Server) recovered(w http.ResponseWriter, r *http.Request) {
	p := recover()
	if p == nil {
		return
	}
	s.Log.ErrorContext(r.Context(), "operator command panicked", "operation", r.URL.Path, "err", fmt.Sprint(p), "stack", string(debug.Stack()))
	answerError(w, fail(http.StatusInternalServerError, "internal error of the server", "its log has the details; please report them"))
}

func (s *Server) authenticate(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p := peerOf(r.Context())
		if p.err != nil || !s.Allowed(p.uid) {
			w.Header().Set("Connection", "close")
			answerError(w, fail(http.StatusForbidden, "permission denied for "+p.String(), "run the command as root or as the server's user, or add the user to admin.users"))
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		next.ServeHTTP(w, withCommand(r))
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

// act is read for what changes something: it leaves a line in the log, and an entry in the audit trail.
func (s *Server) act(do func(*http.Request) (any, error)) http.Handler {
	return s.read(func(r *http.Request) (any, error) {
		v, err := do(r)
		log := s.Log.With("operation", r.URL.Path, "by", peerOf(r.Context()).String())
		if err != nil {
			_, e := describe(err)
			log.WarnContext(r.Context(), "operator command refused", "err", e.Message)
			s.record(r, nil, e.Message)
			return nil, err
		}
		log.LogAttrs(r.Context(), slog.LevelInfo, "operator command", summary(v)...)
		s.record(r, summary(v), "")
		return v, nil
	})
}

// summary is what the log says of a result.
func summary(v any) []slog.Attr {
	switch v := v.(type) {
	case Accepted:
		attrs := []slog.Attr{slog.String("secret", v.Name), slog.String("version", v.Version), slog.Uint64("snapshot", v.Snapshot)}
		if v.Rollout != nil {
			attrs = append(attrs, slog.Uint64("rollout", *v.Rollout))
		}
		return attrs
	case Released:
		return []slog.Attr{slog.String("secret", v.Name), slog.Int("released", v.Released)}
	case Controlled:
		attrs := []slog.Attr{slog.String("state", string(v.State)), slog.Bool("already", v.Already), slog.Any("groups", v.Groups), slog.Any("held", v.Held)}
		if v.ID != nil {
			attrs = append(attrs, slog.Uint64("rollout", *v.ID))
		}
		return attrs
	case HeldVersion:
		return []slog.Attr{slog.String("secret", v.Secret), slog.String("version", v.Version), slog.Any("rollouts", v.Rollouts), slog.Bool("already", v.Already)}
	case Promotion:
		return []slog.Attr{slog.String("group", v.Group), slog.Any("rollouts", v.Rollouts), slog.Uint64("snapshot", v.Snapshot), slog.Bool("already", v.Already)}
	case Step:
		return []slog.Attr{slog.String("group", v.Group), slog.Uint64("from", v.From), slog.Uint64("snapshot", v.Snapshot), slog.Any("held", v.Held)}
	case IssuerTest:
		return []slog.Attr{slog.String("issuer", v.Name), slog.Bool("ok", v.OK)}
	case Identity:
		return []slog.Attr{slog.String("identity", v.Identity), slog.Time("not_after", v.NotAfter)}
	}
	return nil
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
	var fault *store.Fault
	var refused *secret.Error
	var order *issuer.Error
	switch {
	case errors.As(err, &f):
		return f.code, &f.answer
	case errors.As(err, &refused):
		return http.StatusUnprocessableEntity, &Error{Message: oneLine(err.Error()), Hint: joined(secret.Hints(err))}
	case errors.As(err, &order):
		return http.StatusConflict, &Error{Message: oneLine(err.Error()), Hint: order.Hint}
	case errors.As(err, &fault):
		return http.StatusInternalServerError, &Error{Message: err.Error(), Hint: fault.Hint}
	case errors.Is(err, rollout.ErrHeld), errors.Is(err, rollout.ErrBehind):
		return http.StatusConflict, &Error{Message: err.Error(), Hint: "`secrets release NAME` lets a held version go; `promote --rollout ID` begins its rollout again"}
	case errors.Is(err, rollout.ErrState):
		return http.StatusConflict, &Error{Message: err.Error(), Hint: "`rollout status ID` shows how it came to that"}
	case errors.Is(err, rollout.ErrNoSecret):
		return http.StatusNotFound, &Error{Message: err.Error(), Hint: "see `secrets list`"}
	case errors.Is(err, cache.ErrNoSnapshot), errors.Is(err, rollout.ErrNoRollout):
		return http.StatusNotFound, &Error{Message: err.Error(), Hint: "see `snapshots list` and `rollout history`"}
	case errors.Is(err, issuer.ErrStopped), errors.Is(err, errStopping):
		return http.StatusServiceUnavailable, &Error{Message: err.Error(), Hint: "what was begun goes on at the next start; see `status` then"}
	default:
		return http.StatusConflict, &Error{Message: oneLine(err.Error())}
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
	commandOf(r).note(into)
	return nil
}
