package fleet

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/sds-server/sds-server/internal/admin"
	"github.com/sds-server/sds-server/internal/testenv"
)

// Reconfigure writes a new configuration and waits until the running server has taken it up.
func (f *Fleet) Reconfigure(ctx context.Context, s Settings) error {
	before, err := f.Status(ctx)
	if err != nil {
		return err
	}
	if err := f.Configure(s); err != nil {
		return err
	}
	return testenv.Eventually(ctx, func(ctx context.Context) error {
		now, err := f.Status(ctx)
		switch {
		case err != nil:
			return err
		case !now.Config.OK:
			return fmt.Errorf("configuration refused: %s", *now.Config.Error)
		case !now.Config.LoadedAt.After(before.Config.LoadedAt):
			return fmt.Errorf("configuration of %s is still in force", before.Config.LoadedAt.Format(time.RFC3339Nano))
		}
		return nil
	})
}

// Status is `status`.
func (f *Fleet) Status(ctx context.Context) (admin.Status, error) {
	var s admin.Status
	return s, admin.NewClient(f.AdminSocket()).Get(ctx, "/v1/status", &s)
}

// Nodes is `nodes`.
func (f *Fleet) Nodes(ctx context.Context) (admin.Nodes, error) {
	var n admin.Nodes
	return n, admin.NewClient(f.AdminSocket()).Get(ctx, "/v1/nodes", &n)
}

// Secret is `secrets show`.
func (f *Fleet) Secret(ctx context.Context, name string) (admin.Secret, error) {
	var s admin.Secret
	return s, admin.NewClient(f.AdminSocket()).Get(ctx, "/v1/secrets/"+name, &s)
}

// WaitServed waits until an Envoy serves a certificate with the serial; an empty serial is any. It returns the serial.
func (f *Fleet) WaitServed(ctx context.Context, group, serverName, serial string) (string, error) {
	roots, err := f.Pebble.Roots(ctx)
	if err != nil {
		return "", err
	}
	var got string
	err = testenv.Eventually(ctx, func(ctx context.Context) error {
		leaf, _, err := testenv.Handshake(ctx, f.HTTPS[group], serverName, roots)
		if err != nil {
			return err
		}
		if got = testenv.Serial(leaf); serial != "" && got != serial {
			return fmt.Errorf("%s serves serial %s, want %s", group, got, serial)
		}
		return nil
	})
	return got, err
}

// WaitSynced waits until both Envoys are connected and have ACKed what their groups are at.
func (f *Fleet) WaitSynced(ctx context.Context) error {
	return testenv.Eventually(ctx, func(ctx context.Context) error {
		n, err := f.Nodes(ctx)
		if err != nil {
			return err
		}
		synced := 0
		for _, node := range n.Nodes {
			if node.Connected && node.State == "SYNCED" {
				synced++
			}
		}
		if synced < len(f.Envoys) {
			return fmt.Errorf("%d of %d nodes are SYNCED", synced, len(f.Envoys))
		}
		return nil
	})
}

// Versions returns the version of a secret that each node has ACKed, by node.
func (f *Fleet) Versions(ctx context.Context, secret string) (map[string]string, error) {
	n, err := f.Nodes(ctx)
	if err != nil {
		return nil, err
	}
	versions := map[string]string{}
	for _, node := range n.Nodes {
		for _, s := range node.Secrets {
			if s.Name == secret && s.Acked != nil {
				versions[node.ID] = s.Acked.Version
			}
		}
	}
	return versions, nil
}

// loadPause keeps a load from taking the processors that it measures.
const loadPause = 2 * time.Millisecond

// Load starts full handshakes with an Envoy of the fleet, verified to Pebble's root.
func (f *Fleet) Load(ctx context.Context, group, serverName string, workers int) (*testenv.Load, error) {
	roots, err := f.Pebble.Roots(ctx)
	if err != nil {
		return nil, err
	}
	return testenv.StartLoad(ctx, testenv.LoadOptions{Address: f.HTTPS[group], ServerName: serverName, Roots: roots, Workers: workers, Pause: loadPause}), nil
}

func port(address string) (int, error) {
	_, p, err := net.SplitHostPort(address)
	if err != nil {
		return 0, fmt.Errorf("address %q: %w", address, err)
	}
	return strconv.Atoi(p)
}

func copyFile(from, to string) error {
	if from == to {
		return nil
	}
	b, err := os.ReadFile(from)
	if err != nil {
		return fmt.Errorf("copy: %w", err)
	}
	return os.WriteFile(to, b, 0o644)
}
