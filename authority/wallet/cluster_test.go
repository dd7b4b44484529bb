package wallet_test

import (
	"testing"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/authoritytest"
	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats/attest"
	"github.com/writ-dev/writ/caveats/attest/attesttest"
	"github.com/writ-dev/writ/caveats/attest/holder"
)

// TestChallengeOutlivesItsNode: a challenge is begun at one node, whose cluster
// then loses its leader, and answered at another. It is good once, wherever it
// is handed in.
func TestChallengeOutlivesItsNode(t *testing.T) {
	t.Parallel()
	c := authoritytest.StartCluster(t, 3, authoritytest.Options{Bound: time.Minute})
	root := c.Root()
	t.Cleanup(root.Close)
	tpm := attesttest.Start(t)
	h, err := holder.Open(holder.Config{TPM: tpm.Address, Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	if _, err := root.SetRoots(t.Context(), "factory", api.RootsRequest{PEM: string(tpm.Roots)}); err != nil {
		t.Fatal(err)
	}
	if _, err := root.SetPolicy(t.Context(), api.PolicyRequest{Document: policyOf(t, h, nil)}); err != nil {
		t.Fatal(err)
	}
	issued, err := root.Issue(t.Context(), api.IssueRequest{
		Audience: audience, Subject: "a", Owner: "o", Purpose: "p",
		ThirdParty: []api.ThirdPartyRequest{{Discharger: "authority", Condition: "attested prod", Holder: h.HolderKey().String()}},
	})
	if err != nil {
		t.Fatal(err)
	}
	token, err := capability.Parse(issued.Token)
	if err != nil {
		t.Fatal(err)
	}

	leader, err := c.Leader(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	followers, err := c.Followers(t.Context())
	if err != nil || len(followers) != 2 {
		t.Fatalf("%d followers, %v", len(followers), err)
	}
	at := func(n *authoritytest.ClusterNode, credential string) *client.Client {
		cfg := c.Config(credential)
		cfg.Addrs = []string{n.Addr}
		one, err := client.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(one.Close)
		return one
	}
	want := holder.Want{Caveat: token.Missing()[0].CaveatID, Audience: audience, Posture: attest.Posture{Agent: "agent"}}
	posture, err := want.Posture.Encode()
	if err != nil {
		t.Fatal(err)
	}
	challenge, err := at(followers[0], "").AttestBegin(t.Context(), h.Begin(want))
	if err != nil {
		t.Fatal(err)
	}
	answer, err := h.Answer(want, challenge, posture)
	if err != nil {
		t.Fatal(err)
	}
	c.Isolate(leader.Name)
	got, err := at(followers[1], "").AttestFinish(t.Context(), answer)
	if err != nil {
		t.Fatal(err)
	}
	d, err := capability.Parse(got.Discharge)
	if err != nil {
		t.Fatal(err)
	}
	if whole, err := token.WithDischarges(d); err != nil || len(whole.Missing()) != 0 {
		t.Errorf("%v", err)
	}
	c.Heal()
	for _, n := range []*authoritytest.ClusterNode{followers[0], followers[1], leader} {
		if _, err := at(n, "").AttestFinish(t.Context(), answer); code(err) != api.CodeChallenge {
			t.Errorf("handed in again at %s: %v", n.Name, err)
		}
	}
	if d, err := at(followers[1], c.RootToken).Device(t.Context(), h.Device()); err != nil || d.Count != 1 {
		t.Errorf("%+v, %v", d, err)
	}
}
