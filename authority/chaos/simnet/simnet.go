// Package simnet is a network in memory: byte streams between named hosts, over
// links that hold up, slow down, and come back, like TCP's. It takes time from the
// time package only, so that it runs in a bubble of testing/synctest, and what it
// draws comes from a seed.
//
// No byte of an open connection is ever lost or repeated, as TCP promises: a lossy
// link is a late one, and what is sent over one that is down arrives when it is up
// again. A host that is killed resets its connections, and whoever was at the
// other end learns of it when the link lets it.
package simnet

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"
)

// resend is how long TCP waits before it sends anew what was lost.
const resend = 200 * time.Millisecond

// Link is what happens on the way from one host to another. The zero value
// delivers at once.
type Link struct {
	Down          bool          // nothing arrives until it is up again
	Delay, Jitter time.Duration // at least, and up to so much more
	Loss          float64       // probability that a write has to be sent again
}

// Network connects hosts. Its methods are safe for concurrent use.
type Network struct {
	mu        sync.Mutex
	rng       *rand.Rand           // guarded by mu
	links     map[[2]string]Link   // by from and to; guarded by mu
	listeners map[string]*listener // by address; guarded by mu
	streams   []*stream            // that are open; guarded by mu
	ports     int                  // guarded by mu
	changed   chan struct{}        // closed and replaced when a link comes up; guarded by mu
	sum       hash.Hash            // of all that was sent; guarded by mu
	frozen    map[string]*freezing // by host; guarded by mu
	met       int                  // guarded by mu
}

// freezing is a time in which a host stands still.
type freezing struct {
	over chan struct{} // closed when it is
	held int           // calls that waited; guarded by the network's mu
}

// New makes a network whose links are perfect.
func New(seed uint64) *Network {
	return &Network{
		rng: rand.New(rand.NewPCG(seed, 1)), links: make(map[[2]string]Link),
		listeners: make(map[string]*listener), changed: make(chan struct{}), sum: sha256.New(),
		frozen: make(map[string]*freezing),
	}
}

// Set says what happens on the way from one host to another.
func (n *Network) Set(from, to string, l Link) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.set(from, to, l)
	n.wake()
}

// Both is Set for both ways.
func (n *Network) Both(a, b string, l Link) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.set(a, b, l)
	n.set(b, a, l)
	n.wake()
}

// Freeze has a host stand still, like a process that was stopped: nothing that it
// begins or waits for on the network comes back to it, not even a deadline, before
// Thaw. Others still connect to it and send, and wait for their answers.
func (n *Network) Freeze(host string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.frozen[host] == nil {
		n.frozen[host] = &freezing{over: make(chan struct{})}
	}
}

// Thaw has a host go on, and says how many of its calls were held up.
func (n *Network) Thaw(host string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.thaw(host)
}

func (n *Network) thaw(host string) int {
	f := n.frozen[host]
	if f == nil {
		return 0
	}
	close(f.over)
	delete(n.frozen, host)
	return f.held
}

// stand waits while the host is frozen. The dead wait for nothing.
func (h *Host) stand() {
	for {
		h.net.mu.Lock()
		f := h.net.frozen[h.name]
		if f == nil || h.dead {
			h.net.mu.Unlock()
			return
		}
		f.held++
		h.net.mu.Unlock()
		select {
		case <-f.over:
		case <-h.ended:
			return
		}
	}
}

// Heal makes every link perfect again, and thaws every host.
func (n *Network) Heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for host := range n.frozen {
		n.thaw(host)
	}
	for _, s := range n.streams {
		if n.links[s.way()].Down {
			s.release(n.rng)
		}
	}
	clear(n.links)
	n.wake()
}

func (n *Network) set(from, to string, l Link) {
	way := [2]string{from, to}
	if n.links[way].Down && !l.Down {
		for _, s := range n.streams {
			if s.way() == way {
				s.release(n.rng)
			}
		}
	}
	n.links[way] = l
}

// Sum is a digest of all that was sent so far: by whom to whom, when and what. Two
// runs that agree in it have gone the same way.
func (n *Network) Sum() []byte {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.sum.Sum(nil)
}

// Met is how many connections and writes so far met a link that was not perfect.
func (n *Network) Met() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.met
}

// wake has whoever waits for a link look again.
func (n *Network) wake() {
	close(n.changed)
	n.changed = make(chan struct{})
}

// Host is one life of a host: killed, it never speaks again, and another of its
// name may begin.
type Host struct {
	net  *Network
	name string

	dead  bool          // guarded by net.mu
	ended chan struct{} // closed by Kill
	conns []*Conn       // guarded by net.mu
}

// Host begins a life of a host.
func (n *Network) Host(name string) *Host {
	return &Host{net: n, name: name, ended: make(chan struct{})}
}

// Kill ends the host: its connections and listeners are gone at once.
func (h *Host) Kill() {
	n := h.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if h.dead {
		return
	}
	h.dead = true
	close(h.ended)
	for _, c := range slices.Clone(h.conns) {
		c.in.fail(net.ErrClosed)
		c.out.cut(n, syscall.ECONNRESET)
	}
	h.conns = nil
	for addr, l := range n.listeners {
		if l.host == h {
			delete(n.listeners, addr)
			l.end()
		}
	}
}

// Listen listens at an address, which is any text.
func (h *Host) Listen(addr string) (net.Listener, error) {
	n := h.net
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case h.dead:
		return nil, net.ErrClosed
	case n.listeners[addr] != nil:
		return nil, &net.OpError{Op: "listen", Net: "sim", Addr: address(addr), Err: syscall.EADDRINUSE}
	}
	l := &listener{host: h, addr: addr, queue: make(chan *Conn, 1024), closed: make(chan struct{})}
	n.listeners[addr] = l
	return l, nil
}

// Dial connects to an address, once the links between the two hosts let it.
func (h *Host) Dial(ctx context.Context, addr string) (net.Conn, error) {
	n := h.net
	for {
		h.stand()
		n.mu.Lock()
		changed := n.changed
		l := n.listeners[addr]
		var there, back Link
		if l != nil {
			there, back = n.links[[2]string{h.name, l.host.name}], n.links[[2]string{l.host.name, h.name}]
		}
		if there != (Link{}) || back != (Link{}) {
			n.met++
		}
		n.mu.Unlock()
		if there.Down || back.Down {
			select {
			case <-changed:
				continue
			case <-ctx.Done():
				return nil, dialError(addr, ctx.Err())
			case <-h.ended:
				return nil, dialError(addr, net.ErrClosed)
			}
		}
		if trip := there.Delay + back.Delay; trip > 0 {
			t := time.NewTimer(trip)
			select {
			case <-t.C:
			case <-ctx.Done():
				t.Stop()
				return nil, dialError(addr, ctx.Err())
			case <-h.ended:
				t.Stop()
				return nil, dialError(addr, net.ErrClosed)
			}
		}
		return h.connect(addr)
	}
}

func dialError(addr string, err error) error {
	return &net.OpError{Op: "dial", Net: "sim", Addr: address(addr), Err: err}
}

func (h *Host) connect(addr string) (net.Conn, error) {
	n := h.net
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.listeners[addr]
	switch {
	case h.dead:
		return nil, dialError(addr, net.ErrClosed)
	case l == nil:
		return nil, dialError(addr, syscall.ECONNREFUSED)
	}
	n.ports++
	own := address(fmt.Sprintf("%s:%d", h.name, n.ports))
	there, back := newStream(n, h.name, l.host.name), newStream(n, l.host.name, h.name)
	c := &Conn{host: h, in: back, out: there, local: own, remote: address(addr)}
	other := &Conn{host: l.host, in: there, out: back, local: address(addr), remote: own}
	select {
	case l.queue <- other:
	default:
		return nil, dialError(addr, syscall.ECONNREFUSED)
	}
	n.streams = append(n.streams, there, back)
	h.conns, l.host.conns = append(h.conns, c), append(l.host.conns, other)
	return c, nil
}

type listener struct {
	host   *Host
	addr   string
	queue  chan *Conn
	closed chan struct{}
	once   sync.Once
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.queue:
		l.host.stand()
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *listener) Close() error {
	n := l.host.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.listeners[l.addr] == l {
		delete(n.listeners, l.addr)
	}
	l.end()
	return nil
}

// end refuses what has not been accepted; it needs the network's mu.
func (l *listener) end() {
	l.once.Do(func() {
		close(l.closed)
		for {
			select {
			case c := <-l.queue:
				c.in.fail(net.ErrClosed)
				c.out.cut(l.host.net, syscall.ECONNRESET)
			default:
				return
			}
		}
	})
}

// Addr implements net.Listener.
func (l *listener) Addr() net.Addr { return address(l.addr) }

type address string

// Network implements net.Addr.
func (address) Network() string { return "sim" }

// String implements net.Addr.
func (a address) String() string { return string(a) }

var errReset = errors.New("connection reset")
