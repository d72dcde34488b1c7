package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protowire"
)

const (
	deltaMethod = "/envoy.service.secret.v3.SecretDiscoveryService/DeltaSecrets"
	secretType  = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
)

// node is a scripted Envoy on a Unix socket that speaks delta: it answers what it is told to.
type node struct {
	id, group string
	conn      *grpc.ClientConn
	stream    grpc.ClientStream
	cancel    context.CancelFunc
	done      chan struct{}

	mu sync.Mutex
	// Guarded by mu.
	nack    string            // refuse what comes with this message; empty: ACK
	silent  bool              // answer nothing
	got     map[string]string // version by secret
	removed map[string]bool
	raw     [][]byte // every response
	err     error    // that ended the stream
}

// connect opens a stream that subscribes to names. It ends with the test.
func connect(tb testing.TB, socket, id, group string, names ...string) *node {
	tb.Helper()
	return connectBy(tb, "unix://"+socket, insecure.NewCredentials(), id, group, names...)
}

// connectBy is connect to any target.
func connectBy(tb testing.TB, target string, creds credentials.TransportCredentials, id, group string, names ...string) *node {
	tb.Helper()
	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(creds))
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(tb.Context()))
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, deltaMethod, grpc.ForceCodec(rawCodec{}))
	if err != nil {
		cancel()
		tb.Fatal(err)
	}
	n := &node{
		id: id, group: group, conn: conn, stream: stream, cancel: cancel, done: make(chan struct{}), got: map[string]string{}, removed: map[string]bool{},
	}
	tb.Cleanup(n.close)
	go n.read()
	if err := n.send(request{node: id, cluster: group, subscribe: names}); err != nil && !errors.Is(err, io.EOF) { // the reader has what ended it
		tb.Fatal(err)
	}
	return n
}

func (n *node) close() {
	n.cancel()
	<-n.done
	_ = n.conn.Close() // the stream has ended
}

func (n *node) send(r request) error {
	b := r.encode()
	return n.stream.SendMsg(&b)
}

func (n *node) read() {
	defer close(n.done)
	for {
		var b []byte
		if err := n.stream.RecvMsg(&b); err != nil {
			n.mu.Lock()
			n.err = err
			n.mu.Unlock()
			return
		}
		n.mu.Lock()
		n.raw = append(n.raw, b)
		n.mu.Unlock()
		r, err := decodeResponse(b)
		if err == nil {
			err = n.take(r)
		}
		if err != nil {
			n.mu.Lock()
			n.err = err
			n.mu.Unlock()
			return
		}
	}
}

func (n *node) take(r response) error {
	n.mu.Lock()
	nack, silent := n.nack, n.silent
	for name, version := range r.versions {
		n.got[name] = version
		delete(n.removed, name)
	}
	for _, name := range r.removed {
		n.removed[name] = true
	}
	n.mu.Unlock()
	if silent {
		return nil
	}
	return n.send(request{nonce: r.nonce, message: nack})
}

func (n *node) refuse(message string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.nack = message
}

// end is what ended the stream. The caller holds mu.
func (n *node) end() error {
	if n.err == nil {
		return errors.New("open")
	}
	return n.err
}

// has returns nil if the node was sent a version of the secret that begins with version.
func (n *node) has(name, version string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if got := n.got[name]; got == "" || !strings.HasPrefix(got, version) {
		return fmt.Errorf("node %s has %q of %s, want %q; stream: %w", n.id, got, name, version, n.err)
	}
	return nil
}

// keys are the private keys that the node was sent, in PEM.
func (n *node) keys() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var keys []string
	for _, b := range n.raw {
		keys = append(keys, privateKey.FindAllString(string(b), -1)...)
	}
	return keys
}

var privateKey = regexp.MustCompile(`(?s)-----BEGIN (?:EC )?PRIVATE KEY-----.*?-----END (?:EC )?PRIVATE KEY-----\n`)

// lost returns nil if the secret was removed from the node.
func (n *node) lost(name string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.removed[name] {
		return fmt.Errorf("node %s still has %s; stream: %w", n.id, name, n.end())
	}
	return nil
}

// rawCodec passes bytes through.
type rawCodec struct{}

func (rawCodec) Name() string { return "proto" }

func (rawCodec) Marshal(v any) ([]byte, error) {
	b, ok := v.(*[]byte)
	if !ok {
		return nil, fmt.Errorf("marshal %T", v)
	}
	return *b, nil
}

func (rawCodec) Unmarshal(data []byte, v any) error {
	b, ok := v.(*[]byte)
	if !ok {
		return fmt.Errorf("unmarshal %T", v)
	}
	*b = append([]byte{}, data...)
	return nil
}

// request is a DeltaDiscoveryRequest.
type request struct {
	node, cluster  string
	subscribe      []string
	nonce, message string
}

func (r request) encode() []byte {
	field := func(b []byte, number protowire.Number, value []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(b, number, protowire.BytesType), value)
	}
	var b []byte
	if r.node != "" {
		b = field(b, 1, field(field(nil, 1, []byte(r.node)), 2, []byte(r.cluster)))
	}
	b = field(b, 2, []byte(secretType))
	for _, name := range r.subscribe {
		b = field(b, 3, []byte(name))
	}
	if r.nonce != "" {
		b = field(b, 6, []byte(r.nonce))
	}
	if r.message != "" {
		status := protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), 3)
		b = field(b, 7, field(status, 2, []byte(r.message)))
	}
	return b
}

// response is a DeltaDiscoveryResponse.
type response struct {
	nonce    string
	versions map[string]string
	removed  []string
}

func decodeResponse(b []byte) (response, error) {
	r := response{versions: map[string]string{}}
	err := eachField(b, func(number protowire.Number, value []byte) error {
		switch number {
		case 2: // Resource: version 1, name 3
			var name, version string
			err := eachField(value, func(number protowire.Number, value []byte) error {
				switch number {
				case 1:
					version = string(value)
				case 3:
					name = string(value)
				}
				return nil
			})
			r.versions[name] = version
			return err
		case 5:
			r.nonce = string(value)
		case 6:
			r.removed = append(r.removed, string(value))
		}
		return nil
	})
	return r, err
}

// eachField visits the length-delimited fields of a message.
func eachField(b []byte, visit func(protowire.Number, []byte) error) error {
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return errors.New("malformed tag")
		}
		b = b[n:]
		if kind != protowire.BytesType {
			if n = protowire.ConsumeFieldValue(number, kind, b); n < 0 {
				return errors.New("malformed field")
			}
			b = b[n:]
			continue
		}
		value, n := protowire.ConsumeBytes(b)
		if n < 0 {
			return errors.New("malformed bytes")
		}
		if err := visit(number, value); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}
