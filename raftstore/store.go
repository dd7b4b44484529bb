package raftstore

import (
	"context"
	"errors"

	"github.com/hashicorp/raft"
)

type logStore interface{ raft.LogStore }
type stableStore interface{ raft.StableStore }

var errNotYet = errors.New("raftstore: not yet implemented")

func Open(cfg Config, sm StateMachine) (*Store, error) { return nil, errNotYet }

type Store struct{}

// Result is what a command came to.
type Result struct {
	Index uint64 // of the command's entry in the log
	Value any    // what StateMachine.Apply returned for it
}

func (s *Store) Propose(ctx context.Context, command []byte) (Result, error) {
	return Result{}, errNotYet
}

// ReadIndex makes a read linearizable: when it returns, the state machine has applied at least the returned index.
func (s *Store) ReadIndex(ctx context.Context) (uint64, error) { return 0, errNotYet }

// WaitLeader returns the term once this node leads and has committed in its own term.
func (s *Store) WaitLeader(ctx context.Context) (uint64, error) { return 0, errNotYet }

// LeaderChanges tells of leadership gained (and committed in its own term) or lost; latest value only, one consumer.
func (s *Store) LeaderChanges() <-chan bool         { return nil }
func (s *Store) IsLeader() bool                     { return false }
func (s *Store) Term() uint64                       { return 0 }
func (s *Store) CommitIndex() uint64                { return 0 }
func (s *Store) AppliedIndex() uint64               { return 0 }
func (s *Store) Leader() (id, address string)       { return "", "" }
func (s *Store) Snapshot(ctx context.Context) error { return errNotYet }
func (s *Store) Status() Status                     { return Status{} }
func (s *Store) Close() error                       { return nil }

// Status is a snapshot of a Store for operators.
type Status struct {
	NodeID                                                          string
	State                                                           string // follower, candidate, leader, shutdown
	Leader                                                          string // id of the leader as far as known
	LeaderAddress                                                   string
	Ready                                                           bool // leads and has committed in its own term
	Term                                                            uint64
	FirstIndex, LastIndex, CommitIndex, AppliedIndex, SnapshotIndex uint64
	Voters, Nonvoters                                               []string
	DiskFull                                                        bool
	Err                                                             error // what ended the store, if anything
}
