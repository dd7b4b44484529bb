package raftstoretest_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/writ-dev/writ/raftstore"
	"github.com/writ-dev/writ/raftstore/raftstoretest"
)

// list is a state machine that keeps every command.
type list struct {
	mu    sync.Mutex
	State struct {
		At       uint64
		Commands []string
	}
}

func (l *list) Apply(batch []raftstore.Entry) []any {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range batch {
		l.State.At, l.State.Commands = e.Index, append(l.State.Commands, string(e.Command))
	}
	return make([]any, len(batch))
}

func (l *list) AppliedIndex() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.State.At
}

func (l *list) Snapshot() (raftstore.Snapshot, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	b, err := json.Marshal(l.State)
	return captured(b), err
}

func (l *list) Restore(r io.Reader) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return json.NewDecoder(r).Decode(&l.State)
}

func (l *list) commands() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.State.Commands)
}

type captured []byte

func (c captured) Persist(w io.Writer) error { _, err := w.Write(c); return err }
func (c captured) Release()                  {}

type member struct {
	id    string
	disk  raftstoretest.Disk
	sm    list
	store *raftstore.Store
	fatal chan error
}

// start forms a cluster of n1, n2 and n3.
func start(t *testing.T, net *raftstoretest.Network) map[string]*member {
	t.Helper()
	members := map[string]*member{}
	for _, id := range []string{"n1", "n2", "n3"} {
		m := &member{id: id, fatal: make(chan error, 1)}
		var err error
		m.store, err = raftstore.Open(raftstore.Config{
			Dir: filepath.Join(t.TempDir(), id), NodeID: id, Bootstrap: id == "n1", Join: id != "n1",
			Transport: net.Node(id), Faults: &m.disk, OnFatal: func(err error) { m.fatal <- err },
		}, &m.sm)
		if err != nil {
			t.Fatal(err)
		}
		members[id] = m
		if id == "n1" {
			if _, err := m.store.WaitLeader(t.Context()); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := members["n1"].store.AddVoter(t.Context(), id, id, false); err != nil {
			t.Fatal(err)
		}
	}
	return members
}

func stop(members map[string]*member) {
	for _, m := range members {
		m.store.Close()
	}
}

// write has any of the members that leads take a command, whatever it takes.
func write(t *testing.T, command string, members ...*member) *member {
	t.Helper()
	for range 1000 {
		for _, m := range members {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			_, err := m.store.Propose(ctx, []byte(command))
			cancel()
			if err == nil {
				return m
			}
		}
		time.Sleep(10 * time.Millisecond) // of the bubble
	}
	t.Fatalf("nobody takes %q", command)
	return nil
}

func settle(t *testing.T, leader *member, members map[string]*member) {
	t.Helper()
	for _, m := range members {
		if err := m.store.WaitApplied(t.Context(), leader.sm.AppliedIndex()); err != nil {
			t.Fatal(err)
		}
		if got, want := m.sm.commands(), leader.sm.commands(); !slices.Equal(got, want) {
			t.Errorf("%s has %v, %s has %v", m.id, got, leader.id, want)
		}
	}
}

func TestPartitionsInABubble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := raftstoretest.NewNetwork(1)
		members := start(t, net)
		defer stop(members)
		n1, n2, n3 := members["n1"], members["n2"], members["n3"]
		write(t, "a", n1)
		net.Partition([]string{"n1"}, []string{"n2", "n3"})
		next := write(t, "b", n2, n3)
		if _, err := n1.store.ReadIndex(t.Context()); !errors.Is(err, raftstore.ErrNotLeader) {
			t.Errorf("read by the one that was cut off: %v", err)
		}
		net.Heal()
		settle(t, next, members)
		// A leader that is heard but hears nothing steps down.
		for _, id := range []string{"n1", "n2", "n3"} {
			if id != next.id {
				net.SetLink(id, next.id, raftstoretest.Link{Down: true})
			}
		}
		deaf := next
		next = write(t, "c", slices.DeleteFunc([]*member{n1, n2, n3}, func(m *member) bool { return m == deaf })...)
		net.Heal()
		settle(t, next, members)
		if got := next.sm.commands(); !slices.Equal(got, []string{"a", "b", "c"}) {
			t.Errorf("commands %v", got)
		}
	})
}

func TestBadLinksInABubble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := raftstoretest.NewNetwork(2)
		members := start(t, net)
		defer stop(members)
		net.All(raftstoretest.Link{Drop: 0.02, Duplicate: 0.2, Delay: time.Millisecond, Jitter: 20 * time.Millisecond})
		var last *member
		want := map[string]bool{}
		for i := range 50 {
			command := fmt.Sprint(i)
			want[command] = true
			last = write(t, command, members["n1"], members["n2"], members["n3"])
		}
		net.Heal()
		settle(t, last, members)
		for _, c := range last.sm.commands() {
			delete(want, c)
		}
		if len(want) > 0 {
			t.Errorf("acknowledged and lost: %v", want)
		}
	})
}

func TestDiskFaults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := raftstoretest.NewNetwork(3)
		members := start(t, net)
		defer stop(members)
		n1, n2, n3 := members["n1"], members["n2"], members["n3"]
		write(t, "a", n1)

		n1.disk.Full()
		if _, err := n1.store.Propose(t.Context(), []byte("full")); !errors.Is(err, raftstore.ErrDiskFull) {
			t.Errorf("on a full disk: %v", err)
		}
		write(t, "b", n2, n3)
		if n1.disk.Hits() == 0 {
			t.Error("no write met the full disk")
		}
		n1.disk.Heal()
		leader := write(t, "c", n1, n2, n3)
		settle(t, leader, members)

		began := time.Now()
		for _, m := range members {
			m.disk.Slow(30 * time.Millisecond)
		}
		leader = write(t, "d", n1, n2, n3)
		if took := time.Since(began); took < 30*time.Millisecond {
			t.Errorf("slow disks took %v", took)
		}
		for _, m := range members {
			m.disk.Heal()
		}
		settle(t, leader, members)

		// A disk that hangs under the leader ends it, and another leads.
		others := slices.DeleteFunc([]*member{n1, n2, n3}, func(m *member) bool { return m == leader })
		hung := leader
		hung.disk.Hang()
		go hung.store.Propose(t.Context(), []byte("hung"))
		if err := <-hung.fatal; !errors.Is(err, raftstore.ErrDiskStalled) {
			t.Errorf("a disk that hangs ends with %v", err)
		}
		net.Node(hung.id).Close() // the process is gone
		leader = write(t, "e", others...)
		hung.disk.Heal()

		failed := others[0]
		if failed == leader {
			failed = others[1]
		}
		failed.disk.Fail()
		go leader.store.Propose(t.Context(), []byte("last"))
		if err := <-failed.fatal; err == nil {
			t.Error("a failed fsync did not end the node")
		}
	})
}

func TestDiskSet(t *testing.T) {
	var d raftstoretest.Disk
	ran := false
	for _, line := range []string{"slow 1ns", "full", "fail", "hang", "heal"} {
		if err := d.Set(line); err != nil {
			t.Error(err)
		}
	}
	if err := d.Write(func() error { ran = true; return nil }); err != nil || !ran {
		t.Errorf("healed: %v, ran %v", err, ran)
	}
	for _, line := range []string{"", "slow", "slow x", "burn"} {
		if err := d.Set(line); err == nil {
			t.Errorf("%q was understood", line)
		}
	}
}

// The same seed loses the same messages.
func TestSeedDecides(t *testing.T) {
	run := func(t *testing.T, seed uint64) []bool {
		net := raftstoretest.NewNetwork(seed)
		a, b := net.Node("a"), net.Node("b")
		b.Handle(raftstore.FirstMethod, func(context.Context, string, []byte) ([]byte, error) { return nil, nil })
		net.SetLink("a", "b", raftstoretest.Link{Drop: 0.5})
		var arrived []bool
		for range 64 {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
			_, err := a.Call(ctx, "b", "", raftstore.FirstMethod, nil)
			cancel()
			arrived = append(arrived, err == nil)
		}
		return arrived
	}
	synctest.Test(t, func(t *testing.T) {
		first := run(t, 7)
		if !slices.Equal(first, run(t, 7)) {
			t.Error("the same seed, another run")
		}
		if slices.Equal(first, run(t, 8)) || !slices.Contains(first, true) || !slices.Contains(first, false) {
			t.Errorf("what arrived: %v", first)
		}
	})
}
