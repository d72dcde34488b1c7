package app

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/sds-server/sds-server/internal/config"
	"github.com/sds-server/sds-server/pkg/cache"
	"github.com/sds-server/sds-server/pkg/rollout"
	"github.com/sds-server/sds-server/pkg/secret"
	"github.com/sds-server/sds-server/pkg/source"
)

func (s *server) buildSources(cfg *config.Config, signals <-chan os.Signal) (err error) {
	s.sources, err = source.New(source.Options{
		Store: s.store, Sink: sourceSink{s.cache, s.rollout}, Log: s.log.With("part", "source"), CheckPrivate: config.CheckPrivate, Signals: signals,
		Registerer: s.registry,
	}, sources(cfg))
	return err
}

// sources are the configured secrets that no CA issues.
func sources(cfg *config.Config) source.Config {
	var out source.Config
	for _, v := range cfg.ValidationContexts {
		out.ValidationContexts = append(out.ValidationContexts, source.ValidationContext{Name: v.Name, Files: v.CAFiles})
	}
	for _, g := range cfg.GenericSecrets {
		out.Generics = append(out.Generics, source.Generic{Name: g.Name, File: g.File})
	}
	for _, r := range cfg.SessionTicketKeys {
		out.Rings = append(out.Rings, source.Ring{Name: r.Name, Rotate: r.Rotate, Keep: r.Keep})
	}
	return out
}

// sourceSink hands secrets that no CA issued to the rollout controller.
type sourceSink struct {
	cache   *cache.Cache
	rollout *rollout.Controller
}

var _ source.Sink = sourceSink{}

// Version implements source.Sink.
func (s sourceSink) Version(of *secret.Secret) secret.Version { return s.cache.Version(of) }

// Accept implements source.Sink.
func (s sourceSink) Accept(ctx context.Context, p source.Proposal) error {
	from := cache.SourceFile
	if p.Made {
		from = cache.SourceServer
	}
	_, err := s.rollout.Accept(ctx, rollout.Proposal{
		Secret: p.Secret, Source: from, Reason: p.Reason, Conditions: p.Conditions, Operations: p.Operations,
	})
	if errors.Is(err, rollout.ErrHeld) {
		return fmt.Errorf("%w: %w", source.ErrHeld, err)
	}
	return err
}

// Standing implements source.Sink.
func (s sourceSink) Standing(name string, version secret.Version) source.Standing {
	return source.Standing(s.rollout.Standing(name, version))
}
