package raftstore

import (
	"context"
	"errors"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// caughtUp waits until these nodes have applied what n has, and compares.
func (m *mesh) caughtUp(n *meshNode, ids ...string) {
	m.t.Helper()
	for _, id := range ids {
		other := m.nodes[id]
		if err := other.store.WaitApplied(testContext(m.t), n.sm.AppliedIndex()); err != nil {
			m.t.Fatalf("%s: %v: %+v", id, err, other.store.Status())
		}
		if got, want := other.sm.commands(), n.sm.commands(); !reflect.DeepEqual(got, want) {
			m.t.Fatalf("%s has %v, %s has %v", id, got, n.id, want)
		}
	}
}

func memberIDs(members []Member, want func(Member) bool) []string {
	var ids []string
	for _, m := range members {
		if want(m) {
			ids = append(ids, m.ID)
		}
	}
	slices.Sort(ids)
	return ids
}

func isVoter(m Member) bool   { return m.Voter }
func answers(m Member) bool   { return m.Err == nil }
func anyMember(m Member) bool { return true }

func TestClusterOverTLS(t *testing.T) {
	m := newMesh(t, 3, nil)
	n1, n2 := m.nodes["n1"], m.nodes["n2"]
	propose(t, n1.store, numbered(0, 50)...)
	for _, id := range m.ids {
		if _, err := m.nodes[id].store.ReadIndex(testContext(t)); err != nil {
			t.Errorf("read at %s: %v", id, err)
		}
		if got := len(m.nodes[id].sm.commands()); got != 50 {
			t.Errorf("%s has %d commands after a linearizable read", id, got)
		}
	}
	for _, id := range m.ids {
		members := m.nodes[id].store.Members(testContext(t))
		if got := memberIDs(members, func(m Member) bool { return m.Voter && m.Err == nil && m.Term == n1.store.Term() }); !slices.Equal(got, m.ids) {
			t.Errorf("%s sees the voters %v: %+v", id, got, members)
		}
		if got := memberIDs(members, func(m Member) bool { return m.Leader }); !slices.Equal(got, []string{"n1"}) {
			t.Errorf("%s sees the leaders %v", id, got)
		}
	}
	if err := n1.store.TransferLeadership(testContext(t), "n2"); err != nil {
		t.Fatal(err)
	}
	if got := m.leader(); got != n2 {
		t.Errorf("%s leads after the transfer to n2", got.id)
	}
	propose(t, n2.store, "after")
	m.caughtUp(n2, "n1", "n3")
	if err := n1.store.TransferLeadership(testContext(t), ""); !errors.Is(err, ErrNotLeader) {
		t.Errorf("transfer by a follower: %v", err)
	}
	if err := n2.store.TransferLeadership(testContext(t), "n9"); !errors.Is(err, ErrUnknownMember) {
		t.Errorf("transfer to nobody: %v", err)
	}
}

// A follower's read waits for what was acknowledged before it, however late the
// follower is.
func TestReadAtALateFollower(t *testing.T) {
	held := make(chan struct{})
	m := newMesh(t, 3, nil)
	n1, n3 := m.nodes["n1"], m.nodes["n3"]
	n3.sm.mu.Lock() // n3 applies nothing, but answers
	propose(t, n1.store, "a")
	done := make(chan error, 1)
	go func() {
		_, err := n3.store.ReadIndex(testContext(t))
		close(held)
		done <- err
	}()
	select {
	case <-held:
		t.Error("read before it was applied")
	case <-time.After(200 * time.Millisecond):
	}
	n3.sm.mu.Unlock()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got := n3.sm.commands(); !slices.Equal(got, []string{"a"}) {
		t.Errorf("read %v", got)
	}
}

// A follower that got everything by snapshot, and a leader that did, agree on
// what a read has to wait for although Raft's own entries are in between.
func TestReadAfterASnapshotThatEndsInRaftsOwnEntries(t *testing.T) {
	m := newMesh(t, 3, nil)
	m.atLeader(func(s *Store) error { _, err := s.Propose(testContext(t), []byte("a")); return err })
	m.lead("n2") // each term begins with entries that no state machine sees
	leader := m.lead("n3")
	if err := leader.store.raft.Snapshot().Error(); err != nil { // whether or not anything is new to the state
		t.Fatal(err)
	}
	if index, _ := leader.store.snaps.newest(); index <= leader.sm.AppliedIndex() {
		t.Fatalf("snapshot of %d, state machine at %d: nothing to test", index, leader.sm.AppliedIndex())
	}
	closeStore(t, leader.store)
	m.ids = []string{"n1", "n2"}
	leader.sm = &ledger{}
	m.start(leader)
	now := m.atLeader(func(s *Store) error { return s.SetAddress(testContext(t), "n3", string(leader.trans.LocalAddr())) })
	m.ids = []string{"n1", "n2", "n3"}
	m.caughtUp(now, "n3")
	m.lead("n3")
	for _, id := range m.ids {
		if _, err := m.nodes[id].store.ReadIndex(testContext(t)); err != nil {
			t.Errorf("read at %s: %v", id, err)
		}
	}
}

func TestPromoteAndDemote(t *testing.T) {
	m := newMesh(t, 1, nil)
	n1, n2 := m.nodes["n1"], m.open("n2", false, nil)
	ctx := testContext(t)
	if err := n1.store.Promote(ctx, "n2", false); !errors.Is(err, ErrUnknownMember) {
		t.Errorf("promotion of a stranger: %v", err)
	}
	if err := n1.store.AddNonvoter(ctx, "n2", string(n2.trans.LocalAddr())); err != nil {
		t.Fatal(err)
	}
	propose(t, n1.store, "a")
	m.caughtUp(n1, "n2")
	if err := n2.store.Promote(ctx, "n2", false); !errors.Is(err, ErrNotLeader) {
		t.Errorf("promotion by a follower: %v", err)
	}
	if _, err := n2.store.ReadIndex(ctx); err != nil {
		t.Errorf("read at a non-voter: %v", err)
	}
	m.isolate("n2", true)
	if err := n1.store.Promote(ctx, "n2", false); !errors.Is(err, ErrLagging) {
		t.Errorf("promotion of a node that does not answer: %v", err)
	}
	if err := n1.store.AddVoter(ctx, "n2", string(n2.trans.LocalAddr()), false); !errors.Is(err, ErrQuorum) {
		t.Errorf("a vote for a node that does not answer: %v", err)
	}
	m.isolate("n2", false)
	for {
		err := n1.store.Promote(ctx, "n2", false)
		if err == nil {
			break
		}
		if !errors.Is(err, ErrLagging) {
			t.Fatal(err)
		}
	}
	if got := memberIDs(n1.store.Members(ctx), isVoter); !slices.Equal(got, []string{"n1", "n2"}) {
		t.Errorf("voters %v", got)
	}
	if err := n1.store.Demote(ctx, "n2", false); err != nil {
		t.Fatal(err)
	}
	if got := memberIDs(n1.store.Members(ctx), isVoter); !slices.Equal(got, []string{"n1"}) {
		t.Errorf("voters after the demotion %v", got)
	}
	for _, do := range []func() error{
		func() error { return n1.store.Demote(ctx, "n1", true) },
		func() error { return n1.store.Remove(ctx, "n1", true) },
	} {
		if err := do(); !errors.Is(err, ErrQuorum) {
			t.Errorf("the last voter: %v", err)
		}
	}
	if err := n1.store.AddNonvoter(ctx, "", "x"); !errors.Is(err, ErrConfig) {
		t.Errorf("no id: %v", err)
	}
}

// A node that has much to fetch gets no vote before it has: commits would wait for it.
func TestLaggingNodeGetsNoVote(t *testing.T) {
	m := newMesh(t, 1, nil)
	held := make(chan struct{})
	f := &faults{hanging: make(chan struct{}, 1<<16)}
	f.hang.Store(&held)
	n1, n2 := m.nodes["n1"], m.open("n2", false, func(cfg *Config) {
		cfg.wrapLogs, cfg.DiskStall = f.wrapLogs, time.Minute
	})
	if err := n1.store.AddNonvoter(testContext(t), "n2", string(n2.trans.LocalAddr())); err != nil {
		t.Fatal(err)
	}
	var proposals sync.WaitGroup
	for range promotionLag + 1 {
		proposals.Go(func() { propose(t, n1.store, "a") })
	}
	proposals.Wait()
	if err := n1.store.Promote(testContext(t), "n2", false); !errors.Is(err, ErrLagging) {
		t.Errorf("promotion of a node that has nothing yet: %v", err)
	}
	f.hang.Store(nil)
	close(held)
	m.caughtUp(n1, "n2")
	if err := n1.store.Promote(testContext(t), "n2", false); err != nil {
		t.Errorf("promotion of a node that has caught up: %v", err)
	}
}

func TestRemovedNodeEnds(t *testing.T) {
	m := newMesh(t, 3, nil)
	n1, n3 := m.nodes["n1"], m.nodes["n3"]
	propose(t, n1.store, "a")
	if err := n1.store.Remove(testContext(t), "n3", false); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-n3.fatal:
		if !errors.Is(err, ErrRemoved) {
			t.Errorf("ended with %v", err)
		}
	case <-testContext(t).Done():
		t.Fatal("a removed node goes on")
	}
	if err := n3.store.Status().Err; !errors.Is(err, ErrRemoved) {
		t.Errorf("status %v", err)
	}
	propose(t, n1.store, "b")
	m.caughtUp(n1, "n2")
	if got := memberIDs(n2Members(m), anyMember); !slices.Equal(got, []string{"n1", "n2"}) {
		t.Errorf("members %v", got)
	}
	if err := n1.store.Remove(testContext(t), "n3", false); !errors.Is(err, ErrUnknownMember) {
		t.Errorf("again: %v", err)
	}
	// The leader does not remove itself, but has the next do it.
	if err := n1.store.Remove(testContext(t), "n1", false); !errors.Is(err, ErrNotLeader) {
		t.Fatalf("the leader itself: %v", err)
	}
	n2 := m.leader("n2")
	if err := n2.store.Remove(testContext(t), "n1", false); err != nil {
		t.Fatal(err)
	}
	if err := <-n1.fatal; !errors.Is(err, ErrRemoved) {
		t.Errorf("n1 ended with %v", err)
	}
	propose(t, n2.store, "c")
}

func n2Members(m *mesh) []Member { return m.nodes["n2"].store.Members(testContext(m.t)) }

// A node that was removed does not start again, whichever way it heard of it.
func TestRemovedNodeDoesNotStart(t *testing.T) {
	m := newMesh(t, 2, nil)
	n1, n2 := m.nodes["n1"], m.nodes["n2"]
	for _, from := range []string{"n3", ""} {
		if _, err := n2.store.answerRemoved(t.Context(), from, make([]byte, 8)); !errors.Is(err, ErrUnknownMember) {
			t.Errorf("word of %q: %v", from, err)
		}
	}
	if err := n1.store.Remove(testContext(t), "n2", false); err != nil {
		t.Fatal(err)
	}
	<-n2.fatal
	n2.store.Close()
	if _, err := Open(n2.cfg, &ledger{}); !errors.Is(err, ErrRemoved) {
		t.Errorf("started again: %v", err)
	}
	noted := 0
	f := newFSM(&ledger{}, &failure{onFatal: func(error) {}, dead: make(chan struct{}), opening: true}, "n2", func() { noted++ })
	has := raft.Configuration{Servers: []raft.Server{{ID: "n1"}, {ID: "n2"}}}
	has1 := raft.Configuration{Servers: []raft.Server{{ID: "n1"}}}
	err := f.fail.contain("test", func() error {
		f.configured(has1, 1) // before it was added
		f.configured(has, 2)
		if noted != 0 {
			t.Error("removed before it was")
		}
		f.configured(has1, 3)
		return nil
	})
	if !errors.Is(err, ErrRemoved) || noted != 1 {
		t.Errorf("a configuration without the node: %v, noted %d times", err, noted)
	}
}

func TestChangesThatWouldLoseTheQuorum(t *testing.T) {
	m := newMesh(t, 3, nil)
	n1 := m.nodes["n1"]
	ctx := testContext(t)
	m.isolate("n3", true)
	// Of two voters, the one left that answers would be no majority.
	for name, do := range map[string]func() error{
		"remove": func() error { return n1.store.Remove(ctx, "n2", false) },
		"demote": func() error { return n1.store.Demote(ctx, "n2", false) },
	} {
		if err := do(); !errors.Is(err, ErrQuorum) {
			t.Errorf("%s the other voter that answers: %v", name, err)
		}
	}
	if got := memberIDs(n1.store.Members(ctx), answers); !slices.Equal(got, []string{"n1", "n2"}) {
		t.Errorf("%v answer", got)
	}
	if err := n1.store.Remove(ctx, "n3", false); err != nil {
		t.Errorf("remove the one that does not: %v", err)
	}
	propose(t, n1.store, "a")
	m.caughtUp(n1, "n2")
}

// A node that comes back elsewhere is found once it said where.
func TestNodeThatMoved(t *testing.T) {
	m := newMesh(t, 3, nil)
	n1, n2, n3 := m.nodes["n1"], m.nodes["n2"], m.nodes["n3"]
	propose(t, n1.store, "a")
	m.caughtUp(n1, "n2", "n3")
	closeStore(t, n3.store)
	propose(t, n1.store, "b")
	n3.sm = &ledger{}
	m.start(n3)
	if err := n1.store.SetAddress(testContext(t), "n3", string(n3.trans.LocalAddr())); err != nil {
		t.Fatal(err)
	}
	m.caughtUp(n1, "n3")
	for _, s := range n1.store.servers() {
		if s.ID == "n3" && (s.Suffrage != raft.Voter || s.Address != n3.trans.LocalAddr()) {
			t.Errorf("n3 is %+v", s)
		}
	}
	m.isolate("n2", true) // the majority needs n3 now
	propose(t, n1.store, "c")
	m.isolate("n2", false)
	m.caughtUp(n1, "n2", "n3")
	if err := n1.store.SetAddress(testContext(t), "n9", "x:1"); !errors.Is(err, ErrUnknownMember) {
		t.Errorf("nobody's address: %v", err)
	}
	_ = n2
}

func TestFiveNodesLoseTwo(t *testing.T) {
	m := newMesh(t, 5, func(cfg *Config) { cfg.HeartbeatTimeout = 500 * time.Millisecond })
	propose(t, m.nodes["n1"].store, numbered(0, 10)...)
	m.isolate("n1", true)
	second := m.leader(m.others("n1")...)
	propose(t, second.store, numbered(10, 20)...)
	m.isolate(second.id, true)
	rest := slices.DeleteFunc(m.others("n1"), func(id string) bool { return id == second.id })
	third := m.leader(rest...)
	propose(t, third.store, numbered(20, 30)...)
	for _, id := range []string{"n1", second.id} {
		if _, err := m.nodes[id].store.ReadIndex(testContext(t)); !errors.Is(err, ErrNotLeader) {
			t.Errorf("%s, cut off, reads: %v", id, err)
		}
	}
	m.isolate("n1", false)
	m.isolate(second.id, false)
	m.caughtUp(third, m.ids...)
	if got := third.sm.commands(); !reflect.DeepEqual(got, numbered(0, 30)) {
		t.Errorf("commands %v", got)
	}
}

// TestNodeThatWasAwayDisturbsNobody has a node stand for election where nobody hears
// it. It asks first whether it would win (pre-vote), so that its term does not rise,
// and the leader that it comes back to does not fall.
func TestNodeThatWasAwayDisturbsNobody(t *testing.T) {
	m := newMesh(t, 3, nil)
	leader := m.lead("n1")
	term := leader.store.Term()
	m.isolate("n3", true)
	deadline := testContext(t)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for m.nodes["n3"].store.Status().State != "candidate" {
		select {
		case <-tick.C:
		case <-deadline.Done():
			t.Fatal("it does not stand for election")
		}
	}
	m.isolate("n3", false)
	propose(t, leader.store, "a")
	m.caughtUp(leader, "n2", "n3")
	for _, id := range m.ids {
		if st := m.nodes[id].store.Status(); st.Term != term || st.Leader != "n1" {
			t.Errorf("%s follows %q in term %d; n1 led in term %d", id, st.Leader, st.Term, term)
		}
	}
}

// TestLeaderGoesDark cuts the leader off without a word, with the timeouts of a
// local network: others commit soon, and it catches up soon after it is back.
// With RAFTSTORE_FAILOVERS it measures.
func TestLeaderGoesDark(t *testing.T) {
	m := newMesh(t, 3, func(cfg *Config) { cfg.HeartbeatTimeout = 0 })
	var failover, back []time.Duration
	for i := range envInt("RAFTSTORE_FAILOVERS", 1) {
		leader := m.leader()
		others := m.others(leader.id)
		dark := time.Now()
		m.isolate(leader.id, true)
		var next *meshNode
		for next == nil {
			n := m.leader(others...)
			if _, err := n.store.Propose(testContext(t), []byte{byte(i)}); err == nil {
				next = n
			}
		}
		failover = append(failover, time.Since(dark))
		m.isolate(leader.id, false)
		light := time.Now()
		for {
			ctx, cancel := context.WithTimeout(testContext(t), 100*time.Millisecond)
			_, err := leader.store.ReadIndex(ctx)
			cancel()
			if err == nil {
				break
			}
		}
		back = append(back, time.Since(light))
		m.caughtUp(next, leader.id)
	}
	report(t, "a leader that goes dark to the next commit", failover)
	report(t, "the end of that to a linearizable read at it", back)
}
