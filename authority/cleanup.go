package authority

import (
	"context"
	"sync"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/state"
)

// A node that is away keeps its name, and its vote, until an operator says that it
// will not come back: a timer would expel for good what a network had only cut off.
// What the leader does is to know for how long each has been away, so that the
// operator can clean up by that.

// aways is since when members have not answered the leader, as far as it has led.
type aways struct {
	boot func() int64 // nanoseconds since boot

	mu    sync.Mutex
	since map[string]int64 // by node, by boot; guarded by mu
}

func newAways(boot func() int64) *aways {
	return &aways{boot: boot, since: make(map[string]int64)}
}

// note takes down whether a node answers now.
func (w *aways) note(node string, answers bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if answers {
		delete(w.since, node)
	} else if _, away := w.since[node]; !away {
		w.since[node] = w.boot()
	}
}

// forget is for a node that does not lead: it asks nobody.
func (w *aways) forget() {
	w.mu.Lock()
	defer w.mu.Unlock()
	clear(w.since)
}

// of is for how long a node has not answered; 0: it does, or this node cannot tell.
func (w *aways) of(node string) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	since, away := w.since[node]
	if !away {
		return 0
	}
	return max(1, time.Duration(w.boot()-since))
}

// CleanUp removes the nodes that have not answered for as long as the request says,
// as RemoveNode does without force. A leader knows of no absence from before it led.
// What it did not get to, when it fails, the next call does.
func (a *Authority) CleanUp(ctx context.Context, c Call, req *api.CleanUpRequest) (*api.CleanUpResponse, error) {
	if a.peers == nil {
		return nil, errAlone
	}
	if req.AwaySeconds < 1 || req.AwaySeconds > maxAwaySeconds {
		return nil, invalid("away_seconds: 1 to 31536000, a year")
	}
	away := time.Duration(req.AwaySeconds) * time.Second
	answers := make(map[string]bool)
	for _, m := range a.store.Members(ctx) {
		answers[m.ID] = m.Err == nil
	}
	out := &api.CleanUpResponse{Removed: []string{}}
	for _, r := range a.machine.Members() {
		if r.State != state.MemberActive || answers[r.ID] || a.aways.of(r.ID) < away {
			continue
		}
		if err := a.RemoveNode(ctx, c, r.ID, false); err != nil {
			return nil, err
		}
		out.Removed = append(out.Removed, r.ID)
	}
	return out, nil
}

const maxAwaySeconds = 365 * 24 * 60 * 60
