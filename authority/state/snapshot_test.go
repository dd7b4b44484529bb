package state

import (
	"bytes"
	"errors"
	"os"
	"testing"

	bolt "go.etcd.io/bbolt"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/raftstore"
)

var _ raftstore.StateMachine = (*Machine)(nil)

func persist(t testing.TB, m *Machine) []byte {
	t.Helper()
	s, err := m.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Release()
	var b bytes.Buffer
	if err := s.Persist(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// lived is a rig with something of everything in its state.
func lived(t testing.TB) *rig {
	t.Helper()
	r := formed(t)
	svc := r.record("svc", api.AdminAudience, "service:x")
	r.must(KindIssue, &Issue{Record: svc})
	r.stamp++
	a := r.issue("a", "corp", "alice")
	r.derive("b", a, "left")
	r.must(KindRevoke, &Revoke{Kind: "branch", Token: a, Branch: bits("left"), Reason: "leaked", Expires: r.stamp + 1000})
	r.must(KindRevoke, &Revoke{Kind: "subject", Subject: "bob", Reason: "left us", Expires: r.stamp + 100_000})
	r.must(KindAddService, &AddService{Name: "files", Audiences: []string{"corp"}, JoinHash: Digest{1}, JoinUntil: r.stamp + 1000})
	r.must(KindAddEpoch, &AddEpoch{
		Key: SealedKey{Purpose: PurposeMaster, Epoch: 2, Incarnation: 1, Sealed: []byte("sealed master 2")}, MintsFrom: r.stamp + 10_000, OldUntil: r.stamp + 1_000_000,
	})
	r.must(KindRekey, &Rekey{Audience: "corp", Reason: "leaked", MintsFrom: r.stamp + 10_000, OldUntil: r.stamp + 1_000_000})
	actor := Actor{Name: "service:x", Token: svc.ID, Audience: api.AdminAudience}
	lease := &Lease{ID: bits("lease"), Token: a, Chain: []capability.BranchID{bits("p")}, Path: []PathPoint{{bits("p"), 9}}, Want: 2, Lessee: "service:x"}
	if _, err := r.as(actor, tokenID(r.stamp, "request"), Digest{2}, KindLease, lease); err != nil {
		t.Fatal(err)
	}
	return r
}

func TestSnapshotRestoresWhole(t *testing.T) {
	r := lived(t)
	b := persist(t, r.m)
	if r.trail.synced != len(r.trail.records) || r.trail.synced == 0 {
		t.Error("the snapshot covers audit records that are not durable")
	}
	sink := new(trail)
	sink.origin, sink.edge = r.trail.origin, r.trail.edge
	m := openMachine(t, sink)
	changed := m.Changed()
	if err := m.Restore(bytes.NewReader(b)); err != nil {
		t.Fatal(err)
	}
	select {
	case <-changed:
	default:
		t.Error("nobody was told")
	}
	if hashOf(m) != hashOf(r.m) || m.AppliedIndex() != r.m.AppliedIndex() || m.Counts() != r.m.Counts() {
		t.Errorf("restored: index %d, %+v; want index %d, %+v", m.AppliedIndex(), m.Counts(), r.m.AppliedIndex(), r.m.Counts())
	}
	if again := persist(t, m); !bytes.Equal(again, b) {
		t.Error("a snapshot of what was restored is another snapshot")
	}
	if _, _, err := m.Events(nil, m.AppliedIndex()-1, 10); !errors.Is(err, ErrTooOld) {
		t.Errorf("events before the snapshot: %v", err)
	}
	if list, through, err := m.Events(nil, m.AppliedIndex(), 10); err != nil || len(list) != 0 || through != m.AppliedIndex() {
		t.Errorf("events after the snapshot: %v, %d, %v", list, through, err)
	}
	// It goes on as the other one does.
	restored := *r
	restored.m = m
	next := restored.record("next", "corp", "alice")
	h := Header{Kind: KindIssue, Stamp: restored.stamp + 1, Actor: system}
	restored.apply(encode(t, h, &Issue{Record: next}))
	r.apply(encode(t, h, &Issue{Record: next}))
	if hashOf(m) != hashOf(r.m) {
		t.Error("the states part after the restore")
	}
}

// TestDamagedSnapshotIsRefused flips, cuts and adds, everywhere: the state that
// was there stands.
func TestDamagedSnapshotIsRefused(t *testing.T) {
	r := lived(t)
	good := persist(t, r.m)
	m := openMachine(t, nil)
	other := formed(t)
	if err := m.Restore(bytes.NewReader(persist(t, other.m))); err != nil {
		t.Fatal(err)
	}
	before := hashOf(m)
	step := max(1, len(good)/60) // each costs a file
	for i := 0; i < len(good); i += step {
		bad := bytes.Clone(good)
		bad[i] ^= 1 << (i % 8)
		if err := m.Restore(bytes.NewReader(bad)); !errors.Is(err, ErrSnapshot) {
			t.Fatalf("bit %d of byte %d: %v", i%8, i, err)
		}
		if err := m.Restore(bytes.NewReader(good[:i])); !errors.Is(err, ErrSnapshot) {
			t.Fatalf("cut at %d: %v", i, err)
		}
	}
	if err := m.Restore(bytes.NewReader(append(bytes.Clone(good), 0))); !errors.Is(err, ErrSnapshot) {
		t.Errorf("a byte more: %v", err)
	}
	if hashOf(m) != before || m.AppliedIndex() != other.m.AppliedIndex() {
		t.Error("a refused snapshot has changed the state")
	}
	if _, err := os.Stat(m.cfg.Path + ".restore"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a refused snapshot leaves a file: %v", err)
	}
}

// TestSnapshotIsOfItsMoment: what is applied while it is written is not in it.
func TestSnapshotIsOfItsMoment(t *testing.T) {
	r := lived(t)
	want := persist(t, r.m)
	s, err := r.m.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		r.issue("later"+string(rune('a'+i)), "corp", "alice")
	}
	var b bytes.Buffer
	if err := s.Persist(&b); err != nil {
		t.Fatal(err)
	}
	s.Release()
	if !bytes.Equal(b.Bytes(), want) {
		t.Error("the snapshot holds what came after it")
	}
}

// TestRestoreFindsForgedContent: a snapshot whose checksum is right and whose
// content is not what the state hashed.
func TestRestoreFindsForgedContent(t *testing.T) {
	r := lived(t)
	err := r.m.db.Load().Update(func(tx *bolt.Tx) error {
		return tx.Bucket(bucketServices).Delete([]byte("files"))
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := openMachine(t, nil).Restore(bytes.NewReader(persist(t, r.m))); !errors.Is(err, ErrSnapshot) {
		t.Errorf("restored: %v", err)
	}
}

// TestCheckHash: a node that differs stops, one that agrees does not.
func TestCheckHash(t *testing.T) {
	r := lived(t)
	index, hash := r.m.StateHash()
	r.issue("between", "corp", "alice")
	if _, err := r.do(KindCheckHash, &CheckHash{Index: index, Hash: hash}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.do(KindCheckHash, &CheckHash{Index: index + 100_000, Hash: Digest{1}}); err != nil {
		t.Errorf("an entry that it does not remember: %v", err)
	}
	defer func() {
		if err, ok := recover().(error); !ok || !errors.Is(err, ErrDiverged) {
			t.Errorf("went on: %v", err)
		}
	}()
	hash[0] ^= 1
	_, _ = r.do(KindCheckHash, &CheckHash{Index: index, Hash: hash})
}
