package raftstore

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/hashicorp/raft"
)

// Peers carries calls between the nodes, apart from Raft's own messages.
// Transport implements it; raftstoretest has one in memory.
type Peers interface {
	// Handle has h answer calls of method from now on.
	Handle(method byte, h Handler)

	// Call has node id answer, at address, or where the implementation knows
	// it to be. Errors: ErrUnreachable, ErrRefused and ErrBusy, when the call
	// was not executed; what the handler answered, as a RemoteError;
	// ErrIndeterminate, when it may have been executed.
	Call(ctx context.Context, id, address string, method byte, request []byte) ([]byte, error)
}

// Handler answers a call of node from, which was authenticated. The context ends
// with the caller's deadline or connection. The request may be kept. An error
// that matches a sentinel of this package does so at the caller too.
type Handler func(ctx context.Context, from string, request []byte) ([]byte, error)

// Methods below FirstMethod belong to Store. These numbers are on the wire:
// append, never reorder.
const (
	methodTerm    byte = 1 // → term
	methodRead    byte = 2 // → commit index, last command index, of a linearizable read
	methodStatus  byte = 3 // → a memberStatus
	methodRemoved byte = 4 // index of the configuration → nothing

	// FirstMethod is the first that is free for the use of others.
	FirstMethod byte = 16
)

// RemoteError is what a peer's handler answered. It matches the sentinel of this
// package that the handler's error matched.
type RemoteError struct {
	ID   string // the peer
	Text string
	kind error
}

func (e *RemoteError) Error() string { return fmt.Sprintf("raftstore: node %q: %s", e.ID, e.Text) }

// Unwrap returns the sentinel, or nil.
func (e *RemoteError) Unwrap() error { return e.kind }

// remoteKinds are the sentinels that cross the wire, by their number on it:
// append, never reorder. 0 is none of them.
func remoteKinds() []error {
	return []error{nil, ErrNotLeader, ErrIndeterminate, ErrClosed, ErrTooLarge, ErrDiskFull, ErrBusy, ErrUnreachable, ErrUnknownMember}
}

// remoteKind returns the number of the sentinel that err matches, or 0.
func remoteKind(err error) byte {
	for i, kind := range remoteKinds() {
		if kind != nil && errors.Is(err, kind) {
			return byte(i)
		}
	}
	return 0
}

// remoteError is the error of number kind that node id answered.
func remoteError(id string, kind byte, text string) error {
	e := &RemoteError{ID: id, Text: text}
	if kinds := remoteKinds(); int(kind) < len(kinds) {
		e.kind = kinds[kind]
	}
	return e
}

// Call has node id, of the configuration, answer: Peers.Call. ErrUnknownMember
// when there is no such node.
func (s *Store) Call(ctx context.Context, id string, method byte, request []byte) ([]byte, error) {
	server, ok := s.server(id)
	if !ok {
		return nil, fmt.Errorf("%w: %q", ErrUnknownMember, id)
	}
	return s.call(ctx, server, method, request)
}

// CallLeader has the leader, as far as known, answer. ErrNotLeader when none is
// known, or it is this node. A call is given up, as ErrIndeterminate, when this
// node no longer follows who was asked: one whose network has gone dark would
// keep it waiting until the context ends.
func (s *Store) CallLeader(ctx context.Context, method byte, request []byte) ([]byte, error) {
	reign := s.reign.get() // before the leader: the next may be on its way
	id, address := s.Leader()
	if id == "" || id == s.cfg.NodeID {
		return nil, fmt.Errorf("%w, and knows no other", ErrNotLeader)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(reign, func() { cancel(errDeposed) })()
	answer, err := s.call(ctx, raft.Server{ID: raft.ServerID(id), Address: raft.ServerAddress(address)}, method, request)
	if err != nil && errors.Is(context.Cause(ctx), errDeposed) {
		err = fmt.Errorf("%w: %w", err, errDeposed)
	}
	return answer, err
}

var errDeposed = errors.New("it leads no longer, as far as known")

func (s *Store) call(ctx context.Context, server raft.Server, method byte, request []byte) ([]byte, error) {
	if s.cfg.Peers == nil {
		return nil, fmt.Errorf("%w: %q: no transport for calls", ErrUnreachable, server.ID)
	}
	return s.cfg.Peers.Call(ctx, string(server.ID), string(server.Address), method, request)
}

// server returns a member of the latest configuration.
func (s *Store) server(id string) (raft.Server, bool) {
	for _, server := range s.servers() {
		if server.ID == raft.ServerID(id) {
			return server, true
		}
	}
	return raft.Server{}, false
}

// serve answers the calls of other nodes.
func (s *Store) serve() {
	if s.cfg.Peers == nil {
		return
	}
	s.cfg.Peers.Handle(methodTerm, func(context.Context, string, []byte) ([]byte, error) {
		return binary.BigEndian.AppendUint64(nil, s.Term()), nil
	})
	s.cfg.Peers.Handle(methodRead, func(ctx context.Context, _ string, _ []byte) ([]byte, error) {
		commit, err := s.readAsLeader(ctx)
		if err != nil {
			return nil, err
		}
		b := binary.BigEndian.AppendUint64(nil, commit)
		return binary.BigEndian.AppendUint64(b, s.fsm.sm.AppliedIndex()), nil
	})
	s.cfg.Peers.Handle(methodStatus, s.answerStatus)
	s.cfg.Peers.Handle(methodRemoved, s.answerRemoved)
}

// numbers reads n numbers, which are all of b.
func numbers(b []byte, n int) ([]uint64, error) {
	if len(b) != 8*n {
		return nil, fmt.Errorf("raftstore: answer of %d bytes, want %d", len(b), 8*n)
	}
	list := make([]uint64, n)
	for i := range list {
		list[i] = binary.BigEndian.Uint64(b[8*i:])
	}
	return list, nil
}
