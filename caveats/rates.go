package caveats

import (
	"math"
	"sync"
	"time"

	"github.com/writ-dev/writ/capability"
)

// DefaultRateEntries is how many buckets a Checker's own RateTable holds:
// about 8 MiB when full.
const DefaultRateEntries = 1 << 16

// RateTable holds the token buckets of max-rate caveats, one for each point of
// a delegation tree, at one verifier. A bucket begins full and is forgotten
// when it is full again, so the table's size bounds the callers that are being
// limited at one time; a full table refuses further ones with rate_limited. The
// narrowings of one token can fill a sixteenth of it. It is safe for concurrent use.
//
// Time is the request's. A clock that steps back costs a caller at most one
// bucket's refill.
type RateTable struct {
	mu      sync.Mutex
	buckets *table[capability.BranchID, struct{}] // mu
}

// NewRateTable returns a table for at most maxEntries buckets.
func NewRateTable(maxEntries int) (*RateTable, error) {
	t, err := newTable[capability.BranchID, struct{}](maxEntries)
	if err != nil {
		return nil, err
	}
	return &RateTable{buckets: t}, nil
}

// Len is how many buckets the table holds, for metrics.
func (t *RateTable) Len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.buckets.entries)
}

// interval is what one token of a bucket of n takes to refill, rounded up, and how
// deep the bucket is, both in nanoseconds and the latter below 2 × 24 h. A token
// every nanosecond is as good as no limit: rates beyond are rounded down to it.
func interval(n uint64, per time.Duration) (each, deep int64) {
	n = min(n, uint64(per))
	each = (int64(per) + int64(n) - 1) / int64(n)
	return each, each * int64(n)
}

// take takes one token from the bucket of n tokens, refilled evenly over per, of
// a branch of the capability id. The state is one moment, at which the bucket is
// full again (the generic cell rate algorithm, ITU-T I.371): it moves on by per/n,
// rounded up, with each token, and may not lie further ahead than n of them.
func (t *RateTable) take(id capability.TokenID, b capability.BranchID, n uint64, per time.Duration, at time.Time) bool {
	each, deep := interval(n, per)
	now := at.UnixNano()
	if at.Year() < 1970 || at.Year() > 2200 || now > math.MaxInt64-2*deep {
		return false // no clock says so, and UnixNano is not defined there
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.buckets.get(b)
	switch {
	case e == nil:
		return t.buckets.add(b, id, now+each, now) != nil
	case e.until < now:
		e.until = now
	case e.until > now+deep:
		e.until = now + deep // the clock has stepped back
	}
	if e.until+each > now+deep {
		return false
	}
	e.until += each
	return true
}

// giveBack puts a token that was taken back into the bucket.
func (t *RateTable) giveBack(b capability.BranchID, n uint64, per time.Duration) {
	each, _ := interval(n, per)
	t.mu.Lock()
	defer t.mu.Unlock()
	if e := t.buckets.get(b); e != nil {
		e.until -= each
	}
}
