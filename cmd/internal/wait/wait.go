// Package wait is how the programs that measure pass the time.
package wait

import (
	"context"
	"time"
)

// For waits for so long, or until ctx ends.
func For(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// Until calls done now and then until it says so. It returns why ctx ended, if that
// comes first.
func Until(ctx context.Context, every time.Duration, done func() bool) error {
	for !done() {
		For(ctx, every)
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
	}
	return nil
}
