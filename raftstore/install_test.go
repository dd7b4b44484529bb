package raftstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// follower is a node whose leader is the test.
type follower struct {
	t     *testing.T
	sm    *ledger
	store *Store
	trans *raft.InmemTransport // of the leader
}

func newFollower(t *testing.T, change func(*Config)) *follower {
	_, leader := raft.NewInmemTransport("n1")
	_, trans := raft.NewInmemTransport("n2")
	leader.Connect("n2", trans)
	trans.Connect("n1", leader)
	cfg := testConfig(t, t.TempDir())
	cfg.NodeID, cfg.Transport, cfg.Bootstrap, cfg.Join = "n2", trans, false, true
	cfg.HeartbeatTimeout = time.Minute // it is not to stand for election
	if change != nil {
		change(&cfg)
	}
	f := &follower{t: t, sm: new(ledger), trans: leader}
	var err error
	if f.store, err = Open(cfg, f.sm); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.store.Close() })
	return f
}

func (f *follower) header() raft.RPCHeader {
	return raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte("n1"), Addr: []byte("n1")}
}

var followerConfiguration = raft.Configuration{Servers: []raft.Server{
	{ID: "n1", Address: "n1"}, {ID: "n2", Address: "n2", Suffrage: raft.Nonvoter},
}}

// install sends a snapshot of index in a term; the state is what a ledger of so
// many commands has.
func (f *follower) install(term, index uint64, data io.Reader, size int) (raft.InstallSnapshotResponse, error) {
	var resp raft.InstallSnapshotResponse
	err := f.trans.InstallSnapshot("n2", "n2", &raft.InstallSnapshotRequest{
		RPCHeader: f.header(), SnapshotVersion: 1, Term: term, Leader: []byte("n1"), LastLogIndex: index, LastLogTerm: 1,
		Configuration: raft.EncodeConfiguration(followerConfiguration), ConfigurationIndex: 1, Size: int64(size),
	}, &resp, data)
	return resp, err
}

// append sends a committed command with index.
func (f *follower) append(term, index uint64) {
	f.t.Helper()
	var resp raft.AppendEntriesResponse
	err := f.trans.AppendEntries("n2", "n2", &raft.AppendEntriesRequest{
		RPCHeader: f.header(), Term: term, Leader: []byte("n1"), PrevLogEntry: index - 1, PrevLogTerm: 1, LeaderCommitIndex: index,
		Entries: []*raft.Log{{Index: index, Term: 1, Type: raft.LogCommand, Data: fmt.Appendf(nil, "c%d", index)}},
	}, &resp)
	if err != nil || !resp.Success {
		f.t.Fatalf("append of %d: %+v, %v", index, resp, err)
	}
	if err := f.store.WaitApplied(testContext(f.t), index); err != nil {
		f.t.Fatal(err)
	}
}

// ledgerState is what a ledger with the commands up to index persists.
func ledgerState(t *testing.T, index uint64) []byte {
	t.Helper()
	var l ledger
	for i := uint64(2); i <= index; i++ {
		l.Apply([]Entry{{Index: i, Command: fmt.Appendf(nil, "c%d", i)}})
	}
	snap, err := l.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := compress(&b, snap.Persist); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// A snapshot that is late, from a leader's earlier attempt or an earlier leader,
// takes nothing back: not from the state and not from the log.
func TestStaleSnapshotIsNotInstalled(t *testing.T) {
	f := newFollower(t, nil)
	first := ledgerState(t, 5)
	if resp, err := f.install(1, 5, bytes.NewReader(first), len(first)); err != nil || !resp.Success {
		t.Fatalf("%+v, %v", resp, err)
	}
	for index := uint64(6); index <= 9; index++ {
		f.append(1, index)
	}
	want := f.sm.commands()
	if len(want) != 8 {
		t.Fatalf("%d commands", len(want))
	}
	for _, late := range []struct{ term, index uint64 }{{1, 5}, {1, 7}, {1, 9}, {2, 5}} {
		data := bytes.NewReader(ledgerState(t, late.index))
		resp, err := f.install(late.term, late.index, data, data.Len())
		if err != nil || !resp.Success || resp.Term != late.term {
			t.Errorf("%+v: %+v, %v", late, resp, err)
		}
		if data.Len() != 0 {
			t.Errorf("%+v: %d bytes were left on the connection", late, data.Len())
		}
		if st := f.store.Status(); st.LastIndex != 9 || st.AppliedIndex != 9 || st.SnapshotIndex != 5 {
			t.Errorf("%+v: %+v", late, st)
		}
	}
	if got := f.sm.commands(); f.sm.restored != 1 || !reflect.DeepEqual(got, want) {
		t.Errorf("restored %d times: %q", f.sm.restored, got)
	}
	f.append(2, 10) // the log goes on where it was
	next := ledgerState(t, 12)
	if resp, err := f.install(2, 12, bytes.NewReader(next), len(next)); err != nil || !resp.Success {
		t.Fatalf("a newer one: %+v, %v", resp, err)
	}
	if st := f.store.Status(); f.sm.restored != 2 || st.LastIndex != 12 || st.AppliedIndex != 12 {
		t.Errorf("a newer one: restored %d times, %+v", f.sm.restored, st)
	}
}

// Raft's own entries may be the last ones in a snapshot, which the state machine
// knows nothing of. Who waits for one of them must not wait for ever.
func TestRestoredToTheSnapshotsIndex(t *testing.T) {
	f := newFollower(t, nil)
	data := ledgerState(t, 5)
	if resp, err := f.install(1, 8, bytes.NewReader(data), len(data)); err != nil || !resp.Success {
		t.Fatalf("%+v, %v", resp, err)
	}
	if err := f.store.WaitApplied(testContext(t), 8); err != nil {
		t.Error(err)
	}
}

// A leader that goes silent in the middle of a snapshot does not keep the node
// from hearing another.
func TestSilentLeader(t *testing.T) {
	f := newFollower(t, func(cfg *Config) { cfg.DiskStall = 200 * time.Millisecond })
	data := ledgerState(t, 500)
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		_, err := f.install(1, 500, r, len(data))
		done <- err
	}()
	if _, err := w.Write(data[:len(data)/2]); err != nil {
		t.Fatal(err)
	}
	var resp raft.RequestVoteResponse
	err := f.trans.RequestVote("n2", "n2", &raft.RequestVoteRequest{
		RPCHeader: f.header(), Term: 2, LastLogIndex: 600, LastLogTerm: 1, LeadershipTransfer: true,
	}, &resp)
	if err != nil || resp.Term != 2 {
		t.Errorf("vote: %+v, %v", resp, err)
	}
	w.Close()
	if err := <-done; err == nil {
		t.Error("half a snapshot was installed")
	}
	if f.sm.restored != 0 {
		t.Error("it was restored")
	}
	if resp, err := f.install(2, 500, bytes.NewReader(data), len(data)); err != nil || !resp.Success {
		t.Errorf("another leader's: %+v, %v", resp, err)
	}
}

// restoring answers a snapshot once the node has been asked so many times whether
// it is there; 0 is never, and then it no longer answers that either.
func restoring(t *testing.T, asked int) (from, to *Transport) {
	from = testTransport(t, "n1", func(cfg *TransportConfig) { cfg.IOTimeout = 100 * time.Millisecond })
	to = testTransport(t, "n2", nil)
	calls, end := make(chan struct{}), make(chan struct{})
	t.Cleanup(func() { close(end) })
	to.Handle(methodTerm, func(context.Context, string, []byte) ([]byte, error) {
		select {
		case calls <- struct{}{}:
		case <-end:
		}
		return nil, nil
	})
	go func() {
		rpc := <-to.Consumer()
		_, err := io.Copy(io.Discard, rpc.Reader)
		if asked == 0 {
			<-end
		}
		for range asked {
			<-calls
		}
		rpc.Respond(&raft.InstallSnapshotResponse{Success: true}, err)
	}()
	return from, to
}

// A leader waits for a node that restores a snapshot for as long as the node
// answers, and no longer: to send it again would have it restored again.
func TestSnapshotTakesItsTime(t *testing.T) {
	for _, asked := range []int{5, 0} {
		from, to := restoring(t, asked)
		var resp raft.InstallSnapshotResponse
		data := bytes.Repeat([]byte("state"), 100_000)
		err := from.InstallSnapshot("n2", raft.ServerAddress(to.cfg.Advertise), &raft.InstallSnapshotRequest{Size: int64(len(data))},
			&resp, bytes.NewReader(data))
		if (err == nil) != (asked > 0) || resp.Success != (asked > 0) {
			t.Errorf("%d: %+v, %v", asked, resp, err)
		}
		for _, c := range from.open() {
			if c.end != nil {
				t.Errorf("%d: the snapshot's connection is open", asked)
			}
		}
	}
}

// A node that is closed does not wait for another to restore.
func TestCloseWhileAnotherRestores(t *testing.T) {
	from, to := restoring(t, 0)
	closing := make(chan struct{})
	p := &patient{Transport: from, closing: closing, dead: make(chan struct{})}
	sent, done := make(chan struct{}), make(chan error, 1)
	go func() {
		data := &told{r: bytes.NewReader([]byte("state")), end: sent}
		done <- p.InstallSnapshot("n2", raft.ServerAddress(to.cfg.Advertise), &raft.InstallSnapshotRequest{Size: 5}, new(raft.InstallSnapshotResponse), data)
	}()
	<-sent
	close(closing)
	if err := <-done; !errors.Is(err, errStopped) {
		t.Error(err)
	}
}

// told closes end when all of r was read.
type told struct {
	r   io.Reader
	end chan struct{}
}

func (r *told) Read(b []byte) (int, error) {
	n, err := r.r.Read(b)
	if err != nil {
		close(r.end)
	}
	return n, err
}

// Nodes with one log write their snapshots at different moments, within what was
// promised.
func TestSnapshotsAreSpread(t *testing.T) {
	at := func(id string, index uint64) uint64 {
		s := newStore(Config{NodeID: id, SnapshotBytes: 64 << 20})
		return s.enough(index)
	}
	together := 0
	for index := range uint64(1000) {
		moments := []uint64{at("n1", index), at("n2", index), at("n3", index)}
		slices.Sort(moments)
		if moments[0] <= 32<<20 || moments[2] > 64<<20 {
			t.Fatalf("%d: %d", index, moments)
		}
		if moments[0] == moments[1] || moments[1] == moments[2] {
			together++
		}
	}
	if together > 250 {
		t.Errorf("two of three coincide in %d of 1000", together)
	}
}
