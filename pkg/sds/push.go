package sds

import (
	"errors"
	"math/rand/v2"
	"time"

	"github.com/sds-server/sds-server/pkg/cache"
)

// push sends the current state of one name, if the Envoy does not have it.
func (st *stream) push(name string, sub *subscription) error {
	force := sub.force
	sub.force = false
	found, snapshot := st.server.resolve(st.found[:0], st.rights.policy, st.group, name)
	st.found = found
	defer clear(found) // keeps no private key in memory
	if len(found) == 0 {
		if sub.sent != "" {
			st.endSeries(name, sub)
		}
		st.endAlias(sub)
		return st.withdraw(name, sub, force, snapshot)
	}
	res, found := st.choice(name, sub, found)
	st.found = found
	switch {
	case res == nil:
		return st.leave(name, sub, force, snapshot)
	case !st.mayHave(name, sub, res):
		return st.withdraw(name, sub, force, snapshot)
	case !force && res.Version == sub.sent:
		return nil
	case !st.server.gate.open(st, name, sub, res, snapshot):
		sub.force = force
		return nil
	}
	return st.send(name, sub, res, snapshot)
}

// endSeries drops the series of NACKs of the secret that was sent under a name, which goes with its secret.
func (st *stream) endSeries(name string, sub *subscription) {
	secretName := st.node.standsFor(name, sub.record)
	if res, _ := st.server.cache.Resource(st.group, secretName); res == nil || secretName == name {
		st.server.metrics.nacks.DeleteLabelValues(st.group, secretName)
	}
}

// leave handles a name under which the Envoy rejected everything that it should have.
func (st *stream) leave(name string, sub *subscription, force bool, snapshot uint64) error {
	switch {
	case len(st.found) == 0 || st.found[0].Name != name:
		// It has nothing, and an on-demand Envoy lets handshakes wait for it until their time-out; after this answer they fail at once, and the
		// next one asks again. Or what it has is no version of a certificate that covers the name now: that cannot be told from one that
		// was removed, or that it may not have any more.
		return st.withdraw(name, sub, force, snapshot)
	case !force:
		return nil
	case st.protocol.delta() && sub.keeps && !st.node.knows(sub.record):
		// It goes on with what it has, of which the bytes are not known here any more. An on-demand Envoy would take removed_resources for a
		// revocation, and fail the handshakes that go well now.
		return st.sendNothing(snapshot)
	}
	return st.withdraw(name, sub, force, snapshot)
}

// mayHave reports whether there is room for the name, where res is another secret's certificate.
func (st *stream) mayHave(name string, sub *subscription, res *cache.Resource) bool {
	if res.Name == name {
		st.endAlias(sub)
		return true
	}
	ok, evicted := st.node.holdAlias(name, sub.record, st.subscriber, st.server.limits.AliasesPerNode)
	if evicted > 0 {
		st.server.metrics.denied.WithLabelValues(reasonAliases).Add(float64(evicted))
	}
	sub.alias = ok
	return ok
}

// endAlias notes that the name stands for no other secret any more.
func (st *stream) endAlias(sub *subscription) {
	if sub.alias {
		sub.alias = false
		st.node.leaveAlias(sub.record, st.subscriber)
	}
}

// withdraw says that there is nothing under a name. SotW has no word for that: an Envoy rejects an empty response.
func (st *stream) withdraw(name string, sub *subscription, force bool, snapshot uint64) error {
	if !st.protocol.delta() {
		sub.sent = ""
		return nil
	}
	if sub.gone && !force {
		return nil
	}
	return st.send(name, sub, nil, snapshot)
}

// send sends a secret, or its removal.
func (st *stream) send(name string, sub *subscription, res *cache.Resource, snapshot uint64) error {
	now, err := st.respond(&response{snapshot: snapshot, name: name, resource: res})
	if err != nil {
		return err
	}
	sub.sent, sub.gone, sub.keeps = "", res == nil, false
	if res != nil {
		sub.sent = res.Version
		st.meters.pushes.Inc()
	}
	st.node.noteSent(name, sub.record, res, now)
	return nil
}

// sendNothing sends a response without a secret (delta), where something has to be answered: an Envoy acknowledges it, and nothing changes.
func (st *stream) sendNothing(snapshot uint64) error {
	_, err := st.respond(&response{snapshot: snapshot, nothing: true})
	return err
}

// sendRefusals answers names that are not subscribed to, as far as the window allows.
func (st *stream) sendRefusals() error {
	sent := 0
	_, snapshot := st.server.cache.Resource(st.group, "")
	for ; sent < len(st.refused) && st.window.open(); sent++ {
		if _, err := st.respond(&response{snapshot: snapshot, name: st.refused[sent]}); err != nil {
			return err
		}
	}
	if st.refused = st.refused[sent:]; len(st.refused) == 0 {
		st.refused = nil
	}
	return nil
}

// respond completes and sends a response.
func (st *stream) respond(r *response) (time.Time, error) {
	st.nonce += 1 + rand.Uint64N(1<<24) // grows, and cannot be guessed by an Envoy that did not read the response
	r.delta, r.nonce, r.origin = st.protocol.delta(), st.nonce, st.server.controlPlane
	if err := st.out.SendMsg(r); err != nil {
		return time.Time{}, errors.Join(errSend, err)
	}
	now := time.Now()
	st.window.add(flight{nonce: st.nonce, name: r.name, resource: r.resource, nothing: r.nothing, at: now, size: r.size()})
	return now, nil
}

var errSend = errors.New("send")
