package sds

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/sds-server/sds-server/pkg/cache"
	"github.com/sds-server/sds-server/pkg/secret"
	"github.com/sds-server/sds-server/pkg/store"
)

// wildcard would subscribe to every secret there is. It is refused.
const wildcard = "*"

// envoyAgent is what an Envoy calls itself in node.user_agent_name. An Envoy never wants a wildcard of secrets, but an on-demand one subscribes to
// whatever its clients send as SNI, and "*" is taken for a wildcard by its own xDS client (seen with 1.40.0): then it rejects every secret
// that comes, whatever its name. The internet must not close its stream with that, nor have it reject what is good.
const envoyAgent = "envoy"

// wildcardRejection is in the message with which an Envoy rejects a secret because it takes "*" for a name of it.
const wildcardRejection = "(expecting *)"

// subscriptions applies the names of a request, and reports whether something was added or dropped.
func (st *stream) subscriptions(ctx context.Context, r *request, first bool) (bool, error) {
	if !st.protocol.delta() {
		return st.replace(r.names)
	}
	return st.adjust(ctx, r, first)
}

// replace applies the names of a SotW request, which are all that the Envoy wants. An empty list subscribes to nothing.
func (st *stream) replace(names []string) (bool, error) {
	if slices.Equal(names, st.listed) {
		return false, nil
	}
	listed := make(map[string]struct{}, len(names))
	for _, name := range names {
		listed[name] = struct{}{}
	}
	st.listed = names
	changed := false
	for name, sub := range st.names {
		if _, ok := listed[name]; !ok {
			st.unsubscribe(name, sub)
			changed = true
		}
	}
	for _, name := range names {
		if _, ok := st.names[name]; ok {
			continue
		}
		if err := st.subscribe(name); err != nil {
			return changed, err
		}
		changed = true
	}
	return changed, nil
}

// adjust applies the names of a delta request. Each one that is subscribed to is answered, also if it was before. On a new stream
// those that the Envoy has already are skipped, except that something is always answered: an Envoy that hears nothing after a
// reconnect waits ever longer before the next one (facts/envoy-sds.md, section 5).
func (st *stream) adjust(ctx context.Context, r *request, first bool) (bool, error) {
	for _, name := range r.unsubscribe {
		if sub, ok := st.names[name]; ok {
			st.unsubscribe(name, sub)
		}
	}
	for _, name := range r.subscribe {
		if err := st.subscribe(name); err != nil {
			return true, err
		}
		if version, ok := r.known[name]; ok && first && st.names[name] != nil {
			st.has(ctx, name, secret.Version(version))
		}
	}
	if first && len(r.subscribe) == 0 && st.envoy { // its form of a wildcard in the first request
		return false, st.refuse(wildcard, errWildcard)
	}
	if first && len(r.subscribe) > 0 && len(st.refused) == 0 && !slices.ContainsFunc(r.subscribe, st.forced) {
		st.enqueue(r.subscribe[0], true)
	}
	return len(r.subscribe)+len(r.unsubscribe) > 0, nil
}

// forced reports whether a name will be answered whatever the Envoy has.
func (st *stream) forced(name string) bool {
	sub := st.names[name]
	return sub != nil && sub.force
}

// has notes that the Envoy has a version from before. It is not sent again if it is what the Envoy should have.
func (st *stream) has(ctx context.Context, name string, version secret.Version) {
	sub := st.names[name]
	now := time.Now()
	found, _ := st.server.resolve(nil, st.rights.policy, st.group, name)
	if len(found) == 0 {
		if st.node.noteKnown(name, sub.record, name, version, now) {
			sub.held = version
		}
		return
	}
	if sub.keeps = st.node.noteKnown(name, sub.record, found[0].Name, version, now); sub.keeps {
		sub.held = version
	}
	res, found := st.choice(name, sub, found)
	if res == nil && sub.keeps {
		res = st.recall(ctx, found, version)
	}
	if res != nil && res.Version == version && st.mayHave(name, sub, res) {
		st.node.noteACK(name, sub.record, res, now)
		sub.sent, sub.held, sub.force = version, version, false
	}
}

// recall returns a version from the store that the Envoy goes on with, because it rejected all that it should have; nil if it is none of
// those secrets'. The last good version of a node that rejected another one stays stored.
func (st *stream) recall(ctx context.Context, found []*cache.Resource, version secret.Version) *cache.Resource {
	for _, f := range found {
		res, err := st.server.cache.Stored(ctx, f.Name, version)
		if err == nil {
			return res
		}
		if !errors.Is(err, store.ErrNotFound) {
			st.log.WarnContext(ctx, "version of a node cannot be read", "secret", f.Name, "version", version.Short(), "err", err)
		}
	}
	return nil
}

// subscribe listens to a name and queues its answer.
func (st *stream) subscribe(name string) error {
	sub := st.names[name]
	if sub == nil {
		if d := st.refusal(name); d != nil {
			return st.refuse(name, d)
		}
		st.subscriber.Add(name) // before it is looked up, so that no change falls in between
		sub = &subscription{record: st.server.ledger.subscribe(st.node, name)}
		st.names[name] = sub
		if st.server.wanted(st.rights.policy, st.group, name) == nil {
			reason := reasonUnknown
			if !st.rights.policy.Allowed(st.group, name) {
				reason = reasonName
			}
			st.server.metrics.denied.WithLabelValues(reason).Inc()
		}
	}
	sub.keeps = false
	st.node.askAlias(sub.record)
	st.enqueue(name, true)
	return nil
}

// refusal returns why a new name is not subscribed to; nil if it is.
func (st *stream) refusal(name string) *denial {
	switch {
	case name == wildcard:
		return errWildcard
	case len(name) > maxName:
		return errNameLength
	case len(st.names) >= st.server.limits.NamesPerStream:
		return errNames
	}
	return nil
}

// refuse says that there is nothing under a name, and keeps nothing of it: names come from the internet, and must not close the stream of a
// node (DESIGN 5). SotW has no word for that: there the stream ends. An Envoy that does not read is not waited for.
func (st *stream) refuse(name string, d *denial) error {
	if !st.protocol.delta() || d == errWildcard && !st.envoy {
		return d
	}
	st.server.metrics.denied.WithLabelValues(d.reason).Inc()
	if len(st.refused) < maxRefused {
		st.refused = append(st.refused, name)
	}
	return nil
}

func (st *stream) unsubscribe(name string, sub *subscription) {
	st.subscriber.Remove(name)
	st.server.ledger.unsubscribe(st.node, name, sub.record, st.subscriber)
	delete(st.names, name)
}
