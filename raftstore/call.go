package raftstore

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"sync"
	"time"
)

// A call is a frame each way, on one connection for all calls to a node:
//
//	request: length of what follows, 4 bytes; number of the call, 8 bytes;
//	         method, 1 byte; milliseconds that the caller will wait, 4 bytes;
//	         the request
//	answer:  length of what follows, 4 bytes; number of the call, 8 bytes;
//	         status, 1 byte; the answer, or one byte for the kind of the error
//	         and its text
//
// All numbers are big-endian.
const (
	requestHead = 13
	answerHead  = 9

	statusOK       byte = 0
	statusError    byte = 1 // the handler's
	statusNoMethod byte = 2
	statusBusy     byte = 3

	maxErrorText = 4096 // bytes
	sendQueue    = 64   // frames that wait for a connection
)

// Handle implements Peers.
func (t *Transport) Handle(method byte, h Handler) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.handlers[method] = h
}

func (t *Transport) handler(method byte) Handler {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.handlers[method]
}

// link is one end of a connection for calls.
type link struct {
	conn *peerConn
	max  int // bytes of a frame's payload
	send chan []byte
	ctx  context.Context // until the connection ends
	end  context.CancelFunc
}

func (t *Transport) newLink(c *peerConn) *link {
	l := &link{conn: c, max: t.cfg.MaxCall, send: make(chan []byte, sendQueue)}
	l.ctx, l.end = context.WithCancel(t.ctx)
	go l.write(t.cfg.IOTimeout)
	return l
}

// cut ends the connection.
func (l *link) cut() {
	l.end()
	l.conn.abort()
}

// write sends frames until the connection ends.
func (l *link) write(timeout time.Duration) {
	defer l.cut()
	w := bufio.NewWriterSize(l.conn, 16<<10)
	for {
		select {
		case frame := <-l.send:
			l.conn.SetWriteDeadline(time.Now().Add(timeout))
			if _, err := w.Write(frame); err != nil {
				return
			}
			if len(l.send) > 0 {
				continue
			}
			if err := w.Flush(); err != nil {
				return
			}
		case <-l.ctx.Done():
			return
		}
	}
}

// queue has a frame sent, unless the connection or ctx ends before there is
// room.
func (l *link) queue(ctx context.Context, frame []byte) error {
	select {
	case l.send <- frame:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-l.ctx.Done():
		return l.ctx.Err()
	}
}

// newFrame begins a frame for a payload of n bytes.
func newFrame(head, n int, number uint64) []byte {
	frame := make([]byte, 0, 4+head+n)
	frame = binary.BigEndian.AppendUint32(frame, uint32(head+n))
	return binary.BigEndian.AppendUint64(frame, number)
}

// readHead reads a frame's length, and the head of so many bytes that follows.
// It returns how long the payload is.
func (l *link) readHead(r io.Reader, head []byte) (payload int, err error) {
	var length [4]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return 0, err
	}
	n := int64(binary.BigEndian.Uint32(length[:]))
	if n < int64(len(head)) || n > int64(len(head)+l.max) {
		return 0, fmt.Errorf("%w: frame of %d bytes", ErrTooLarge, n)
	}
	_, err = io.ReadFull(r, head)
	return int(n) - len(head), err
}

// answer serves the calls of a peer until its connection ends.
func (t *Transport) answer(c *peerConn) {
	l := t.newLink(c)
	defer l.cut()
	slots := make(chan struct{}, MaxCalls)
	ownSlots := make(chan struct{}, MaxCalls) // so that others' calls never hold up a read
	r := bufio.NewReaderSize(c, 16<<10)
	var head [requestHead]byte
	for {
		n, err := l.readHead(r, head[:])
		if err != nil {
			return
		}
		number, method := binary.BigEndian.Uint64(head[:]), head[8]
		h := t.handler(method)
		slot := slots
		if method < FirstMethod {
			slot = ownSlots
		}
		refusal := statusOK
		if h == nil {
			refusal = statusNoMethod
		} else {
			select {
			case slot <- struct{}{}:
			default:
				refusal = statusBusy
			}
		}
		if refusal != statusOK {
			if _, err := r.Discard(n); err != nil {
				return
			}
			if l.queue(l.ctx, append(newFrame(answerHead, 0, number), refusal)) != nil {
				return
			}
			continue
		}
		request := make([]byte, n)
		if _, err := io.ReadFull(r, request); err != nil {
			return
		}
		timeout := time.Duration(binary.BigEndian.Uint32(head[9:])) * time.Millisecond
		go func() {
			l.run(h, c.id, number, timeout, request)
			<-slot
		}()
	}
}

// run answers one call.
func (l *link) run(h Handler, from string, number uint64, timeout time.Duration, request []byte) {
	ctx, cancel := context.WithTimeout(l.ctx, timeout)
	defer cancel()
	answer, err := h(ctx, from, request)
	status := statusOK
	if err == nil && len(answer) > l.max {
		err = fmt.Errorf("%w: answer of %d bytes", ErrTooLarge, len(answer))
	}
	if err != nil {
		text := err.Error()
		status, answer = statusError, append([]byte{remoteKind(err)}, text[:min(len(text), maxErrorText)]...)
	}
	frame := append(newFrame(answerHead, len(answer), number), status)
	_ = l.queue(l.ctx, append(frame, answer...)) // fails with the connection
}

// caller is this node's connection for calls to another.
type caller struct {
	*link
	id, address string
	ready       chan struct{} // closed once link or err is set
	err         error

	mu      sync.Mutex
	next    uint64
	pending map[uint64]chan answered // nil once the connection has ended
	unheard time.Time                // of the first call since anything was heard
	probing bool
}

type answered struct {
	status  byte
	payload []byte
	err     error
}

// deafAfter is how long a connection may be silent while calls wait, before one
// that gives up has it probed, and then how long the probe may take. After a
// partition TCP itself can take much longer to notice that it is over.
const deafAfter = 500 * time.Millisecond

// Call implements Peers.
func (t *Transport) Call(ctx context.Context, id, address string, method byte, request []byte) ([]byte, error) {
	if len(request) > t.cfg.MaxCall {
		return nil, fmt.Errorf("%w: request of %d bytes, at most %d", ErrTooLarge, len(request), t.cfg.MaxCall)
	}
	c, err := t.caller(ctx, id, t.address(id, address))
	if err != nil {
		return nil, err
	}
	wait := int64(math.MaxUint32)
	if deadline, ok := ctx.Deadline(); ok {
		wait = min(wait, max(1, time.Until(deadline).Milliseconds()))
	}
	number, done, err := c.ask(ctx, method, uint32(wait), request)
	if err != nil {
		return nil, err
	}
	select {
	case a := <-done:
		return a.result(id)
	case <-ctx.Done():
		if c.forget(number) {
			go c.probe()
		}
		return nil, fmt.Errorf("%w: node %q: %w", ErrIndeterminate, id, ctx.Err())
	}
}

// ask sends a request.
func (c *caller) ask(ctx context.Context, method byte, wait uint32, request []byte) (number uint64, done chan answered, err error) {
	if number, done, err = c.register(); err != nil {
		return 0, nil, err
	}
	frame := append(newFrame(requestHead, len(request), number), method)
	frame = binary.BigEndian.AppendUint32(frame, wait)
	if err := c.queue(ctx, append(frame, request...)); err != nil {
		if c.forget(number) {
			go c.probe()
		}
		return 0, nil, fmt.Errorf("%w: node %q: %w", ErrUnreachable, c.id, err)
	}
	return number, done, nil
}

// result is what a call came to.
func (a answered) result(id string) ([]byte, error) {
	switch {
	case a.err != nil:
		return nil, fmt.Errorf("%w: node %q: connection lost: %w", ErrIndeterminate, id, a.err)
	case a.status == statusOK:
		return a.payload, nil
	case a.status == statusBusy:
		return nil, fmt.Errorf("%w: node %q", ErrBusy, id)
	case a.status == statusNoMethod:
		return nil, fmt.Errorf("%w: node %q does not answer this yet", ErrUnreachable, id)
	case a.status == statusError && len(a.payload) > 0:
		return nil, remoteError(id, a.payload[0], string(a.payload[1:]))
	default:
		return nil, fmt.Errorf("%w: node %q: status %d", ErrIndeterminate, id, a.status)
	}
}

// caller returns the connection for calls to a node, which it dials if there is
// none to that address.
func (t *Transport) caller(ctx context.Context, id, address string) (*caller, error) {
	t.mu.Lock()
	c := t.callers[id]
	if c == nil || c.address != address {
		if c != nil {
			go c.replace()
		}
		c = &caller{id: id, address: address, ready: make(chan struct{}), pending: map[uint64]chan answered{}}
		t.callers[id] = c
		go t.connect(c)
	}
	t.mu.Unlock()
	select {
	case <-c.ready:
		return c, c.err
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: node %q: %w", ErrUnreachable, id, ctx.Err())
	}
}

// replace ends a connection to where the node no longer is.
func (c *caller) replace() {
	<-c.ready
	if c.err == nil {
		c.cut()
	}
}

// connect dials, and then reads answers until the connection ends.
func (t *Transport) connect(c *caller) {
	conn, err := t.dial(t.ctx, c.id, c.address, protoCall)
	if err == nil {
		c.link = t.newLink(conn)
	}
	c.err = err
	close(c.ready)
	if err == nil {
		err = c.read()
		c.cut()
		c.fail(err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.callers[c.id] == c {
		delete(t.callers, c.id)
	}
}

func (c *caller) read() error {
	r := bufio.NewReaderSize(c.conn, 16<<10)
	var head [answerHead]byte
	for {
		n, err := c.readHead(r, head[:])
		if err != nil {
			return err
		}
		payload := make([]byte, n)
		if _, err := io.ReadFull(r, payload); err != nil {
			return err
		}
		number := binary.BigEndian.Uint64(head[:])
		c.mu.Lock()
		done := c.pending[number]
		delete(c.pending, number)
		c.unheard = time.Time{}
		c.mu.Unlock()
		if done != nil { // else the caller has given up
			done <- answered{status: head[8], payload: payload}
		}
	}
}

// register makes room for an answer.
func (c *caller) register() (number uint64, done chan answered, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pending == nil {
		return 0, nil, fmt.Errorf("%w: node %q: connection lost", ErrUnreachable, c.id)
	}
	c.next++
	done = make(chan answered, 1)
	c.pending[c.next] = done
	if c.unheard.IsZero() {
		c.unheard = time.Now()
	}
	return c.next, done, nil
}

// forget gives up on an answer. It returns true when nothing at all came for so
// long that the connection needs to be probed.
func (c *caller) forget(number uint64) (probe bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.pending, number)
	if c.probing || c.unheard.IsZero() || time.Since(c.unheard) < deafAfter {
		return false
	}
	c.probing = true
	return true
}

// probe cuts the connection unless the other end answers.
func (c *caller) probe() {
	ctx, cancel := context.WithTimeout(c.ctx, deafAfter)
	defer cancel()
	_, done, err := c.ask(ctx, methodTerm, uint32(deafAfter.Milliseconds()), nil)
	if err == nil {
		select {
		case <-done:
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	if err != nil {
		c.cut()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.probing = false
}

// fail answers everything that waits.
func (c *caller) fail(err error) {
	if err == nil {
		err = io.EOF
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, done := range c.pending {
		done <- answered{err: err}
	}
	c.pending = nil
}
