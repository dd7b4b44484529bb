package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/capability"
)

// call is one call of the API, over all its attempts.
type call struct {
	method    string
	path      string // escaped
	query     url.Values
	body      any  // nil: none
	change    bool // carries a request id
	anonymous bool // sends no credential
	accept    string
}

const maxBackoff = 2 * time.Second

// do performs a call and decodes its answer into out (nil: ignored).
func (c *Client) do(ctx context.Context, k call, out any) error {
	data, err := c.raw(ctx, k)
	if err != nil || out == nil {
		return err
	}
	if err := api.Decode(data, out); err != nil {
		return malformed("the authority", err)
	}
	return nil
}

// raw performs a call and returns the body of its answer.
func (c *Client) raw(ctx context.Context, k call) (data []byte, err error) {
	ctx, span := c.spans.Start(ctx, spanName(k), trace.WithSpanKind(trace.SpanKindClient))
	defer func() { endSpan(span, err) }()
	var body []byte
	if k.body != nil {
		var err error
		if body, err = json.Marshal(k.body); err != nil {
			return nil, fmt.Errorf("%s %s: %w", k.method, k.path, err)
		}
	}
	id := ""
	if k.change {
		var err error
		if id, err = c.NewRequestID(ctx); err != nil {
			return nil, err
		}
	}
	return c.newTries(k, id, body).run(ctx, span)
}

type requestIDKey struct{}

// WithRequestID has a change made with this context carry id instead of a fresh
// one, so that a caller can retry over its own restarts.
func WithRequestID(ctx context.Context, id capability.TokenID) context.Context {
	return context.WithValue(ctx, requestIDKey{}, id)
}

// NewRequestID returns the context's request id, or a fresh UUIDv7.
func (c *Client) NewRequestID(ctx context.Context) (string, error) {
	if id, ok := ctx.Value(requestIDKey{}).(capability.TokenID); ok {
		return id.String(), nil
	}
	var random [10]byte
	if _, err := io.ReadFull(c.cfg.Rand, random[:]); err != nil {
		return "", fmt.Errorf("request id: %w", err)
	}
	return capability.NewTokenID(c.cfg.Now().UnixMilli(), random).String(), nil
}

// request builds the HTTP request of one attempt.
func (c *Client) request(ctx context.Context, k call, base, id string, body []byte) (*http.Request, error) {
	target := base + k.path
	if len(k.query) != 0 {
		target += "?" + k.query.Encode()
	}
	var r io.Reader
	if body != nil {
		r = bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, k.method, target, r)
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	accept := k.accept
	if accept == "" {
		accept = "application/json"
	}
	req.Header.Set("Accept", accept+", application/problem+json")
	if id != "" {
		req.Header.Set(api.HeaderRequestID, id)
	}
	if !k.anonymous {
		text, err := c.token(ctx)
		if err != nil {
			return nil, err
		}
		req.Header.Set("Authorization", "Bearer "+text)
	}
	propagation.TraceContext{}.Inject(ctx, propagation.HeaderCarrier(req.Header))
	return req, nil
}

func (c *Client) attempt(ctx context.Context, k call, base, id string, body []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	req, err := c.request(ctx, k, base, id, body)
	if err != nil {
		return nil, &fatalError{err}
	}
	resp, err := c.lanes[laneCalls].Do(req)
	if err != nil {
		return nil, networkError(base, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return nil, problem(base, resp)
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, c.cfg.MaxResponse+1))
	if err != nil {
		return nil, networkError(base, err)
	}
	if int64(len(data)) > c.cfg.MaxResponse {
		return nil, &fatalError{malformed(base, errors.New("the body is over the bound"))}
	}
	return data, nil
}

// problem reads a refusal. What is no problem document is told by its status.
func problem(base string, resp *http.Response) error {
	e := &Error{Addr: base}
	data, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil || !strings.HasPrefix(resp.Header.Get("Content-Type"), "application/problem+json") ||
		api.Decode(data, &e.Problem) != nil || e.Problem.Code == "" {
		e.Problem = api.Problem{Title: http.StatusText(resp.StatusCode), Code: api.CodeInternal,
			Detail: "the answer is no problem document: HTTP " + strconv.Itoa(resp.StatusCode)}
		if resp.StatusCode/100 == 5 {
			e.Problem.Code = capability.CodeUnavailable
		}
	}
	e.Problem.Status = resp.StatusCode
	if s, err := strconv.ParseUint(resp.Header.Get("Retry-After"), 10, 16); err == nil {
		e.RetryAfter = time.Duration(s) * time.Second
	}
	return e
}

// fatalError will not get better by trying again.
type fatalError struct{ error }

func (e *fatalError) Unwrap() error { return e.error }

// networkError strips the URL that net/http adds: the message is for people.
func networkError(base string, err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err
	}
	return fmt.Errorf("%s: %w", strings.TrimPrefix(base, "https://"), err)
}

// retryIn says whether and when to try again; round counts the times that all
// nodes have been tried.
func retryIn(err error, round int) (time.Duration, bool) {
	backoff := min(50*time.Millisecond<<min(round, 10), maxBackoff)
	backoff = backoff/2 + rand.N(backoff/2+1)
	if e, ok := errors.AsType[*Error](err); ok && e.elsewhere() {
		return backoff, true // a leader is elected sooner than Retry-After can say
	} else if ok {
		return max(backoff, min(e.RetryAfter, maxBackoff)), e.retryable()
	}
	if _, ok := errors.AsType[*fatalError](err); ok || errors.Is(err, context.Canceled) {
		return 0, false
	}
	return backoff, true
}
