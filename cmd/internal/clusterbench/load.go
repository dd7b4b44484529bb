package main

import (
	"context"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/writ-dev/writ/cmd/internal/wait"
)

// load is what a number of workers, each going on as soon as it is answered,
// came to.
type load struct {
	count   int
	elapsed time.Duration
	took    samples
	spent   time.Duration // processor time of the process, and of the others that were named
}

func (l *load) perSecond() float64 { return float64(l.count) / l.elapsed.Seconds() }

// each is the processor time that one call took, everybody's together.
func (l *load) each() time.Duration { return l.spent / time.Duration(max(l.count, 1)) }

// drive has workers call f for a while, after a warm-up of a quarter of it that
// does not count. The first error ends it. The processor time is that of this
// process and of those who work for it.
func drive(ctx context.Context, workers int, each time.Duration, f func(ctx context.Context, worker int) error, servants ...int) (load, error) {
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
	wait.For(ctx, each/4)
	before := processor(servants)
	counts.Store(true)
	began := time.Now()
	wait.For(ctx, each)
	counts.Store(false)
	l := load{elapsed: time.Since(began), spent: processor(servants) - before}
	failed := context.Cause(ctx)
	cancel(nil)
	wg.Wait()
	for _, t := range took {
		l.took = append(l.took, t...)
	}
	l.count = len(l.took)
	return l, failed
}

// processor is how much processor time this process and others have used so far.
func processor(others []int) time.Duration {
	var sum time.Duration
	for _, pid := range append([]int{os.Getpid()}, others...) {
		if u, err := usageOf(pid); err == nil {
			sum += u.processor
		}
	}
	return sum
}
