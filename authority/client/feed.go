package client

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"sync"

	"github.com/writ-dev/writ/authority/api"
)

// maxFeedLine bounds one event of a feed, in bytes.
const maxFeedLine = 64 << 10

// FeedRequest opens a stream of revocations.
type FeedRequest struct {
	Audiences  []string
	Registered bool       // carry registered tokens too
	From       api.Cursor // resume after; zero: from a snapshot
	// Node is the index into Addrs of the node to open the stream to.
	Node int
	// Warm is a second stream beside the first, on a connection of its own. What the
	// first tells too comes with the next pong there, or after the bound.
	Warm bool
}

// Feed is an open stream. Next is called by one goroutine at a time, and so is
// Ping; Close by any.
type Feed struct {
	addr   string
	body   io.ReadCloser
	lines  *bufio.Reader
	pings  *pingLines
	line   []byte // Ping's
	cancel context.CancelFunc
	once   sync.Once
}

// Feed opens a stream at one node, once: the caller decides what to do about
// an error. ctx ends the stream.
func (c *Client) Feed(ctx context.Context, r FeedRequest) (*Feed, error) {
	q := url.Values{"audience": r.Audiences}
	if r.Registered {
		q.Set("registered", "true")
	}
	if r.Warm {
		q.Set("warm", "true")
	}
	if r.From != (api.Cursor{}) {
		q.Set("incarnation", strconv.FormatUint(r.From.Incarnation, 10))
		q.Set("index", strconv.FormatUint(r.From.Index, 10))
	}
	base := c.bases[uint(r.Node)%uint(len(c.bases))]
	ctx, cancel := context.WithCancel(ctx)
	k := call{method: http.MethodPost, path: "/v1/feed", query: q, accept: feedType}
	req, err := c.request(ctx, k, base, "", nil)
	if err != nil {
		cancel()
		return nil, err
	}
	pings := new(pingLines)
	req.Header.Set("Content-Type", feedType)
	req.GetBody = pings.body
	if req.Body, err = pings.body(); err != nil {
		cancel()
		return nil, err
	}
	// Not only with Close: a write may wait for a node that takes nothing.
	context.AfterFunc(ctx, func() { pings.end(ctx.Err()) })
	lane := laneFeed
	if r.Warm {
		lane = laneWarm
	}
	resp, err := c.lanes[lane].Do(req)
	if err != nil {
		cancel()
		return nil, networkError(base, err)
	}
	if resp.StatusCode != http.StatusOK {
		defer cancel()
		defer resp.Body.Close()
		return nil, problem(base, resp)
	}
	return &Feed{addr: base, body: resp.Body, lines: bufio.NewReaderSize(resp.Body, maxFeedLine), pings: pings, cancel: cancel}, nil
}

const feedType = "application/x-ndjson"

// Ping asks for a pong with this nonce. It may wait for a node that takes nothing
// at the moment, until the stream ends.
func (f *Feed) Ping(nonce uint64) error {
	f.line = append(strconv.AppendUint(append(f.line[:0], `{"nonce":`...), nonce, 10), "}\n"...)
	if err := f.pings.write(f.line); err != nil {
		return networkError(f.addr, err)
	}
	return nil
}

// Addr is the node that the stream is open to.
func (f *Feed) Addr() string { return f.addr }

// Next waits for the next event. After an error the stream is of no more use;
// io.EOF is a node that closed it in good order. Errors wrap ErrResponse for
// what is no event.
func (f *Feed) Next() (api.FeedEvent, error) {
	var e api.FeedEvent
	line, err := f.lines.ReadSlice('\n')
	switch {
	case errors.Is(err, bufio.ErrBufferFull):
		return e, malformed(f.addr, errors.New("an event is over the bound"))
	case err == io.EOF && len(line) != 0:
		return e, networkError(f.addr, io.ErrUnexpectedEOF)
	case err == io.EOF:
		return e, io.EOF
	case err != nil:
		return e, networkError(f.addr, err)
	}
	if err := DecodeEvent(line, &e); err != nil {
		return api.FeedEvent{}, malformed(f.addr, err)
	}
	return e, nil
}

// DecodeEvent reads one line of a feed, strictly: exactly one field besides At
// is set. Errors wrap api.ErrJSON.
func DecodeEvent(line []byte, e *api.FeedEvent) error {
	if err := api.Decode(bytes.TrimSuffix(line, []byte("\n")), e); err != nil {
		return err
	}
	n := 0
	for _, set := range []bool{e.Hello != nil, e.Snapshot != "", e.Revoke != nil, e.Issued != nil, e.Keys,
		e.Recall != nil, e.Pong != nil, e.Checkpoint != ""} {
		if set {
			n++
		}
	}
	if n != 1 || e.Snapshot != "" && e.Snapshot != "begin" && e.Snapshot != "end" || e.Ended != 0 && e.Snapshot != "begin" {
		return errEvent
	}
	return nil
}

var errEvent = errors.Join(api.ErrJSON, errors.New("not exactly one event"))

// Close ends the stream.
func (f *Feed) Close() {
	f.once.Do(func() {
		f.cancel()
		f.body.Close()
	})
}

// pingLines are the body of a feed's request: lines that Ping writes while the
// answer is read. A request that is sent again, with another proof of possession,
// has a body of its own, and no ping was written before its answer began.
type pingLines struct {
	mu  sync.Mutex
	out *io.PipeWriter // guarded by mu
	err error          // that ended them; guarded by mu
}

// body begins anew.
func (p *pingLines) body() (io.ReadCloser, error) {
	in, out := io.Pipe()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return nil, p.err
	}
	if p.out != nil {
		p.out.CloseWithError(errBegunAnew)
	}
	p.out = out
	return in, nil
}

func (p *pingLines) write(line []byte) error {
	p.mu.Lock()
	out, err := p.out, p.err
	p.mu.Unlock()
	if err == nil {
		_, err = out.Write(line)
	}
	return err
}

// end has nobody wait for a write any more.
func (p *pingLines) end(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.err = err
	p.out.CloseWithError(err)
}

var errBegunAnew = errors.New("the request is sent again")
