package authoritytest_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/authoritytest"
	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/capability"
)

func TestClusterOfThree(t *testing.T) {
	c := authoritytest.StartCluster(t, 3)
	leader, err := c.Leader(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range c.Nodes {
		root := n.Root()
		defer root.Close()
		got, err := root.Issue(t.Context(), api.IssueRequest{
			Audience: "corp", Subject: "agent", Owner: "owner@corp.example", Purpose: "test",
		})
		if err != nil {
			t.Fatalf("issuing at %s: %v", n.Name, err)
		}
		// What was changed through a node is found there at once.
		if _, err := root.Token(t.Context(), got.ID); err != nil {
			t.Errorf("reading it back at %s: %v", n.Name, err)
		}
	}
	status := leader.Authority.ClusterStatus(t.Context())
	for _, n := range status.Nodes {
		if !n.Voter || !n.Answers || n.State != "active" || n.Leader != (n.Node == leader.Name) {
			t.Errorf("status of %s: %+v", n.Node, n)
		}
	}
	if len(status.Nodes) != 3 || status.Leader != leader.Name {
		t.Errorf("status: %+v", status)
	}
}

// TestLinearizableRead reads at a follower that has missed something.
func TestLinearizableRead(t *testing.T) {
	c := authoritytest.StartCluster(t, 3)
	followers, err := c.Followers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	late := followers[0]
	root := late.Root()
	defer root.Close()
	for i := range 3 {
		c.Isolate(late.Name)
		subject := fmt.Sprintf("agent-%d", i)
		c.Mint(t, "corp", subject)
		local, err := root.Tokens(t.Context(), client.TokenQuery{Subject: subject})
		if err != nil || len(local.Tokens) != 0 {
			t.Errorf("a local read at a node that is cut off: %+v, %v", local, err)
		}
		if i == 0 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			_, err := root.Tokens(ctx, client.TokenQuery{Subject: subject, Linearizable: true})
			cancel()
			if !errors.Is(err, context.DeadlineExceeded) && capability.CodeOf(err) != capability.CodeUnavailable {
				t.Errorf("a linearizable read at a node that is cut off: %v", err)
			}
		}
		c.Heal()
		read, err := root.Tokens(t.Context(), client.TokenQuery{Subject: subject, Linearizable: true})
		if err != nil || len(read.Tokens) != 1 {
			t.Errorf("a linearizable read: %+v, %v", read, err)
		}
	}
}
