package verifier_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/asn1"
	"math/big"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/writ-dev/writ/caveats/attest"
)

// Each forgery is perfect but for one thing.
func TestForgeries(t *testing.T) {
	known := func(f *forge) *attest.Stored {
		return &attest.Stored{AKs: []attest.Name{f.ak.name}, Counters: attest.Counters{Reset: 7, Restart: 2, Clock: 5000, Safe: true}}
	}
	// enrolled has no activation to fail first.
	enrolled := func(change func(*forge)) func(*forge) {
		return func(f *forge) {
			f.pending.Secret, f.stored = nil, known(f)
			f.pending.Counters = &f.stored.Counters
			change(f)
		}
	}
	for name, c := range map[string]struct {
		want   attest.Reason // "": accepted
		change func(*forge)
	}{
		"nothing changed":          {"", func(*forge) {}},
		"nothing changed, renewal": {"", enrolled(func(*forge) {})},

		// The challenge.
		"another challenge":               {attest.ReasonChallenge, func(f *forge) { f.finish = func(r *attest.FinishRequest) { r.ID = bytes.Repeat([]byte{8}, 16) } }},
		"in the moment it expires":        {attest.ReasonChallenge, func(f *forge) { f.pending.Expires = f.now }},
		"the policy has changed":          {attest.ReasonPolicy, func(f *forge) { f.policy.Version++ }},
		"another policy":                  {attest.ReasonPolicy, func(f *forge) { f.policy.Name = "test" }},
		"revoked meanwhile":               {attest.ReasonRevoked, func(f *forge) { f.stored = &attest.Stored{Revoked: true} }},
		"an unrestricted attestation key": {attest.ReasonAK, func(f *forge) { f.pending.AK = f.other.raw }},
		"a restricted holder key":         {attest.ReasonHolderKey, func(f *forge) { f.pending.Holder = f.ak.raw }},

		// Activation.
		"no activation": {attest.ReasonActivation, func(f *forge) { f.finish = func(r *attest.FinishRequest) { r.Activation = nil } }},
		"activation with another secret": {attest.ReasonActivation, func(f *forge) {
			f.finish = func(r *attest.FinishRequest) { r.Activation = attest.Activation([]byte("guess"), f.transcript.Hash()) }
		}},
		"activation cut short":                 {attest.ReasonActivation, func(f *forge) { f.finish = func(r *attest.FinishRequest) { r.Activation = r.Activation[:16] } }},
		"activation that nobody asked for":     {attest.ReasonActivation, enrolled(func(f *forge) { f.finish = func(r *attest.FinishRequest) { r.Activation = make([]byte, 32) } })},
		"renewal by a key that never enrolled": {attest.ReasonActivation, enrolled(func(f *forge) { f.stored.AKs = []attest.Name{f.other.name} })},
		"renewal of a device never seen":       {attest.ReasonActivation, enrolled(func(f *forge) { f.stored = nil })},

		// The transcript: evidence for another of anything. Where a secret is
		// involved the HMAC says so first, and for an enrolled key the quote.
		"another audience":          {attest.ReasonActivation, func(f *forge) { f.transcript.Audience = "corq" }},
		"another caveat":            {attest.ReasonQualifying, enrolled(func(f *forge) { f.transcript.CaveatHash[0]++ })},
		"another audience, renewal": {attest.ReasonQualifying, enrolled(func(f *forge) { f.transcript.Audience = "corq" })},
		"another nonce":             {attest.ReasonQualifying, enrolled(func(f *forge) { f.transcript.Nonce = make([]byte, 32) })},
		"another challenge's id":    {attest.ReasonQualifying, enrolled(func(f *forge) { f.transcript.ChallengeID = make([]byte, 16) })},
		"another endorsement key":   {attest.ReasonQualifying, enrolled(func(f *forge) { f.transcript.EKName = f.other.name })},
		"another attestation key":   {attest.ReasonQualifying, enrolled(func(f *forge) { f.transcript.AKName = f.other.name })},
		"another holder key":        {attest.ReasonQualifying, enrolled(func(f *forge) { f.transcript.HolderName = f.other.name })},
		"another policy's name":     {attest.ReasonQualifying, enrolled(func(f *forge) { f.transcript.Policy = "test" })},
		"another policy version":    {attest.ReasonQualifying, enrolled(func(f *forge) { f.transcript.PolicyVersion = 2 })},
		"another posture":           {attest.ReasonQualifying, enrolled(func(f *forge) { f.finish = func(r *attest.FinishRequest) { r.Posture = []byte(`{"agent":"better"}`) } })},

		// Signatures.
		"a quote signed by another key": {attest.ReasonSignature, func(f *forge) {
			f.finish = func(r *attest.FinishRequest) { r.QuoteSignature = f.other.sign(f.t, sha256.Sum256(r.Quote)) }
		}},
		"a certification signed by another key": {attest.ReasonSignature, func(f *forge) {
			f.finish = func(r *attest.FinishRequest) { r.CertifySignature = f.holder.sign(f.t, sha256.Sum256(r.Certify)) }
		}},
		"a signature in DER": {attest.ReasonSignature, func(f *forge) {
			f.finish = func(r *attest.FinishRequest) { r.QuoteSignature = derOf(f.t, r.QuoteSignature) }
		}},
		"a signature with a trailing byte": {attest.ReasonSignature, func(f *forge) {
			f.finish = func(r *attest.FinishRequest) { r.QuoteSignature = append(r.QuoteSignature, 0) }
		}},
		"a signature that names SHA-1":          {attest.ReasonSignature, func(f *forge) { f.finish = func(r *attest.FinishRequest) { r.QuoteSignature[3] = 0x04 } }},
		"a signature that names another scheme": {attest.ReasonSignature, func(f *forge) { f.finish = func(r *attest.FinishRequest) { r.QuoteSignature[1] = 0x1a } }},
		"a signature of zeros": {attest.ReasonSignature, func(f *forge) {
			f.finish = func(r *attest.FinishRequest) { clear(r.QuoteSignature[6:38]); clear(r.QuoteSignature[40:]) }
		}},

		// Structures.
		"another magic":                        {attest.ReasonMagic, func(f *forge) { f.quote.Magic = 0xff544348 }},
		"another magic in the certification":   {attest.ReasonMagic, func(f *forge) { f.certify.Magic = 0 }},
		"a quote that is a certification":      {attest.ReasonType, func(f *forge) { f.quote = f.certify }},
		"a certification that is a quote":      {attest.ReasonType, func(f *forge) { f.certify = f.quote }},
		"a type that lies":                     {attest.ReasonMalformed, func(f *forge) { f.certify = f.quote; f.certifyRaw = func(b []byte) []byte { b[5] = 0x17; return b } }},
		"a trailing byte":                      {attest.ReasonMalformed, func(f *forge) { f.quoteRaw = func(b []byte) []byte { return append(b, 0) } }},
		"a trailing byte in the certification": {attest.ReasonMalformed, func(f *forge) { f.certifyRaw = func(b []byte) []byte { return append(b, 0) } }},
		"cut short":                            {attest.ReasonMalformed, func(f *forge) { f.quoteRaw = func(b []byte) []byte { return b[:len(b)-1] } }},
		"only a magic":                         {attest.ReasonMagic, func(f *forge) { f.quoteRaw = func(b []byte) []byte { return b[:4] } }},
		"a truth that is 2":                    {attest.ReasonMalformed, func(f *forge) { f.quoteRaw = func(b []byte) []byte { b[safeAt(b)] = 2; return b } }},
		"qualifying data of the certification in the quote": {attest.ReasonQualifying, func(f *forge) {
			f.transcript.PostureHash = sha256.Sum256(f.posture)
			data := attest.CertifyData(f.transcript.Hash())
			f.quote.ExtraData.Buffer = data[:]
		}},
		"no qualifying data": {attest.ReasonQualifying, func(f *forge) { f.certify.ExtraData.Buffer = []byte{} }},

		// The hierarchy.
		"an owner-hierarchy key":   {attest.ReasonHierarchy, func(f *forge) { f.quote.QualifiedSigner.Buffer = primaryName(0x40000001, f.ak.name) }},
		"a platform-hierarchy key": {attest.ReasonHierarchy, func(f *forge) { f.certify.QualifiedSigner.Buffer = primaryName(0x4000000c, f.ak.name) }},
		"another's qualified name": {attest.ReasonHierarchy, func(f *forge) { f.quote.QualifiedSigner.Buffer = primaryName(0x4000000b, f.other.name) }},
		"no qualified name":        {attest.ReasonHierarchy, func(f *forge) { f.quote.QualifiedSigner.Buffer = nil }},
		"a child of the endorsement key": {"", func(f *forge) {
			child := childName(primaryName(0x4000000b, f.pending.EKName), f.ak.name)
			f.quote.QualifiedSigner.Buffer, f.certify.QualifiedSigner.Buffer = child, child
		}},
		"a child of another key": {attest.ReasonHierarchy, func(f *forge) {
			f.quote.QualifiedSigner.Buffer = childName(primaryName(0x4000000b, f.other.name), f.ak.name)
		}},

		// PCRs.
		"no PCRs":          {attest.ReasonSelection, func(f *forge) { f.quoteOf(pcrSelection(tpm2.TPMAlgSHA256, 0, 0, 0)) }},
		"no bank":          {attest.ReasonSelection, func(f *forge) { f.quoteOf() }},
		"the SHA-1 bank":   {attest.ReasonSelection, func(f *forge) { f.quoteOf(pcrSelection(tpm2.TPMAlgSHA1, 0x82, 0, 0)) }},
		"the SHA-384 bank": {attest.ReasonSelection, func(f *forge) { f.quoteOf(pcrSelection(tpm2.TPMAlgSHA384, 0x82, 0, 0)) }},
		"two banks": {attest.ReasonSelection, func(f *forge) {
			f.quoteOf(pcrSelection(tpm2.TPMAlgSHA256, 0x82, 0, 0), pcrSelection(tpm2.TPMAlgSHA1, 0, 0, 1))
		}},
		"a PCR more":      {attest.ReasonSelection, func(f *forge) { f.quoteOf(pcrSelection(tpm2.TPMAlgSHA256, 0x83, 0, 0)) }},
		"a PCR less":      {attest.ReasonSelection, func(f *forge) { f.quoteOf(pcrSelection(tpm2.TPMAlgSHA256, 0x80, 0, 0)) }},
		"other PCRs":      {attest.ReasonSelection, func(f *forge) { f.quoteOf(pcrSelection(tpm2.TPMAlgSHA256, 0, 0, 0x82)) }},
		"a longer bitmap": {attest.ReasonSelection, func(f *forge) { f.quoteOf(pcrSelection(tpm2.TPMAlgSHA256, 0x82, 0, 0, 0)) }},
		"a value less":    {attest.ReasonSelection, func(f *forge) { f.finish = func(r *attest.FinishRequest) { r.PCRs = r.PCRs[:1] } }},
		"values in another order": {attest.ReasonPCRDigest, func(f *forge) {
			f.finish = func(r *attest.FinishRequest) { r.PCRs = [][]byte{f.values[1], f.values[0]} }
		}},
		"values that were not quoted": {attest.ReasonPCRDigest, func(f *forge) {
			f.quoteOf(pcrSelection(tpm2.TPMAlgSHA256, 0x82, 0, 0))
			f.values = [][]byte{f.values[0], make([]byte, 32)}
		}},
		"values that the policy does not accept": {attest.ReasonPCRs, func(f *forge) {
			f.values = [][]byte{f.values[0], make([]byte, 32)}
			f.quoteOf(pcrSelection(tpm2.TPMAlgSHA256, 0x82, 0, 0))
		}},

		// The certification.
		"another key is certified":         {attest.ReasonCertified, func(f *forge) { f.certifyOf(f.other.name) }},
		"the attestation key is certified": {attest.ReasonCertified, func(f *forge) { f.certifyOf(f.ak.name) }},
		"no key is certified":              {attest.ReasonCertified, func(f *forge) { f.certifyOf(nil) }},

		// Counters and firmware.
		"the reset count goes back":                       {attest.ReasonCounters, enrolled(func(f *forge) { f.stored.Counters.Reset++ })},
		"the restart count goes back":                     {attest.ReasonCounters, enrolled(func(f *forge) { f.stored.Counters.Restart++ })},
		"the clock goes back":                             {attest.ReasonCounters, enrolled(func(f *forge) { f.stored.Counters.Clock++ })},
		"the clock goes back in the certification alone":  {attest.ReasonCounters, enrolled(func(f *forge) { f.certify.ClockInfo.Clock-- })},
		"a new attestation key, and the counters go back": {attest.ReasonCounters, func(f *forge) { f.pending.Counters = &attest.Counters{Reset: 8} }},
		"counters that only younger evidence has passed": {attest.ReasonChallenge, enrolled(func(f *forge) {
			before := f.stored.Counters
			f.pending.Counters = &before
			f.stored.Counters.Clock++
		})},
		"not safe":     {"", enrolled(func(f *forge) { f.quote.ClockInfo.Safe = false })},
		"old firmware": {attest.ReasonFirmware, func(f *forge) { f.quote.FirmwareVersion = 0x1fff }},

		// The holder key's proof, and the posture.
		"a proof by another key": {attest.ReasonProof, func(f *forge) { f.signer = func(d [sha256.Size]byte) []byte { return f.other.sign(f.t, d) } }},
		"a proof of another transcript": {attest.ReasonProof, func(f *forge) {
			f.signer = func(d [sha256.Size]byte) []byte { return f.holder.sign(f.t, attest.QuoteData(d)) }
		}},
		"a posture that is no JSON":         {attest.ReasonMalformed, func(f *forge) { f.posture = []byte("agent") }},
		"a posture that says a thing twice": {attest.ReasonMalformed, func(f *forge) { f.posture = []byte(`{"agent":"agent","Agent":"other"}`) }},
		"another agent":                     {attest.ReasonPosture, func(f *forge) { f.policy.Agents = []attest.Software{{Name: "other"}} }},
		"too old an agent":                  {attest.ReasonPosture, func(f *forge) { f.policy.Agents = []attest.Software{{Name: "agent", Minimum: "1.10"}} }},
		"no process hash":                   {attest.ReasonPosture, func(f *forge) { f.policy.Processes = []attest.Digest{{1}} }},
	} {
		t.Run(name, func(t *testing.T) {
			f := newForge(t)
			c.change(f)
			result, err := f.judge()
			if c.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				if result.Holder != f.holder.holderKey(t) || result.Device != f.pending.Device || result.Counters.Reset != 7 {
					t.Errorf("accepted as %+v", result)
				}
				return
			}
			refused(t, err, c.want)
			if result != nil {
				t.Error("a result came with the refusal")
			}
		})
	}
}

// A refusal of what the device has signed is grave for it, by a policy that it
// satisfied before; one that a stranger can bring about is not.
func TestGrave(t *testing.T) {
	good := &attest.Stored{Policy: "prod", PolicyVersion: 3}
	for reason, want := range map[attest.Reason]bool{
		attest.ReasonPCRs: true, attest.ReasonCounters: true, attest.ReasonFirmware: true,
		attest.ReasonSignature: false, attest.ReasonActivation: false, attest.ReasonPCRDigest: false, attest.ReasonUntrusted: false,
	} {
		r := &attest.Refusal{Reason: reason}
		if got := r.Signed(); got != want {
			t.Errorf("%s was signed by the device: %v", reason, got)
		}
		if got := r.Grave(good, "prod", 3); got != want {
			t.Errorf("%s is grave: %v", reason, got)
		}
		back := reason == attest.ReasonCounters // is so under any policy
		if r.Grave(good, "prod", 4) != back || r.Grave(good, "strict", 3) != back {
			t.Errorf("%s by a policy that the device never satisfied: grave is not %v", reason, back)
		}
		if r.Grave(nil, "prod", 3) {
			t.Errorf("%s is grave for a device never seen", reason)
		}
	}
}

// safeAt is where Safe is in a TPMS_ATTEST.
func safeAt(b []byte) int {
	signer := 6 + 2 + int(b[6])<<8 + int(b[7])
	return signer + 2 + int(b[signer])<<8 + int(b[signer+1]) + 8 + 4 + 4
}

func childName(parent []byte, name attest.Name) []byte {
	digest := sha256.Sum256(append(bytes.Clone(parent), name...))
	return append([]byte{0x00, 0x0b}, digest[:]...)
}

func derOf(t testing.TB, signature []byte) []byte {
	t.Helper()
	der, err := asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(signature[6:38]), new(big.Int).SetBytes(signature[40:])})
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// Every byte of good evidence matters.
func TestEveryByteOfTheEvidence(t *testing.T) {
	f := newForge(t)
	r := f.request()
	if len(r.Quote) < 100 {
		t.Fatal("the evidence is empty")
	}
	f.finish = func(out *attest.FinishRequest) { *out = *r }
	if _, err := f.judge(); err != nil {
		t.Fatal(err)
	}
	for name, field := range map[string][]byte{
		"challenge": r.ID, "activation": r.Activation, "quote": r.Quote, "its signature": r.QuoteSignature, "PCR": r.PCRs[0], "second PCR": r.PCRs[1],
		"certification": r.Certify, "its signature too": r.CertifySignature, "proof": r.Signature, "posture": r.Posture,
	} {
		// The forge shares these slices with its state: judge the evidence alone.
		pending := *f.pending
		pending.ID = bytes.Clone(pending.ID)
		for i := range field {
			bit := byte(1) << (i % 8)
			field[i] ^= bit
			_, err := judgeEvidence(f, &pending, r)
			field[i] ^= bit
			if err == nil {
				t.Fatalf("byte %d of the %s does not matter", i, name)
			}
		}
	}
	f.now = f.now.Add(time.Second)
	if _, err := judgeEvidence(f, f.pending, r); err != nil {
		t.Fatalf("the evidence was not put back: %v", err)
	}
}
