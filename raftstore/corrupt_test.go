package raftstore

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/raft"
	"go.etcd.io/bbolt"
)

// closedNode makes a node with a log, a vote and a snapshot, and returns its
// configuration.
func closedNode(t *testing.T) Config {
	cfg := testConfig(t, t.TempDir())
	cfg.TrailingLogs = 20
	s := start(t, cfg, &ledger{})
	propose(t, s, numbered(0, 10)...)
	if err := s.Snapshot(testContext(t)); err != nil {
		t.Fatal(err)
	}
	propose(t, s, "needle-in-the-log", strings.Repeat("long", 5000))
	closeStore(t, s)
	return cfg
}

// damaged opens a node after change has been made to one of its files, expects
// ErrCorrupt naming it, and puts the file back.
func damaged(t *testing.T, cfg Config, path, what string, change func([]byte) []byte) {
	t.Helper()
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, change(bytes.Clone(before)), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := Open(cfg, &ledger{})
	if err == nil {
		s.Close()
	}
	if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), path) {
		t.Errorf("%s: %v", what, err)
	}
	if c := (*Corruption)(nil); errors.As(err, &c) && (c.Path != path || c.Detail == "") {
		t.Errorf("%s: %+v", what, c)
	}
	if err := os.WriteFile(path, before, 0o600); err != nil {
		t.Fatal(err)
	}
}

func flip(off int) func([]byte) []byte {
	return func(b []byte) []byte { b[off] ^= 0x10; return b }
}

func TestFlippedByteIsRefused(t *testing.T) {
	cfg := closedNode(t)
	path := filepath.Join(cfg.Dir, "raft.db")
	page := os.Getpagesize()
	for _, off := range []int{0, 8, 16, 20, 24, 32, 40, 48, 56, 64, 72, 79} {
		damaged(t, cfg, path, "meta page 0", flip(off))
		damaged(t, cfg, path, "meta page 1", flip(page+off))
	}
	db, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for what, text := range map[string]string{"command": "needle-in-the-log", "long command": "longlong", "vote": "LastVoteCand", "term": "CurrentTerm"} {
		// Copies of a page that are no longer in use may hold the text too, and
		// there a flipped byte is no damage. The last written one counts.
		hit := false
		for off := range db {
			if !bytes.HasPrefix(db[off:], []byte(text)) || !inUse(t, path, off) {
				continue
			}
			hit = true
			damaged(t, cfg, path, what, flip(off))
			break
		}
		if !hit {
			t.Errorf("%s not found in the file", what)
		}
	}
	start(t, cfg, &ledger{}) // untouched, it opens
}

// inUse reports whether a flipped byte at off makes a difference to inspect.
func inUse(t *testing.T, path string, off int) bool {
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[off] ^= 1
	copied := filepath.Join(t.TempDir(), "copy.db")
	if err := os.WriteFile(copied, b, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = inspect(copied)
	return err != nil
}

func TestForgottenTransactionIsRefused(t *testing.T) {
	cfg := closedNode(t)
	path := filepath.Join(cfg.Dir, "raft.db")
	page := os.Getpagesize()
	old, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	s := start(t, cfg, &ledger{})
	propose(t, s, "x", "y", "z")
	closeStore(t, s)
	for i, off := range []int{0, page} { // one meta page that never made it to the disk
		damaged(t, cfg, path, "stale meta page "+string(rune('0'+i)), func(b []byte) []byte {
			copy(b[off:off+page], old[off:off+page])
			return b
		})
	}
}

func TestTruncatedAndOverwrittenFilesAreRefused(t *testing.T) {
	cfg := closedNode(t)
	path := filepath.Join(cfg.Dir, "raft.db")
	for _, n := range []int{0, 1, 100, 4096, 8192, 8192 + 100, 20000} {
		damaged(t, cfg, path, "cut", func(b []byte) []byte { return b[:n] })
	}
	damaged(t, cfg, path, "not bbolt", func(b []byte) []byte { return bytes.Repeat([]byte("garbage "), len(b)/8) })

	// Garbage anywhere: either it is noticed, or it hit what is not in use and
	// everything is there.
	want, err := inspect(path)
	if err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	copied := filepath.Join(t.TempDir(), "copy.db")
	refused := 0
	pages := 40 // at the front, where the data is; the rest is reserved
	for range 150 {
		b := bytes.Clone(whole)
		at := rng.IntN(pages * 4096)
		n := 1 << rng.IntN(10)
		for i := range min(n, len(b)-at) {
			b[at+i] = byte(rng.Uint32())
		}
		if err := os.WriteFile(copied, b, 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := inspect(copied)
		switch {
		case err != nil && !errors.Is(err, ErrCorrupt):
			t.Fatalf("%d bytes at %d: %v", n, at, err)
		case err != nil:
			refused++
		case got.first != want.first || got.last != want.last:
			t.Fatalf("%d bytes at %d: not noticed, log is %d to %d", n, at, got.first, got.last)
		}
	}
	if refused < 15 {
		t.Errorf("only %d refused: the test misses what is in use", refused)
	}
}

func TestDamagedSnapshotIsRefused(t *testing.T) {
	cfg := closedNode(t)
	files, err := filepath.Glob(filepath.Join(cfg.Dir, "snapshots", "*"))
	if err != nil || len(files) != 1 {
		t.Fatalf("%v, %v", files, err)
	}
	path := files[0]
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for off := range whole {
		if off%7 == 0 || off < 40 || off > len(whole)-40 {
			damaged(t, cfg, path, "flipped", flip(off))
		}
	}
	for _, n := range []int{0, 10, snapshotHeader, len(whole) / 2, len(whole) - 1} {
		damaged(t, cfg, path, "cut", func(b []byte) []byte { return b[:n] })
	}
	damaged(t, cfg, path, "longer", func(b []byte) []byte { return append(b, 0) })

	// Under another name it claims another index.
	other := filepath.Join(filepath.Dir(path), strings.Repeat("9", 20)+"-"+strings.Repeat("9", 20)+snapshotSuffix)
	if err := os.Rename(path, other); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(cfg, &ledger{}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("renamed: %v", err)
	}
	// Half a snapshot under a temporary name is nothing, and goes.
	if err := os.Rename(other, path); err != nil {
		t.Fatal(err)
	}
	half := strings.TrimSuffix(path, snapshotSuffix) + "0" + snapshotTemp
	if err := os.WriteFile(half, whole[:50], 0o600); err != nil {
		t.Fatal(err)
	}
	start(t, cfg, &ledger{})
	if _, err := os.Stat(half); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("temporary file: %v", err)
	}
}

func TestMissingFilesAreRefused(t *testing.T) {
	cfg := closedNode(t)
	path := filepath.Join(cfg.Dir, "raft.db")
	if err := os.Rename(path, path+".away"); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(cfg, &ledger{}); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "missing") {
		t.Errorf("without raft.db: %v", err)
	}
	if err := os.Rename(path+".away", path); err != nil {
		t.Fatal(err)
	}
	cfg.TrailingLogs = 1 // so that the log no longer begins at 1
	s := start(t, cfg, &ledger{})
	if err := s.Snapshot(testContext(t)); err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	if err := os.RemoveAll(filepath.Join(cfg.Dir, "snapshots")); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(cfg, &ledger{}); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "the log begins at") {
		t.Errorf("without its snapshots: %v", err)
	}
}

// A crash while a node is being created leaves nothing that counts.
func TestHalfCreatedNode(t *testing.T) {
	cfg := testConfig(t, t.TempDir())
	if err := os.WriteFile(filepath.Join(cfg.Dir, "raft.db.new"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := start(t, cfg, &ledger{})
	propose(t, s, "a")
}

// A snapshot that was whole at the start and no longer is stops the node.
func TestSnapshotDamagedWhileRunning(t *testing.T) {
	s, _, fatal := faulty(t, &ledger{}, nil)
	propose(t, s, "a")
	if err := s.Snapshot(testContext(t)); err != nil {
		t.Fatal(err)
	}
	list, err := s.snaps.List()
	if err != nil || len(list) != 1 {
		t.Fatalf("%v, %v", list, err)
	}
	if _, r, err := s.snaps.Open(list[0].ID); err != nil {
		t.Fatal(err)
	} else if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(s.snaps.dir, list[0].ID+snapshotSuffix)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, flip(30)(b), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.snaps.Open(list[0].ID); !errors.Is(err, ErrCorrupt) {
		t.Errorf("open: %v", err)
	}
	if err := receive(t, fatal); !errors.Is(err, ErrCorrupt) {
		t.Errorf("fatal: %v", err)
	}
	dead(t, s, ErrCorrupt)
}

// A record damaged while the node runs stops it when it is read.
func TestRecordDamagedWhileRunning(t *testing.T) {
	s, _, fatal := faulty(t, &ledger{}, nil)
	propose(t, s, "a")
	last, err := s.log.LastIndex()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.log.update(smallSpace, func(tx *bbolt.Tx) error {
		b := tx.Bucket(bucketLog)
		return b.Put(indexKey(last), flip(5)(bytes.Clone(b.Get(indexKey(last)))))
	}); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { // as one of Raft's: it does not come back
		defer close(done)
		var l raft.Log
		t.Errorf("read: %v", s.guard.GetLog(last, &l))
	}()
	<-done
	if err := receive(t, fatal); !errors.Is(err, ErrCorrupt) {
		t.Errorf("fatal: %v", err)
	}
	dead(t, s, ErrCorrupt)
}
