package admin

import (
	"context"
	"errors"
	"net"
	"os/user"
	"strconv"

	"github.com/sds-server/sds-server/pkg/sds"
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

// peerUID is the user that the kernel names.
func peerUID(conn net.Conn) (uint32, error) {
	if c, ok := conn.(*stranger); ok {
		conn = c.Conn
	}
	return sds.PeerUID(conn)
}
