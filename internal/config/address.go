package config

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// maxSocketPath keeps a Unix socket under the 108 bytes of the system, with room for a temporary suffix.
const maxSocketPath = 100

// socket is one address that the server will listen on: a Unix path, or a TCP host ("" is all) and port.
type socket struct {
	key        string
	unix, host string
	port       uint16
}

// overlaps reports whether the two cannot be bound at the same time.
func (s socket) overlaps(o socket) bool {
	if s.unix != "" || o.unix != "" {
		return s.unix == o.unix
	}
	return s.port == o.port && (s.host == o.host || s.host == "" || o.host == "")
}

// claim records a socket, and is a problem if it is taken.
func (v *validator) claim(s socket) {
	for _, other := range v.sockets {
		if s.overlaps(other) {
			v.add(s.key, "is the same address as %s", other.key)
			return
		}
	}
	v.sockets = append(v.sockets, s)
}

// listeners checks xds.
func (v *validator) listeners() {
	if len(v.XDS.Listeners) == 0 {
		v.add("xds.listeners", "empty")
	}
	for i := range v.XDS.Listeners {
		l, path := &v.XDS.Listeners[i], fmt.Sprintf("xds.listeners[%d]", i)
		if strings.HasPrefix(l.Address, "unix:") {
			v.unixListener(path, l)
		} else {
			v.tcpListener(path, l)
		}
		for j, group := range l.Groups {
			v.knownGroup(fmt.Sprintf("%s.groups[%d]", path, j), group, l.Groups[:j])
		}
		if l.TLS == nil && len(l.Groups) == 0 {
			v.addHint(path+".groups", "empty", "a listener without tls must name the groups that it serves")
		}
	}
	limits := v.XDS.Limits
	v.atLeastOne("xds.limits.streams_per_peer", limits.StreamsPerPeer)
	v.atLeastOne("xds.limits.names_per_stream", limits.NamesPerStream)
	v.atLeastOne("xds.limits.new_streams_per_second", limits.NewStreamsPerSecond)
	v.atLeastOne("xds.limits.requests_per_stream_per_second", limits.RequestsPerStreamPerSecond)
	v.atLeastOne("xds.limits.aliases_per_node", limits.AliasesPerNode)
	v.atLeastOne("xds.limits.nodes_per_identity", limits.NodesPerIdentity)
}

func (v *validator) unixListener(path string, l *Listener) {
	v.unixAddress(path+".address", l.Address)
	if l.Mode&0o007 != 0 {
		v.add(path+".mode", "%04o lets others in", l.Mode)
	} else if l.Mode&0o600 != 0o600 {
		v.add(path+".mode", "%04o keeps the owner out", l.Mode)
	}
	if l.Owner != "" {
		if _, _, err := ParseOwner(l.Owner); err != nil {
			v.add(path+".owner", "%v", err)
		}
	}
	if l.TLS != nil {
		v.add(path+".tls", "not on a Unix socket")
	}
	if l.Insecure {
		v.add(path+".insecure", "only for plaintext TCP")
	}
}

func (v *validator) tcpListener(path string, l *Listener) {
	loopback, ok := v.tcpAddress(path+".address", l.Address)
	if l.Mode != 0 {
		v.add(path+".mode", "only for Unix sockets")
	}
	if l.Owner != "" {
		v.add(path+".owner", "only for Unix sockets")
	}
	switch {
	case l.TLS != nil:
		if l.TLS.ClientCAFile == "" {
			v.add(path+".tls.client_ca_file", "empty")
		}
		v.requirePair(path+".tls", l.TLS.CertFile, l.TLS.KeyFile)
		if l.Insecure {
			v.add(path+".insecure", "contradicts tls")
		}
	case !ok:
	case !loopback:
		v.addHint(path+".tls", "missing", "secrets leave over plaintext only on a loopback address")
	case !l.Insecure:
		v.addHint(path+".tls", "missing", "set insecure: true for plaintext on loopback")
	}
}

// unixAddress checks unix:///PATH.
func (v *validator) unixAddress(path, address string) {
	name, ok := strings.CutPrefix(address, unixScheme)
	switch {
	case !ok || !filepath.IsAbs(name):
		v.addHint(path, fmt.Sprintf("want the absolute path of a socket, got %q", address), "write unix:///PATH")
	case len(name) > maxSocketPath:
		v.add(path, "the path has %d bytes, at most %d fit", len(name), maxSocketPath)
	case strings.HasSuffix(name, "/") || strings.ContainsRune(name, 0):
		v.add(path, "%q is not the path of a socket", name)
	default:
		v.claim(socket{key: path, unix: filepath.Clean(name)})
	}
}

// tcpAddress checks IP:PORT. loopback is true if only this machine can reach it.
func (v *validator) tcpAddress(path, address string) (loopback, ok bool) {
	if address == "" {
		v.add(path, "empty")
		return false, false
	}
	host, port, message := splitAddress(address)
	if message != "" {
		v.add(path, "%s", message)
		return false, false
	}
	loopback = host == "127.0.0.1"
	if ip, err := netip.ParseAddr(host); err == nil {
		ip = ip.Unmap()
		loopback, host = ip.IsLoopback(), ip.String()
		if ip.IsUnspecified() {
			host = ""
		}
	}
	v.claim(socket{key: path, host: host, port: port})
	return loopback, true
}

// splitAddress reads IP:PORT; localhost is 127.0.0.1, and no host is every address.
func splitAddress(address string) (host string, port uint16, message string) {
	host, text, err := net.SplitHostPort(address)
	if err != nil {
		return "", 0, fmt.Sprintf("want IP:PORT, got %q", address)
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 {
		return "", 0, fmt.Sprintf("want a port from 1 to 65535, got %q", text)
	}
	if host == "localhost" {
		host = "127.0.0.1"
	}
	if _, err := netip.ParseAddr(host); host != "" && err != nil {
		return "", 0, fmt.Sprintf("want an IP address before the port, got %q", host)
	}
	return host, uint16(n), ""
}

// url checks an absolute URL with one of the schemes.
func (v *validator) url(path, text string, schemes ...string) {
	want := strings.Join(schemes, " or ")
	u, err := url.Parse(text)
	switch {
	case text == "":
		v.add(path, "empty")
	case err != nil || u.Host == "" || u.Fragment != "":
		v.add(path, "want an %s URL, got %q", want, text)
	case !slices.Contains(schemes, u.Scheme):
		v.add(path, "want an %s URL, got %q", want, text)
	case u.User != nil:
		v.add(path, "must not hold a user or a password")
	}
}
