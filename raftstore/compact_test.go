package raftstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/hashicorp/raft"
)

// large is a command of so many bytes.
func large(i, bytes int) string {
	return fmt.Sprintf("c%d %s", i, strings.Repeat("x", bytes))
}

// behind is how many entries are in the log up to the snapshot's.
func behind(s *Store) uint64 {
	st := s.Status()
	return st.SnapshotIndex + 1 - st.FirstIndex
}

func TestTrailingLogsAreBoundedByBytes(t *testing.T) {
	cfg := testConfig(t, t.TempDir())
	cfg.TrailingLogs, cfg.TrailingBytes = 12, 100_000
	sm := &ledger{}
	s := start(t, cfg, sm)
	snapshot := func() {
		t.Helper()
		if err := s.Snapshot(testContext(t)); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 30 {
		propose(t, s, large(i, 9_900))
	}
	snapshot()
	if n := behind(s); n != 10 {
		t.Errorf("%d entries of 10,000 bytes are left, want 10", n)
	}
	propose(t, s, numbered(30, 60)...)
	snapshot()
	if n := behind(s); n != 12 {
		t.Errorf("%d small entries are left, want 12", n)
	}
	propose(t, s, large(60, 200_000)) // the last stays, whatever its size
	snapshot()
	if n := behind(s); n != 1 {
		t.Errorf("%d entries are left, want the one that is too large", n)
	}

	// What comes while a snapshot is written stays, and takes nothing from what
	// stays behind it.
	var once sync.Once
	sm.mu.Lock()
	sm.onPersist = func(io.Writer) {
		once.Do(func() {
			for i := range 20 {
				propose(t, s, large(i, 9_900))
			}
		})
	}
	sm.mu.Unlock()
	propose(t, s, numbered(61, 91)...)
	snapshot()
	if st := s.Status(); st.LastIndex != st.SnapshotIndex+20 || behind(s) != 12 {
		t.Errorf("%d entries stay behind %+v", behind(s), st)
	}
	before := sm.commands()
	closeStore(t, s)
	fresh := &ledger{}
	start(t, cfg, fresh)
	if got := fresh.commands(); !reflect.DeepEqual(got, before) {
		t.Errorf("%d commands after a restart, %d before", len(got), len(before))
	}
}

// TestSnapshotWhenTheLogIsLarge: a few large entries are reason enough for a
// snapshot, which their number would not be for hours.
func TestSnapshotWhenTheLogIsLarge(t *testing.T) {
	cfg := testConfig(t, t.TempDir())
	cfg.SnapshotBytes, cfg.TrailingBytes = 160_000, 20_000
	persisted := make(chan struct{}, 1)
	sm := &ledger{onPersist: func(io.Writer) {
		select {
		case persisted <- struct{}{}:
		default:
		}
	}}
	s := start(t, cfg, sm)
	for i := range 15 {
		propose(t, s, large(i, 9_900))
	}
	if st := s.Status(); st.SnapshotIndex != 0 {
		t.Errorf("a snapshot of %d, and the log is not large", st.SnapshotIndex)
	}
	for range 3 {
		for i := range 20 {
			propose(t, s, large(i, 9_900))
		}
		receive(t, persisted)
	}
}

// TestSnapshotOfALargeLogIsTriedAgain: one that failed does not wait for another
// SnapshotBytes.
func TestSnapshotOfALargeLogIsTriedAgain(t *testing.T) {
	cfg := testConfig(t, t.TempDir())
	cfg.SnapshotBytes = 80_000
	dir := filepath.Join(cfg.Dir, "snapshots")
	failed, persisted := make(chan struct{}), make(chan struct{}, 100)
	refuse := true // belongs to the one goroutine that persists
	sm := &failingPersist{ledger: &ledger{}, persist: func() error {
		if refuse {
			refuse = false
			close(failed)
			return io.ErrShortWrite
		}
		persisted <- struct{}{}
		return nil
	}}
	s := start(t, cfg, sm)
	for i := range 10 {
		propose(t, s, large(i, 9_900))
	}
	receive(t, failed)
	propose(t, s, large(10, 9_900), large(11, 9_900))
	receive(t, persisted)
	closeStore(t, s)
	if files, err := filepath.Glob(filepath.Join(dir, "*")); err != nil || len(files) > 1 {
		t.Errorf("left behind: %v, %v", files, err)
	}
}

// TestCloseDoesNotWaitForASnapshot: one that is being written is given up.
func TestCloseDoesNotWaitForASnapshot(t *testing.T) {
	cfg := testConfig(t, t.TempDir())
	writing := make(chan struct{})
	s := start(t, cfg, &ledger{onPersist: func(w io.Writer) {
		close(writing)
		for err := error(nil); err == nil; {
			_, err = w.Write(make([]byte, 1<<10))
		}
	}})
	propose(t, s, "a")
	taken := make(chan error, 1)
	go func() { taken <- s.Snapshot(context.Background()) }()
	receive(t, writing)
	closeStore(t, s)
	if err := receive(t, taken); err == nil {
		t.Error("a snapshot that never ends was taken")
	}
	if files, err := filepath.Glob(filepath.Join(cfg.Dir, "snapshots", "*")); err != nil || len(files) != 0 {
		t.Errorf("left behind: %v, %v", files, err)
	}
	start(t, cfg, &ledger{})
}

// failingPersist is a ledger whose snapshots may fail.
type failingPersist struct {
	*ledger
	persist func() error
}

func (f *failingPersist) Snapshot() (Snapshot, error) {
	snap, err := f.ledger.Snapshot()
	return failingSnapshot{snap, f.persist}, err
}

type failingSnapshot struct {
	Snapshot
	persist func() error
}

func (s failingSnapshot) Persist(w io.Writer) error {
	return errors.Join(s.Snapshot.Persist(w), s.persist())
}

// TestFollowerBehindTheTrailingBytes gets the snapshot, and follows.
func TestFollowerBehindTheTrailingBytes(t *testing.T) {
	c, connect := newCluster(t, func(cfg *Config) { cfg.TrailingBytes = 30_000 })
	n1, n3 := c.nodes["n1"], c.nodes["n3"]
	c.caughtUp(n1, "n2", "n3")
	connect("n3", true)
	for i := range 20 {
		propose(t, n1.store, large(i, 9_900))
	}
	if err := n1.store.Snapshot(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if n := behind(n1.store); n != 3 {
		t.Errorf("%d entries stay behind, want 3", n)
	}
	connect("n3", false)
	c.caughtUp(n1, "n3")
	if n3.sm.restored != 1 {
		t.Errorf("restored %d times", n3.sm.restored)
	}
}

// TestLogFileUsesItsPagesAgain: what is deleted makes room for what comes.
func TestLogFileUsesItsPagesAgain(t *testing.T) {
	b := openTestLog(t)
	b.db.NoSync = true
	at := uint64(1)
	size := func() int64 {
		fi, err := os.Stat(b.path)
		if err != nil {
			t.Fatal(err)
		}
		return fi.Size()
	}
	var first int64
	for round := range 12 {
		for range 40 { // 10 MB, in entries of all sizes
			logs := make([]*raft.Log, 0, 6)
			for _, n := range []int{10, 400, 3_000, 9_000, 60_000, 180_000} {
				logs = append(logs, entry(at, strings.Repeat("x", n)))
				at++
			}
			if err := b.StoreLogs(logs); err != nil {
				t.Fatal(err)
			}
		}
		keep, err := b.fitting(at-1, 1000, 4<<20)
		if err != nil {
			t.Fatal(err)
		}
		firstIndex, _ := b.FirstIndex()
		if err := b.DeleteRange(firstIndex, at-1-keep); err != nil {
			t.Fatal(err)
		}
		if round == 1 {
			first = size()
		}
	}
	if now := size(); now > first+first/4 {
		t.Errorf("a file of %d bytes after 12 rounds, and of %d after two", now, first)
	}
}

// stretched makes a stopped node whose raft.db was once much longer.
func stretched(t *testing.T, cfg Config) (path string, size int64) {
	t.Helper()
	s := start(t, cfg, &ledger{})
	propose(t, s, "a", "b")
	closeStore(t, s)
	path = filepath.Join(cfg.Dir, "raft.db")
	b, err := openLog(path)
	if err != nil {
		t.Fatal(err)
	}
	last, _ := b.LastIndex()
	for i := range uint64(16) {
		if err := b.StoreLog(entry(last+1+i, strings.Repeat("x", 1<<19))); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(b.DeleteRange(last+1, last+16), b.Close()); err != nil {
		t.Fatal(err)
	}
	fi, err := os.Stat(path)
	if err != nil || fi.Size() < 8<<20 {
		t.Fatalf("%d bytes, %v", fi.Size(), err)
	}
	return path, fi.Size()
}

// TestLongLogFileIsShortened at the next start, and holds the same.
func TestLongLogFileIsShortened(t *testing.T) {
	cfg := testConfig(t, t.TempDir())
	path, long := stretched(t, cfg)
	sizeAfter := func() int64 {
		t.Helper()
		sm := &ledger{}
		s := start(t, cfg, sm)
		if got := sm.commands(); !reflect.DeepEqual(got, []string{"a", "b"}) {
			t.Errorf("commands %v", got)
		}
		closeStore(t, s)
		fi, err := os.Stat(path)
		if err != nil || fi.Mode().Perm() != 0o600 {
			t.Fatal(fi.Mode(), err)
		}
		return fi.Size()
	}
	if size := sizeAfter(); size != long {
		t.Errorf("%d bytes, and %d before: it may be as long as these bounds let it become", size, long)
	}
	// A crash while it was copied.
	if err := os.WriteFile(path+newSuffix, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	before := stableValues(t, path)
	cfg.SnapshotBytes, cfg.TrailingBytes = 1<<20, 1<<20
	if err := (&Store{cfg: cfg}).shorten(path, contents{bytes: uint64(long)}); err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(path); err != nil || fi.Size() != long {
		t.Errorf("a file that is full of entries was copied: %v, %v", fi.Size(), err)
	}
	closing := cfg
	closing.Bootstrap = false
	s := newStore(closing)
	_, trans := raft.NewInmemTransport("n1")
	if err := s.openDisk(trans, 0); err != nil {
		t.Fatal(err)
	}
	if err := s.log.Close(); err != nil {
		t.Fatal(err)
	}
	if after := stableValues(t, path); !reflect.DeepEqual(after, before) {
		t.Errorf("term and vote %q, and %q before", after, before)
	}
	if size := sizeAfter(); size > long/4 {
		t.Errorf("%d bytes of %d", size, long)
	}
	if _, err := os.Stat(path + newSuffix); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the copy under its temporary name: %v", err)
	}
}

// stableValues reads what Raft keeps beside the log.
func stableValues(t *testing.T, path string) map[string]string {
	t.Helper()
	b, err := openLog(path)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	values := map[string]string{}
	for _, key := range []string{"CurrentTerm", "LastVoteTerm", "LastVoteCand"} {
		v, err := b.Get([]byte(key))
		if err != nil || v == nil {
			t.Fatalf("%s: %q, %v", key, v, err)
		}
		values[key] = string(v)
	}
	return values
}

// TestNoSpaceToShortenTheLogFile: the node runs with the long one.
func TestNoSpaceToShortenTheLogFile(t *testing.T) {
	dir, ok := smallDisk(t, "28m")
	if !ok {
		return // not privileged
	}
	cfg := testConfig(t, filepath.Join(dir, "data"))
	path, long := stretched(t, cfg)
	ballast, err := os.Create(filepath.Join(dir, "ballast"))
	if err != nil {
		t.Fatal(err)
	}
	for chunk := make([]byte, 4096); err == nil; {
		_, err = ballast.Write(chunk)
	}
	ballast.Close()
	cfg.SnapshotBytes, cfg.TrailingBytes = 1<<20, 1<<20
	s := start(t, cfg, &ledger{})
	propose(t, s, "c") // there is room within
	closeStore(t, s)
	if fi, err := os.Stat(path); err != nil || fi.Size() != long {
		t.Errorf("%d bytes, %d before, %v", fi.Size(), long, err)
	}
	if _, err := os.Stat(path + newSuffix); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("half a copy is left: %v", err)
	}
}
