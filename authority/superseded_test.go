package authority_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/writ-dev/writ/authority"
	"github.com/writ-dev/writ/authority/authoritytest"
	"github.com/writ-dev/writ/raftstore"
)

// TestNodesLeftBehind: a cluster is recovered from one node, and then the others
// are started all the same, a majority of what there was. They hear from the one
// that it began anew without them, end, and do not start again: nothing of the old
// incarnation is served beside the new one.
func TestNodesLeftBehind(t *testing.T) {
	c := authoritytest.StartCluster(t, 3)
	c.Mint(t, "corp", "agent")
	for _, n := range c.Nodes {
		if err := n.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	first, rest := c.Nodes[0], c.Nodes[1:]
	reborn, err := authority.Recover(t.Context(), authority.Rebirth{Config: nodeConfig(c, first.Name)})
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for _, when := range []string{"at first", "again"} {
		var starts sync.WaitGroup
		for _, n := range rest {
			starts.Go(func() {
				err := n.Start(ctx)
				if err == nil {
					select {
					case err = <-n.Fatal:
					case <-ctx.Done():
						err = ctx.Err()
					}
				}
				if !errors.Is(err, raftstore.ErrRemoved) {
					t.Errorf("%s, started %s: %v", n.Name, when, err)
				}
			})
		}
		starts.Wait()
		for _, n := range rest {
			_ = n.Stop() // it has ended already
		}
	}
	c.RootToken = reborn.RootToken
	if err := c.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.Mint(t, "corp", "agent")
}
