package raftstore

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// leadership is what this node knows of its own: the term in which it leads and
// has committed, or 0.
type leadership struct {
	changes chan bool // newest value only

	mu    sync.Mutex
	epoch int // rises whenever leadership is gained or lost
	term  uint64
	floor uint64        // everything up to here was applied when the term began
	moved chan struct{} // closed when term changes
}

func newLeadership() *leadership {
	return &leadership{changes: make(chan bool, 1), moved: make(chan struct{})}
}

func (l *leadership) get() (term, floor uint64, moved <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.term, l.floor, l.moved
}

// begin starts a new epoch, in which nothing is established yet.
func (l *leadership) begin() (epoch int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.epoch++
	l.set(0, 0)
	return l.epoch
}

// gain records leadership, unless the epoch is over.
func (l *leadership) gain(epoch int, term, floor uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.epoch == epoch {
		l.set(term, floor)
	}
}

// set needs mu.
func (l *leadership) set(term, floor uint64) {
	was := l.term
	if was == term {
		return
	}
	l.term, l.floor = term, floor
	close(l.moved)
	l.moved = make(chan struct{})
	select {
	case <-l.changes: // nobody has seen it, and it is no longer true
	default:
	}
	l.changes <- term != 0
}

// transferRetry is how often a leader whose hand-over is under way asks again
// whether it is still going to lead.
const transferRetry = 20 * time.Millisecond

// watchLeadership turns what Raft says of its state into what can be relied on:
// a leader counts once it has committed an entry of its own term, and has
// applied all that came before.
func (s *Store) watchLeadership(notify <-chan bool) {
	defer s.lead.begin()
	for {
		select {
		case leads := <-notify:
			epoch := s.lead.begin()
			if leads {
				go s.establish(epoch)
			}
		case <-s.fail.dead:
			return
		case <-s.closing:
			return
		}
	}
}

// establish waits for a barrier to commit in the current term.
func (s *Store) establish(epoch int) {
	for {
		term := s.raft.CurrentTerm()
		go s.greet() // while the barrier commits
		f := s.raft.Barrier(0)
		err := f.Error()
		if err == nil {
			floor := uint64(0)
			if indexed, ok := f.(raft.IndexFuture); ok {
				floor = indexed.Index()
			}
			s.lead.gain(epoch, term, floor)
			return
		}
		if !errors.Is(err, raft.ErrLeadershipTransferInProgress) {
			return // Raft has stepped down
		}
		select {
		case <-time.After(transferRetry):
		case <-s.closing:
			return
		case <-s.fail.dead:
			return
		}
	}
}

// reign is the time of one leader, this node or another, as this node sees it.
type reign struct {
	mu  sync.Mutex
	ctx context.Context // until the leader is another, or nobody; guarded by mu
	end context.CancelFunc
}

func newReign() *reign {
	r := new(reign)
	r.ctx, r.end = context.WithCancel(context.Background())
	return r
}

func (r *reign) get() context.Context {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ctx
}

func (r *reign) next() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.end()
	r.ctx, r.end = context.WithCancel(context.Background())
}

// watchReign begins another reign whenever Raft takes somebody else for the
// leader, or nobody.
func (s *Store) watchReign() {
	// One that is waiting says as much as several: more are dropped.
	changes := make(chan raft.Observation, 1)
	o := raft.NewObserver(changes, false, func(o *raft.Observation) bool {
		_, ok := o.Data.(raft.LeaderObservation)
		return ok
	})
	s.raft.RegisterObserver(o)
	defer s.raft.DeregisterObserver(o)
	for {
		select {
		case <-changes:
			s.reign.next()
		case <-s.fail.dead:
			return
		case <-s.closing:
			return
		}
	}
}

// greet calls the other members, so that the first read finds connections.
func (s *Store) greet() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	s.eachOther(func(server raft.Server) { _, _ = s.askTerm(ctx, server) })
}

// eachOther runs f for all other members at once, and waits.
func (s *Store) eachOther(f func(raft.Server)) {
	var wg sync.WaitGroup
	for _, server := range s.servers() {
		if server.ID != raft.ServerID(s.cfg.NodeID) {
			wg.Go(func() { f(server) })
		}
	}
	wg.Wait()
}

// LeaderChanges tells of leadership: true when this node leads, has committed in
// its own term and applied everything before; false when it no longer does.
// Only the newest value is kept, so that after a change and back there may be
// none or the same again. It is one channel, for one receiver, and is never
// closed.
func (s *Store) LeaderChanges() <-chan bool { return s.lead.changes }

// WaitLeader returns the term once this node leads and has committed in it, or
// the context's error, or ErrClosed.
func (s *Store) WaitLeader(ctx context.Context) (uint64, error) {
	for {
		_, _, moved := s.lead.get()
		if term, ok := s.leading(); ok {
			return term, nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-s.closing:
			return 0, s.closedError()
		case <-s.fail.dead:
			return 0, s.closedError()
		}
	}
}

// IsLeader reports whether this node leads, for all it knows, and has committed
// in its own term. It is a hint for choosing where to send a request and no
// licence to read: see ReadIndex.
func (s *Store) IsLeader() bool {
	_, ok := s.leading()
	return ok
}

// leading returns the term in which this node leads.
func (s *Store) leading() (term uint64, ok bool) {
	term, _, _ = s.lead.get()
	return term, term != 0 && s.fail.cause() == nil && s.raft.State() == raft.Leader && s.raft.CurrentTerm() == term
}

// Leader returns id and address of the leader as far as known, or nothing.
func (s *Store) Leader() (id, address string) {
	a, i := s.raft.LeaderWithID()
	return string(i), string(a)
}

// Term returns the current term.
func (s *Store) Term() uint64 { return s.raft.CurrentTerm() }

// CommitIndex returns the index up to which this node knows that entries are
// committed.
func (s *Store) CommitIndex() uint64 { return s.raft.CommitIndex() }

// AppliedIndex returns the index of the last command or configuration that has
// gone through the state machine here. Raft's own entries are not counted, so
// that it stays a little behind CommitIndex.
func (s *Store) AppliedIndex() uint64 { return s.fsm.applied.Load() }
