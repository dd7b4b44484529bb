package state

import (
	"bytes"
	"fmt"
	"reflect"
	"slices"
	"testing"

	bolt "go.etcd.io/bbolt"
	"pgregory.net/rapid"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/raftstore"
)

// generator draws commands over few names, so that they meet.
type generator struct {
	t     *rapid.T
	stamp int64
	n     int
	ids   []capability.TokenID
}

func (g *generator) pick(label string, n int) int { return rapid.IntRange(0, n-1).Draw(g.t, label) }

func (g *generator) token() capability.TokenID {
	if len(g.ids) == 0 || g.pick("known", 10) == 0 {
		return tokenID(g.stamp, "nobody")
	}
	return g.ids[max(0, len(g.ids)-1-g.pick("token", 12))]
}

func (g *generator) branch() capability.BranchID {
	return bits(fmt.Sprint("branch", g.pick("branch", 4)))
}

func (g *generator) chain() []capability.BranchID {
	var c []capability.BranchID
	for i := range 4 {
		if g.pick("in", 2) == 0 {
			c = append(c, bits(fmt.Sprint("branch", i)))
		}
	}
	return c
}

func (g *generator) command() []byte {
	g.n++
	if g.pick("pause", 4) == 0 {
		g.stamp += int64(rapid.IntRange(1, 200_000).Draw(g.t, "ms"))
	}
	h := Header{Stamp: g.stamp, Actor: system}
	if g.pick("late", 20) == 0 {
		h.Stamp -= 1000
	}
	if g.pick("request", 3) == 0 {
		h.Request = tokenID(g.stamp, fmt.Sprint("request", g.pick("which", 6)))
		h.Body = Digest{byte(g.pick("body", 2))}
	}
	var body any
	switch g.pick("kind", 12) {
	default:
		r := TokenRecord{
			ID: tokenID(h.Stamp, fmt.Sprint("token", g.n)), Audience: []string{"corp", "next"}[g.pick("audience", 2)],
			Subject: fmt.Sprint("subject", g.pick("subject", 3)), Owner: "o", Purpose: "p", NotAfter: h.Stamp + 1 + int64(g.pick("ttl", 600_000)),
			Epoch: uint32(1 + g.pick("epoch", 2)), Unsigned: []byte{1}, Tail: bits("branch0"),
		}
		if g.pick("holder", 4) == 0 {
			r.Holders = []string{holder(g.pick("which holder", 2))}
		}
		if g.pick("derived", 2) == 0 {
			r.Parent = &Parent{Token: g.token(), Branches: g.chain()}
			r.NotAfter = h.Stamp + 1000
		}
		g.ids = append(g.ids, r.ID)
		h.Kind, body = KindIssue, &Issue{Record: r}
	case 6, 7:
		r := &Revoke{Reason: "r", Expires: h.Stamp + int64(g.pick("ceiling", 400_000))}
		switch g.pick("of", 6) {
		case 0:
			r.Kind, r.Token = "token", g.token()
		case 1:
			r.Kind, r.Token, r.Branch = "branch", g.token(), g.branch()
		case 2:
			r.Kind, r.Subject = "subject", fmt.Sprint("subject", g.pick("subject", 3))
		case 3:
			r.Kind, r.Holder = "holder", holder(g.pick("which holder", 2))
		case 4:
			r.Kind, r.Audience = "audience", "next"
		case 5:
			r.Kind, r.Token, r.Subject = "token", g.token(), "too much"
		}
		h.Kind, body = KindRevoke, r
	case 8, 9:
		l := &Lease{ID: bits(fmt.Sprint("lease", g.n)), Token: g.token(), Chain: g.chain(), Want: uint64(g.pick("want", 40)), Lessee: SystemActor}
		for i, b := range l.Chain {
			l.Path = append(l.Path, PathPoint{b, uint64(20 + 10*i)})
		}
		if g.pick("close", 2) == 0 {
			l.Close, l.Unspent = bits(fmt.Sprint("lease", g.n-1-g.pick("which lease", 20))), uint64(g.pick("unspent", 5))
		}
		h.Kind, body = KindLease, l
	case 10:
		h.Kind, body = KindReturn, &Return{
			ID: bits(fmt.Sprint("lease", g.n-1-g.pick("which lease", 20))), Lessee: SystemActor, Unspent: uint64(g.pick("unspent", 8)),
		}
	case 11:
		h.Kind, body = KindExpire, &Expire{T: h.Stamp - int64(g.pick("ago", 100_000))}
	}
	c, err := EncodeCommand(h, body)
	if err != nil {
		g.t.Fatal(err)
	}
	return c
}

func holder(i int) string {
	return capability.HolderKey{Method: capability.HolderDPoP, Thumbprint: [32]byte{byte(i)}}.String()
}

// TestMachinesAgree applies one log to machines that live differently: one all
// along in one batch an entry, one in larger batches, one that was restored
// from a snapshot half way. Their results and their states are the same, and
// the invariants hold.
func TestMachinesAgree(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		first := formed(t)
		g := &generator{t: rt, stamp: first.stamp + 1}
		log := first.log
		for i := range rapid.IntRange(5, 40).Draw(rt, "entries") {
			var commands [][]byte
			for range rapid.IntRange(1, 3).Draw(rt, "commands") {
				commands = append(commands, g.command())
			}
			e, err := EncodeEntry(commands...)
			if err != nil {
				rt.Fatal(err)
			}
			log = append(log, raftstore.Entry{Index: uint64(3 + i), Term: 1, Command: e})
		}
		var want []any
		for _, e := range log[1:] {
			want = append(want, first.m.Apply([]raftstore.Entry{e})...)
			if e.Index%4 == 0 {
				first.invariants(rt)
			}
		}
		first.invariants(rt)
		half := rapid.IntRange(1, len(log)).Draw(rt, "half")
		batched := openMachine(t, new(trail))
		results := batched.Apply(log[:half])
		restored := openMachine(t, nil)
		if err := restored.Restore(bytes.NewReader(persist(t, batched))); err != nil {
			rt.Fatal(err)
		}
		after := restored.Apply(log[half:])
		results = append(results, batched.Apply(log[half:])...)
		if !same(results[1:], want) {
			rt.Fatal("the results depend on the batches")
		}
		if !same(after, want[half-1:]) {
			rt.Fatal("the results depend on having been restored")
		}
		if hashOf(first.m) != hashOf(batched) || hashOf(first.m) != hashOf(restored) {
			rt.Fatal("the states differ")
		}
	})
}

func same(got, want []any) bool {
	return slices.EqualFunc(got, want, func(a, b any) bool { return reflect.DeepEqual(a, b) })
}

// invariants holds the indexes in memory, and the budgets, against the file.
func (r *rig) invariants(t *rapid.T) {
	m := r.m
	if edge, _ := m.AuditEdge(); edge != r.trail.edge {
		t.Fatal("the audit trail is not what the state says")
	}
	err := m.db.Load().View(func(tx *bolt.Tx) error {
		fresh := newMemory(16, m.set.Fresh())
		if err := fresh.load(tx); err != nil { // holds the content against its hash
			return err
		}
		if fresh.leases != m.mem.leases || fresh.budgets != m.mem.budgets || !reflect.DeepEqual(fresh.revoked, m.mem.revoked) ||
			len(fresh.tokens.byID) != len(m.mem.tokens.byID) || !reflect.DeepEqual(fresh.epochs, m.mem.epochs) {
			t.Fatalf("memory is not what a restart would make of the file")
		}
		for id := range fresh.tokens.byID {
			a, b := fresh.tokens.find(id), m.mem.tokens.find(id)
			if b == nil || a.budgets != b.budgets || a.keep != b.keep || !slices.Equal(fresh.tokens.children(id), m.mem.tokens.children(id)) {
				t.Fatalf("token %v: %+v and %+v", id, a, b)
			}
			if (a.child != 0) != has(fresh.tokens.parents, fresh.tokens.byID[id]) || (b.child != 0) != has(m.mem.tokens.parents, m.mem.tokens.byID[id]) {
				t.Fatalf("token %v: parents", id)
			}
			// What hangs on a dead token is dead.
			if rec, err := m.Token(id); err != nil || rec.Parent != nil && m.mem.tokens.find(rec.Parent.Token) != nil {
				p := m.mem.tokens.find(rec.Parent.Token)
				if m.mem.isRevoked(p, rec.Parent.Branches) && !m.mem.isRevoked(b, nil) && b.notAfter > m.mem.meta.MinStamp {
					t.Fatalf("token %v outlives what it was derived from", id)
				}
			}
		}
		return r.checkBudgets(t, tx)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func has(m map[uint32]struct{}, k uint32) bool { _, ok := m[k]; return ok }

// checkBudgets: what is left and what is out on lease is never more than the
// limit, and each lease belongs to its budgets.
func (r *rig) checkBudgets(t *rapid.T, tx *bolt.Tx) error {
	out := make(map[string]uint64)
	open := 0
	err := tx.Bucket(bucketLeases).ForEach(func(k, v []byte) error {
		var l leaseRecord
		mustDecode(v, &l)
		open++
		for _, b := range l.Path {
			out[string(join(k[:16], b[:]))] += l.Granted
		}
		if string(tx.Bucket(bucketLeaseTokens).Get(k[16:])) != string(k[:16]) {
			t.Fatal("a lease that cannot be found by its id")
		}
		return nil
	})
	if err != nil {
		return err
	}
	if n := tx.Bucket(bucketLeaseTokens).Stats().KeyN; n != open {
		t.Fatalf("%d leases, %d ids", open, n)
	}
	return tx.Bucket(bucketBudgets).ForEach(func(k, v []byte) error {
		b := decodeBudget(v)
		if b.remaining+out[string(k)] > b.limit {
			t.Fatalf("budget of %d: %d left and %d on lease", b.limit, b.remaining, out[string(k)])
		}
		return nil
	})
}

// TestManyBudgets: a holder makes budgets of its own by the thousand, and costs
// the authority no more than it allows a token.
func TestManyBudgets(t *testing.T) {
	r := formed(t)
	id := r.issue("a", "corp", "alice")
	granted, refused := 0, 0
	for i := range 3000 {
		b := capability.BranchID(bits(fmt.Sprint("own", i)))
		_, err := r.do(KindLease, &Lease{
			ID: bits(fmt.Sprint("lease", i)), Token: id, Chain: []capability.BranchID{b}, Path: []PathPoint{{b, 1 << 40}}, Want: 1, Lessee: SystemActor,
		})
		switch {
		case err == nil:
			granted++
		case capability.CodeOf(err) == capability.CodeTooLarge:
			refused++
		default:
			t.Fatal(err)
		}
	}
	if c := r.m.Counts(); granted != MaxLiveBudgets || refused != 3000-MaxLiveBudgets || c.Budgets != MaxLiveBudgets || c.Leases != MaxLiveBudgets {
		t.Errorf("%d granted, %d refused, %+v", granted, refused, c)
	}
	// Those that it has go on.
	b := capability.BranchID(bits("own0"))
	r.must(KindLease, &Lease{
		ID: bits("another"), Token: id, Chain: []capability.BranchID{b}, Path: []PathPoint{{b, 1 << 40}}, Want: 1, Lessee: SystemActor,
	})
	other := r.issue("b", "corp", "alice")
	r.must(KindLease, &Lease{
		ID: bits("of another"), Token: other, Chain: []capability.BranchID{b}, Path: []PathPoint{{b, 1}}, Want: 1, Lessee: SystemActor,
	})
}

// TestEventsResume: from any event, what follows is complete, also where
// several share an index, and what is no longer kept is said to be.
func TestEventsResume(t *testing.T) {
	r := formed(t)
	a := r.issue("a", "corp", "alice")
	for i := range 5 {
		r.derive(fmt.Sprint("child", i), a, "left")
	}
	r.must(KindRevoke, &Revoke{Kind: string(api.RevokeToken), Token: a, Reason: "leaked", Expires: r.stamp})
	all, through, err := r.m.Events(nil, 0, 1<<20)
	if err != nil || through != r.index || len(all) != 1+5+6 {
		t.Fatalf("%d events through %d of %d: %v", len(all), through, r.index, err)
	}
	for max := 1; max < 14; max++ {
		var got []Event
		for at := uint64(0); at < through; {
			list, next, err := r.m.Events(nil, at, max)
			if err != nil || next <= at {
				t.Fatalf("after %d: through %d, %v", at, next, err)
			}
			got, at = append(got, list...), next
		}
		if !reflect.DeepEqual(got, all) {
			t.Fatalf("%d at a time: %d of %d events", max, len(got), len(all))
		}
	}
	if list, next, err := r.m.Events(nil, through, 1); err != nil || len(list) != 0 || next != through {
		t.Errorf("at the end: %d, %d, %v", len(list), next, err)
	}
	for i := range 2000 { // more than the ring of the tests holds
		r.issue(fmt.Sprint("more", i), "corp", "alice")
	}
	if _, _, err := r.m.Events(nil, through, 1); err != ErrTooOld {
		t.Errorf("long ago: %v", err)
	}
	if list, _, err := r.m.Events(nil, r.index-1024, 1<<20); err != nil || len(list) != 1024 {
		t.Errorf("just kept: %d, %v", len(list), err)
	}
}

// TestStampsTellBeforeFromAfter: a token issued after a cut-off can be told from
// one issued before, also within the millisecond.
func TestStampsTellBeforeFromAfter(t *testing.T) {
	r := formed(t)
	r.issue("before", "corp", "bob")
	cut := &Revoke{Kind: string(api.RevokeSubject), Subject: "bob", Reason: "left", Expires: r.stamp + 100_000}
	r.must(KindRevoke, cut)
	same := r.record("after", "corp", "bob")
	same.ID = tokenID(r.stamp, "after")
	if _, err := r.now(system, capability.TokenID{}, Digest{}, KindIssue, &Issue{Record: same}); err != ErrStamp {
		t.Errorf("in the cut-off's own millisecond: %v", err)
	}
	if least := r.m.Stamp(); least != r.stamp+1 {
		t.Errorf("the next stamp is %d, the cut-off's was %d", least, r.stamp)
	}
	id := r.issue("after", "corp", "bob")
	if r.m.IsRevoked(id, nil) {
		t.Error("what came after the cut-off is revoked")
	}
	// Other commands may share a millisecond.
	two := r.record("one", "corp", "bob")
	r.must(KindIssue, &Issue{Record: two})
	two = r.record("two", "corp", "bob")
	two.ID = tokenID(r.stamp, "two")
	if _, err := r.now(system, capability.TokenID{}, Digest{}, KindIssue, &Issue{Record: two}); err != nil {
		t.Error(err)
	}
	r.stamp -= 2
	if _, err := r.do(KindExpire, &Expire{T: 1}); err != ErrStamp {
		t.Errorf("a stamp that falls: %v", err)
	}
}
