package raftstore

import (
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// What Raft stands on. boltLog implements both.
type (
	logStore interface {
		raft.CommitTrackingLogStore
		raft.MonotonicLogStore
	}
	stableStore interface{ raft.StableStore }
)

// spaceRetry is how often a write that cannot be refused tries again on a full
// disk.
const spaceRetry = 100 * time.Millisecond

// failure ends a Store for good, once. It is shared by everything that runs on
// Raft's goroutines.
type failure struct {
	onFatal func(error)
	dead    chan struct{} // closed by the first fatal

	mu      sync.Mutex
	err     error
	opening bool // still within Open: no OnFatal, Open returns the error
}

// openPanic carries a fatal error out of raft.NewRaft to Open.
type openPanic struct{ err error }

// fatal reports err, which ends the process. If OnFatal returns all the same,
// or another goroutine is just about to end it, the caller must go on to halt.
func (f *failure) fatal(err error) {
	f.mu.Lock()
	first := f.err == nil
	if first {
		f.err = err
		close(f.dead)
	}
	opening := f.opening
	f.mu.Unlock()
	if first && !opening {
		f.onFatal(err)
	}
}

// halt ends the goroutine that calls it, one of Raft's, which would otherwise
// panic or carry on with what it takes for an ordinary error. Raft counts its
// goroutines by deferred calls, so that it can still be shut down.
func (f *failure) halt() {
	f.mu.Lock()
	opening, err := f.opening, f.err
	f.mu.Unlock()
	if opening {
		panic(openPanic{err})
	}
	runtime.Goexit()
}

// contain runs fn, which is Raft's, before anything else runs. What goes wrong
// within, also by a panic, becomes an error.
func (f *failure) contain(doing string, fn func() error) (err error) {
	defer func() {
		p := recover()
		if o, ok := p.(openPanic); ok {
			err = o.err
		} else if p != nil {
			err = fmt.Errorf("raftstore: %s: %v", doing, p)
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		if err == nil {
			err = f.err
		}
		f.opening = false
	}()
	if err := fn(); err != nil {
		return fmt.Errorf("raftstore: %s: %w", doing, err)
	}
	return nil
}

// cause returns what ended the Store, if anything did.
func (f *failure) cause() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

// guard stands between Raft and its stores, and decides what an error means.
// A full disk is an ordinary error to an append, upon which a leader steps
// down. Of a term or a vote that cannot be saved Raft makes a panic, and of
// an append that fails after a truncation a wrong idea of its log; so those
// wait for space. Everything else is fatal.
type guard struct {
	logs      logStore
	stable    stableStore
	fail      *failure
	stall     time.Duration
	logger    *slog.Logger
	restoreTo uint64        // what GetCommitIndex answers at most
	closing   chan struct{} // closed to end what waits for space

	every  uint64        // after how many bytes of appends to say so
	grown  chan struct{} // gets it
	unsaid uint64        // bytes appended since; belongs to Raft's goroutine

	full      atomic.Bool // the last append found no space
	truncated atomic.Bool // Raft's idea of the log's end is ahead of it
}

// write runs fn under the watchdog. A patient one waits out a full disk.
func (g *guard) write(what string, patient bool, fn func() error) error {
	for {
		g.checkAlive()
		w := watch(g.stall, func() {
			g.fail.fatal(fmt.Errorf("%w: %s has taken more than %v", ErrDiskStalled, what, g.stall))
		})
		err := fn()
		w.stop()
		g.checkAlive()
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, ErrDiskFull):
			g.fail.fatal(fmt.Errorf("raftstore: %s: %w", what, err))
			g.fail.halt()
		}
		if !g.full.Swap(true) {
			g.logger.Error("no space left: refusing proposals until there is", "error", err)
		}
		if !patient {
			return err
		}
		select {
		case <-time.After(spaceRetry):
		case <-g.fail.dead:
			g.fail.halt()
		case <-g.closing:
			runtime.Goexit()
		}
	}
}

// read runs fn; an error is fatal, but for an entry that is not there. A node that
// has failed still reads: what feeds a pipeline and ended here would leave the one
// that waits for the answers behind, and the node could not be shut down.
func (g *guard) read(what string, fn func() error) error {
	err := fn()
	if err != nil && !errors.Is(err, raft.ErrLogNotFound) {
		g.fail.fatal(fmt.Errorf("raftstore: %s: %w", what, err))
		g.fail.halt()
	}
	return err
}

func (g *guard) checkAlive() {
	select {
	case <-g.fail.dead:
		g.fail.halt()
	default:
	}
}

func (g *guard) StoreLog(l *raft.Log) error { return g.StoreLogs([]*raft.Log{l}) }

func (g *guard) StoreLogs(logs []*raft.Log) error {
	err := g.write("append to the log", g.truncated.Load(), func() error { return g.logs.StoreLogs(logs) })
	if err == nil {
		g.truncated.Store(false)
		if g.full.Swap(false) {
			g.logger.Info("there is space again")
		}
		g.appended(logs)
	}
	return err
}

// appended says now and then that the log has grown.
func (g *guard) appended(logs []*raft.Log) {
	for _, l := range logs {
		g.unsaid += uint64(recordSize(l))
	}
	if g.unsaid < g.every {
		return
	}
	g.unsaid = 0
	select {
	case g.grown <- struct{}{}:
	default:
	}
}

func (g *guard) DeleteRange(lo, hi uint64) error {
	err := g.write("truncation of the log", true, func() error { return g.logs.DeleteRange(lo, hi) })
	if last, lastErr := g.logs.LastIndex(); lastErr == nil && last < lo {
		g.truncated.Store(true)
	}
	return err
}

func (g *guard) FirstIndex() (index uint64, err error) {
	err = g.read("log", func() error { index, err = g.logs.FirstIndex(); return err })
	return index, err
}

func (g *guard) LastIndex() (index uint64, err error) {
	err = g.read("log", func() error { index, err = g.logs.LastIndex(); return err })
	return index, err
}

func (g *guard) GetLog(index uint64, l *raft.Log) error {
	return g.read("log", func() error { return g.logs.GetLog(index, l) })
}

func (g *guard) IsMonotonic() bool { return g.logs.IsMonotonic() }

func (g *guard) StageCommitIndex(index uint64) error { return g.logs.StageCommitIndex(index) }

// GetCommitIndex answers no more than restoreTo. raft v1.8.0 applies up to it
// before it reads the configurations that come after, so that one which is
// within is never seen, and a node that never saw one does not elect itself;
// and it does so before the state machine's goroutine runs, behind a queue of
// 128 batches that would block for good. To claim less is always safe.
func (g *guard) GetCommitIndex() (index uint64, err error) {
	err = g.read("commit index", func() error { index, err = g.logs.GetCommitIndex(); return err })
	return min(index, g.restoreTo), err
}

func (g *guard) Set(key, val []byte) error {
	return g.write("saving term or vote", true, func() error { return g.stable.Set(key, val) })
}

func (g *guard) SetUint64(key []byte, val uint64) error {
	return g.write("saving term or vote", true, func() error { return g.stable.SetUint64(key, val) })
}

func (g *guard) Get(key []byte) (val []byte, err error) {
	err = g.read("term or vote", func() error { val, err = g.stable.Get(key); return err })
	return val, err
}

func (g *guard) GetUint64(key []byte) (val uint64, err error) {
	err = g.read("term or vote", func() error { val, err = g.stable.GetUint64(key); return err })
	return val, err
}

// watchdog calls back when it is not stopped in time.
type watchdog struct {
	mu    sync.Mutex
	timer *time.Timer // nil once stopped
}

// watchTicks: a machine that was suspended or a process that was stopped finds
// its timers expired and must not take that for a slow disk. So the time is
// counted in ticks, of which such a pause is one.
const watchTicks = 5

func watch(d time.Duration, expired func()) *watchdog {
	w := &watchdog{}
	ticks := 0
	w.mu.Lock()
	defer w.mu.Unlock()
	w.timer = time.AfterFunc(d/watchTicks, func() {
		w.mu.Lock()
		ticks++
		alive, done := w.timer != nil, ticks == watchTicks
		if alive && !done {
			w.timer.Reset(d / watchTicks)
		}
		w.mu.Unlock()
		if alive && done {
			expired()
		}
	})
	return w
}

func (w *watchdog) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.timer.Stop()
	w.timer = nil
}
