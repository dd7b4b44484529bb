package raftstore

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/hashicorp/raft"
	"golang.org/x/sys/unix"
)

// smallDisk mounts a file system of size bytes, or returns false where that is
// not allowed.
func smallDisk(t *testing.T, size string) (string, bool) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Logf("cannot mount: %v", err)
		return "", false
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir, true
}

// TestFullDisk fills the disk under a node for real where it may mount one, and
// otherwise lets the log store answer ENOSPC.
func TestFullDisk(t *testing.T) {
	dir, real := smallDisk(t, "24m")
	var fill, free func()
	var injected *faults
	if real {
		ballast := filepath.Join(dir, "ballast")
		fill = func() {
			f, err := os.Create(ballast)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			for chunk := make([]byte, 4096); err == nil; {
				_, err = f.Write(chunk)
			}
			if !errors.Is(err, syscall.ENOSPC) {
				t.Fatal(err)
			}
		}
		free = func() {
			if err := os.Remove(ballast); err != nil {
				t.Fatal(err)
			}
		}
	} else {
		dir = t.TempDir()
		injected = &faults{}
		full := diskFull(syscall.ENOSPC)
		fill = func() { injected.append.Store(&full) }
		free = func() { injected.append.Store(nil) }
	}
	cfg := testConfig(t, filepath.Join(dir, "data"))
	if injected != nil {
		cfg.wrapLogs = injected.wrapLogs
	}
	sm := &ledger{}
	s := start(t, cfg, sm)
	big := make([]byte, 64<<10)
	acked := 0
	for round := range 2 {
		fill()
		for i := 0; ; i++ {
			_, err := s.Propose(testContext(t), big)
			if err == nil {
				if acked++; i > 1000 {
					t.Fatal("the disk does not fill up")
				}
				continue
			}
			if !errors.Is(err, ErrDiskFull) || !errors.Is(err, ErrNotLeader) || errors.Is(err, ErrIndeterminate) {
				t.Fatalf("round %d: %v", round, err)
			}
			break
		}
		if _, err := s.Propose(testContext(t), big); !errors.Is(err, ErrDiskFull) {
			t.Errorf("round %d, a second later: %v", round, err)
		}
		if _, err := s.Propose(testContext(t), nil); !errors.Is(err, ErrDiskFull) {
			t.Errorf("round %d, a small one: %v", round, err)
		}
		if st := s.Status(); !st.DiskFull || st.Err != nil {
			t.Errorf("round %d: %+v", round, st)
		}
		if err := s.Snapshot(testContext(t)); real && !errors.Is(err, ErrDiskFull) {
			t.Errorf("round %d: snapshot: %v", round, err)
		}
		free()
		term, err := s.WaitLeader(testContext(t))
		if err != nil {
			t.Fatalf("round %d: %v: %+v", round, err, s.Status())
		}
		if _, err := s.Propose(testContext(t), big); err != nil {
			t.Fatalf("round %d, with space again in term %d: %v", round, term, err)
		}
		acked++
	}
	if st := s.Status(); st.DiskFull {
		t.Errorf("still full: %+v", st)
	}
	closeStore(t, s)
	fresh := &ledger{}
	s = start(t, cfg, fresh)
	if got := len(fresh.commands()); got != acked {
		t.Errorf("%d commands after reopening, %d were acknowledged", got, acked)
	}
	closeStore(t, s)
}

// TestFullDiskRefusesFirst checks that the log finds out before it writes: the
// transaction that did not fit left nothing behind, and a term still fits.
func TestFullDiskRefusesFirst(t *testing.T) {
	dir, real := smallDisk(t, "2m")
	if !real {
		dir = t.TempDir()
	}
	b, err := openLog(filepath.Join(dir, "raft.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	var next uint64 = 1
	data := make([]byte, 100<<10)
	if real {
		for ; err == nil; next++ {
			if next > 100 {
				t.Fatal("the disk does not fill up")
			}
			err = b.StoreLog(&raft.Log{Index: next, Term: 1, Data: data})
		}
		if !errors.Is(err, ErrDiskFull) {
			t.Fatal(err)
		}
		next--
	} else {
		if err := b.StoreLog(&raft.Log{Index: 1, Term: 1, Data: data}); err != nil {
			t.Fatal(err)
		}
		next = 2
	}
	if last, _ := b.LastIndex(); last != next-1 {
		t.Errorf("last index %d, want %d", last, next-1)
	}
	for i := range uint64(20) {
		if err := b.SetUint64([]byte("term"), i); err != nil {
			t.Fatalf("saving a term: %v", err)
		}
	}
	if err := b.DeleteRange(1, next-1); err != nil {
		t.Fatalf("truncation: %v", err)
	}
	if err := b.StoreLog(&raft.Log{Index: next, Term: 1, Data: data}); err != nil {
		t.Fatalf("after truncation: %v", err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	c, err := inspect(filepath.Join(dir, "raft.db"))
	if err != nil || c.first != next || c.last != next {
		t.Errorf("inspect: %+v, %v", c, err)
	}
}

func TestOutOfSpace(t *testing.T) {
	for err, want := range map[error]bool{
		syscall.EIO:    false,
		syscall.ENOSPC: true,
		&os.PathError{Op: "write", Path: "f", Err: syscall.EFBIG}: true,
		os.NewSyscallError("fallocate", syscall.EDQUOT):           true,
	} {
		if outOfSpace(err) != want || errors.Is(diskFull(err), ErrDiskFull) != want || !errors.Is(diskFull(err), err) {
			t.Errorf("%v: %v", err, diskFull(err))
		}
	}
}

func TestOpenOnFullDisk(t *testing.T) {
	dir, real := smallDisk(t, "64k")
	if !real {
		return // nothing to inject here: the file is not open yet
	}
	_, err := Open(testConfig(t, filepath.Join(dir, "data")), &ledger{})
	if !errors.Is(err, ErrDiskFull) {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "data", "raft.db")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("left a raft.db: %v", err)
	}
}
