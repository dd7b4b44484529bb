package replica

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/client"
)

const (
	pingsPerBound = 4  // a replica pings this often within its bound
	warmPings     = 2  // the second stream: every so many, while the first keeps it fresh
	maxPending    = 64 // pings of one stream that wait for their answer
	maxBackoff    = time.Second
	// firstBound judges a stream before a node has named the cluster's bound.
	firstBound = 5 * time.Second
)

// feedState is what the two streams share.
type feedState struct {
	mu      sync.Mutex
	cursor  api.Cursor    // everything up to here is applied; only rises
	seen    api.Cursor    // the newest event that has been applied
	pending *dataset      // a snapshot under way; what streams bring meanwhile goes in as well
	owner   *stream       // whose snapshot that is
	live    int           // streams that have answered a ping
	err     error         // the last, until something goes right
	changed chan struct{} // closed and replaced when any of this changes
	nodes   [2]int        // the node that each stream is at
}

func (f *feedState) wait() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.changed
}

func (f *feedState) at() api.Cursor {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.cursor
}

func (f *feedState) lastError() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

// report records an error, or that something went right.
func (f *feedState) report(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
	f.wake()
}

// wake is called with mu held.
func (f *feedState) wake() {
	close(f.changed)
	f.changed = make(chan struct{})
}

// stream is one open feed and its pings.
type stream struct {
	r    *Replica
	slot int
	feed *client.Feed
	id   string
	at   api.Cursor // of the last event; the reading goroutine's own
	live bool       // a ping was answered; the reading goroutine's own

	mu      sync.Mutex
	nonce   uint64
	waiting map[uint64]ping // guarded by mu
	pulse   int64           // when the last pong came, or the stream opened; guarded by mu
}

// ping is one that waits for its answer.
type ping struct {
	sent  int64      // on the replica's clock
	floor api.Cursor // what the replica had seen by then
}

// runStream keeps one of the two streams open, going on to the next node when
// it ends.
func (r *Replica) runStream(slot int) {
	if slot == 1 {
		// The second stream resumes where the first has come to, and so needs no
		// snapshot of its own.
		for r.fresh.Load() == never {
			changed := r.feed.wait()
			if r.fresh.Load() != never {
				break
			}
			select {
			case <-changed:
			case <-r.ctx.Done():
				return
			}
		}
	}
	node, failures := slot, 0
	for r.ctx.Err() == nil {
		live, err := r.followOnce(slot, node)
		if r.ctx.Err() != nil {
			return
		}
		if live {
			failures = 0
		}
		r.log.Warn("feed ended", "stream", slot, "node", r.nodeName(node), "error", err)
		r.feed.report(err)
		failures++
		node = r.nextNode(slot, node, failures)
		wait := min(25*time.Millisecond<<min(failures, 8), maxBackoff)
		if !r.pause(wait/2 + rand.N(wait/2+1)) {
			return
		}
	}
}

func (r *Replica) nodeName(node int) string {
	addrs := r.client.Addrs()
	return addrs[node%len(addrs)]
}

// nextNode avoids the node of the other stream where there is a choice, every
// other time: two streams to one node are better than one to a node that is gone.
func (r *Replica) nextNode(slot, node, failures int) int {
	n := len(r.client.Addrs())
	r.feed.mu.Lock()
	defer r.feed.mu.Unlock()
	node = (node + 1) % n
	if n > 1 && failures%2 == 1 && node == r.feed.nodes[1-slot]%n {
		node = (node + 1) % n
	}
	return node
}

// pause waits; it reports false when the replica has closed.
func (r *Replica) pause(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-r.ctx.Done():
		return false
	}
}

// followOnce opens a stream and follows it to its end. live reports whether it
// came to answer a ping.
func (r *Replica) followOnce(slot, node int) (live bool, err error) {
	ctx, cancel := context.WithCancelCause(r.ctx)
	defer cancel(nil)
	r.feed.mu.Lock()
	from := r.feed.cursor
	r.feed.nodes[slot] = node
	r.feed.mu.Unlock()

	s := &stream{r: r, slot: slot, waiting: make(map[uint64]ping), pulse: r.clock()}
	watching := make(chan struct{})
	go func() {
		defer close(watching)
		s.watch(ctx, cancel)
	}()
	defer func() {
		cancel(nil)
		<-watching
		s.leave()
	}()
	req := client.FeedRequest{Audiences: r.cfg.Audiences, Registered: r.cfg.Registered, From: from, Node: node, Warm: slot == 1}
	s.feed, err = r.client.Feed(ctx, req)
	if errors.Is(err, api.CodeTooOld) {
		req.From = api.Cursor{}
		s.feed, err = r.client.Feed(ctx, req)
	}
	if err != nil {
		return false, because(ctx, err)
	}
	defer s.feed.Close()
	err = s.follow(ctx)
	return s.live, because(ctx, err)
}

// because prefers the reason that a stream was cut for.
func because(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		return cause
	}
	return err
}

// errSilent ends a stream whose pings go unanswered.
var errSilent = errors.New("the stream has answered no ping within the bound")

// errTogether ends the second stream where both have come to one node.
var errTogether = errors.New("both streams are at one node")

// watch cuts a stream that has answered nothing for longer than the bound: one
// that cannot be opened, one that is cut off, one whose node has lost its
// quorum. And it cuts one that could go elsewhere, should it be at the node of the
// other for a while: if that freezes, there would be none until the bound is past.
func (s *stream) watch(ctx context.Context, cancel context.CancelCauseFunc) {
	for together := false; ; {
		bound := time.Duration(s.r.bound.Load())
		if bound == 0 {
			bound = firstBound
		}
		t := time.NewTimer(bound / 4)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return
		}
		s.mu.Lock()
		silent := s.r.clock()-s.pulse > int64(max(bound, time.Second))
		s.mu.Unlock()
		if silent {
			cancel(errSilent)
			return
		}
		was := together
		if together = s.r.together(); together && was && s.slot == 1 {
			cancel(errTogether)
			return
		}
	}
}

// together reports whether both streams are well, and at one node of several.
func (r *Replica) together() bool {
	n := len(r.client.Addrs())
	f := &r.feed
	f.mu.Lock()
	defer f.mu.Unlock()
	return n > 1 && f.live == 2 && f.nodes[0]%n == f.nodes[1]%n
}

// leave undoes what the stream has left in the shared state.
func (s *stream) leave() {
	f := &s.r.feed
	f.mu.Lock()
	defer f.mu.Unlock()
	if s.live {
		f.live--
	}
	if f.owner == s {
		f.owner, f.pending = nil, nil
	}
}

// follow reads the stream: hello, then events.
func (s *stream) follow(ctx context.Context) error {
	e, err := s.feed.Next()
	if err != nil {
		return err
	}
	if e.Hello == nil || e.Hello.Stream == "" {
		return fmt.Errorf("%w: the feed does not begin with hello", client.ErrResponse)
	}
	if e.At.Incarnation < s.r.feed.at().Incarnation {
		return fmt.Errorf("%w: incarnation %d", ErrBehind, e.At.Incarnation)
	}
	s.id, s.at = e.Hello.Stream, api.Cursor{Incarnation: e.At.Incarnation}
	if e.Hello.Bound > 0 && s.r.cfg.Bound == 0 {
		s.r.bound.Store(max(int64(time.Duration(e.Hello.Bound)*time.Millisecond), int64(MinBound)))
	}
	pinging := make(chan struct{})
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		defer close(pinging)
		s.pings(ctx)
	}()
	defer func() {
		cancel()
		s.feed.Close() // which ends a ping that waits
		<-pinging
	}()
	for {
		e, err := s.feed.Next()
		if err == io.EOF {
			return errEnded
		}
		if err != nil {
			return err
		}
		if err := s.apply(&e); err != nil {
			return err
		}
	}
}

var errEnded = errors.New("the node has closed the stream")

// apply takes one event.
func (s *stream) apply(e *api.FeedEvent) error {
	r, f := s.r, &s.r.feed
	if less(e.At, s.at) || e.At.Incarnation != s.at.Incarnation {
		return fmt.Errorf("%w: the stream went from %v back to %v", ErrBehind, s.at, e.At)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if e.At.Incarnation < f.cursor.Incarnation {
		return fmt.Errorf("%w: incarnation %d", ErrBehind, e.At.Incarnation)
	}
	if (e.Revoke != nil || e.Issued != nil || e.Pong != nil) && f.owner != s && s.at.Incarnation != r.data.Load().incarnation {
		return fmt.Errorf("%w: incarnation %d without its snapshot", client.ErrResponse, e.At.Incarnation)
	}
	if !s.live {
		s.mu.Lock()
		s.pulse = r.clock() // a long snapshot is no silence
		s.mu.Unlock()
	}
	// Several events can share an index: what was there before is complete only
	// once a later one is seen.
	if e.At.Index > s.at.Index && f.owner != s && e.Snapshot == "" && s.at.Index > 0 {
		s.reach(s.at)
	}
	s.at = e.At
	switch {
	case e.Hello != nil:
		return fmt.Errorf("%w: a second hello", client.ErrResponse)
	case e.Snapshot == "begin":
		if f.owner == s {
			return fmt.Errorf("%w: a snapshot within a snapshot", client.ErrResponse)
		}
		if less(e.At, f.seen) || less(e.At, f.cursor) {
			return fmt.Errorf("%w: its snapshot is of %v, this replica has seen %v", ErrBehind, e.At, f.seen)
		}
		if f.owner != nil {
			return errBusy
		}
		f.owner, f.pending = s, newDataset(e.At.Incarnation)
		f.pending.revoked.Forget(e.Ended)
	case e.Snapshot == "end":
		if f.owner != s {
			return fmt.Errorf("%w: the end of no snapshot", client.ErrResponse)
		}
		s.swap(e.At)
	case e.Revoke != nil:
		return s.each(func(d *dataset) error { return d.revoke(e.Revoke) })
	case e.Issued != nil:
		return s.each(func(d *dataset) error {
			d.issued.put(e.Issued.Token, issued{e.Issued.Branch, e.Issued.Expires})
			return nil
		})
	case e.Keys:
		r.keysChanged()
	case e.Recall != nil:
		r.leases.recall(e.Recall.Lease)
	case e.Pong != nil:
		return s.pong(e)
	case e.Checkpoint != "":
		r.offerCheckpoint(e.Checkpoint)
	}
	return nil
}

// errBusy has the second of two streams that both bring a snapshot come again.
var errBusy = errors.New("another stream's snapshot is under way")

// each applies an event to the set in force, if it is of this incarnation, and
// to one that is being built. mu of the feed is held.
func (s *stream) each(apply func(*dataset) error) error {
	f := &s.r.feed
	if d := s.r.data.Load(); d.incarnation == s.at.Incarnation && f.owner != s {
		if err := apply(d); err != nil {
			return err
		}
		if less(f.seen, s.at) {
			f.seen = s.at
		}
	}
	if f.pending != nil && f.pending.incarnation == s.at.Incarnation {
		return apply(f.pending)
	}
	return nil
}

// swap puts a whole new set in force. mu of the feed is held.
func (s *stream) swap(at api.Cursor) {
	r, f := s.r, &s.r.feed
	r.keysChanged() // a snapshot skips events, those of keys too
	if r.data.Load().incarnation != at.Incarnation {
		// Keys of another incarnation verify nothing that this one has issued,
		// and what it has revoked is not known for them. Nor does an answer of
		// that one say how fresh this set is.
		r.fresh.Store(never)
		if r.keys.Load().incarnation != at.Incarnation {
			r.keys.Store(&keyring{})
		}
		r.leases.forget()
	}
	r.data.Store(f.pending)
	f.owner, f.pending = nil, nil
	if less(f.seen, at) {
		f.seen = at
	}
	s.reach(at)
}

// reach raises the cursor. mu of the feed is held.
func (s *stream) reach(at api.Cursor) {
	f := &s.r.feed
	if s.r.data.Load().incarnation == at.Incarnation && less(f.cursor, at) {
		f.cursor = at
		f.wake()
	}
}

// pong takes the answer to a ping. mu of the feed is held.
func (s *stream) pong(e *api.FeedEvent) error {
	r, f := s.r, &s.r.feed
	if f.owner == s {
		return fmt.Errorf("%w: a pong within a snapshot", client.ErrResponse)
	}
	s.mu.Lock()
	p, ok := s.waiting[e.Pong.Nonce]
	delete(s.waiting, e.Pong.Nonce)
	if ok {
		s.pulse = r.clock() // a node that answers late is not helped by being asked to begin anew
	}
	s.mu.Unlock()
	if !ok {
		return nil // one that was given up
	}
	if less(e.At, p.floor) {
		return fmt.Errorf("%w: it vouches for %v, this replica had seen %v", ErrBehind, e.At, p.floor)
	}
	s.reach(e.At)
	if p.sent > r.fresh.Load() {
		r.fresh.Store(p.sent) // only under mu of the feed
	}
	if !s.live {
		s.live = true
		f.live++
		f.err = nil
	}
	f.wake()
	return nil
}

// pings asks for pongs, until ctx or the stream ends.
func (s *stream) pings(ctx context.Context) {
	// Nonces start anywhere: a pong cannot be made up by who has not seen the ping.
	var b [8]byte
	if _, err := io.ReadFull(s.r.cfg.Rand, b[:]); err == nil {
		s.nonce = binary.BigEndian.Uint64(b[:]) >> 1
	}
	for n := 0; ; n++ {
		if !s.spared(n) {
			if err := s.feed.Ping(s.newPing()); err != nil {
				return // and so has the stream
			}
		}
		interval := time.Duration(s.r.bound.Load()) / pingsPerBound
		t := time.NewTimer(interval)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return
		}
	}
}

// spared reports whether the n-th ping is left out: on the second stream most are,
// which only shows that it is alive, as long as the replica is as fresh as the first
// keeps it.
func (s *stream) spared(n int) bool {
	fresh := s.r.clock()-s.r.fresh.Load() <= 2*s.r.bound.Load()/pingsPerBound
	return s.slot == 1 && n%warmPings != 0 && fresh
}

// newPing notes a ping before it is sent, and returns its nonce.
func (s *stream) newPing() uint64 {
	floor := s.r.feed.at()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nonce++
	if len(s.waiting) >= maxPending {
		oldest := s.nonce
		for n := range s.waiting {
			oldest = min(oldest, n)
		}
		delete(s.waiting, oldest)
	}
	s.waiting[s.nonce] = ping{sent: s.r.clock(), floor: floor}
	return s.nonce
}
