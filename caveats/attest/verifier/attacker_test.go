package verifier_test

import (
	"crypto/sha256"
	"strconv"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/writ-dev/writ/caveats/attest"
	"github.com/writ-dev/writ/caveats/attest/attesttest"
	"github.com/writ-dev/writ/caveats/attest/internal/ek"
	"github.com/writ-dev/writ/caveats/attest/internal/tpm"
)

// attacker has a TPM to himself, and every command of it.
type attacker struct {
	t    testing.TB
	conn *tpm.Conn
}

func newAttacker(t testing.TB, p *attesttest.TPM) *attacker {
	t.Helper()
	c, err := tpm.Open(p.Address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return &attacker{t, c}
}

// key is a loaded key of the attacker's.
type attackerKey struct {
	handle tpm2.NamedHandle
	raw    []byte
}

func (k attackerKey) auth() tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: k.handle.Handle, Name: k.handle.Name, Auth: tpm2.PasswordAuth(nil)}
}

func (a *attacker) primary(hierarchy tpm2.TPMHandle, public tpm2.TPMTPublic) attackerKey {
	a.t.Helper()
	response, err := tpm2.CreatePrimary{PrimaryHandle: hierarchy, InPublic: tpm2.New2B(public)}.Execute(a.conn)
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() { a.flush(response.ObjectHandle) })
	return attackerKey{tpm2.NamedHandle{Handle: response.ObjectHandle, Name: response.Name}, response.OutPublic.Bytes()}
}

func (a *attacker) flush(h tpm2.TPMHandle) { _, _ = tpm2.FlushContext{FlushHandle: h}.Execute(a.conn) }

// external loads the public and private halves of a software key.
func (a *attacker) external(k *softKey, attributes tpm2.TPMAObject) (attackerKey, error) {
	a.t.Helper()
	d, err := k.private.Bytes()
	if err != nil {
		a.t.Fatal(err)
	}
	response, err := tpm2.LoadExternal{
		InPrivate: tpm2.New2B(tpm2.TPMTSensitive{
			SensitiveType: tpm2.TPMAlgECC,
			Sensitive:     tpm2.NewTPMUSensitiveComposite(tpm2.TPMAlgECC, &tpm2.TPM2BECCParameter{Buffer: d}),
		}),
		InPublic:  tpm2.New2B(softPublic(a.t, k.private, attributes)),
		Hierarchy: tpm2.TPMRHNull,
	}.Execute(a.conn)
	if err != nil {
		return attackerKey{}, err
	}
	a.t.Cleanup(func() { a.flush(response.ObjectHandle) })
	return attackerKey{tpm2.NamedHandle{Handle: response.ObjectHandle, Name: response.Name}, k.raw}, nil
}

// activate recovers the secret of a challenge with the TPM's P-384 endorsement
// key, for this key as the attestation key.
func (a *attacker) activate(k attackerKey, c *attest.Challenge) ([]byte, error) {
	a.t.Helper()
	endorsement := a.primary(tpm2.TPMRHEndorsement, *ek.Template(attest.ECCP384))
	response, err := tpm2.ActivateCredential{
		ActivateHandle: k.auth(), KeyHandle: endorsement.auth(),
		CredentialBlob: tpm2.TPM2BIDObject{Buffer: c.Credential}, Secret: tpm2.TPM2BEncryptedSecret{Buffer: c.Secret},
	}.Execute(a.conn)
	a.flush(endorsement.handle.Handle)
	if err != nil {
		return nil, err
	}
	return response.CertInfo.Buffer, nil
}

func signingTemplate(attributes tpm2.TPMAObject) tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256, ObjectAttributes: attributes,
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			Scheme: tpm2.TPMTECCScheme{
				Scheme:  tpm2.TPMAlgECDSA,
				Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256}),
			},
			CurveID: tpm2.TPMECCNistP256,
		}),
	}
}

func posture(t testing.TB, r *rig) []byte {
	t.Helper()
	b, err := r.want.Posture.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// forgeFor is forged evidence for the rig's last challenge, with k as the
// attestation key. The forger has the secret only if he is given it.
func forgeFor(t testing.TB, r *rig, k *softKey) *forge {
	t.Helper()
	f := newForge(t)
	f.policy, f.pending, f.ak = r.policy, r.pending, k
	p := r.pending
	f.transcript = &attest.Transcript{
		Audience: p.Audience, ChallengeID: p.ID, Nonce: p.Nonce, CaveatHash: p.CaveatHash, EKName: p.EKName,
		AKName: k.name, HolderName: nameOf(p.Holder), Policy: p.Policy, PolicyVersion: p.PolicyVersion,
	}
	return f
}

// child makes a key below the parent that the template of the P-384 endorsement
// key gives in this hierarchy.
func (a *attacker) child(hierarchy tpm2.TPMHandle, public tpm2.TPMTPublic) attackerKey {
	a.t.Helper()
	parent := a.primary(hierarchy, *ek.Template(attest.ECCP384))
	defer a.flush(parent.handle.Handle)
	created, err := tpm2.Create{ParentHandle: parent.auth(), InPublic: tpm2.New2B(public)}.Execute(a.conn)
	if err != nil {
		a.t.Fatal(err)
	}
	loaded, err := tpm2.Load{ParentHandle: parent.auth(), InPrivate: created.OutPrivate, InPublic: created.OutPublic}.Execute(a.conn)
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() { a.flush(loaded.ObjectHandle) })
	return attackerKey{tpm2.NamedHandle{Handle: loaded.ObjectHandle, Name: loaded.Name}, created.OutPublic.Bytes()}
}

// evidence answers a challenge of the rig's with this key as the attestation
// key, and a holder key of its own: each part of it is made by the TPM. With a
// software key as the holder key, that signs, and the TPM certifies its own.
func (a *attacker) evidence(r *rig, ak attackerKey, soft *softKey) *attest.FinishRequest {
	a.t.Helper()
	holding := a.primary(tpm2.TPMRHOwner, signingTemplate(tpmKey))
	public := holding.raw
	if soft != nil {
		public = soft.raw
	}
	r.ask.Holder = nil // it is the hierarchy of the attestation key that counts here
	r.ask.AnyMachine = true
	c, err := r.begin(a.t, func(b *attest.BeginRequest) { b.AK, b.Holder = ak.raw, public })
	if err != nil {
		a.t.Fatal(err)
	}
	a.flush(holding.handle.Handle) // three objects at a time
	secret, err := a.activate(ak, c)
	if err != nil {
		a.t.Fatal(err)
	}
	holding = a.primary(tpm2.TPMRHOwner, signingTemplate(tpmKey))

	p := r.pending
	answer := &attest.FinishRequest{ID: p.ID, Posture: posture(a.t, r)}
	transcript := (&attest.Transcript{
		Audience: p.Audience, ChallengeID: p.ID, Nonce: p.Nonce, CaveatHash: p.CaveatHash, EKName: p.EKName, AKName: nameOf(ak.raw),
		HolderName: nameOf(public), Policy: p.Policy, PolicyVersion: p.PolicyVersion, PostureHash: sha256.Sum256(answer.Posture),
	}).Hash()
	answer.Activation = attest.Activation(secret, transcript)
	null := tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull}
	data := attest.QuoteData(transcript)
	quote, err := tpm2.Quote{
		SignHandle: ak.auth(), QualifyingData: tpm2.TPM2BData{Buffer: data[:]}, InScheme: null,
		PCRSelect: tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{pcrSelection(tpm2.TPMAlgSHA256, 0x83, 0, 1)}},
	}.Execute(a.conn)
	if err != nil {
		a.t.Fatal(err)
	}
	answer.Quote, answer.QuoteSignature = quote.Quoted.Bytes(), tpm2.Marshal(quote.Signature)
	for _, pcr := range r.policy.PCRs {
		digest := r.policy.PCRSets[0].Values[strconv.Itoa(pcr)]
		answer.PCRs = append(answer.PCRs, digest[:])
	}
	data = attest.CertifyData(transcript)
	certified, err := tpm2.Certify{
		ObjectHandle: holding.auth(), SignHandle: ak.auth(), QualifyingData: tpm2.TPM2BData{Buffer: data[:]}, InScheme: null,
	}.Execute(a.conn)
	if err != nil {
		a.t.Fatal(err)
	}
	answer.Certify, answer.CertifySignature = certified.CertifyInfo.Bytes(), tpm2.Marshal(certified.Signature)
	if soft != nil {
		answer.Signature = soft.sign(a.t, transcript)
		return answer
	}
	signed, err := tpm2.Sign{
		KeyHandle: holding.auth(), Digest: tpm2.TPM2BDigest{Buffer: transcript[:]}, InScheme: null,
		Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck, Hierarchy: tpm2.TPMRHNull},
	}.Execute(a.conn)
	if err != nil {
		a.t.Fatal(err)
	}
	answer.Signature = tpm2.Marshal(signed.Signature)
	return answer
}

// writeNV puts data where a TPM has the certificate of an endorsement key.
func (a *attacker) writeNV(index tpm2.TPMHandle, data []byte) {
	a.t.Helper()
	public := tpm2.TPMSNVPublic{
		NVIndex: index, NameAlg: tpm2.TPMAlgSHA256, DataSize: uint16(len(data)),
		Attributes: tpm2.TPMANV{OwnerWrite: true, OwnerRead: true, AuthRead: true, NoDA: true, NT: tpm2.TPMNTOrdinary},
	}
	if _, err := (tpm2.NVDefineSpace{AuthHandle: tpm2.TPMRHOwner, PublicInfo: tpm2.New2B(public)}).Execute(a.conn); err != nil {
		a.t.Fatal(err)
	}
	for offset := 0; offset < len(data); offset += 512 {
		read, err := tpm2.NVReadPublic{NVIndex: index}.Execute(a.conn)
		if err != nil {
			a.t.Fatal(err)
		}
		_, err = tpm2.NVWrite{
			AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}, NVIndex: tpm2.NamedHandle{Handle: index, Name: read.NVName},
			Data: tpm2.TPM2BMaxNVBuffer{Buffer: data[offset:min(offset+512, len(data))]}, Offset: uint16(offset),
		}.Execute(a.conn)
		if err != nil {
			a.t.Fatal(err)
		}
	}
}
