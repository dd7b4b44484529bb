package simnet

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
	"time"
)

// stream is one direction of a connection.
type stream struct {
	net      *Network
	from, to string

	mu     sync.Mutex
	queue  []segment     // guarded by mu
	last   time.Time     // when the newest of them is due; guarded by mu
	err    error         // of the reader, once the queue is empty of what is due; guarded by mu
	broken error         // of the writer; guarded by mu
	gone   bool          // nobody reads any more; guarded by mu
	wake   chan struct{} // one element when something changed
}

// segment is what one write sent, or the end.
type segment struct {
	data []byte
	end  error     // io.EOF, or a reset
	due  time.Time // zero: held up by a link that is down
}

func newStream(n *Network, from, to string) *stream {
	return &stream{net: n, from: from, to: to, wake: make(chan struct{}, 1)}
}

func (s *stream) way() [2]string { return [2]string{s.from, s.to} }

func (s *stream) notify() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// push sends a segment; it needs the network's mu.
func (s *stream) push(g segment) error {
	fmt.Fprintf(s.net.sum, "%s %s %d %d %v\n", s.from, s.to, time.Now().UnixNano(), len(g.data), g.end)
	s.net.sum.Write(g.data)
	l, rng := s.net.links[s.way()], s.net.rng
	if l != (Link{}) {
		s.net.met++
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.broken != nil:
		return s.broken
	case s.gone:
		if !l.Down {
			s.broken = errReset // the answer to this one
		}
		return nil
	}
	if !l.Down {
		g.due = s.after(l, rng)
	}
	s.queue = append(s.queue, g)
	s.notify()
	return nil
}

// after is when what is sent now arrives, behind all before it; it needs mu.
func (s *stream) after(l Link, rng *rand.Rand) time.Time {
	d := l.Delay
	if l.Jitter > 0 {
		d += time.Duration(rng.Int64N(int64(l.Jitter)))
	}
	for l.Loss > 0 && rng.Float64() < min(l.Loss, 0.9) {
		d += resend
	}
	if due := time.Now().Add(d); due.After(s.last) {
		s.last = due
	}
	return s.last
}

// release lets go of what a link held up: it is sent again within a while.
func (s *stream) release(rng *rand.Rand) {
	s.mu.Lock()
	defer s.mu.Unlock()
	due := time.Now().Add(time.Duration(rng.Int64N(int64(resend))))
	for i := range s.queue {
		if s.queue[i].due.IsZero() {
			if due.After(s.last) {
				s.last = due
			}
			s.queue[i].due = s.last
		}
	}
	s.notify()
}

// fail ends the reader at once. The writer learns of it when it has written.
func (s *stream) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.queue, s.err, s.gone = nil, err, true
	s.notify()
}

// reset ends the writer.
func (s *stream) reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broken = errReset
}

// cut ends the writer, and the reader with err when it has arrived; it needs the
// network's mu.
func (s *stream) cut(n *Network, err error) {
	_ = s.push(segment{end: err}) // fails where it has ended already
	s.reset()
	n.streams = slices.DeleteFunc(n.streams, func(o *stream) bool { return o == s && s.arrived() })
}

// arrived reports whether no link can hold anything up any more.
func (s *stream) arrived() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !slices.ContainsFunc(s.queue, func(g segment) bool { return g.due.IsZero() })
}

// take reads what has arrived. If there is nothing it says until when to wait, if
// that is known.
func (s *stream) take(b []byte) (n int, err error, wait time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for len(s.queue) > 0 && n < len(b) {
		g := &s.queue[0]
		if g.due.IsZero() || g.due.After(now) {
			break
		}
		if g.end != nil {
			if n > 0 {
				return n, nil, 0
			}
			s.err, s.queue = g.end, nil
			break
		}
		c := copy(b[n:], g.data)
		n += c
		if g.data = g.data[c:]; len(g.data) == 0 {
			s.queue = s.queue[1:]
		}
	}
	switch {
	case n > 0:
		return n, nil, 0
	case s.err != nil:
		return 0, s.err, 0
	case len(s.queue) > 0 && !s.queue[0].due.IsZero():
		return 0, nil, s.queue[0].due.Sub(now)
	}
	return 0, nil, -1
}

// Conn is one end of a connection. A write never blocks: what a link holds up
// waits in memory.
type Conn struct {
	host          *Host
	in, out       *stream
	local, remote net.Addr

	mu       sync.Mutex
	deadline time.Time // of reads; guarded by mu
	write    time.Time // deadline of writes; guarded by mu
	closed   bool      // guarded by mu
}

// Read implements net.Conn.
func (c *Conn) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	for {
		c.host.stand()
		c.mu.Lock()
		deadline, closed := c.deadline, c.closed
		c.mu.Unlock()
		if closed {
			return 0, net.ErrClosed
		}
		if !deadline.IsZero() && !time.Now().Before(deadline) {
			return 0, os.ErrDeadlineExceeded
		}
		n, err, wait := c.in.take(b)
		if n == 0 && err != nil && err != io.EOF {
			c.out.reset()
		}
		if n > 0 || err != nil {
			return n, err
		}
		if !deadline.IsZero() {
			if left := time.Until(deadline); wait < 0 || left < wait {
				wait = left
			}
		}
		if wait < 0 {
			<-c.in.wake
			continue
		}
		t := time.NewTimer(wait)
		select {
		case <-c.in.wake:
		case <-t.C:
		}
		t.Stop()
	}
}

// Write implements net.Conn.
func (c *Conn) Write(b []byte) (int, error) {
	c.host.stand()
	c.mu.Lock()
	deadline, closed := c.write, c.closed
	c.mu.Unlock()
	if closed {
		return 0, net.ErrClosed
	}
	if !deadline.IsZero() && !time.Now().Before(deadline) {
		return 0, os.ErrDeadlineExceeded
	}
	if len(b) == 0 {
		return 0, nil
	}
	n := c.host.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := c.out.push(segment{data: slices.Clone(b)}); err != nil {
		return 0, err
	}
	return len(b), nil
}

// Close implements net.Conn.
func (c *Conn) Close() error {
	c.mu.Lock()
	closed := c.closed
	c.closed = true
	c.mu.Unlock()
	if closed {
		return net.ErrClosed
	}
	n := c.host.net
	n.mu.Lock()
	defer n.mu.Unlock()
	c.in.fail(net.ErrClosed)
	c.out.cut(n, io.EOF)
	n.streams = slices.DeleteFunc(n.streams, func(s *stream) bool { return s == c.in })
	c.host.conns = slices.DeleteFunc(c.host.conns, func(o *Conn) bool { return o == c })
	return nil
}

// LocalAddr implements net.Conn.
func (c *Conn) LocalAddr() net.Addr { return c.local }

// RemoteAddr implements net.Conn.
func (c *Conn) RemoteAddr() net.Addr { return c.remote }

// SetDeadline implements net.Conn.
func (c *Conn) SetDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.write = t
	return c.setRead(t)
}

// SetReadDeadline implements net.Conn.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.setRead(t)
}

// setRead needs mu.
func (c *Conn) setRead(t time.Time) error {
	c.deadline = t
	c.in.notify()
	return nil
}

// SetWriteDeadline implements net.Conn.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.write = t
	return nil
}
