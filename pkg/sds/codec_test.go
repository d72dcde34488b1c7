package sds

import (
	"bytes"
	"fmt"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/encoding"
	protocodec "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"

	"github.com/sds-server/sds-server/pkg/cache"
)

// sample returns an encoded secret, and the message that it encodes.
func sample(t testing.TB, name string) (*cache.Resource, *tlsv3.Secret) {
	t.Helper()
	f := newFleet(t, Limits{})
	f.rotate(t, "canary", name)
	res, _ := f.cache.Resource("canary", name)
	var m tlsv3.Secret
	if err := proto.Unmarshal(append(cache.Prefix(name), res.Body()...), &m); err != nil {
		t.Fatal(err)
	}
	return res, &m
}

// want returns the response as the stock messages have it.
func (r *response) want(t testing.TB, m *tlsv3.Secret) proto.Message {
	t.Helper()
	control := &corev3.ControlPlane{Identifier: "replica-1"}
	version, nonce := fmt.Sprint(r.snapshot), fmt.Sprint(r.nonce)
	var resources []*anypb.Any
	if m != nil {
		packed, err := anypb.New(m)
		if err != nil {
			t.Fatal(err)
		}
		resources = append(resources, packed)
	}
	if !r.delta {
		return &discoveryv3.DiscoveryResponse{VersionInfo: version, Resources: resources, TypeUrl: typeURL, Nonce: nonce, ControlPlane: control}
	}
	d := &discoveryv3.DeltaDiscoveryResponse{SystemVersionInfo: version, TypeUrl: typeURL, Nonce: nonce, ControlPlane: control}
	for _, packed := range resources {
		d.Resources = append(d.Resources, &discoveryv3.Resource{Name: r.name, Version: string(r.resource.Version), Resource: packed})
	}
	if m == nil {
		d.RemovedResources = []string{r.name}
	}
	return d
}

func TestResponseIsWhatTheStockCodecSends(t *testing.T) {
	const name = "www.example.com"
	res, m := sample(t, name)
	empty := &cache.Resource{Name: "", Version: "v"}
	for _, test := range []struct {
		name string
		r    *response
		m    *tlsv3.Secret
	}{
		{"sotw", &response{snapshot: 9, nonce: 1, name: name, resource: res}, m},
		{"delta", &response{delta: true, snapshot: 18446744073709551615, nonce: 18446744073709551615, name: name, resource: res}, m},
		{"delta, alias", &response{delta: true, snapshot: 9, nonce: 300, name: "x.example.com", resource: res}, m},
		{"removal", &response{delta: true, snapshot: 9, nonce: 1, name: name}, nil},
		{"empty body", &response{delta: true, snapshot: 1, nonce: 1, name: name, resource: empty}, &tlsv3.Secret{}},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.r.origin = encodeControlPlane("replica-1")
			var sent *tlsv3.Secret
			if test.m != nil {
				sent = proto.CloneOf(test.m)
				sent.Name = test.r.name
			}
			want := test.r.want(t, sent)
			buffers, err := newCodec().Marshal(test.r)
			if err != nil {
				t.Fatal(err)
			}
			got := want.ProtoReflect().New().Interface()
			if err := proto.Unmarshal(buffers.Materialize(), got); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
				t.Errorf("response (-want +got):\n%s", diff)
			}
			// Neither a byte more than the stock codec sends, nor an unknown field: only the order differs.
			if stock := proto.Size(want); buffers.Len() != stock {
				t.Errorf("%d bytes, want %d", buffers.Len(), stock)
			}
			if slack := test.r.size() - buffers.Len(); slack < 5 {
				t.Errorf("the window counts %d bytes too few for the response and its frame", 5-slack)
			}
		})
	}
}

func TestBodyIsSharedNotCopied(t *testing.T) {
	res, _ := sample(t, "a")
	r := &response{delta: true, name: "a", resource: res}
	buffers := r.encode()
	body := buffers[len(buffers)-1].ReadOnlyData()
	if &body[0] != &res.Body()[0] {
		t.Error("the body was copied")
	}
}

// hugeNode is a Node as an Envoy sends it: 516 extensions, 61 kB.
func hugeNode() *corev3.Node {
	n := &corev3.Node{
		Id: "edge-1", Cluster: "canary", UserAgentName: "envoy", Locality: &corev3.Locality{Zone: "z"},
		Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{"k": structpb.NewStringValue("v")}},
	}
	for i := range 516 {
		n.Extensions = append(n.Extensions, &corev3.Extension{
			Name: fmt.Sprintf("envoy.filters.http.extension_number_%d", i), Category: "envoy.filters.http",
			TypeUrls: []string{"envoy.extensions.filters.http.some_extension.v3.Config"},
		})
	}
	return n
}

func marshal(t testing.TB, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRequestsAreDecodedWithoutExtensions(t *testing.T) {
	detail := &rpcstatus.Status{Code: 13, Message: "bad"}
	sotw := &discoveryv3.DiscoveryRequest{
		VersionInfo: "3", Node: hugeNode(), ResourceNames: []string{"a", "b"}, TypeUrl: typeURL, ResponseNonce: "7", ErrorDetail: detail,
	}
	delta := &discoveryv3.DeltaDiscoveryRequest{
		Node: hugeNode(), TypeUrl: typeURL, ResourceNamesSubscribe: []string{"a"}, ResourceNamesUnsubscribe: []string{"b"},
		InitialResourceVersions: map[string]string{"a": "v"}, ResponseNonce: "7", ErrorDetail: detail,
	}
	unexported := cmp.AllowUnexported(request{}, nodeID{})
	common := request{node: &nodeID{"edge-1", "canary", "envoy"}, typeURL: typeURL, nonce: "7", nack: true, message: "bad"}
	want := common
	want.names = []string{"a", "b"}
	got, err := decodeSotw(marshal(t, sotw))
	if diff := cmp.Diff(want, got, unexported); diff != "" || err != nil {
		t.Errorf("SotW: %v (-want +got):\n%s", err, diff)
	}
	want = common
	want.subscribe, want.unsubscribe, want.known = []string{"a"}, []string{"b"}, map[string]string{"a": "v"}
	got, err = decodeDelta(marshal(t, delta))
	if diff := cmp.Diff(want, got, unexported); diff != "" || err != nil {
		t.Errorf("delta: %v (-want +got):\n%s", err, diff)
	}
}

func TestOnlyExtensionsAreDropped(t *testing.T) {
	with := &discoveryv3.DeltaDiscoveryRequest{Node: hugeNode(), TypeUrl: typeURL}
	without := proto.CloneOf(with)
	without.Node.Extensions = nil
	var got discoveryv3.DeltaDiscoveryRequest
	if err := unmarshal(marshal(t, with), deltaNode, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(without, &got, protocmp.Transform()); diff != "" {
		t.Errorf("request (-want +got):\n%s", diff)
	}
}

func TestOtherMessagesGoThroughTheStockCodec(t *testing.T) {
	want := hugeNode()
	buffers, err := newCodec().Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	var got corev3.Node
	if err := newCodec().Unmarshal(buffers, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, &got, protocmp.Transform()); diff != "" {
		t.Errorf("node (-want +got):\n%s", diff)
	}
	if _, err := newCodec().Marshal("text"); err == nil {
		t.Error("no error for a message that is no protobuf")
	}
}

// smallNode is a Node that a fuzzer can handle.
func smallNode() *corev3.Node {
	n := hugeNode()
	n.Extensions = n.Extensions[:2]
	return n
}

func FuzzDecodeSotw(f *testing.F) {
	f.Add(marshal(f, &discoveryv3.DiscoveryRequest{Node: smallNode(), ResourceNames: []string{"a"}, TypeUrl: typeURL}))
	f.Add([]byte{0x12, 0x02, 0x4a, 0x00})                          // an empty extension
	f.Add([]byte{0x12, 0x02, 0x4a, 0x00, 0x12, 0x03, 0x0a, 1, 65}) // the node in two parts
	f.Add([]byte{0x13, 0x14})                                      // groups
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := decodeSotw(bytes.Clone(data))
		var m discoveryv3.DiscoveryRequest
		checkDecoded(t, data, got, err, &m)
		if err == nil && proto.Unmarshal(data, &m) == nil {
			want := request{typeURL: m.GetTypeUrl(), nonce: m.GetResponseNonce(), names: m.GetResourceNames(), nack: m.GetErrorDetail() != nil}
			want.message = m.GetErrorDetail().GetMessage()
			compareDecoded(t, want, got, m.GetNode())
		}
	})
}

func FuzzDecodeDelta(f *testing.F) {
	f.Add(marshal(f, &discoveryv3.DeltaDiscoveryRequest{Node: smallNode(), ResourceNamesSubscribe: []string{"a"}, TypeUrl: typeURL}))
	f.Add(marshal(f, &discoveryv3.DeltaDiscoveryRequest{InitialResourceVersions: map[string]string{"a": "v"}}))
	f.Add([]byte{0x0a, 0x02, 0x4a, 0x00})
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := decodeDelta(bytes.Clone(data))
		var m discoveryv3.DeltaDiscoveryRequest
		checkDecoded(t, data, got, err, &m)
		if err == nil && proto.Unmarshal(data, &m) == nil {
			want := request{
				typeURL: m.GetTypeUrl(), nonce: m.GetResponseNonce(), nack: m.GetErrorDetail() != nil, subscribe: m.GetResourceNamesSubscribe(),
				unsubscribe: m.GetResourceNamesUnsubscribe(), known: m.GetInitialResourceVersions(),
			}
			want.message = m.GetErrorDetail().GetMessage()
			compareDecoded(t, want, got, m.GetNode())
		}
	})
}

// checkDecoded checks that what the stock decoder accepts is accepted, and that a failed decoding leaves nothing.
func checkDecoded(t *testing.T, data []byte, got request, err error, m proto.Message) {
	t.Helper()
	if stock := proto.Unmarshal(data, m); stock == nil && err != nil {
		t.Errorf("the stock codec accepts what we refuse: %v", err)
	}
	if err != nil && !cmp.Equal(got, request{}, cmp.AllowUnexported(request{}, nodeID{})) {
		t.Errorf("a refused request was decoded: %+v", got)
	}
}

func compareDecoded(t *testing.T, want, got request, n *corev3.Node) {
	t.Helper()
	if n != nil {
		want.node = &nodeID{n.GetId(), n.GetCluster(), n.GetUserAgentName()}
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(request{}, nodeID{})); diff != "" {
		t.Errorf("request (-want +got):\n%s", diff)
	}
}

func BenchmarkEncodeDelta(b *testing.B) {
	res, m := sample(b, "www.example.com")
	r := &response{delta: true, snapshot: 9, nonce: 12345678, name: "www.example.com", resource: res, origin: encodeControlPlane("replica-1")}
	b.Run("ours", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			buffers, err := newCodec().Marshal(r)
			if err != nil {
				b.Fatal(err)
			}
			buffers.Free()
		}
	})
	b.Run("stock", func(b *testing.B) {
		stock := encoding.GetCodecV2(protocodec.Name)
		want := r.want(b, m)
		b.ReportAllocs()
		for b.Loop() {
			buffers, err := stock.Marshal(want)
			if err != nil {
				b.Fatal(err)
			}
			buffers.Free()
		}
	})
}

func BenchmarkDecodeNode(b *testing.B) {
	data := marshal(b, &discoveryv3.DeltaDiscoveryRequest{Node: hugeNode(), ResourceNamesSubscribe: []string{"a"}, TypeUrl: typeURL})
	buffers := func() mem.BufferSlice { return mem.BufferSlice{mem.SliceBuffer(data)} }
	b.Run("ours", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			in := incoming{delta: true}
			if err := newCodec().Unmarshal(buffers(), &in); err != nil || in.err != nil {
				b.Fatal(err, in.err)
			}
		}
	})
	b.Run("stock", func(b *testing.B) {
		stock := encoding.GetCodecV2(protocodec.Name)
		b.ReportAllocs()
		for b.Loop() {
			var m discoveryv3.DeltaDiscoveryRequest
			if err := stock.Unmarshal(buffers(), &m); err != nil {
				b.Fatal(err)
			}
		}
	})
}
