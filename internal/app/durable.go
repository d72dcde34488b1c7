package app

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/sds-server/sds-server/internal/config"
	"github.com/sds-server/sds-server/pkg/store/bbolt"
	"github.com/sds-server/sds-server/pkg/store/seal"
)

func storeFile(dataDir string) string { return filepath.Join(dataDir, "store.db") }

// StoreFile is the file of the embedded store.
func StoreFile(cfg *config.Config) string { return storeFile(cfg.DataDir) }

// CheckStore checks the store's file in a child process: a damaged file faults in a way that Go cannot recover from (DESIGN 8).
func CheckStore(ctx context.Context, cfg *config.Config) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("own program: %w", err)
	}
	return bbolt.CheckInChild(ctx, []string{self, "store", "check", "--in-process"}, StoreFile(cfg))
}

// openStore checks, opens and unseals the store, and returns what closes it.
func (s *server) openStore(ctx context.Context, cfg *config.Config) (func(), error) {
	if err := CheckStore(ctx, cfg); err != nil {
		return nil, err
	}
	db, err := bbolt.Open(bbolt.Options{Path: StoreFile(cfg)})
	if err != nil {
		return nil, err
	}
	sealed, err := seal.Open(ctx, db, cfg.Seal.KeyFile)
	if err != nil {
		_ = db.Close() // nothing was written
		return nil, err
	}
	s.store = sealed
	return func() {
		if err := sealed.Close(); err != nil {
			s.log.Error("close the store", "err", err)
		}
	}, nil
}
