package verifier_test

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"syscall"
	"testing"
	"time"

	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats/attest"
	"github.com/writ-dev/writ/caveats/attest/attesttest"
	"github.com/writ-dev/writ/caveats/attest/verifier"
)

// cpu reports the CPU time of an operation, of the whole process: what counts
// on a machine that has other things to do.
func cpu(b *testing.B) func() {
	b.Helper()
	used := func() (u time.Duration) {
		var r syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
			b.Fatal(err)
		}
		return time.Duration(r.Utime.Nano() + r.Stime.Nano())
	}
	before := used()
	return func() { b.ReportMetric(float64(used()-before)/float64(b.N)/1e3, "cpu-µs/op") }
}

// BenchmarkEvidence is the server's whole work for one piece of evidence, from
// JSON to result, beside its floor: the three signature checks alone.
func BenchmarkEvidence(b *testing.B) {
	f := newForge(b)
	document := marshalRequest(b, f.request())
	b.Run("whole", func(b *testing.B) {
		b.ReportAllocs()
		defer cpu(b)()
		for b.Loop() {
			r, err := attest.DecodeFinish(document)
			if err != nil {
				b.Fatal(err)
			}
			if _, err := judgeEvidence(f, f.pending, r); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("floor", func(b *testing.B) {
		digest := sha256.Sum256(document)
		signature, err := ecdsa.SignASN1(rand.Reader, f.ak.private, digest[:])
		if err != nil {
			b.Fatal(err)
		}
		defer cpu(b)()
		for b.Loop() {
			for range 3 {
				if !ecdsa.VerifyASN1(&f.ak.private.PublicKey, digest[:], signature) {
					b.Fatal("no match")
				}
			}
		}
	})
}

// BenchmarkChallenge is the server's work for the first message: an enrolment
// makes a credential, a renewal does not.
func BenchmarkChallenge(b *testing.B) {
	tpm := attesttest.Start(b)
	for _, kind := range []attest.Kind{attest.RSA2048, attest.ECCP384} {
		r := rigFor(b, tpm, kind)
		document := marshalRequest(b, r.holder.Begin(r.want))
		for name, stored := range map[string]*attest.Stored{
			"enroll": nil, "renew": {AKs: []attest.Name{r.holder.AKName()}},
		} {
			b.Run(string(kind)+"/"+name, func(b *testing.B) {
				b.ReportAllocs()
				defer cpu(b)()
				for b.Loop() {
					request, err := attest.DecodeBegin(document)
					if err != nil {
						b.Fatal(err)
					}
					in := &verifier.Begin{
						Now: r.now, Rand: rand.Reader, Policy: r.policy, Ask: r.ask, Request: request,
						Roots: func(string) (*verifier.Roots, bool) { return r.roots, true },
						Known: func(capability.DeviceID) *attest.Stored { return stored },
					}
					if _, _, err := in.Challenge(); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// BenchmarkRoundTrip is a whole attestation against a software TPM, both sides.
func BenchmarkRoundTrip(b *testing.B) {
	tpm := attesttest.Start(b)
	for _, kind := range []attest.Kind{attest.RSA2048, attest.ECCP384} {
		r := rigFor(b, tpm, kind)
		b.Run(string(kind)+"/enroll", func(b *testing.B) {
			for b.Loop() {
				clear(r.stored)
				r.good(b)
			}
		})
		b.Run(string(kind)+"/renew", func(b *testing.B) {
			for b.Loop() {
				r.good(b)
			}
		})
	}
}
