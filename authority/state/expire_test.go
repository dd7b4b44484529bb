package state

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/writ-dev/writ/authority/api"
)

// TestLeast: in whatever order the keys come, the same ones are taken.
func TestLeast(t *testing.T) {
	for _, n := range []int{0, 1, maxExpired, maxExpired + 1, 2 * maxExpired, 7 * maxExpired} {
		var all [][]byte
		for i := range n {
			prefix := []string{"branch\x00", "token\x00"}[i%2]
			all = append(all, binary.BigEndian.AppendUint32([]byte(prefix), uint32(i)))
		}
		want := slices.SortedFunc(slices.Values(all), bytes.Compare)
		want = want[:min(n, maxExpired)]
		for seed := range uint64(3) {
			r := rand.New(rand.NewPCG(seed, 0))
			if seed > 0 {
				r.Shuffle(n, func(i, j int) { all[i], all[j] = all[j], all[i] })
			}
			var l least
			for _, k := range all {
				prefix := bytes.IndexByte(k, 0) + 1
				l.add(string(k[:prefix]), k[prefix:])
			}
			if !slices.EqualFunc(l.sorted(), want, bytes.Equal) {
				t.Errorf("%d keys, order %d: others than the least", n, seed)
			}
		}
	}
}

// TestDue: an Expire is due exactly when it would drop something, of every kind
// that there is.
func TestDue(t *testing.T) {
	r := lived(t)
	r.must(KindSetPolicy, &SetPolicy{Name: "prod", Document: []byte(`{"format":1}`)})
	r.must(KindAttest, r.evidence("c"))
	begun := r.stamp
	for i, b := range []Revoke{
		{Kind: string(api.RevokeToken), Token: tokenID(begun, "unknown")}, {Kind: string(api.RevokeHolder), Holder: holder(1)},
		{Kind: string(api.RevokeDevice), Device: testDevice.String()}, {Kind: string(api.RevokeAudience), Audience: "next"},
		{Kind: string(api.RevokeSubject), Subject: "dave"}, {Kind: string(api.RevokeBranch), Token: tokenID(begun, "unknown"), Branch: bits("own")},
	} {
		b.Reason, b.Expires = "leaked", begun+int64(1_950_000+50_000*i) // apart from one another
		r.must(KindRevoke, &b)
	}
	r.must(KindRekey, &Rekey{Audience: "next", Reason: "leaked", MintsFrom: begun + 20_000, OldUntil: begun + 1_500_000})
	r.must(KindAddEpoch, &AddEpoch{
		Key: SealedKey{Purpose: PurposeMaster, Epoch: 3, Incarnation: 1, Sealed: []byte("sealed master 3")}, MintsFrom: begun + 20_000, OldUntil: begun + 1_700_000,
	})
	r.must(KindAddJoinToken, &AddJoinToken{Hash: Digest{3}, Until: begun + 2_500_000, Voter: true})
	dropped := 0
	for at := r.stamp; at < begun+int64(40*24*time.Hour/time.Millisecond); at += 20_000 {
		if at > begun+3_000_000 {
			at += int64(time.Hour / time.Millisecond) // what is left lives for days
		}
		due, err := r.m.Due(at)
		if err != nil {
			t.Fatal(err)
		}
		before := r.m.mem.meta.Content
		r.stamp = at
		r.must(KindExpire, &Expire{T: at})
		if changed := r.m.mem.meta.Content != before; changed != due {
			t.Fatalf("%d s on: due is %v, and that it changed something %v", (at-begun)/1000, due, changed)
		}
		if due {
			dropped++
		}
	}
	if c := r.m.Counts(); dropped < 14 || c.Tokens+c.Revocations+c.Leases != 0 || len(r.m.mem.epochs) != 1 {
		t.Errorf("%d times something was dropped, and there is still %+v", dropped, c)
	}
}
