package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
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
	// Warm has the stream run on a connection of its own beside the first.
	Warm bool
}

// Feed is an open stream. Next is called by one goroutine at a time; Close by any.
type Feed struct {
	addr   string
	body   io.ReadCloser
	lines  *bufio.Reader
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
	if r.From != (api.Cursor{}) {
		q.Set("incarnation", strconv.FormatUint(r.From.Incarnation, 10))
		q.Set("index", strconv.FormatUint(r.From.Index, 10))
	}
	base := c.bases[uint(r.Node)%uint(len(c.bases))]
	ctx, cancel := context.WithCancel(ctx)
	k := call{method: http.MethodGet, path: "/v1/feed", query: q, accept: "application/x-ndjson"}
	req, err := c.request(ctx, k, base, "", nil)
	if err != nil {
		cancel()
		return nil, err
	}
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
	return &Feed{addr: base, body: resp.Body, lines: bufio.NewReaderSize(resp.Body, maxFeedLine), cancel: cancel}, nil
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

// ping is one attempt at one node; a lost ping is made up for by the next.
func (c *Client) ping(ctx context.Context, addr string, r api.PingRequest) error {
	body, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_, err = c.attempt(ctx, ask("/v1/feed/ping", nil), addr, "", body)
	return err
}
