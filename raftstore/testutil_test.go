package raftstore

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sync"
	"testing"
	"time"
)

// ledger is a state machine that remembers every command.
type ledger struct {
	mu       sync.Mutex
	Applied  uint64
	Commands []string
	Indexes  []uint64

	onApply   func([]Entry)   // before each batch, without the lock
	onPersist func(io.Writer) // before a snapshot is written
	restored  int
}

func (l *ledger) Apply(batch []Entry) []any {
	if l.onApply != nil {
		l.onApply(batch)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	results := make([]any, len(batch))
	for i, e := range batch {
		l.Commands = append(l.Commands, string(e.Command))
		l.Indexes = append(l.Indexes, e.Index)
		l.Applied = e.Index
		results[i] = len(l.Commands)
	}
	return results
}

func (l *ledger) AppliedIndex() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.Applied
}

func (l *ledger) Snapshot() (Snapshot, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return &ledgerSnapshot{l, ledger{Applied: l.Applied, Commands: l.Commands[:len(l.Commands):len(l.Commands)], Indexes: l.Indexes[:len(l.Indexes):len(l.Indexes)]}}, nil
}

func (l *ledger) Restore(r io.Reader) error {
	var got ledger
	if err := json.NewDecoder(r).Decode(&got); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.Applied, l.Commands, l.Indexes = got.Applied, got.Commands, got.Indexes
	l.restored++
	return nil
}

func (l *ledger) commands() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]string(nil), l.Commands...)
}

type ledgerSnapshot struct {
	from  *ledger
	state ledger
}

func (s *ledgerSnapshot) Persist(w io.Writer) error {
	if s.from.onPersist != nil {
		s.from.onPersist(w)
	}
	return json.NewEncoder(w).Encode(&s.state)
}

func (s *ledgerSnapshot) Release() {}

// testConfig opens a cluster of one in dir; a fatal error fails the test.
func testConfig(t testing.TB, dir string) Config {
	return Config{
		Dir: dir, NodeID: "n1", Bootstrap: true,
		OnFatal: func(err error) { t.Errorf("fatal: %v", err) },
	}
}

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// start opens a store and waits until it leads.
func start(t testing.TB, cfg Config, sm StateMachine) *Store {
	t.Helper()
	s, err := Open(cfg, sm)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	t.Cleanup(func() { s.Close() })
	if _, err := s.WaitLeader(testContext(t)); err != nil {
		t.Fatalf("wait for leader: %v (%+v)", err, s.Status())
	}
	return s
}

func propose(t testing.TB, s *Store, commands ...string) {
	t.Helper()
	for _, c := range commands {
		if _, err := s.Propose(testContext(t), []byte(c)); err != nil {
			t.Fatalf("propose %q: %v", c, err)
		}
	}
}

func numbered(from, to int) []string {
	var list []string
	for i := from; i < to; i++ {
		list = append(list, fmt.Sprintf("c%d", i))
	}
	return list
}

func closeStore(t testing.TB, s *Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
}

func TestMain(m *testing.M) {
	if role := os.Getenv("RAFTSTORE_TEST_CHILD"); role != "" {
		os.Exit(childMain(role))
	}
	os.Exit(m.Run())
}
