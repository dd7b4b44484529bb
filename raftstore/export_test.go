package raftstore

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"
)

// exported is a snapshot of a cluster of three with ten commands.
func exported(t *testing.T, m *mesh) ([]byte, SnapshotMeta) {
	t.Helper()
	n1 := m.nodes["n1"]
	propose(t, n1.store, numbered(0, 10)...)
	var file bytes.Buffer
	meta, err := n1.store.Export(testContext(t), &file)
	if err != nil {
		t.Fatal(err)
	}
	return file.Bytes(), meta
}

func TestExportAndRestore(t *testing.T) {
	m := newMesh(t, 3, nil)
	file, meta := exported(t, m)
	if meta.Index < 10 || meta.Term == 0 || len(meta.Servers) != 3 || meta.Size == 0 {
		t.Errorf("exported %+v", meta)
	}
	got, err := InspectSnapshot(bytes.NewReader(file))
	if err != nil || !reflect.DeepEqual(got, meta) {
		t.Errorf("inspected %+v, %v; exported %+v", got, err, meta)
	}
	propose(t, m.nodes["n1"].store, "after") // and must not be in it
	dir := filepath.Join(t.TempDir(), "new")
	cfg := RestoreConfig{Dir: dir, NodeID: "n1", Address: "127.0.0.1:1"}
	if _, err := Restore(cfg, bytes.NewReader(file)); !errors.Is(err, ErrMember) {
		t.Errorf("under the id of a member: %v", err)
	}
	cfg.NodeID = "m1"
	if got, err := Restore(cfg, bytes.NewReader(file)); err != nil || !reflect.DeepEqual(got, meta) {
		t.Fatalf("restored %+v, %v", got, err)
	}
	if _, err := Restore(cfg, bytes.NewReader(file)); !errors.Is(err, ErrNotEmpty) {
		t.Errorf("restored twice: %v", err)
	}
	open := testConfig(t, dir)
	open.NodeID, open.Bootstrap = "m1", false
	sm := &ledger{}
	s := start(t, open, sm)
	if got := sm.commands(); !reflect.DeepEqual(got, numbered(0, 10)) {
		t.Errorf("commands %v", got)
	}
	if st := s.Status(); !slices.Equal(st.Voters, []string{"m1"}) || st.Nonvoters != nil || st.Term <= meta.Term || st.LastIndex <= meta.Index {
		t.Errorf("status %+v", st)
	}
	propose(t, s, "new")
	closeStore(t, s)
	sm = &ledger{}
	s = start(t, open, sm)
	if got := sm.commands(); !reflect.DeepEqual(got, append(numbered(0, 10), "new")) {
		t.Errorf("commands after a restart %v", got)
	}
	if _, err := Restore(cfg, bytes.NewReader(file)); !errors.Is(err, ErrLocked) {
		t.Errorf("over a running node: %v", err)
	}
	// And it grows into a cluster again.
	closeStore(t, s)
	grown := &mesh{t: t, nodes: map[string]*meshNode{}}
	first := &meshNode{id: "n4", sm: &ledger{}, out: newWires(), fatal: make(chan error, 1)}
	first.cfg = Config{Dir: filepath.Join(t.TempDir(), "n4"), NodeID: "n4", HeartbeatTimeout: time.Second, OnFatal: func(err error) { first.fatal <- err }}
	if _, err := Restore(RestoreConfig{Dir: first.cfg.Dir, NodeID: "n4", Address: "127.0.0.1:1"}, bytes.NewReader(file)); err != nil {
		t.Fatal(err)
	}
	grown.start(first)
	grown.nodes["n4"], grown.ids = first, []string{"n4"}
	grown.leader()
	if err := first.store.SetAddress(testContext(t), "n4", string(first.trans.LocalAddr())); err != nil {
		t.Fatal(err)
	}
	second := grown.open("n5", false, nil)
	grown.join(first, second)
	propose(t, first.store, "grown")
	grown.caughtUp(first, "n5")
}

func TestRestoreRefusesDamage(t *testing.T) {
	m := newMesh(t, 1, nil)
	file, _ := exported(t, m)
	for at := 0; at < len(file); at += 7 {
		bad := slices.Clone(file)
		bad[at] ^= 1
		if _, err := InspectSnapshot(bytes.NewReader(bad)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("byte %d flipped: %v", at, err)
		}
	}
	dir := t.TempDir()
	restore := func(r io.Reader) error {
		_, err := Restore(RestoreConfig{Dir: dir, NodeID: "m1", Address: "127.0.0.1:1"}, r)
		return err
	}
	bad := slices.Clone(file)
	bad[len(bad)-40] ^= 1 // in the state
	failing := errors.New("read failed")
	for name, tc := range map[string]struct {
		r    io.Reader
		want error
	}{
		"nothing":       {bytes.NewReader(nil), ErrCorrupt},
		"header only":   {bytes.NewReader(file[:snapshotHeader]), ErrCorrupt},
		"cut":           {bytes.NewReader(file[:len(file)-1]), ErrCorrupt},
		"longer":        {bytes.NewReader(append(slices.Clone(file), 0)), ErrCorrupt},
		"flipped":       {bytes.NewReader(bad), ErrCorrupt},
		"a failed read": {io.MultiReader(bytes.NewReader(file[:len(file)-40]), errReader{failing}), failing},
	} {
		if err := restore(tc.r); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Stat(filepath.Join(dir, "snapshots")); !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("%s: leaves something behind: %v", name, err)
		}
	}
	if err := restore(bytes.NewReader(file)); err != nil {
		t.Errorf("the whole one, after those: %v", err)
	}
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

func TestExportNeedsSomething(t *testing.T) {
	m := newMesh(t, 1, nil)
	ctx, cancel := context.WithCancel(t.Context())
	propose(t, m.nodes["n1"].store, "a")
	if _, err := m.nodes["n1"].store.Export(ctx, failingWriter{}); !errors.Is(err, io.ErrShortWrite) {
		t.Errorf("to a writer that fails: %v", err)
	}
	cancel()
	if _, err := m.nodes["n1"].store.Export(ctx, io.Discard); !errors.Is(err, context.Canceled) {
		t.Errorf("after the context: %v", err)
	}
	fresh := m.open("n2", false, nil)
	if _, err := fresh.store.Export(t.Context(), io.Discard); !errors.Is(err, ErrNothingNew) {
		t.Errorf("of nothing: %v", err)
	}
}

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, io.ErrShortWrite }

// Two of three are gone for good: the third becomes a cluster of its own, with
// everything that was acknowledged.
func TestRecoverFromTheLossOfTheQuorum(t *testing.T) {
	m := newMesh(t, 3, nil)
	n1, n2 := m.nodes["n1"], m.nodes["n2"]
	propose(t, n1.store, numbered(0, 10)...)
	m.caughtUp(n1, "n2", "n3")
	servers := []Server{{ID: "n2", Address: string(n2.trans.LocalAddr()), Voter: true}}
	if _, err := Recover(n2.cfg, servers, &ledger{}); !errors.Is(err, ErrLocked) {
		t.Errorf("while it runs: %v", err)
	}
	for _, id := range m.ids {
		closeStore(t, m.nodes[id].store)
	}
	for name, bad := range map[string][]Server{
		"nobody":      nil,
		"no voter":    {{ID: "n2", Address: "x:1"}},
		"without it":  {{ID: "n3", Address: "x:1", Voter: true}},
		"twice":       {{ID: "n2", Address: "x:1", Voter: true}, {ID: "n2", Address: "x:2"}},
		"no address":  {{ID: "n2", Voter: true}},
		"one address": {{ID: "n2", Address: "x:1", Voter: true}, {ID: "n3", Address: "x:1"}},
	} {
		if _, err := Recover(n2.cfg, bad, &ledger{}); !errors.Is(err, ErrConfig) {
			t.Errorf("%s: %v", name, err)
		}
	}
	meta, err := Recover(n2.cfg, servers, &ledger{})
	if err != nil || !reflect.DeepEqual(meta.Servers, servers) {
		t.Fatalf("recovered %+v, %v", meta, err)
	}
	n2.sm = &ledger{}
	m.start(n2)
	m.leader("n2")
	if got := n2.sm.commands(); !reflect.DeepEqual(got, numbered(0, 10)) {
		t.Errorf("commands %v", got)
	}
	if err := n2.store.SetAddress(testContext(t), "n2", string(n2.trans.LocalAddr())); err != nil {
		t.Fatal(err)
	}
	propose(t, n2.store, "alone")
	n4 := m.open("n4", false, nil)
	m.join(n2, n4)
	m.caughtUp(n2, "n4")
}
