package wallet_test

import (
	"context"
	"sync"
	"testing"

	"github.com/writ-dev/writ/authority"
	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/authoritytest"
	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/authority/wallet"
	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats/attest"
	"github.com/writ-dev/writ/caveats/attest/attesttest"
	"github.com/writ-dev/writ/caveats/attest/holder"
)

// BenchmarkAttest measures against a swtpm: a challenge as an enrolled device
// gets it, on all processors, and whole round trips over HTTPS, with and
// without activation.
func BenchmarkAttest(b *testing.B) {
	n := authoritytest.Start(b)
	tpm := attesttest.Start(b)
	h, err := holder.Open(holder.Config{TPM: tpm.Address, Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { h.Close() })
	root := n.Root()
	b.Cleanup(root.Close)
	if _, err := root.SetRoots(b.Context(), "factory", api.RootsRequest{PEM: string(tpm.Roots)}); err != nil {
		b.Fatal(err)
	}
	if _, err := root.SetPolicy(b.Context(), api.PolicyRequest{Document: policyOf(b, h, nil)}); err != nil {
		b.Fatal(err)
	}
	w, err := wallet.Open(wallet.Config{
		Attester: h, Dischargers: map[string]wallet.Discharger{wallet.OwnLocation: root}, Posture: holder.LocalPosture("bench", "1"),
	})
	if err != nil {
		b.Fatal(err)
	}
	enroll := func(b *testing.B) {
		if _, err := w.Enroll(b.Context(), wallet.OwnLocation, "prod"); err != nil {
			b.Fatal(err)
		}
	}
	b.Run("enrolment", func(b *testing.B) {
		for b.Loop() {
			enroll(b)
			b.StopTimer()
			if _, err := root.ForgetDevice(b.Context(), h.Device(), api.ForgetDeviceRequest{Reason: "bench"}); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
	})
	enroll(b)
	b.Run("renewal", func(b *testing.B) {
		for b.Loop() {
			enroll(b)
		}
	})
	issued, err := root.Issue(b.Context(), api.IssueRequest{
		Audience: audience, Subject: "a", Owner: "o", Purpose: "p", TTLSeconds: 900,
		ThirdParty: []api.ThirdPartyRequest{{Discharger: "authority", Condition: "attested prod", Holder: h.HolderKey().String()}},
	})
	if err != nil {
		b.Fatal(err)
	}
	token, err := capability.Parse(issued.Token)
	if err != nil {
		b.Fatal(err)
	}
	request := h.Begin(holder.Want{Caveat: token.Missing()[0].CaveatID, Audience: audience})
	b.Run("challenge", func(b *testing.B) {
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if _, err := n.Authority.AttestBegin(b.Context(), "", request); err != nil {
					b.Error(err)
					return
				}
			}
		})
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "challenges/s")
	})
	b.Run("discharge", func(b *testing.B) { benchDischarges(b, n, root, tpm) })
}

// prepared has a machine's evidence made, and not handed in.
type prepared struct {
	a      *authority.Authority
	finish []*attest.FinishRequest
}

func (p *prepared) Begin(ctx context.Context, r *attest.BeginRequest) (*attest.Challenge, error) {
	return p.a.AttestBegin(ctx, "", r)
}

func (p *prepared) Finish(_ context.Context, r *attest.FinishRequest) error {
	p.finish = append(p.finish, r)
	return nil
}

// benchDischarges hands in evidence of enrolled machines, from JSON to the
// discharge, log and disk included. It is made beforehand, since a TPM is slower
// than the server; each machine hands in its own in the order of its counters.
func benchDischarges(b *testing.B, n *authoritytest.Node, root *client.Client, tpm *attesttest.TPM) {
	issued, err := root.Issue(b.Context(), api.IssueRequest{
		Audience: audience, Subject: "a", Owner: "o", Purpose: "p", TTLSeconds: 900,
		ThirdParty: []api.ThirdPartyRequest{{Discharger: "authority", Condition: "attested prod", AnyMachine: true}},
	})
	if err != nil {
		b.Fatal(err)
	}
	token, err := capability.Parse(issued.Token)
	if err != nil {
		b.Fatal(err)
	}
	want := holder.Want{Caveat: token.Missing()[0].CaveatID, Audience: audience, Posture: attest.Posture{Agent: "bench"}}
	machines := make([]*prepared, 16) // enough that commits are shared
	var preparing sync.WaitGroup
	for i := range machines {
		h, err := holder.Open(holder.Config{TPM: tpm.Sibling(b).Address, Dir: b.TempDir()})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { h.Close() })
		m := &prepared{a: n.Authority}
		machines[i] = m
		preparing.Go(func() {
			for j := range b.N/len(machines) + 1 {
				if err := h.Attest(b.Context(), m, want); err != nil {
					b.Error(err)
					return
				}
				if j == 0 { // enrolls; those that follow renew
					if _, err := n.Authority.AttestFinish(b.Context(), m.finish[0]); err != nil {
						b.Error(err)
						return
					}
					m.finish = m.finish[:0]
				}
			}
		})
	}
	preparing.Wait()
	done := 0
	b.ResetTimer()
	var flood sync.WaitGroup
	for _, m := range machines {
		done += len(m.finish)
		flood.Go(func() {
			for _, r := range m.finish {
				if _, err := n.Authority.AttestFinish(b.Context(), r); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	flood.Wait()
	b.ReportMetric(float64(done)/b.Elapsed().Seconds(), "discharges/s")
}
