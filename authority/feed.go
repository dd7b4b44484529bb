package authority

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/state"
	"github.com/writ-dev/writ/capability"
)

const (
	maxFeedAudiences = 64
	maxPendingPings  = 16 // of one stream
	feedBatch        = 1024
	checkpointEvery  = 10 * time.Second
	signEvery        = time.Second // a checkpoint for the feeds
)

// feeds are the open streams.
type feeds struct {
	pings, pongs atomic.Uint64

	mu     sync.Mutex
	open   map[string]*feed // guarded by mu
	closed bool             // guarded by mu
	ended  sync.WaitGroup

	signing sync.Mutex
	newest  signedCheckpoint // guarded by signing
}

// signedCheckpoint is the audit log's, shared by all feeds: to sign costs more than
// to send.
type signedCheckpoint struct {
	text        string
	size        int64
	incarnation uint64
	signed      time.Time
}

// feed is one stream.
type feed struct {
	id      string
	caller  Caller
	request FeedRequest
	send    func(*api.FeedEvent) error
	wake    chan struct{} // holds one element when there is something new to see
	stop    chan struct{} // closed when the node closes

	// The streaming goroutine's.
	at              api.Cursor // streamed up to
	endsMillis      int64      // when the caller's credential does, Unix ms
	pending         int        // pings not yet answered
	checkpointSize  int64
	checkpointAfter time.Time

	mu      sync.Mutex
	pongs   []pong   // may be sent once everything up to their index has been; guarded by mu
	recalls []string // leases to ask back; guarded by mu
}

type pong struct{ nonce, index uint64 }

var closedChannel = func() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

// FeedRequest opens a feed.
type FeedRequest struct {
	Audiences  []string   // at least one
	Registered bool       // registered tokens too
	From       api.Cursor // zero: begin with a snapshot
	// Warm is for a second feed of the same beside the first: it is told of nothing
	// until it has to be answered a ping, or for the bound. It is of use only should the
	// first not tell, and a revocation has to reach everyone once before it is worth
	// anything to tell them again.
	Warm bool
	// Pings are nonces, each of which asks for a pong: after a quorum read that begins
	// after the nonce was taken, and after everything up to that read's index. When too
	// many wait for theirs, none is taken. nil: none; closed: no more.
	Pings <-chan uint64
}

func (fs *feeds) add(f *feed) error {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fs.closed {
		return errClosed
	}
	fs.open[f.id] = f
	fs.ended.Add(1)
	return nil
}

func (fs *feeds) remove(f *feed) {
	fs.mu.Lock()
	delete(fs.open, f.id)
	fs.mu.Unlock()
	fs.ended.Done()
}

// close ends all streams and waits until they have.
func (fs *feeds) close() {
	fs.mu.Lock()
	fs.closed = true
	for _, f := range fs.open {
		close(f.stop)
	}
	clear(fs.open)
	fs.mu.Unlock()
	fs.ended.Wait()
}

func (fs *feeds) count() int {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	return len(fs.open)
}

// cursor is where this node's feed is.
func (a *Authority) cursor() api.Cursor {
	return api.Cursor{Incarnation: a.machine.Cluster().Incarnation, Index: a.machine.Through()}
}

// Feed streams to send, hello first, until ctx ends, send fails, the caller's
// credential ends, or the node closes; it never returns nil. send is called from
// one goroutine; one that blocks holds up this stream alone.
//
// Events come in log order. Where several share an index, only the last of them
// is sent with it, so that to resume from any event misses none. Whoever comes
// from another incarnation, or from before what is kept, gets a snapshot.
func (a *Authority) Feed(ctx context.Context, c Caller, req FeedRequest, send func(*api.FeedEvent) error) error {
	if len(req.Audiences) == 0 || len(req.Audiences) > maxFeedAudiences {
		return invalid(fmt.Sprintf("audiences: 1 to %d", maxFeedAudiences))
	}
	for _, audience := range req.Audiences {
		if !capability.ValidName(audience, capability.MaxAudience) {
			return invalid("audience: 1 to 100 bytes of visible ASCII")
		}
		if err := a.entitled(c, audience); err != nil {
			return err
		}
	}
	var id [16]byte
	if err := a.random(id[:]); err != nil {
		return err
	}
	f := &feed{
		id: hex.EncodeToString(id[:]), caller: c, request: req, send: send,
		wake: make(chan struct{}, 1), stop: make(chan struct{}),
	}
	var ok bool
	if _, f.endsMillis, ok = a.machine.Registered(c.Token); !ok {
		return &Error{Code: capability.CodeUnregistered}
	}
	if err := a.catchUp(ctx, req.From); err != nil {
		return err
	}
	if err := a.feeds.add(f); err != nil {
		return err
	}
	defer a.feeds.remove(f)
	return serviceError(a.stream(ctx, f))
}

// catchUp waits a little when the caller has seen more than this node has.
func (a *Authority) catchUp(ctx context.Context, from api.Cursor) error {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(a.machine.Cluster().BoundMillis)*time.Millisecond)
	defer cancel()
	for {
		changed := a.machine.Changed()
		at := a.cursor()
		if from.Incarnation < at.Incarnation || from.Incarnation == at.Incarnation && from.Index <= at.Index {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return &Error{Code: capability.CodeUnavailable, Detail: "this node is behind", Hint: "try another node"}
		}
	}
}

// stream is the life of a feed.
func (a *Authority) stream(ctx context.Context, f *feed) error {
	cluster := a.machine.Cluster()
	f.at = api.Cursor{Incarnation: cluster.Incarnation}
	resumes := f.request.From.Incarnation == cluster.Incarnation && f.request.From.Index > 0
	if resumes {
		f.at.Index = f.request.From.Index
	}
	hello := &api.FeedHello{Stream: f.id, Node: a.cfg.NodeID, Bound: cluster.BoundMillis}
	if err := f.send(&api.FeedEvent{At: f.at, Hello: hello}); err != nil {
		return err
	}
	if !resumes {
		if err := a.sendSnapshot(f); err != nil {
			return err
		}
	}
	every := checkpointEvery
	waits := a.machine.News // a node issues far more often than it revokes
	switch {
	case f.request.Warm:
		every = time.Duration(cluster.BoundMillis) * time.Millisecond
		waits = func() <-chan struct{} { return nil }
	case f.request.Registered:
		waits = a.machine.Changed
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	var buf []state.Event
	for {
		changed := waits()
		if err := a.recheck(f); err != nil {
			return err
		}
		var err error
		var through uint64
		buf, through, err = a.machine.Events(buf[:0], f.at.Index, feedBatch)
		if errors.Is(err, state.ErrTooOld) {
			err = a.sendSnapshot(f)
		} else if err == nil {
			err = f.sendEvents(buf, through)
		}
		if err == nil {
			err = a.sendPongs(f)
		}
		if err == nil {
			err = f.sendRecalls()
		}
		if err == nil {
			err = a.sendCheckpoint(f)
		}
		if err != nil {
			return err
		}
		var behind <-chan struct{} // beside the rest: pings are taken while a node has much to stream
		if f.at.Index < a.machine.Through() {
			behind = closedChannel
		}
		pings := f.request.Pings
		if f.pending >= maxPendingPings {
			pings = nil
		}
		select {
		case nonce, ok := <-pings:
			if !ok {
				f.request.Pings = nil
				continue
			}
			a.ping(f, nonce)
		case <-behind:
		case <-changed:
		case <-f.wake:
		case <-tick.C:
		case <-f.stop:
			return errClosed
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// recheck ends a stream whose caller may no longer have it, or whose
// incarnation is over.
func (a *Authority) recheck(f *feed) error {
	switch {
	case a.machine.Cluster().Incarnation != f.at.Incarnation:
		return &Error{Code: capability.CodeUnavailable, Detail: "a new incarnation has begun"}
	case f.endsMillis <= a.now():
		return &Error{Code: capability.CodeExpired}
	case a.machine.IsRevoked(f.caller.Token, f.caller.Branches):
		return &Error{Code: capability.CodeRevoked}
	}
	return nil
}

// wants reports whether an event concerns the stream.
func (f *feed) wants(e *state.Event) bool {
	if e.Revoke == nil && !e.Keys && !f.request.Registered {
		return false
	}
	return e.Audience == "" || slices.Contains(f.request.Audiences, e.Audience)
}

func (f *feed) event(at api.Cursor, e *state.Event) *api.FeedEvent {
	out := &api.FeedEvent{At: at, Keys: e.Keys, Revoke: e.Revoke}
	if issued := e.Issued; issued.Expires != 0 {
		out.Issued = &issued // a copy: e is in a buffer that is used again
	}
	return out
}

// sendEvents sends events, which are complete through an index.
func (f *feed) sendEvents(list []state.Event, through uint64) error {
	for i := range list {
		e := &list[i]
		if !f.wants(e) {
			continue
		}
		at := api.Cursor{Incarnation: f.at.Incarnation, Index: e.Index}
		if i+1 < len(list) && list[i+1].Index == e.Index {
			at.Index--
		}
		if err := f.send(f.event(at, e)); err != nil {
			return err
		}
	}
	f.at.Index = max(f.at.Index, through)
	return nil
}

// sendSnapshot sends the whole set, to be swapped in at its end.
func (a *Authority) sendSnapshot(f *feed) error {
	s, err := a.machine.FeedSnapshot(f.request.Audiences, f.request.Registered)
	if err != nil {
		return err
	}
	at := api.Cursor{Incarnation: f.at.Incarnation, Index: s.Index}
	// The last stamp, read after the snapshot was taken: what has been forgotten in it
	// had ended before.
	if err := f.send(&api.FeedEvent{At: at, Snapshot: "begin", Ended: a.machine.Stamp() - 1}); err != nil {
		return err
	}
	for i := range s.Events {
		if err := f.send(f.event(at, &s.Events[i])); err != nil {
			return err
		}
	}
	f.at = at
	return f.send(&api.FeedEvent{At: at, Snapshot: "end"})
}

// sendPongs answers the pings whose read is behind what has been streamed.
func (a *Authority) sendPongs(f *feed) error {
	f.mu.Lock()
	var due []pong
	f.pongs = slices.DeleteFunc(f.pongs, func(p pong) bool {
		if p.index <= f.at.Index {
			due = append(due, p)
			return true
		}
		return false
	})
	f.mu.Unlock()
	f.pending -= len(due)
	for _, p := range due {
		if err := f.send(&api.FeedEvent{At: f.at, Pong: &api.FeedPong{Nonce: p.nonce}}); err != nil {
			return err
		}
		a.feeds.pongs.Add(1)
	}
	return nil
}

// sendCheckpoint sends the audit log's checkpoint now and then, if it has moved.
func (a *Authority) sendCheckpoint(f *feed) error {
	now := a.cfg.Clock()
	if now.Before(f.checkpointAfter) {
		return nil
	}
	f.checkpointAfter = now.Add(checkpointEvery)
	log, err := a.trail.get()
	if err != nil || log.Size() == f.checkpointSize {
		return nil
	}
	c, err := a.feedCheckpoint(f.at.Incarnation, now)
	if err != nil || c.size <= f.checkpointSize {
		return err
	}
	f.checkpointSize = c.size
	return f.send(&api.FeedEvent{At: f.at, Checkpoint: c.text})
}

// feedCheckpoint is the newest checkpoint, or one that is hardly older.
func (a *Authority) feedCheckpoint(incarnation uint64, now time.Time) (signedCheckpoint, error) {
	a.feeds.signing.Lock()
	defer a.feeds.signing.Unlock()
	newest := &a.feeds.newest
	if age := now.Sub(newest.signed); age >= 0 && age < signEvery && newest.incarnation == incarnation {
		return *newest, nil
	}
	text, size, err := a.checkpoint()
	if err != nil {
		return signedCheckpoint{}, err
	}
	*newest = signedCheckpoint{string(text), size, incarnation, now}
	return *newest, nil
}

// ping has the stream send a pong once a quorum read that begins now or later has
// succeeded.
func (a *Authority) ping(f *feed, nonce uint64) {
	f.pending++
	a.feeds.pings.Add(1)
	a.fresh.after(func(index uint64) {
		f.mu.Lock()
		f.pongs = append(f.pongs, pong{nonce, index})
		f.mu.Unlock()
		select {
		case f.wake <- struct{}{}:
		default:
		}
	})
}
