package testenv

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// Ports are taken below Linux's ephemeral range (32768 and up), so that no outgoing connection sits on one.
const (
	firstPort = 10240
	lastPort  = 32000
)

// ports is the one piece of package-level state: two callers in a process must never get the same port. Between
// processes the kernel keeps the reservations, as a lock on one byte for each port of a file that all of them share; it
// drops them when the process ends, however it ends.
var ports struct {
	mu    sync.Mutex
	file  *os.File     // guarded by mu
	taken map[int]bool // guarded by mu
}

// FreePort reserves a TCP and UDP port on 127.0.0.1 for the life of this process. Nobody else who calls FreePort gets
// the port, also in other processes of the same user, so a part can be stopped and started again on it.
func FreePort() (int, error) {
	ports.mu.Lock()
	defer ports.mu.Unlock()
	if ports.file == nil {
		path := filepath.Join(os.TempDir(), "sds-server-ports-"+strconv.Itoa(os.Getuid()))
		file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return 0, fmt.Errorf("port locks: %w", err)
		}
		ports.file, ports.taken = file, make(map[int]bool)
	}
	base := rand.IntN(lastPort - firstPort)
	for i := range lastPort - firstPort {
		port := firstPort + (base+i)%(lastPort-firstPort)
		if ports.taken[port] {
			continue
		}
		lock := unix.Flock_t{Type: unix.F_WRLCK, Start: int64(port), Len: 1}
		err := unix.FcntlFlock(ports.file.Fd(), unix.F_OFD_SETLK, &lock)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("port locks: %w", err)
		}
		ports.taken[port] = true // also a port that something else listens on: no reason to look at it twice
		if listens(port) {
			return port, nil
		}
	}
	return 0, errors.New("no free port on 127.0.0.1")
}

// FreeAddress is FreePort as "127.0.0.1:port".
func FreeAddress() (string, error) {
	port, err := FreePort()
	if err != nil {
		return "", err
	}
	return loopback(port), nil
}

func loopback(port int) string {
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
}

// listens reports whether the port is free on all addresses, for TCP and for UDP.
func listens(port int) bool {
	for _, ip := range []net.IP{net.IPv4(127, 0, 0, 1), nil} {
		l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: ip, Port: port})
		if err != nil || l.Close() != nil {
			return false
		}
	}
	p, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
	return err == nil && p.Close() == nil
}
