package wallet_test

import (
	"testing"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/authoritytest"
	"github.com/writ-dev/writ/authority/wallet"
	"github.com/writ-dev/writ/capability"
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
}
