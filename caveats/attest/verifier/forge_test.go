package verifier_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats/attest"
	"github.com/writ-dev/writ/caveats/attest/verifier"
	"github.com/writ-dev/writ/caveats/pop"
)

// softKey is a P-256 key in memory, with a public area that says what it likes.
type softKey struct {
	private *ecdsa.PrivateKey
	raw     []byte
	name    attest.Name
}

var tpmKey = tpm2.TPMAObject{
	FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true, SignEncrypt: true,
}

func restrictedKey() tpm2.TPMAObject {
	a := tpmKey
	a.Restricted = true
	return a
}

func newSoftKey(t testing.TB, attributes tpm2.TPMAObject) *softKey {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	k := &softKey{private: private, raw: tpm2.Marshal(softPublic(t, private, attributes))}
	k.name = nameOf(k.raw)
	return k
}

func softPublic(t testing.TB, private *ecdsa.PrivateKey, attributes tpm2.TPMAObject) tpm2.TPMTPublic {
	t.Helper()
	point, err := private.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256, ObjectAttributes: attributes,
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			Scheme: tpm2.TPMTECCScheme{
				Scheme:  tpm2.TPMAlgECDSA,
				Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256}),
			},
			CurveID: tpm2.TPMECCNistP256,
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: point[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: point[33:]},
		}),
	}
}

func nameOf(raw []byte) attest.Name {
	digest := sha256.Sum256(raw)
	return append([]byte{0x00, 0x0b}, digest[:]...)
}

// sign returns a TPMT_SIGNATURE.
func (k *softKey) sign(t testing.TB, digest [sha256.Size]byte) []byte {
	t.Helper()
	r, s, err := ecdsa.Sign(rand.Reader, k.private, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	out := []byte{0x00, 0x18, 0x00, 0x0b, 0x00, 0x20}
	out = append(out, r.FillBytes(make([]byte, 32))...)
	out = append(out, 0x00, 0x20)
	return append(out, s.FillBytes(make([]byte, 32))...)
}

func (k *softKey) holderKey(t testing.TB) capability.HolderKey {
	t.Helper()
	key, err := pop.NewKey(k.private)
	if err != nil {
		t.Fatal(err)
	}
	return key.HolderKey()
}

// forge is a challenge whose every check but one an attacker is let past: he
// has the AK's private key, and the challenge's secret. So a test changes one
// thing, and sees that it alone is refused. Unchanged, the evidence is accepted.
type forge struct {
	t       testing.TB
	ak      *softKey
	holder  *softKey
	other   *softKey // one more key, for the taking
	policy  *attest.Policy
	pending *attest.Pending
	stored  *attest.Stored
	now     time.Time

	transcript *attest.Transcript // of the evidence; Finish computes its own
	posture    []byte
	quote      tpm2.TPMSAttest
	certify    tpm2.TPMSAttest
	values     [][]byte

	quoteRaw, certifyRaw func([]byte) []byte              // last, before they are signed
	finish               func(*attest.FinishRequest)      // last of all
	signer               func(t [sha256.Size]byte) []byte // of the holder key
}

func newForge(t testing.TB) *forge {
	t.Helper()
	f := &forge{
		t: t, ak: newSoftKey(t, restrictedKey()), holder: newSoftKey(t, tpmKey), other: newSoftKey(t, tpmKey),
		now:     time.Date(2026, 11, 24, 9, 0, 0, 0, time.UTC),
		posture: []byte(`{"agent":"agent","version":"1.2.0"}`),
		values:  [][]byte{bytes.Repeat([]byte{0x11}, 32), bytes.Repeat([]byte{0x77}, 32)},
	}
	f.policy = &attest.Policy{
		Format: 1, Name: "prod", Version: 3, EKRoots: []string{"swtpm"}, EKKinds: attest.Kinds(), PCRs: []int{1, 7},
		PCRSets: []attest.PCRSet{{Name: "golden", Values: map[string]attest.Digest{
			"1": attest.Digest(f.values[0]), "7": attest.Digest(f.values[1]),
		}}},
		MinFirmware: 0x2000, Lifetime: attest.Duration(5 * time.Minute),
	}
	f.pending = &attest.Pending{
		ID: bytes.Repeat([]byte{1}, 16), Nonce: bytes.Repeat([]byte{2}, 32), Secret: bytes.Repeat([]byte{3}, 32),
		Expires: f.now.Add(time.Minute), Audience: "corp", CaveatHash: sha256.Sum256([]byte("a caveat id")),
		Policy: "prod", PolicyVersion: 3, Kind: attest.ECCP384, Device: capability.DeviceID{9},
		EKName: append([]byte{0x00, 0x0b}, bytes.Repeat([]byte{4}, 32)...), AK: f.ak.raw, Holder: f.holder.raw,
	}
	p := f.pending
	f.transcript = &attest.Transcript{
		Audience: p.Audience, ChallengeID: p.ID, Nonce: p.Nonce, CaveatHash: p.CaveatHash, EKName: p.EKName,
		AKName: f.ak.name, HolderName: f.holder.name, Policy: p.Policy, PolicyVersion: p.PolicyVersion,
	}
	f.signer = func(d [sha256.Size]byte) []byte { return f.holder.sign(t, d) }
	head := tpm2.TPMSAttest{
		Magic: 0xff544347, QualifiedSigner: tpm2.TPM2BName{Buffer: primaryName(0x4000000b, f.ak.name)},
		ClockInfo: tpm2.TPMSClockInfo{Clock: 5000, ResetCount: 7, RestartCount: 2, Safe: true}, FirmwareVersion: 0x2026,
	}
	f.quote, f.certify = head, head
	f.quote.Type, f.certify.Type = tpm2.TPMSTAttestQuote, tpm2.TPMSTAttestCertify
	f.quoteOf(pcrSelection(tpm2.TPMAlgSHA256, 0x82, 0, 0))
	f.certifyOf(f.holder.name)
	return f
}

// primaryName is the qualified name of a primary key of a hierarchy.
func primaryName(hierarchy uint32, name attest.Name) []byte {
	digest := sha256.Sum256(append(binary.BigEndian.AppendUint32(nil, hierarchy), name...))
	return append([]byte{0x00, 0x0b}, digest[:]...)
}

func pcrSelection(bank tpm2.TPMAlgID, bitmap ...byte) tpm2.TPMSPCRSelection {
	return tpm2.TPMSPCRSelection{Hash: bank, PCRSelect: bitmap}
}

func (f *forge) quoteOf(selections ...tpm2.TPMSPCRSelection) {
	digest := sha256.Sum256(bytes.Join(f.values, nil))
	f.quote.Attested = tpm2.NewTPMUAttest(tpm2.TPMSTAttestQuote, &tpm2.TPMSQuoteInfo{
		PCRSelect: tpm2.TPMLPCRSelection{PCRSelections: selections}, PCRDigest: tpm2.TPM2BDigest{Buffer: digest[:]},
	})
}

func (f *forge) certifyOf(name attest.Name) {
	f.certify.Attested = tpm2.NewTPMUAttest(tpm2.TPMSTAttestCertify, &tpm2.TPMSCertifyInfo{
		Name: tpm2.TPM2BName{Buffer: name}, QualifiedName: tpm2.TPM2BName{Buffer: primaryName(0x40000001, name)},
	})
}

// request makes the evidence.
func (f *forge) request() *attest.FinishRequest {
	f.transcript.PostureHash = sha256.Sum256(f.posture)
	t := f.transcript.Hash()
	signed := func(a tpm2.TPMSAttest, data [sha256.Size]byte, last func([]byte) []byte) (raw, signature []byte) {
		if a.ExtraData.Buffer == nil {
			a.ExtraData.Buffer = data[:]
		}
		raw = tpm2.Marshal(a)
		if last != nil {
			raw = last(raw)
		}
		return raw, f.ak.sign(f.t, sha256.Sum256(raw))
	}
	r := &attest.FinishRequest{ID: f.pending.ID, Posture: f.posture, PCRs: f.values, Signature: f.signer(t)}
	if len(f.pending.Secret) > 0 {
		r.Activation = attest.Activation(f.pending.Secret, t)
	}
	r.Quote, r.QuoteSignature = signed(f.quote, attest.QuoteData(t), f.quoteRaw)
	r.Certify, r.CertifySignature = signed(f.certify, attest.CertifyData(t), f.certifyRaw)
	if f.finish != nil {
		f.finish(r)
	}
	return r
}

func (f *forge) judge() (*attest.Result, error) {
	in := &verifier.Finish{Now: f.now, Policy: f.policy, Pending: f.pending, Stored: f.stored, Request: f.request()}
	return in.Result()
}

func judgeEvidence(f *forge, pending *attest.Pending, r *attest.FinishRequest) (*attest.Result, error) {
	in := &verifier.Finish{Now: f.now, Policy: f.policy, Pending: pending, Stored: f.stored, Request: r}
	return in.Result()
}
