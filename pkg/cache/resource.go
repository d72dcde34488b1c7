package cache

import (
	"fmt"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/sds-server/sds-server/pkg/secret"
)

// nameField is the field number of Secret.name in
// envoy/extensions/transport_sockets/tls/v3/secret.proto.
const nameField = 1

// Resource is one version of a secret as it goes to an Envoy. It is encoded once and shared by every stream; nobody may write to
// its bytes.
type Resource struct {
	Name    string
	Version secret.Version
	body    []byte // an encoded tls.v3.Secret without its name

	dnsNames []string // of the certificate
}

// Covers reports whether it is a certificate for a host name (see Cache.Covering).
func (r *Resource) Covers(asked string) bool {
	exact, wild, ok := hostKeys(asked)
	return ok && slices.ContainsFunc(r.dnsNames, func(name string) bool {
		name = strings.ToLower(name)
		return name == exact || name == wild
	})
}

// Body returns the encoded envoy.extensions.transport_sockets.tls.v3.Secret without its name. Protobuf fields may come in any
// order, so a whole Secret is Prefix(name) followed by Body. The bytes are shared: they must not be modified.
func (r *Resource) Body() []byte { return r.body }

// Prefix returns the encoded name field that stands before a Body. An on-demand alias differs from its secret in this only.
func Prefix(name string) []byte {
	b := protowire.AppendTag(nil, nameField, protowire.BytesType)
	return protowire.AppendString(b, name)
}

// encode makes the shared body of a stored version; m makes its bytes differ from those of another mark, and means nothing.
func encode(r record, m mark) (*Resource, error) {
	out := &tlsv3.Secret{}
	switch r.Kind {
	case secret.KindTLSCertificate, "": // stored before there were others
		out.Type = &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
			CertificateChain: m.text(r.ChainPEM), PrivateKey: m.text(r.KeyPEM),
		}}
	case secret.KindValidationContext:
		out.Type = &tlsv3.Secret_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{TrustedCa: m.text(r.ChainPEM)}}
	case secret.KindSessionTicketKeys:
		keys := make([]*corev3.DataSource, 0, len(r.TicketKeys))
		for _, key := range r.TicketKeys {
			keys = append(keys, m.binary(key))
		}
		out.Type = &tlsv3.Secret_SessionTicketKeys{SessionTicketKeys: &tlsv3.TlsSessionTicketKeys{Keys: keys}}
	case secret.KindGenericSecret:
		out.Type = &tlsv3.Secret_GenericSecret{GenericSecret: &tlsv3.GenericSecret{Secret: m.binary(r.Generic)}}
	default:
		return nil, fmt.Errorf("encode secret %q: unknown kind %q", r.Name, r.Kind)
	}
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(out)
	if err != nil {
		return nil, fmt.Errorf("encode secret %q: %w", r.Name, err)
	}
	return &Resource{Name: r.Name, Version: r.Version, body: body}, nil
}
