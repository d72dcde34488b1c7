package sds

import (
	"fmt"
	"strconv"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/grpc/encoding"
	protocodec "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/sds-server/sds-server/pkg/cache"
)

// typeURL is the only type that is served.
const typeURL = resourcev3.SecretType

// codec composes responses of a small head and the shared body of a secret, without copying the body, and decodes requests without
// the 60 kB of node.extensions that an Envoy sends. Every other message goes through the stock codec.
type codec struct{ stock encoding.CodecV2 }

var _ encoding.CodecV2 = codec{}

func newCodec() codec { return codec{stock: encoding.GetCodecV2(protocodec.Name)} }

// Name is that of the stock codec: the bytes on the wire are protobuf.
func (c codec) Name() string { return protocodec.Name }

// Marshal encodes a *response, or any protobuf message.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if r, ok := v.(*response); ok {
		return r.encode(), nil
	}
	return c.stock.Marshal(v)
}

// Unmarshal decodes into an *incoming, or any protobuf message. A request that cannot be decoded is noted in the incoming: it is the
// stream that answers it.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	in, ok := v.(*incoming)
	if !ok {
		return c.stock.Unmarshal(data, v)
	}
	buf := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer buf.Free()
	decode := decodeSotw
	if in.delta {
		decode = decodeDelta
	}
	in.request, in.err = decode(buf.ReadOnlyData())
	return nil
}

// incoming is where the codec puts the next request of a stream.
type incoming struct {
	delta   bool
	request request
	err     error
}

// request is a DiscoveryRequest or a DeltaDiscoveryRequest, as far as secrets need it.
type request struct {
	node    *nodeID // nil if absent
	typeURL string
	nonce   string
	nack    bool
	message string // of the NACK

	names       []string          // SotW: all names
	subscribe   []string          // delta
	unsubscribe []string          // delta
	known       map[string]string // delta: initial_resource_versions
}

// nodeID is what is used of a Node.
type nodeID struct{ id, cluster, agent string }

// The field numbers of envoy/service/discovery/v3/discovery.proto and envoy/config/core/v3/base.proto.
const (
	sotwNode       = 2
	deltaNode      = 1
	nodeExtensions = 9
)

func decodeSotw(data []byte) (request, error) {
	var m discoveryv3.DiscoveryRequest
	if err := unmarshal(data, sotwNode, &m); err != nil {
		return request{}, err
	}
	r := request{typeURL: m.GetTypeUrl(), nonce: m.GetResponseNonce(), names: m.GetResourceNames()}
	if d := m.GetErrorDetail(); d != nil {
		r.nack, r.message = true, d.GetMessage()
	}
	if n := m.GetNode(); n != nil {
		r.node = &nodeID{id: n.GetId(), cluster: n.GetCluster(), agent: n.GetUserAgentName()}
	}
	return r, nil
}

func decodeDelta(data []byte) (request, error) {
	var m discoveryv3.DeltaDiscoveryRequest
	if err := unmarshal(data, deltaNode, &m); err != nil {
		return request{}, err
	}
	r := request{
		typeURL: m.GetTypeUrl(), nonce: m.GetResponseNonce(), subscribe: m.GetResourceNamesSubscribe(),
		unsubscribe: m.GetResourceNamesUnsubscribe(), known: m.GetInitialResourceVersions(),
	}
	if d := m.GetErrorDetail(); d != nil {
		r.nack, r.message = true, d.GetMessage()
	}
	if n := m.GetNode(); n != nil {
		r.node = &nodeID{id: n.GetId(), cluster: n.GetCluster(), agent: n.GetUserAgentName()}
	}
	return r, nil
}

func unmarshal(data []byte, nodeField protowire.Number, m proto.Message) error {
	trimmed, err := rewrite(data, nodeField, func(node []byte) ([]byte, error) {
		return rewrite(node, nodeExtensions, nil)
	})
	if err != nil {
		return err
	}
	return proto.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(trimmed, m)
}

// rewrite returns message with each length-delimited field of the given number replaced by what change makes of it; a nil change
// drops the field. The message itself is not modified, and it is returned as it is if nothing has to change.
func rewrite(message []byte, field protowire.Number, change func([]byte) ([]byte, error)) ([]byte, error) {
	var out []byte
	copied := 0 // of message, into out
	for pos := 0; pos < len(message); {
		number, kind, size := protowire.ConsumeField(message[pos:])
		if size < 0 {
			return nil, protowire.ParseError(size)
		}
		next := pos + size
		if number == field && kind == protowire.BytesType {
			_, _, tag := protowire.ConsumeTag(message[pos:])
			value, _ := protowire.ConsumeBytes(message[pos+tag:])
			replaced, err := value, error(nil)
			if change != nil {
				replaced, err = change(value)
			}
			switch {
			case err != nil:
				return nil, err
			case change == nil:
				out = append(out, message[copied:pos]...)
				copied = next
			case len(replaced) != len(value):
				out = append(out, message[copied:pos]...)
				out = protowire.AppendTag(out, number, kind)
				out = protowire.AppendBytes(out, replaced)
				copied = next
			}
		}
		pos = next
	}
	if copied == 0 {
		return message, nil
	}
	return append(out, message[copied:]...), nil
}

// response is one DiscoveryResponse or DeltaDiscoveryResponse with one secret, or (delta only) with one removed name, or with nothing.
type response struct {
	delta    bool
	snapshot uint64
	nonce    uint64
	name     string
	resource *cache.Resource // nil: the name is removed
	nothing  bool            // delta: neither name nor resource; only the response itself matters
	origin   []byte          // the encoded envoy.config.core.v3.ControlPlane
}

// encodeControlPlane makes the part of a response that names the replica.
func encodeControlPlane(identifier string) []byte {
	return protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), identifier)
}

// The fields that both responses have in common, of envoy/service/discovery/v3/discovery.proto.
const (
	fieldVersion           = 1 // version_info, system_version_info
	fieldResources         = 2
	fieldTypeURL           = 4
	fieldNonce             = 5
	fieldRemoved           = 6 // delta
	fieldControlPlane      = 6 // SotW
	fieldDeltaControlPlane = 7

	resourceVersion = 1 // of Resource
	resourceAny     = 2
	resourceName    = 3

	anyTypeURL = 1 // of google.protobuf.Any
	anyValue   = 2
)

// encode puts the secret last, so that the response is two buffers: its own head, and the body that all streams share. Protobuf
// fields may come in any order.
func (r *response) encode() mem.BufferSlice {
	head := make([]byte, 0, 320+2*len(r.name)+len(r.origin))
	head = appendNumber(head, fieldVersion, r.snapshot)
	head = appendString(head, fieldTypeURL, typeURL)
	head = appendNumber(head, fieldNonce, r.nonce)
	control := protowire.Number(fieldControlPlane)
	if r.delta {
		control = fieldDeltaControlPlane
	}
	head = protowire.AppendTag(head, control, protowire.BytesType)
	head = protowire.AppendBytes(head, r.origin)
	switch {
	case r.nothing:
		return mem.BufferSlice{mem.SliceBuffer(head)}
	case r.resource == nil:
		return mem.BufferSlice{mem.SliceBuffer(appendString(head, fieldRemoved, r.name))}
	}
	prefix, body := cache.Prefix(r.name), r.resource.Body()
	value := len(prefix) + len(body)
	packed := sizeField(anyTypeURL, len(typeURL)) + sizeField(anyValue, value)
	head = protowire.AppendTag(head, fieldResources, protowire.BytesType)
	if r.delta {
		version := string(r.resource.Version)
		head = protowire.AppendVarint(head, uint64(sizeField(resourceVersion, len(version))+
			sizeField(resourceName, len(r.name))+sizeField(resourceAny, packed)))
		head = appendString(head, resourceVersion, version)
		head = appendString(head, resourceName, r.name)
		head = protowire.AppendTag(head, resourceAny, protowire.BytesType)
	}
	head = protowire.AppendVarint(head, uint64(packed))
	head = appendString(head, anyTypeURL, typeURL)
	head = protowire.AppendTag(head, anyValue, protowire.BytesType)
	head = protowire.AppendVarint(head, uint64(value))
	return mem.BufferSlice{mem.SliceBuffer(append(head, prefix...)), mem.SliceBuffer(body)}
}

// size is what the response counts for in the window: what the transport holds until it is on the wire, rounded up.
func (r *response) size() int {
	const overhead = 400 // the head of a response and its frame
	if r.resource == nil {
		return overhead + len(r.name)
	}
	return overhead + 2*len(r.name) + len(r.origin) + len(r.resource.Body())
}

func sizeField(number protowire.Number, length int) int {
	return protowire.SizeTag(number) + protowire.SizeBytes(length)
}

func appendString(b []byte, number protowire.Number, s string) []byte {
	return protowire.AppendString(protowire.AppendTag(b, number, protowire.BytesType), s)
}

// appendNumber appends a string field that holds a decimal number.
func appendNumber(b []byte, number protowire.Number, n uint64) []byte {
	var digits [20]byte
	text := strconv.AppendUint(digits[:0], n, 10)
	return protowire.AppendBytes(protowire.AppendTag(b, number, protowire.BytesType), text)
}

// parseNonce returns the number of a nonce that we may have given; false for any other text.
func parseNonce(nonce string) (uint64, bool) {
	n, err := strconv.ParseUint(nonce, 10, 64)
	return n, err == nil && strconv.FormatUint(n, 10) == nonce
}

// String keeps a response out of logs and traces by accident: its secret is private.
func (r *response) String() string { return fmt.Sprintf("response %d for %q", r.nonce, r.name) }
