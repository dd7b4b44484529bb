package authority

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/state"
	"github.com/writ-dev/writ/capability"
)

// listener collects a feed's events.
type listener struct {
	events chan *api.FeedEvent
	pings  chan uint64
	done   chan error
	stop   context.CancelFunc
}

func listen(t testing.TB, a *Authority, c Caller, req FeedRequest) *listener {
	ctx, cancel := context.WithCancel(t.Context())
	l := &listener{make(chan *api.FeedEvent, 10_000), make(chan uint64), make(chan error, 1), cancel}
	req.Pings = l.pings
	go func() {
		l.done <- a.Feed(ctx, c, req, func(e *api.FeedEvent) error {
			l.events <- e
			return nil
		})
	}()
	t.Cleanup(cancel)
	return l
}

// ping asks for a pong.
func (l *listener) ping(t testing.TB, nonce uint64) {
	t.Helper()
	select {
	case l.pings <- nonce:
	case err := <-l.done:
		t.Fatalf("the feed ended: %v", err)
	case <-time.After(20 * time.Second):
		t.Fatal("the feed takes no ping")
	}
}

// next returns the next event that is no checkpoint.
func (l *listener) next(t testing.TB) *api.FeedEvent {
	t.Helper()
	for {
		select {
		case e := <-l.events:
			if e.Checkpoint == "" {
				return e
			}
		case err := <-l.done:
			t.Fatalf("the feed ended: %v", err)
		case <-time.After(20 * time.Second):
			t.Fatal("no event")
		}
	}
}

// upTo returns what comes before the first event that f selects, and that.
func (l *listener) upTo(t testing.TB, f func(*api.FeedEvent) bool) (before []*api.FeedEvent, e *api.FeedEvent) {
	t.Helper()
	for {
		if e = l.next(t); f(e) {
			return before, e
		}
		before = append(before, e)
	}
}

func isPong(nonce uint64) func(*api.FeedEvent) bool {
	return func(e *api.FeedEvent) bool { return e.Pong != nil && e.Pong.Nonce == nonce }
}

func show(events []*api.FeedEvent) string {
	b, _ := json.Marshal(events)
	return string(b)
}

func endOfSnapshot(e *api.FeedEvent) bool { return e.Snapshot == "end" }

// TestPongComesAfterWhatWasAcknowledged: a revocation that was acknowledged
// before the ping is streamed before its pong.
func TestPongComesAfterWhatWasAcknowledged(t *testing.T) {
	a, root := openNode(t, testConfig(t))
	svc := joined(t, a, root, &api.ServiceRequest{Name: "files", Audiences: []string{"corp"}})
	l := listen(t, a, svc, FeedRequest{Audiences: []string{"corp"}, Registered: true})
	hello := l.next(t)
	if hello.Hello == nil || hello.Hello.Bound != 1000 || hello.At.Incarnation != 1 {
		t.Fatalf("%+v", hello)
	}
	l.upTo(t, endOfSnapshot)
	for nonce := uint64(1); nonce <= 5; nonce++ {
		issued, err := a.Issue(t.Context(), Call{Caller: root}, issueRequest("action read"))
		if err != nil {
			t.Fatal(err)
		}
		revoked, err := a.Revoke(t.Context(), Call{Caller: root}, &api.RevokeRequest{Kind: api.RevokeToken, Token: issued.ID.String(), Reason: "leaked"})
		if err != nil {
			t.Fatal(err)
		}
		l.ping(t, nonce)
		before, pong := l.upTo(t, isPong(nonce))
		if len(before) != 2 || before[0].Issued == nil || before[0].Issued.Branch != issued.Branch || before[0].At.Index != issued.Index ||
			before[1].Revoke == nil || before[1].Revoke.Token != issued.ID.String() || before[1].At.Index != revoked.Index {
			t.Fatalf("token %v at %d, revoked at %d; before the pong came %s", issued.ID, issued.Index, revoked.Index, show(before))
		}
		if pong.At.Index < revoked.Index {
			t.Errorf("the pong vouches for %d, the revocation has %d", pong.At.Index, revoked.Index)
		}
	}
	// Who has no more pings still has a feed.
	close(l.pings)
	revoked, err := a.Revoke(t.Context(), Call{Caller: root}, &api.RevokeRequest{Kind: api.RevokeSubject, Subject: "agent", Reason: "leaked"})
	if err != nil {
		t.Fatal(err)
	}
	if e := l.next(t); e.Revoke == nil || e.At.Index != revoked.Index {
		t.Errorf("after the last ping came %s", show([]*api.FeedEvent{e}))
	}
}

// TestFeedResumes: from a cursor, what came since; the cursor of part of an
// index does not skip the rest of it; other audiences see nothing.
func TestFeedResumes(t *testing.T) {
	a, root := openNode(t, testConfig(t))
	svc := joined(t, a, root, &api.ServiceRequest{Name: "files", Audiences: []string{"corp", "next"}, Derive: []string{"next"}})
	issued, err := a.Issue(t.Context(), Call{Caller: root}, issueRequest("action read"))
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := a.Derive(t.Context(), Call{Caller: svc}, &api.DeriveRequest{Token: issued.Token, Audience: "next"}); err != nil {
			t.Fatal(err)
		}
	}
	from := a.cursor()
	revoked, err := a.Revoke(t.Context(), Call{Caller: root}, &api.RevokeRequest{Kind: api.RevokeToken, Token: issued.ID.String(), Reason: "leaked"})
	if err != nil || revoked.Reached != 3 {
		t.Fatal(revoked, err)
	}
	l := listen(t, a, svc, FeedRequest{Audiences: []string{"corp", "next"}, From: from})
	hello := l.next(t)
	if hello.At != from {
		t.Errorf("resumes at %v, asked for %v", hello.At, from)
	}
	cursors := []api.Cursor{from}
	for i := range 4 {
		e := l.next(t)
		if e.Revoke == nil || (e.At.Index == revoked.Index) != (i == 3) {
			t.Fatalf("event %d: %+v", i, e)
		}
		cursors = append(cursors, e.At)
	}
	for i, at := range cursors[:4] {
		l := listen(t, a, svc, FeedRequest{Audiences: []string{"corp", "next"}, From: at})
		l.next(t)
		for range 4 { // all of the index again, or nothing is missed
			if e := l.next(t); e.Revoke == nil {
				t.Fatalf("resumed after event %d: %+v", i, e)
			}
		}
		l.stop()
	}
	other := listen(t, a, root, FeedRequest{Audiences: []string{"elsewhere"}, From: from, Registered: true})
	other.next(t)
	other.ping(t, 1)
	if before, _ := other.upTo(t, isPong(1)); len(before) != 0 {
		t.Errorf("another audience was told %+v", before[0])
	}
}

// TestFeedSnapshot: whoever comes from nowhere, or from another incarnation,
// gets everything that is in force, between begin and end.
func TestFeedSnapshot(t *testing.T) {
	a, root := openNode(t, testConfig(t))
	live, err := a.Issue(t.Context(), Call{Caller: root}, issueRequest("action read"))
	if err != nil {
		t.Fatal(err)
	}
	dead, err := a.Issue(t.Context(), Call{Caller: root}, issueRequest("action read"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.RevokeSelf(t.Context(), Call{}, &api.SelfRevokeRequest{Token: dead.Token, Reason: "done"}); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Revoke(t.Context(), Call{Caller: root}, &api.RevokeRequest{Kind: api.RevokeSubject, Subject: "bob", Reason: "left"}); err != nil {
		t.Fatal(err)
	}
	for name, from := range map[string]api.Cursor{"nowhere": {}, "another incarnation": {Incarnation: 0, Index: 3}} {
		l := listen(t, a, root, FeedRequest{Audiences: []string{"corp"}, From: from, Registered: true})
		l.next(t)
		if e := l.next(t); e.Snapshot != "begin" {
			t.Fatalf("%s: %+v", name, e)
		}
		before, end := l.upTo(t, endOfSnapshot)
		found := map[string]bool{}
		for _, e := range before {
			switch {
			case e.At != end.At:
				t.Errorf("%s: an event of the snapshot at %v, its end at %v", name, e.At, end.At)
			case e.Issued != nil:
				found["issued "+e.Issued.Token.String()] = true
			case e.Revoke != nil:
				found["revoked "+e.Revoke.Token+e.Revoke.Subject] = true
			}
		}
		if len(before) != 4 || !found["issued "+live.ID.String()] || !found["issued "+dead.ID.String()] ||
			!found["revoked "+dead.ID.String()] || !found["revoked bob"] {
			t.Errorf("%s: %d events, %v", name, len(before), found)
		}
		l.stop()
	}
	ahead := a.cursor()
	ahead.Index += 1000
	err = a.Feed(t.Context(), root, FeedRequest{Audiences: []string{"corp"}, From: ahead}, func(*api.FeedEvent) error { return nil })
	wantCode(t, err, capability.CodeUnavailable) // a node that is behind does not answer
}

// TestFeedFromTooFarBack: whoever comes from before what is kept gets a snapshot, and
// all that was revoked since is in it.
func TestFeedFromTooFarBack(t *testing.T) {
	cfg := testConfig(t)
	a, root := openNode(t, cfg)
	from := a.cursor()
	if _, err := a.Revoke(t.Context(), Call{Caller: root}, &api.RevokeRequest{Kind: api.RevokeSubject, Subject: "bob", Reason: "left"}); err != nil {
		t.Fatal(err)
	}
	if err := a.Compact(t.Context()); err != nil {
		t.Fatal(err)
	}
	closeNode(t, a)
	cfg.Bootstrap = false
	a, _ = openNode(t, cfg)
	if _, _, err := a.machine.Events(nil, from.Index, 1); !errors.Is(err, state.ErrTooOld) {
		t.Fatalf("it is not too far back: %v", err)
	}
	l := listen(t, a, root, FeedRequest{Audiences: []string{"corp"}, From: from})
	if e := l.next(t); e.Hello == nil {
		t.Fatalf("%+v", e)
	}
	if e := l.next(t); e.Snapshot != "begin" || e.At.Index <= from.Index {
		t.Fatalf("no snapshot: %+v", e)
	}
	before, _ := l.upTo(t, endOfSnapshot)
	if len(before) != 1 || before[0].Revoke == nil || before[0].Revoke.Subject != "bob" {
		t.Errorf("in the snapshot: %s", show(before))
	}
}

// TestFeedEndsWithItsCredential, and with the node.
func TestFeedEndsWithItsCredential(t *testing.T) {
	a, root := openNode(t, testConfig(t))
	svc := joined(t, a, root, &api.ServiceRequest{Name: "files", Audiences: []string{"corp"}})
	err := a.Feed(t.Context(), svc, FeedRequest{Audiences: []string{"other"}}, func(*api.FeedEvent) error { return nil })
	wantCode(t, err, capability.CodeResourceDenied)
	l := listen(t, a, svc, FeedRequest{Audiences: []string{"corp"}})
	l.upTo(t, endOfSnapshot)
	if err := a.RemoveService(t.Context(), Call{Caller: root}, "files"); err != nil {
		t.Fatal(err)
	}
	wantCode(t, <-l.done, capability.CodeRevoked)
	second := listen(t, a, root, FeedRequest{Audiences: []string{"corp"}})
	second.upTo(t, endOfSnapshot)
	closeNode(t, a)
	wantCode(t, <-second.done, capability.CodeUnavailable)
	if err := a.Feed(t.Context(), root, FeedRequest{Audiences: []string{"corp"}}, func(*api.FeedEvent) error { return nil }); err == nil {
		t.Error("a closed node streams")
	}
}

// TestWarmFeed: is told with the next pong, of all before it, and without pings
// in time.
func TestWarmFeed(t *testing.T) {
	a, root := openNode(t, testConfig(t))
	warm := listen(t, a, root, FeedRequest{Audiences: []string{"corp"}, Warm: true})
	warm.upTo(t, endOfSnapshot)
	first := listen(t, a, root, FeedRequest{Audiences: []string{"corp"}})
	first.upTo(t, endOfSnapshot)
	revoked := func(e *api.FeedEvent) bool { return e.Revoke != nil }
	waited := 0
	for nonce := range uint64(10) {
		warm.ping(t, 100+nonce)
		warm.upTo(t, isPong(100+nonce))
		subject := fmt.Sprint("agent-", nonce)
		if _, err := a.Revoke(t.Context(), Call{Caller: root}, &api.RevokeRequest{Kind: api.RevokeSubject, Subject: subject, Reason: "leaked"}); err != nil {
			t.Fatal(err)
		}
		first.upTo(t, revoked)
		if len(warm.events) == 0 {
			waited++ // but where a bound had just passed
		}
		warm.ping(t, nonce)
		before, _ := warm.upTo(t, isPong(nonce))
		if len(before) != 1 || before[0].Revoke == nil || before[0].Revoke.Subject != subject {
			t.Fatalf("before the pong came %s", show(before))
		}
	}
	if waited < 5 {
		t.Errorf("told at once %d times of 10", 10-waited)
	}
	if _, err := a.Revoke(t.Context(), Call{Caller: root}, &api.RevokeRequest{Kind: api.RevokeSubject, Subject: "last", Reason: "leaked"}); err != nil {
		t.Fatal(err)
	}
	warm.upTo(t, revoked)
}

// TestFeedsShareCheckpoints: one is signed a second, and one of another incarnation
// is none.
func TestFeedsShareCheckpoints(t *testing.T) {
	a, root := openNode(t, testConfig(t))
	now := time.Now()
	var last signedCheckpoint
	for i, k := range []struct {
		incarnation uint64
		after       time.Duration
		anew        bool
	}{{1, 0, true}, {1, signEvery - 1, false}, {1, signEvery, true}, {2, signEvery, true}, {2, 0, true}} {
		if _, err := a.Issue(t.Context(), Call{Caller: root}, issueRequest("action read")); err != nil {
			t.Fatal(err)
		}
		c, err := a.feedCheckpoint(k.incarnation, now.Add(k.after))
		if err != nil {
			t.Fatal(err)
		}
		if anew := c.size > last.size; anew != k.anew || anew == (c.text == last.text) {
			t.Errorf("%d: size %d after %d", i, c.size, last.size)
		}
		last = c
	}
}

// TestPingsShareReads: many pings, few quorum reads, each begun after the pings it serves.
func TestPingsShareReads(t *testing.T) {
	a, root := openNode(t, testConfig(t))
	l := listen(t, a, root, FeedRequest{Audiences: []string{"corp"}})
	l.upTo(t, endOfSnapshot)
	before := a.Metrics().ReadIndexes
	for round := range 4 {
		for i := range uint64(maxPendingPings) {
			l.ping(t, uint64(round)*100+i)
		}
		for i := range uint64(maxPendingPings) {
			l.upTo(t, isPong(uint64(round)*100+i))
		}
	}
	if reads := a.Metrics().ReadIndexes - before; reads > 4*maxPendingPings/2 {
		t.Errorf("%d reads for %d pings", reads, 4*maxPendingPings)
	}
}

// TestPingsAreBounded: of those that wait for their pong a stream takes sixteen; how
// fast it is asked makes a node remember no more.
func TestPingsAreBounded(t *testing.T) {
	a, root := openNode(t, testConfig(t))
	l := listen(t, a, root, FeedRequest{Audiences: []string{"corp"}})
	l.upTo(t, endOfSnapshot)
	most, pongs := 0, 0
	for taken := 1; taken <= 10*maxPendingPings; taken++ {
		l.ping(t, uint64(taken))
		for more := true; more; { // what came before this ping was taken
			select {
			case e := <-l.events:
				if e.Pong != nil {
					pongs++
				}
			default:
				more = false
			}
		}
		most = max(most, taken-pongs)
	}
	if most > maxPendingPings {
		t.Errorf("%d pings waited at a time", most)
	}
}

// TestFeedIsOfItsIncarnation: one that was opened before a new incarnation began tells
// nothing of the new one under the old one's cursor.
func TestFeedIsOfItsIncarnation(t *testing.T) {
	a, root := openNode(t, testConfig(t))
	f := &feed{caller: root, endsMillis: 1 << 60, at: a.cursor()}
	if err := a.recheck(f); err != nil {
		t.Fatal(err)
	}
	f.at.Incarnation--
	wantCode(t, a.recheck(f), capability.CodeUnavailable)
}

// TestNodeRefusesWhenStale: a node that no quorum has confirmed within the bound
// denies, as every verifier does.
func TestNodeRefusesWhenStale(t *testing.T) {
	a, root := openNode(t, testConfig(t))
	r := a.fresh.revocations()
	mark := r.Mark()
	if !r.Within(mark, time.Hour) || mark == 0 {
		t.Fatal("not fresh after opening")
	}
	if r.Within(mark-int64(2*a.fresh.bound)-int64(time.Minute), 0) {
		t.Error("an old mark is within the bound")
	}
	stale := nodeRevocations{a.machine.Revocations(), &freshness{bound: a.fresh.bound, clock: bootTime}}
	v, err := capability.NewVerifier(keysOf{a.keys, true}, []string{api.AdminAudience}, a.checker, capability.WithRevocations(stale, 0))
	if err != nil {
		t.Fatal(err)
	}
	var g capability.Grant
	err = v.VerifyText(t.Context(), &g, root.Credential.Text(), &capability.Request{Now: time.Now()})
	wantCode(t, err, capability.CodeStaleRevocations)
	if err := a.Ready(t.Context()); err != nil {
		t.Errorf("ready: %v", err)
	}
}

// TestProposerGivesUpCleanly: a caller who leaves before his turn changes nothing.
func TestProposerGivesUpCleanly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &proposer{stop: make(chan struct{})}
		for i := range p.queues {
			p.queues[i] = make(chan *change, 1)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		c := new(change)
		_, _, err := p.propose(ctx, laneIssue, c) // nobody composes
		wantCode(t, err, api.CodeOverloaded)
		if !c.claimed.Load() {
			t.Error("the proposer could still take it")
		}
		_, _, err = p.propose(t.Context(), laneIssue, new(change)) // the lane is full
		wantCode(t, err, api.CodeOverloaded)
		taken := &change{}
		go func() {
			c := <-p.queues[laneLease]
			c.claimed.Store(true)
		}()
		ctx, cancel = context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, _, err = p.propose(ctx, laneLease, taken)
		wantCode(t, err, api.CodeIndeterminate)
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Error("the cause is lost")
		}
	})
}

// TestPongWaitsForItsIndex: a ping whose quorum read vouches for more than has
// been streamed is not answered yet.
func TestPongWaitsForItsIndex(t *testing.T) {
	var sent []*api.FeedEvent
	f := &feed{
		at:      api.Cursor{Incarnation: 1, Index: 5},
		pending: 3,
		pongs:   []pong{{nonce: 1, index: 6}, {nonce: 2, index: 5}, {nonce: 3, index: 7}},
		send:    func(e *api.FeedEvent) error { sent = append(sent, e); return nil },
	}
	a := new(Authority)
	for _, want := range []uint64{2, 1, 3} {
		if err := a.sendPongs(f); err != nil || len(sent) != 1 || sent[0].Pong.Nonce != want || sent[0].At != f.at {
			t.Fatalf("at %d: %s, %v", f.at.Index, show(sent), err)
		}
		sent, f.at.Index = nil, f.at.Index+1
	}
	if f.pending != 0 || len(f.pongs) != 0 {
		t.Errorf("%d pending, %d kept", f.pending, len(f.pongs))
	}
}

// TestReadBeginsAfterItsPings: who asks while a quorum read is under way is
// served by the next, since that one may have begun before what he must see;
// and a read that fails serves nobody.
func TestReadBeginsAfterItsPings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex // over reads and served
		var reads int
		var served []string
		var f *freshness
		now := int64(0)
		ask := func(who string) {
			f.after(func(uint64) {
				mu.Lock()
				defer mu.Unlock()
				served = append(served, who)
			})
		}
		f = &freshness{
			bound: time.Second, window: 100 * time.Millisecond, asked: make(chan struct{}, 1),
			clock: func() int64 { now++; return now }, through: func() uint64 { return 7 },
		}
		f.quorum = func(context.Context) (uint64, error) {
			mu.Lock()
			defer mu.Unlock()
			switch reads++; reads {
			case 1:
				ask("during the first")
			case 2:
				return 0, errors.New("no quorum")
			}
			return 0, nil
		}
		check := func(n int, mark int64, want ...string) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if reads != n || !slices.Equal(served, want) || f.mark.Load() != mark {
				t.Fatalf("after read %d (want %d): %v served, mark %d", reads, n, served, f.mark.Load())
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		ask("before")
		go f.run(ctx)
		check(1, 1, "before")
		time.Sleep(110 * time.Millisecond)
		check(2, 1, "before") // it failed
		time.Sleep(100 * time.Millisecond)
		check(3, 3, "before", "during the first")
	})
}
