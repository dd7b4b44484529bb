package raftstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// maxInFlight bounds the proposals that one Store has under way; more wait.
const maxInFlight = 4096

// Store is one node of a replicated state machine. Its methods are safe for
// concurrent use.
type Store struct {
	cfg   Config
	raft  *raft.Raft
	log   *boltLog
	snaps *snapshots
	guard *guard
	fsm   *fsm
	fail  *failure
	lock  *os.File
	lead  *leadership
	reign *reign

	leadReads, followReads rounds

	slots     chan struct{} // one element for each proposal under way
	changing  chan struct{} // one element while the configuration is being changed
	watched   chan struct{} // closed when watchLog has ended
	closing   chan struct{} // closed first thing in Close
	closeOnce sync.Once
	closeErr  error
}

// Result is what a command came to.
type Result struct {
	Index uint64 // of the command's entry in the log
	Value any    // what StateMachine.Apply returned for it
}

// Open opens the node in cfg.Dir, after it has checked all that is on disk, and
// starts it. sm is empty, or has kept the state it had; it ends up with the
// newest snapshot restored and goes on from there. Errors: ErrConfig,
// ErrLocked, ErrEmptyDir, ErrRemoved, ErrCorrupt, ErrDiskFull, ErrStateMachine, or what the
// file system said.
func Open(cfg Config, sm StateMachine) (_ *Store, err error) {
	cfg, err = cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	if err := raft.ValidateConfig(cfg.raftConfig()); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	if err := makeDir(cfg.Dir); err != nil {
		return nil, fmt.Errorf("raftstore: %w", diskFull(err))
	}
	if fi, err := os.Stat(cfg.Dir); err == nil && fi.Mode().Perm()&0o077 != 0 {
		cfg.Logger.Warn("data directory is accessible to others", "dir", cfg.Dir, "mode", fi.Mode().Perm())
	}
	s := newStore(cfg)
	if s.lock, err = lockFile(filepath.Join(cfg.Dir, "LOCK")); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			if s.log != nil {
				s.log.Close()
			}
			s.lock.Close()
		}
	}()
	trans := cfg.Transport
	if trans == nil {
		_, trans = raft.NewInmemTransport(raft.ServerAddress(cfg.NodeID))
	}
	if err := s.openDisk(trans, sm.AppliedIndex()); err != nil {
		return nil, err
	}
	s.fsm = newFSM(sm, s.fail, cfg.NodeID, s.markRemoved)
	notify := make(chan bool, 1)
	wrapped := &patient{
		Transport: trans, rpcs: make(chan raft.RPC), ended: make(chan struct{}), closing: s.closing, dead: s.fail.dead,
		patience: cfg.DiskStall,
	}
	if err := s.startRaft(wrapped, notify); err != nil {
		return nil, err
	}
	wrapped.raft.Store(s.raft)
	s.snaps.whenTaken(s.trail)
	go s.watchLog()
	go s.watchLeadership(notify)
	go s.watchReign()
	s.serve()
	go wrapped.forward(s.soleVoter())
	return s, nil
}

func newStore(cfg Config) *Store {
	return &Store{
		cfg:      cfg,
		fail:     &failure{onFatal: cfg.OnFatal, dead: make(chan struct{}), opening: true},
		lead:     newLeadership(),
		reign:    newReign(),
		slots:    make(chan struct{}, maxInFlight),
		changing: make(chan struct{}, 1),
		watched:  make(chan struct{}),
		closing:  make(chan struct{}),
	}
}

// openDisk checks and opens what is in the directory, or creates it.
// smApplied is where the state machine says it is.
func (s *Store) openDisk(trans raft.Transport, smApplied uint64) error {
	err := CheckRemoved(s.cfg.Dir)
	if err != nil {
		return err
	}
	if s.snaps, err = openSnapshots(filepath.Join(s.cfg.Dir, "snapshots"), s.fail.fatal); err != nil {
		return err
	}
	path := filepath.Join(s.cfg.Dir, "raft.db")
	if err := os.Remove(path + newSuffix); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := s.create(path, trans); err != nil {
		return err
	}
	found, err := inspect(path)
	if err != nil {
		return err
	}
	snapIndex, _ := s.snaps.newest()
	switch {
	case found.first > snapIndex+1:
		return &Corruption{path, fmt.Sprintf("the log begins at %d, and the newest snapshot is of %d", found.first, snapIndex)}
	case smApplied > max(found.last, snapIndex):
		return &Corruption{path, fmt.Sprintf("the log ends at %d, and the state machine is at %d", max(found.last, snapIndex), smApplied)}
	}
	s.snaps.closing = s.closing
	if err := s.shorten(path, found); err != nil {
		return err
	}
	if s.log, err = openLog(path); err != nil {
		return err
	}
	if found.last < snapIndex {
		// A crash between a snapshot that was installed and the clearing of
		// the log that it replaces. All of it is in the snapshot.
		if err := s.log.DeleteRange(found.first, found.last); err != nil {
			return err
		}
	}
	s.guard = &guard{
		logs: s.log, stable: s.log, fail: s.fail, stall: s.cfg.DiskStall, logger: s.cfg.Logger,
		restoreTo: snapIndex + 64*maxAppendEntries, closing: s.closing,
		every: max(1, s.cfg.SnapshotBytes/32), grown: make(chan struct{}, 1),
	}
	for _, index := range found.configs {
		if index > snapIndex {
			s.guard.restoreTo = min(s.guard.restoreTo, index-1)
			break
		}
	}
	if f := s.cfg.Faults; f != nil {
		s.guard.logs, s.guard.stable = unreliableLogs{s.guard.logs, f}, unreliableStable{s.guard.stable, f}
		s.snaps.faults = f
	}
	if s.cfg.wrapLogs != nil {
		s.guard.logs = s.cfg.wrapLogs(s.guard.logs)
	}
	if s.cfg.wrapStable != nil {
		s.guard.stable = s.cfg.wrapStable(s.guard.stable)
	}
	return nil
}

// create makes raft.db if there is none. It appears complete: with a first
// configuration in it when bootstrapping.
func (s *Store) create(path string, trans raft.Transport) error {
	if _, err := os.Stat(path); err == nil || !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if index, _ := s.snaps.newest(); index > 0 {
		return &Corruption{path, "missing, although there are snapshots"}
	}
	if !s.cfg.Bootstrap && !s.cfg.Join {
		return fmt.Errorf("%w: %s", ErrEmptyDir, s.cfg.Dir)
	}
	b, err := openLog(path + newSuffix)
	if err != nil {
		return err
	}
	if s.cfg.Bootstrap {
		err = raft.BootstrapCluster(s.cfg.raftConfig(), b, b, s.snaps, trans, raft.Configuration{
			Servers: []raft.Server{{ID: raft.ServerID(s.cfg.NodeID), Address: trans.LocalAddr()}},
		})
	}
	if err := errors.Join(err, b.Close()); err != nil {
		return err
	}
	return renameLog(path)
}

// startRaft restores the state machine and starts Raft.
func (s *Store) startRaft(trans raft.Transport, notify chan bool) error {
	rc := s.cfg.raftConfig()
	rc.NotifyCh = notify
	return s.fail.contain("open", func() (err error) {
		s.raft, err = raft.NewRaft(rc, s.fsm, s.guard, s.guard, s.snaps, trans)
		return err
	})
}

// Propose has command applied, and returns what the state machine made of it
// once it is on the disk of a majority and applied here. Proposals that are
// made concurrently share an append and its sync.
//
// ErrTooLarge, ErrNotLeader, ErrDiskFull, ErrClosed and the context's own error
// without ErrIndeterminate mean that the command was not and will not be
// applied. ErrIndeterminate means that nobody knows.
func (s *Store) Propose(ctx context.Context, command []byte) (Result, error) {
	if len(command) > s.cfg.MaxCommand {
		return Result{}, fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, len(command), s.cfg.MaxCommand)
	}
	if err := ctx.Err(); err != nil {
		return Result{}, err
	}
	select {
	case s.slots <- struct{}{}:
	case <-ctx.Done():
		return Result{}, ctx.Err()
	case <-s.closing:
		return Result{}, s.closedError()
	case <-s.fail.dead:
		return Result{}, s.closedError()
	}
	if err := s.refuse(); err != nil {
		<-s.slots
		return Result{}, err
	}
	type outcome struct {
		res Result
		err error
	}
	done := make(chan outcome, 1)
	command = bytes.Clone(command) // Raft may hold it for longer than this call lasts
	go func() {
		defer func() { <-s.slots }()
		f := s.raft.Apply(command, 0)
		if err := f.Error(); err != nil {
			done <- outcome{err: s.proposeError(err)}
			return
		}
		done <- outcome{res: Result{Index: f.Index(), Value: f.Response()}}
	}()
	select {
	case o := <-done:
		return o.res, o.err
	case <-ctx.Done():
		return Result{}, fmt.Errorf("%w: %w", ErrIndeterminate, ctx.Err())
	case <-s.fail.dead:
		return Result{}, fmt.Errorf("%w: %w", ErrIndeterminate, s.fail.cause())
	}
}

// refuse says why a proposal would be in vain, if so.
func (s *Store) refuse() error {
	select {
	case <-s.closing:
		return s.closedError()
	case <-s.fail.dead:
		return s.closedError()
	default:
	}
	if s.guard.full.Load() {
		return fmt.Errorf("%w: %w", ErrDiskFull, ErrNotLeader)
	}
	if !s.IsLeader() {
		return ErrNotLeader
	}
	return nil
}

// proposeError translates what Raft said of a proposal.
func (s *Store) proposeError(err error) error {
	switch {
	case errors.Is(err, ErrDiskFull):
		return fmt.Errorf("%w: %w", ErrNotLeader, err) // the append failed as a whole
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		if s.guard.full.Load() {
			return fmt.Errorf("%w: %w", ErrDiskFull, ErrNotLeader)
		}
		return fmt.Errorf("%w: %w", ErrNotLeader, err)
	default:
		return fmt.Errorf("%w: %w", ErrIndeterminate, err)
	}
}

func (s *Store) closedError() error {
	if err := s.fail.cause(); err != nil {
		return fmt.Errorf("%w: %w", ErrClosed, err)
	}
	return ErrClosed
}

// Snapshot has the state machine written to a snapshot now, and the log before
// it dropped but for what Config.TrailingLogs and TrailingBytes leave. It returns
// ErrNothingNew when nothing was applied since the last, and ErrDiskFull when it
// found no space. If the context ends, the snapshot goes on.
func (s *Store) Snapshot(ctx context.Context) error {
	select {
	case <-s.closing:
		return s.closedError()
	default:
	}
	if index, _ := s.snaps.newest(); index >= s.fsm.applied.Load() {
		return ErrNothingNew
	}
	_ = s.snaps.failure() // of an earlier one
	done := make(chan error, 1)
	go func() { done <- s.raft.Snapshot().Error() }()
	select {
	case err := <-done:
		switch {
		case errors.Is(err, raft.ErrNothingNewToSnapshot):
			return ErrNothingNew
		case errors.Is(err, raft.ErrRaftShutdown):
			return s.closedError()
		case err != nil:
			if cause := s.snaps.failure(); cause != nil {
				err = cause
			}
			return fmt.Errorf("raftstore: snapshot: %w", err)
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-s.fail.dead:
		return s.closedError()
	}
}

// Close hands leadership over when there are peers, waits a little for
// proposals under way, and stops the node. It may be called again, with the
// same result, but not from StateMachine or OnFatal.
func (s *Store) Close() error {
	s.closeOnce.Do(func() { s.closeErr = s.close() })
	return s.closeErr
}

func (s *Store) close() error {
	close(s.closing)
	deadline := time.NewTimer(s.cfg.DiskStall)
	defer deadline.Stop()
drain:
	for range maxInFlight {
		select {
		case s.slots <- struct{}{}:
		case <-s.fail.dead:
			break drain
		case <-deadline.C:
			break drain
		}
	}
	if s.raft.State() == raft.Leader && !s.soleVoter() && s.fail.cause() == nil {
		if err := s.raft.LeadershipTransfer().Error(); err != nil {
			s.cfg.Logger.Warn("could not hand over leadership", "error", err)
		}
	}
	stopped := make(chan error, 1)
	go func() { stopped <- s.raft.Shutdown().Error() }()
	select {
	case err := <-stopped:
		<-s.watched // it reads the log
		return errors.Join(err, s.log.Close(), s.lock.Close())
	case <-time.After(s.cfg.DiskStall):
		// Something is stuck in the kernel or in the state machine, and may
		// still write: the lock stays.
		return fmt.Errorf("%w: could not stop within %v", ErrDiskStalled, s.cfg.DiskStall)
	}
}

// Status describes a Store to an operator.
type Status struct {
	NodeID        string
	State         string // follower, candidate, leader or shutdown
	Ready         bool   // leads and has committed in its own term
	Leader        string // id of the leader, as far as known
	LeaderAddress string
	Term          uint64

	FirstIndex, LastIndex     uint64 // of the log
	CommitIndex, AppliedIndex uint64
	SnapshotIndex             uint64
	Voters, Nonvoters         []string // ids
	DiskFull                  bool
	Err                       error // what ended the Store, if anything
}

// Status returns how the node is doing, moment for moment inconsistent.
func (s *Store) Status() Status {
	st := Status{
		NodeID: s.cfg.NodeID, State: stateName(s.raft.State()), Ready: s.IsLeader(),
		Term: s.Term(), LastIndex: s.raft.LastIndex(), CommitIndex: s.CommitIndex(), AppliedIndex: s.AppliedIndex(),
		DiskFull: s.guard.full.Load(), Err: s.fail.cause(),
	}
	st.Leader, st.LeaderAddress = s.Leader()
	st.FirstIndex, _ = s.log.FirstIndex()
	st.SnapshotIndex, _ = s.snaps.newest()
	for _, server := range s.servers() {
		if server.Suffrage == raft.Voter {
			st.Voters = append(st.Voters, string(server.ID))
		} else {
			st.Nonvoters = append(st.Nonvoters, string(server.ID))
		}
	}
	return st
}

func stateName(state raft.RaftState) string {
	switch state {
	case raft.Leader:
		return "leader"
	case raft.Candidate:
		return "candidate"
	case raft.Follower:
		return "follower"
	default:
		return "shutdown"
	}
}

// servers returns the latest configuration, committed or not.
func (s *Store) servers() []raft.Server {
	return s.raft.GetConfiguration().Configuration().Servers
}

// soleVoter reports whether this node is the only voter.
func (s *Store) soleVoter() bool {
	self := false
	for _, server := range s.servers() {
		if server.Suffrage != raft.Voter {
			continue
		}
		if server.ID != raft.ServerID(s.cfg.NodeID) {
			return false
		}
		self = true
	}
	return self
}
