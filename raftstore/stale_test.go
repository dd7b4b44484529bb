package raftstore

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// envInt is a number from the environment, to run an experiment for longer.
func envInt(name string, otherwise int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
		return n
	}
	return otherwise
}

// TestNoStaleReadThroughASlowReplyPath has the leader's peers answer slowly, and
// then cuts it off while their answers are still on the way. The lease, at half
// of the heartbeat timeout, alone prevents stale reads here; what shows that
// asking matters is TestFrozenLeaderDoesNotReadStale.
func TestNoStaleReadThroughASlowReplyPath(t *testing.T) {
	reads, stale := 0, 0
	m := newMesh(t, 3, func(cfg *Config) { cfg.HeartbeatTimeout = 400 * time.Millisecond })
	var acked atomic.Int64 // the highest number that was acknowledged
	next := 0
	for range envInt("RAFTSTORE_STALE_RUNS", 1) {
		leader := m.leader()
		var peers []string
		for _, id := range m.others(leader.id) {
			peers = append(peers, string(m.nodes[id].trans.LocalAddr()))
		}
		write := func(n *meshNode) bool {
			next++
			if _, err := n.store.Propose(testContext(t), []byte(strconv.Itoa(next))); err != nil {
				return false
			}
			acked.Store(int64(next))
			return true
		}
		write(leader)
		for _, address := range peers {
			leader.out.set(address, func(w *wire) { w.reply = 80 * time.Millisecond })
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		began := make(chan struct{}, 1)
		for range 4 {
			go func() {
				defer func() { done <- struct{}{} }()
				for ctx.Err() == nil {
					want := acked.Load()
					readCtx, end := context.WithTimeout(ctx, time.Second)
					_, err := leader.store.ReadIndex(readCtx)
					end()
					if err != nil {
						continue
					}
					leader.sm.mu.Lock()
					got, _ := strconv.ParseInt(leader.sm.Commands[len(leader.sm.Commands)-1], 10, 64)
					if reads++; got < want {
						stale++
					}
					leader.sm.mu.Unlock()
					select {
					case began <- struct{}{}:
					default:
					}
				}
			}()
		}
		for range 4 { // as many as are asked for below
			<-began
		}
		// Nothing gets to the peers any more, but what they answered still comes.
		m.deafen(leader.id, true)
		others := m.others(leader.id)
		for successor := m.leader(others...); !write(successor); successor = m.leader(others...) {
		}
		for range 20 {
			write(m.leader(others...))
		}
		m.deafen(leader.id, false)
		for _, address := range peers {
			leader.out.set(address, func(w *wire) { w.reply = 0 })
		}
		cancel()
		for range 4 {
			<-done
		}
		m.caughtUp(m.leader(others...), leader.id)
	}
	if stale > 0 {
		t.Errorf("%d of %d reads were stale", stale, reads)
	}
	if reads < 4 {
		t.Errorf("only %d reads came through", reads)
	}
	t.Logf("%d reads, %d stale", reads, stale)
}

// deafen keeps what a node sends from arriving, and what others send to it, but
// not the answers that are on their way to it.
func (m *mesh) deafen(id string, dark bool) {
	for _, n := range m.nodes {
		for other, to := range m.nodes {
			switch {
			case n.id == id && other != id:
				n.out.set(string(to.trans.LocalAddr()), func(w *wire) { w.sendDark = dark })
			case n.id != id && other == id:
				n.out.set(string(to.trans.LocalAddr()), func(w *wire) { w.dark = dark })
			}
		}
	}
}

// A request to a node in a process of its own, and what it answers: a line of
// JSON each.
type nodeRequest struct {
	Do   string // add, promote, address, propose, read, lead, transfer, leader
	ID   string `json:",omitempty"`
	Addr string `json:",omitempty"`
	N    int    `json:",omitempty"`
}

type nodeAnswer struct {
	N    int    `json:",omitempty"` // the last number applied
	Addr string `json:",omitempty"`
	Err  string `json:",omitempty"`
	// NotLeader: the node says it does not lead.
	NotLeader bool `json:",omitempty"`
}

// childNode is a node that does what standard input asks for.
func childNode(dir, id string) error {
	trans, err := newTestTransport(id, nil)
	if err != nil {
		return err
	}
	cfg := Config{Dir: dir, NodeID: id, Transport: trans, Bootstrap: id == "n1", Join: id != "n1"}
	sm := &ledger{}
	s, err := Open(cfg, sm)
	if err != nil {
		return err
	}
	out := json.NewEncoder(os.Stdout)
	if err := out.Encode(nodeAnswer{Addr: trans.cfg.Advertise}); err != nil {
		return err
	}
	in := json.NewDecoder(os.Stdin)
	for {
		var req nodeRequest
		if err := in.Decode(&req); err != nil {
			return err
		}
		var a nodeAnswer
		if err := doRequest(s, sm, req, &a); err != nil {
			a.Err, a.NotLeader = err.Error(), errors.Is(err, ErrNotLeader)
		}
		if err := out.Encode(a); err != nil {
			return err
		}
	}
}

func doRequest(s *Store, sm *ledger, req nodeRequest, a *nodeAnswer) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	switch req.Do {
	case "join":
		if err := s.AddNonvoter(ctx, req.ID, req.Addr); err != nil {
			return err
		}
		for {
			if err := s.Promote(ctx, req.ID, false); !errors.Is(err, ErrLagging) || ctx.Err() != nil {
				return err
			}
		}
	case "address":
		return s.SetAddress(ctx, req.ID, req.Addr)
	case "propose":
		_, err := s.Propose(ctx, []byte(strconv.Itoa(req.N)))
		return err
	case "read":
		if !s.IsLeader() {
			return ErrNotLeader // this is about what a leader says
		}
		_, err := s.ReadIndex(ctx)
		if cmds := sm.commands(); len(cmds) > 0 {
			a.N, _ = strconv.Atoi(cmds[len(cmds)-1])
		}
		return err
	case "lead":
		_, err := s.WaitLeader(ctx)
		return err
	case "leads":
		if !s.IsLeader() {
			return ErrNotLeader
		}
		return nil
	case "transfer":
		return s.TransferLeadership(ctx, req.ID)
	}
	return fmt.Errorf("cannot %q", req.Do)
}

// process is a node in a process of its own.
type process struct {
	id, addr string
	cmd      *exec.Cmd
	in       *json.Encoder
	out      *json.Decoder
}

func startProcess(t testing.TB, root, id string) *process {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "RAFTSTORE_TEST_CHILD=node", "RAFTSTORE_TEST_DIR="+filepath.Join(root, id), "RAFTSTORE_TEST_ID="+id)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	p := &process{id: id, cmd: cmd, in: json.NewEncoder(in), out: json.NewDecoder(bufio.NewReader(out))}
	a, err := p.answer()
	if err != nil {
		t.Fatal(err)
	}
	p.addr = a.Addr
	return p
}

func (p *process) answer() (a nodeAnswer, err error) {
	err = p.out.Decode(&a)
	return a, err
}

func (p *process) ask(req nodeRequest) (nodeAnswer, error) {
	if err := p.in.Encode(req); err != nil {
		return nodeAnswer{}, err
	}
	return p.answer()
}

// must asks for what has to succeed.
func (p *process) must(t testing.TB, req nodeRequest) nodeAnswer {
	t.Helper()
	a, err := p.ask(req)
	if err != nil || a.Err != "" {
		t.Fatalf("%s: %+v: %+v, %v", p.id, req, a, err)
	}
	return a
}

func (p *process) signal(t testing.TB, sig syscall.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

// startProcesses forms a cluster of n voters, n1 leading.
func startProcesses(t testing.TB, root string, n int) []*process {
	t.Helper()
	var list []*process
	for i := range n {
		p := startProcess(t, root, fmt.Sprintf("n%d", i+1))
		list = append(list, p)
		if i == 0 {
			p.must(t, nodeRequest{Do: "lead"})
		} else {
			eventually(t, nodeRequest{Do: "join", ID: p.id, Addr: p.addr}, list[:i]...)
		}
	}
	return list
}

// eventually has whoever of these leads do it, and returns who that was. On a
// busy machine leadership moves.
func eventually(t testing.TB, req nodeRequest, among ...*process) (*process, nodeAnswer) {
	t.Helper()
	var last nodeAnswer
	for until := time.Now().Add(30 * time.Second); time.Now().Before(until); {
		for _, p := range among {
			a, err := p.ask(req)
			if err != nil {
				t.Fatal(err)
			}
			if a.Err == "" {
				return p, a
			}
			last = a
		}
	}
	t.Fatalf("nobody does %+v: %+v", req, last)
	return nil, last
}

func rest(all []*process, but *process) []*process {
	var list []*process
	for _, p := range all {
		if p != but {
			list = append(list, p)
		}
	}
	return list
}

// TestFrozenLeaderDoesNotReadStale stops the leader, has another elected, queues
// reads at the first, and lets it go on: for a moment it thinks that it still
// leads.
func TestFrozenLeaderDoesNotReadStale(t *testing.T) {
	nodes := startProcesses(t, t.TempDir(), 3)
	n := 1
	leader, _ := eventually(t, nodeRequest{Do: "propose", N: n}, nodes...)
	const queued = 40
	refused := 0
	for range envInt("RAFTSTORE_STALE_RUNS", 4) {
		leader.signal(t, syscall.SIGSTOP)
		n++
		next, _ := eventually(t, nodeRequest{Do: "propose", N: n}, rest(nodes, leader)...)
		for range queued {
			if err := leader.in.Encode(nodeRequest{Do: "read"}); err != nil {
				t.Fatal(err)
			}
		}
		leader.signal(t, syscall.SIGCONT)
		for range queued {
			a, err := leader.answer()
			switch {
			case err != nil:
				t.Fatal(err)
			case a.Err != "":
				refused++
			case a.N != n:
				t.Errorf("%s, frozen while %d was acknowledged elsewhere, reads %d", leader.id, n, a.N)
			}
		}
		if _, a := eventually(t, nodeRequest{Do: "read"}, nodes...); a.N != n {
			t.Errorf("the new leader reads %d, not %d", a.N, n)
		}
		leader = next
	}
	if refused == 0 {
		t.Error("no read was refused: nothing was tested")
	}
}

// TestKillLeader kills the leader with SIGKILL, again and again, and starts it
// again elsewhere. Everything acknowledged is there in the end. With
// RAFTSTORE_FAILOVERS it measures.
func TestKillLeader(t *testing.T) {
	root := t.TempDir()
	nodes := startProcesses(t, root, 3)
	n := 1
	leader, _ := eventually(t, nodeRequest{Do: "propose", N: n}, nodes...)
	var took []time.Duration
	for range envInt("RAFTSTORE_FAILOVERS", 3) {
		n++
		killed := time.Now()
		leader.signal(t, syscall.SIGKILL)
		leader.cmd.Wait()
		survivors := rest(nodes, leader)
		eventually(t, nodeRequest{Do: "propose", N: n}, survivors...)
		took = append(took, time.Since(killed))
		again := startProcess(t, root, leader.id)
		nodes = append(survivors, again)
		eventually(t, nodeRequest{Do: "address", ID: again.id, Addr: again.addr}, survivors...)
		n++
		leader, _ = eventually(t, nodeRequest{Do: "propose", N: n}, nodes...)
		if _, a := eventually(t, nodeRequest{Do: "read"}, nodes...); a.N != n {
			t.Errorf("reads %d, not %d", a.N, n)
		}
	}
	report(t, "kill -9 of the leader to the next commit", took)
	for _, p := range nodes { // each of them can take over with all of it
		for leader != p {
			eventually(t, nodeRequest{Do: "transfer", ID: p.id}, nodes...)
			leader, _ = eventually(t, nodeRequest{Do: "leads"}, nodes...)
		}
		if _, a := eventually(t, nodeRequest{Do: "read"}, p); a.N != n {
			t.Errorf("%s reads %d, not %d", p.id, a.N, n)
		}
	}
}
