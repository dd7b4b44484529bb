package replica

import (
	"time"
)

const (
	sweepEvery = 15 * time.Second
	// expiryMargin is how long what has ended is remembered, in milliseconds, so
	// that a wall clock that is set ahead for a moment forgets no revocation of
	// a token that is alive.
	expiryMargin = int64(10 * time.Minute / time.Millisecond)
)

// runJanitor gives idle leases back and forgets what has ended.
func (r *Replica) runJanitor() {
	every := min(sweepEvery, max(r.cfg.Leases.Idle/4, 10*time.Millisecond))
	t := time.NewTicker(every)
	defer t.Stop()
	expire := r.clock()
	for {
		select {
		case <-t.C:
		case <-r.ctx.Done():
			return
		}
		r.leases.sweep()
		if now := r.clock(); now-expire >= int64(sweepEvery) {
			expire = now
			ms := r.now().UnixMilli() - expiryMargin
			d := r.data.Load()
			d.revoked.Expire(ms)
			d.issued.expire(ms)
		}
	}
}
