package state

import (
	"errors"
	"slices"

	"github.com/writ-dev/writ/authority/api"
)

// ErrTooOld is returned by Events for a position before the oldest event that
// is kept: take a snapshot.
var ErrTooOld = errors.New("state: the feed no longer goes back that far")

// Event is one line of the feed. Exactly one of Revoke, Issued and Keys is set.
type Event struct {
	Index    uint64 // of the Raft log; several events may have one
	Audience string // whom it concerns; empty: everyone
	Revoke   *api.FeedRevocation
	Issued   api.FeedIssued // if its Expires is not 0
	Keys     bool           // the keys have changed
}

// events keeps the newest events of the feed in a ring.
type events struct {
	ring    []Event
	next, n int    // where the next goes, and how many there are
	floor   uint64 // events at or before are not all here
	through uint64 // events up to here are
	news    uint64 // counts those that are more than that a token was issued
}

func newEvents(size int) events { return events{ring: make([]Event, size)} }

func (e *events) add(ev Event) {
	if ev.Revoke != nil || ev.Keys {
		e.news++
	}
	if e.n == len(e.ring) {
		e.floor = e.at(0).Index
	} else {
		e.n++
	}
	e.ring[e.next] = ev
	e.next = (e.next + 1) % len(e.ring)
}

// at returns the i-th oldest event.
func (e *events) at(i int) *Event {
	return &e.ring[(e.next-e.n+i+len(e.ring))%len(e.ring)]
}

// reset forgets everything up to index.
func (e *events) reset(index uint64) {
	clear(e.ring)
	e.next, e.n, e.floor, e.through = 0, 0, index, index
}

// after appends the events after index, at least max if there are so many and
// never part of those of one index, and returns the index that they reach.
func (e *events) after(dst []Event, index uint64, max int) ([]Event, uint64, error) {
	if index < e.floor {
		return dst, 0, ErrTooOld
	}
	lo, hi := 0, e.n
	for lo < hi {
		if mid := (lo + hi) / 2; e.at(mid).Index > index {
			hi = mid
		} else {
			lo = mid + 1
		}
	}
	for taken := 0; lo < e.n; lo, taken = lo+1, taken+1 {
		ev := e.at(lo)
		if taken >= max && ev.Index != dst[len(dst)-1].Index {
			return dst, dst[len(dst)-1].Index, nil
		}
		dst = append(dst, *ev)
	}
	return dst, e.through, nil
}

// Events appends to dst the feed's events after an index, about max of them,
// and returns the index that they are complete through. Errors: ErrTooOld.
func (m *Machine) Events(dst []Event, after uint64, max int) ([]Event, uint64, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.mem.events.after(slices.Grow(dst, min(max, m.mem.events.n)), after, max)
}

// Changed returns a channel that is closed when more has been applied. Take it
// before looking.
func (m *Machine) Changed() <-chan struct{} {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.changed
}

// News is Changed for whoever need not know of tokens that were issued, which is
// most of what is applied: its channel is closed when there is a revocation, a
// change of keys or another incarnation.
func (m *Machine) News() <-chan struct{} {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.news
}

// told is what News tells of.
type told struct{ events, incarnation uint64 }

func (m *Machine) told() told { return told{m.mem.events.news, m.mem.meta.Incarnation} }
