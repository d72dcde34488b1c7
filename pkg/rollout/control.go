package rollout

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sds-server/sds-server/pkg/cache"
	"github.com/sds-server/sds-server/pkg/secret"
)

// ErrState is returned for a wish that the state of a rollout does not allow; the text says what it is.
var ErrState = errors.New("not possible now")

// ErrNoSecret is returned for a name of which no version is stored.
var ErrNoSecret = errors.New("no version is stored")

// Control says what became of a rollout that an operator has asked something of.
type Control struct {
	ID      uint64 `json:"id"`
	State   State  `json:"state"`
	Reason  string `json:"reason"`
	Already bool   `json:"already"` // nothing changed
}

// Pause stops a rollout where it is. It holds no group any more; a NACK still takes its wave back.
func (c *Controller) Pause(ctx context.Context, id uint64, op Operator) (Control, error) {
	return c.control(ctx, id, func(t *transaction, r *Rollout) (bool, error) {
		switch {
		case r.State.Ended():
			return false, fmt.Errorf("rollout %d is %s: %w", id, r.State, ErrState)
		case r.Unwind != nil:
			return false, fmt.Errorf("rollout %d is being taken back: %w", id, ErrState)
		case r.emergency():
			return false, fmt.Errorf("rollout %d is an emergency: %w; `rollout abort` takes it back", id, ErrState)
		case r.Paused:
			return false, nil
		}
		r.Paused, r.Parked = true, len(r.occupies()) > 0
		r.log(t.now, Paused, op.because("paused"), op.By)
		return true, nil
	})
}

// Resume lets a paused rollout go on, when its groups are free. The watch goes on with what was left of it.
func (c *Controller) Resume(ctx context.Context, id uint64, op Operator) (Control, error) {
	return c.control(ctx, id, func(t *transaction, r *Rollout) (bool, error) {
		switch {
		case r.State.Ended():
			return false, fmt.Errorf("rollout %d is %s: %w", id, r.State, ErrState)
		case !r.Paused:
			return false, nil
		}
		r.Paused = false
		c.unwatched(id, t.now)
		state := Waiting
		if w := r.current(); w != nil && w.State.moved() && !r.Parked {
			state = w.State
		}
		r.log(t.now, state, op.because("resumed"), op.By)
		return true, nil
	})
}

// Abort ends a rollout under way, takes it back in every group that it has moved, and holds its versions.
func (c *Controller) Abort(ctx context.Context, id uint64, op Operator) (Control, error) {
	return c.control(ctx, id, func(t *transaction, r *Rollout) (bool, error) {
		switch {
		case r.State == Aborted || r.Unwind != nil && r.Unwind.End == Aborted:
			return false, nil
		case r.State.Ended():
			return false, fmt.Errorf("rollout %d is %s: %w; `rollout undo` takes back one that is done", id, r.State, ErrState)
		case r.Unwind != nil:
			return false, fmt.Errorf("rollout %d is being taken back: %w", id, ErrState)
		}
		r.Paused = false
		t.holdAll(r, Manual, op.because(fmt.Sprintf("rollout %d was aborted", id)))
		return true, t.reopen(ctx, r, Unwind{Secrets: r.secrets(), Reason: op.because("aborted"), By: op.By, End: Aborted})
	})
}

// Undo takes a rollout back that is done, within the undo window, in every group that it has moved, and holds its versions.
func (c *Controller) Undo(ctx context.Context, id uint64, op Operator) (Control, error) {
	return c.control(ctx, id, func(t *transaction, r *Rollout) (bool, error) {
		switch {
		case r.State == RolledBack || r.Unwind != nil && r.Unwind.End == RolledBack && r.empty():
			return false, nil
		case r.State != Done:
			return false, fmt.Errorf("rollout %d is %s: %w; `rollout abort` takes back one that is under way", id, r.State, ErrState)
		case r.addition():
			return false, fmt.Errorf("rollout %d has only added: %w: there is nothing to go back to", id, ErrState)
		case !t.now.Before(r.Finished.Add(t.policy.UndoWindow)):
			return false, fmt.Errorf("rollout %d is done since %s: %w, rollout.undo_window is %s; `rollback --group` takes back one group",
				id, r.Finished.Format(time.RFC3339), ErrState, t.policy.UndoWindow)
		}
		secrets := r.secrets()
		t.holdAll(r, Manual, op.because(fmt.Sprintf("rollout %d was undone", id)))
		return true, t.reopen(ctx, r, Unwind{Secrets: secrets, Reason: op.because("undone"), By: op.By, End: RolledBack})
	})
}

// control lets do change a rollout, and says what became of it.
func (c *Controller) control(ctx context.Context, id uint64, do func(t *transaction, r *Rollout) (bool, error)) (Control, error) {
	if err := c.take(ctx); err != nil {
		return Control{}, err
	}
	defer c.leave()
	t := c.begin()
	r := t.look(id)
	if r == nil {
		stored, err := c.Rollout(ctx, id)
		if err != nil {
			return Control{}, err
		}
		r = stored
	} else {
		r = t.edit(id)
	}
	changed, err := do(t, r)
	if err != nil {
		return Control{}, err
	}
	if changed {
		if err := t.commit(ctx); err != nil {
			return Control{}, err
		}
		c.Wake()
	}
	return Control{ID: id, State: r.State, Reason: r.Reason, Already: !changed}, nil
}

// Start begins a rollout of a stored version of a secret (a prefix will do; empty: the newest one). Manual and soft holds on it are released; a hard
// hold is an error. Newer versions are held, until they are released. The result has id 0 where every group serves the version.
func (c *Controller) Start(ctx context.Context, name string, version secret.Version, op Operator) (Control, error) {
	if err := c.take(ctx); err != nil {
		return Control{}, err
	}
	defer c.leave()
	t := c.begin()
	m, err := t.pick(ctx, name, version)
	if err != nil {
		return Control{}, err
	}
	if h, ok := t.held(name, m.Version); ok && h.Kind == Hard {
		return Control{}, fmt.Errorf("secret %q version %s is %w (hard): %s", name, m.Version.Short(), ErrHeld, h.Reason)
	}
	if m.Ended(t.now) {
		return Control{}, fmt.Errorf("refused: %s version %s expired at %s", name, m.Version.Short(), m.NotAfter.Format(time.RFC3339))
	}
	t.release(name, m.Version)
	id, _ := t.carriers(name, m.Version)
	if id != 0 && len(t.holds) == 0 {
		r := t.look(id)
		return Control{ID: id, State: r.State, Reason: r.Reason, Already: true}, nil
	}
	if err := t.holdNewer(ctx, m, op); err != nil {
		return Control{}, err
	}
	if id, err = t.propose(ctx, intent{secret: name, version: m.Version, reason: op.because("started"), by: op.By}); err != nil {
		return Control{}, err
	}
	result := Control{ID: id, State: Done, Reason: "every group serves the version", Already: id == 0}
	if r := t.look(id); r != nil {
		result.State, result.Reason = r.State, r.Reason
	}
	if err := t.commit(ctx); err != nil {
		return Control{}, err
	}
	c.Wake()
	return result, nil
}

// holdNewer holds the versions that are newer than one that an operator wants: else they came back with the next start of the server.
func (t *transaction) holdNewer(ctx context.Context, wanted cache.Meta, op Operator) error {
	versions, err := t.stored(ctx, wanted.Name)
	if err != nil {
		return err
	}
	for _, m := range versions { // the newest first
		if m.Version == wanted.Version {
			break
		}
		if _, held := t.held(m.Name, m.Version); !held {
			t.hold(m.Name, m.Version, Manual, op.because("version "+wanted.Version.Short()+" was started instead"))
		}
	}
	return nil
}

// pick returns the one stored version of a secret that begins with a prefix, or the newest one.
func (t *transaction) pick(ctx context.Context, name string, version secret.Version) (cache.Meta, error) {
	versions, err := t.stored(ctx, name)
	if err != nil {
		return cache.Meta{}, err
	}
	fit := slices.DeleteFunc(slices.Clone(versions), func(m cache.Meta) bool { return !strings.HasPrefix(string(m.Version), string(version)) })
	switch {
	case len(versions) == 0:
		return cache.Meta{}, fmt.Errorf("secret %q: %w", name, ErrNoSecret)
	case len(fit) == 0:
		return cache.Meta{}, fmt.Errorf("secret %q has no stored version %s", name, version)
	case len(fit) > 1 && version != "":
		return cache.Meta{}, fmt.Errorf("secret %q has %d versions that begin with %s: give more of it", name, len(fit), version)
	}
	return fit[0], nil
}

// Hold keeps a version of a secret from going further (a prefix will do; empty: the newest one). Rollouts that bring it end; groups that serve it stay.
func (c *Controller) Hold(ctx context.Context, name string, version secret.Version, op Operator) (Hold, error) {
	if err := c.take(ctx); err != nil {
		return Hold{}, err
	}
	defer c.leave()
	t := c.begin()
	m, err := t.pick(ctx, name, version)
	if err != nil {
		return Hold{}, err
	}
	t.hold(name, m.Version, Manual, op.because("held by "+op.By))
	for _, id := range t.activeIDs() {
		if to, ok := t.look(id).brings(name); !ok || to != m.Version {
			continue
		}
		r := t.edit(id)
		r.leave(name, op.because("held"))
		if r.empty() && r.Unwind != nil {
			continue // it ends when everything is taken back
		}
		if r.empty() {
			if w := r.current(); w != nil {
				w.Members = nil
			}
			r.log(t.now, Aborted, op.because(name+" version "+m.Version.Short()+" was held"), op.By)
		} else {
			t.goesOn(r, op.because(name+" version "+m.Version.Short()+" was held"), op.By)
		}
	}
	if err := t.commit(ctx); err != nil {
		return Hold{}, err
	}
	c.Wake()
	h, _ := t.held(name, m.Version)
	return h, nil
}
