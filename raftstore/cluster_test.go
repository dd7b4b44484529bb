package raftstore

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// cluster is several nodes in one process.
type cluster struct {
	t     *testing.T
	nodes map[string]*node
}

type node struct {
	id     string
	cfg    Config
	sm     *ledger
	trans  *raft.InmemTransport
	store  *Store
	cutOff bool

	handlers map[byte]Handler
}

// reader is how one node asks the others for their term.
type reader struct {
	c    *cluster
	mu   *sync.Mutex
	from string
}

var errCutOff = errors.New("cut off")

func (r reader) Handle(method byte, h Handler) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.c.nodes[r.from]
	if n.handlers == nil {
		n.handlers = map[byte]Handler{}
	}
	n.handlers[method] = h
}

func (r reader) Call(ctx context.Context, id, _ string, method byte, request []byte) ([]byte, error) {
	r.mu.Lock()
	h, cut := r.c.nodes[id].handlers[method], r.c.nodes[id].cutOff || r.c.nodes[r.from].cutOff
	r.mu.Unlock()
	if cut || h == nil {
		return nil, errCutOff
	}
	return h(ctx, r.from, request)
}

func newCluster(t *testing.T, change func(*Config)) (*cluster, func(id string, cut bool)) {
	c := &cluster{t: t, nodes: map[string]*node{}}
	var mu sync.Mutex
	ids := []string{"n1", "n2", "n3"}
	for _, id := range ids {
		_, trans := raft.NewInmemTransport(raft.ServerAddress(id))
		n := &node{id: id, sm: &ledger{}, trans: trans, cfg: testConfig(t, filepath.Join(t.TempDir(), id))}
		n.cfg.NodeID, n.cfg.Transport, n.cfg.Peers = id, trans, reader{c, &mu, id}
		n.cfg.Bootstrap, n.cfg.Join = id == "n1", id != "n1"
		n.cfg.HeartbeatTimeout = 600 * time.Millisecond // of a busy machine
		if change != nil {
			change(&n.cfg)
		}
		c.nodes[id] = n
	}
	connect := func(id string, cut bool) {
		mu.Lock()
		defer mu.Unlock()
		c.nodes[id].cutOff = cut
		for _, other := range ids {
			if other == id {
				continue
			}
			if cut {
				c.nodes[id].trans.Disconnect(raft.ServerAddress(other))
				c.nodes[other].trans.Disconnect(raft.ServerAddress(id))
			} else {
				c.nodes[id].trans.Connect(raft.ServerAddress(other), c.nodes[other].trans)
				c.nodes[other].trans.Connect(raft.ServerAddress(id), c.nodes[id].trans)
			}
		}
	}
	for _, id := range ids {
		connect(id, false)
		s, err := Open(c.nodes[id].cfg, c.nodes[id].sm)
		if err != nil {
			t.Fatal(err)
		}
		c.nodes[id].store = s
		t.Cleanup(func() { s.Close() })
	}
	n1 := c.nodes["n1"].store
	if _, err := n1.WaitLeader(testContext(t)); err != nil {
		t.Fatal(err)
	}
	for _, id := range ids[1:] {
		if err := n1.raft.AddVoter(raft.ServerID(id), raft.ServerAddress(id), 0, 0).Error(); err != nil {
			t.Fatal(err)
		}
	}
	return c, connect
}

// leader waits until one of the nodes leads.
func (c *cluster) leader(among ...string) *node {
	c.t.Helper()
	ctx, cancel := context.WithCancel(testContext(c.t))
	defer cancel()
	won := make(chan *node, len(among))
	for _, id := range among {
		go func() {
			if _, err := c.nodes[id].store.WaitLeader(ctx); err == nil {
				won <- c.nodes[id]
			}
		}()
	}
	select {
	case n := <-won:
		return n
	case <-ctx.Done():
		c.t.Fatal("no leader")
		return nil
	}
}

// caughtUp waits until every node has applied what the leader has.
func (c *cluster) caughtUp(leader *node, ids ...string) {
	c.t.Helper()
	want := leader.sm.AppliedIndex()
	for _, id := range ids {
		n := c.nodes[id]
		if err := n.store.fsm.wait(testContext(c.t), want, nil, nil); err != nil {
			c.t.Fatalf("%s is at %d, not %d: %v: %+v", id, n.store.AppliedIndex(), want, err, n.store.Status())
		}
		if got, want := n.sm.commands(), leader.sm.commands(); !reflect.DeepEqual(got, want) {
			c.t.Fatalf("%s has %v, the leader %v", id, got, want)
		}
	}
}

func TestClusterHandsOverOnClose(t *testing.T) {
	c, _ := newCluster(t, nil)
	n1 := c.nodes["n1"]
	propose(t, n1.store, numbered(0, 20)...)
	c.caughtUp(n1, "n2", "n3")
	if _, err := n1.store.ReadIndex(testContext(t)); err != nil {
		t.Errorf("read at the leader: %v", err)
	}
	if _, err := c.nodes["n2"].store.ReadIndex(testContext(t)); err != nil {
		t.Errorf("read at a follower: %v", err)
	}
	if _, err := c.nodes["n2"].store.Propose(testContext(t), nil); !errors.Is(err, ErrNotLeader) {
		t.Errorf("propose at a follower: %v", err)
	}
	if st := c.nodes["n2"].store.Status(); st.Leader != "n1" || len(st.Voters) != 3 || st.State != "follower" {
		t.Errorf("status of a follower: %+v", st)
	}
	for _, id := range []string{"n2", "n3"} { // who will not stand by themselves for a while
		rc := c.nodes[id].store.raft.ReloadableConfig()
		rc.HeartbeatTimeout, rc.ElectionTimeout = time.Minute, time.Minute
		if err := c.nodes[id].store.raft.ReloadConfig(rc); err != nil {
			t.Fatal(err)
		}
	}
	closeStore(t, n1.store)
	next := c.leader("n2", "n3")
	propose(t, next.store, "after")
	if got := next.sm.commands(); len(got) != 21 {
		t.Errorf("new leader has %v", got)
	}
}

func TestDeposedLeaderNeitherReadsNorWrites(t *testing.T) {
	c, connect := newCluster(t, nil)
	n1 := c.nodes["n1"]
	propose(t, n1.store, "a")
	connect("n1", true)
	if _, err := n1.store.ReadIndex(testContext(t)); !errors.Is(err, ErrNotLeader) {
		t.Errorf("read by a leader that was cut off: %v", err)
	}
	if _, err := n1.store.Propose(testContext(t), []byte("limbo")); !errors.Is(err, ErrIndeterminate) && !errors.Is(err, ErrNotLeader) {
		t.Errorf("write by a leader that was cut off: %v", err)
	}
	next := c.leader("n2", "n3")
	propose(t, next.store, "b")
	connect("n1", false)
	c.caughtUp(next, "n1", "n2", "n3")
	for _, cmd := range next.sm.commands() {
		if cmd == "limbo" {
			t.Error("what the deposed leader wrote alone has survived")
		}
	}
}

// A leader that has not heard yet of the next one asks, and is told.
func TestReadNeedsMajorityAtOwnTerm(t *testing.T) {
	peers := &switched{}
	c, _ := newCluster(t, func(cfg *Config) {
		cfg.HeartbeatTimeout = 300 * time.Millisecond // four of which a read goes on asking
		if cfg.NodeID == "n1" {
			peers.use(cfg.Peers)
			cfg.Peers = peers
		}
	})
	n1 := c.nodes["n1"]
	term := n1.store.Term()
	for _, tc := range []struct {
		terms map[string]uint64
		want  error
	}{
		{map[string]uint64{"n2": term, "n3": term}, nil},
		{map[string]uint64{"n2": term + 1, "n3": term}, nil}, // an election that n2 has not won
		{map[string]uint64{"n2": term}, nil},
		{map[string]uint64{"n2": term + 1, "n3": term + 1}, ErrNotLeader},
		{map[string]uint64{"n2": term - 1, "n3": term + 1}, ErrNotLeader},
		{map[string]uint64{}, ErrNotLeader},
	} {
		peers.use(fixedTerms(tc.terms))
		if _, err := n1.store.ReadIndex(testContext(t)); !errors.Is(err, tc.want) {
			t.Errorf("at term %d with %v: %v", term, tc.terms, err)
		}
	}
	peers.use(silent{})
	if _, err := n1.store.ReadIndex(testContext(t)); !errors.Is(err, ErrNotLeader) {
		t.Errorf("without an answer: %v", err)
	}
}

// switched is Peers that can be changed.
type switched struct{ now atomic.Pointer[Peers] }

func (s *switched) use(p Peers)                   { s.now.Store(&p) }
func (s *switched) Handle(method byte, h Handler) { (*s.now.Load()).Handle(method, h) }
func (s *switched) Call(ctx context.Context, id, address string, method byte, request []byte) ([]byte, error) {
	return (*s.now.Load()).Call(ctx, id, address, method, request)
}

type fixedTerms map[string]uint64

func (fixedTerms) Handle(byte, Handler) {}

func (f fixedTerms) Call(_ context.Context, id, _ string, _ byte, _ []byte) ([]byte, error) {
	if term, ok := f[id]; ok {
		return binary.BigEndian.AppendUint64(nil, term), nil
	}
	return nil, fmt.Errorf("no answer from %s", id)
}

type silent struct{}

func (silent) Handle(byte, Handler) {}

func (silent) Call(ctx context.Context, _, _ string, _ byte, _ []byte) ([]byte, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func TestFollowerCatchesUpBySnapshot(t *testing.T) {
	c, connect := newCluster(t, func(cfg *Config) { cfg.TrailingLogs = 2 })
	n1, n3 := c.nodes["n1"], c.nodes["n3"]
	propose(t, n1.store, numbered(0, 5)...)
	c.caughtUp(n1, "n2", "n3")
	connect("n3", true)
	propose(t, n1.store, numbered(5, 50)...)
	if err := n1.store.Snapshot(testContext(t)); err != nil {
		t.Fatal(err)
	}
	propose(t, n1.store, numbered(50, 52)...)
	connect("n3", false)
	c.caughtUp(n1, "n3")
	if n3.sm.restored == 0 {
		t.Error("caught up without the snapshot")
	}
	if st := n3.store.Status(); st.FirstIndex <= 5 {
		t.Errorf("the log that the snapshot replaced is still there: %+v", st)
	}
	closeStore(t, n3.store)
	propose(t, n1.store, "while away")

	_, n3.trans = raft.NewInmemTransport("n3")
	n3.cfg.Transport = n3.trans
	connect("n3", false)
	n3.sm = &ledger{}
	s, err := Open(n3.cfg, n3.sm)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	n3.store = s
	c.caughtUp(n1, "n3")
}

// A crash between installing a snapshot and clearing the log leaves a log that
// ends before the snapshot. All of it is in there.
func TestLogThatEndsBeforeTheSnapshot(t *testing.T) {
	cfg := testConfig(t, t.TempDir())
	path := filepath.Join(cfg.Dir, "raft.db")
	s := start(t, cfg, &ledger{})
	propose(t, s, numbered(0, 5)...)
	closeStore(t, s)
	old, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	s = start(t, cfg, &ledger{})
	propose(t, s, numbered(5, 50)...)
	if err := s.Snapshot(testContext(t)); err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	if err := os.WriteFile(path, old, 0o600); err != nil {
		t.Fatal(err)
	}
	sm := &ledger{}
	s = start(t, cfg, sm)
	propose(t, s, "more")
	if got := sm.commands(); !reflect.DeepEqual(got, append(numbered(0, 50), "more")) {
		t.Errorf("commands %v", got)
	}
	if st := s.Status(); st.FirstIndex <= st.SnapshotIndex {
		t.Errorf("old entries are still there: %+v", st)
	}
}

// TestManyEntriesToRestore has more entries to restore from the log than Raft's
// queue holds.
func TestManyEntriesToRestore(t *testing.T) {
	cfg := testConfig(t, t.TempDir())
	s := start(t, cfg, &ledger{})
	propose(t, s, "a")
	if err := s.Snapshot(testContext(t)); err != nil { // no configuration entry after it
		t.Fatal(err)
	}
	closeStore(t, s)
	b, err := openLog(filepath.Join(cfg.Dir, "raft.db"))
	if err != nil {
		t.Fatal(err)
	}
	last, _ := b.LastIndex()
	var l raft.Log
	if err := b.GetLog(last, &l); err != nil {
		t.Fatal(err)
	}
	const n = 140 * maxAppendEntries
	logs := make([]*raft.Log, n)
	for i := range logs {
		logs[i] = &raft.Log{Index: last + 1 + uint64(i), Term: l.Term, Type: raft.LogCommand}
	}
	b.StageCommitIndex(last + n)
	if err := b.StoreLogs(logs); err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	sm := &ledger{}
	start(t, cfg, sm)
	if got := len(sm.commands()); got != n+1 {
		t.Errorf("%d commands, want %d", got, n+1)
	}
}
