package sds

import (
	"context"
	"strings"
	"time"
	"unicode"
)

// misledPerSecond is how often a secret is sent again to an Envoy that a client has misled.
const misledPerSecond = 1000

// maxMessage is how much of an Envoy's error text is kept, in bytes.
const maxMessage = 1 << 10

// acknowledge handles the answer to one of our responses, and reports whether the request is one. The error is that of an answer to it.
func (st *stream) acknowledge(ctx context.Context, r *request) (bool, error) {
	if r.nonce == "" {
		return false, nil
	}
	f, ok := st.window.take(r.nonce, !st.protocol.delta())
	if !ok {
		return false, nil
	}
	sub := st.names[f.name] // nil if it was unsubscribed meanwhile
	if f.nothing {
		sub = nil
	}
	if r.nack {
		if misled, err := st.misled(ctx, f, sub, r.message); misled {
			return true, err
		}
		st.window.limit = 1
		st.reject(ctx, f, sub, printable(r.message))
		return true, nil
	}
	st.window.limit = windowResponses
	if sub == nil {
		return true, nil
	}
	now := time.Now()
	if f.resource == nil {
		sub.held = ""
		st.node.noteGone(sub.record)
	} else if st.node.noteACK(f.name, sub.record, f.resource, now) {
		sub.held = f.resource.Version
		st.meters.acks.Inc()
		st.meters.pushToACK.Observe(now.Sub(f.at).Seconds())
	}
	st.server.changed(st.group)
	return true, nil
}

// misled handles a NACK that says nothing of the secret: a client has sent "*" as SNI, and until that subscription ends the Envoy rejects
// everything (see envoyAgent). It is ended, and the secret is sent again. Whoever always says so gets it at most misledPerSecond times a second; the
// bound is high, because a stream that is read slowly also answers the next "*" late. It reports whether the NACK is one of these.
func (st *stream) misled(ctx context.Context, f flight, sub *subscription, message string) (bool, error) {
	if f.resource == nil || !st.protocol.delta() || !st.envoy || !strings.Contains(message, wildcardRejection) {
		return false, nil
	}
	if st.server.refusals.allow(time.Now()) { // the client may be quick
		st.log.InfoContext(ctx, "secret rejected because of a client that asked for *", "secret", f.resource.Name, "asked", f.name)
	}
	st.server.metrics.denied.WithLabelValues(errWildcard.reason).Inc()
	st.pace.charge(time.Now(), 1.0/misledPerSecond)
	if sub != nil {
		if sub.sent == f.resource.Version {
			sub.sent = sub.held
		}
		st.enqueue(f.name, false)
	}
	_, snapshot := st.server.cache.Resource(st.group, wildcard)
	_, err := st.respond(&response{snapshot: snapshot, name: wildcard})
	return true, err
}

// reject handles a NACK: the bytes are not sent to this node again, which goes on with what it has.
func (st *stream) reject(ctx context.Context, f flight, sub *subscription, message string) {
	log := st.log.With("secret", f.name, "message", message)
	if f.resource != nil && f.resource.Name != f.name {
		log = st.log.With("secret", f.resource.Name, "asked", f.name, "message", message)
	}
	if f.resource == nil {
		if st.server.refusals.allow(time.Now()) { // an Envoy never does it, and who does can do it as often as he asks
			log.WarnContext(ctx, "removal rejected")
		}
		return
	}
	log.WarnContext(ctx, "secret rejected", "version", f.resource.Version.Short())
	st.server.metrics.nacks.WithLabelValues(st.group, f.resource.Name).Inc()
	if sub == nil {
		return
	}
	st.node.noteNACK(f.name, sub.record, NACK{Secret: f.resource.Name, Version: f.resource.Version, At: time.Now().UTC(), Message: message})
	if sub.sent == f.resource.Version {
		sub.sent = sub.held
	}
	// It may have nothing now: then it is given back what it acknowledged on an earlier stream, if that is known. What it goes on with under an
	// alias may be of a certificate that it should not have any more.
	if sub.held == "" || f.resource.Name != f.name || st.node.standIn(sub.record, f.name) {
		st.enqueue(f.name, false)
	}
	st.server.changed(st.group)
}

// printable bounds a foreign text and cleans it, so that it can stand in a log or on a terminal.
func printable(s string) string {
	s = strings.ToValidUTF8(s[:min(len(s), maxMessage)], "")
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s)
}
