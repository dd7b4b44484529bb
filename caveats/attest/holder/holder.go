// Package holder is the attested side of package attest: it opens a TPM, keeps
// an attestation key and a holder key in it, answers challenges, and signs.
//
// The attestation key is a primary key of the endorsement hierarchy: each TPM
// makes the same one again whenever it is asked to. The holder key is random, a
// child of a storage key of the owner's hierarchy, and is kept as a blob that
// this TPM alone can load. TPM2_Clear ends it.
//
// Hardware TPMs sign a handful of times a second. Put a pop.Session in front of
// the key where that is too slow:
//
//	h, err := holder.Open(holder.Config{Dir: dir})
//	key, err := pop.NewKey(h.Key())
//	session := pop.NewSession(key, 0, nil)
package holder

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"

	"github.com/google/go-tpm/tpm2"

	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats/attest"
	"github.com/writ-dev/writ/caveats/attest/internal/ek"
	"github.com/writ-dev/writ/caveats/attest/internal/tpm"
	"github.com/writ-dev/writ/caveats/pop"
)

// The errors that a caller can act on.
var (
	// ErrNoEndorsement: the TPM has no endorsement key certificate of a kind that
	// was asked for.
	ErrNoEndorsement = errors.New("the TPM has no endorsement key certificate")
	// ErrOtherTPM: the holder key was made by another TPM, or this one has been
	// cleared since. Once its file is removed, a new key is made.
	ErrOtherTPM = errors.New("the holder key is not of this TPM, or the TPM was cleared")
	// ErrChallenge: the discharger asks for something else than the holder wants.
	ErrChallenge = errors.New("the challenge is not for this attestation")
)

// Discharger is the other side: over HTTP the authority's client, in tests the
// verifier itself. What Finish leads to (a discharge, a record) it keeps itself.
type Discharger interface {
	Begin(context.Context, *attest.BeginRequest) (*attest.Challenge, error)
	Finish(context.Context, *attest.FinishRequest) error
}

// Config opens a Holder.
type Config struct {
	// TPM is a device such as "/dev/tpmrm0", or "unix:PATH" or "tcp:HOST:PORT" of a
	// software TPM. Empty: /dev/tpmrm0.
	TPM string
	// Dir keeps the holder key's blob. It is made, mode 0700, if it is missing.
	Dir string
	// Kind is the endorsement key to use. Empty: the first of attest.Kinds of
	// which the TPM has a certificate.
	Kind attest.Kind
	// Intermediates are certificates in DER between the endorsement key's and the
	// roots, to send along.
	Intermediates [][]byte
}

// Holder is a TPM and its keys. It is safe for concurrent use; the TPM does one
// thing at a time.
type Holder struct {
	conn          *tpm.Conn
	intermediates [][]byte

	certificate []byte // DER, without padding
	endorsement *ek.Key
	holderKey   capability.HolderKey
	signer      *signer

	mu     sync.Mutex // held over all commands of one operation; guards what follows
	ak     key
	holder key
}

// Open opens the TPM and loads or makes the holder key.
//
// Errors: ErrNoEndorsement, ErrOtherTPM, and those of the file system and of the
// TPM.
func Open(c Config) (_ *Holder, err error) {
	if c.TPM == "" {
		c.TPM = tpm.DefaultDevice
	}
	conn, err := tpm.Open(c.TPM)
	if err != nil {
		return nil, err
	}
	h := &Holder{conn: conn, intermediates: c.Intermediates}
	h.ak.load = h.makeAK
	defer func() {
		if err != nil {
			err = errors.Join(err, conn.Close())
		}
	}()
	if err := h.exclusive(func() error { return h.readEndorsement(c.Kind) }); err != nil {
		return nil, err
	}
	if err := h.exclusive(func() error { return h.use(&h.ak, func(tpm2.NamedHandle) error { return nil }) }); err != nil {
		return nil, fmt.Errorf("make attestation key: %w", err)
	}
	if err := h.openHolderKey(c.Dir); err != nil {
		return nil, err
	}
	return h, nil
}

// Close lets go of the TPM. The keys stay.
func (h *Holder) Close() error { return h.conn.Close() }

// HolderKey is what a holder caveat names.
func (h *Holder) HolderKey() capability.HolderKey { return h.holderKey }

// Device is the id of the TPM: the SHA-256 of its endorsement key's SPKI.
func (h *Holder) Device() capability.DeviceID { return h.endorsement.Device }

// Kind is the kind of the endorsement key in use.
func (h *Holder) Kind() attest.Kind { return h.endorsement.Kind }

// EKCertificate is the endorsement key's certificate, in DER.
func (h *Holder) EKCertificate() []byte { return slices.Clone(h.certificate) }

// AKName is the name of the attestation key.
func (h *Holder) AKName() attest.Name { return slices.Clone(h.ak.name) }

// Want is what an attestation is for.
type Want struct {
	Caveat   []byte // the caveat id; empty for an enrolment
	Policy   string // for an enrolment: the policy to enrol under
	Audience string // of the token, which the challenge has to name; empty: whatever it names
	Posture  attest.Posture
}

// Attest runs the protocol once. Errors: ErrChallenge, those of the discharger
// and of the TPM.
func (h *Holder) Attest(ctx context.Context, d Discharger, w Want) error {
	posture, err := w.Posture.Encode()
	if err != nil {
		return err
	}
	c, err := d.Begin(ctx, h.Begin(w))
	if err != nil {
		return err
	}
	answer, err := h.Answer(w, c, posture)
	if err != nil {
		return err
	}
	return d.Finish(ctx, answer)
}

// Begin is the first message.
func (h *Holder) Begin(w Want) *attest.BeginRequest {
	return &attest.BeginRequest{
		Caveat: w.Caveat, Policy: w.Policy, EKCertificate: h.certificate, Intermediates: h.intermediates,
		AK: h.ak.raw, Holder: h.holder.raw,
	}
}

// Answer makes the evidence that a challenge asks for. posture is a statement as
// attest.Posture.Encode returns it. Errors: ErrChallenge and those of the TPM.
func (h *Holder) Answer(w Want, c *attest.Challenge, posture []byte) (*attest.FinishRequest, error) {
	switch err := c.Check(); {
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrChallenge, err)
	case w.Audience != "" && c.Audience != w.Audience:
		return nil, fmt.Errorf("%w: it is for audience %q", ErrChallenge, c.Audience)
	case w.Policy != "" && c.Policy != w.Policy:
		return nil, fmt.Errorf("%w: it is for policy %q", ErrChallenge, c.Policy)
	}
	t := (&attest.Transcript{
		Audience: c.Audience, ChallengeID: c.ID, Nonce: c.Nonce, CaveatHash: sha256.Sum256(w.Caveat),
		EKName: h.endorsement.Name, AKName: h.ak.name, HolderName: h.holder.name,
		Policy: c.Policy, PolicyVersion: c.PolicyVersion, PostureHash: sha256.Sum256(posture),
	}).Hash()
	r := &attest.FinishRequest{ID: c.ID, State: c.State, Posture: posture}
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"activate credential", func() error { return h.activate(r, c, t) }},
		{"quote", func() error { return h.quote(r, c.PCRs, attest.QuoteData(t)) }},
		{"certify holder key", func() error { return h.certify(r, attest.CertifyData(t)) }},
		{"sign", func() (err error) { r.Signature, err = h.sign(t); return err }},
	} {
		if err := h.exclusive(step.do); err != nil {
			return nil, fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return r, nil
}

// CapturePCRs reads a golden set: the PCRs with these indices, ascending, in the
// SHA-256 bank.
func (h *Holder) CapturePCRs(name string, pcrs []int) (attest.PCRSet, error) {
	set := attest.PCRSet{Name: name, Values: make(map[string]attest.Digest)}
	err := h.exclusive(func() error {
		values, err := h.readPCRs(pcrs)
		for i, v := range values {
			set.Values[strconv.Itoa(pcrs[i])] = attest.Digest(v)
		}
		return err
	})
	return set, err
}

// openHolderKey loads the blob in dir, or makes a key and writes one.
func (h *Holder) openHolderKey(dir string) error {
	blob, err := readBlob(dir)
	if err == nil && blob == nil {
		if err := h.exclusive(func() (err error) { blob, err = h.createHolderKey(); return err }); err != nil {
			return fmt.Errorf("make holder key: %w", err)
		}
		blob, err = writeBlob(dir, blob)
	}
	if err != nil {
		return err
	}
	h.holder.load = func() (tpm2.TPMHandle, error) { return h.loadHolderKey(blob) }
	if err := h.exclusive(func() error { return h.use(&h.holder, func(tpm2.NamedHandle) error { return nil }) }); err != nil {
		return fmt.Errorf("load holder key: %w", err)
	}
	public, err := publicKey(h.holder.raw)
	if err != nil {
		return err
	}
	h.signer = &signer{h: h, public: public}
	key, err := pop.NewKey(h.signer)
	if err != nil {
		return err
	}
	h.holderKey = key.HolderKey()
	return nil
}
