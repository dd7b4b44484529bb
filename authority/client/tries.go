package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/writ-dev/writ/authority/api"
)

// silence is how long a node may take to answer before another is asked as well.
// A leader whose network has gone dark is replaced about then, and whoever asks
// another node by then loses no time by having asked it. Twice the same change is
// harmless: both carry its request id.
const silence = 300 * time.Millisecond

// patience is how long to wait for a node: silence, or several times what calls
// have been taking. A cluster that is slow because it has too much to do must not
// be asked everything twice.
func (c *Client) patience() time.Duration { return max(silence, 4*time.Duration(c.typical.Load())) }

// took notes how long a call took that was answered; two at once may lose one.
func (c *Client) took(d time.Duration) {
	typical := c.typical.Load()
	c.typical.Store(typical + (int64(d)-typical)/8)
}

// tries are the attempts at one call: one after the other, and beside them those
// at nodes that have fallen silent, and may yet answer.
type tries struct {
	c    *Client
	k    call
	id   string
	body []byte

	node    int           // that is being asked
	silent  uint16        // those that were asked before and have not answered, a bit each
	answers chan answered // has room for all of them, since nobody may be waiting any more
}

// answered is what a node answered, or that it is silent.
type answered struct {
	node   int
	silent bool
	data   []byte
	err    error
}

func (c *Client) newTries(k call, id string, body []byte) *tries {
	nodes := len(c.bases)
	return &tries{c: c, k: k, id: id, body: body, node: int(c.first.Load()) % nodes, answers: make(chan answered, c.cfg.Attempts)}
}

// spare reports whether there is a node that is neither silent nor being asked.
func (t *tries) spare() bool {
	return t.silent|1<<t.node != 1<<len(t.c.bases)-1
}

// next goes on to another node, but not to a silent one where there is a choice.
func (t *tries) next() {
	nodes := len(t.c.bases)
	choice := t.spare()
	for t.node = (t.node + 1) % nodes; choice && t.silent&(1<<t.node) != 0; {
		t.node = (t.node + 1) % nodes
	}
}

// run asks the first node on the caller's goroutine: one of its own would have to
// grow its stack for every call. Only if that node falls silent does another
// goroutine go on with the others meanwhile.
func (t *tries) run(ctx context.Context, span trace.Span) ([]byte, error) {
	if len(t.c.bases) == 1 { // there is nobody else to be asked meanwhile
		return t.goOn(ctx, span, t.ask(ctx, t.node))
	}
	trying, cancel := context.WithCancel(ctx)
	defer cancel()
	type outcome struct {
		data []byte
		err  error
	}
	first, settled := t.node, make(chan outcome, 1)
	silent := time.AfterFunc(t.c.patience(), func() {
		defer cancel() // for the one that is silent still
		data, err := t.goOn(ctx, span, answered{node: first, silent: true})
		settled <- outcome{data, err}
	})
	a := t.ask(trying, first)
	if silent.Stop() {
		return t.goOn(ctx, span, a)
	}
	t.answers <- a
	o := <-settled
	return o.data, o.err
}

// ask is one attempt at one node.
func (t *tries) ask(ctx context.Context, node int) answered {
	began := time.Now()
	data, err := t.c.attempt(ctx, t.k, t.c.bases[node], t.id, t.body)
	if err == nil {
		t.c.took(time.Since(began))
	}
	return answered{node: node, data: data, err: err}
}

// askNext asks a node, and waits for what comes of it.
func (t *tries) askNext(ctx context.Context) answered {
	node := t.node
	if len(t.c.bases) == 1 {
		return t.ask(ctx, node)
	}
	go func() { t.answers <- t.ask(ctx, node) }()
	return t.await(node)
}

// goOn takes what the first node said, and asks others, or that one again, while
// it has to.
func (t *tries) goOn(ctx context.Context, span trace.Span, a answered) ([]byte, error) {
	c, nodes := t.c, len(t.c.bases)
	trying, cancel := context.WithCancel(ctx)
	defer cancel()
	var last, open error // open: of an attempt that may have made the change
	for attempt := range c.cfg.Attempts {
		if attempt > 0 {
			a = t.askNext(trying)
		}
		base := c.bases[t.node]
		if a.silent {
			span.AddEvent("silent", trace.WithAttributes(attribute.String("server.address", base)))
			c.log.LogAttrs(ctx, levelRetry, "a node of the authority is silent", strAttr("node", base), strAttr("path", t.k.path))
			last = fmt.Errorf("%s: no answer in %v", strings.TrimPrefix(base, "https://"), c.patience())
			open = last
			t.silent |= 1 << t.node
			t.next()
			continue
		}
		if a.err == nil {
			c.first.Store(uint32(a.node))
			return a.data, nil
		}
		last = a.err
		if unknown(last) {
			open = last
		}
		wait, again := retryIn(a.err, attempt/nodes)
		if !again {
			return nil, t.refusal(a.err, open)
		}
		if e, refused := errors.AsType[*Error](a.err); (!refused || e.elsewhere()) && attempt%nodes != nodes-1 {
			wait = 0 // another node may be well
		}
		t.next()
		if attempt == c.cfg.Attempts-1 {
			break
		}
		span.AddEvent("retry", trace.WithAttributes(attribute.String("server.address", base), codeAttr(a.err)))
		c.log.LogAttrs(ctx, levelRetry, "calling the authority again", errAttr(a.err), durAttr(wait), strAttr("path", t.k.path))
		if data, err := t.pause(ctx, wait); err != nil {
			return nil, fmt.Errorf("%w; last: %w", err, last)
		} else if data != nil {
			return data, nil
		}
	}
	if _, refused := errors.AsType[*Error](last); refused {
		return nil, t.refusal(last, open)
	}
	return nil, fmt.Errorf("%w (tried %s): %w", ErrUnreachable, strings.Join(c.bases, ", "), last)
}

// refusal is what the last refusal of a change comes to where an attempt before it
// is open: a node that has fallen silent may yet make the change.
func (t *tries) refusal(last, open error) error {
	if _, refused := errors.AsType[*Error](last); !refused || !t.k.change || open == nil || unknown(last) {
		return last
	}
	return &Error{Addr: t.c.bases[t.node], Problem: api.Problem{Status: 503, Code: api.CodeIndeterminate,
		Detail: fmt.Sprintf("the change may or may not have been made: %v; then %v", open, last)}}
}

// unknown reports whether a change may have been made in spite of an error.
func unknown(err error) bool {
	if e, refused := errors.AsType[*Error](err); refused {
		return e.Problem.Code == api.CodeIndeterminate
	}
	op, ok := errors.AsType[*net.OpError](err)
	return !ok || op.Op != "dial"
}

// await waits for the answer of a node, or for one that is no error of a silent
// one, or until the node has been silent for so long that another is to be asked.
func (t *tries) await(node int) answered {
	patience := time.NewTimer(t.c.patience())
	defer patience.Stop()
	for due := false; ; {
		if due && t.spare() {
			return answered{node: node, silent: true}
		}
		select {
		case a := <-t.answers:
			if a.node == node || a.err == nil {
				return a
			}
			t.silent &^= 1 << a.node
		case <-patience.C:
			due = true
		}
	}
}

// pause waits before another attempt, and returns what a silent node answers
// meanwhile, if that is no error.
func (t *tries) pause(ctx context.Context, wait time.Duration) ([]byte, error) {
	if wait <= 0 {
		return nil, ctx.Err()
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
			return nil, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		case a := <-t.answers:
			if a.err == nil {
				t.c.first.Store(uint32(a.node))
				return a.data, nil
			}
			t.silent &^= 1 << a.node
		}
	}
}
