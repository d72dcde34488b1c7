package app

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/sds-server/sds-server/internal/config"
	"github.com/sds-server/sds-server/pkg/store"
	"github.com/sds-server/sds-server/pkg/store/bbolt"
	"github.com/sds-server/sds-server/pkg/store/seal"
)

func storeFile(dataDir string) string { return filepath.Join(dataDir, "store.db") }

// StoreFile is the file of the embedded store.
func StoreFile(cfg *config.Config) string { return storeFile(cfg.DataDir) }

// CheckStore checks the store's file, which has to be there, as serve does before it opens it.
func CheckStore(ctx context.Context, cfg *config.Config) error {
	if _, err := os.Stat(StoreFile(cfg)); err != nil {
		fault := store.MediumFault(StoreFile(cfg), "store cannot be checked", err)
		if errors.Is(err, fs.ErrNotExist) {
			fault.Hint = "check data_dir in the configuration; `sds-server serve` makes a new store when it first starts"
		}
		return fault
	}
	return checkStore(ctx, cfg)
}

// checkStore checks the store's file, if there is one, in a child process: a damaged file faults in a way that Go cannot recover from
// (DESIGN 8).
func checkStore(ctx context.Context, cfg *config.Config) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("own program: %w", err)
	}
	return bbolt.CheckInChild(ctx, []string{self, "store", "check", "--in-process"}, StoreFile(cfg))
}

// openStore checks, opens and unseals the store, and returns what closes it.
func (s *server) openStore(ctx context.Context, cfg *config.Config) (func(), error) {
	if err := checkStore(ctx, cfg); err != nil {
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
			s.log.ErrorContext(ctx, "close the store", "err", err)
		}
	}, nil
}
