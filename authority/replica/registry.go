package replica

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/capability"
)

const askTimeout = time.Second // for what a decision waits for

// Registered implements capability.Registry. On a miss it asks a node, once.
func (r *Replica) Registered(ctx context.Context, id *capability.Identity, tail capability.BranchID) (bool, error) {
	if i, ok := r.data.Load().issued.get(id.ID); ok {
		return i.tail == tail, nil
	}
	done, err := r.ask(&ctx)
	if err != nil {
		return false, err
	}
	defer done()
	d := r.data.Load()
	answer, err := r.client.Registered(ctx, api.RegisteredRequest{Audience: string(id.Audience), Token: id.ID})
	if err != nil {
		return false, decisive(err)
	}
	if !answer.Registered {
		return false, nil
	}
	// To the set that was in force when the question was put: an answer of an
	// incarnation that has ended does not get into the next.
	if r.cfg.Registered {
		d.issued.put(id.ID, issued{answer.Branch, answer.Expires})
	}
	return answer.Branch == tail, nil
}

// Authenticate implements capability.Authenticator.
func (r *Replica) Authenticate(ctx context.Context, set []byte, branches []capability.BranchID) ([]capability.BranchID, error) {
	done, err := r.ask(&ctx)
	if err != nil {
		return branches, err
	}
	defer done()
	answer, err := r.client.Verify(ctx, set)
	if err != nil {
		return branches, decisive(err)
	}
	if err := r.sameIncarnation(answer.AsOf); err != nil {
		return branches, fmt.Errorf("%w: %w", err, capability.CodeUnavailable)
	}
	return append(branches, answer.Branches...), nil
}

var errTooManyAsking = fmt.Errorf("too many questions to the authority are under way: %w", capability.CodeUnavailable)

// ask takes one of the places for questions and bounds its time. It refuses at
// once when there is none, so that forged tokens cannot pile up calls.
func (r *Replica) ask(ctx *context.Context) (done func(), err error) {
	if r.closed.Load() {
		return nil, ErrClosed
	}
	select {
	case r.asking <- struct{}{}:
	default:
		return nil, errTooManyAsking
	}
	c, cancel := context.WithTimeout(*ctx, askTimeout)
	*ctx = c
	return func() {
		cancel()
		<-r.asking
	}, nil
}

// decisive leaves a code that is about the token shown (status 422) as it is,
// and makes everything else (a refused credential of the service's own, a node
// that is gone) what it is for the caller of the service: unavailable.
func decisive(err error) error {
	if e, ok := errors.AsType[*client.Error](err); ok && e.Problem.Status == http.StatusUnprocessableEntity {
		return &capability.Refusal{Code: e.Problem.Code, Detail: "says the authority, reference " + strconv.Quote(e.Problem.Reference)}
	}
	return &capability.Refusal{Code: capability.CodeUnavailable, Detail: err.Error()}
}
