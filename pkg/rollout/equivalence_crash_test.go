package rollout

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// failing makes the n-th commit fail from now on, before or after it.
func (h *history) failing(n int, name string) string {
	at := func(k int) bool { return k >= n }
	base := h.disk.count()
	when := "before"
	if h.random.IntN(2) == 0 {
		h.disk.hooks(func(k int) bool { return at(k - base) }, nil)
	} else {
		when = "after"
		h.disk.hooks(nil, func(k int) bool { return at(k - base) })
	}
	return fmt.Sprintf("the store fails %s commit %d; %s", when, n, h.accept(name))
}

// do lets both do something. What a failing store keeps from being done is done again; what was only not answered is done.
func (h *history) do(wish func() error, reference func()) {
	h.t.Helper()
	lost := h.disk.after != nil
	err := wish()
	if !errors.Is(err, errDisk) {
		reference()
		return
	}
	if lost {
		h.disk.hooks(nil, nil)
		if err := h.c.take(h.ctx()); err != nil { // it reads what the store holds
			h.t.Fatal(err)
		}
		h.c.leave()
		reference()
		h.reboot(h.ref)
		return
	}
	h.mend()
	if err := wish(); err != nil && errors.Is(err, errDisk) {
		h.t.Fatal(err)
	}
	reference()
}

// mend is what happens after a write that failed, or whose answer got lost, while the controller looked: a crash, or not. What was due then may be done, or
// some of it, or nothing: what comes after has to be what the reference does in one of these cases. It returns whether there was a crash.
func (h *history) mend() bool {
	h.t.Helper()
	h.disk.hooks(nil, nil)
	if h.random.IntN(2) == 0 {
		return false // it goes on, and reads what the store holds
	}
	refs := h.ref.halves(time.Now())
	h.crashes++
	h.reboot(refs...)
	last := ""
	for range 100 {
		h.step()
		h.fleet.deliver(h.cache)
		now := h.String()
		for _, ref := range refs {
			ref.step(time.Now())
			ref.fleet.send(func(group, name string) version { return ref.serves[group][name] })
			now += ref.String()
		}
		if now == last {
			break
		}
		last = now
	}
	if !h.choose(refs) {
		h.undecided = true
	}
	return true
}

// choose goes on with the first reference that is where the controller is.
func (h *history) choose(refs []*reference) bool {
	now := h.String()
	i := slices.IndexFunc(refs, func(ref *reference) bool { return ref.String() == now })
	if i >= 0 {
		h.ref = refs[i]
	}
	return i >= 0
}

// reboot ends the server without a word, and starts it again; Envoys too.
func (h *history) reboot(refs ...*reference) {
	h.t.Helper()
	before := h.String()
	if h.c.doubt { // it does not know what the store holds
		before = ""
	}
	again := func(f *fleet) {
		f.forget(true)
		f.edit(func() {
			for _, n := range f.nodes {
				clear(n.received)
			}
		})
	}
	again(h.fleet)
	h.crash()
	h.check.restarted(h, before)
	for _, ref := range refs {
		again(ref.fleet)
		h.check.watches(h, ref)
		ref.restart()
	}
	if err := h.c.Reconfigure(h.ctx(), h.policy); err != nil {
		h.t.Fatal(err)
	}
}
