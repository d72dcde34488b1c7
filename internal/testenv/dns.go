package testenv

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// DNS is a small DNS server over UDP and TCP that answers every A question with 127.0.0.1 and every other question with
// no record, so that Pebble validates any name on this machine.
type DNS struct {
	// Address is "127.0.0.1:port".
	Address string

	udp     net.PacketConn
	tcp     net.Listener
	serving sync.WaitGroup

	mu      sync.Mutex
	closed  bool                  // guarded by mu
	conns   map[net.Conn]struct{} // guarded by mu
	queries map[string]int        // guarded by mu; A questions by name, without the last dot
}

// dnsTries is how many ports are tried: one that is free for TCP may be taken for UDP.
const dnsTries = 20

// StartDNS starts the server on a port that is free for UDP and TCP.
func StartDNS(ctx context.Context) (*DNS, error) {
	var errs []error
	for range dnsTries {
		d, err := startDNS(ctx)
		if err == nil {
			return d, nil
		}
		errs = append(errs, err)
	}
	return nil, fmt.Errorf("dns: %w", errors.Join(errs...))
}

func startDNS(ctx context.Context) (*DNS, error) {
	address, err := FreeAddress()
	if err != nil {
		return nil, err
	}
	var lc net.ListenConfig
	udp, err := lc.ListenPacket(ctx, "udp", address)
	if err != nil {
		return nil, err
	}
	tcp, err := lc.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, errors.Join(err, udp.Close())
	}
	d := &DNS{Address: address, udp: udp, tcp: tcp, conns: make(map[net.Conn]struct{}), queries: make(map[string]int)}
	d.serving.Go(d.serveUDP)
	d.serving.Go(d.serveTCP)
	return d, nil
}

// Close stops the server and waits for it. Closing it again does nothing.
func (d *DNS) Close() error {
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return nil
	}
	d.closed = true
	conns := make([]net.Conn, 0, len(d.conns))
	for conn := range d.conns {
		conns = append(conns, conn)
	}
	d.mu.Unlock()
	err := errors.Join(d.udp.Close(), d.tcp.Close())
	for _, conn := range conns {
		_ = conn.Close() // it may have closed by itself
	}
	d.serving.Wait()
	return err
}

// Queries returns how often an A record of name ("a.example") was asked for.
func (d *DNS) Queries(name string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.queries[name]
}

func (d *DNS) serveUDP() {
	buf := make([]byte, 64<<10)
	for {
		n, from, err := d.udp.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // a datagram that could not be read; the client asks again
		}
		if reply, err := d.answer(buf[:n]); err == nil {
			_, _ = d.udp.WriteTo(reply, from) // the client asks again
		}
	}
}

func (d *DNS) serveTCP() {
	for {
		conn, err := d.tcp.Accept()
		if err != nil {
			return
		}
		d.mu.Lock()
		if d.closed {
			d.mu.Unlock()
			_ = conn.Close()
			return
		}
		d.conns[conn] = struct{}{}
		d.mu.Unlock()
		d.serving.Go(func() {
			d.serveConn(conn)
			d.mu.Lock()
			delete(d.conns, conn)
			d.mu.Unlock()
			_ = conn.Close() // Close may have been first
		})
	}
}

// serveConn answers the messages of one TCP connection, each with a length of two bytes in front (RFC 1035, Section
// 4.2.2).
func (d *DNS) serveConn(conn net.Conn) {
	for {
		if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			return
		}
		var length [2]byte
		if _, err := io.ReadFull(conn, length[:]); err != nil {
			return
		}
		msg := make([]byte, binary.BigEndian.Uint16(length[:]))
		if _, err := io.ReadFull(conn, msg); err != nil {
			return
		}
		reply, err := d.answer(msg)
		if err != nil {
			return
		}
		reply = append(binary.BigEndian.AppendUint16(nil, uint16(len(reply))), reply...)
		if _, err := conn.Write(reply); err != nil {
			return
		}
	}
}

func (d *DNS) answer(msg []byte) ([]byte, error) {
	var parser dnsmessage.Parser
	header, err := parser.Start(msg)
	if err != nil {
		return nil, err
	}
	questions, err := parser.AllQuestions()
	if err != nil {
		return nil, err
	}
	reply := dnsmessage.Message{
		Header: dnsmessage.Header{
			ID: header.ID, Response: true, Authoritative: true,
			RecursionDesired: header.RecursionDesired, RecursionAvailable: true,
		},
		Questions: questions,
	}
	for _, q := range questions {
		if q.Type != dnsmessage.TypeA || q.Class != dnsmessage.ClassINET {
			continue
		}
		name := q.Name.String()
		d.mu.Lock()
		d.queries[name[:max(0, len(name)-1)]]++
		d.mu.Unlock()
		reply.Answers = append(reply.Answers, dnsmessage.Resource{
			Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class},
			Body:   &dnsmessage.AResource{A: [4]byte{127, 0, 0, 1}},
		})
	}
	return reply.Pack()
}
