package raftstore

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// faults goes between the guard and the stores.
type faults struct {
	logStore
	stableStore

	append  atomic.Pointer[error]         // what an append answers
	save    atomic.Pointer[error]         // what saving a term or vote answers
	hang    atomic.Pointer[chan struct{}] // appends wait for this
	hanging chan struct{}                 // gets a value when one does
	saves   atomic.Int32                  // failed attempts
	tried   chan struct{}                 // gets a value for each failed append, if there is one
}

func (f *faults) wrapLogs(l logStore) logStore { f.logStore = l; return faultyLogs{f.logStore, f} }
func (f *faults) wrapStable(s stableStore) stableStore {
	f.stableStore = s
	return faultyStable{f.stableStore, f}
}

type faultyLogs struct {
	logStore
	f *faults
}

func (l faultyLogs) StoreLogs(logs []*raft.Log) error {
	if c := l.f.hang.Load(); c != nil {
		l.f.hanging <- struct{}{}
		<-*c
	}
	if err := l.f.append.Load(); err != nil {
		if l.f.tried != nil {
			l.f.tried <- struct{}{}
		}
		return *err
	}
	return l.logStore.StoreLogs(logs)
}

type faultyStable struct {
	stableStore
	f *faults
}

func (s faultyStable) Set(k, v []byte) error {
	if err := s.f.save.Load(); err != nil {
		s.f.saves.Add(1)
		return *err
	}
	return s.stableStore.Set(k, v)
}

func (s faultyStable) SetUint64(k []byte, v uint64) error {
	if err := s.f.save.Load(); err != nil {
		s.f.saves.Add(1)
		return *err
	}
	return s.stableStore.SetUint64(k, v)
}

// faulty opens a store with faults to inject; what is fatal comes out of the
// channel.
func faulty(t *testing.T, sm StateMachine, change func(*Config)) (*Store, *faults, chan error) {
	f := &faults{hanging: make(chan struct{}, 1)}
	fatal := make(chan error, 10)
	cfg := testConfig(t, t.TempDir())
	cfg.wrapLogs, cfg.wrapStable = f.wrapLogs, f.wrapStable
	cfg.OnFatal = func(err error) { fatal <- err }
	if change != nil {
		change(&cfg)
	}
	return start(t, cfg, sm), f, fatal
}

func receive[T any](t *testing.T, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-testContext(t).Done():
		t.Fatal("nothing came")
		panic("unreachable")
	}
}

// dead checks that a store acknowledges nothing any more, and can be closed.
func dead(t *testing.T, s *Store, cause error) {
	t.Helper()
	if _, err := s.Propose(testContext(t), nil); !errors.Is(err, ErrClosed) || !errors.Is(err, cause) {
		t.Errorf("propose afterwards: %v", err)
	}
	if _, err := s.ReadIndex(testContext(t)); !errors.Is(err, ErrClosed) {
		t.Errorf("read afterwards: %v", err)
	}
	if s.IsLeader() || !errors.Is(s.Status().Err, cause) {
		t.Errorf("status afterwards: %+v", s.Status())
	}
	closeStore(t, s)
}

func TestFailedSyncIsFatal(t *testing.T) {
	sm := &ledger{}
	s, f, fatal := faulty(t, sm, nil)
	propose(t, s, "kept")
	var eio error = syscall.EIO
	f.append.Store(&eio)
	if _, err := s.Propose(testContext(t), []byte("lost")); !errors.Is(err, ErrIndeterminate) {
		t.Errorf("propose: %v", err)
	}
	if err := receive(t, fatal); !errors.Is(err, syscall.EIO) {
		t.Errorf("fatal: %v", err)
	}
	f.append.Store(nil) // a disk that works again proves nothing
	dead(t, s, syscall.EIO)
	if len(fatal) != 0 {
		t.Errorf("fatal twice: %v", <-fatal)
	}
	if got := sm.commands(); len(got) != 1 {
		t.Errorf("applied %q", got)
	}
}

func TestFailedVoteIsFatal(t *testing.T) {
	s, f, fatal := faulty(t, &ledger{}, nil)
	var eio error = syscall.EIO
	full := diskFull(syscall.ENOSPC)
	f.save.Store(&eio)
	f.append.Store(&full) // the leader steps down, and stands again
	if _, err := s.Propose(testContext(t), nil); !errors.Is(err, ErrDiskFull) {
		t.Errorf("propose: %v", err)
	}
	if err := receive(t, fatal); !errors.Is(err, syscall.EIO) {
		t.Errorf("fatal: %v", err)
	}
	dead(t, s, syscall.EIO)
}

// A term that finds no space makes Raft panic, so it has to wait; and it must
// not keep Close waiting.
func TestVoteWaitsForSpace(t *testing.T) {
	for _, end := range []string{"space", "close"} {
		s, f, fatal := faulty(t, &ledger{}, nil)
		full := diskFull(syscall.ENOSPC)
		f.save.Store(&full)
		f.append.Store(&full)
		if _, err := s.Propose(testContext(t), nil); !errors.Is(err, ErrDiskFull) {
			t.Errorf("propose: %v", err)
		}
		for deadline := testContext(t); f.saves.Load() < 2; {
			ctx, cancel := context.WithTimeout(deadline, time.Millisecond)
			<-ctx.Done()
			cancel()
			if deadline.Err() != nil {
				t.Fatal("no attempt to save a term")
			}
		}
		if end == "space" {
			f.append.Store(nil)
			f.save.Store(nil)
			if _, err := s.WaitLeader(testContext(t)); err != nil {
				t.Fatal(err)
			}
			propose(t, s, "again")
			if !receive(t, s.LeaderChanges()) {
				t.Error("the newest change is not that it leads again")
			}
		}
		closeStore(t, s)
		if len(fatal) != 0 {
			t.Errorf("fatal: %v", <-fatal)
		}
	}
}

func TestStalledDiskIsFatal(t *testing.T) {
	s, f, fatal := faulty(t, &ledger{}, func(c *Config) { c.DiskStall = time.Second })
	c := make(chan struct{})
	f.hang.Store(&c)
	began := time.Now()
	_, err := s.Propose(testContext(t), nil)
	if !errors.Is(err, ErrIndeterminate) || !errors.Is(err, ErrDiskStalled) {
		t.Errorf("propose: %v", err)
	}
	if took := time.Since(began); took < time.Second || took > 10*time.Second {
		t.Errorf("noticed after %v", took)
	}
	if err := receive(t, fatal); !errors.Is(err, ErrDiskStalled) {
		t.Errorf("fatal: %v", err)
	}
	if s.IsLeader() {
		t.Error("still leads")
	}
	f.hang.Store(nil)
	close(c)
	dead(t, s, ErrDiskStalled)
}

func TestCloseOnStalledDisk(t *testing.T) {
	s, f, _ := faulty(t, &ledger{}, func(c *Config) { c.DiskStall = time.Second })
	c := make(chan struct{})
	f.hang.Store(&c)
	s.Propose(testContext(t), nil)
	if err := s.Close(); !errors.Is(err, ErrDiskStalled) {
		t.Errorf("close: %v", err)
	}
	if _, err := lockFile(filepath.Join(s.cfg.Dir, "LOCK")); !errors.Is(err, ErrLocked) {
		t.Errorf("the directory was given away: %v", err)
	}
	close(c)
}

func TestIndeterminate(t *testing.T) {
	sm := &ledger{}
	s, f, _ := faulty(t, sm, nil)
	c := make(chan struct{})
	f.hang.Store(&c)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	cmd := []byte("perhaps")
	go func() { <-f.hanging; cancel() }()
	_, err := s.Propose(ctx, cmd)
	if !errors.Is(err, ErrIndeterminate) || !errors.Is(err, context.Canceled) {
		t.Errorf("propose: %v", err)
	}
	copy(cmd, "CHANGED")
	f.hang.Store(nil)
	close(c)
	propose(t, s, "after")
	if got := strings.Join(sm.commands(), " "); got != "perhaps after" {
		t.Errorf("applied %q", got)
	}
}

func TestWhatRaftSaysOfAProposal(t *testing.T) {
	s, _, _ := faulty(t, &ledger{}, nil)
	for err, want := range map[error]error{
		raft.ErrLeadershipLost:               ErrIndeterminate,
		raft.ErrAbortedByRestore:             ErrIndeterminate,
		raft.ErrRaftShutdown:                 ErrIndeterminate,
		errors.New("unheard of"):             ErrIndeterminate,
		raft.ErrNotLeader:                    ErrNotLeader,
		raft.ErrLeadershipTransferInProgress: ErrNotLeader,
		diskFull(error(syscall.ENOSPC)):      ErrDiskFull,
	} {
		got := s.proposeError(err)
		if !errors.Is(got, want) || errors.Is(got, ErrIndeterminate) != (want == ErrIndeterminate) {
			t.Errorf("%v became %v", err, got)
		}
	}
}

func TestWatchdogCountsTicks(t *testing.T) {
	expired := make(chan struct{})
	w := watch(20*time.Millisecond, func() { close(expired) })
	receive(t, expired)
	w.stop()
	w = watch(time.Hour, func() { t.Error("expired") })
	w.stop()
}

func TestBrokenStateMachineIsFatal(t *testing.T) {
	for name, sm := range map[string]StateMachine{
		"panics":      &ledger{onApply: func([]Entry) { panic("invariant") }},
		"few results": fewResults{&ledger{}},
		"stays":       stays{&ledger{}},
	} {
		s, _, fatal := faulty(t, sm, nil)
		if _, err := s.Propose(testContext(t), nil); !errors.Is(err, ErrIndeterminate) || !errors.Is(err, ErrStateMachine) {
			t.Errorf("%s: propose: %v", name, err)
		}
		if err := receive(t, fatal); !errors.Is(err, ErrStateMachine) {
			t.Errorf("%s: fatal: %v", name, err)
		}
		dead(t, s, ErrStateMachine)
	}
}

type fewResults struct{ *ledger }

func (fewResults) Apply([]Entry) []any { return nil }

type stays struct{ *ledger }

func (stays) Apply(b []Entry) []any { return make([]any, len(b)) }

func TestPanicInPersistIsFatal(t *testing.T) {
	s, _, fatal := faulty(t, &ledger{onPersist: func(io.Writer) { panic("disk of glass") }}, nil)
	propose(t, s, "a")
	if err := s.Snapshot(testContext(t)); !errors.Is(err, ErrClosed) {
		t.Errorf("snapshot: %v", err)
	}
	if err := receive(t, fatal); !errors.Is(err, ErrStateMachine) || !strings.Contains(err.Error(), "disk of glass") {
		t.Errorf("fatal: %v", err)
	}
	dead(t, s, ErrStateMachine)
}

type badRestore struct {
	*ledger
	panics bool
}

func (b badRestore) Restore(io.Reader) error {
	if b.panics {
		panic("no")
	}
	return errors.New("cannot")
}

func TestFailedRestoreRefusesToOpen(t *testing.T) {
	cfg := testConfig(t, t.TempDir())
	s := start(t, cfg, &ledger{})
	propose(t, s, "a")
	if err := s.Snapshot(testContext(t)); err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	for _, panics := range []bool{false, true} {
		if _, err := Open(cfg, badRestore{&ledger{}, panics}); !errors.Is(err, ErrStateMachine) {
			t.Errorf("panics %v: %v", panics, err)
		}
	}
	start(t, cfg, &ledger{}) // and the directory was let go
}

// After a truncation Raft believes in a longer log than there is until the next
// append succeeds. So that one is not refused, it waits for space.
func TestAppendAfterTruncationWaitsForSpace(t *testing.T) {
	f := &faults{}
	b := openTestLog(t)
	g := &guard{
		logs: f.wrapLogs(b), stable: b, stall: time.Hour, logger: slog.New(slog.DiscardHandler),
		fail:    &failure{onFatal: func(err error) { t.Error(err) }, dead: make(chan struct{})},
		closing: make(chan struct{}),
	}
	if err := g.StoreLogs(entries(1, 5)); err != nil {
		t.Fatal(err)
	}
	full := diskFull(syscall.ENOSPC)
	f.append.Store(&full)
	if err := g.DeleteRange(1, 2); err != nil { // compaction is none
		t.Fatal(err)
	}
	if err := g.StoreLogs(entries(6, 6)); !errors.Is(err, ErrDiskFull) {
		t.Errorf("append to a full disk: %v", err)
	}
	if err := g.DeleteRange(4, 5); err != nil {
		t.Fatal(err)
	}
	f.tried = make(chan struct{}, 100)
	done := make(chan error, 1)
	go func() { done <- g.StoreLogs(entries(4, 4)) }()
	receive(t, f.tried)
	receive(t, f.tried)
	f.append.Store(nil)
	if err := receive(t, done); err != nil {
		t.Errorf("append after truncation: %v", err)
	}
	f.append.Store(&full)
	if err := g.StoreLogs(entries(5, 5)); !errors.Is(err, ErrDiskFull) {
		t.Errorf("append after that: %v", err)
	}
}
