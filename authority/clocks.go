package authority

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/state"
)

const (
	// maxSkew is how far a leader's clock may be from the quorum's median.
	maxSkew = time.Second
	// sampleEvery is how often a leader asks its peers for their clocks.
	sampleEvery = time.Second
	// sampleWait bounds one round of asking.
	sampleWait = 500 * time.Millisecond
	// sampleLinger is how long the rest is waited for once a majority has answered.
	sampleLinger = 30 * time.Millisecond
)

// hello is what a node says of itself when a peer asks.
type hello struct {
	Now     int64  `json:"now"`     // its clock, Unix nanoseconds
	Version uint64 `json:"version"` // state.Version that it knows
}

// sample is what one peer said, held against this node's clock.
type sample struct {
	offset  time.Duration // its clock ahead of this node's
	version uint64
	at      int64 // when, since boot
}

// clocks holds a leader's clock to the median of the quorum's. In between two
// samples it watches for its own clock to jump, against the time since boot.
type clocks struct {
	wall func() time.Time
	boot func() int64 // nanoseconds since boot, suspend included
	// ask asks everyone but this node; what it sends ends when all have
	// answered or ctx has ended.
	ask    func(ctx context.Context, each func(node string, h hello, sent, received int64))
	voters func() []string
	node   string

	mu      sync.Mutex
	term    uint64            // that the rest was sampled in; guarded by mu
	median  time.Time         // of the quorum's clocks, at …; guarded by mu
	at      int64             // … since boot; guarded by mu
	samples map[string]sample // of the last round that each answered; guarded by mu
}

func newClocks(wall func() time.Time, boot func() int64, node string) *clocks {
	return &clocks{wall: wall, boot: boot, node: node, samples: make(map[string]sample)}
}

// check returns nil if this node's clock, which says wall, may stamp commands in
// this term. The first time in a term it asks the others.
func (c *clocks) check(ctx context.Context, term uint64, wall time.Time) error {
	c.mu.Lock()
	known := c.term == term && c.at != 0
	c.mu.Unlock()
	if !known {
		if err := c.round(ctx, term); err != nil {
			return err
		}
	}
	if skew := wall.Sub(c.now()); skew.Abs() > maxSkew {
		return &Error{Code: api.CodeNotLeader, Detail: "this node's clock is not to be trusted; nothing was done",
			Err: fmt.Errorf("the clock is %v off the quorum's median", skew.Round(time.Millisecond))}
	}
	return nil
}

// now is the quorum's median clock, as far as it is known, or else this node's.
func (c *clocks) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.at == 0 {
		return c.wall()
	}
	return c.median.Add(time.Duration(c.boot() - c.at))
}

// skew is how far this node's clock is ahead of the median.
func (c *clocks) skew() time.Duration { return c.wall().Sub(c.now()) }

// round asks the voters for their clocks, and everyone for their versions. It
// fails without a majority.
func (c *clocks) round(ctx context.Context, term uint64) error {
	ctx, cancel := context.WithTimeout(ctx, sampleWait)
	defer cancel()
	voters := c.voters()
	begun, base := c.boot(), c.wall()
	offsets := []time.Duration{0}
	if !slices.Contains(voters, c.node) {
		offsets = nil
	}
	need := len(voters)/2 + 1
	var mu sync.Mutex
	heard := make(map[string]sample)
	c.ask(ctx, func(node string, h hello, sent, received int64) {
		mu.Lock()
		defer mu.Unlock()
		// This node's clock in the middle of the call, by its clock at the start
		// and the time since boot, which does not jump.
		mine := base.Add(time.Duration((sent+received)/2 - begun))
		s := sample{time.Unix(0, h.Now).Sub(mine), h.Version, received}
		heard[node] = s
		if slices.Contains(voters, node) {
			if offsets = append(offsets, s.offset); len(offsets) == need {
				time.AfterFunc(sampleLinger, cancel)
			}
		}
	})
	mu.Lock()
	defer mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	for node, s := range heard {
		c.samples[node] = s
	}
	if len(offsets) < need {
		return &Error{Code: api.CodeNotLeader, Detail: "the other nodes' clocks cannot be asked; nothing was done"}
	}
	slices.Sort(offsets)
	median := (offsets[(len(offsets)-1)/2] + offsets[len(offsets)/2]) / 2
	c.term, c.median, c.at = term, base.Add(median), begun
	return nil
}

// of returns what a node said last, and how far its clock is ahead of the median.
func (c *clocks) of(node string) (s sample, skew time.Duration, ok bool) {
	own := c.skew()
	c.mu.Lock()
	defer c.mu.Unlock()
	s, ok = c.samples[node]
	return s, own + s.offset, ok
}

// inTime is the voter, other than this node, whose clock is nearest to the
// median, or "" if none is within what is allowed.
func (c *clocks) inTime() string {
	best, least := "", maxSkew
	for _, node := range c.voters() {
		if _, skew, ok := c.of(node); ok && node != c.node && skew.Abs() <= least {
			best, least = node, skew.Abs()
		}
	}
	return best
}

// askHellos has all members say hello, side by side.
func (a *Authority) askHellos(ctx context.Context, each func(node string, h hello, sent, received int64)) {
	var wg sync.WaitGroup
	defer wg.Wait()
	status := a.store.Status()
	for _, node := range slices.Concat(status.Voters, status.Nonvoters) {
		if node == a.cfg.NodeID {
			continue
		}
		wg.Go(func() {
			var h hello
			sent := a.cfg.Boot()
			if err := a.call(ctx, node, methodHello, struct{}{}, &h); err == nil {
				each(node, h, sent, a.cfg.Boot())
			}
		})
	}
}

func (a *Authority) answerHello(context.Context, string, *struct{}) (*hello, error) {
	return &hello{Now: a.cfg.Clock().UnixNano(), Version: state.Version}, nil
}

// mayPropose returns nil if this node leads, has applied all that came before,
// and has a clock to stamp by, which says now.
func (a *Authority) mayPropose(now time.Time) error {
	if a.peers == nil {
		return nil
	}
	if !a.store.IsLeader() {
		return errNotLeading
	}
	return a.clocks.check(context.Background(), a.store.Term(), now)
}

var errNotLeading = &Error{Code: api.CodeNotLeader, Detail: "this node does not lead; nothing was done", Hint: "try another node"}

// watchClock keeps a leader's knowledge of the others' clocks, and hands over
// when its own is not to be trusted.
func (a *Authority) watchClock(ctx context.Context) {
	tick := time.NewTicker(sampleEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if !a.store.IsLeader() {
			continue
		}
		if err := a.clocks.round(ctx, a.store.Term()); err != nil {
			continue // a leader without a majority will not be one for long
		}
		if skew := a.clocks.skew(); skew.Abs() > maxSkew {
			to := a.clocks.inTime()
			a.cfg.Logger.Error("handing over: the clock is off the quorum's median", "skew", skew, "to", to)
			if to != "" {
				a.report("handing over", a.store.TransferLeadership(ctx, to))
			}
		}
	}
}
