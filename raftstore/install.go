package raftstore

import (
	"context"
	"errors"
	"io"
	"net"
	"time"

	"github.com/hashicorp/raft"
)

// A node that is far behind gets a snapshot, in one message whose answer comes
// when it has been restored. Raft has a limit on that as on any message, and reads
// and restores in the goroutine that does all else. What is here keeps to what
// can be known: how long it takes depends on the state, and whether the other
// end is still there can be asked.

// snapshotMark, behind a target, has streams.Dial make a connection for one
// snapshot. Raft never uses that again.
const snapshotMark = "\x00snapshot"

// attended has a connection cut once the node at its other end answers no calls,
// and leaves it without deadlines.
func (t *Transport) attended(c *peerConn, address string) error {
	ctx, cancel := context.WithCancel(t.ctx)
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, open := t.conns[c]; !open {
		cancel()
		return net.ErrClosed
	}
	c.end = cancel
	go t.attend(ctx, c, address)
	return nil
}

// attend asks now and then, until ctx ends, which it does with the connection. A
// node answers calls also while it restores.
func (t *Transport) attend(ctx context.Context, c *peerConn, address string) {
	for {
		select {
		case <-time.After(t.cfg.IOTimeout):
		case <-ctx.Done():
			return
		}
		asking, cancel := context.WithTimeout(ctx, t.cfg.IOTimeout)
		_, err := t.Call(asking, c.id, address, methodTerm, nil)
		cancel()
		if err != nil && !errors.Is(err, ErrBusy) {
			c.abort()
			return
		}
	}
}

// InstallSnapshot implements raft.Transport. A node that is closed does not wait
// for the end of what another is restoring.
func (p *patient) InstallSnapshot(id raft.ServerID, address raft.ServerAddress, args *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	var answer raft.InstallSnapshotResponse
	done := make(chan error, 1)
	go func() { done <- p.Transport.InstallSnapshot(id, address, args, &answer, data) }()
	select {
	case err := <-done:
		*resp = answer
		return err
	case <-p.closing:
		return errStopped
	case <-p.dead:
		return errFailed
	}
}

var (
	errSilent  = errors.New("raftstore: nothing more comes of the snapshot")
	errCovered = errors.New("raftstore: what is in the snapshot is here already")
)

// receive returns what Raft gets in place of a snapshot that comes in.
//
// One that has nothing new is not installed: Raft would drop what came after it
// from the state and from the log, although this node has acknowledged that. It
// may be a leader's second attempt, which waited here while the first was being
// restored. To the leader that is a success, since it is true that this node has
// all of it.
func (p *patient) receive(rpc raft.RPC, args *raft.InstallSnapshotRequest) raft.RPC {
	pr, pw := io.Pipe()
	answers := make(chan raft.RPCResponse, 1)
	go func() {
		_, err := io.Copy(pw, rpc.Reader)
		pw.CloseWithError(err)
		// The next message on the connection begins where this one ends.
		_, _ = io.Copy(io.Discard, rpc.Reader)
		select {
		case a := <-answers:
			if resp, ok := a.Response.(*raft.InstallSnapshotResponse); ok && errors.Is(a.Error, errCovered) {
				resp.Success = true
				a.Error = nil
			}
			rpc.RespChan <- a
		case <-p.ended:
		}
	}()
	return raft.RPC{
		Command: args, RespChan: answers,
		Reader: &incoming{PipeReader: pr, pw: pw, patience: p.patience, covered: func() bool { return p.covers(args.LastLogIndex) }},
	}
}

// covers reports whether all entries up to index are here and committed. It is
// exact in Raft's own goroutine.
func (p *patient) covers(index uint64) bool {
	r := p.raft.Load()
	return r != nil && max(r.CommitIndex(), r.AppliedIndex()) >= index
}

// incoming is a snapshot that comes in, as Raft's goroutine reads it: nothing else
// is done meanwhile, no vote given either, so it does not wait for a leader that
// has gone dark or hangs.
type incoming struct {
	*io.PipeReader
	pw       *io.PipeWriter
	patience time.Duration
	covered  func() bool // nil once it was asked
}

func (r *incoming) Read(b []byte) (int, error) {
	if covered := r.covered; covered != nil {
		r.covered = nil
		if covered() {
			_ = r.Close() // lets go of who writes
			return 0, errCovered
		}
	}
	silent := time.AfterFunc(r.patience, func() { r.pw.CloseWithError(errSilent) })
	defer silent.Stop()
	return r.PipeReader.Read(b)
}
