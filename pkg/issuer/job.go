package issuer

import (
	"context"
	"sync"
)

// job is one order of one certificate, from the request or the due time to the sink. All who ask for the certificate meanwhile
// wait for the same job.
type job struct {
	done chan struct{} // closed by finish

	// Guarded by the loop's mu: whether a worker has it, and what ends its context then.
	started bool
	cancel  context.CancelCauseFunc

	mu sync.Mutex
	// All of these are guarded by mu; changed is closed and replaced at each step.
	step     Step
	changed  chan struct{}
	accepted Accepted
	err      error
}

func newJob() *job {
	return &job{done: make(chan struct{}), step: StepQueued, changed: make(chan struct{})}
}

// cut ends a job that has started.
func (j *job) cut(cause error) {
	if j.cancel != nil {
		j.cancel(cause)
	}
}

func (j *job) setStep(s Step) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.step = s
	close(j.changed)
	j.changed = make(chan struct{})
}

// current returns the step, and what is closed when there is another.
func (j *job) current() (Step, <-chan struct{}) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.step, j.changed
}

// finish is called once.
func (j *job) finish(a Accepted, err error) {
	j.mu.Lock()
	j.accepted, j.err = a, err
	j.mu.Unlock()
	close(j.done)
}

func (j *job) result() (Accepted, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.accepted, j.err
}
