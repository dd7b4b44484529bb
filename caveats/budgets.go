package caveats

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/writ-dev/writ/capability"
)

// LocalBudgets is a capability.Budgets for a service without an authority. It
// counts in this process only: another process, or this one after a restart,
// counts from zero again, so a max-calls caveat bounds the calls through one
// process and no more. Use an authority's leases where N must be exact.
//
// It is bounded. A budget is kept until its token has ended, and when the table
// is full of live ones, tokens with further budgets are refused with
// unavailable; one token can fill a sixteenth of it. It is safe for concurrent use.
type LocalBudgets struct {
	now func() time.Time

	mu   sync.Mutex
	left *table[capability.BranchID, uint64] // mu; calls left, until in Unix milliseconds
}

// NewLocalBudgets counts at most maxEntries budgets at a time, about 100 bytes
// each. now is the clock by which tokens end; nil is time.Now.
func NewLocalBudgets(maxEntries int, now func() time.Time) (*LocalBudgets, error) {
	if maxEntries < capability.MaxBudgets {
		return nil, errors.New("caveats: too few entries for the budgets of one token")
	}
	t, err := newTable[capability.BranchID, uint64](maxEntries)
	if err != nil {
		return nil, err
	}
	if now == nil {
		now = time.Now
	}
	return &LocalBudgets{now: now, left: t}, nil
}

// Len is how many budgets are counted, for metrics.
func (l *LocalBudgets) Len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.left.entries)
}

// Spend takes one call from every budget of the path or from none. It never
// blocks. Errors: CodeBudgetExhausted, also for a token that ended by the
// clock of l, even if that is put back later; CodeUnavailable when the table is
// full, or the token's share of it.
func (l *LocalBudgets) Spend(_ context.Context, p *capability.BudgetPath) (blocked bool, err error) {
	now, until := l.now().UnixMilli(), p.NotAfter+stepBack.Milliseconds()
	at := p.At[:p.N]
	l.mu.Lock()
	defer l.mu.Unlock()
	if now >= until || until <= l.left.forgotten {
		return false, capability.CodeBudgetExhausted // its counters may be forgotten
	}
	fresh := 0
	for i := range at {
		switch e := l.left.get(at[i]); {
		case e == nil && p.Limits[i] == 0, e != nil && e.value == 0:
			return false, capability.CodeBudgetExhausted
		case e == nil:
			fresh++
		}
	}
	if fresh > 0 && !l.left.room(fresh, p.Token, now) {
		return false, capability.CodeUnavailable
	}
	for i := range at {
		e := l.left.get(at[i])
		if e == nil {
			e = l.left.add(at[i], p.Token, until, now)
			e.value = p.Limits[i]
		}
		e.value--
	}
	return false, nil
}
