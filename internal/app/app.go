// Package app builds every part of the server, runs them in one group, and stops them in order: it is the map of the program.
//
// The order of Run is that of the data: configuration, store, snapshots, rollout, SDS edge, issuance; the listeners open last, when every
// group is where it was before the restart (DESIGN 4, invariant 5).
package app

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"

	"github.com/sds-server/sds-server/internal/admin"
	"github.com/sds-server/sds-server/internal/audit"
	"github.com/sds-server/sds-server/internal/config"
	"github.com/sds-server/sds-server/internal/identity"
	"github.com/sds-server/sds-server/pkg/cache"
	"github.com/sds-server/sds-server/pkg/issuer"
	"github.com/sds-server/sds-server/pkg/issuer/acme"
	"github.com/sds-server/sds-server/pkg/issuer/budget"
	"github.com/sds-server/sds-server/pkg/issuer/maintenance"
	"github.com/sds-server/sds-server/pkg/rollout"
	"github.com/sds-server/sds-server/pkg/sds"
	"github.com/sds-server/sds-server/pkg/source"
	"github.com/sds-server/sds-server/pkg/store"
	"github.com/sds-server/sds-server/pkg/verify"
)

// drainTime bounds each step of a shutdown.
const drainTime = 5 * time.Second

// Options configure Run. All fields are required.
type Options struct {
	ConfigFile string
	Version    string
	Log        *slog.Logger
}

// server is the parts of a running server.
type server struct {
	opts     Options
	log      *slog.Logger
	registry *prometheus.Registry

	store      store.Store
	audit      *audit.Log
	pushes     *pushes
	identities *identity.Authority // nil: the channel's CA is somebody else's
	channels   *channels
	cache      *cache.Cache
	edge       *sds.Server
	rollout    *rollout.Controller
	responder  *acme.Responder
	acme       *acme.Metrics
	budget     *budget.Book
	cas        map[string]*acme.Issuer // in force; apply alone changes it, one at a time
	issuance   *issuer.Loop
	quiet      *maintenance.Monitor // when CAs are left alone
	sources    *source.Source
	verify     *verify.Monitor
	outside    outside
	reissuer   *reissuer
	admin      *admin.Server
	watcher    *config.Watcher

	config atomic.Pointer[config.Config] // in force
	shown  atomic.Pointer[admin.Live]    // what the operator API shows of it
	ready  atomic.Bool
}

// Run runs the server until ctx ends, which is no error. An error is one that a person has to do something about; what was stored stays
// as it was.
func Run(ctx context.Context, opts Options) error {
	hup := make(chan os.Signal, 1) // from the start: the default would end the process
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	files := make(chan os.Signal, 1) // the files that the configuration names are looked at also where it is equal
	signal.Notify(files, syscall.SIGHUP)
	defer signal.Stop(files)
	secrets := make(chan os.Signal, 1) // likewise, where they are secrets themselves
	signal.Notify(secrets, syscall.SIGHUP)
	defer signal.Stop(secrets)
	err := run(ctx, opts, signals{config: hup, channel: files, secrets: secrets})
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil // stopped while it was starting
	}
	return err
}

// signals are those of SIGHUP, one for each part that looks at files then.
type signals struct{ config, channel, secrets <-chan os.Signal }

func run(ctx context.Context, opts Options, hup signals) error {
	cfg, err := config.Load(opts.ConfigFile)
	if err != nil {
		return err
	}
	s := &server{opts: opts, log: opts.Log, registry: prometheus.NewRegistry()}
	closeStore, err := s.openStore(ctx, cfg)
	if err != nil {
		return err
	}
	defer closeStore()
	closeAudit, err := s.openAudit(ctx, cfg)
	if err != nil {
		return err
	}
	defer closeAudit()
	if err := s.build(ctx, cfg, hup.secrets); err != nil {
		return err
	}
	s.channels = &channels{authority: s.identities, log: s.log.With("part", "channel"), signals: hup.channel}
	doors, err := s.listen(ctx, cfg)
	if err != nil {
		return err
	}
	if err := s.registry.Register(newChannelCollector(s.channels, s.edge)); err != nil {
		doors.close()
		return err
	}
	s.enforce(cfg)
	s.watcher = config.NewWatcher(config.WatcherOptions{
		Path: opts.ConfigFile, Initial: cfg, Signals: hup.config, Apply: s.apply, Logger: s.log.With("part", "config"),
		Observe: s.auditReload,
	})
	return s.run(ctx, doors)
}

// build makes the parts, in the order of the data.
func (s *server) build(ctx context.Context, cfg *config.Config, files <-chan os.Signal) (err error) {
	s.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	s.pushes = &pushes{log: s.audit}
	if s.store, err = newMetered(s.store, s.registry); err != nil {
		return err
	}
	s.identities, err = identity.Load(ctx, s.store)
	if err != nil && !errors.Is(err, identity.ErrNoAuthority) {
		return err
	}
	if s.cache, err = cache.Open(ctx, cache.Options{Store: s.store, Log: s.log.With("part", "cache")}); err != nil {
		return err
	}
	s.edge, err = sds.New(ctx, sds.Options{
		Cache: s.cache, Policy: edgePolicy(cfg), Limits: edgeLimits(cfg), Replica: cfg.Replica, Log: s.log.With("part", "sds"),
		Registerer: s.registry, Store: s.store, Pushes: s.pushes, OnChange: s.changed,
	})
	if err != nil {
		return err
	}
	if s.verify, err = verify.New(verify.Options{
		Source: wantedServed{s}, Log: s.log.With("part", "verify"), Registerer: s.registry, Wake: func() { s.rollout.Wake() },
	}); err != nil {
		return err
	}
	policy, err := rolloutPolicy(cfg)
	if err != nil {
		return err
	}
	s.buildOutside(cfg)
	s.reissuer = newReissuer(s)
	s.rollout, err = rollout.New(ctx, rollout.Options{
		Cache: s.cache, Store: s.store, Fleet: fleet{s.edge}, Policy: policy, Log: s.log.With("part", "rollout"),
		Released: s.edge.Release, Refers: s.edge.Refers, Audit: s.auditRollouts, Announce: s.announce, Retract: s.retract, Prober: prober{s}, Gates: s.outside, Hook: s.outside,
	})
	if err != nil {
		return err
	}
	if err := s.reconsider(ctx); err != nil {
		return err
	}
	if err := s.judgeAnew(ctx); err != nil {
		return err
	}
	// Groups that are new, and versions that a crash left without a rollout, are taken up before any Envoy is answered.
	if err := s.rollout.Reconfigure(ctx, policy); err != nil {
		return err
	}
	if err := s.buildSources(cfg, files); err != nil {
		return err
	}
	s.sources.Load(ctx)
	if err := s.buildIssuance(ctx, cfg); err != nil {
		return err
	}
	s.admin = admin.New(admin.Options{
		Version: s.opts.Version, Cache: s.cache, Rollout: s.rollout, Issuer: s.issuance, Sources: s.sources, SDS: s.edge, Identities: s.identities,
		Verify: s.verify, Store: s.store, Budget: s.budget, Maintenance: s.quiet, Audit: s.audit, Live: s.live, Allowed: operators(cfg), Log: s.log.With("part", "admin"),
	})
	return s.registry.Register(s.admin.Collector())
}

// changed tells what waits for news of nodes that there are some of a group.
func (s *server) changed(group string) {
	s.rollout.Wake()
	s.verify.Changed(group)
}

// judgeAnew makes the versions that were on their way at the last end go out as other bytes: a node may have rejected one of them, and the record of
// that may have been lost with the process.
func (s *server) judgeAnew(ctx context.Context) error {
	for _, r := range s.rollout.Active() {
		if r.Wave >= len(r.Waves) || !slices.Contains([]rollout.State{rollout.Moving, rollout.Verifying}, r.Waves[r.Wave].State) {
			continue
		}
		for _, c := range r.Change {
			if c.To == "" {
				continue
			}
			if err := s.cache.Reencode(ctx, c.Secret, c.To); err != nil {
				return err
			}
		}
	}
	return nil
}

// run starts everything and stops it in order: issuance and rollout first, then the operator API, then the streams; the store is closed by
// the caller, last.
func (s *server) run(ctx context.Context, d *doors) error {
	streams, stopStreams := context.WithCancel(context.WithoutCancel(ctx))
	defer stopStreams()
	edge, edgeCtx := errgroup.WithContext(streams)
	edge.Go(func() error { return s.edge.Run(streams) }) // until the last stream has ended, also where a listener fails
	for _, l := range d.sds {
		edge.Go(func() error { return s.edge.Serve(edgeCtx, l) })
	}

	work, workCtx := errgroup.WithContext(ctx)
	work.Go(func() error { // a listener that fails stops the server
		select {
		case <-workCtx.Done():
			return nil
		case <-edgeCtx.Done():
			return context.Cause(edgeCtx)
		}
	})
	work.Go(func() error { return s.rollout.Run(workCtx) })
	work.Go(func() error { return s.issuance.Run(workCtx) })
	work.Go(func() error { return s.quiet.Run(workCtx) })
	work.Go(func() error { return s.reissuer.run(workCtx) })
	work.Go(func() error { return s.sources.Run(workCtx) })
	work.Go(func() error { return s.verify.Run(workCtx) })
	work.Go(func() error { return s.audit.Run(workCtx) })
	work.Go(func() error { return s.watcher.Run(workCtx) })
	work.Go(func() error { return s.channels.Run(workCtx) })
	work.Go(func() error { return s.admin.Serve(workCtx, d.admin) })
	work.Go(func() error { return admin.ServeHTTP(workCtx, s.httpServer(), d.http) })
	if d.challenge != nil {
		work.Go(func() error { return admin.ServeHTTP(workCtx, s.challengeServer(), d.challenge) })
	}
	s.ready.Store(true)
	s.log.InfoContext(ctx, "ready", "version", s.opts.Version, "config", s.opts.ConfigFile, "groups", len(s.config.Load().Groups), "snapshot", s.cache.Latest())

	s.audit.Add(audit.Entry{Event: eventStarted, Detail: "version " + s.opts.Version})

	err := work.Wait()
	s.ready.Store(false)
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
	defer cancel()
	s.outside.close()
	s.edge.Shutdown(bounded)
	stopStreams()
	if edgeErr := edge.Wait(); err == nil && !errors.Is(edgeErr, context.Canceled) {
		err = edgeErr
	}
	s.audit.Add(audit.Entry{Event: eventStopped})
	s.log.InfoContext(ctx, "stopped")
	return err
}
