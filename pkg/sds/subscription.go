package sds

import (
	"slices"
	"time"

	"github.com/sds-server/sds-server/pkg/secret"
)

// wildcard would subscribe to every secret there is. It is refused.
const wildcard = "*"

// subscriptions applies the names of a request, and reports whether something was added or dropped.
func (st *stream) subscriptions(r *request, first bool) (bool, error) {
	if !st.protocol.delta() {
		return st.replace(r.names)
	}
	return st.adjust(r, first)
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
func (st *stream) adjust(r *request, first bool) (bool, error) {
	for _, name := range r.unsubscribe {
		if sub, ok := st.names[name]; ok {
			st.unsubscribe(name, sub)
		}
	}
	for _, name := range r.subscribe {
		if err := st.subscribe(name); err != nil {
			return true, err
		}
		if version, ok := r.known[name]; ok && first {
			st.has(name, secret.Version(version))
		}
	}
	if first && len(r.subscribe) > 0 && !slices.ContainsFunc(r.subscribe, st.forced) {
		st.enqueue(r.subscribe[0], true)
	}
	return len(r.subscribe)+len(r.unsubscribe) > 0, nil
}

func (st *stream) forced(name string) bool { return st.names[name].force }

// has notes that the Envoy has a version from before. It is not sent again if it is what the Envoy should have.
func (st *stream) has(name string, version secret.Version) {
	sub := st.names[name]
	now := time.Now()
	if st.node.noteKnown(sub.record, version, now) {
		sub.held = version
	}
	res, _ := st.current(name)
	if res == nil {
		return
	}
	if res = st.node.choose(sub.record, res); res != nil && res.Version == version {
		st.node.noteACK(name, sub.record, res, now)
		sub.sent, sub.held, sub.force = version, version, false
	}
}

// subscribe listens to a name and queues its answer.
func (st *stream) subscribe(name string) error {
	switch {
	case name == wildcard:
		return errWildcard
	case len(name) > maxName:
		return errNameLength
	}
	if st.names[name] == nil {
		if len(st.names) >= st.server.limits.NamesPerStream {
			return errNames
		}
		st.subscriber.Add(name) // before it is looked up, so that no change falls in between
		st.names[name] = &subscription{record: st.server.ledger.subscribe(st.node, name)}
		if !st.rights.policy.Allowed(st.group, name) {
			st.server.metrics.denied.WithLabelValues(reasonName).Inc()
		}
	}
	st.enqueue(name, true)
	return nil
}

func (st *stream) unsubscribe(name string, sub *subscription) {
	st.subscriber.Remove(name)
	st.server.ledger.unsubscribe(st.node, name, sub.record)
	delete(st.names, name)
}
