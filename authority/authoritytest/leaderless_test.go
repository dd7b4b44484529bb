package authoritytest_test

import (
	"errors"
	"testing"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/authoritytest"
	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/capability"
)

// TestNoLeader cuts every node off from every other. Guards decide and nodes answer
// reads for as long as the bound, and not longer; nothing changes; and when there is a
// leader again, all goes on from where it was.
func TestNoLeader(t *testing.T) {
	const bound = 3 * time.Second
	c := authoritytest.StartCluster(t, 3, authoritytest.Options{Bound: bound})
	r := c.Replica(t, "files", []string{"corp"})
	verify := guard(t, r)
	token := c.Mint(t, "corp", "agent")
	set := parse(t, token.Token)
	until(t, "both streams", func() bool { return r.Status().Streams == 2 })
	if err := verify(t.Context(), set); err != nil {
		t.Fatal(err)
	}
	if err := c.WaitApplied(t.Context()); err != nil {
		t.Fatal(err)
	}
	before := r.Status().Cursor

	var each []*client.Client // of one node, asked once
	for _, n := range c.Nodes {
		cfg := c.Config(c.RootToken)
		cfg.Addrs, cfg.Attempts = []string{n.Addr}, 1
		one, err := client.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer one.Close()
		each = append(each, one)
	}
	for _, n := range c.Nodes {
		c.Isolate(n.Name)
	}
	cut := time.Now() // no quorum read has begun since that will succeed
	for i, one := range each {
		if _, err := one.Token(t.Context(), token.ID); err != nil && time.Since(cut) < bound/2 {
			t.Errorf("a read at %s: %v", c.Nodes[i].Name, err)
		}
	}
	until(t, "nobody leads", func() bool {
		for _, n := range c.Nodes {
			if n.Authority.Leads() {
				return false
			}
		}
		return true
	})
	accepted := 0
	until(t, "the guard is stale", func() bool {
		begun := time.Now()
		switch err := verify(t.Context(), set); {
		case err == nil && begun.Sub(cut) > bound:
			t.Fatalf("accepted %v after the last quorum", begun.Sub(cut))
		case err == nil:
			accepted++
		case !errors.Is(err, capability.CodeStaleRevocations):
			t.Fatalf("refused otherwise: %v", err)
		default:
			return true
		}
		return false
	})
	if accepted == 0 {
		t.Error("the guard did not decide without a leader")
	}
	for i, one := range each { // by the same rule; what it knows may be younger than the guard's
		until(t, c.Nodes[i].Name+" is stale", func() bool {
			begun := time.Now()
			_, err := one.Token(t.Context(), token.ID)
			if err == nil && begun.Sub(cut) > bound {
				t.Fatalf("%s answered a read %v after the last quorum", c.Nodes[i].Name, begun.Sub(cut))
			}
			return errors.Is(err, capability.CodeStaleRevocations)
		})
	}
	if err := verify(t.Context(), set); !errors.Is(err, capability.CodeStaleRevocations) {
		t.Errorf("the guard is fresh again: %v", err)
	}

	c.Heal()
	until(t, "the guard is fresh again", func() bool { return verify(t.Context(), set) == nil })
	if now := r.Status().Cursor; now.Incarnation != before.Incarnation || now.Index < before.Index {
		t.Errorf("the cursor went from %v back to %v", before, now)
	}
	root := c.Root()
	defer root.Close()
	if _, err := root.Revoke(t.Context(), api.RevokeRequest{Kind: api.RevokeToken, Token: token.ID.String(), Reason: "test"}); err != nil {
		t.Fatal(err)
	}
	until(t, "it is refused", func() bool { return errors.Is(verify(t.Context(), set), capability.CodeRevoked) })
}
