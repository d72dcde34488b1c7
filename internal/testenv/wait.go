package testenv

import (
	"context"
	"fmt"
	"time"
)

// pollInterval is the time between two looks at a condition of another process.
const pollInterval = 10 * time.Millisecond

// Eventually calls check every 10 ms until it returns nil or ctx ends; then it returns the last error of check. A ctx
// without a deadline is given 30 s.
func Eventually(ctx context.Context, check func(context.Context) error) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, 30*time.Second)
		defer cancel()
	}
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	for {
		err := check(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w; last: %w", ctx.Err(), err)
		case <-ticker.C:
		}
	}
}
