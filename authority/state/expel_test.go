package state

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/audit"
	"github.com/writ-dev/writ/capability"
)

// expulsion is an Expel of a node that goes through, for the state that r has.
func expulsion(r *rig, node string) *Expel {
	c := r.m.Cluster()
	epochs := r.m.Epochs()
	keys, of := r.m.SealedState()
	b := &Expel{
		Node: node, Of: of, Incarnation: c.Incarnation + 7, Origin: fmt.Sprintf("writ/audit/test/%d", c.Incarnation+7), Reason: "broken into",
	}
	add := func(purpose string, epoch uint32, public []byte) {
		b.Keys = append(b.Keys, SealedKey{
			Purpose: purpose, Epoch: epoch, Incarnation: b.Incarnation, Sealed: []byte("sealed anew"), Public: public, Under: c.Key + 1,
		})
	}
	admin := AdminEpoch
	for _, k := range keys {
		switch {
		case k.Purpose == PurposeMaster:
		case k.Purpose == PurposeAdmin:
			admin = max(admin, k.Epoch+1)
		case strings.HasPrefix(k.Purpose, PurposeWrap):
			add(k.Purpose, k.Epoch, k.Public)
		default:
			add(k.Purpose, k.Epoch, fmt.Appendf(nil, "of incarnation %d", b.Incarnation))
		}
	}
	add(PurposeAdmin, admin, nil)
	add(PurposeMaster, epochs[len(epochs)-1].Epoch+1, nil)
	return b
}

// removedNode has a node that was a member, and a service with a credential.
func removedNode(t *testing.T) (r *rig, service Actor) {
	r = lived(t)
	r.must(KindSetMember, &SetMember{Member: testMember("n1")})
	r.must(KindSetKey, &SetKey{Key: SealedKey{Purpose: PurposeWrap + "n1", Sealed: []byte("wrapped"), Public: make([]byte, 32)}})
	r.must(KindSetKey, &SetKey{Key: SealedKey{Purpose: PurposeCA, Epoch: 1, Sealed: []byte("sealed"), Public: []byte("certificate")}})
	bad := testMember("n2")
	r.must(KindSetMember, &SetMember{Member: bad})
	r.must(KindSetKey, &SetKey{Key: SealedKey{Purpose: PurposeWrap + "n2", Sealed: []byte("wrapped"), Public: make([]byte, 32)}})
	r.must(KindAddJoinToken, &AddJoinToken{Hash: Digest{5}, Until: r.stamp + 10_000})
	id := r.issue("credential", api.AdminAudience, "operator")
	service = Actor{Name: "operator", Token: id, Branches: []capability.BranchID{bits("credential/tail")}, Audience: api.AdminAudience}
	r.refused(api.CodeConflict, KindExpel, expulsion(r, "n2")) // still a member
	bad.State = MemberLeaving
	r.must(KindSetMember, &SetMember{Member: bad})
	key := bad.Key
	if _, ok := r.m.MemberByKey(key); !ok || r.m.RemovedKey(key) {
		t.Error("a member that is leaving is one still")
	}
	r.must(KindRemoveMember, &RemoveMember{ID: "n2", Reason: "compromised"})
	if _, ok := r.m.MemberByKey(key); ok || !r.m.RemovedKey(key) || r.m.RemovedKey(Digest{1}) {
		t.Error("only the key of a removed member is one's")
	}
	return r, service
}

// TestExpelLeavesNothing: of what the node had nothing works, and what is not
// its to know goes on.
func TestExpelLeavesNothing(t *testing.T) {
	r, operator := removedNode(t)
	token := r.issue("t", "corp", "alice")
	before, _ := r.m.AuditEdge()
	origin, old := r.m.Cluster().Origin, r.m.Cluster().Incarnation
	epochs := r.m.Epochs()
	r.must(KindExpel, expulsion(r, "n2"))

	c := r.m.Cluster()
	after, _ := r.m.AuditEdge()
	previous := audit.Checkpoint{Origin: origin, Size: before.Size(), Root: before.Root()}.Text()
	if c.Incarnation != old+7 || c.Key != 1 || after.Size() != 2 || string(r.trail.records[0]) != previous ||
		!strings.Contains(string(r.trail.records[1]), `"action":"expel"`) {
		t.Errorf("%+v, audit: %q", c, r.trail.records)
	}
	for _, e := range r.m.Epochs() {
		if last := e.Epoch == epochs[len(epochs)-1].Epoch+1; e.Revoked == last {
			t.Errorf("epoch %+v", e)
		}
	}
	if !r.m.IsRevoked(token, []capability.BranchID{bits("t/tail")}) {
		t.Error("a token of before is good")
	}
	if _, err := r.as(operator, capability.TokenID{}, Digest{}, KindRekey, &Rekey{}); !errors.Is(err, capability.CodeRevoked) {
		t.Errorf("an operator's credential of before: %v", err)
	}
	for _, s := range r.m.Services() {
		if s.Joined || s.JoinHash != (Digest{}) {
			t.Errorf("the service %q can come in with what it had", s.Name)
		}
	}
	r.refused(api.CodeUnauthorized, KindJoinMember, &JoinMember{
		Hash: Digest{5}, Member: testMember("n3"), Wrap: SealedKey{Purpose: PurposeWrap + "n3", Sealed: []byte("wrapped"), Under: c.Key},
	})
	r.refused(api.CodeConflict, KindSetKey, &SetKey{Key: SealedKey{Purpose: PurposeWrap + "n2", Sealed: []byte("wrapped")}}) // under the old cluster key
	if m, ok := r.m.Member("n1"); !ok || m.State != MemberActive {
		t.Error("a member that stays is gone")
	}
	// It works, twice, and a node that replays or restores agrees.
	admin := r.record("admin", api.AdminAudience, "root")
	admin.Epoch++
	r.must(KindIssue, &Issue{Record: admin})
	fresh := r.record("fresh", "corp", "alice")
	fresh.Epoch = epochs[len(epochs)-1].Epoch + 1
	r.must(KindIssue, &Issue{Record: fresh})
	if r.m.IsRevoked(fresh.ID, []capability.BranchID{fresh.Tail}) || r.m.IsRevoked(admin.ID, []capability.BranchID{admin.Tail}) {
		t.Error("what is issued afterwards is revoked")
	}
	r.must(KindExpel, expulsion(r, "n2"))
	replayed, _ := r.replay(3)
	restored := openMachine(t, nil)
	if err := restored.Restore(bytes.NewReader(persist(t, r.m))); err != nil {
		t.Fatal(err)
	}
	if hashOf(replayed) != hashOf(r.m) || hashOf(restored) != hashOf(r.m) {
		t.Error("nodes disagree about it")
	}
	r.must(KindRevive, revival(r))
}

// TestExpelTakesOnlyNewKeys: a key that stays, is missing or is not asked for is
// refused, and so are keys that were made while others changed.
func TestExpelTakesOnlyNewKeys(t *testing.T) {
	r, _ := removedNode(t)
	index := func(b *Expel, purpose string) *SealedKey {
		return &b.Keys[slices.IndexFunc(b.Keys, func(k SealedKey) bool { return k.Purpose == purpose })]
	}
	for name, c := range map[string]struct {
		code   api.Code
		change func(*Expel)
	}{
		"of an unknown node":  {api.CodeConflict, func(b *Expel) { b.Node = "n9" }},
		"of a member":         {api.CodeConflict, func(b *Expel) { b.Node = "n1" }},
		"the CA stays":        {api.CodeInvalid, func(b *Expel) { index(b, PurposeCA).Public = []byte("certificate") }},
		"no CA":               {api.CodeInvalid, func(b *Expel) { *index(b, PurposeCA) = SealedKey{Purpose: "else", Sealed: []byte("x"), Under: 1} }},
		"the old admin epoch": {api.CodeInvalid, func(b *Expel) { index(b, PurposeAdmin).Epoch = AdminEpoch }},
		"the old master":      {api.CodeInvalid, func(b *Expel) { index(b, PurposeMaster).Epoch-- }},
		"for the node":        {api.CodeInvalid, func(b *Expel) { index(b, PurposeWrap+"n1").Purpose = PurposeWrap + "n2" }},
		"for another":         {api.CodeInvalid, func(b *Expel) { index(b, PurposeWrap+"n1").Public = []byte("another's") }},
		"one more":            {api.CodeInvalid, func(b *Expel) { b.Keys = append(b.Keys, SealedKey{Purpose: "x", Sealed: []byte("x"), Under: 1}) }},
		"the old cluster key": {api.CodeConflict, func(b *Expel) { index(b, PurposeCA).Under = 0 }},
		"keys have changed":   {api.CodeConflict, func(b *Expel) { b.Of = Digest{1} }},
		"no reason":           {api.CodeInvalid, func(b *Expel) { b.Reason = "" }},
		"the same trail":      {api.CodeInvalid, func(b *Expel) { b.Origin = r.m.Cluster().Origin }},
		"the incarnation":     {api.CodeInvalid, func(b *Expel) { b.Incarnation = r.m.Cluster().Incarnation }},
	} {
		t.Run(name, func(t *testing.T) {
			b := expulsion(r, "n2")
			c.change(b)
			r.refused(c.code, KindExpel, b)
		})
	}
	r.must(KindExpel, expulsion(r, "n2"))
}

func peerKey(name string) ed25519.PrivateKey {
	seed := bits(name)
	return ed25519.NewKeyFromSeed(append(seed[:], seed[:]...))
}

// rekeying is a change of key for a member that has the key of name.
func rekeying(r *rig, id, name, next string) *RekeyMember {
	old, key := peerKey(name), peerKey(next)
	b := &RekeyMember{
		ID: id, Old: old.Public().(ed25519.PublicKey), New: key.Public().(ed25519.PublicKey), Recipient: bytes.Repeat([]byte(next[:1]), 32),
	}
	b.Wrap = SealedKey{Purpose: PurposeWrap + id, Incarnation: 1, Sealed: []byte("wrapped"), Public: b.Recipient}
	statement := b.Statement(r.m.Cluster().ID)
	b.OldProof, b.NewProof = ed25519.Sign(old, statement), ed25519.Sign(key, statement)
	return b
}

func TestRekeyMember(t *testing.T) {
	r := formed(t)
	spki, err := x509.MarshalPKIXPublicKey(peerKey("old").Public())
	if err != nil || PeerKeyDigest(peerKey("old").Public().(ed25519.PublicKey)) != Digest(sha256.Sum256(spki)) {
		t.Fatal("the digest is not that of the SPKI", err)
	}
	m := testMember("n1")
	m.Key = PeerKeyDigest(peerKey("old").Public().(ed25519.PublicKey))
	r.must(KindSetMember, &SetMember{Member: m})
	r.must(KindSetMember, &SetMember{Member: testMember("n2")})
	sign := func(b *RekeyMember, old, next string) {
		statement := b.Statement(r.m.Cluster().ID)
		b.OldProof, b.NewProof = ed25519.Sign(peerKey(old), statement), ed25519.Sign(peerKey(next), statement)
	}
	for name, c := range map[string]struct {
		code   api.Code
		change func(*RekeyMember)
	}{
		"a stranger's old key":  {api.CodeUnauthorized, func(b *RekeyMember) { *b = *rekeying(r, "n1", "stranger", "new") }},
		"not signed by the old": {api.CodeUnauthorized, func(b *RekeyMember) { sign(b, "stranger", "new") }},
		"not signed by the new": {api.CodeUnauthorized, func(b *RekeyMember) { sign(b, "old", "stranger") }},
		"another recipient":     {api.CodeUnauthorized, func(b *RekeyMember) { b.Recipient = bytes.Repeat([]byte("x"), 32) }},
		"another node":          {api.CodeUnauthorized, func(b *RekeyMember) { b.ID = "n2" }},
		"nobody":                {api.CodeNotFound, func(b *RekeyMember) { b.ID = "n3" }},
		"a short key":           {api.CodeInvalid, func(b *RekeyMember) { b.New = b.New[:31] }},
		"the same key":          {api.CodeInvalid, func(b *RekeyMember) { *b = *rekeying(r, "n1", "old", "old") }},
		"wrapped for another":   {api.CodeInvalid, func(b *RekeyMember) { b.Wrap.Public = make([]byte, 32) }},
		"not wrapped":           {api.CodeInvalid, func(b *RekeyMember) { b.Wrap.Sealed = nil }},
		"an old cluster key":    {api.CodeConflict, func(b *RekeyMember) { b.Wrap.Under = 7 }},
	} {
		b := rekeying(r, "n1", "old", "new")
		c.change(b)
		if _, err := r.do(KindRekeyMember, b); !errors.Is(err, c.code) {
			t.Errorf("%s: %v", name, err)
		}
	}
	changes := r.m.MemberChanges()
	b := rekeying(r, "n1", "old", "new")
	r.must(KindRekeyMember, b)
	got, _ := r.m.Member("n1")
	if got.Key != PeerKeyDigest(b.New) || !bytes.Equal(got.Recipient, b.Recipient) || got.Raft != m.Raft || r.m.MemberChanges() == changes {
		t.Errorf("%+v", got)
	}
	if _, ok := r.m.MemberByKey(m.Key); ok {
		t.Error("the old key is still the member's")
	}
	r.refused(api.CodeUnauthorized, KindRekeyMember, b) // again: the old key has nothing to say
	taken := rekeying(r, "n1", "new", "other")
	r.must(KindRekeyMember, taken)
	m2 := testMember("n3")
	m2.Key = got.Key
	r.must(KindSetMember, &SetMember{Member: m2})
	r.refused(api.CodeConflict, KindRekeyMember, rekeying(r, "n1", "other", "new")) // which is n3's
}

func TestGoldenExpelCommands(t *testing.T) {
	const file = "testdata/commands-expel.txt"
	key := SealedKey{Purpose: "master", Epoch: 2, Incarnation: 3, Sealed: []byte("sealed"), Public: []byte("public"), Under: 4}
	bodies := []any{
		&Expel{Node: "n2", Of: Digest{9}, Incarnation: 7, Origin: "o7", Reason: "r", Keys: []SealedKey{key}},
		&RekeyMember{ID: "n1", Old: []byte("old"), New: []byte("new"), Recipient: []byte("to"), OldProof: []byte("p"), NewProof: []byte("q"), Wrap: key},
	}
	var got strings.Builder
	for i, body := range bodies {
		h := Header{Kind: KindExpel + Kind(i), Stamp: epochStart, Actor: system}
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
