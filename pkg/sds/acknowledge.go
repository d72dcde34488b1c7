package sds

import (
	"context"
	"strings"
	"time"
	"unicode"
)

// maxMessage is how much of an Envoy's error text is kept, in bytes.
const maxMessage = 1 << 10

// acknowledge handles the answer to one of our responses, and reports whether the request is one.
func (st *stream) acknowledge(ctx context.Context, r *request) bool {
	if r.nonce == "" {
		return false
	}
	f, ok := st.window.take(r.nonce, !st.protocol.delta())
	if !ok {
		return false
	}
	sub := st.names[f.name] // nil if it was unsubscribed meanwhile
	if r.nack {
		st.window.limit = 1
		st.reject(ctx, f, sub, printable(r.message))
		return true
	}
	st.window.limit = windowResponses
	if sub == nil {
		return true
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
	return true
}

// reject handles a NACK: the bytes are not sent to this node again, which goes on with what it has.
func (st *stream) reject(ctx context.Context, f flight, sub *subscription, message string) {
	log := st.log.With("secret", f.name, "message", message)
	if f.resource == nil {
		log.WarnContext(ctx, "removal rejected")
		return
	}
	log.WarnContext(ctx, "secret rejected", "version", f.resource.Version.Short())
	st.server.metrics.nacks.WithLabelValues(st.group, f.name).Inc()
	if sub == nil {
		return
	}
	st.node.noteNACK(sub.record, NACK{Secret: f.name, Version: f.resource.Version, At: time.Now().UTC(), Message: message})
	if sub.sent == f.resource.Version {
		sub.sent = sub.held
	}
	if sub.held == "" { // it has nothing now: give it back what it acknowledged on an earlier stream, if that is known
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
