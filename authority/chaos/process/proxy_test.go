//go:build linux

package process

import (
	"context"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/writ-dev/writ/authority/chaos/netns"
)

// link is what lies between one host of clients and all nodes: a proxy on that
// host for each place in the cluster.
type link struct {
	host *netns.Host

	mu      sync.Mutex
	random  *rand.Rand    // guarded by mu
	delay   time.Duration // of what comes, either way; guarded by mu
	loss    float64       // the part of what comes that is late, as if sent again; guarded by mu
	held    chan struct{} // what goes to the nodes waits until it is closed; nil: it does not; guarded by mu
	waited  int           // how much waited; guarded by mu
	targets []string      // by place; guarded by mu
}

// places is how many nodes a client can know.
const places = 5

func (r *rig) link(h *netns.Host, seed uint64) (*link, []string, error) {
	l := &link{host: h, random: rand.New(rand.NewPCG(seed, uint64(len(r.links)+1000))), targets: make([]string, places)}
	r.links = append(r.links, l)
	var addrs []string
	for place := range places {
		ln, err := h.Listen(7500 + place)
		if err != nil {
			return nil, nil, err
		}
		r.t.Cleanup(func() { ln.Close() })
		addrs = append(addrs, ln.Addr().String())
		go func() {
			for {
				conn, err := ln.Accept()
				if err != nil {
					return
				}
				go l.carry(conn, place)
			}
		}()
	}
	return l, addrs, nil
}

// place has the clients reach the members at their places. A place is an address: it
// is one node's for as long as that is a member, or a guard that has a stream at each
// of two places could have both at one node, and not know it.
func (r *rig) place() {
	for i, n := range r.places {
		if n != nil && n.removed {
			r.places[i] = nil
		}
	}
	for _, n := range r.members() {
		if free := slices.Index(r.places[:], nil); free >= 0 && !slices.Contains(r.places[:], n) {
			r.places[free] = n
		}
	}
	for _, l := range r.links {
		l.mu.Lock()
		clear(l.targets)
		for i, n := range r.places {
			if n != nil {
				l.targets[i] = n.host.Join(apiPort)
			}
		}
		l.mu.Unlock()
	}
}

func (l *link) carry(near net.Conn, place int) {
	defer near.Close()
	l.mu.Lock()
	target := l.targets[place]
	l.mu.Unlock()
	if target == "" {
		return
	}
	far, err := l.host.DialContext(context.Background(), "tcp", target)
	if err != nil {
		return
	}
	defer far.Close()
	done := make(chan struct{}, 2)
	go func() { l.pump(far, near, true); done <- struct{}{} }()
	go func() { l.pump(near, far, false); done <- struct{}{} }()
	<-done
}

// pump passes on what comes, as late as the link is. What is late holds up what
// comes behind it, as in TCP.
func (l *link) pump(to, from net.Conn, outward bool) {
	buffer := make([]byte, 64<<10)
	for {
		n, err := from.Read(buffer)
		if n > 0 {
			l.wait(outward)
			if _, err := to.Write(buffer[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (l *link) wait(outward bool) {
	l.mu.Lock()
	delay, held := l.delay, l.held
	if held != nil && outward {
		l.waited++
	}
	if l.loss > 0 && l.random.Float64() < l.loss {
		delay += 200 * time.Millisecond // the shortest after which TCP sends again
	}
	l.mu.Unlock()
	if delay > 0 {
		pause(context.Background(), delay)
	}
	if held != nil && outward {
		<-held
	}
}

func (l *link) slow(delay time.Duration, loss float64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.delay, l.loss = delay, loss
}

// hold holds up what goes to the nodes, until release, which says how much waited.
func (l *link) hold() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.held == nil {
		l.held, l.waited = make(chan struct{}), 0
	}
}

func (l *link) release() (waited int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.held != nil {
		close(l.held)
		l.held = nil
	}
	return l.waited
}

// TestPlaces has nodes come and go: who stays, stays where it was.
func TestPlaces(t *testing.T) {
	a, b, c, d := &node{}, &node{}, &node{}, &node{}
	r := &rig{nodes: []*node{a, b, c}}
	r.place()
	r.nodes = append(r.nodes, d)
	r.place()
	a.removed = true
	r.place()
	if want := [places]*node{nil, b, c, d}; r.places != want {
		t.Errorf("%v, not %v", r.places, want)
	}
	e := &node{}
	r.nodes = append(r.nodes, e)
	r.place()
	if want := [places]*node{e, b, c, d}; r.places != want {
		t.Errorf("%v, not %v", r.places, want)
	}
}
