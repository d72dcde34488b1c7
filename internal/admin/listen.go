package admin

import (
	"context"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/sds-server/sds-server/pkg/sds"
)

// maxStrangers bounds the connections of users that may not use the API: they get an answer, but cannot use up our file descriptors.
const maxStrangers = 32

// Listen opens the admin socket. Without other users it has mode 0600. With them every user of the machine can connect: the socket has
// mode 0666, its directory lets others through (0711) but not look, and SO_PEERCRED decides, as everywhere in this package. allowed is
// asked about each peer; few connections of others are kept open.
func Listen(ctx context.Context, path string, others bool, allowed func(uid uint32) bool) (net.Listener, error) {
	l, err := sds.ListenUnix(ctx, path, 0o600, -1, -1)
	if err != nil || !others {
		return l, err
	}
	if err := letThrough(filepath.Dir(path)); err != nil {
		_ = l.Close() // the first error is the one to tell
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		_ = l.Close() // as above
		return nil, err
	}
	return &gate{Listener: l, allowed: allowed}, nil
}

// letThrough lets other users pass a directory that is ours; the rights of what is in it stay.
func letThrough(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	mode := info.Mode().Perm()
	if mode&0o011 == 0o011 {
		return nil
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); !ok || int(stat.Uid) != os.Geteuid() {
		return fmt.Errorf("directory %s is not ours, and does not let other users through (mode %04o)", dir, mode)
	}
	return os.Chmod(dir, mode|0o011)
}

// Closed returns the first directory above path that does not let other users through, or "".
func Closed(path string) string {
	for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err == nil && info.Mode().Perm()&0o001 == 0 && info.Mode().Type() == fs.ModeDir {
			return dir
		}
		if dir == filepath.Dir(dir) {
			return ""
		}
	}
}

// gate is a listener that keeps only a few connections of strangers.
type gate struct {
	net.Listener
	allowed   func(uid uint32) bool
	strangers atomic.Int32
}

// Accept returns the next connection of a user that may use the API, or one of few others, who are told that they may not.
func (g *gate) Accept() (net.Conn, error) {
	for {
		conn, err := g.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if uid, err := peerUID(conn); err == nil && g.allowed(uid) {
			return conn, nil
		}
		if g.strangers.Add(1) <= maxStrangers {
			return &stranger{Conn: conn, gate: g}, nil
		}
		g.strangers.Add(-1)
		_ = conn.Close() // nothing was said
	}
}

// stranger is a counted connection.
type stranger struct {
	net.Conn
	gate *gate
	once sync.Once
}

// Close makes room for another one.
func (s *stranger) Close() error {
	s.once.Do(func() { s.gate.strangers.Add(-1) })
	return s.Conn.Close()
}
