package state

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"

	bolt "go.etcd.io/bbolt"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/capability"
)

// revival is a Revive that goes through, for the state that r has.
func revival(r *rig, keep ...uint32) *Revive {
	c := r.m.Cluster()
	epochs := r.m.Epochs()
	b := &Revive{
		Incarnation: c.Incarnation + 7, Origin: fmt.Sprintf("writ/audit/test/%d", c.Incarnation+7), Previous: []byte("a signed checkpoint"),
		Reason: "restored", Keep: keep,
	}
	add := func(purpose string, epoch uint32) {
		b.Keys = append(b.Keys, SealedKey{Purpose: purpose, Epoch: epoch, Incarnation: b.Incarnation, Sealed: []byte("sealed anew"), Under: c.Key + 1})
	}
	add(PurposeAdmin, AdminEpoch)
	add(PurposeAudit, 1)
	add(PurposeCA, 1)
	for _, n := range keep {
		add(PurposeMaster, n)
	}
	add(PurposeMaster, epochs[len(epochs)-1].Epoch+1)
	add(PurposeWrap+"n1", 0)
	return b
}

func testMember(id string) MemberRecord {
	return MemberRecord{ID: id, Key: Digest(append(bytes.Repeat([]byte(id), 32)[:31], 1)), Recipient: make([]byte, 32), Raft: id + ":1", Voter: true, State: MemberActive}
}

func TestGoldenReviveCommands(t *testing.T) {
	const file = "testdata/commands-revive.txt"
	m := testMember("n1")
	key := SealedKey{Purpose: "master", Epoch: 2, Incarnation: 3, Sealed: []byte("sealed"), Public: []byte("public"), Under: 4}
	bodies := []any{
		&Revive{Incarnation: 7, Origin: "o7", Previous: []byte("note"), Reason: "r", Keys: []SealedKey{key}, Keep: []uint32{1}, Member: &m},
		&Reseal{Of: Digest{9}, Keys: []SealedKey{key}},
	}
	var got strings.Builder
	for i, body := range bodies {
		h := Header{Kind: KindRevive + Kind(i), Stamp: epochStart, Actor: system}
		c := encode(t, h, body)
		fmt.Fprintf(&got, "%d %s\n", h.Kind, base64.StdEncoding.EncodeToString(c))
		if _, back, err := DecodeCommand(c); err != nil || !reflect.DeepEqual(back, body) {
			t.Errorf("kind %d does not come back: %v\n%+v", h.Kind, err, back)
		}
	}
	if *update {
		if err := os.WriteFile(file, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(want) != got.String() {
		t.Error("the encoding of a command has changed: logs in the field cannot be read")
	}
}

// TestGoldenSnapshot pins the format, with a state that has everything.
func TestGoldenSnapshot(t *testing.T) {
	const file, sums = "testdata/snapshot-4.bin", "testdata/snapshot-4.sum"
	r := lived(t)
	r.must(KindSetMember, &SetMember{Member: testMember("n1")})
	r.must(KindRevive, revival(r, 1))
	r.issue("after", "corp", "alice")
	b, hash := persist(t, r.m), hashOf(r.m)
	if *update {
		if err := errors.Join(os.WriteFile(file, b, 0o644), os.WriteFile(sums, []byte(hex.EncodeToString(hash[:])+"\n"), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	golden, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(sums)
	if err != nil {
		t.Fatal(err)
	}
	m := openMachine(t, nil)
	if err := m.Restore(bytes.NewReader(golden)); err != nil {
		t.Fatal(err)
	}
	if h := hashOf(m); hex.EncodeToString(h[:]) != strings.TrimSpace(string(want)) {
		t.Errorf("the golden snapshot is now the state %x", h)
	}
	if !bytes.Equal(persist(t, m), golden) {
		t.Error("the golden snapshot is written otherwise than it was read")
	}
}

// TestReviveLetsNothingComeBack: what could have been revoked or spent since is
// dead in the new incarnation, on a node that replays as on one that restores.
func TestReviveLetsNothingComeBack(t *testing.T) {
	r := lived(t)
	removed := testMember("gone")
	r.must(KindSetMember, &SetMember{Member: testMember("n1")})
	r.must(KindSetMember, &SetMember{Member: removed})
	removed.State = MemberLeaving
	r.must(KindSetMember, &SetMember{Member: removed})
	r.must(KindRemoveMember, &RemoveMember{ID: "gone", Reason: "broken"})
	r.must(KindAddJoinToken, &AddJoinToken{Hash: Digest{5}, Until: r.stamp + 10_000})
	r.must(KindSetRoots, &SetRoots{Name: "factory", PEM: []byte("certificates")})
	r.must(KindSetPolicy, &SetPolicy{Name: "prod", Document: []byte(`{"format":1}`)})
	r.must(KindAttest, r.evidence("c"))
	kept := r.issue("kept", "corp", "carol")
	// answered is how many requests, and how many challenges, are remembered.
	answered := func() (requests, challenges int) {
		t.Helper()
		err := r.m.db.Load().View(func(tx *bolt.Tx) error {
			requests = tx.Bucket(bucketRequests).Stats().KeyN
			c := tx.Bucket(bucketAttest).Cursor()
			for k, _ := c.Seek([]byte{keyChallenge}); k != nil && k[0] == keyChallenge; k, _ = c.Next() {
				challenges++
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return requests, challenges
	}
	if requests, challenges := answered(); requests == 0 || challenges != 1 {
		t.Fatalf("%d requests and %d challenges to forget", requests, challenges)
	}
	before, _ := r.m.AuditEdge()

	b := revival(r, 1)
	n2 := testMember("n2")
	b.Member = &n2
	for name, spoil := range map[string]func(*Revive){
		"an incarnation that does not rise": func(b *Revive) { b.Incarnation = 1 },
		"the same trail":                    func(b *Revive) { b.Origin = r.m.Cluster().Origin },
		"no checkpoint":                     func(b *Revive) { b.Previous = nil },
		"an epoch that is not there":        func(b *Revive) { b.Keep = []uint32{1, 9} },
		"a master that is not kept":         func(b *Revive) { b.Keep = nil },
		"no admin key":                      func(b *Revive) { b.Keys = b.Keys[1:] },
		"under the cluster key before":      func(b *Revive) { b.Keys[0].Under = 0 },
		"a removed node":                    func(b *Revive) { m := testMember("gone"); b.Member = &m },
		"a removed node's key":              func(b *Revive) { m := testMember("gone"); m.ID = "new"; b.Member = &m },
	} {
		bad := *b
		bad.Keys = append([]SealedKey(nil), b.Keys...)
		spoil(&bad)
		if _, err := r.do(KindRevive, &bad); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	r.must(KindRevive, b)

	if requests, challenges := answered(); requests+challenges != 0 {
		t.Errorf("%d requests and %d challenges of before are remembered", requests, challenges)
	}
	after, _ := r.m.AuditEdge()
	if c := r.m.Cluster(); c.Incarnation != b.Incarnation || c.Origin != b.Origin || c.Key != 1 || after.Size() < 2 || after.Size() >= before.Size() {
		t.Errorf("%+v, %d records after %d", c, after.Size(), before.Size())
	}
	if string(r.trail.records[0]) != "a signed checkpoint" || !strings.Contains(string(r.trail.records[1]), `"action":"revive"`) {
		t.Errorf("the new trail begins with %s", r.trail.records)
	}
	if _, _, err := r.m.Events(nil, 0, 10); !errors.Is(err, ErrTooOld) {
		t.Errorf("the feed of the incarnation before goes on: %v", err)
	}
	for _, e := range r.m.Epochs() {
		if dead := e.Epoch == 2; e.Revoked != dead || (r.m.Revocations().Token(&capability.Identity{Epoch: e.Epoch}) == capability.Revoked) != dead {
			t.Errorf("epoch %+v", e)
		}
	}
	if keys := r.m.SealedKeys(PurposeMaster); len(keys) != 2 || keys[0].Epoch != 1 || keys[1].Epoch != 3 || string(keys[0].Sealed) != "sealed anew" {
		t.Errorf("masters %+v", keys)
	}
	// A token of a kept epoch has no calls left: how many were spent is not known.
	lease := &Lease{ID: bits("again"), Token: kept, Chain: []capability.BranchID{bits("p")}, Path: []PathPoint{{bits("p"), 9}}, Want: 2, Lessee: SystemActor}
	r.refused(capability.CodeBudgetExhausted, KindLease, lease)
	// Who reads is told the same: a lease that seems possible is asked for again.
	if open, left, err := r.m.OpenLeases(lease); len(open) != 0 || left != 0 || err != nil {
		t.Errorf("of a token from before, %d calls are left, %v are leased: %v", left, open, err)
	}
	rec := r.record("fresh", "corp", "carol")
	rec.Epoch = 3
	r.must(KindIssue, &Issue{Record: rec})
	lease.Token = rec.ID
	r.must(KindLease, lease)
	// What is good for one use is void; the name can be added again.
	r.refused(api.CodeUnauthorized, KindJoinService, &JoinService{Name: "files", Hash: Digest{1}, Record: r.record("j", api.AdminAudience, "service:files")})
	r.must(KindAddService, &AddService{Name: "files", Audiences: []string{"corp"}, JoinHash: Digest{8}, JoinUntil: r.stamp + 1000})
	r.refused(api.CodeConflict, KindAddService, &AddService{Name: "files", Audiences: []string{"corp"}, JoinHash: Digest{9}, JoinUntil: r.stamp + 1000})
	n3 := testMember("n3")
	wrap := SealedKey{Purpose: PurposeWrap + "n3", Sealed: []byte("w"), Under: 1}
	r.refused(api.CodeUnauthorized, KindJoinMember, &JoinMember{Hash: Digest{5}, Member: n3, Wrap: wrap})
	members := r.m.Members()
	if len(members) != 2 || members[0].ID != "gone" || members[0].State != MemberRemoved || members[1].ID != "n2" {
		t.Errorf("members %+v", members)
	}
	// A key that was sealed before the cluster key changed can be opened by nobody.
	stale := SealedKey{Purpose: PurposeWrap + "recovery", Sealed: []byte("w")}
	r.refused(api.CodeConflict, KindSetKey, &SetKey{Key: stale})
	r.must(KindAddJoinToken, &AddJoinToken{Hash: Digest{6}, Until: r.stamp + 10_000})
	wrap.Under = 0
	r.refused(api.CodeConflict, KindJoinMember, &JoinMember{Hash: Digest{6}, Member: n3, Wrap: wrap})
	wrap.Under = 1
	r.must(KindJoinMember, &JoinMember{Hash: Digest{6}, Member: n3, Wrap: wrap})

	if m, _ := r.replay(3); hashOf(m) != hashOf(r.m) {
		t.Error("a replay comes to another state")
	}
	m := openMachine(t, nil)
	if err := m.Restore(bytes.NewReader(persist(t, r.m))); err != nil || hashOf(m) != hashOf(r.m) {
		t.Errorf("a restore comes to another state: %v", err)
	}
}

// TestReseal: every key or none, and none that has changed meanwhile.
func TestReseal(t *testing.T) {
	r := lived(t)
	keys, of := r.m.SealedState()
	b := &Reseal{Of: of}
	for _, k := range keys {
		k.Sealed, k.Under = []byte("under the next"), 1
		b.Keys = append(b.Keys, k)
	}
	r.refused(api.CodeConflict, KindReseal, &Reseal{Of: of, Keys: b.Keys[1:]})
	r.must(KindSetKey, &SetKey{Key: SealedKey{Purpose: PurposeWrap + "n1", Sealed: []byte("w")}})
	r.refused(api.CodeConflict, KindReseal, b)
	keys, b.Of = r.m.SealedState()
	b.Keys = nil
	for _, k := range keys {
		k.Sealed, k.Under = []byte("under the next"), 1
		b.Keys = append(b.Keys, k)
	}
	r.must(KindReseal, b)
	now, _ := r.m.SealedState()
	if !reflect.DeepEqual(now, b.Keys) || r.m.Cluster().Key != 1 {
		t.Errorf("%+v", now)
	}
	r.refused(api.CodeConflict, KindReseal, b)
	r.refused(api.CodeConflict, KindAddEpoch, &AddEpoch{
		Key: SealedKey{Purpose: PurposeMaster, Epoch: 3, Sealed: []byte("stale")}, MintsFrom: r.stamp + 10_000, OldUntil: r.stamp + 1_000_000,
	})
	if m, _ := r.replay(4); hashOf(m) != hashOf(r.m) {
		t.Error("a replay comes to another state")
	}
}

// TestKeyChangesAreMadeOnce: a request to change keys that is made again, its
// answer lost, comes to what it came to, once every node of the cluster remembers
// them.
func TestKeyChangesAreMadeOnce(t *testing.T) {
	r := lived(t)
	set := func(sealed string) *SetKey {
		return &SetKey{Key: SealedKey{Purpose: PurposeCA, Epoch: 1, Sealed: []byte(sealed), Under: r.m.Cluster().Key}}
	}
	again := func(kind Kind, first, second any) (one, two any) {
		t.Helper()
		request := tokenID(r.stamp, fmt.Sprint(r.stamp))
		one, err := r.as(system, request, Digest{1}, kind, first)
		if err != nil {
			t.Fatal(err)
		}
		made, err := r.m.Remembers(SystemActor, request)
		if err != nil || made != (r.m.Version() >= 2) {
			t.Errorf("remembered: %v, %v", made, err)
		}
		if two, err = r.as(system, request, Digest{1}, kind, second); err != nil {
			t.Fatal(err)
		}
		if _, err := r.as(system, request, Digest{2}, kind, second); made && !errors.Is(err, api.CodeConflict) {
			t.Errorf("another request under the same id: %v", err)
		}
		return one, two
	}
	if one, two := again(KindSetKey, set("a"), set("b")); reflect.DeepEqual(one, two) {
		t.Error("remembered before all nodes do")
	}
	r.must(KindRaiseVersion, &RaiseVersion{Version: 2})
	one, two := again(KindSetKey, set("c"), set("d"))
	if !reflect.DeepEqual(one, two) || string(r.m.SealedKey(PurposeCA, 1).Sealed) != "c" {
		t.Errorf("a key was set twice: %+v, %+v", one, two)
	}
	reseal := func() *Reseal {
		keys, of := r.m.SealedState()
		b := &Reseal{Of: of}
		for _, k := range keys {
			k.Under++
			b.Keys = append(b.Keys, k)
		}
		return b
	}
	b := reseal()
	one, two = again(KindReseal, b, b) // the second of keys that are gone
	if !reflect.DeepEqual(one, two) || one.(*ResealResult).Number != r.m.Cluster().Key {
		t.Errorf("%+v, %+v, and the key is number %d", one, two, r.m.Cluster().Key)
	}
	if m, _ := r.replay(3); hashOf(m) != hashOf(r.m) {
		t.Error("a replay comes to another state")
	}
}
