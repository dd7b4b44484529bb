package server

import (
	"context"
	"sync"
	"time"
)

// laneKind is what a call competes with. Revocations and leases do not wait
// behind issues: each kind has room of its own, and only issues are shed.
type laneKind uint8

const (
	laneReads laneKind = iota
	laneRevocations
	laneLeases
	laneIssues
	laneAttest
	laneFree // never waits: probes, metrics, feeds
	lanesCount
)

// lane is room for calls under way. A nil lane is without end.
type lane struct {
	room chan struct{}
	shed bool // refuse at once rather than wait
}

func newLanes(l *Limits) (lanes [lanesCount]lane) {
	lanes[laneReads] = lane{room: make(chan struct{}, l.Reads), shed: true}
	lanes[laneRevocations] = lane{room: make(chan struct{}, l.Revocations)}
	lanes[laneLeases] = lane{room: make(chan struct{}, l.Leases)}
	lanes[laneAttest] = lane{room: make(chan struct{}, l.Attest), shed: true}
	lanes[laneIssues] = lane{room: make(chan struct{}, l.Issues), shed: true}
	return lanes
}

// passingAtATime is how many calls of a lane a follower has the leader answer at a
// time. Together they are fewer than a node takes of one peer (raftstore.MaxCalls),
// and the rest is for the nodes' own.
var passingAtATime = [lanesCount]int{laneIssues: 112, laneRevocations: 32, laneLeases: 32, laneReads: 32, laneAttest: 32}

// newPassing keeps the lanes apart on their way to the leader too: one peer's calls
// share a bound there, and what is refused would be asked again and again until its
// turn came, revocations behind all the issues that do the same.
func newPassing() (lanes [lanesCount]lane) {
	for k, n := range passingAtATime {
		if n > 0 {
			lanes[k].room = make(chan struct{}, n)
		}
	}
	return lanes
}

// enter takes room; it reports false when there is none.
func (l *lane) enter(ctx context.Context) bool {
	if l.room == nil {
		return true
	}
	select {
	case l.room <- struct{}{}:
		return true
	default:
	}
	if l.shed {
		return false
	}
	select {
	case l.room <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

func (l *lane) leave() {
	if l.room != nil {
		<-l.room
	}
}

// limiter lets n through a second, with a burst of n.
type limiter struct {
	mu   sync.Mutex
	n    float64
	left float64
	last time.Time
	now  func() time.Time
}

func newLimiter(n int, now func() time.Time) *limiter {
	return &limiter{n: float64(n), left: float64(n), last: now(), now: now}
}

func (l *limiter) allow() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	if d := now.Sub(l.last).Seconds(); d > 0 {
		l.left = min(l.n, l.left+d*l.n)
	}
	l.last = now
	if l.left < 1 {
		return false
	}
	l.left--
	return true
}
