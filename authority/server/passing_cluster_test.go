package server_test

import (
	"testing"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/authoritytest"
	"github.com/writ-dev/writ/capability"
)

// TestIssuesHoldUpNothingOnTheWay: while as many issues as there is room for are on
// their way from a follower to the leader, a revocation and a lease that come to the
// follower get there, and one more issue waits its turn.
func TestIssuesHoldUpNothingOnTheWay(t *testing.T) {
	c := authoritytest.StartCluster(t, 3)
	followers, err := c.Followers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	token := c.Mint(t, "corp", "agent", "max-calls 3")
	parsed, err := capability.Parse(token.Token)
	if err != nil {
		t.Fatal(err)
	}
	release := followers[0].Server.FillPassing()
	root := followers[0].Root()
	defer root.Close()
	issued := make(chan error, 1)
	go func() {
		_, err := root.Issue(t.Context(), api.IssueRequest{Audience: "corp", Subject: "a", Owner: "o", Purpose: "p"})
		issued <- err
	}()
	if _, err := root.Lease(t.Context(), api.LeaseRequest{Macaroon: parsed.Bytes(), Want: 1}); err != nil {
		t.Error(err)
	}
	if _, err := root.Revoke(t.Context(), api.RevokeRequest{Kind: api.RevokeToken, Token: token.ID.String(), Reason: "test"}); err != nil {
		t.Error(err)
	}
	select {
	case err := <-issued:
		t.Errorf("an issue found room where there is none: %v", err)
	default:
	}
	release()
	if err := <-issued; err != nil {
		t.Error(err)
	}
}
