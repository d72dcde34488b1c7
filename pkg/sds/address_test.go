package sds

import (
	"net"
	"net/netip"
	"testing"
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
