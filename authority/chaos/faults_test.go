//go:build chaos

package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/writ-dev/writ/authority"
	"github.com/writ-dev/writ/authority/authoritytest"
)

// The faults. Each pass goes through all of them in an order of its own.
var faultKinds = []string{
	"kill the leader", "stop a follower", "kill a follower", "isolate the leader", "isolate a follower",
	"cut the leader off one way", "transfer leadership", "clock of the leader", "slow guards", "slow guards",
}

// fault is one entry of a schedule: a pure function of the seed.
type fault struct {
	kind   string
	lasts  time.Duration
	then   time.Duration // of peace
	choice uint64        // which follower, how slow, …
}

// schedule is an endless sequence of faults.
func schedule(seed uint64) func() fault {
	r := rand.New(rand.NewPCG(seed, 0))
	var deck []int
	return func() fault {
		if len(deck) == 0 {
			deck = r.Perm(len(faultKinds))
		}
		kind := faultKinds[deck[0]]
		deck = deck[1:]
		return fault{
			kind: kind, choice: r.Uint64(),
			lasts: 300*time.Millisecond + time.Duration(r.Int64N(int64(time.Second))),
			then:  400*time.Millisecond + time.Duration(r.Int64N(int64(600*time.Millisecond))),
		}
	}
}

// node is a node as the load sees it: what it has under way there ends when the
// node stops.
type node struct {
	*authoritytest.ClusterNode
	mu     sync.RWMutex
	a      *authority.Authority // nil: stopped; guarded by mu
	ctx    context.Context      // guarded by mu
	cancel context.CancelFunc   // only the faults use it
}

func (n *node) up() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ctx, n.cancel = context.WithCancel(context.Background())
	n.a = n.Authority
}

func (n *node) down(stop func() error) error {
	n.cancel()
	n.mu.Lock()
	n.a = nil
	n.mu.Unlock()
	return stop()
}

// with calls f with the node's authority unless the node has stopped.
func (n *node) with(ctx context.Context, f func(ctx context.Context, a *authority.Authority) error) error {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if n.a == nil {
		return fmt.Errorf("%s has stopped", n.Name)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(n.ctx, cancel)()
	return f(ctx, n.a)
}

// link is the network between one guard and the nodes. What arrives is held up as
// a whole, in order, and what comes meanwhile waits behind it: so news may come
// after an answer that looks newer.
type link struct{ delay atomic.Int64 }

func (l *link) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	return &slowConn{Conn: conn, link: l, closed: make(chan struct{})}, nil
}

type slowConn struct {
	net.Conn
	link   *link
	once   sync.Once
	closed chan struct{}
	buffer [64 << 10]byte
	rest   []byte // of what has arrived; only Read uses it
}

// Read implements net.Conn.
func (c *slowConn) Read(b []byte) (int, error) {
	if len(c.rest) == 0 {
		n, err := c.Conn.Read(c.buffer[:])
		if d := c.link.delay.Load(); d > 0 {
			late := time.NewTimer(time.Duration(d))
			defer late.Stop()
			select {
			case <-late.C:
			case <-c.closed:
			}
		}
		if n == 0 {
			return 0, err
		}
		c.rest = c.buffer[:n] // an error comes again
	}
	n := copy(b, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

// Close implements net.Conn.
func (c *slowConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// pause waits, and reports false when ctx has ended.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// disturb goes through the schedule until ctx ends, and undoes each fault before
// the next. It returns how many of each kind it made.
func (r *campaign) disturb(ctx context.Context, seed uint64) (made map[string]int, err error) {
	made = make(map[string]int)
	next := schedule(seed)
	for ctx.Err() == nil {
		f := next()
		undo, err := r.make(ctx, f)
		if err != nil {
			if ctx.Err() != nil {
				break
			}
			return made, fmt.Errorf("%s: %w", f.kind, err)
		}
		made[f.kind]++
		pause(ctx, f.lasts)
		if err := undo(); err != nil {
			return made, fmt.Errorf("after %s: %w", f.kind, err)
		}
		pause(ctx, f.then)
	}
	return made, nil
}

func (r *campaign) make(ctx context.Context, f fault) (undo func() error, err error) {
	nothing := func() error { return nil }
	heal := func() error { r.c.Heal(); return nil }
	if f.kind == "slow guards" {
		// Slower than half a bound, so that two answers in a row are older than one.
		delay := r.bound * time.Duration(6+f.choice%3) / 10
		for _, l := range r.links {
			l.delay.Store(int64(delay))
		}
		pause(ctx, 2*r.bound)
		return func() error {
			for _, l := range r.links {
				l.delay.Store(0)
			}
			return nil
		}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	followers, err := r.c.Followers(ctx)
	if err != nil {
		return nil, err
	}
	leader, err := r.c.Leader(ctx)
	if err != nil {
		return nil, err
	}
	if len(followers) == 0 {
		return nothing, nil
	}
	follower := followers[f.choice%uint64(len(followers))]
	switch f.kind {
	case "kill the leader":
		return r.stop(leader, leader.Kill)
	case "kill a follower":
		return r.stop(follower, follower.Kill)
	case "stop a follower":
		return r.stop(follower, follower.Stop)
	case "isolate the leader":
		r.c.Isolate(leader.Name)
		return heal, nil
	case "isolate a follower":
		r.c.Isolate(follower.Name)
		return heal, nil
	case "cut the leader off one way":
		for _, to := range followers {
			r.c.Cut(leader.Name, to.Name)
		}
		return heal, nil
	case "transfer leadership":
		_ = r.nodes[leader.Name].with(ctx, func(ctx context.Context, a *authority.Authority) error {
			_, err := a.Lead(ctx, follower.Name)
			return err
		})
		return nothing, nil
	case "clock of the leader":
		leader.Skew.Store(int64(time.Hour) - int64(f.choice%2)*int64(2*time.Hour))
		return func() error { leader.Skew.Store(0); return nil }, nil
	}
	panic("no such fault: " + f.kind)
}

// stop stops a node; undoing it starts the node again.
func (r *campaign) stop(n *authoritytest.ClusterNode, how func() error) (undo func() error, _ error) {
	if err := r.nodes[n.Name].down(how); err != nil {
		r.t.Logf("stopping %s: %v", n.Name, err) // on a busy machine it may take too long
	}
	return func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		for {
			err := n.Start(ctx)
			if err == nil {
				r.nodes[n.Name].up()
				return nil
			}
			if !pause(ctx, 100*time.Millisecond) { // its port may be taken for a moment
				return err
			}
		}
	}, nil
}
