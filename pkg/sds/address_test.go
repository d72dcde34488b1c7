package sds

import (
	"context"
	"net"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

// The address is that of the connection; what is no TCP connection has none.
func TestSourceAddress(t *testing.T) {
	for _, test := range []struct {
		name string
		from net.Addr
		want netip.Addr
	}{
		{"IPv4", &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 4711}, netip.MustParseAddr("192.0.2.1")},
		{"IPv4 in IPv6", &net.TCPAddr{IP: net.ParseIP("::ffff:192.0.2.1"), Port: 4711}, netip.MustParseAddr("192.0.2.1")},
		{"IPv6", &net.TCPAddr{IP: net.ParseIP("2001:db8::1"), Port: 4711}, netip.MustParseAddr("2001:db8::1")},
		{"link-local", &net.TCPAddr{IP: net.ParseIP("fe80::1"), Zone: "eth0", Port: 4711}, netip.MustParseAddr("fe80::1%eth0")},
		{"no TCP", &net.UnixAddr{Name: "@", Net: "unix"}, netip.Addr{}},
		{"none", nil, netip.Addr{}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := sourceAddress(test.from); got != test.want {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}

// A node's address is where its connection comes from, whatever it says of itself; that of a Unix socket is loopback.
func TestNodeAddressIsThatOfItsConnection(t *testing.T) {
	f := newFleet(t, Limits{}, append(twoGroups(), Group{Name: "local", Identities: []string{"unix:uid=" + uid()}, Secrets: []string{"*"}})...)
	tcp, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f.serve(t, Listener{Listener: tcp, TLS: f.ca.server(t)})
	socket := filepath.Join(t.TempDir(), "run", "s")
	local, err := ListenUnix(t.Context(), socket, 0o600, -1, -1)
	if err != nil {
		t.Fatal(err)
	}
	f.serve(t, Listener{Listener: local, Unix: true, Groups: []string{"local"}})

	config := f.ca.client(t, time.Time{}, "spiffe://edge.example/canary/1")
	conn, err := grpc.NewClient("passthrough:///"+tcp.Addr().String(), grpc.WithTransportCredentials(credentials.NewTLS(config)),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
			return d.DialContext(ctx, "tcp", address)
		}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() }) // nobody listens to its error
	f.rotate(t, "canary", "a")
	f.rotate(t, "local", "a")
	for _, e := range []*envoy{
		newEnvoy(t, conn, Delta, &corev3.Node{Id: "remote", Locality: &corev3.Locality{Zone: "192.0.2.1"}}),
		newEnvoy(t, dialUnix(t, socket), Delta, &corev3.Node{Id: "local"}),
	} {
		e.subscribe("a")
		e.expect("a")
	}
	for id, want := range map[string]string{"remote": "127.0.0.2", "local": "127.0.0.1"} {
		if got := f.node(t, id).Address.String(); got != want {
			t.Errorf("%s: got %s, want %s", id, got, want)
		}
	}
}
