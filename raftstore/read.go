package raftstore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// ReadIndex makes a read linearizable. When it returns, the state machine here
// has applied every command up to the returned index, and with it every command
// that had been acknowledged, by any leader, before ReadIndex was called. A node
// that does not lead asks the leader. ErrNotLeader when none could make sure
// within a few heartbeats.
// Calls that are made while another is under way share the next round.
//
// The only voter leads as long as it says so, since nobody else could be
// elected. With other voters, a majority must have confirmed its term after the
// call (raft's VerifyLeader also counts answers to what was asked before).
func (s *Store) ReadIndex(ctx context.Context) (uint64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	select {
	case <-s.closing:
		return 0, s.closedError()
	case <-s.fail.dead:
		return 0, s.closedError()
	default:
	}
	if !s.IsLeader() {
		return s.readVia(ctx, &s.followReads, s.askLeader)
	}
	return s.readAsLeader(ctx)
}

// round is one time of making sure, for all who asked before it began.
type round struct {
	done         chan struct{} // closed when the rest is set
	commit, need uint64        // commit index, and the command that must be applied
	err          error
}

// rounds are made one after the other.
type rounds struct {
	mu      sync.Mutex
	next    *round // what those who ask now wait for; nil before anyone has
	running bool
}

// join returns a round that has not begun yet. ask is run for each that anyone
// waits for.
func (r *rounds) join(ask func() (commit, need uint64, err error)) *round {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.next == nil {
		r.next = newRound()
	}
	if !r.running {
		r.running = true
		go r.run(ask)
	}
	return r.next
}

func newRound() *round { return &round{done: make(chan struct{})} }

func (r *rounds) run(ask func() (commit, need uint64, err error)) {
	for {
		r.mu.Lock()
		now := r.next
		r.next = nil
		r.running = now != nil
		r.mu.Unlock()
		if now == nil {
			return
		}
		now.commit, now.need, now.err = ask()
		close(now.done)
	}
}

// readVia waits for a round, and then until it is applied here what it found.
func (s *Store) readVia(ctx context.Context, rounds *rounds, ask func() (commit, need uint64, err error)) (uint64, error) {
	r := rounds.join(ask)
	select {
	case <-r.done:
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-s.closing:
		return 0, s.closedError()
	case <-s.fail.dead:
		return 0, s.closedError()
	}
	if r.err != nil {
		return 0, r.err
	}
	return r.commit, s.WaitApplied(ctx, r.need)
}

// askLeader has the leader make sure. It outlasts an election that goes well,
// whoever wins it.
func (s *Store) askLeader() (commit, need uint64, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 4*s.cfg.HeartbeatTimeout)
	defer cancel()
	for {
		commit, need, err := s.askOnce(ctx)
		if err == nil {
			return commit, need, nil
		}
		select {
		case <-time.After(confirmRetry):
			continue
		case <-ctx.Done():
		case <-s.closing:
		case <-s.fail.dead:
		}
		if errors.Is(err, ErrNotLeader) {
			return 0, 0, err
		}
		return 0, 0, fmt.Errorf("%w: ask the leader: %w", ErrNotLeader, err)
	}
}

// askOnce asks whoever leads now: this node, if the election was its own.
func (s *Store) askOnce(ctx context.Context) (commit, need uint64, err error) {
	if s.IsLeader() {
		return s.makeSure()
	}
	// A leader that cannot be heard will not be the leader for much longer.
	ctx, cancel := context.WithTimeout(ctx, 2*s.cfg.HeartbeatTimeout)
	defer cancel()
	answer, err := s.CallLeader(ctx, methodRead, nil)
	if err != nil {
		return 0, 0, err
	}
	got, err := numbers(answer, 2)
	if err != nil {
		return 0, 0, err
	}
	return got[0], got[1], nil
}

// readAsLeader is ReadIndex at the leader.
func (s *Store) readAsLeader(ctx context.Context) (uint64, error) {
	if !s.soleVoter() {
		return s.readVia(ctx, &s.leadReads, s.makeSure)
	}
	commit, need, err := s.makeSure()
	if err != nil {
		return 0, err
	}
	return commit, s.WaitApplied(ctx, need)
}

// makeSure notes the commit index, and then makes sure that this node still led.
func (s *Store) makeSure() (commit, need uint64, err error) {
	term, ok := s.leading()
	if !ok {
		return 0, 0, ErrNotLeader
	}
	commit = s.raft.CommitIndex()
	if err := s.confirm(term); err != nil {
		return 0, 0, err
	}
	if now, ok := s.leading(); !ok || now != term {
		return 0, 0, ErrNotLeader
	}
	need, err = s.lastCommand(commit)
	return commit, need, err
}

// WaitApplied returns once the state machine here has applied the command at
// index: one that Propose returned, here or elsewhere.
func (s *Store) WaitApplied(ctx context.Context, index uint64) error {
	err := s.fsm.wait(ctx, index, s.fail.dead, s.closing)
	if errors.Is(err, errStopped) {
		return s.closedError()
	}
	return err
}

// confirm returns nil once a majority of the voters is known to be in term.
func (s *Store) confirm(term uint64) error {
	var others []raft.Server
	votes, voters := 0, 0
	for _, server := range s.servers() {
		switch {
		case server.Suffrage != raft.Voter:
		case server.ID == raft.ServerID(s.cfg.NodeID):
			voters++
			votes++
		default:
			voters++
			others = append(others, server)
		}
	}
	need := voters/2 + 1
	if votes >= need {
		return nil
	}
	if s.cfg.Peers == nil {
		return fmt.Errorf("%w: no way to ask the other voters", ErrNotLeader)
	}
	now, _, moved := s.lead.get()
	if now != term {
		return ErrNotLeader
	}
	ctx, cancel := context.WithTimeout(context.Background(), 4*s.cfg.HeartbeatTimeout)
	defer cancel()
	answers := make(chan bool, len(others))
	for _, server := range others {
		go func() { answers <- s.confirmedBy(ctx, server, term) }()
	}
	for range others {
		select {
		case yes := <-answers:
			if yes {
				votes++
			}
		case <-moved:
			return fmt.Errorf("%w any more", ErrNotLeader)
		case <-s.closing:
			return s.closedError()
		case <-ctx.Done():
			return fmt.Errorf("%w: the other voters did not answer: %w", ErrNotLeader, ctx.Err())
		}
		if votes >= need {
			return nil
		}
	}
	return fmt.Errorf("%w: %d of %d voters confirmed term %d", ErrNotLeader, votes, voters, term)
}

// confirmRetry is how soon a voter that could not be reached is asked again.
const confirmRetry = 10 * time.Millisecond

// confirmedBy asks a peer until it answers, whether its term is this one.
func (s *Store) confirmedBy(ctx context.Context, server raft.Server, term uint64) bool {
	for {
		asking, cancel := context.WithTimeout(ctx, s.cfg.HeartbeatTimeout)
		got, err := s.askTerm(asking, server)
		cancel()
		if err == nil {
			return got == term
		}
		select {
		case <-time.After(confirmRetry):
		case <-ctx.Done():
			return false
		}
	}
}

// askTerm asks a peer for its term, now.
func (s *Store) askTerm(ctx context.Context, server raft.Server) (uint64, error) {
	answer, err := s.call(ctx, server, methodTerm, nil)
	if err != nil {
		return 0, err
	}
	got, err := numbers(answer, 1)
	if err != nil {
		return 0, err
	}
	return got[0], nil
}

// lastCommand returns the index of the last entry up to commit that goes
// through the state machine, as far as it may still be waiting to. Raft keeps
// its own entries to itself, so that the state machine never gets to their
// index.
func (s *Store) lastCommand(commit uint64) (uint64, error) {
	_, floor, _ := s.lead.get()
	var l raft.Log
	for index := commit; index > max(floor, s.fsm.applied.Load()); index-- {
		err := s.log.GetLog(index, &l)
		switch {
		case errors.Is(err, raft.ErrLogNotFound): // in a snapshot, so it was applied
			return 0, nil
		case err != nil:
			s.fail.fatal(err)
			return 0, s.closedError()
		case l.Type == raft.LogCommand || l.Type == raft.LogConfiguration:
			return index, nil
		}
	}
	return 0, nil
}
