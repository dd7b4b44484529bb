package server_test

import (
	"testing"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/authoritytest"
	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/caveats"
	"github.com/writ-dev/writ/caveats/pop"
)

// A follower passes the proof on with the credential: the leader judges it as
// the call that the holder made, to the address that he made it to.
func TestHolderBoundCredentialThroughFollower(t *testing.T) {
	c := authoritytest.StartCluster(t, 3)
	k, err := pop.GenerateKey(pop.Ed25519)
	if err != nil {
		t.Fatal(err)
	}
	holder, err := caveats.Holder(k.HolderKey())
	if err != nil {
		t.Fatal(err)
	}
	bound := c.Mint(t, api.AdminAudience, "operator", holder).Token
	followers, err := c.Followers(t.Context())
	if err != nil || len(followers) == 0 {
		t.Fatalf("followers: %d, %v", len(followers), err)
	}
	issue := func(s pop.Signer) error {
		cfg := c.Config(bound)
		cfg.Addrs, cfg.Attempts, cfg.Prover = []string{followers[0].Addr}, 1, s
		cl, err := client.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer cl.Close()
		_, err = cl.Issue(t.Context(), api.IssueRequest{Audience: "corp", Subject: "s", Owner: "o", Purpose: "p"})
		return err
	}
	if err := issue(k); err != nil {
		t.Errorf("with the key: %v", err)
	}
	thief, err := pop.GenerateKey(pop.Ed25519)
	if err != nil {
		t.Fatal(err)
	}
	if issue(thief) == nil || issue(nil) == nil {
		t.Error("without the key: issued")
	}
}
