package authoritytest_test

import (
	"errors"
	"testing"

	"github.com/writ-dev/writ/authority/authoritytest"
	"github.com/writ-dev/writ/capability"
)

// TestRecallElsewhere: calls that lie with a guard whose feeds are at one follower are
// recalled for a guard that asks through the other. Neither talks to the leader, and
// the first would not give them back by itself for half a minute.
func TestRecallElsewhere(t *testing.T) {
	const calls = 4
	c := authoritytest.StartCluster(t, 3)
	followers, err := c.Followers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	has := guard(t, c.Replica(t, "has", []string{"corp"}, followers[0]))
	wants := guard(t, c.Replica(t, "wants", []string{"corp"}, followers[1]))
	set := parse(t, c.Mint(t, "corp", "agent", "max-calls 4").Token)
	if err := has(t.Context(), set); err != nil {
		t.Fatal(err)
	}
	accepted := 1
	until(t, "all calls but the first get through at the other guard", func() bool {
		switch err := wants(t.Context(), set); {
		case err == nil:
			accepted++
		case !errors.Is(err, capability.CodeBudgetExhausted) && !errors.Is(err, capability.CodeUnavailable):
			t.Fatalf("refused otherwise: %v", err)
		}
		return accepted == calls
	})
	if err := has(t.Context(), set); !errors.Is(err, capability.CodeBudgetExhausted) {
		t.Errorf("one call more than there are: %v", err)
	}
}
