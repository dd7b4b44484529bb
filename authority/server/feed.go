package server

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/writ-dev/writ/authority"
	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/capability"
)

// flushLag is how long a registered token may wait for company before it is
// sent; everything else is sent at once.
const flushLag = 10 * time.Millisecond

var (
	errTooManyStreams = &refusal{status: http.StatusTooManyRequests, code: api.CodeOverloaded, retry: 5, detail: "too many feeds are open"}
	errShuttingDown   = &refusal{status: http.StatusServiceUnavailable, code: capability.CodeUnavailable, retry: 1, detail: "the node is shutting down"}
)

// feed streams until the caller, the node or the credential ends it.
func feed(x *exchange) error {
	access, err := audiencesAccess(x)
	if err != nil {
		return err
	}
	if err := x.clear("feed", access...); err != nil {
		return err
	}
	pings := make(chan uint64)
	req := authority.FeedRequest{Audiences: x.query["audience"], Pings: pings}
	if req.Registered, err = x.flag("registered"); err != nil {
		return err
	}
	if req.Warm, err = x.flag("warm"); err != nil {
		return err
	}
	if req.From.Incarnation, err = x.number("incarnation", 0); err != nil {
		return err
	}
	if req.From.Index, err = x.number("index", 0); err != nil {
		return err
	}
	caller := x.call.Name
	if err := x.s.openFeed(caller); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(x.ctx())
	defer cancel()
	defer context.AfterFunc(x.s.feeds, cancel)()
	defer x.s.closeFeed(caller)
	if x.s.feeds.Err() != nil {
		return errShuttingDown
	}
	f := &feedWriter{x: x, out: http.NewResponseController(x.w), ctx: ctx}
	// A request's deadlines are not a stream's: its writes are bounded one by one.
	_ = f.out.SetReadDeadline(time.Time{})
	_ = f.out.SetWriteDeadline(time.Time{})
	var beside sync.WaitGroup
	beside.Go(func() { x.recheck(ctx, cancel, access) })
	beside.Go(func() {
		err := f.readPings(ctx, pings)
		if errors.Is(err, api.ErrJSON) || errors.Is(err, bufio.ErrBufferFull) {
			x.s.log.Info("feed ended", "caller", caller, "why", "no ping: "+err.Error())
		}
		if err != nil {
			cancel() // also where the caller has gone
		}
	})
	err = x.s.a.Feed(ctx, x.call.Caller, req, f.send)
	cancel()
	_ = f.out.SetReadDeadline(time.Unix(1, 0)) // nobody waits for another ping
	beside.Wait()
	f.stop()
	if !f.begun {
		return err
	}
	if err != nil && ctx.Err() == nil {
		x.s.log.Info("feed ended", "caller", caller, "stream", f.stream, "why", err.Error())
	}
	return nil // the status has been sent; the client sees the stream end
}

// recheck ends a stream whose credential no longer allows it.
func (x *exchange) recheck(ctx context.Context, end context.CancelFunc, access resources) {
	t := time.NewTicker(recheckEvery)
	defer t.Stop()
	g := new(capability.Grant)
	for {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		for _, res := range access {
			err := x.s.verifier.DryRun(ctx, g, x.set, x.request("feed", res))
			if err == nil || ctx.Err() != nil || errors.Is(err, capability.CodeStaleRevocations) || errors.Is(err, capability.CodeUnavailable) {
				// A node that cannot decide gives no pongs either.
				continue
			}
			x.s.log.Info("feed ended", "caller", x.call.Name, "why", err.Error())
			end()
			return
		}
	}
}

// openFeed counts a stream in.
func (s *Server) openFeed(caller string) error {
	s.streamsMu.Lock()
	defer s.streamsMu.Unlock()
	if s.open >= s.cfg.Limits.Streams || s.callers[caller] >= s.cfg.Limits.PerCaller {
		return errTooManyStreams
	}
	s.open++
	s.callers[caller]++
	return nil
}

func (s *Server) closeFeed(caller string) {
	s.streamsMu.Lock()
	defer s.streamsMu.Unlock()
	s.open--
	if s.callers[caller]--; s.callers[caller] == 0 {
		delete(s.callers, caller)
	}
}

// feedWriter writes a feed's events as lines.
type feedWriter struct {
	x      *exchange
	out    *http.ResponseController
	ctx    context.Context
	stream string // id, once hello was sent; the sending goroutine's own
	begun  bool   // likewise

	mu       sync.Mutex
	snapshot bool // within one: flushed as the buffer fills
	dirty    bool // written and not flushed
	timer    *time.Timer
	err      error
}

// toldLine is the revocation that a feed was told last, as a line: the next feed is
// about to be told the same.
type toldLine struct {
	at   api.Cursor
	what *api.FeedRevocation // the state's own, which does not change
	line []byte              // ends in a newline; not to be written to
}

// line is an event as feeds have it.
func (s *Server) line(e *api.FeedEvent) ([]byte, error) {
	told := s.told.Load()
	if e.Revoke != nil && told != nil && told.what == e.Revoke && told.at == e.At {
		return told.line, nil
	}
	line, err := json.Marshal(e)
	if err != nil {
		return nil, err
	}
	line = append(line, '\n')
	if e.Revoke != nil {
		s.told.Store(&toldLine{e.At, e.Revoke, line})
	}
	return line, nil
}

// send is called from one goroutine.
func (f *feedWriter) send(e *api.FeedEvent) error {
	if !f.begun {
		f.begun = true
		f.x.w.Header().Set("Content-Type", "application/x-ndjson")
		f.x.w.WriteHeader(http.StatusOK)
	}
	if e.Hello != nil {
		f.stream = e.Hello.Stream
	}
	line, err := f.x.s.line(e)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return f.err
	}
	// Writes can block too, when the window is full.
	_ = f.out.SetWriteDeadline(time.Now().Add(feedWriteTimeout))
	if _, err := f.x.w.Write(line); err != nil {
		return err
	}
	f.dirty = true
	if e.Snapshot != "" {
		f.snapshot = e.Snapshot == "begin"
	}
	switch {
	case f.snapshot:
		return nil
	case e.Issued != nil:
		if f.timer == nil {
			f.timer = time.AfterFunc(flushLag, f.late)
		}
		return nil
	}
	return f.flush()
}

// flush is called with mu held.
func (f *feedWriter) flush() error {
	if f.timer != nil {
		f.timer.Stop()
		f.timer = nil
	}
	if !f.dirty || f.err != nil {
		return f.err
	}
	f.dirty = false
	if f.err = f.out.Flush(); f.err != nil {
		return f.err
	}
	return f.out.SetWriteDeadline(time.Time{})
}

// late flushes what has waited long enough.
func (f *feedWriter) late() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.timer != nil && f.ctx.Err() == nil {
		f.timer = nil
		_ = f.flush()
	}
}

// stop leaves nothing running behind the handler.
func (f *feedWriter) stop() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.timer != nil {
		f.timer.Stop()
		f.timer = nil
	}
	f.err = http.ErrAbortHandler
}

// readPings takes the pings of the request's body to the stream, until the body
// ends; what is no ping ends the stream.
func (f *feedWriter) readPings(ctx context.Context, pings chan<- uint64) error {
	lines := bufio.NewReaderSize(f.x.r.Body, api.MaxFeedPing)
	for {
		line, err := lines.ReadSlice('\n')
		if err == io.EOF && len(line) == 0 {
			return nil
		}
		if err != nil {
			return err
		}
		var p api.FeedPing
		if err := api.Decode(bytes.TrimSuffix(line, []byte("\n")), &p); err != nil {
			return err
		}
		select {
		case pings <- p.Nonce:
		case <-ctx.Done():
			return nil
		}
	}
}
