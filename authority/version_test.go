package authority

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/writ-dev/writ/authority/state"
)

// TestUnknownCommandStopsTheNode: a command of a later version, in the log of a
// real node, ends it with a message that says so, and again at each start; what
// it had acknowledged stays for the version that can read it.
func TestUnknownCommandStopsTheNode(t *testing.T) {
	cfg := testConfig(t)
	fatal := make(chan error, 4)
	cfg.OnFatal = func(err error) { fatal <- err }
	a, _, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	known, err := state.EncodeCommand(state.Header{Kind: state.KindExpire, Stamp: time.Now().UnixMilli(), Actor: state.Actor{Name: state.SystemActor}}, &state.Expire{T: 1})
	if err != nil {
		t.Fatal(err)
	}
	known[0], known[1] = 0x7f, 0xff // a kind of a later version
	entry, err := state.EncodeEntry(known)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.store.Propose(t.Context(), entry); err == nil {
		t.Error("acknowledged")
	}
	if err := <-fatal; !errors.Is(err, state.ErrUnknownCommand) {
		t.Errorf("the node ends with %v", err)
	}
	_ = a.Close()
	if b, _, err := Open(t.Context(), cfg); err == nil {
		_ = b.Close()
		t.Error("it starts over what it cannot read")
	} else if !errors.Is(err, state.ErrUnknownCommand) {
		t.Errorf("at the next start: %v", err)
	}
}

// TestSnapshotOfALaterVersionStopsTheNode: a node whose newest snapshot is in a
// format that it does not know ends with a message that says so, and its files
// are left for the version that knows it.
func TestSnapshotOfALaterVersionStopsTheNode(t *testing.T) {
	cfg := testConfig(t)
	a, _, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(a.Compact(t.Context()), a.Close()); err != nil {
		t.Fatal(err)
	}
	paths, err := filepath.Glob(filepath.Join(cfg.Dir, "raft", "snapshots", "*.snap"))
	if err != nil || len(paths) != 1 {
		t.Fatal(paths, err)
	}
	before, err := os.ReadFile(paths[0])
	if err != nil {
		t.Fatal(err)
	}
	// Behind raftstore's header and description the state is one frame of zstd.
	head := 16 + int(binary.BigEndian.Uint32(before[12:]))
	plain, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	snapshot, err := plain.DecodeAll(before[head:len(before)-sha256.Size], nil)
	if err != nil || !bytes.HasPrefix(snapshot, []byte("writ state snapshot ")) {
		t.Fatalf("no state in the snapshot: %v", err)
	}
	snapshot[len("writ state snapshot ")] = '9'
	frame, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	later := frame.EncodeAll(snapshot, bytes.Clone(before[:head]))
	sum := sha256.Sum256(later)
	if err := os.WriteFile(paths[0], append(later, sum[:]...), 0o600); err != nil {
		t.Fatal(err)
	}
	fatal := make(chan error, 4)
	cfg.OnFatal = func(err error) { fatal <- err }
	if b, _, err := Open(t.Context(), cfg); err == nil {
		_ = b.Close()
		t.Error("it starts over what it cannot read")
	} else if !errors.Is(err, state.ErrVersion) {
		t.Errorf("it ends with %v", err)
	}
	// The version that knows it starts.
	if err := os.WriteFile(paths[0], before, 0o600); err != nil {
		t.Fatal(err)
	}
	b, _, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
}
