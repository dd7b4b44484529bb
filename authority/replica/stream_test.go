package replica

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/capability"
)

// offline is a replica without streams, on a clock that the test turns.
type offline struct {
	*Replica
	t     *testing.T
	clock int64
}

func newOffline(t *testing.T) *offline {
	o := &offline{t: t, clock: int64(time.Hour)}
	r := &Replica{
		cfg: Config{Audiences: []string{"corp"}, Registered: true}, log: slog.New(slog.DiscardHandler),
		clock: func() int64 { return o.clock }, now: time.Now,
		refetch: make(chan struct{}, 1), points: make(chan string, 1),
	}
	r.bound.Store(int64(time.Second))
	r.fresh.Store(never)
	r.data.Store(newDataset(0))
	r.keys.Store(&keyring{})
	r.feed.changed = make(chan struct{})
	r.ctx, r.cancel = context.WithCancel(t.Context())
	cfg := LeaseConfig{}
	if err := cfg.complete(); err != nil {
		t.Fatal(err)
	}
	r.leases = newBlocks(r.ctx, cfg, newBank(0), r.clock, time.Now, rand.Reader, r.log)
	o.Replica = r
	return o
}

// stream opens a stream that has said hello.
func (o *offline) stream(slot int, incarnation uint64) *stream {
	return &stream{r: o.Replica, slot: slot, id: "s", waiting: map[uint64]ping{}, at: api.Cursor{Incarnation: incarnation}}
}

func (o *offline) must(s *stream, events ...api.FeedEvent) {
	o.t.Helper()
	for i := range events {
		if err := s.apply(&events[i]); err != nil {
			o.t.Fatalf("event %d, %+v: %v", i, events[i], err)
		}
	}
}

func at(incarnation, index uint64) api.Cursor {
	return api.Cursor{Incarnation: incarnation, Index: index}
}

func tokenID(n byte) capability.TokenID {
	return capability.NewTokenID(1_700_000_000_000, [10]byte{n, n})
}

func revokeEvent(c api.Cursor, n byte) api.FeedEvent {
	return api.FeedEvent{At: c, Revoke: &api.FeedRevocation{Kind: api.RevokeToken, Token: tokenID(n).String(), Expires: 1 << 42}}
}

func issuedEvent(c api.Cursor, n byte) api.FeedEvent {
	return api.FeedEvent{At: c, Issued: &api.FeedIssued{Token: tokenID(n), Branch: capability.BranchID{n}, Expires: 1 << 42}}
}

func snapshot(c api.Cursor, events ...api.FeedEvent) []api.FeedEvent {
	out := []api.FeedEvent{{At: c, Snapshot: "begin"}}
	out = append(out, events...)
	return append(out, api.FeedEvent{At: c, Snapshot: "end"})
}

// ping sends a ping and returns the pong for it.
func (o *offline) ping(s *stream, c api.Cursor) api.FeedEvent {
	return api.FeedEvent{At: c, Pong: &api.FeedPong{Nonce: s.newPing()}}
}

func (o *offline) revoked(n byte) bool {
	return o.Token(&capability.Identity{ID: tokenID(n), Audience: []byte("corp"), Subject: []byte("a")}) == capability.Revoked
}

// TestFreshness: a replica is as old as the sending of its last answered ping.
func TestFreshness(t *testing.T) {
	o := newOffline(t)
	s := o.stream(0, 1)
	o.must(s, snapshot(at(1, 10))...)
	if o.Within(o.Mark(), 0) {
		t.Error("fresh before any ping was answered")
	}
	pong := o.ping(s, at(1, 10))
	sent := o.clock
	o.clock += int64(900 * time.Millisecond) // the answer takes its time
	o.must(s, pong)
	if o.Mark() != sent {
		t.Error("the mark is not when the ping was sent")
	}
	if !o.Within(o.Mark(), 0) || o.Within(o.Mark(), 800*time.Millisecond) {
		t.Error("0.9 s old, within 1 s and not within 0.8 s, was said otherwise")
	}
	o.clock += int64(101 * time.Millisecond)
	if o.Within(o.Mark(), 0) {
		t.Error("within the bound after it")
	}
	if !o.Within(o.Mark(), 2*time.Second) {
		t.Error("not within a longer bound of the caller's")
	}
	// Pongs that nobody asked for, late ones and those sent twice change nothing.
	o.must(s, pong, api.FeedEvent{At: at(1, 10), Pong: &api.FeedPong{Nonce: 12345}})
	if o.Mark() != sent {
		t.Error("a pong that answers nothing moved the mark")
	}
	// An older ping's answer does not take freshness back.
	first := o.ping(s, at(1, 10))
	o.clock += 1000
	second := o.ping(s, at(1, 10))
	o.must(s, second)
	mark := o.Mark()
	o.must(s, first)
	if o.Mark() != mark {
		t.Error("an older ping's answer took the mark back")
	}
	o.closed.Store(true)
	if o.Within(o.Mark(), time.Hour) {
		t.Error("fresh after Close")
	}
}

// TestStreamsNeverStepBack lists what a node that is behind, or confused, can
// say: each is refused, and what was known stays known.
func TestStreamsNeverStepBack(t *testing.T) {
	cases := []struct {
		name string
		do   func(o *offline, a, b *stream) error
		want error
	}{
		{"a pong from before what was seen when the ping was sent", func(o *offline, a, b *stream) error {
			e := o.ping(b, at(1, 19))
			return b.apply(&e)
		}, ErrBehind},
		{"an event of an earlier index", func(o *offline, a, b *stream) error {
			o.must(b, revokeEvent(at(1, 25), 9))
			e := revokeEvent(at(1, 24), 8)
			return b.apply(&e)
		}, ErrBehind},
		{"a snapshot from before what was seen", func(o *offline, a, b *stream) error {
			return b.apply(&snapshot(at(1, 19))[0])
		}, ErrBehind},
		{"a snapshot from before what another stream has applied but not completed", func(o *offline, a, b *stream) error {
			o.must(a, revokeEvent(at(1, 30), 9))
			return b.apply(&snapshot(at(1, 25))[0])
		}, ErrBehind},
		{"an earlier incarnation", func(o *offline, a, b *stream) error {
			c := o.stream(1, 0)
			e := revokeEvent(at(0, 99), 9)
			return c.apply(&e)
		}, ErrBehind},
		{"another incarnation in midstream", func(o *offline, a, b *stream) error {
			e := revokeEvent(at(2, 99), 9)
			return b.apply(&e)
		}, ErrBehind},
		{"a later incarnation without its snapshot", func(o *offline, a, b *stream) error {
			c := o.stream(1, 2)
			e := o.ping(c, at(2, 99))
			return c.apply(&e)
		}, client.ErrResponse},
		{"a pong within a snapshot", func(o *offline, a, b *stream) error {
			o.must(b, api.FeedEvent{At: at(1, 20), Snapshot: "begin"})
			e := o.ping(b, at(1, 20))
			return b.apply(&e)
		}, client.ErrResponse},
		{"the end of no snapshot", func(o *offline, a, b *stream) error {
			return b.apply(&api.FeedEvent{At: at(1, 20), Snapshot: "end"})
		}, client.ErrResponse},
		{"a second hello", func(o *offline, a, b *stream) error {
			return b.apply(&api.FeedEvent{At: at(1, 20), Hello: &api.FeedHello{Stream: "x"}})
		}, client.ErrResponse},
		{"a revocation that cannot be read", func(o *offline, a, b *stream) error {
			return b.apply(&api.FeedEvent{At: at(1, 21), Revoke: &api.FeedRevocation{Kind: "token", Token: "x"}})
		}, capability.ErrBadID},
		{"a revocation of nothing", func(o *offline, a, b *stream) error {
			return b.apply(&api.FeedEvent{At: at(1, 21), Revoke: &api.FeedRevocation{Kind: "subject"}})
		}, capability.ErrBadID},
		{"a revocation of an unknown kind", func(o *offline, a, b *stream) error {
			return b.apply(&api.FeedEvent{At: at(1, 21), Revoke: &api.FeedRevocation{Kind: "planet"}})
		}, nil},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			o := newOffline(t)
			a, b := o.stream(0, 1), o.stream(1, 1)
			o.must(a, snapshot(at(1, 10), revokeEvent(at(1, 10), 1))...)
			o.must(a, revokeEvent(at(1, 15), 2), o.ping(a, at(1, 20)))
			mark := o.Mark()
			o.clock += 1000
			err := c.do(o, a, b)
			if err == nil || c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("error %v", err)
			}
			if o.Mark() != mark {
				t.Error("it made the replica fresh")
			}
			if !o.revoked(1) || !o.revoked(2) || less(o.feed.at(), at(1, 20)) {
				t.Error("it made the replica forget")
			}
		})
	}
}

// TestCursorIsWhatIsComplete: an index is resumed after only when all of it was
// seen, since several events can share one.
func TestCursorIsWhatIsComplete(t *testing.T) {
	o := newOffline(t)
	s := o.stream(0, 1)
	o.must(s, snapshot(at(1, 10))...)
	for _, step := range []struct {
		event api.FeedEvent
		want  uint64
	}{
		{revokeEvent(at(1, 12), 1), 10},
		{revokeEvent(at(1, 12), 2), 10},
		{revokeEvent(at(1, 13), 3), 12},
		{api.FeedEvent{At: at(1, 14), Keys: true}, 13},
		{o.ping(s, at(1, 20)), 20},
	} {
		o.must(s, step.event)
		if got := o.feed.at(); got != at(1, step.want) {
			t.Errorf("after %+v the cursor is %v, not %d", step.event, got, step.want)
		}
	}
	select {
	case <-o.refetch:
	default:
		t.Error("no one was told that the keys have changed")
	}
}

// TestSnapshotIsSwappedInWhole, with what the other stream brings meanwhile; a
// new incarnation drops everything, keys too.
func TestSnapshotIsSwappedInWhole(t *testing.T) {
	o := newOffline(t)
	a, b := o.stream(0, 1), o.stream(1, 1)
	o.must(a, snapshot(at(1, 10), revokeEvent(at(1, 10), 1), issuedEvent(at(1, 10), 1))...)
	o.must(b, api.FeedEvent{At: at(1, 20), Snapshot: "begin"}, revokeEvent(at(1, 20), 2))
	if !o.revoked(1) || o.revoked(2) {
		t.Error("half a snapshot is in force")
	}
	o.must(a, revokeEvent(at(1, 21), 3)) // while b's snapshot is under way
	o.must(b, api.FeedEvent{At: at(1, 20), Snapshot: "end"})
	select {
	case <-o.refetch:
	default:
		t.Error("a snapshot may have skipped a change of keys, and they are not fetched")
	}
	if o.revoked(1) || !o.revoked(2) || !o.revoked(3) {
		t.Errorf("after the swap: %v %v %v", o.revoked(1), o.revoked(2), o.revoked(3))
	}

	// A stream that breaks off leaves nothing of its snapshot behind.
	o.must(b, api.FeedEvent{At: at(1, 22), Snapshot: "begin"})
	b.leave()
	c := o.stream(1, 1)
	o.must(c, snapshot(at(1, 23), revokeEvent(at(1, 23), 2))...)
	if !o.revoked(2) || o.revoked(3) {
		t.Error("the snapshot after one that broke off is not in force")
	}

	o.keys.Store(&keyring{keys: []ringKey{{audience: "corp", epoch: 1, key: capability.NewRootKey([32]byte{1})}}, incarnation: 1, fetched: true})
	d := o.stream(0, 2)
	o.must(d, snapshot(at(2, 3), revokeEvent(at(2, 3), 7))...)
	if o.revoked(2) || !o.revoked(7) || o.feed.at() != at(2, 3) {
		t.Errorf("after a new incarnation: %v %v, cursor %v", o.revoked(2), o.revoked(7), o.feed.at())
	}
	if o.Key([]byte("corp"), 1, 0) != nil {
		t.Error("a key of an incarnation that is over still verifies")
	}
	e := revokeEvent(at(1, 99), 8)
	if err := a.apply(&e); !errors.Is(err, ErrBehind) {
		t.Errorf("the stream of the old incarnation: %v", err)
	}
}

// TestSnapshotForgets: a replica whose clock is behind does not accept a token that
// had ended, and may have been revoked, before its snapshot was taken.
func TestSnapshotForgets(t *testing.T) {
	o := newOffline(t)
	s := o.stream(0, 1)
	o.must(s, api.FeedEvent{At: at(1, 10), Snapshot: "begin", Ended: 5000}, api.FeedEvent{At: at(1, 10), Snapshot: "end"})
	state := func(notAfter int64) capability.RevocationState {
		return o.Token(&capability.Identity{ID: tokenID(1), Audience: []byte("corp"), Subject: []byte("a"), NotAfter: notAfter})
	}
	if state(5000) != capability.Forgotten || state(5001) != capability.Live {
		t.Errorf("a token that ended with the snapshot is %d, one that ended after %d", state(5000), state(5001))
	}
	o.must(s, api.FeedEvent{At: at(1, 11), Snapshot: "begin", Ended: 6000}, api.FeedEvent{At: at(1, 11), Snapshot: "end"})
	if state(5001) != capability.Forgotten {
		t.Error("after the next snapshot")
	}
}

// TestNothingOfAnotherIncarnation: an answer of the incarnation before does not
// say how fresh the new set is, and keys go by the incarnation of the feed.
func TestNothingOfAnotherIncarnation(t *testing.T) {
	o := newOffline(t)
	keys := func(incarnation uint64) *api.KeySet {
		secret := make([]byte, 32)
		secret[0] = byte(incarnation)
		return &api.KeySet{AsOf: at(incarnation, 1), Keys: []api.Key{{Audience: "corp", Epoch: uint32(incarnation), Secret: secret}}}
	}
	has := func(epoch uint32) bool { return o.Key([]byte("corp"), epoch, 0) != nil }
	if err := o.takeKeys(keys(1)); err != nil || !has(1) {
		t.Fatalf("the first keys, ahead of the snapshot: %v", err)
	}
	a := o.stream(0, 1)
	o.must(a, snapshot(at(1, 10))...)
	o.must(a, o.ping(a, at(1, 10)))
	if !o.Within(o.Mark(), 0) || !has(1) {
		t.Fatal("not fresh, or without keys")
	}
	if err := o.takeKeys(keys(2)); err == nil || !has(1) || has(2) {
		t.Errorf("keys of an incarnation whose revocations are not known are in force: %v", err)
	}
	if err := o.sameIncarnation(at(2, 5)); err == nil {
		t.Error("an answer of an incarnation whose revocations are not known is believed")
	}
	b := o.stream(1, 2)
	late := o.ping(a, at(1, 11))
	o.must(b, snapshot(at(2, 3))...)
	if o.Within(o.Mark(), 0) {
		t.Error("the new set is as fresh as the old one was")
	}
	if err := a.apply(&late); !errors.Is(err, ErrBehind) || o.Within(o.Mark(), 0) {
		t.Errorf("an answer of the old incarnation makes the new set fresh: %v", err)
	}
	if err := o.takeKeys(keys(1)); !errors.Is(err, ErrBehind) || has(1) {
		t.Errorf("keys of the incarnation before: %v", err)
	}
	if err := o.takeKeys(keys(2)); err != nil || !has(2) {
		t.Errorf("keys of the new one: %v", err)
	}
	if o.must(b, o.ping(b, at(2, 3))); !o.Within(o.Mark(), 0) {
		t.Error("not fresh after an answer of the new one")
	}
}

// TestEveryKindOfRevocation reaches the look-up that it is for.
func TestEveryKindOfRevocation(t *testing.T) {
	o := newOffline(t)
	s := o.stream(0, 1)
	o.must(s, snapshot(at(1, 1))...)
	h := capability.HolderKey{Method: capability.HolderDPoP, Thumbprint: [32]byte{1}}
	d := capability.DeviceID{2}
	b := capability.BranchID{3}
	id := func(n byte, aud, sub string, epoch uint32) *capability.Identity {
		return &capability.Identity{ID: tokenID(n), Audience: []byte(aud), Subject: []byte(sub), Epoch: epoch}
	}
	ms := tokenID(1).Millis()
	for i, f := range []api.FeedRevocation{
		{Kind: api.RevokeBranch, Token: tokenID(1).String(), Branch: b.String()},
		{Kind: api.RevokeSubject, Subject: "mallory", Until: ms},
		{Kind: api.RevokeAudience, Audience: "gone", Until: ms},
		{Kind: api.RevokeSubject, Subject: "early", Until: ms - 1},
		{Kind: api.RevokeHolder, Holder: h.String()},
		{Kind: api.RevokeDevice, Device: d.String()},
		{Kind: api.RevokeEpoch, Epoch: 7},
	} {
		f.Expires = 1 << 42
		o.must(s, api.FeedEvent{At: at(1, uint64(2+i)), Revoke: &f})
	}
	for _, c := range []struct {
		name string
		got  any
		want any
	}{
		{"branch's token", o.Token(id(1, "corp", "a", 1)), capability.BranchesRevoked},
		{"branch", o.Branch(tokenID(1), b), true},
		{"other branch", o.Branch(tokenID(1), capability.BranchID{4}), false},
		{"subject", o.Token(id(2, "corp", "mallory", 1)), capability.Revoked},
		{"subject after the cut-off", o.Token(id(2, "corp", "early", 1)), capability.Live},
		{"audience", o.Token(id(2, "gone", "a", 1)), capability.Revoked},
		{"epoch", o.Token(id(2, "corp", "a", 7)), capability.Revoked},
		{"holder", o.Holder(h), true},
		{"other holder", o.Holder(capability.HolderKey{Method: capability.HolderMTLS, Thumbprint: h.Thumbprint}), false},
		{"device", o.Device(d), true},
		{"nothing", o.Token(id(2, "corp", "a", 1)), capability.Live},
	} {
		if fmt.Sprint(c.got) != fmt.Sprint(c.want) {
			t.Errorf("%s: %v, not %v", c.name, c.got, c.want)
		}
	}
}

// TestBootClock: while wall and monotonic clock agree, boot time is not read
// again; a suspend, which moves wall and boot time, is seen at once.
func TestBootClock(t *testing.T) {
	reads, ahead := 0, int64(0)
	base := time.Now()
	c := newBootClock(func() (int64, bool) {
		reads++
		return int64(time.Since(base)) + ahead, true
	})
	first, before := c.now(), reads
	for range 100 {
		c.now()
	}
	if reads != before {
		t.Errorf("boot time was read %d times for 100 look-ups", reads-before)
	}
	// As after an hour of suspend: boot time has gone on, and the wall clock is
	// an hour further from the monotonic one than when last compared.
	ahead = int64(time.Hour)
	cal := *c.cal.Load()
	cal.wall -= int64(time.Hour)
	c.cal.Store(&cal)
	if got := c.now(); got-first < int64(time.Hour) {
		t.Errorf("an hour's suspend moved the clock by %v", time.Duration(got-first))
	}
	// Setting the wall clock alone moves nothing, in either direction.
	for _, d := range []int64{int64(time.Hour), -int64(time.Hour)} {
		now := c.now()
		cal := *c.cal.Load()
		cal.wall -= d
		c.cal.Store(&cal)
		if got := c.now(); got < now || got-now > int64(time.Minute) {
			t.Errorf("setting the wall clock moved the clock by %v", time.Duration(got-now))
		}
	}
	// A reading that was too short does not make marks look younger.
	ahead -= int64(time.Second)
	now := c.now()
	c.calibrate()
	if c.now() < now {
		t.Error("the clock went back")
	}
}

func BenchmarkClock(b *testing.B) {
	c := newBootClock(readBootTime)
	for b.Loop() {
		c.now()
	}
}

// TestStreamsKeepApart: the second of two streams at one node goes elsewhere, if
// there is an elsewhere and both are well; the first stays.
func TestStreamsKeepApart(t *testing.T) {
	for _, c := range []struct {
		what  string
		addrs []string
		nodes [2]int
		slot  int
		live  int
		cut   bool
	}{
		{"both at one of two", []string{"a:1", "b:1"}, [2]int{0, 2}, 1, 2, true},
		{"the first", []string{"a:1", "b:1"}, [2]int{0, 2}, 0, 2, false},
		{"apart", []string{"a:1", "b:1"}, [2]int{0, 1}, 1, 2, false},
		{"there is one node", []string{"a:1"}, [2]int{0, 1}, 1, 2, false},
		{"the other is not well", []string{"a:1", "b:1"}, [2]int{0, 0}, 1, 1, false},
	} {
		synctest.Test(t, func(t *testing.T) {
			o := newOffline(t)
			var err error
			if o.client, err = client.New(client.Config{Addrs: c.addrs, CAFingerprint: strings.Repeat("ab", 32), Token: "writ_x"}); err != nil {
				t.Fatal(err)
			}
			defer o.client.Close()
			o.feed.nodes, o.feed.live = c.nodes, c.live
			s := o.stream(c.slot, 1)
			s.pulse = o.clock
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			go s.watch(ctx, cancel)
			time.Sleep(time.Duration(o.bound.Load()))
			synctest.Wait()
			if got := errors.Is(context.Cause(ctx), errTogether); got != c.cut {
				t.Errorf("%s: cut: %v", c.what, context.Cause(ctx))
			}
		})
	}
}

// TestSilentStream: one that has answered nothing for longer than the bound is cut, so
// that another node is asked: this one may be frozen, or cut off from the rest.
func TestSilentStream(t *testing.T) {
	for _, k := range []struct {
		silent time.Duration // beside the bound
		cut    bool
	}{{0, false}, {1, true}} {
		synctest.Test(t, func(t *testing.T) {
			o := newOffline(t)
			var err error
			if o.client, err = client.New(client.Config{Addrs: []string{"a:1"}, CAFingerprint: strings.Repeat("ab", 32), Token: "writ_x"}); err != nil {
				t.Fatal(err)
			}
			defer o.client.Close()
			s := o.stream(0, 1)
			s.pulse = o.clock - o.bound.Load() - int64(k.silent)
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			go s.watch(ctx, cancel)
			time.Sleep(time.Duration(o.bound.Load()))
			synctest.Wait()
			if got := errors.Is(context.Cause(ctx), errSilent); got != k.cut {
				t.Errorf("silent for the bound and %d ns: %v", k.silent, context.Cause(ctx))
			}
		})
	}
}

// TestNextNode: a stream that ended goes on to the next node, and past the one that the
// other stream is at, but for every other time: together is better than nowhere.
func TestNextNode(t *testing.T) {
	for _, k := range []struct {
		addrs    []string
		other    int // where the other stream is
		at       int
		failures int
		want     int
	}{
		{[]string{"a:1", "b:1", "c:1"}, 2, 0, 1, 1},
		{[]string{"a:1", "b:1", "c:1"}, 1, 0, 1, 2},
		{[]string{"a:1", "b:1", "c:1"}, 0, 2, 3, 1},
		{[]string{"a:1", "b:1", "c:1"}, 1, 0, 2, 1},
		{[]string{"a:1", "b:1"}, 1, 0, 1, 0},
		{[]string{"a:1", "b:1"}, 1, 0, 2, 1},
		{[]string{"a:1"}, 0, 0, 1, 0},
	} {
		o := newOffline(t)
		var err error
		if o.client, err = client.New(client.Config{Addrs: k.addrs, CAFingerprint: strings.Repeat("ab", 32), Token: "writ_x"}); err != nil {
			t.Fatal(err)
		}
		o.feed.nodes[1] = k.other
		if got := o.nextNode(0, k.at, k.failures); got != k.want {
			t.Errorf("%d nodes, the other stream at %d: from %d, after %d failures, to %d and not %d", len(k.addrs), k.other, k.at, k.failures, got, k.want)
		}
		o.client.Close()
	}
}
