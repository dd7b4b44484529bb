package raftstore

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// lossyDisk is an ext4 file system in a file. What programs wrote there and
// nobody synced is in the kernel's memory and not yet in that file: a copy of
// the file is what a power failure leaves.
type lossyDisk struct {
	t     *testing.T
	image string
	dir   string
}

func mountLossy(t *testing.T) (*lossyDisk, bool) {
	d := &lossyDisk{t: t, image: filepath.Join(t.TempDir(), "image"), dir: t.TempDir()}
	f, err := os.Create(d.image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(32 << 20); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", d.image).CombinedOutput(); err != nil {
		t.Logf("cannot make a file system: %v: %s", err, out)
		return nil, false
	}
	return d, d.mount()
}

func (d *lossyDisk) mount() bool {
	if out, err := exec.Command("mount", "-o", "loop", d.image, d.dir).CombinedOutput(); err != nil {
		d.t.Logf("cannot mount: %v: %s", err, out)
		return false
	}
	d.t.Cleanup(func() {
		if out, err := exec.Command("umount", d.dir).CombinedOutput(); err != nil {
			d.t.Errorf("%v: %s", err, out)
		}
	})
	return true
}

// powerFailure returns the disk as it would come back.
func (d *lossyDisk) powerFailure() *lossyDisk {
	d.t.Helper()
	b, err := os.ReadFile(d.image)
	if err != nil {
		d.t.Fatal(err)
	}
	after := &lossyDisk{t: d.t, image: filepath.Join(d.t.TempDir(), "image"), dir: d.t.TempDir()}
	if err := os.WriteFile(after.image, b, 0o600); err != nil {
		d.t.Fatal(err)
	}
	if !after.mount() {
		d.t.Fatal("the copy cannot be mounted")
	}
	return after
}

// TestPowerFailure pulls the plug right after an acknowledgment, again and
// again. What was acknowledged is there: so it was synced, and not only written.
func TestPowerFailure(t *testing.T) {
	disk, ok := mountLossy(t)
	if !ok {
		// Not privileged. At least nobody turned syncing off.
		if b := openTestLog(t); b.db.NoSync {
			t.Error("the log is not synced")
		}
		return
	}
	cfg := testConfig(t, filepath.Join(disk.dir, "data"))
	cfg.TrailingLogs = 1
	s := start(t, cfg, &ledger{})
	check := func(want int) {
		t.Helper()
		after := disk.powerFailure()
		cfg := cfg
		cfg.Dir = filepath.Join(after.dir, "data")
		cfg.Bootstrap = false
		sm := &ledger{}
		s := start(t, cfg, sm)
		if got := len(sm.commands()); got != want {
			t.Errorf("%d commands survived, %d were acknowledged", got, want)
		}
		closeStore(t, s)
	}
	check(0)
	for i := range 4 {
		propose(t, s, fmt.Sprintf("c%d", i))
		check(i + 1)
	}
	if err := s.Snapshot(testContext(t)); err != nil {
		t.Fatal(err)
	}
	check(4)
	propose(t, s, string(bytes.Repeat([]byte("x"), 1<<19)), "after")
	check(6)

	// And the method sees what was not synced.
	if err := os.WriteFile(filepath.Join(disk.dir, "unsynced"), []byte("lost"), 0o600); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(disk.powerFailure().dir, "unsynced")); err == nil && len(b) > 0 {
		t.Errorf("a file that nobody synced survived: %q", b)
	}
	closeStore(t, s)
}
