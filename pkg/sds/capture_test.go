package sds

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	protocodec "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/sds-server/sds-server/internal/testenv"
)

// adsEnvoy is added to realEnvoy for ADS; it takes the api_type.
const adsEnvoy = `
dynamic_resources: {ads_config: {api_type: %s, transport_api_version: V3, grpc_services: [{envoy_grpc: {cluster_name: sds}}]}}
`

// TestRealRequestsPlay hears what a real Envoy says first, as an ACK and as a NACK, and plays it. With SDS_UPDATE_CORPUS=1 it writes that to
// the corpus of FuzzStream, without the node's extensions.
func TestRealRequestsPlay(t *testing.T) {
	s := newStage(t)
	for i, protocol := range scriptProtocols {
		t.Run(string(protocol), func(t *testing.T) {
			heard := captureRequests(t, protocol)
			var script []byte
			for _, data := range heard {
				script = scriptRequest(script, data)
			}
			script = append(script, opMove, 0, 1, opMove, 1, 1)
			synctest.Test(t, func(t *testing.T) { s.play(t, protocol, script) })
			if os.Getenv("SDS_UPDATE_CORPUS") == "" {
				return
			}
			dir := filepath.Join("testdata", "fuzz", "FuzzStream")
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			text := fmt.Sprintf("go test fuzz v1\nbyte('\\x%02x')\n[]byte(%q)\n", i, script)
			if err := os.WriteFile(filepath.Join(dir, "envoy-"+string(protocol)), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// captureRequests runs an Envoy with two secrets against a server that answers with good ones, and then with ones that it rejects. It returns
// the requests of one stream, up to the first NACK.
func captureRequests(t *testing.T, protocol Protocol) [][]byte {
	t.Helper()
	env := testenv.NewT(t)
	api, aggregated := "GRPC", ""
	if protocol.delta() {
		api = "DELTA_GRPC"
	}
	path := filepath.Join(env.Dir, "s")
	config := fmt.Appendf(nil, realEnvoy, env.Port(), env.Port(), api, path)
	if protocol.aggregated() {
		aggregated = fmt.Sprintf(adsEnvoy, api)
		at := bytes.Index(config, []byte("api_config_source: {"))
		end := at + bytes.Index(config[at:], []byte("}]}}")) + len("}]}}") - 1
		config = slices.Concat(config[:at], []byte("ads: {}"), config[end:])
	}
	f := newFleet(t, Limits{})
	f.rotate(t, "canary", "a", "b")
	h := &hearing{t: t, fleet: f, delta: protocol.delta(), done: make(chan struct{})}
	server := grpc.NewServer(grpc.ForceServerCodecV2(hearingCodec{encoding.GetCodecV2(protocodec.Name)}), grpc.UnknownServiceHandler(h.serve))
	l, err := ListenUnix(t.Context(), path, 0o600, -1, -1)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	env.Envoy(testenv.EnvoyOptions{Config: slices.Concat(config, []byte(aggregated))})
	select {
	case <-h.done:
	case <-env.Ready().Done():
		t.Fatal("no NACK came")
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.heard
}

// hearing is a server that notes what it hears on the first stream that rejects something.
type hearing struct {
	t     *testing.T
	fleet *fleet
	delta bool
	done  chan struct{}

	mu    sync.Mutex
	heard [][]byte // guarded by mu; nil until done
}

// serve answers each subscription with a good secret, and the first ACK with a bad one.
func (h *hearing) serve(_ any, stream grpc.ServerStream) error {
	var heard [][]byte
	answered := map[string]bool{}
	nonces, last, spoilt := 0, "", false
	for {
		var data []byte
		if err := stream.RecvMsg(&data); err != nil {
			return err
		}
		decode := decodeSotw
		if h.delta {
			decode = decodeDelta
		}
		r, err := decode(data)
		if err != nil {
			h.t.Errorf("request of a real Envoy: %v", err)
			return err
		}
		heard = append(heard, h.relative(data, nonces))
		if r.nack {
			h.keep(heard)
			<-stream.Context().Done()
			return stream.Context().Err()
		}
		for _, name := range slices.Concat(r.subscribe, r.names) {
			if !answered[name] {
				answered[name], last = true, name
				nonces++
				if err := stream.SendMsg(h.response(name, nonces, true)); err != nil {
					return err
				}
			}
		}
		if r.nonce != "" && !spoilt {
			nonces++
			spoilt = true
			if err := stream.SendMsg(h.response(last, nonces, false)); err != nil {
				return err
			}
		}
	}
}

// keep is for the first stream that rejects something.
func (h *hearing) keep(heard [][]byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.heard == nil {
		h.heard = heard
		close(h.done)
	}
}

// relative is a request without extensions, and with a nonce that a script may have.
func (h *hearing) relative(data []byte, nonces int) []byte {
	nonce := func(n string) string {
		if n == "" {
			return ""
		}
		var i int
		if _, err := fmt.Sscan(n, &i); err != nil {
			h.t.Errorf("nonce %q: %v", n, err)
		}
		return fmt.Sprintf("@%d", nonces-i)
	}
	if h.delta {
		var m discoveryv3.DeltaDiscoveryRequest
		h.parse(data, &m)
		m.ResponseNonce = nonce(m.GetResponseNonce())
		if m.GetNode() != nil {
			m.Node.Extensions = nil
		}
		return marshal(h.t, &m)
	}
	var m discoveryv3.DiscoveryRequest
	h.parse(data, &m)
	m.ResponseNonce = nonce(m.GetResponseNonce())
	if m.GetNode() != nil {
		m.Node.Extensions = nil
	}
	return marshal(h.t, &m)
}

func (h *hearing) parse(data []byte, m proto.Message) {
	if err := proto.Unmarshal(data, m); err != nil {
		h.t.Error(err)
	}
}

// response is a secret of the fleet, or the same without its private key.
func (h *hearing) response(name string, nonce int, good bool) proto.Message {
	res, _ := h.fleet.cache.Resource("canary", name)
	r := &response{delta: h.delta, nonce: uint64(nonce), snapshot: uint64(nonce), name: name, resource: res}
	buffers := r.encode()
	if h.delta {
		m := &discoveryv3.DeltaDiscoveryResponse{}
		h.parse(buffers.Materialize(), m)
		if !good {
			m.Resources[0].Version = fmt.Sprint(nonce)
			spoil(m.GetResources()[0].GetResource())
		}
		return m
	}
	m := &discoveryv3.DiscoveryResponse{}
	h.parse(buffers.Materialize(), m)
	if !good {
		spoil(m.GetResources()[0])
	}
	return m
}

// spoil makes PEM that no Envoy can read.
func spoil(packed *anypb.Any) {
	packed.Value = bytes.ReplaceAll(packed.GetValue(), []byte("BEGIN CERTIFICATE"), []byte("BEGIN CERTIFIKATE"))
}

// hearingCodec receives bytes, and sends messages.
type hearingCodec struct{ encoding.CodecV2 }

// Unmarshal hands over the bytes.
func (hearingCodec) Unmarshal(data mem.BufferSlice, v any) error {
	out, ok := v.(*[]byte)
	if !ok {
		return fmt.Errorf("cannot receive into a %T", v)
	}
	*out = data.Materialize()
	return nil
}
