package authoritytest_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/writ-dev/writ/authority"
	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/authoritytest"
	"github.com/writ-dev/writ/raftstore"
)

// patience is how long a follower of TestLeaderHandsOver waits for its leader
// before it stands for election: who leads before that was handed the lead.
const patience = 30 * time.Second

// TestLeaderHandsOver takes the lead away from a node in each way that is planned:
// it hands over first, so that the cluster does not wait for an election.
func TestLeaderHandsOver(t *testing.T) {
	for name, do := range map[string]func(context.Context, *authoritytest.Cluster, *authoritytest.ClusterNode) error{
		"stopped": func(_ context.Context, _ *authoritytest.Cluster, leader *authoritytest.ClusterNode) error {
			return leader.Stop()
		},
		"demoted": func(ctx context.Context, c *authoritytest.Cluster, leader *authoritytest.ClusterNode) error {
			root := c.Root()
			defer root.Close()
			if _, err := root.DemoteNode(ctx, leader.Name); err != nil {
				return err
			}
			return c.WaitReady(ctx)
		},
		"removed": func(ctx context.Context, c *authoritytest.Cluster, leader *authoritytest.ClusterNode) error {
			root := c.Root()
			defer root.Close()
			if err := root.RemoveNode(ctx, leader.Name, false); err != nil {
				return err
			}
			select {
			case err := <-leader.Fatal:
				if !errors.Is(err, raftstore.ErrRemoved) {
					t.Errorf("the removed leader ended with %v", err)
				}
				_ = leader.Stop() // it has ended already
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // the last to stop waits for the others in vain
			c := authoritytest.StartCluster(t, 3, authoritytest.Options{
				Authority: func(cfg *authority.Config) { cfg.Peers.Heartbeat = patience }, Bound: 20 * time.Second,
			})
			before, err := c.Leader(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			if err := do(ctx, c, before); err != nil {
				t.Fatal(err)
			}
			after, err := c.Leader(ctx)
			if err != nil || after == before {
				t.Fatalf("%+v leads: %v", after, err)
			}
			c.Mint(t, "corp", "agent")
			for _, n := range after.Authority.ClusterStatus(ctx).Nodes {
				if n.Node == before.Name && name != "stopped" && n.Voter {
					t.Errorf("it has its vote still: %+v", n)
				}
			}
		})
	}
}

// TestRefusedDemotionIsForgotten: a demotion that would cost the majority is
// refused, and is not made later behind the operator's back.
func TestRefusedDemotionIsForgotten(t *testing.T) {
	c := authoritytest.StartCluster(t, 3)
	followers, err := c.Followers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	up, down := followers[0], followers[1]
	if err := down.Stop(); err != nil {
		t.Fatal(err)
	}
	root := c.Root()
	defer root.Close()
	if _, err := root.DemoteNode(t.Context(), up.Name); !errors.Is(err, api.CodeConflict) {
		t.Fatalf("with another voter down: %v", err)
	}
	if err := down.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	leader, err := c.Leader(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range leader.Authority.ClusterStatus(t.Context()).Nodes {
		if !n.Voter || !n.Wanted {
			t.Errorf("after a demotion that was refused: %+v", n)
		}
	}
}
