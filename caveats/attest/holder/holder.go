// Package holder is the attested side of package attest: it opens a TPM, keeps
// an attestation key and a holder key in it, answers challenges and signs.
package holder

import (
	"context"
	"crypto"
	"io"

	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats/attest"
)

// Discharger is the other side: over HTTP the authority's client, in tests the
// verifier itself. What Finish returns (a discharge, a record) is its own.
type Discharger interface {
	Begin(context.Context, *attest.BeginRequest) (*attest.Challenge, error)
	Finish(context.Context, *attest.FinishRequest) error
}

// Config opens a Holder.
type Config struct {
	// TPM is a device such as "/dev/tpmrm0", "unix:PATH" or "tcp:HOST:PORT" of a
	// software TPM. Empty: /dev/tpmrm0.
	TPM string
	// Dir keeps the holder key (a blob that this TPM alone can load), mode 0700,
	// made if it is missing.
	Dir string
	// Kind is the endorsement key to use. Empty: the first of attest.Kinds of
	// which the TPM has a certificate.
	Kind attest.Kind
	// Intermediates are DER certificates between the endorsement key's and the
	// roots, to send along.
	Intermediates [][]byte
}

// Holder is a TPM and its keys. It is safe for concurrent use; the TPM does one
// thing at a time.
type Holder struct{}

// Open opens the TPM and loads or makes the holder key.
func Open(Config) (*Holder, error) { return nil, attest.Refuse(attest.ReasonPolicy, "not built") }

// Close lets go of the TPM. The keys stay.
func (h *Holder) Close() error { return nil }

// Key is the holder key, for pop.NewKey. Each signature is one of the TPM:
// put a pop.Session in front where that is slow.
func (h *Holder) Key() crypto.Signer { return nil }

// HolderKey is what a holder caveat names.
func (h *Holder) HolderKey() capability.HolderKey { return capability.HolderKey{} }

// Device is the id of this TPM's endorsement key.
func (h *Holder) Device() capability.DeviceID { return capability.DeviceID{} }

// EKCertificate is the endorsement key's certificate, in DER.
func (h *Holder) EKCertificate() []byte { return nil }

// Want is what an attestation is for.
type Want struct {
	Caveat   []byte // the caveat id; empty for an enrolment
	Policy   string // for an enrolment
	Audience string // of the token; the challenge has to name it
	Posture  attest.Posture
}

// Attest runs the protocol once against a discharger.
func (h *Holder) Attest(ctx context.Context, d Discharger, w Want) error { return nil }

// CapturePCRs reads a golden set: the PCRs with these indices in the SHA-256 bank.
func (h *Holder) CapturePCRs(name string, pcrs []int) (attest.PCRSet, error) {
	return attest.PCRSet{}, nil
}

var _ io.Closer = (*Holder)(nil)
