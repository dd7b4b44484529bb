package state

import (
	"reflect"
	"testing"

	"github.com/writ-dev/writ/authority/api"
)

// joining is the command by which a node joins with a token.
func joining(token Digest, m MemberRecord) *JoinMember {
	return &JoinMember{Hash: token, Member: m, Wrap: SealedKey{Purpose: PurposeWrap + m.ID, Incarnation: 1, Sealed: []byte("wrapped")}}
}

// TestJoinTokenIsGoodOnce: a token takes one node in, as what the token says, before
// it ends; what it takes in is a new name with a new key.
func TestJoinTokenIsGoodOnce(t *testing.T) {
	r := formed(t)
	r.must(KindSetMember, &SetMember{Member: testMember("n1")})
	token := func(name byte, voter bool, lives int64) Digest {
		r.must(KindAddJoinToken, &AddJoinToken{Hash: Digest{name}, Until: r.stamp + 1 + lives, Voter: voter})
		return Digest{name}
	}
	r.refused(api.CodeUnauthorized, KindJoinMember, joining(Digest{9}, testMember("n2"))) // nobody's

	late := token(1, true, 10)
	r.stamp += 9 // the join comes a millisecond later, when it has just ended
	r.refused(api.CodeUnauthorized, KindJoinMember, joining(late, testMember("n2")))

	good := token(2, false, 1000)
	for name, j := range map[string]*JoinMember{
		"another's key":  joining(good, MemberRecord{ID: "n2", Key: testMember("n1").Key, Recipient: make([]byte, 32), Raft: "n2:1", State: MemberActive}),
		"another's name": joining(good, MemberRecord{ID: "n1", Key: Digest{7}, Recipient: make([]byte, 32), Raft: "n1:1", State: MemberActive}),
	} {
		if _, err := r.do(KindJoinMember, j); err == nil {
			t.Errorf("joined with %s", name)
		}
	}
	// The token decides what the node is, and not the node.
	got := r.must(KindJoinMember, joining(good, testMember("n2"))).(*MemberRecord)
	if got.Voter || got.State != MemberActive {
		t.Errorf("joined with a replica's token: %+v", got)
	}
	if again := r.must(KindJoinMember, joining(good, testMember("n2"))).(*MemberRecord); again.Joined != got.Joined {
		t.Errorf("its answer was lost, and the next is another: %+v", again)
	}
	r.refused(api.CodeUnauthorized, KindJoinMember, joining(good, testMember("n3")))
	other := testMember("n2")
	other.Key = Digest{8}
	r.refused(api.CodeUnauthorized, KindJoinMember, joining(good, other))
}

// TestMemberIsItsKey: a name and a key belong together for good; once removed,
// neither comes back, and the cluster key is not wrapped for it any more.
func TestMemberIsItsKey(t *testing.T) {
	r := formed(t)
	r.must(KindSetMember, &SetMember{Member: testMember("n1")})
	for name := range byte(3) {
		r.must(KindAddJoinToken, &AddJoinToken{Hash: Digest{name + 1}, Until: r.stamp + 10_000, Voter: true})
	}
	n2 := testMember("n2")
	r.must(KindJoinMember, joining(Digest{1}, n2))
	stranger := n2
	stranger.Key = Digest{7}
	r.refused(api.CodeConflict, KindSetMember, &SetMember{Member: stranger})
	r.refused(api.CodeConflict, KindRemoveMember, &RemoveMember{ID: "n2", Reason: "not leaving yet"})

	n2.State = MemberLeaving
	r.must(KindSetMember, &SetMember{Member: n2})
	r.must(KindRemoveMember, &RemoveMember{ID: "n2", Reason: "replaced"})
	if r.m.SealedKey(PurposeWrap+"n2", 0) != nil {
		t.Error("the cluster key is wrapped for a removed node")
	}
	if _, ok := r.m.MemberByKey(n2.Key); ok || !r.m.RemovedKey(n2.Key) {
		t.Error("the key of a removed node is taken for a member's")
	}
	n2.State = MemberActive
	r.refused(api.CodeConflict, KindSetMember, &SetMember{Member: n2})
	fresh := n2
	fresh.Key = Digest{7}
	r.refused(api.CodeConflict, KindJoinMember, joining(Digest{2}, fresh)) // the name, with a new key
	renamed := n2
	renamed.ID = "n3"
	r.refused(api.CodeConflict, KindJoinMember, joining(Digest{2}, renamed)) // the key, under a new name
	r.must(KindJoinMember, joining(Digest{2}, testMember("n4")))             // and the token was not spent on any of it
}

// TestRotationsAreMadeOnce: a master key, an audience's next key or a service that is
// asked for again, the answer lost, is the one that there is and not another.
func TestRotationsAreMadeOnce(t *testing.T) {
	r := formed(t)
	for _, c := range []struct {
		kind Kind
		body func() any // as another leader composes it: the stamp, and so what it says, is another
	}{
		{KindAddEpoch, func() any {
			next := uint32(len(r.m.Epochs())) + 1
			return &AddEpoch{Key: SealedKey{Purpose: PurposeMaster, Epoch: next, Sealed: []byte("sealed")}, MintsFrom: r.stamp + 10_000, OldUntil: r.stamp + 2_000_000}
		}},
		{KindRekey, func() any {
			return &Rekey{Audience: "corp", Reason: "leaked", MintsFrom: r.stamp + 10_000, OldUntil: r.stamp + 2_000_000}
		}},
		{KindAddService, func() any {
			return &AddService{Name: "files", Audiences: []string{"corp"}, JoinHash: Digest{8}, JoinUntil: r.stamp + 1000}
		}},
	} {
		request := tokenID(r.stamp, "rotation")
		first, err := r.as(system, request, Digest{1}, c.kind, c.body())
		if err != nil {
			t.Fatalf("kind %d: %v", c.kind, err)
		}
		epochs := len(r.m.Epochs())
		again, err := r.as(system, request, Digest{1}, c.kind, c.body())
		if err != nil || !reflect.DeepEqual(again, first) || len(r.m.Epochs()) != epochs {
			t.Errorf("kind %d: %+v and then %+v, %v", c.kind, first, again, err)
		}
	}
}
