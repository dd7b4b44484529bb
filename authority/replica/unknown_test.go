package replica

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/capability"
)

// forgetful is a bank of which every other answer is lost on its way.
type forgetful struct {
	*bank
	ids *client.Client // reads a request id from a context

	mu   sync.Mutex
	made map[string]*api.LeaseResponse
	lost int
}

func (f *forgetful) Lease(ctx context.Context, r api.LeaseRequest) (*api.LeaseResponse, error) {
	id, err := f.ids.NewRequestID(ctx)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if earlier := f.made[id]; earlier != nil {
		return earlier, nil
	}
	got, err := f.bank.Lease(ctx, r)
	if err != nil {
		return nil, err
	}
	f.made[id] = got
	if len(f.made)%2 == 1 {
		f.lost++
		return nil, context.DeadlineExceeded
	}
	return got, nil
}

// TestLeaseWhoseAnswerWasLost is asked for again, and no call of it is lost.
func TestLeaseWhoseAnswerWasLost(t *testing.T) {
	ids, err := client.New(client.Config{Addrs: []string{"127.0.0.1"}, CAFingerprint: strings.Repeat("00", 32)})
	if err != nil {
		t.Fatal(err)
	}
	const calls = 200
	f := &forgetful{bank: newBank(calls), ids: ids, made: map[string]*api.LeaseResponse{}}
	r := lessee(t, f, LeaseConfig{Want: 8})
	spent := 0
	for {
		_, err := r.Spend(t.Context(), path(f.bank))
		if errors.Is(err, capability.CodeBudgetExhausted) {
			break
		}
		if err == nil {
			spent++
		} else if !errors.Is(err, capability.CodeUnavailable) {
			t.Fatal(err)
		}
	}
	if spent != calls || f.lost < 3 {
		t.Errorf("%d of %d calls were spent, with %d answers lost", spent, calls, f.lost)
	}
}
