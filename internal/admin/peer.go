package admin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/user"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

type peerKey struct{}

// peer is who is at the other end of the socket.
type peer struct {
	uid uint32
	err error
}

// String is the user's name, or the uid where it has none.
func (p peer) String() string {
	if p.err != nil {
		return "an unknown user"
	}
	id := strconv.FormatUint(uint64(p.uid), 10)
	if u, err := user.LookupId(id); err == nil {
		return u.Username
	}
	return "uid=" + id
}

// withPeer asks the kernel once for each connection.
func withPeer(ctx context.Context, conn net.Conn) context.Context {
	uid, err := peerUID(conn)
	return context.WithValue(ctx, peerKey{}, peer{uid, err})
}

func peerOf(ctx context.Context) peer {
	if p, ok := ctx.Value(peerKey{}).(peer); ok {
		return p
	}
	return peer{err: errors.New("no peer credentials")}
}

// peerUID is the user that the kernel names (SO_PEERCRED, unix(7)).
func peerUID(conn net.Conn) (uint32, error) {
	if c, ok := conn.(*stranger); ok {
		conn = c.Conn
	}
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
