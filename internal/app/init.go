package app

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"text/template"
	"time"

	"github.com/sds-server/sds-server/internal/config"
	"github.com/sds-server/sds-server/internal/identity"
	"github.com/sds-server/sds-server/pkg/store"
	"github.com/sds-server/sds-server/pkg/store/bbolt"
	"github.com/sds-server/sds-server/pkg/store/seal"
)

// serverLife is how long the server's certificate for the xDS channel is valid.
const serverLife = 825 * 24 * time.Hour

//go:embed init.yaml.tmpl
var initText string

// InitOptions say what Init makes.
type InitOptions struct {
	Dir         string   // required
	Groups      []string // in the order of the waves; default canary and production
	Listen      string   // address of the mTLS listener
	ServerNames []string // in the server's certificate; default localhost and the host of Listen
}

// Made lists what Init made.
type Made struct {
	Config string   `json:"config"`
	Files  []string `json:"files"`
}

// Init makes a directory with everything that serve needs. It overwrites nothing: a directory that has any of it is refused before
// anything is written. What it cannot finish it removes again; a configuration that serve would refuse is config.Problems.
func Init(ctx context.Context, o InitOptions) (made Made, err error) {
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return Made{}, fmt.Errorf("directory: %w", err)
	}
	if len(o.Groups) == 0 {
		o.Groups = []string{"canary", "production"}
	}
	names, err := serverNames(o)
	if err != nil {
		return Made{}, err
	}
	text, err := initConfig(dir, o)
	if err != nil {
		return Made{}, err
	}
	paths := map[string]string{}
	for _, name := range []string{"sds-server.yaml", "seal.key", "data", "xds"} {
		paths[name] = filepath.Join(dir, name)
		if _, err := os.Lstat(paths[name]); !errors.Is(err, fs.ErrNotExist) {
			return Made{}, &store.Fault{Path: paths[name], Message: "exists already, and init overwrites nothing", Hint: "choose another --dir"}
		}
	}
	_, statErr := os.Lstat(dir)
	defer func() {
		if err != nil {
			remove(paths, dir, errors.Is(statErr, fs.ErrNotExist))
		}
	}()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return Made{}, store.MediumFault(dir, "directory cannot be made", err)
	}
	if err := seal.GenerateKeyFile(paths["seal.key"]); err != nil {
		return Made{}, err
	}
	if err := initChannel(ctx, paths, names); err != nil {
		return Made{}, err
	}
	if err := identity.WriteFiles(dir, []identity.File{{Name: "sds-server.yaml", Data: text, Mode: 0o644}}); err != nil {
		return Made{}, err
	}
	if _, err := config.Load(paths["sds-server.yaml"]); err != nil {
		return Made{}, err
	}
	return Made{Config: paths["sds-server.yaml"], Files: []string{
		paths["sds-server.yaml"], paths["seal.key"], storeFile(paths["data"]), filepath.Join(paths["xds"], "server.crt"),
		filepath.Join(paths["xds"], "server.key"), filepath.Join(paths["xds"], "ca.crt"),
	}}, nil
}

// remove takes away what Init made before it failed; nothing of it was there before. The error that led here is the one to show.
func remove(paths map[string]string, dir string, whole bool) {
	for _, path := range paths {
		_ = os.RemoveAll(path)
	}
	if whole {
		_ = os.Remove(dir) // if nothing else is in it
	}
}

func initConfig(dir string, o InitOptions) ([]byte, error) {
	t, err := template.New("init").Parse(initText)
	if err != nil {
		return nil, fmt.Errorf("template: %w", err)
	}
	var b bytes.Buffer
	if err := t.Execute(&b, map[string]any{"Dir": dir, "Groups": o.Groups, "Listen": o.Listen}); err != nil {
		return nil, fmt.Errorf("template: %w", err)
	}
	return b.Bytes(), nil
}

// initChannel makes the store with the channel's CA, and the server's certificate.
func initChannel(ctx context.Context, paths map[string]string, names identity.Names) error {
	db, err := bbolt.Open(bbolt.Options{Path: storeFile(paths["data"])})
	if err != nil {
		return err
	}
	defer db.Close()
	sealed, err := seal.Open(ctx, db, paths["seal.key"])
	if err != nil {
		return err
	}
	now := time.Now()
	ca, err := identity.Create(ctx, sealed, now)
	if err != nil {
		return err
	}
	cert, key, err := ca.Server(names, now, serverLife)
	if err != nil {
		return err
	}
	return identity.WriteFiles(paths["xds"], []identity.File{
		{Name: "server.key", Data: key, Mode: 0o600}, {Name: "server.crt", Data: cert, Mode: 0o644}, {Name: "ca.crt", Data: ca.CertificatePEM(), Mode: 0o644},
	})
}

func serverNames(o InitOptions) (identity.Names, error) {
	host, _, err := net.SplitHostPort(o.Listen)
	if err != nil {
		return identity.Names{}, config.Problems{{Path: "--listen", Message: fmt.Sprintf("want IP:PORT, got %q", o.Listen)}}
	}
	if len(o.ServerNames) == 0 {
		o.ServerNames = []string{"localhost", host}
	}
	var names identity.Names
	for _, n := range o.ServerNames {
		switch ip := net.ParseIP(n); {
		case ip == nil && n != "":
			names.DNS = append(names.DNS, n)
		case ip != nil && !ip.IsUnspecified():
			names.IP = append(names.IP, ip)
		}
	}
	if len(names.DNS)+len(names.IP) == 0 {
		return names, config.Problems{{Path: "--server-name", Message: "names no host"}}
	}
	return names, nil
}
