package raftstore

import (
	"errors"
	"io"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// How long an append to a node that cannot be reached waits for it, and how
// often it tries.
const (
	appendPatience = 5 * time.Minute
	appendRetry    = 50 * time.Millisecond
)

// pipelinePatience is how long an append may wait for its place in a pipeline.
const pipelinePatience = 2 * time.Second

// patient is the transport that Raft gets. To Raft every append that fails is a
// reason to wait longer before the next, up to ten seconds: after a partition,
// or when a node comes back, the cluster would be without it for that long. So an
// append to a node that cannot be reached does not fail but waits, and goes out
// the moment the node is there.
//
// A node that has failed sends none: its heartbeats would keep others from
// electing one that can do the work, for as long as its process takes to end.
type patient struct {
	raft.Transport
	rpcs          chan raft.RPC
	ended         chan struct{} // closed when Raft is shut down
	closing, dead <-chan struct{}
	patience      time.Duration             // with a leader, for the next piece of a snapshot
	raft          atomic.Pointer[raft.Raft] // once it runs
}

// AppendEntries implements raft.Transport.
func (p *patient) AppendEntries(id raft.ServerID, address raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	began := time.Now()
	heartbeat := args.PrevLogEntry == 0 && len(args.Entries) == 0 && args.LeaderCommitIndex == 0
	for {
		if p.failed() {
			return errFailed
		}
		err := p.Transport.AppendEntries(id, address, args, resp)
		if heartbeat || !errors.Is(err, ErrUnreachable) || time.Since(began) > appendPatience {
			return err
		}
		if r := p.raft.Load(); r != nil {
			if r.CurrentTerm() != args.Term {
				return err // nobody waits for it any more
			}
			for _, server := range r.GetConfiguration().Configuration().Servers {
				if server.ID == id {
					address = server.Address // it may have moved
				}
			}
		}
		select {
		case <-time.After(appendRetry):
		case <-p.closing:
			return err
		case <-p.dead:
			return err
		}
	}
}

// AppendEntriesPipeline implements raft.Transport.
func (p *patient) AppendEntriesPipeline(id raft.ServerID, address raft.ServerAddress) (raft.AppendPipeline, error) {
	if p.failed() {
		return nil, errFailed
	}
	l, err := p.Transport.AppendEntriesPipeline(id, address)
	if err != nil {
		return nil, err
	}
	return pipeline{l, p}, nil
}

var errFailed = errors.New("raftstore: this node has failed")

func (p *patient) failed() bool {
	select {
	case <-p.dead:
		return true
	default:
		return false
	}
}

// pipeline closes itself rather than have an append wait for ever. When the
// reader of a full pipeline ends first (a higher term, a shutdown), the library's
// writer stays in AppendEntries, for nobody closes the pipeline but itself: the
// goroutine is lost, and a shutdown waits for it (hashicorp/raft#612).
type pipeline struct {
	raft.AppendPipeline
	of *patient
}

// AppendEntries implements raft.AppendPipeline.
func (l pipeline) AppendEntries(args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	if l.of.failed() {
		return nil, errFailed
	}
	stuck := time.AfterFunc(pipelinePatience, func() { _ = l.Close() })
	defer stuck.Stop()
	return l.AppendPipeline.AppendEntries(args, resp)
}

// Consumer implements raft.Transport.
func (p *patient) Consumer() <-chan raft.RPC { return p.rpcs }

// forward hands on what comes in. A sole voter is first made to stand for
// election at once: there is no leader whose heartbeat it could be waiting for.
func (p *patient) forward(alone bool) {
	if alone && !p.hand(raft.RPC{
		Command:  &raft.TimeoutNowRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax}},
		RespChan: make(chan raft.RPCResponse, 1),
	}) {
		return
	}
	for {
		select {
		case rpc := <-p.Transport.Consumer():
			if args, ok := rpc.Command.(*raft.InstallSnapshotRequest); ok {
				rpc = p.receive(rpc, args)
			}
			if !p.hand(rpc) {
				return
			}
		case <-p.ended:
			return
		}
	}
}

func (p *patient) hand(rpc raft.RPC) bool {
	select {
	case p.rpcs <- rpc:
		return true
	case <-p.ended:
		return false
	}
}

// RequestPreVote implements raft.WithPreVote.
func (p *patient) RequestPreVote(id raft.ServerID, address raft.ServerAddress, args *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	if t, ok := p.Transport.(raft.WithPreVote); ok {
		return t.RequestPreVote(id, address, args, resp)
	}
	return errors.New("raftstore: the transport has no pre-vote")
}

// Close implements raft.WithClose. Raft closes its transport once, at the end.
func (p *patient) Close() error {
	close(p.ended)
	if c, ok := p.Transport.(io.Closer); ok {
		return c.Close()
	}
	return nil
}
