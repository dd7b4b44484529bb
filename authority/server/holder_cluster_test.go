package server_test

import (
	"errors"
	"net/http"
	"testing"
	"time"

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

// A node that is cut off does not know what was issued since: it does not say of a
// good credential that it is none, which would be the end of a client's trying.
func TestNodeThatCannotTell(t *testing.T) {
	c := authoritytest.StartCluster(t, 3, authoritytest.Options{Bound: time.Minute})
	followers, err := c.Followers(t.Context())
	if err != nil || len(followers) == 0 {
		t.Fatalf("followers: %d, %v", len(followers), err)
	}
	behind := followers[0]
	c.Isolate(behind.Name)
	credential := c.Mint(t, api.AdminAudience, "operator").Token
	cfg := c.Config(credential)
	cfg.Addrs, cfg.Attempts = []string{behind.Addr}, 1
	cl, err := client.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	_, err = cl.Status(t.Context())
	if e, ok := errors.AsType[*client.Error](err); !ok || e.Problem.Status != http.StatusServiceUnavailable {
		t.Errorf("a credential that was issued behind the node's back: %v", err)
	}
	c.Heal()
	for {
		if _, err = cl.Status(t.Context()); err == nil {
			return
		}
		if e, ok := errors.AsType[*client.Error](err); !ok || e.Problem.Status != http.StatusServiceUnavailable {
			t.Fatalf("while it catches up: %v", err)
		}
	}
}
