package authoritytest_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/writ-dev/writ/authority/authoritytest"
	"github.com/writ-dev/writ/authority/replica"
	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats"
)

// spender spends what it is shown until there is no more.
type spender struct {
	*replica.Replica
	spent int
}

// Spend implements capability.Budgets.
func (s *spender) Spend(ctx context.Context, p *capability.BudgetPath) (bool, error) {
	for {
		switch blocked, err := s.Replica.Spend(ctx, p); {
		case err == nil:
			s.spent++
		case !errors.Is(err, capability.CodeUnavailable): // a busy machine is late with a lease
			return blocked, err
		}
	}
}

// TestMillionCalls: two guards spend a large budget to its end, exactly, and the
// cluster has little to do with it.
func TestMillionCalls(t *testing.T) {
	const calls, commands = 1_000_000, 100
	c := authoritytest.StartCluster(t, 3, authoritytest.Options{Bound: 20 * time.Second})
	checker, err := caveats.Standard()
	if err != nil {
		t.Fatal(err)
	}
	set := parse(t, c.Mint(t, "corp", "agent", fmt.Sprintf("max-calls %d", calls)).Token)
	var guards [2]spender
	for i := range guards {
		guards[i].Replica = c.Replica(t, fmt.Sprint("guard", i), []string{"corp"})
	}
	proposed := func() (n uint64) {
		for _, node := range c.Nodes {
			n += node.Authority.Metrics().Proposals
		}
		return n
	}
	before := proposed()
	var work sync.WaitGroup
	for i := range guards {
		g := &guards[i]
		work.Go(func() {
			v, err := g.Replica.Verifier(checker, capability.WithBudgets(g))
			if err != nil {
				t.Error(err)
				return
			}
			err = v.Verify(t.Context(), new(capability.Grant), set, &capability.Request{
				Now: time.Now(), Action: "read", Resource: []string{"x"}, Client: netip.AddrFrom4([4]byte{127, 0, 0, 1}),
			})
			if !errors.Is(err, capability.CodeBudgetExhausted) {
				t.Errorf("guard %d ended with %v", i, err)
			}
		})
	}
	work.Wait()
	if n := guards[0].spent + guards[1].spent; n != calls {
		t.Errorf("%d calls went through, not %d", n, calls)
	}
	if n := proposed() - before; n > commands {
		t.Errorf("%d commands were proposed for it, more than %d", n, commands)
	}
}
