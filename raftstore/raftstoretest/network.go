// Package raftstoretest has what tests of something on raftstore need to make
// things go wrong: a [Disk] that is slow, hangs, fails or fills up, and a
// [Network] in memory that loses, delays and repeats messages.
//
// Both take time from the time package only, so that they run in a bubble of
// testing/synctest, where a run of minutes takes moments.
package raftstoretest

import (
	"bytes"
	"context"
	"fmt"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/writ-dev/writ/raftstore"
)

// DefaultTimeout is how long a message's answer is waited for.
const DefaultTimeout = 500 * time.Millisecond

// Network connects nodes in memory. What happens to each message on a link is
// drawn from the seed, the link and how many it carried before. Safe for
// concurrent use.
type Network struct {
	seed    uint64
	timeout time.Duration

	mu    sync.Mutex
	nodes map[string]*Node       // by id
	links map[[2]string]*linkage // by from and to
}

// Link is what happens to messages on their way from one node to another. An
// answer is a message the other way. The zero value delivers everything at
// once.
type Link struct {
	Down          bool          // loses everything
	Drop          float64       // probability of losing one
	Duplicate     float64       // probability of delivering one twice
	Delay, Jitter time.Duration // at least, and up to so much more
}

type linkage struct {
	Link
	rng *rand.Rand
}

// NewNetwork makes a network without nodes, whose links are perfect.
func NewNetwork(seed uint64) *Network {
	return &Network{seed: seed, timeout: DefaultTimeout, nodes: map[string]*Node{}, links: map[[2]string]*linkage{}}
}

// SetLink says what happens to messages from one node to another.
func (n *Network) SetLink(from, to string, link Link) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.link(from, to).Link = link
}

// link needs mu.
func (n *Network) link(from, to string) *linkage {
	key := [2]string{from, to}
	l := n.links[key]
	if l == nil {
		h := fnv.New64a()
		fmt.Fprintf(h, "%q %q", from, to)
		l = &linkage{rng: rand.New(rand.NewPCG(n.seed, h.Sum64()))}
		n.links[key] = l
	}
	return l
}

// All sets every link between the nodes that there are.
func (n *Network) All(link Link) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for from := range n.nodes {
		for to := range n.nodes {
			n.link(from, to).Link = link
		}
	}
}

// Partition takes down the links between nodes of different groups, and leaves
// those within a group as they are. A node in no group is on its own.
func (n *Network) Partition(groups ...[]string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	group := map[string]int{}
	for i, ids := range groups {
		for _, id := range ids {
			group[id] = i + 1
		}
	}
	for from := range n.nodes {
		for to := range n.nodes {
			if from != to && (group[from] != group[to] || group[from] == 0) {
				n.link(from, to).Down = true
			}
		}
	}
}

// Heal makes every link perfect again.
func (n *Network) Heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, l := range n.links {
		l.Link = Link{}
	}
}

// fate draws what happens to one message: after how long it is delivered, once,
// twice or not at all.
func (n *Network) fate(from, to string) []time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.link(from, to)
	if l.Down || l.rng.Float64() < l.Drop {
		return nil
	}
	delay := func() time.Duration {
		if l.Jitter > 0 {
			return l.Delay + time.Duration(l.rng.Int64N(int64(l.Jitter)))
		}
		return l.Delay
	}
	times := []time.Duration{delay()}
	if l.rng.Float64() < l.Duplicate {
		times = append(times, delay())
	}
	return times
}

// send has deliver run once for each time that a message arrives.
func (n *Network) send(from, to string, deliver func()) {
	for _, after := range n.fate(from, to) {
		if after == 0 {
			go deliver()
			continue
		}
		time.AfterFunc(after, deliver)
	}
}

// Node is a raft.Transport and raftstore.Peers of one node. Its address is its
// id.
type Node struct {
	net    *Network
	id     string
	rpcs   chan raft.RPC
	closed chan struct{}
	once   sync.Once

	mu        sync.Mutex
	heartbeat func(raft.RPC)
	handlers  map[byte]raftstore.Handler
}

var (
	_ raft.Transport   = (*Node)(nil)
	_ raft.WithPreVote = (*Node)(nil)
	_ raft.WithClose   = (*Node)(nil)
	_ raftstore.Peers  = (*Node)(nil)
	_ raftstore.Faults = (*Disk)(nil)
)

// Node connects a node, and disconnects the one that had the id before.
func (n *Network) Node(id string) *Node {
	node := &Node{
		net: n, id: id, rpcs: make(chan raft.RPC), closed: make(chan struct{}), handlers: map[byte]raftstore.Handler{},
	}
	n.mu.Lock()
	before := n.nodes[id]
	n.nodes[id] = node
	n.mu.Unlock()
	if before != nil {
		before.Close()
	}
	return node
}

func (n *Network) node(id string) *Node {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.nodes[id]
}

// Close implements raft.WithClose.
func (n *Node) Close() error {
	n.once.Do(func() { close(n.closed) })
	return nil
}

// Handle implements raftstore.Peers.
func (n *Node) Handle(method byte, h raftstore.Handler) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.handlers[method] = h
}

// Call implements raftstore.Peers.
func (n *Node) Call(ctx context.Context, id, _ string, method byte, request []byte) ([]byte, error) {
	request = bytes.Clone(request)
	type outcome struct {
		answer []byte
		err    error
	}
	done := make(chan outcome, 4) // of a request and an answer that both arrive twice
	n.net.send(n.id, id, func() {
		to := n.net.node(id)
		if to == nil {
			return
		}
		to.mu.Lock()
		h := to.handlers[method]
		to.mu.Unlock()
		if h == nil || to.isClosed() {
			return
		}
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		answer, err := h(ctx, n.id, bytes.Clone(request))
		if to.isClosed() {
			return
		}
		n.net.send(id, n.id, func() {
			select {
			case done <- outcome{bytes.Clone(answer), err}:
			default:
			}
		})
	})
	select {
	case o := <-done:
		return o.answer, o.err
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: node %q: %w", raftstore.ErrIndeterminate, id, ctx.Err())
	case <-n.closed:
		return nil, fmt.Errorf("%w: node %q", raftstore.ErrIndeterminate, id)
	}
}

func (n *Node) isClosed() bool {
	select {
	case <-n.closed:
		return true
	default:
		return false
	}
}

// rpc sends one of Raft's messages and waits for its answer.
func (n *Node) rpc(id raft.ServerID, command any, data []byte) (any, error) {
	answers := make(chan raft.RPCResponse, 4)
	n.net.send(n.id, string(id), func() {
		to := n.net.node(string(id))
		if to == nil {
			return
		}
		got := make(chan raft.RPCResponse, 1)
		rpc := raft.RPC{Command: command, RespChan: got}
		if data != nil {
			rpc.Reader = bytes.NewReader(data)
		}
		if !to.deliver(rpc) {
			return
		}
		select {
		case a := <-got:
			n.net.send(string(id), n.id, func() {
				select {
				case answers <- a:
				default:
				}
			})
		case <-to.closed:
		}
	})
	timeout := time.NewTimer(n.net.timeout)
	defer timeout.Stop()
	select {
	case a := <-answers:
		return a.Response, a.Error
	case <-timeout.C:
		return nil, fmt.Errorf("%w: node %q: no answer", raftstore.ErrUnreachable, id)
	case <-n.closed:
		return nil, raft.ErrTransportShutdown
	}
}

// deliver hands a message to Raft, a heartbeat past whatever else it does.
func (n *Node) deliver(rpc raft.RPC) bool {
	if a, ok := rpc.Command.(*raft.AppendEntriesRequest); ok && a.PrevLogEntry == 0 && len(a.Entries) == 0 && a.LeaderCommitIndex == 0 {
		n.mu.Lock()
		heartbeat := n.heartbeat
		n.mu.Unlock()
		if heartbeat != nil && !n.isClosed() {
			heartbeat(rpc)
			return true
		}
	}
	select {
	case n.rpcs <- rpc:
		return true
	case <-n.closed:
		return false
	}
}

// answerTo copies what came back to where Raft wants it.
func answerTo[T any](resp *T, got any, err error) error {
	if a, ok := got.(*T); ok && a != nil {
		*resp = *a
	}
	return err
}

// Consumer implements raft.Transport.
func (n *Node) Consumer() <-chan raft.RPC { return n.rpcs }

// LocalAddr implements raft.Transport.
func (n *Node) LocalAddr() raft.ServerAddress { return raft.ServerAddress(n.id) }

// AppendEntriesPipeline implements raft.Transport; there is none.
func (n *Node) AppendEntriesPipeline(raft.ServerID, raft.ServerAddress) (raft.AppendPipeline, error) {
	return nil, raft.ErrPipelineReplicationNotSupported
}

// AppendEntries implements raft.Transport.
func (n *Node) AppendEntries(id raft.ServerID, _ raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	got, err := n.rpc(id, args, nil)
	return answerTo(resp, got, err)
}

// RequestVote implements raft.Transport.
func (n *Node) RequestVote(id raft.ServerID, _ raft.ServerAddress, args *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	got, err := n.rpc(id, args, nil)
	return answerTo(resp, got, err)
}

// RequestPreVote implements raft.WithPreVote.
func (n *Node) RequestPreVote(id raft.ServerID, _ raft.ServerAddress, args *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	got, err := n.rpc(id, args, nil)
	return answerTo(resp, got, err)
}

// InstallSnapshot implements raft.Transport.
func (n *Node) InstallSnapshot(id raft.ServerID, _ raft.ServerAddress, args *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	state, err := io.ReadAll(data)
	if err != nil {
		return err
	}
	got, err := n.rpc(id, args, state)
	return answerTo(resp, got, err)
}

// TimeoutNow implements raft.Transport.
func (n *Node) TimeoutNow(id raft.ServerID, _ raft.ServerAddress, args *raft.TimeoutNowRequest, resp *raft.TimeoutNowResponse) error {
	got, err := n.rpc(id, args, nil)
	return answerTo(resp, got, err)
}

// EncodePeer implements raft.Transport.
func (n *Node) EncodePeer(_ raft.ServerID, address raft.ServerAddress) []byte { return []byte(address) }

// DecodePeer implements raft.Transport.
func (n *Node) DecodePeer(b []byte) raft.ServerAddress { return raft.ServerAddress(b) }

// SetHeartbeatHandler implements raft.Transport.
func (n *Node) SetHeartbeatHandler(handler func(raft.RPC)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.heartbeat = handler
}
