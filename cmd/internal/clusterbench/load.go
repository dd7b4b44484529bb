package main

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// load is what a number of workers, each going on as soon as it is answered,
// came to.
type load struct {
	count   int
	elapsed time.Duration
	took    samples
}

func (l *load) perSecond() float64 { return float64(l.count) / l.elapsed.Seconds() }

// drive has workers call f for a while, after a warm-up of a quarter of it that
// does not count. The first error ends it.
func drive(ctx context.Context, workers int, each time.Duration, f func(ctx context.Context, worker int) error) (load, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var counts atomic.Bool
	took := make([]samples, workers)
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for ctx.Err() == nil {
				began := time.Now()
				counted := counts.Load()
				if err := f(ctx, w); err != nil {
					if ctx.Err() == nil {
						cancel(err)
					}
					return
				}
				if counted && counts.Load() {
					took[w] = append(took[w], time.Since(began))
				}
			}
		})
	}
	pause(ctx, each/4)
	counts.Store(true)
	began := time.Now()
	pause(ctx, each)
	counts.Store(false)
	l := load{elapsed: time.Since(began)}
	failed := context.Cause(ctx)
	cancel(nil)
	wg.Wait()
	for _, t := range took {
		l.took = append(l.took, t...)
	}
	l.count = len(l.took)
	return l, failed
}

// pause waits, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// until calls done now and then until it says so.
func until(ctx context.Context, every time.Duration, done func() bool) error {
	for !done() {
		pause(ctx, every)
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
	}
	return nil
}
