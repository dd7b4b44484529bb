package verifier_test

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"math/bits"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats/attest"
	"github.com/writ-dev/writ/caveats/attest/attesttest"
	"github.com/writ-dev/writ/caveats/attest/holder"
	"github.com/writ-dev/writ/caveats/attest/verifier"
)

// begin sends the honest first message, with what change makes of it.
func (r *rig) begin(t testing.TB, change func(*attest.BeginRequest)) (*attest.Challenge, error) {
	t.Helper()
	request := r.holder.Begin(r.want)
	change(request)
	return r.Begin(t.Context(), request)
}

// A credential is activated for any key that is loaded. That a key is a TPM's,
// and can sign nothing but what the TPM made, its attributes alone tell.
func TestKeysThatAreNoAttestationKeys(t *testing.T) {
	t.Parallel()
	r := newRig(t)

	t.Run("an unrestricted key of the TPM", func(t *testing.T) {
		a := newAttacker(t, r.tpm)
		k := a.primary(tpm2.TPMRHEndorsement, signingTemplate(tpmKey))
		_, err := r.begin(t, func(b *attest.BeginRequest) { b.AK = k.raw })
		refused(t, err, attest.ReasonAK)
	})
	t.Run("a software key", func(t *testing.T) {
		a := newAttacker(t, r.tpm)
		honest := tpm2.TPMAObject{UserWithAuth: true, SignEncrypt: true}
		k := newSoftKey(t, honest)
		if _, err := a.external(k, honest); err != nil {
			t.Fatalf("the TPM does not load it, so that this tests nothing: %v", err)
		}
		_, err := r.begin(t, func(b *attest.BeginRequest) { b.AK = k.raw })
		refused(t, err, attest.ReasonAK)
	})
	t.Run("a software key that says it is a TPM's", func(t *testing.T) {
		a := newAttacker(t, r.tpm)
		k := newSoftKey(t, restrictedKey())
		c, err := r.begin(t, func(b *attest.BeginRequest) { b.AK = k.raw })
		if err != nil {
			t.Fatal(err)
		}
		// Its Name has the attributes in it, and no TPM loads such a key.
		if _, err := a.external(k, restrictedKey()); err == nil {
			t.Fatal("the TPM has loaded it")
		}
		honest := tpm2.TPMAObject{UserWithAuth: true, SignEncrypt: true}
		loaded, err := a.external(k, honest)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := a.activate(loaded, c); !errors.Is(err, tpm2.TPMRCIntegrity) {
			t.Fatalf("the secret came out for a key of another name: %v", err)
		}
		f := forgeFor(t, r, k)
		f.finish = func(q *attest.FinishRequest) { q.Activation = make([]byte, 32) }
		refused(t, r.Finish(t.Context(), f.request()), attest.ReasonActivation)
	})
	t.Run("a software key as the holder key", func(t *testing.T) {
		k := newSoftKey(t, tpm2.TPMAObject{UserWithAuth: true, SignEncrypt: true})
		_, err := r.begin(t, func(b *attest.BeginRequest) { b.Holder = k.raw })
		refused(t, err, attest.ReasonHolderKey)
	})
	t.Run("a software key as the holder key, that says it is a TPM's", func(t *testing.T) {
		ask := r.ask
		defer func() { r.ask = ask }()
		a := newAttacker(t, r.tpm)
		ak := a.primary(tpm2.TPMRHEndorsement, signingTemplate(restrictedKey()))
		// The TPM certifies what it holds, which is another key.
		refused(t, r.Finish(t.Context(), a.evidence(r, ak, newSoftKey(t, tpmKey))), attest.ReasonCertified)
	})
	t.Run("attributes", func(t *testing.T) {
		for name, c := range map[string]struct {
			want   attest.Reason
			change func(*tpm2.TPMAObject)
		}{
			"not fixedTPM":            {attest.ReasonAK, func(o *tpm2.TPMAObject) { o.FixedTPM = false }},
			"not fixedParent":         {attest.ReasonAK, func(o *tpm2.TPMAObject) { o.FixedParent = false }},
			"not sensitiveDataOrigin": {attest.ReasonAK, func(o *tpm2.TPMAObject) { o.SensitiveDataOrigin = false }},
			"not restricted":          {attest.ReasonAK, func(o *tpm2.TPMAObject) { o.Restricted = false }},
			"not sign":                {attest.ReasonAK, func(o *tpm2.TPMAObject) { o.SignEncrypt = false }},
			"decrypt":                 {attest.ReasonAK, func(o *tpm2.TPMAObject) { o.Decrypt = true }},
			"x509sign":                {attest.ReasonAK, func(o *tpm2.TPMAObject) { o.X509Sign = true }},
			"encryptedDuplication":    {attest.ReasonAK, func(o *tpm2.TPMAObject) { o.EncryptedDuplication = true }},
			"stClear":                 {attest.ReasonAK, func(o *tpm2.TPMAObject) { o.STClear = true }},
			"not noDA":                {"", func(o *tpm2.TPMAObject) { o.NoDA = false }},
			"not userWithAuth":        {"", func(o *tpm2.TPMAObject) { o.UserWithAuth = false }},
		} {
			attributes := restrictedKey()
			c.change(&attributes)
			_, err := r.begin(t, func(b *attest.BeginRequest) { b.AK = newSoftKey(t, attributes).raw })
			if got := attest.ReasonOf(err); got != c.want {
				t.Errorf("%s: %q (%v), want %q", name, got, err, c.want)
			}
		}
	})
}

// An unrestricted key signs whatever it is given, a quote of any PCRs too. A
// restricted one signs nothing that begins as if a TPM had made it.
func testForgedQuote(t *testing.T, r *rig) {
	a := newAttacker(t, r.tpm)
	f := newForge(t)
	forged := f.request().Quote

	unrestricted := a.primary(tpm2.TPMRHEndorsement, signingTemplate(tpmKey))
	sign := func(k attackerKey, data []byte) error {
		hash, err := tpm2.Hash{Data: tpm2.TPM2BMaxBuffer{Buffer: data}, HashAlg: tpm2.TPMAlgSHA256, Hierarchy: tpm2.TPMRHEndorsement}.Execute(a.conn)
		if err != nil {
			t.Fatal(err)
		}
		_, err = tpm2.Sign{
			KeyHandle: k.auth(), Digest: hash.OutHash, Validation: hash.Validation,
			InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUSigScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSchemeHash{HashAlg: tpm2.TPMAlgSHA256})},
		}.Execute(a.conn)
		return err
	}
	if err := sign(unrestricted, forged); err != nil {
		t.Fatalf("the unrestricted key does not sign a forged quote, so that this tests nothing: %v", err)
	}
	ak := a.primary(tpm2.TPMRHEndorsement, signingTemplate(restrictedKey()))
	if err := sign(ak, []byte("an innocent text")); err != nil {
		t.Fatal(err)
	}
	if err := sign(ak, forged); err == nil {
		t.Fatal("the restricted key has signed a forged quote")
	}
	if _, err := r.begin(t, func(b *attest.BeginRequest) { b.AK = unrestricted.raw }); attest.ReasonOf(err) != attest.ReasonAK {
		t.Fatalf("the unrestricted key was accepted: %v", err)
	}
}

// An AK of the owner's hierarchy is a TPM's own and is activated, but sees false
// counters; a primary key of the endorsement hierarchy and a child of the
// endorsement key are fine. All of the evidence is the TPM's, each time.
func TestHierarchies(t *testing.T) {
	t.Parallel()
	r := rigFor(t, attesttest.Start(t), attest.ECCP384)
	judged := func(t *testing.T, make func(a *attacker) attackerKey) error {
		t.Helper()
		clear(r.stored)
		a := newAttacker(t, r.tpm)
		err := r.Finish(t.Context(), a.evidence(r, make(a), nil))
		if err == nil && !r.result.Activated {
			t.Error("accepted without activation")
		}
		return err
	}
	primary := func(hierarchy tpm2.TPMHandle) func(*attacker) attackerKey {
		return func(a *attacker) attackerKey { return a.primary(hierarchy, signingTemplate(restrictedKey())) }
	}
	child := func(hierarchy tpm2.TPMHandle) func(*attacker) attackerKey {
		return func(a *attacker) attackerKey { return a.child(hierarchy, signingTemplate(restrictedKey())) }
	}
	t.Run("owner", func(t *testing.T) {
		refused(t, judged(t, primary(tpm2.TPMRHOwner)), attest.ReasonHierarchy)
	})
	t.Run("child of a key of the owner's", func(t *testing.T) {
		refused(t, judged(t, child(tpm2.TPMRHOwner)), attest.ReasonHierarchy)
	})
	t.Run("platform", func(t *testing.T) {
		refused(t, judged(t, primary(tpm2.TPMRHPlatform)), attest.ReasonHierarchy)
	})
	t.Run("primary", func(t *testing.T) {
		if err := judged(t, primary(tpm2.TPMRHEndorsement)); err != nil {
			t.Error(err)
		}
	})
	t.Run("child of the endorsement key", func(t *testing.T) {
		if err := judged(t, child(tpm2.TPMRHEndorsement)); err != nil {
			t.Error(err)
		}
	})
}

// A thief with a machine of his own cannot answer for another's endorsement key,
// nor for a caveat that expects another holder or device.
func TestAnotherMachine(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	thief := rigFor(t, r.tpm.Sibling(t), attest.ECCP384)
	thief.roots, thief.policy = r.roots, r.policy

	thief.want = r.want
	thief.ask = r.ask
	refused(t, thief.attest(t), attest.ReasonUnexpected)

	device := r.holder.Device()
	thief.ask.Holder, thief.ask.Device = nil, &device
	refused(t, thief.attest(t), attest.ReasonUnexpected)

	// With the other machine's certificate the challenge is for that machine.
	c, err := thief.begin(t, func(b *attest.BeginRequest) { b.EKCertificate = r.holder.EKCertificate() })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := thief.holder.Answer(thief.want, c, posture(t, r)); !errors.Is(err, tpm2.TPMRCIntegrity) && !errors.Is(err, tpm2.TPMRCValue) {
		t.Fatalf("the thief's TPM has recovered a secret for another: %v", err)
	}
	plain := *c
	plain.Credential, plain.Secret = nil, nil
	answer, err := thief.holder.Answer(thief.want, &plain, posture(t, r))
	if err != nil {
		t.Fatal(err)
	}
	refused(t, thief.Finish(t.Context(), answer), attest.ReasonActivation)

	// Any machine has to be asked for by name.
	thief.ask.Device = nil
	refused(t, thief.attest(t), attest.ReasonUnexpected)
	thief.ask.AnyMachine = true
	thief.good(t)
}

func TestEndorsement(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	stranger := attesttest.Start(t)
	id := attest.Digest(r.holder.Device())
	kind := r.holder.Kind()
	roots, policy, now, ask := r.roots, *r.policy, r.now, r.ask
	for name, c := range map[string]struct {
		want   attest.Reason
		change func(*attest.BeginRequest)
	}{
		"of another CA":            {attest.ReasonUntrusted, func(*attest.BeginRequest) { r.roots, _ = verifier.ParseRoots(stranger.Roots) }},
		"roots that are not there": {attest.ReasonPolicy, func(*attest.BeginRequest) { r.policy.EKRoots = []string{"elsewhere"} }},
		"before it is valid":       {attest.ReasonUntrusted, func(*attest.BeginRequest) { r.now = now.AddDate(-5, 0, 0) }},
		"denied":                   {attest.ReasonDenied, func(*attest.BeginRequest) { r.policy.EKDeny = []attest.Digest{{1}, id} }},
		"denied, though allowed": {attest.ReasonDenied, func(*attest.BeginRequest) {
			r.policy.EKDeny, r.policy.EKAllow = []attest.Digest{id}, []attest.Digest{id}
		}},
		"not allowed":            {attest.ReasonDenied, func(*attest.BeginRequest) { r.policy.EKAllow = []attest.Digest{{1}} }},
		"allowed":                {"", func(*attest.BeginRequest) { r.policy.EKAllow = []attest.Digest{id} }},
		"of a kind not accepted": {attest.ReasonEKType, func(*attest.BeginRequest) { r.policy.EKKinds = []attest.Kind{attest.ECCP256} }},
		"of a kind accepted":     {"", func(*attest.BeginRequest) { r.policy.EKKinds = []attest.Kind{kind} }},
		"a CA's":                 {attest.ReasonCertificate, func(b *attest.BeginRequest) { b.EKCertificate = r.roots.Certificates()[1].Raw }},
		"no certificate":         {attest.ReasonCertificate, func(b *attest.BeginRequest) { b.EKCertificate = []byte("certificate") }},
		"padded, as NV memory is": {"", func(b *attest.BeginRequest) {
			b.EKCertificate = append(bytes.Clone(b.EKCertificate), make([]byte, 64)...)
		}},
		"a policy that was never stored": {attest.ReasonPolicy, func(*attest.BeginRequest) { r.policy.Version = 0 }},
		"a policy without PCRs":          {attest.ReasonPolicy, func(*attest.BeginRequest) { r.policy.PCRs = nil }},
		"another policy":                 {attest.ReasonUnexpected, func(b *attest.BeginRequest) { b.Policy = "lax" }},
		"the holder's thumbprint as a certificate's": {attest.ReasonUnexpected, func(*attest.BeginRequest) {
			key := r.holder.HolderKey()
			key.Method = capability.HolderMTLS
			r.ask.Holder = &key
		}},
		"another caveat": {attest.ReasonUnexpected, func(b *attest.BeginRequest) { b.Caveat = []byte("another") }},
		"no caveat":      {attest.ReasonUnexpected, func(b *attest.BeginRequest) { b.Caveat = nil }},
		"revoked":        {attest.ReasonRevoked, func(*attest.BeginRequest) { r.stored[r.holder.Device()] = &attest.Stored{Revoked: true} }},
	} {
		t.Run(name, func(t *testing.T) {
			defer func() { clear(r.stored); r.roots, r.now, r.ask = roots, now, ask }()
			p := policy
			r.policy = &p
			_, err := r.begin(t, c.change)
			if got := attest.ReasonOf(err); got != c.want || (err == nil) != (c.want == "") {
				t.Errorf("%q (%v), want %q", got, err, c.want)
			}
		})
	}
	// Only the issuer is an anchor: whoever trusts it need not trust its root.
	r.policy = &policy
	issuer := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: roots.Certificates()[1].Raw})
	r.roots, _ = verifier.ParseRoots(issuer)
	r.good(t)
	// Only the root is: the issuer comes with the request.
	r.roots, _ = verifier.ParseRoots(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: roots.Certificates()[0].Raw}))
	refused(t, r.attest(t), attest.ReasonUntrusted)
	if _, err := r.begin(t, func(b *attest.BeginRequest) { b.Intermediates = [][]byte{roots.Certificates()[1].Raw} }); err != nil {
		t.Fatal(err)
	}
}

// What was good once is good for nothing else.
func testReplay(t *testing.T, r *rig) {
	c, err := r.begin(t, func(*attest.BeginRequest) {})
	if err != nil {
		t.Fatal(err)
	}
	first, err := r.holder.Answer(r.want, c, posture(t, r))
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Finish(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	refused(t, r.Finish(t.Context(), first), attest.ReasonChallenge)

	next := func() *attest.FinishRequest {
		c, err := r.begin(t, func(*attest.BeginRequest) {})
		if err != nil {
			t.Fatal(err)
		}
		answer, err := r.holder.Answer(r.want, c, posture(t, r))
		if err != nil {
			t.Fatal(err)
		}
		return answer
	}
	old := next()
	old.Quote, old.QuoteSignature, old.PCRs = first.Quote, first.QuoteSignature, first.PCRs
	refused(t, r.Finish(t.Context(), old), attest.ReasonQualifying)
	old = next()
	old.Certify, old.CertifySignature = first.Certify, first.CertifySignature
	refused(t, r.Finish(t.Context(), old), attest.ReasonQualifying)
	old = next()
	old.Signature = first.Signature
	refused(t, r.Finish(t.Context(), old), attest.ReasonProof)
	old = next()
	defer func(now time.Time) { r.now = now }(r.now)
	r.now = r.now.Add(attest.ChallengeLifetime)
	refused(t, r.Finish(t.Context(), old), attest.ReasonChallenge)
}

// TPM2_Clear zeroes the counters and leaves the attestation key as it was.
func TestClear(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.tpm.Restart(t)
	r.good(t)
	ak := r.holder.AKName()
	r.tpm.Clear(t)
	if _, err := holder.Open(holder.Config{TPM: r.tpm.Address, Dir: r.dir}); !errors.Is(err, holder.ErrOtherTPM) {
		t.Fatalf("the holder key outlived TPM2_Clear: %v", err)
	}
	r.holder = open(t, r.tpm, t.TempDir(), "")
	if !bytes.Equal(r.holder.AKName(), ak) {
		t.Fatal("TPM2_Clear has changed the attestation key, so that this tests nothing")
	}
	key := r.holder.HolderKey()
	r.ask.Holder = &key
	err := r.attest(t)
	refused(t, err, attest.ReasonCounters)
	if refusal, ok := errors.AsType[*attest.Refusal](err); !ok || !refusal.Grave(r.stored[r.holder.Device()], "another policy", 1) {
		t.Errorf("that is not grave: %v", err)
	}
	// Enrolled anew it is good again. TPM2_Clear has evicted the endorsement keys:
	// the TPM makes them from their templates.
	clear(r.stored)
	r.good(t)
	rigFor(t, r.tpm, attest.RSA2048).good(t)
}

// The keys, and what is known of the device, outlive power failures and
// orderly restarts; the clock that is not safe after one is no reason to refuse.
func TestRestarts(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	first := r.good(t)
	r.tpm.Restart(t)
	second := r.good(t)
	r.tpm.Shutdown(t)
	third := r.good(t)
	if second.Counters.Reset <= first.Counters.Reset || third.Counters.Reset <= second.Counters.Reset || second.Activated || third.Activated {
		t.Errorf("%+v, %+v, %+v", first.Counters, second.Counters, third.Counters)
	}
	again := open(t, r.tpm, r.dir, "")
	if again.HolderKey() != r.holder.HolderKey() || !bytes.Equal(again.AKName(), r.holder.AKName()) {
		t.Error("another process finds other keys")
	}
	if err := again.Attest(t.Context(), r, r.want); err != nil {
		t.Error(err)
	}
}

// A machine that has booted otherwise is refused, and the operator sees which
// PCR differs; a policy with a set for it accepts.
func TestPCRs(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.good(t)
	r.tpm.Extend(t, 16)
	err := r.attest(t)
	refused(t, err, attest.ReasonPCRs)
	if refusal, _ := errors.AsType[*attest.Refusal](err); refusal == nil || !bytes.Contains([]byte(refusal.Detail), []byte(" 16=")) || refusal.Public() != "refused" {
		t.Errorf("the operator is told %v", err)
	}
	set, err := r.holder.CapturePCRs("updated", r.policy.PCRs)
	if err != nil {
		t.Fatal(err)
	}
	r.policy.PCRSets = append(r.policy.PCRSets, set)
	r.policy.Version++
	if result := r.good(t); result.PCRSet != "updated" || result.Version != 4 {
		t.Errorf("accepted as %+v", result)
	}
}

// Whatever byte of the first message is changed, no evidence comes of it.
func testEveryByteOfTheRequest(t *testing.T, r *rig) {
	r.good(t)
	clear(r.stored)
	request := r.holder.Begin(r.want)
	honest := *request
	honest.EKCertificate, honest.AK, honest.Holder = bytes.Clone(honest.EKCertificate), bytes.Clone(honest.AK), bytes.Clone(honest.Holder)
	passed := 0
	for name, field := range map[string]*[]byte{"certificate": &request.EKCertificate, "attestation key": &request.AK, "holder key": &request.Holder} {
		clean := bytes.Clone(*field)
		for i := range clean {
			for bit := range 8 {
				if name == "certificate" && bit != i%8 {
					continue // a signature check each
				}
				changed := bytes.Clone(clean)
				changed[i] ^= 1 << bit
				*field = changed
				c, err := r.Begin(t.Context(), request)
				if err != nil {
					continue
				}
				passed++
				// Names bind what may differ: who has the keys cannot answer.
				answer, err := r.holder.Answer(r.want, c, posture(t, r))
				if err == nil {
					err = r.Finish(t.Context(), answer)
				}
				if err == nil {
					t.Fatalf("byte %d of the %s does not matter", i, name)
				}
			}
		}
		*field = clean
	}
	if passed > 3*bits.Len32(0xff) {
		t.Errorf("%d changed requests got a challenge", passed)
	}
	if _, err := r.Begin(t.Context(), &honest); err != nil {
		t.Fatal(err)
	}
}

func TestOneTPM(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	t.Run("too large", func(t *testing.T) { testTooLarge(t, r) })
	t.Run("no randomness", func(t *testing.T) { testNoRandomness(t, r) })
	t.Run("holder is asked", func(t *testing.T) { testHolderIsAsked(t, r) })
	t.Run("forged quote", func(t *testing.T) { testForgedQuote(t, r) })
	t.Run("every byte of the request", func(t *testing.T) { testEveryByteOfTheRequest(t, r) })
	t.Run("replay", func(t *testing.T) { testReplay(t, r) })
	t.Run("two processes", func(t *testing.T) { testTwoProcesses(t, r) })
}

// A megabyte is refused before any of it is read.
func testTooLarge(t *testing.T, r *rig) {
	megabyte := make([]byte, 1<<20)
	for name, change := range map[string]func(*attest.BeginRequest){
		"certificate":   func(b *attest.BeginRequest) { b.EKCertificate = megabyte },
		"intermediate":  func(b *attest.BeginRequest) { b.Intermediates = [][]byte{megabyte} },
		"intermediates": func(b *attest.BeginRequest) { b.Intermediates = make([][]byte, 1<<16) },
		"AK":            func(b *attest.BeginRequest) { b.AK = megabyte },
		"holder key":    func(b *attest.BeginRequest) { b.Holder = megabyte },
		"caveat":        func(b *attest.BeginRequest) { b.Caveat = megabyte },
	} {
		if _, err := r.begin(t, change); attest.ReasonOf(err) != attest.ReasonTooLarge {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, change := range map[string]func(*attest.FinishRequest){
		"quote":     func(f *attest.FinishRequest) { f.Quote = megabyte },
		"certify":   func(f *attest.FinishRequest) { f.Certify = megabyte },
		"signature": func(f *attest.FinishRequest) { f.Signature = megabyte },
		"PCRs":      func(f *attest.FinishRequest) { f.PCRs = make([][]byte, 1<<16) },
		"posture":   func(f *attest.FinishRequest) { f.Posture = megabyte },
		"state":     func(f *attest.FinishRequest) { f.State = megabyte },
	} {
		f := newForge(t)
		f.finish = change
		if _, err := f.judge(); attest.ReasonOf(err) != attest.ReasonTooLarge {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What the discharger's randomness fails at is no refusal, and no challenge.
func testNoRandomness(t *testing.T, r *rig) {
	b := &verifier.Begin{
		Now: r.now, Rand: bytes.NewReader(nil), Policy: r.policy, Ask: r.ask, Request: r.holder.Begin(r.want),
		Roots: func(string) (*verifier.Roots, bool) { return r.roots, true },
		Known: func(capability.DeviceID) *attest.Stored { return nil },
	}
	if c, p, err := b.Challenge(); err == nil || c != nil || p != nil || attest.ReasonOf(err) != "" {
		t.Errorf("%v, %v, %v", c, p, err)
	}
	b.Rand = rand.Reader
	if _, _, err := b.Challenge(); err != nil {
		t.Fatal(err)
	}
}

// The holder answers only what it wants to be asked.
func testHolderIsAsked(t *testing.T, r *rig) {
	for name, change := range map[string]func(*attest.Challenge){
		"another audience":  func(c *attest.Challenge) { c.Audience = "evil" },
		"no PCRs":           func(c *attest.Challenge) { c.PCRs = nil },
		"a short nonce":     func(c *attest.Challenge) { c.Nonce = c.Nonce[:16] },
		"half a credential": func(c *attest.Challenge) { c.Secret = nil },
	} {
		c, err := r.begin(t, func(*attest.BeginRequest) {})
		if err != nil {
			t.Fatal(err)
		}
		change(c)
		if _, err := r.holder.Answer(r.want, c, posture(t, r)); !errors.Is(err, holder.ErrChallenge) {
			t.Errorf("%s: %v", name, err)
		}
	}
	defer func() { r.want.Policy = "" }()
	r.want.Policy = "lax"
	c, err := r.Begin(t.Context(), &attest.BeginRequest{
		Caveat: r.want.Caveat, EKCertificate: r.holder.EKCertificate(), AK: r.holder.Begin(r.want).AK, Holder: r.holder.Begin(r.want).Holder,
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.holder.Answer(r.want, c, posture(t, r)); !errors.Is(err, holder.ErrChallenge) {
		t.Errorf("another policy: %v", err)
	}
}

var _ holder.Discharger = (*rig)(nil)

// Two processes of one machine attest at a time, and what the second has proved
// is not held against the first.
func testTwoProcesses(t *testing.T, r *rig) {
	other := rigFor(t, r.tpm, attest.RSA2048)
	var wg sync.WaitGroup
	for _, one := range []*rig{r, other} {
		wg.Go(func() {
			for range 10 {
				if err := one.holder.Attest(t.Context(), one, one.want); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()

	first, err := r.begin(t, func(*attest.BeginRequest) {})
	if err != nil {
		t.Fatal(err)
	}
	answer, err := r.holder.Answer(r.want, first, posture(t, r))
	if err != nil {
		t.Fatal(err)
	}
	pending := r.pending
	for r.good(t).Counters.Clock == clockOf(answer.Quote) { // a clock of milliseconds
	}
	r.pending = pending
	refused(t, r.Finish(t.Context(), answer), attest.ReasonChallenge)
	r.good(t)
}

// clockOf reads the clock in a TPMS_ATTEST.
func clockOf(quote []byte) uint64 {
	return binary.BigEndian.Uint64(quote[safeAt(quote)-16:])
}
