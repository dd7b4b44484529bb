package authority

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/state"
	"github.com/writ-dev/writ/capability"
)

const (
	// recallWait is how long a lease request waits for calls that lie with
	// others.
	recallWait = 100 * time.Millisecond
	// recallAgain is how long a lease that was not given back is left alone.
	recallAgain = 2 * time.Second
	// maxRecalled bounds the leases that are remembered as recalled.
	maxRecalled = 1 << 14
	// maxRecallsWaiting bounds the recalls that wait for one stream.
	maxRecallsWaiting = 1024
)

// recalls remembers which leases were asked back, so that one whose holder has
// gone is not asked for, and waited for, by every request.
type recalls struct {
	clock func() int64 // nanoseconds since boot

	mu   sync.Mutex
	last map[state.LeaseID]int64 // guarded by mu
}

func newRecalls(clock func() int64) *recalls {
	return &recalls{clock: clock, last: make(map[state.LeaseID]int64)}
}

// due returns those of the leases that are to be asked back now, and whether
// any is on its way: asked back by now or a moment ago.
func (r *recalls) due(open []state.OpenLease) (ask []state.OpenLease, coming bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.clock()
	if len(r.last) > maxRecalled {
		clear(r.last)
	}
	for _, l := range open {
		switch at, asked := r.last[l.Lease]; {
		case !asked || now-at > int64(recallAgain):
			r.last[l.Lease] = now
			ask, coming = append(ask, l), true
		case now-at <= int64(recallWait):
			coming = true
		}
	}
	return ask, coming
}

// lease has a lease granted. When calls are left, but lie with others, it asks
// for them and waits a little.
func (a *Authority) lease(ctx context.Context, c Call, body *state.Lease) (*state.LeaseResult, error) {
	waiting, cancel := context.WithTimeout(ctx, recallWait)
	defer cancel()
	for {
		changed := a.machine.Changed()
		_, value, err := a.proposer.propose(ctx, laneLease, &change{
			header:  header(state.KindLease, c),
			compose: func(int64) (any, error) { return body, nil },
		})
		if err == nil {
			return value.(*state.LeaseResult), nil
		}
		if !errors.Is(err, capability.CodeBudgetExhausted) || !a.awaitReturned(waiting, body, changed) {
			return nil, err
		}
	}
}

// awaitReturned reports true once there is something to lease again, and false
// when nothing is coming.
func (a *Authority) awaitReturned(ctx context.Context, body *state.Lease, changed <-chan struct{}) bool {
	for {
		open, left, err := a.machine.OpenLeases(body)
		if err != nil {
			return false
		}
		if left > 0 {
			return ctx.Err() == nil
		}
		ask, coming := a.recalls.due(open)
		if len(ask) > 0 {
			a.recall(ask)
		}
		if !coming {
			return false
		}
		select {
		case <-changed:
			changed = a.machine.Changed()
		case <-ctx.Done():
			return false
		}
	}
}

// recall has the holders of leases asked for them, on whichever node their
// streams are.
func (a *Authority) recall(leases []state.OpenLease) {
	a.feeds.recall(leases)
	if a.peers == nil {
		return
	}
	status := a.store.Status()
	for _, node := range slices.Concat(status.Voters, status.Nonvoters) {
		if node != a.cfg.NodeID {
			go func() { // ends within recallWait
				ctx, cancel := context.WithTimeout(context.Background(), recallWait)
				defer cancel()
				_ = a.call(ctx, node, methodRecall, leases, nil) // a lost one is asked for again
			}()
		}
	}
}

func (a *Authority) answerRecall(_ context.Context, _ string, leases *[]state.OpenLease) (*struct{}, error) {
	a.feeds.recall(*leases)
	return new(struct{}), nil
}

// recall hands recalls to the streams of the lessees.
func (fs *feeds) recall(leases []state.OpenLease) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	for _, f := range fs.open {
		f.mu.Lock()
		for _, l := range leases {
			if l.Lessee == f.caller.Name && len(f.recalls) < maxRecallsWaiting {
				f.recalls = append(f.recalls, l.Lease.String())
			}
		}
		waiting := len(f.recalls) > 0
		f.mu.Unlock()
		if waiting {
			select {
			case f.wake <- struct{}{}:
			default:
			}
		}
	}
}

// sendRecalls sends the recalls that wait for the stream.
func (f *feed) sendRecalls() error {
	f.mu.Lock()
	due := f.recalls
	f.recalls = nil
	f.mu.Unlock()
	for _, id := range due {
		if err := f.send(&api.FeedEvent{At: f.at, Recall: &api.FeedRecall{Lease: id}}); err != nil {
			return err
		}
	}
	return nil
}
