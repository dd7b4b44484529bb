package raftstore

import (
	"context"
	"errors"
	"go/parser"
	"go/token"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestProposeAndRestart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	sm := &ledger{}
	s := start(t, testConfig(t, dir), sm)
	r1, err := s.Propose(testContext(t), []byte("one"))
	if err != nil {
		t.Fatal(err)
	}
	r2, err := s.Propose(testContext(t), []byte("two"))
	if err != nil {
		t.Fatal(err)
	}
	if r1.Value != 1 || r2.Value != 2 || r2.Index != r1.Index+1 {
		t.Errorf("results %+v and %+v", r1, r2)
	}
	if got := sm.AppliedIndex(); got != r2.Index || s.AppliedIndex() != got || s.CommitIndex() != got {
		t.Errorf("applied %d, %d and committed %d after %d", got, s.AppliedIndex(), s.CommitIndex(), r2.Index)
	}
	closeStore(t, s)
	if fi, err := os.Stat(dir); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("directory: %v, %v", fi.Mode(), err)
	}
	if fi, err := os.Stat(filepath.Join(dir, "raft.db")); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("raft.db: %v, %v", fi.Mode(), err)
	}

	// A fresh state machine gets everything again, one that kept its state
	// nothing twice; Bootstrap makes no difference any more.
	for i, kept := range []*ledger{{}, sm} {
		cfg := testConfig(t, dir)
		cfg.Bootstrap = i == 0
		s = start(t, cfg, kept)
		propose(t, s, "more")
		want := append([]string{"one", "two"}, []string{"more", "more"}[:i+1]...)
		if got := kept.commands(); !reflect.DeepEqual(got, want) {
			t.Errorf("restart %d: commands %q, want %q", i, got, want)
		}
		closeStore(t, s)
	}
}

func TestConcurrentProposalsShareAppends(t *testing.T) {
	sm := &ledger{}
	batches := 0
	sm.onApply = func(b []Entry) { batches++ }
	s := start(t, testConfig(t, t.TempDir()), sm)
	const callers, each = 32, 20
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			for range each {
				if _, err := s.Propose(testContext(t), []byte("x")); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if got := len(sm.commands()); got != callers*each {
		t.Errorf("%d commands applied, want %d", got, callers*each)
	}
	closeStore(t, s)
	if batches > callers*each/2 {
		t.Errorf("%d batches for %d proposals: nothing was shared", batches, callers*each)
	}
}

func TestRefusals(t *testing.T) {
	cfg := testConfig(t, t.TempDir())
	cfg.MaxCommand = 10
	s := start(t, cfg, &ledger{})
	if _, err := s.Propose(testContext(t), make([]byte, 11)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("11 bytes: %v", err)
	}
	if _, err := s.Propose(testContext(t), make([]byte, 10)); err != nil {
		t.Errorf("10 bytes: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := s.Propose(ctx, nil); !errors.Is(err, context.Canceled) || errors.Is(err, ErrIndeterminate) {
		t.Errorf("canceled before: %v", err)
	}
	if _, err := Open(cfg, &ledger{}); !errors.Is(err, ErrLocked) {
		t.Errorf("second open: %v", err)
	}
	closeStore(t, s)
	closeStore(t, s)
	for what, call := range map[string]func() error{
		"Propose":    func() error { _, err := s.Propose(testContext(t), nil); return err },
		"ReadIndex":  func() error { _, err := s.ReadIndex(testContext(t)); return err },
		"WaitLeader": func() error { _, err := s.WaitLeader(testContext(t)); return err },
		"Snapshot":   func() error { return s.Snapshot(testContext(t)) },
	} {
		if err := call(); !errors.Is(err, ErrClosed) {
			t.Errorf("%s after Close: %v", what, err)
		}
	}
	if s.IsLeader() || s.Status().State != "shutdown" {
		t.Errorf("after Close: leader %v, status %+v", s.IsLeader(), s.Status())
	}
	s, err := Open(cfg, &ledger{})
	if err != nil {
		t.Fatalf("open after close: %v", err)
	}
	closeStore(t, s)
}

func TestOpenRefuses(t *testing.T) {
	ok := testConfig(t, "")
	for name, c := range map[string]struct {
		change func(*Config)
		want   error
	}{
		"no directory":   {func(c *Config) { c.Dir = "" }, ErrConfig},
		"no id":          {func(c *Config) { c.NodeID = "" }, ErrConfig},
		"long lease":     {func(c *Config) { c.HeartbeatTimeout, c.LeaderLeaseTimeout = time.Second, 501*time.Millisecond }, ErrConfig},
		"short timeouts": {func(c *Config) { c.HeartbeatTimeout = time.Millisecond }, ErrConfig},
		"join alone":     {func(c *Config) { c.Bootstrap, c.Join = false, true }, ErrConfig},
		"both":           {func(c *Config) { c.Join = true }, ErrConfig},
		"negative":       {func(c *Config) { c.MaxCommand = -1 }, ErrConfig},
		"empty":          {func(c *Config) { c.Bootstrap = false }, ErrEmptyDir},
	} {
		cfg := ok
		cfg.Dir = t.TempDir()
		c.change(&cfg)
		s, err := Open(cfg, &ledger{})
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		if s != nil {
			s.Close()
		}
		if _, err := os.Stat(filepath.Join(cfg.Dir, "raft.db")); cfg.Dir != "" && err == nil {
			t.Errorf("%s: left a raft.db", name)
		}
	}
}

func TestStateMachineAheadOfLog(t *testing.T) {
	sm := &ledger{Applied: 99}
	if _, err := Open(testConfig(t, t.TempDir()), sm); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "state machine is at 99") {
		t.Errorf("got %v", err)
	}
}

func TestReadIndex(t *testing.T) {
	sm := &ledger{}
	release, entered := make(chan struct{}), make(chan struct{}, 8)
	s := start(t, testConfig(t, t.TempDir()), sm)
	if i, err := s.ReadIndex(testContext(t)); err != nil || i != s.CommitIndex() {
		t.Fatalf("with Raft's own entries only: %d, %v", i, err)
	}
	// One that asked for the leader before it led finds itself.
	soon, stop := context.WithTimeout(testContext(t), s.cfg.HeartbeatTimeout)
	defer stop()
	if i, err := s.readVia(soon, &s.followReads, s.askLeader); err != nil || i != s.CommitIndex() {
		t.Fatalf("begun before the election: %d, %v", i, err)
	}
	propose(t, s, "a")
	if err := s.raft.Barrier(0).Error(); err != nil { // one more that the state machine never gets
		t.Fatal(err)
	}
	if i, err := s.ReadIndex(testContext(t)); err != nil || i <= sm.AppliedIndex() {
		t.Fatalf("after a barrier: %d, %v", i, err)
	}
	sm.onApply = func([]Entry) { entered <- struct{}{}; <-release }
	done := make(chan Result, 1)
	go func() {
		r, err := s.Propose(testContext(t), []byte("b"))
		if err != nil {
			t.Error(err)
		}
		done <- r
	}()
	<-entered // committed, and not yet applied
	committed := s.CommitIndex()
	s.raft.Barrier(0) // which comes after it, and again is nothing to the state machine
	for s.CommitIndex() == committed {
		runtime.Gosched()
	}
	if need, err := s.lastCommand(s.CommitIndex()); need != committed || err != nil {
		t.Errorf("a read waits for entry %d, want %d (%v)", need, committed, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err := s.ReadIndex(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("read while the state machine is behind: %v", err)
	}
	read := make(chan uint64, 1)
	go func() {
		i, err := s.ReadIndex(testContext(t))
		if err != nil {
			t.Error(err)
		}
		read <- i
	}()
	close(release)
	want := (<-done).Index
	if i := <-read; i < want || sm.AppliedIndex() < want {
		t.Errorf("read index %d, state machine at %d, want %d", i, sm.AppliedIndex(), want)
	}
}

func TestLeaderChanges(t *testing.T) {
	s := start(t, testConfig(t, t.TempDir()), &ledger{})
	if !<-s.LeaderChanges() {
		t.Error("first change is not to leader")
	}
	if id, addr := s.Leader(); id != "n1" || addr != "n1" || !s.IsLeader() {
		t.Errorf("leader %q at %q", id, addr)
	}
	term, err := s.WaitLeader(testContext(t))
	if err != nil || term != s.Term() || term == 0 {
		t.Errorf("term %d, %d, %v", term, s.Term(), err)
	}
	closeStore(t, s)
	if <-s.LeaderChanges() {
		t.Error("leader after Close")
	}
}

func TestSnapshotTruncateRestore(t *testing.T) {
	dir := t.TempDir()
	cfg := testConfig(t, dir)
	cfg.TrailingLogs = 5
	sm := &ledger{}
	s := start(t, cfg, sm)
	propose(t, s, numbered(0, 40)...)
	if err := s.Snapshot(testContext(t)); err != nil {
		t.Fatal(err)
	}
	st := s.Status()
	if st.SnapshotIndex != st.LastIndex || st.FirstIndex != st.LastIndex-4 {
		t.Errorf("after the snapshot: %+v", st)
	}
	if err := s.Snapshot(testContext(t)); !errors.Is(err, ErrNothingNew) {
		t.Errorf("second snapshot: %v", err)
	}
	propose(t, s, numbered(40, 50)...)
	closeStore(t, s)

	files, err := filepath.Glob(filepath.Join(dir, "snapshots", "*"))
	if err != nil || len(files) != 1 {
		t.Fatalf("snapshots: %v, %v", files, err)
	}
	if fi, err := os.Stat(files[0]); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%s: %v, %v", files[0], fi.Mode(), err)
	}
	fresh := &ledger{}
	s = start(t, cfg, fresh)
	if fresh.restored != 1 || !reflect.DeepEqual(fresh.commands(), numbered(0, 50)) || !reflect.DeepEqual(fresh.Indexes, sm.Indexes) {
		t.Errorf("restored %d times, commands %v at %v", fresh.restored, fresh.commands(), fresh.Indexes)
	}
	for i := range 3 { // and one is kept
		propose(t, s, numbered(50+i, 51+i)...)
		if err := s.Snapshot(testContext(t)); err != nil {
			t.Fatal(err)
		}
	}
	if files, _ := filepath.Glob(filepath.Join(dir, "snapshots", "*")); len(files) != 1 {
		t.Errorf("kept %v", files)
	}
}

func TestAutomaticSnapshot(t *testing.T) {
	cfg := testConfig(t, t.TempDir())
	cfg.SnapshotInterval, cfg.SnapshotThreshold, cfg.TrailingLogs = 10*time.Millisecond, 20, 1
	written := make(chan struct{})
	var once sync.Once
	sm := &ledger{}
	s := start(t, cfg, sm)
	sm.mu.Lock()
	sm.onPersist = func(w io.Writer) { once.Do(func() { close(written) }) }
	sm.mu.Unlock()
	propose(t, s, numbered(0, 60)...)
	select {
	case <-written:
	case <-testContext(t).Done():
		t.Fatal("no snapshot")
	}
}

// A Store under the bbolt tool's hands is in use as well.
func TestOpenElsewhere(t *testing.T) {
	cfg := testConfig(t, t.TempDir())
	closeStore(t, start(t, cfg, &ledger{}))
	b, err := openLog(filepath.Join(cfg.Dir, "raft.db"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(cfg, &ledger{}); !errors.Is(err, ErrLocked) {
		t.Errorf("got %v", err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	start(t, cfg, &ledger{})
}

// TestImports holds the package to depending on nothing of Writ.
func TestImports(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil || len(files) < 10 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, name := range files {
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		for _, spec := range f.Imports {
			if strings.Contains(spec.Path.Value, "writ-dev/writ") && f.Name.Name == "raftstore" {
				t.Errorf("%s imports %s", name, spec.Path.Value)
			}
		}
	}
}
