package sds

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials"
)

// maxSocketPath is how long the path of a socket may be; the kernel's limit is 108 bytes.
const maxSocketPath = 100

// unixCredentials tell peers of a Unix socket apart by the user that the kernel names (SO_PEERCRED).
type unixCredentials struct{}

var _ credentials.TransportCredentials = unixCredentials{}

// unixInfo is the user at the other end of a Unix socket.
type unixInfo struct {
	credentials.CommonAuthInfo
	uid uint32
}

// AuthType is the name of the method.
func (unixInfo) AuthType() string { return "unix" }

// ServerHandshake asks the kernel who connected. Nothing goes over the socket.
func (unixCredentials) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	uid, err := PeerUID(conn)
	if err != nil {
		return nil, nil, err
	}
	return conn, unixInfo{CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}, uid: uid}, nil
}

// PeerUID returns the user at the other end of a Unix socket, as the kernel names it (SO_PEERCRED, unix(7)).
func PeerUID(conn net.Conn) (uint32, error) {
	c, ok := conn.(syscall.Conn)
	if !ok {
		return 0, fmt.Errorf("peer credentials: %T is no socket", conn)
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, fmt.Errorf("peer credentials: %w", err)
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err = errors.Join(err, credErr); err != nil {
		return 0, fmt.Errorf("peer credentials: %w", err)
	}
	return cred.Uid, nil
}

// ClientHandshake is refused: these are credentials of a server.
func (unixCredentials) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("unix credentials are for servers only")
}

// Info describes the method to grpc.
func (unixCredentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "unix"}
}

// Clone returns the same: there is no state.
func (c unixCredentials) Clone() credentials.TransportCredentials { return c }

// OverrideServerName means nothing here.
func (unixCredentials) OverrideServerName(string) error { return nil }

// ListenUnix makes a socket that only its owner and group can reach. The directory is made with mode 0700 if it is not there, or 0750
// with the group gid; one that others can write to is refused. The socket gets mode, uid and gid (-1: as the process has them); a mode that
// lets others in is refused. The socket of a server that is gone is replaced, that of a living one is refused.
func ListenUnix(ctx context.Context, path string, mode os.FileMode, uid, gid int) (net.Listener, error) {
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("socket %s: the path has %d bytes, at most %d are allowed", path, len(path), maxSocketPath)
	}
	if mode.Perm()&0o007 != 0 {
		return nil, fmt.Errorf("socket %s: mode %#o lets every user of the machine in", path, mode.Perm())
	}
	if err := socketDirectory(filepath.Dir(path), gid); err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	if err := removeStale(ctx, path); err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	l, err := bind(ctx, path)
	if err != nil {
		return nil, err
	}
	err = os.Lchown(path, uid, gid)
	if err == nil {
		err = os.Chmod(path, mode.Perm())
	}
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// socketDirectory makes the directory of a socket, or checks the one that is there.
func socketDirectory(path string, gid int) error {
	err := os.Mkdir(path, 0o700)
	if err == nil {
		if gid < 0 || gid == os.Getegid() {
			return nil
		}
		if err := os.Chown(path, -1, gid); err != nil {
			return err
		}
		return os.Chmod(path, 0o750) // the owner's group has to get through to the socket
	}
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !ok || !info.IsDir():
		return fmt.Errorf("%s is no directory", path)
	case int(owner.Uid) != os.Geteuid() && owner.Uid != 0:
		return fmt.Errorf("directory %s belongs to another user (uid %d)", path, owner.Uid)
	case info.Mode().Perm()&0o002 != 0:
		return fmt.Errorf("others can write to directory %s: use one of its own", path)
	case info.Mode().Perm()&0o020 != 0 && int(owner.Gid) != os.Getegid():
		return fmt.Errorf("another group (gid %d) can write to directory %s: use one of its own", owner.Gid, path)
	}
	return nil
}

// removeStale removes the socket of a server that is gone.
func removeStale(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return errors.New("there is another file of that name")
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err == nil {
		return errors.Join(errors.New("another server listens there"), conn.Close())
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return err // also a living server that is too busy to answer
	}
	return os.Remove(path)
}

// bind listens under a umask that lets nobody else in before the mode is set. The umask is that of the whole process: a file that
// is made elsewhere at this moment gets less, never more.
func bind(ctx context.Context, path string) (net.Listener, error) {
	old := syscall.Umask(0o177)
	defer syscall.Umask(old)
	return new(net.ListenConfig).Listen(ctx, "unix", path)
}
