package authoritytest_test

import (
	"testing"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/authoritytest"
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
