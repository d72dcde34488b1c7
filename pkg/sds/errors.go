package sds

import (
	"context"
	"errors"
	"io"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// denial is a refusal that ends a stream: what the Envoy is told, and the metric label. The text is constant, so nothing internal
// can leak with it.
type denial struct {
	code   codes.Code
	reason string // label of sds_denied_total
	text   string
}

// Error returns what the Envoy is told.
func (d *denial) Error() string { return d.text }

// The refusals. Each of them is counted by its reason.
var (
	errNoCertificate   = &denial{codes.Unauthenticated, "no_certificate", "a client certificate with a URI or DNS name is required"}
	errExpired         = &denial{codes.Unauthenticated, "certificate_expired", "the client certificate has expired"}
	errUnknownIdentity = &denial{codes.PermissionDenied, "unknown_identity", "the identity is in no node group"}
	errGroupNotNamed   = &denial{codes.PermissionDenied, "group_not_named", "several node groups are allowed: name one in node.cluster"}
	errGroupLost       = &denial{codes.PermissionDenied, "group_lost", "the right to the node group has ended"}
	errTypeURL         = &denial{codes.InvalidArgument, "type_url", "only secrets are served here"}
	errWildcard        = &denial{codes.InvalidArgument, "wildcard", "secrets are subscribed to by name, not by *"}
	errMalformed       = &denial{codes.InvalidArgument, "malformed", "the request cannot be decoded"}
	errNoNode          = &denial{codes.InvalidArgument, "no_node", "the first request must hold node.id"}
	errNodeID          = &denial{codes.InvalidArgument, "node_id", "node.id is too long"}
	errNodeChanged     = &denial{codes.InvalidArgument, "node_changed", "node.id must not change within a stream"}
	errStreams         = &denial{codes.ResourceExhausted, "streams", "too many streams of this identity"}
	errStreamRate      = &denial{codes.ResourceExhausted, "stream_rate", "too many new streams of this identity"}
	errNames           = &denial{codes.ResourceExhausted, "names", "too many secret names in this stream"}
	errNameLength      = &denial{codes.ResourceExhausted, "name_length", "a secret name is too long"}
	errNodes           = &denial{codes.ResourceExhausted, "nodes", "too many nodes of this identity"}
	errNoGroup         = &denial{codes.Unavailable, "group_missing", "the node group is not ready"}
	errDraining        = &denial{codes.Unavailable, "draining", "the server is shutting down"}
)

// The reasons of refusals that are no denial of ours.
const (
	reasonName        = "name"         // a name that the group may not have, and that no certificate of its own covers: answered as unknown
	reasonUnknown     = "unknown_name" // a name of no secret, that no certificate covers
	reasonAliases     = "aliases"      // an alias that made room for another one, or found none
	reasonNonce       = "nonce"        // an acknowledgement of no response that we wait for: ignored
	reasonMessageSize = "message_size" // grpc has ended the stream with RESOURCE_EXHAUSTED by itself
)

// status turns the end of a stream into what the Envoy is told. It is the only place where errors become codes (CONVENTIONS 11).
func (s *Server) status(ctx context.Context, peer Peer, err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return nil
	}
	if d, ok := errors.AsType[*denial](err); ok {
		s.metrics.denied.WithLabelValues(d.reason).Inc()
		if d != errDraining && s.refusals.allow(time.Now()) {
			s.log.InfoContext(ctx, "stream refused", "reason", d.reason, "transport", string(peer.Transport), "identities", peer.Identities)
		}
		return status.Error(d.code, d.text)
	}
	if ctx.Err() != nil { // the Envoy went away: nobody reads this
		return status.FromContextError(ctx.Err()).Err()
	}
	if s.refusals.allow(time.Now()) {
		s.log.WarnContext(ctx, "stream failed", "transport", string(peer.Transport), "identities", peer.Identities, "err", err)
	}
	return status.Error(codes.Internal, "internal error")
}
