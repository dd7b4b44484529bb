package authority

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/raftstore"
)

const (
	// forwardPatience is how long a node looks for a leader to pass a call on to.
	forwardPatience = 3 * time.Second
	// forwardRetry is how long it waits before it looks again.
	forwardRetry = 10 * time.Millisecond
	// applyWait bounds how long an answer is held until this node has applied
	// what the leader did for it.
	applyWait = 500 * time.Millisecond
)

// Forwarded is a call of the API on its one hop to the leader, with the
// credential that came with it: the leader verifies everything again.
type Forwarded struct {
	Method string              `json:"method"`
	URI    string              `json:"uri"`
	Host   string              `json:"host"`
	Remote string              `json:"remote"` // the client, as the first node saw it
	Header map[string][]string `json:"header"`
	Body   []byte              `json:"body,omitempty"`
}

// Answer is what the leader answered.
type Answer struct {
	Status  int                 `json:"status"`
	Header  map[string][]string `json:"header"`
	Body    []byte              `json:"body,omitempty"`
	Node    string              `json:"node"`
	Applied uint64              `json:"applied"` // what the leader had applied by then
}

// HandleForwarded has calls that other nodes pass on answered by serve. Once,
// before anything is served.
func (a *Authority) HandleForwarded(serve func(ctx context.Context, f *Forwarded) *Answer) {
	if a.peers == nil {
		return
	}
	handle(a.peers, methodForward, func(ctx context.Context, _ string, f *Forwarded) (*Answer, error) {
		if !a.store.IsLeader() {
			return nil, raftstore.ErrNotLeader
		}
		answer := serve(ctx, f)
		answer.Node, answer.Applied = a.cfg.NodeID, a.machine.AppliedIndex()
		return answer, nil
	})
}

// Leads reports whether calls that change something are for this node.
func (a *Authority) Leads() bool { return a.peers == nil || a.store.IsLeader() }

// Forward passes a call on to the leader, whom it looks for and waits for. It
// returns nil, and no error, when this node has come to lead itself. Once a leader
// may have begun, only a call with a request id is passed on again, which is
// harmless to repeat; another is CodeIndeterminate.
func (a *Authority) Forward(ctx context.Context, f *Forwarded) (*Answer, error) {
	patience, cancel := context.WithTimeout(ctx, forwardPatience)
	defer cancel()
	repeatable := len(f.Header[http.CanonicalHeaderKey(api.HeaderRequestID)]) == 1
	var begun error // of a leader that may have
	for {
		if a.Leads() {
			return nil, nil
		}
		answer := new(Answer)
		err := a.callLeader(ctx, methodForward, f, answer)
		if err == nil {
			a.catchUpTo(ctx, answer.Applied)
			return answer, nil
		}
		if !notExecuted(err) {
			if begun = err; !repeatable || ctx.Err() != nil {
				return nil, serviceError(err)
			}
		}
		retry := time.NewTimer(forwardRetry)
		select {
		case <-retry.C:
		case <-patience.Done():
			retry.Stop()
			if begun != nil {
				return nil, serviceError(begun)
			}
			return nil, &Error{Code: api.CodeNotLeader, Detail: "no leader answers; nothing was done", Hint: "try another node", Err: err}
		}
	}
}

// notExecuted reports that a call certainly came to nothing.
func notExecuted(err error) bool {
	if errors.Is(err, raftstore.ErrIndeterminate) {
		return false
	}
	for _, sure := range []error{raftstore.ErrNotLeader, raftstore.ErrUnreachable, raftstore.ErrRefused, raftstore.ErrBusy} {
		if errors.Is(err, sure) {
			return true
		}
	}
	return false
}

// callLeader is call to whoever leads.
func (a *Authority) callLeader(ctx context.Context, method byte, request, answer any) error {
	b, err := json.Marshal(request)
	if err != nil {
		return err
	}
	out, err := a.store.CallLeader(ctx, method, b)
	if err != nil || answer == nil {
		return err
	}
	return json.Unmarshal(out, answer)
}

// catchUpTo waits a little until this node has applied an index, so that whoever
// changes something through it finds it done here.
func (a *Authority) catchUpTo(ctx context.Context, index uint64) {
	ctx, cancel := context.WithTimeout(ctx, applyWait)
	defer cancel()
	_ = a.store.WaitApplied(ctx, index) // if it takes longer, the answer is as good
}

// CatchUp has this node apply everything that was acknowledged anywhere before
// the call. It returns false at once on a node that leads, or is alone: it has.
func (a *Authority) CatchUp(ctx context.Context) bool {
	if a.Leads() {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, applyWait)
	defer cancel()
	return a.fresh.wait(ctx) == nil
}

// Age is how long ago the quorum read began that last vouched for this node's state.
func (a *Authority) Age() time.Duration { return a.fresh.age() }

// NodeID is this node's name.
func (a *Authority) NodeID() string { return a.cfg.NodeID }
