package sds

import (
	"testing"
	"testing/synctest"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
)

var scriptProtocols = []Protocol{SotW, Delta, ADSSotW, ADSDelta}

// FuzzStream plays scripts against the loop of a stream. The corpus in testdata has what a real Envoy said
// (TestRealRequestsPlay), and below is what only a hostile one would say.
func FuzzStream(f *testing.F) {
	s := newStage(f)
	for i, script := range hostileScripts(f) {
		f.Add(byte(2*i), script.sotw)
		f.Add(byte(2*i+1), script.delta)
	}
	f.Fuzz(func(t *testing.T, protocol byte, script []byte) {
		synctest.Test(t, func(t *testing.T) {
			s.play(t, scriptProtocols[int(protocol)%len(scriptProtocols)], script)
		})
	})
}

type scriptPair struct{ sotw, delta []byte }

// hostileScripts are the same stories in both protocols.
func hostileScripts(t testing.TB) []scriptPair {
	t.Helper()
	detail := &rpcstatus.Status{Code: 13, Message: "no"}
	story := func(names []string, steps ...any) scriptPair {
		p := scriptPair{
			scriptRequest(nil, marshal(t, &discoveryv3.DiscoveryRequest{Node: smallNode(), TypeUrl: typeURL, ResourceNames: names})),
			scriptRequest(nil, marshal(t, &discoveryv3.DeltaDiscoveryRequest{Node: smallNode(), TypeUrl: typeURL, ResourceNamesSubscribe: names})),
		}
		for _, step := range steps {
			switch step := step.(type) {
			case []byte:
				p.sotw, p.delta = append(p.sotw, step...), append(p.delta, step...)
			case string: // a NACK of that nonce
				p.sotw = scriptRequest(p.sotw, marshal(t, &discoveryv3.DiscoveryRequest{TypeUrl: typeURL, ResourceNames: names, ResponseNonce: step, ErrorDetail: detail}))
				p.delta = scriptRequest(p.delta, marshal(t, &discoveryv3.DeltaDiscoveryRequest{TypeUrl: typeURL, ResponseNonce: step, ErrorDetail: detail}))
			}
		}
		return p
	}
	return []scriptPair{
		story([]string{"a", "private", "unknown", "x1"}, "@0", "@0", []byte{opMove, 0, 1}, "@0", []byte{opMove, 0, 2}, []byte{opMove, 2, 1}),
		story([]string{"a", "b"}, []byte{opMove, 1, 1}, []byte{opPolicy, 1}, "@1", []byte{opMove, 0, 0}, []byte{opPolicy, 0}, []byte{opPolicy, 2}),
		story([]string{"*"}),
		story(nil, "@0", []byte{opMove, 0, 0}),
	}
}
