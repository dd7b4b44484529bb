package authoritytest_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/authoritytest"
	"github.com/writ-dev/writ/raftstore"
)

// TestCleanUp: what has been away for as long as the operator says is removed, and
// nobody else.
func TestCleanUp(t *testing.T) {
	c := authoritytest.StartCluster(t, 3)
	gone, err := c.Add(t.Context(), api.ClusterTokenRequest{Replica: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	leader, err := c.Leader(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	followers, err := c.Followers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := gone.Stop(); err != nil {
		t.Fatal(err)
	}
	// Through a follower: it is the leader that knows.
	through := followers[0].Root()
	defer through.Close()
	cleanUp := func(away time.Duration) *api.CleanUpResponse {
		t.Helper()
		r, err := through.CleanUpNodes(t.Context(), api.CleanUpRequest{AwaySeconds: int64(away / time.Second)})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	if _, err := through.CleanUpNodes(t.Context(), api.CleanUpRequest{}); !errors.Is(err, api.CodeInvalid) {
		t.Errorf("away for no time at all: %v", err)
	}
	away := func(n *authoritytest.ClusterNode) int64 {
		for _, s := range leader.Authority.ClusterStatus(t.Context()).Nodes {
			if s.Node == n.Name {
				return s.AwaySeconds
			}
		}
		t.Fatalf("no node %s", n.Name)
		return 0
	}
	until(t, "it has been away for a second", func() bool { return away(gone) >= 1 })
	if r := cleanUp(time.Hour); len(r.Removed) != 0 {
		t.Errorf("away for an hour: %+v", r)
	}
	if r := cleanUp(time.Second); !slices.Equal(r.Removed, []string{gone.Name}) {
		t.Errorf("away for a second: %+v", r)
	}
	if err := gone.Start(t.Context()); !errors.Is(err, raftstore.ErrRemoved) {
		t.Errorf("it starts again: %v", err)
	}
	// A voter goes as well: with the two that are left there is a majority.
	voter := followers[1]
	if err := voter.Stop(); err != nil {
		t.Fatal(err)
	}
	until(t, "a voter has been away for a second", func() bool { return away(voter) >= 1 })
	if r := cleanUp(time.Second); !slices.Equal(r.Removed, []string{voter.Name}) {
		t.Errorf("a voter away for a second: %+v", r)
	}
	for _, n := range leader.Authority.ClusterStatus(t.Context()).Nodes {
		if out := n.Node == gone.Name || n.Node == voter.Name; out != (n.State == "removed") {
			t.Errorf("afterwards %s is %s", n.Node, n.State)
		}
	}
	c.Mint(t, "corp", "agent")
}
