package server

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// TestOnlyIssuesAreShed: with every lane full an issue is refused at once, and a
// revocation and a lease wait for room of their own.
func TestOnlyIssuesAreShed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limits := Limits{Issues: 2, Revocations: 2, Leases: 2, Reads: 2}
		limits.complete()
		lanes := newLanes(&limits)
		enter := func(k laneKind) bool { return lanes[k].enter(t.Context()) }
		for range 2 {
			if !enter(laneIssues) || !enter(laneReads) {
				t.Fatal("no room in an empty lane")
			}
		}
		if enter(laneIssues) || enter(laneReads) {
			t.Error("a full lane took one more")
		}
		// Issues at their limit take nothing from the others.
		for range 2 {
			if !enter(laneRevocations) || !enter(laneLeases) {
				t.Fatal("issues hold up revocations or leases")
			}
		}
		in := false
		go func() { in = enter(laneRevocations) }()
		synctest.Wait()
		if in {
			t.Error("a full lane took one more")
		}
		lanes[laneRevocations].leave()
		synctest.Wait()
		if !in {
			t.Error("a revocation that waited did not get the room that was left")
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if lanes[laneLeases].enter(ctx) {
			t.Error("a full lane took one more")
		}
		for range 1000 {
			if !enter(laneFree) {
				t.Fatal("the free lane is bounded")
			}
		}
	})
}

func TestLimiter(t *testing.T) {
	now := time.Now()
	l := newLimiter(5, func() time.Time { return now })
	count := func() (n int) {
		for l.allow() {
			n++
		}
		return n
	}
	if n := count(); n != 5 {
		t.Errorf("%d at once, not 5", n)
	}
	now = now.Add(400 * time.Millisecond)
	if n := count(); n != 2 {
		t.Errorf("%d after 0.4 s, not 2", n)
	}
	now = now.Add(-time.Hour)
	if n := count(); n != 0 {
		t.Errorf("%d after the clock went back", n)
	}
	now = now.Add(time.Hour + 10*time.Second)
	if n := count(); n != 5 {
		t.Errorf("%d after a long rest, not 5", n)
	}
}
