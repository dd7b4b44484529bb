package caveats

import (
	"math"
	"sync"
	"time"

	"github.com/writ-dev/writ/capability"
)

// MaxReplayWindow is the longest that a request which may be served only once
// is remembered: its token must end within it.
const MaxReplayWindow = 2 * time.Minute

// stepBack is how far a clock may step back without anything that was forgotten
// on time being accepted again.
const stepBack = 5 * time.Second

// ReplayCache remembers the requests that were accepted, by the hash that
// their request caveat names, until their token has ended. It is one
// process's memory: instances of a service that do not share it each accept a
// request once. A full cache refuses, with unavailable, rather than forget; one
// token's requests can fill a sixteenth of it. It is safe for concurrent use.
type ReplayCache struct {
	mu   sync.Mutex
	seen *table[[32]byte, struct{}] // mu
}

// NewReplayCache remembers at most maxEntries requests at a time, about 100
// bytes each.
func NewReplayCache(maxEntries int) (*ReplayCache, error) {
	t, err := newTable[[32]byte, struct{}](maxEntries)
	if err != nil {
		return nil, err
	}
	return &ReplayCache{seen: t}, nil
}

// Len is how many requests are remembered, for metrics.
func (r *ReplayCache) Len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.seen.entries)
}

// Use records that the request with this hash is served at now; it is refused
// before until. It counts as no token's. Errors: CodeReplayed; CodeUnavailable when
// the cache is full, or now is of a clock that was put back, so that the request may
// have been forgotten.
func (r *ReplayCache) Use(hash [32]byte, now, until time.Time) error {
	return r.use(capability.TokenID{}, hash, now, until)
}

func (r *ReplayCache) use(id capability.TokenID, hash [32]byte, now, until time.Time) error {
	n, u := now.UnixMilli(), until.Add(stepBack).UnixMilli()+1
	r.mu.Lock()
	defer r.mu.Unlock()
	if e := r.seen.get(hash); e != nil {
		if e.until > n {
			return capability.CodeReplayed
		}
		e.until = u
		return nil
	}
	if u <= r.seen.forgotten || r.seen.add(hash, id, u, n) == nil {
		return capability.CodeUnavailable
	}
	return nil
}

// forget takes Use back: the request was refused after all.
func (r *ReplayCache) forget(hash [32]byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e := r.seen.get(hash); e != nil {
		e.until = math.MinInt64
	}
}
