package raftstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"
)

// fsm is the StateMachine as Raft sees it. It knows what has been applied, and
// lets readers wait for it.
type fsm struct {
	sm   StateMachine
	fail *failure
	id   raft.ServerID // of this node

	removed func() // called before this node ends because it was removed
	member  bool   // a committed configuration had this node; belongs to Raft's goroutine

	applied atomic.Uint64 // last command or configuration that went through

	mu   sync.Mutex
	more chan struct{} // closed when applied rises
}

func newFSM(sm StateMachine, fail *failure, id string, removed func()) *fsm {
	f := &fsm{sm: sm, fail: fail, id: raft.ServerID(id), removed: removed, more: make(chan struct{})}
	f.applied.Store(sm.AppliedIndex())
	return f
}

// contain makes a panic of the state machine fatal; deferred.
func (f *fsm) contain(doing string) {
	p := recover()
	if p == nil {
		return
	}
	if o, ok := p.(openPanic); ok {
		panic(o)
	}
	cause, ok := p.(error) // which the state machine may have a sentinel for
	if !ok {
		cause = fmt.Errorf("%v", p)
	}
	f.broken(fmt.Errorf("%w: panic in %s: %w\n%s", ErrStateMachine, doing, cause, debug.Stack()))
}

func (f *fsm) broken(err error) {
	f.fail.fatal(err)
	f.fail.halt()
}

// ApplyBatch implements raft.BatchingFSM.
func (f *fsm) ApplyBatch(logs []*raft.Log) []any {
	defer f.contain("Apply")
	if f.fail.cause() != nil {
		f.fail.halt()
	}
	results := make([]any, len(logs))
	entries := make([]Entry, 0, len(logs))
	slots := make([]int, 0, len(logs))
	done := f.sm.AppliedIndex()
	for i, l := range logs {
		if l.Type == raft.LogCommand && l.Index > done {
			entries = append(entries, Entry{Index: l.Index, Term: l.Term, Command: l.Data})
			slots = append(slots, i)
		}
	}
	if len(entries) > 0 {
		got := f.sm.Apply(entries)
		if len(got) != len(entries) {
			f.broken(fmt.Errorf("%w: %d results for %d entries", ErrStateMachine, len(got), len(entries)))
		}
		if at, last := f.sm.AppliedIndex(), entries[len(entries)-1].Index; at != last {
			f.broken(fmt.Errorf("%w: AppliedIndex is %d after entry %d", ErrStateMachine, at, last))
		}
		for i, slot := range slots {
			results[slot] = got[i]
		}
	}
	f.advance(logs[len(logs)-1].Index)
	for _, l := range logs {
		if l.Type == raft.LogConfiguration {
			f.configured(raft.DecodeConfiguration(l.Data), l.Index)
		}
	}
	return results
}

// configured takes in a committed configuration. A node that was in one before
// and is in this one no longer was removed.
func (f *fsm) configured(c raft.Configuration, index uint64) {
	for _, server := range c.Servers {
		if server.ID == f.id {
			f.member = true
			return
		}
	}
	if f.member {
		f.removed()
		f.broken(fmt.Errorf("%w: by configuration %d", ErrRemoved, index))
	}
}

// Apply implements raft.FSM.
func (f *fsm) Apply(l *raft.Log) any { return f.ApplyBatch([]*raft.Log{l})[0] }

// Restore implements raft.FSM.
func (f *fsm) Restore(r io.ReadCloser) error {
	defer f.contain("Restore")
	if err := decompress(r, f.sm.Restore); err != nil {
		// Half of one state and half of another is no state to go on from.
		f.broken(fmt.Errorf("%w: restore: %w", ErrStateMachine, err))
	}
	index := f.sm.AppliedIndex()
	s := snapshotOf(r)
	if s != nil {
		index = s.meta.Index // Raft's own entries may be the last in it
	}
	f.at(index)
	if s != nil {
		f.configured(s.meta.Configuration, s.meta.ConfigurationIndex)
	}
	return nil
}

// Snapshot implements raft.FSM.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) {
	defer f.contain("Snapshot")
	snap, err := f.sm.Snapshot()
	if err != nil {
		return nil, err
	}
	return &fsmSnapshot{f, snap}, nil
}

type fsmSnapshot struct {
	fsm  *fsm
	snap Snapshot
}

// Persist implements raft.FSMSnapshot. Raft closes the sink.
func (s *fsmSnapshot) Persist(sink raft.SnapshotSink) error {
	defer s.fsm.contain("Persist")
	return compress(sink, s.snap.Persist)
}

// Release implements raft.FSMSnapshot.
func (s *fsmSnapshot) Release() {
	defer s.fsm.contain("Release")
	s.snap.Release()
}

func (f *fsm) advance(index uint64) {
	if index > f.applied.Load() {
		f.at(index)
	}
}

// at says how far the state is. That is less than before only where Open restores
// a snapshot over a state that was kept.
func (f *fsm) at(index uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.applied.Store(index)
	close(f.more)
	f.more = make(chan struct{})
}

// wait returns once the entry at index has been applied.
func (f *fsm) wait(ctx context.Context, index uint64, dead, closing <-chan struct{}) error {
	for f.applied.Load() < index {
		f.mu.Lock()
		more := f.more
		f.mu.Unlock()
		if f.applied.Load() >= index {
			return nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return ctx.Err()
		case <-dead:
			return errStopped
		case <-closing:
			return errStopped
		}
	}
	return nil
}

var errStopped = errors.New("raftstore: stopped")
