package authority

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/writ-dev/writ/authority/state"
	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/capability/revocation"
	"github.com/writ-dev/writ/raftstore"
)

// maxReadWindow is how long one quorum read gathers pings, at most. A read costs a
// cluster of three what a few of the hundreds of pings cost that it answers, so it
// is the pings that are few.
const maxReadWindow = 125 * time.Millisecond

// freshness makes quorum reads for whoever must know that nothing newer was
// acknowledged elsewhere: the pings of replicas, and the node's own verifier.
// One read, begun after they asked, serves all of a window.
type freshness struct {
	quorum  func(context.Context) (uint64, error) // raftstore's ReadIndex
	through func() uint64                         // up to where the state machine's memory is
	set     *revocation.Set
	bound   time.Duration
	window  time.Duration
	clock   func() int64 // nanoseconds since boot, suspend included

	mark  atomic.Int64 // when the last read that succeeded began, by clock
	reads atomic.Uint64

	mu      sync.Mutex
	waiters []func(index uint64) // guarded by mu
	asked   chan struct{}        // holds one element while there are waiters
}

func newFreshness(store *raftstore.Store, machine *state.Machine, bound time.Duration, boot func() int64) *freshness {
	return &freshness{
		quorum: store.ReadIndex, through: machine.Through, set: machine.Revocations(),
		bound: bound, window: min(maxReadWindow, bound/16), clock: boot,
		asked: make(chan struct{}, 1),
	}
}

// bootTime is CLOCK_BOOTTIME: the monotonic clock stops while a machine is
// suspended, and a verdict must not survive that.
func bootTime() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic("authority: CLOCK_BOOTTIME: " + err.Error()) // every Linux has it
	}
	return ts.Nano()
}

// after has f called, soon and once, with an index up to which this node has
// applied everything, after a quorum read begun after the call of after. f must not block.
func (f *freshness) after(call func(index uint64)) {
	f.mu.Lock()
	f.waiters = append(f.waiters, call)
	f.mu.Unlock()
	select {
	case f.asked <- struct{}{}:
	default:
	}
}

// wait waits for a quorum read that begins after the call.
func (f *freshness) wait(ctx context.Context) error {
	done := make(chan struct{})
	f.after(func(uint64) { close(done) })
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// run reads whenever somebody asked, at most once a window, and for the node's
// own verifier at least four times in a bound.
func (f *freshness) run(ctx context.Context) {
	window := time.NewTimer(0) // fires when the next read may begin
	defer window.Stop()
	own := time.NewTicker(f.bound / 4)
	defer own.Stop()
	for {
		select {
		case <-f.asked:
		case <-own.C:
		case <-ctx.Done():
			return
		}
		select {
		case <-window.C:
		case <-ctx.Done():
			return
		}
		window.Reset(f.window)
		f.read(ctx)
	}
}

// read makes one quorum read for all who have asked by now. If it fails they
// wait for the next.
func (f *freshness) read(ctx context.Context) {
	f.mu.Lock()
	waiters := f.waiters
	f.waiters = nil
	f.mu.Unlock()
	begun := f.clock()
	ctx, cancel := context.WithTimeout(ctx, f.bound)
	defer cancel()
	if _, err := f.quorum(ctx); err != nil {
		f.mu.Lock()
		f.waiters = append(waiters, f.waiters...)
		again := len(f.waiters) > 0
		f.mu.Unlock()
		if again {
			select {
			case f.asked <- struct{}{}:
			default:
			}
		}
		return
	}
	f.reads.Add(1)
	f.mark.Store(begun)
	// Raft has entries of its own, which the state machine never sees: what it
	// has now is what the read vouches for.
	index := f.through()
	for _, call := range waiters {
		call(index)
	}
}

// age is how long ago the last read that succeeded began.
func (f *freshness) age() time.Duration { return time.Duration(f.clock() - f.mark.Load()) }

// nodeRevocations is the node's own state as a verifier's revocations.
type nodeRevocations struct {
	*revocation.Set
	f *freshness
}

func (f *freshness) revocations() capability.Revocations {
	return nodeRevocations{f.set, f}
}

// Mark implements capability.Revocations.
func (r nodeRevocations) Mark() int64 { return r.f.mark.Load() }

// Within implements capability.Revocations.
func (r nodeRevocations) Within(mark int64, bound time.Duration) bool {
	if bound == 0 {
		bound = r.f.bound
	}
	return mark != 0 && r.f.clock()-mark <= int64(bound)
}

// registry is the state as a verifier's registry.
type registry struct{ machine *state.Machine }

// Registered implements capability.Registry.
func (r registry) Registered(_ context.Context, id *capability.Identity, tail capability.BranchID) (bool, error) {
	registered, _, ok := r.machine.Registered(id.ID)
	return ok && registered == tail, nil
}
