// Package verifier checks the evidence of package attest, for a discharger. It
// is pure: time, randomness, policy, roots and what is known of a device are
// given to it, and what it returns is for its caller to store. One call of
// Begin.Challenge makes a challenge, and one of Finish.Result judges the answer.
//
// What it does not do: remember a challenge, and use it once. That is the
// caller's, together with storing the AK and the counters of the result, in one
// step that calls Counters.After again.
package verifier

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"io"
	"slices"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats/attest"
	"github.com/writ-dev/writ/caveats/attest/internal/ek"
)

// Begin is what a challenge is made of.
type Begin struct {
	Now     time.Time
	Rand    io.Reader // cryptographic
	Policy  *attest.Policy
	Roots   func(bundle string) (*Roots, bool)       // the bundles that Policy.EKRoots names
	Known   func(capability.DeviceID) *attest.Stored // nil for a device never seen
	Ask     attest.Ask
	Request *attest.BeginRequest
}

// Challenge makes a challenge for the request, if the caveat, the endorsement
// key and the two keys pass every check. Errors: *attest.Refusal, or what Rand
// returns.
func (b *Begin) Challenge() (*attest.Challenge, *attest.Pending, error) {
	if err := b.Request.Check(); err != nil {
		return nil, nil, err
	}
	if err := b.expected(); err != nil {
		return nil, nil, err
	}
	e, err := endorse(b.Policy, b.Roots, b.Request, b.Now)
	if err != nil {
		return nil, nil, err
	}
	if b.Ask.Device != nil && *b.Ask.Device != e.Device {
		return nil, nil, attest.Refuse(attest.ReasonUnexpected, "this is device %s, the caveat expects %s", e.Device, *b.Ask.Device)
	}
	stored := b.Known(e.Device)
	if stored != nil && stored.Revoked {
		return nil, nil, attest.Refuse(attest.ReasonRevoked, "device %s", e.Device)
	}
	ak, err := parseKey(b.Request.AK, true)
	if err != nil {
		return nil, nil, err
	}
	holder, err := parseKey(b.Request.Holder, false)
	if err != nil {
		return nil, nil, err
	}
	if key := holder.holderKey(); b.Ask.Holder != nil && *b.Ask.Holder != key {
		return nil, nil, attest.Refuse(attest.ReasonUnexpected, "this is holder %s, the caveat expects %s", key, *b.Ask.Holder)
	}

	random := make([]byte, attest.ChallengeIDSize+attest.NonceSize+attest.SecretSize)
	if _, err := io.ReadFull(b.Rand, random); err != nil {
		return nil, nil, err
	}
	p := &attest.Pending{
		ID:            random[:attest.ChallengeIDSize],
		Nonce:         random[attest.ChallengeIDSize:][:attest.NonceSize],
		Expires:       b.Now.Add(attest.ChallengeLifetime).UTC().Truncate(time.Millisecond),
		Audience:      b.Ask.Audience,
		CaveatHash:    sha256.Sum256(b.Ask.Caveat),
		Policy:        b.Policy.Name,
		PolicyVersion: b.Policy.Version,
		Kind:          e.Kind,
		Device:        e.Device,
		EKName:        e.Name,
		AK:            b.Request.AK,
		Holder:        b.Request.Holder,
	}
	c := &attest.Challenge{
		ID: p.ID, Nonce: p.Nonce, Audience: p.Audience, Policy: p.Policy, PolicyVersion: p.PolicyVersion,
		PCRs: b.Policy.PCRs, Expires: p.Expires,
	}
	if stored != nil {
		counters := stored.Counters // not the caller's, who stores others later
		p.Counters = &counters
	}
	if !stored.Enrolled(ak.name) {
		p.Secret = random[attest.ChallengeIDSize+attest.NonceSize:]
		if c.Credential, c.Secret, err = credential(b.Rand, e, ak.name, p.Secret); err != nil {
			return nil, nil, err
		}
	}
	return c, p, nil
}

// expected checks what needs no cryptography: that the policy can be used, and
// that the caveat says who may answer it.
func (b *Begin) expected() error {
	unexpected := func(detail string) error { return attest.Refuse(attest.ReasonUnexpected, "%s", detail) }
	if b.Policy == nil || b.Policy.Version == 0 {
		return attest.Refuse(attest.ReasonPolicy, "there is no such policy")
	}
	if err := b.Policy.Check(); err != nil {
		return attest.Refuse(attest.ReasonPolicy, "%v", err)
	}
	switch {
	case !bytes.Equal(b.Request.Caveat, b.Ask.Caveat):
		return unexpected("the request is for another caveat")
	case b.Request.Policy != "" && b.Request.Policy != b.Policy.Name:
		return unexpected("the request names another policy")
	case b.Ask.Audience == "" || len(b.Ask.Audience) > 255:
		return unexpected("no audience")
	case len(b.Ask.Caveat) > 0 && b.Ask.Holder == nil && b.Ask.Device == nil && !b.Ask.AnyMachine:
		return unexpected("the caveat expects nobody, and does not ask for any machine by name")
	}
	return nil
}

// credential makes a secret that the endorsement key's TPM alone recovers, and
// for the key of this name alone (TPM2_MakeCredential, Part 1, section 24).
func credential(rand io.Reader, e *ek.Key, ak attest.Name, secret []byte) (blob, encrypted []byte, err error) {
	key, err := tpm2.ImportEncapsulationKey(e.Public)
	if err != nil {
		return nil, nil, attest.Refuse(attest.ReasonEKType, "it cannot encrypt: %v", err)
	}
	return tpm2.CreateCredential(rand, key, ak, secret)
}

// Finish is what an answer is judged by.
type Finish struct {
	Now     time.Time
	Policy  *attest.Policy // of the name and version that Pending has
	Pending *attest.Pending
	Stored  *attest.Stored // nil for a device never seen
	Request *attest.FinishRequest
}

// Result judges the evidence. Errors: *attest.Refusal.
func (f *Finish) Result() (*attest.Result, error) {
	r, p := f.Request, f.Pending
	if err := r.Check(); err != nil {
		return nil, err
	}
	if err := f.current(); err != nil {
		return nil, err
	}
	ak, err := parseKey(p.AK, true)
	if err != nil {
		return nil, err
	}
	holder, err := parseKey(p.Holder, false)
	if err != nil {
		return nil, err
	}
	t := (&attest.Transcript{
		Audience: p.Audience, ChallengeID: p.ID, Nonce: p.Nonce, CaveatHash: p.CaveatHash,
		EKName: p.EKName, AKName: ak.name, HolderName: holder.name,
		Policy: p.Policy, PolicyVersion: p.PolicyVersion, PostureHash: sha256.Sum256(r.Posture),
	}).Hash()
	if err := f.activated(ak.name, t); err != nil {
		return nil, err
	}
	names := qualifiedNames(p.EKName, ak.name)
	quote, err := attested(ak, names, r.Quote, r.QuoteSignature, attestQuote, attest.QuoteData(t))
	if err != nil {
		return nil, err
	}
	certify, err := attested(ak, names, r.Certify, r.CertifySignature, attestCertify, attest.CertifyData(t))
	if err != nil {
		return nil, err
	}
	set, err := f.quoted(quote)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(certify.certified, holder.name) {
		return nil, attest.Refuse(attest.ReasonCertified, "another key was certified than the holder's")
	}
	for _, a := range []*attestation{quote, certify} {
		if err := f.counted(a.counters); err != nil {
			return nil, err
		}
	}
	if err := f.Policy.JudgeFirmware(quote.firmware); err != nil {
		return nil, err
	}
	if !holder.verifyDigest(t, r.Signature) {
		return nil, attest.Refuse(attest.ReasonProof, "the holder key did not sign the transcript")
	}
	posture, err := attest.DecodePosture(r.Posture)
	if err != nil {
		return nil, err
	}
	if err := f.Policy.JudgePosture(posture); err != nil {
		return nil, err
	}
	return &attest.Result{
		Device: p.Device, Kind: p.Kind, AKName: ak.name, Activated: len(p.Secret) > 0,
		Holder: holder.holderKey(), HolderKey: holder.public,
		Counters: quote.counters, Firmware: quote.firmware, PCRSet: set, Posture: *posture,
		Policy: p.Policy, Version: p.PolicyVersion,
		SessionKeys: f.Policy.SessionKeys, Lifetime: time.Duration(f.Policy.Lifetime),
	}, nil
}

// current checks that the challenge can be answered now.
func (f *Finish) current() error {
	p := f.Pending
	switch {
	case p == nil || subtle.ConstantTimeCompare(p.ID, f.Request.ID) != 1:
		return attest.Refuse(attest.ReasonChallenge, "there is no such challenge")
	case !f.Now.Before(p.Expires):
		return attest.Refuse(attest.ReasonChallenge, "it expired at %s", p.Expires.Format(time.RFC3339))
	case f.Policy == nil || f.Policy.Name != p.Policy || f.Policy.Version != p.PolicyVersion:
		return attest.Refuse(attest.ReasonPolicy, "the policy %q has changed since the challenge", p.Policy)
	case f.Stored != nil && f.Stored.Revoked:
		return attest.Refuse(attest.ReasonRevoked, "device %s", p.Device)
	}
	return nil
}

// counted holds the counters against what was known when the challenge was
// made, since the evidence is younger than that. What was stored since may be of
// evidence that two processes of one machine sent at a time: then the older is
// made again, and nothing is held against the device.
func (f *Finish) counted(c attest.Counters) error {
	if f.Pending.Counters != nil {
		if err := c.After(*f.Pending.Counters); err != nil {
			return err
		}
	}
	if f.Stored != nil && c.After(f.Stored.Counters) != nil {
		return attest.Refuse(attest.ReasonChallenge, "younger evidence of the device came first")
	}
	return nil
}

// activated checks that the TPM of this endorsement key recovered the
// challenge's secret for this AK, now or when it enrolled.
func (f *Finish) activated(ak attest.Name, t [sha256.Size]byte) error {
	switch secret := f.Pending.Secret; {
	case len(secret) == 0 && !f.Stored.Enrolled(ak):
		return attest.Refuse(attest.ReasonActivation, "the attestation key is enrolled no longer")
	case len(secret) == 0 && len(f.Request.Activation) > 0:
		return attest.Refuse(attest.ReasonActivation, "none was asked for")
	case len(secret) > 0 && !hmac.Equal(attest.Activation(secret, t), f.Request.Activation):
		return attest.Refuse(attest.ReasonActivation, "the secret was not recovered, or is for another transcript")
	}
	return nil
}

// attested checks the signature over the bytes received, and only then reads
// them: made by the TPM, of this type, for this transcript, by a key of the
// endorsement hierarchy.
func attested(ak *signingKey, qualified [2][]byte, raw, signature []byte, kind uint16, data [sha256.Size]byte) (*attestation, error) {
	what := "quote"
	if kind == attestCertify {
		what = "certification"
	}
	if !ak.verify(raw, signature) {
		return nil, attest.Refuse(attest.ReasonSignature, "the %s is not signed by the attestation key", what)
	}
	// Only a TPM writes the magic: a restricted key refuses to sign anything else
	// that begins with it.
	if len(raw) < 6 || binary.BigEndian.Uint32(raw) != tpmGenerated {
		return nil, attest.Refuse(attest.ReasonMagic, "the %s was not made by a TPM", what)
	}
	if got := binary.BigEndian.Uint16(raw[4:]); got != kind {
		return nil, attest.Refuse(attest.ReasonType, "the %s is of type %#04x", what, got)
	}
	a, ok := parseAttest(raw, kind)
	if !ok {
		return nil, attest.Refuse(attest.ReasonMalformed, "the %s is not in its one encoding", what)
	}
	if !bytes.Equal(a.extra, data[:]) {
		return nil, attest.Refuse(attest.ReasonQualifying, "the %s is for another transcript", what)
	}
	if !slices.ContainsFunc(qualified[:], func(n []byte) bool { return bytes.Equal(n, a.signer) }) {
		return nil, attest.Refuse(attest.ReasonHierarchy, "the attestation key is not in the endorsement hierarchy")
	}
	return a, nil
}

// quoted holds the quote's PCRs against the policy and returns the set that
// they match.
func (f *Finish) quoted(quote *attestation) (set string, err error) {
	// Exactly one bank and exactly these PCRs: a quote over none is signed just as
	// well (CVE-2022-0317).
	var bitmap [3]byte
	for _, i := range f.Policy.PCRs {
		bitmap[i/8] |= 1 << (i % 8)
	}
	if s := quote.selections; len(s) != 1 || s[0].bank != uint16(tpm2.TPMAlgSHA256) || !bytes.Equal(s[0].bitmap, bitmap[:]) {
		return "", attest.Refuse(attest.ReasonSelection, "not exactly the policy's PCRs of the SHA-256 bank are quoted")
	}
	if len(f.Request.PCRs) != len(f.Policy.PCRs) {
		return "", attest.Refuse(attest.ReasonSelection, "%d PCR values, not %d", len(f.Request.PCRs), len(f.Policy.PCRs))
	}
	digest := sha256.Sum256(slices.Concat(f.Request.PCRs...))
	if !bytes.Equal(digest[:], quote.digest) {
		return "", attest.Refuse(attest.ReasonPCRDigest, "the PCR values are not those that were quoted")
	}
	return f.Policy.JudgePCRs(f.Request.PCRs)
}
