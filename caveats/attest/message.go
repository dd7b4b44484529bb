package attest

import (
	"crypto/sha256"
	"time"
)

// Bounds on the messages, in bytes, checked before anything is decoded further.
// The wire form is JSON, in which bytes take a third more.
const (
	MaxMessage       = 64 << 10 // a whole message, as JSON
	MaxCaveatID      = 2048
	MaxCertificate   = 4096
	MaxIntermediates = 4
	MaxPublic        = 512 // a TPMT_PUBLIC
	MaxAttest        = 1024
	MaxSignature     = 256 // a TPMT_SIGNATURE
	MaxPosture       = 4096
	MaxState         = 4096
	MaxCredential    = 512 // a credential blob, or its encrypted secret

	// NonceSize, SecretSize and ChallengeIDSize are exact.
	NonceSize       = 32
	SecretSize      = 32
	ChallengeIDSize = 16

	// MaxPCR is the highest index of a PCR, and so 24 the most that are quoted.
	MaxPCR = 23
)

// ChallengeLifetime is how long a holder has for its answer: enough for a
// hardware TPM that first has to derive an RSA endorsement key.
const ChallengeLifetime = 2 * time.Minute

// BeginRequest opens an attestation.
type BeginRequest struct {
	Caveat        []byte   `json:"caveat,omitempty"` // the caveat id; empty for an enrolment without a token
	Policy        string   `json:"policy,omitempty"` // for an enrolment: the policy asked for; a caveat names its own
	EKCertificate []byte   `json:"ek_certificate"`   // X.509, DER, as read from the TPM's NV memory: padding behind it is ignored
	Intermediates [][]byte `json:"intermediates,omitempty"`
	AK            []byte   `json:"ak"`     // TPMT_PUBLIC
	Holder        []byte   `json:"holder"` // TPMT_PUBLIC
}

// Challenge answers a BeginRequest. The holder computes the transcript from it.
type Challenge struct {
	ID            []byte    `json:"challenge"`
	Nonce         []byte    `json:"nonce"`
	Audience      string    `json:"audience"`
	Policy        string    `json:"policy"`
	PolicyVersion uint64    `json:"policy_version"`
	Credential    []byte    `json:"credential,omitempty"` // TPMS_ID_OBJECT; absent for an AK that is enrolled
	Secret        []byte    `json:"secret,omitempty"`     // the encrypted secret of the credential
	PCRs          []int     `json:"pcrs"`                 // indices in the SHA-256 bank, ascending
	Expires       time.Time `json:"expires"`
	State         []byte    `json:"state,omitempty"` // the discharger's own, to be handed back as it is
}

// FinishRequest is the evidence.
type FinishRequest struct {
	ID               []byte   `json:"challenge"`
	State            []byte   `json:"state,omitempty"`
	Activation       []byte   `json:"activation,omitempty"` // HMAC-SHA-256(secret, T); absent where the challenge has no credential
	Quote            []byte   `json:"quote"`                // TPMS_ATTEST
	QuoteSignature   []byte   `json:"quote_signature"`      // TPMT_SIGNATURE
	PCRs             [][]byte `json:"pcrs"`                 // the values, in the order of the challenge
	Certify          []byte   `json:"certify"`              // TPMS_ATTEST
	CertifySignature []byte   `json:"certify_signature"`    // TPMT_SIGNATURE
	Signature        []byte   `json:"signature"`            // TPMT_SIGNATURE of the holder key over T
	Posture          []byte   `json:"posture"`              // a Posture in JSON: these bytes are what the transcript hashes
}

// Check refuses what is too large or missing. It reads none of it. Errors:
// *Refusal with ReasonTooLarge or ReasonMalformed.
func (r *BeginRequest) Check() error {
	if len(r.Intermediates) > MaxIntermediates {
		return refuse(ReasonTooLarge, "%d intermediate certificates", len(r.Intermediates))
	}
	for _, c := range r.Intermediates {
		if err := sized("intermediate certificate", c, 1, MaxCertificate); err != nil {
			return err
		}
	}
	if r.Policy != "" && !ValidName(r.Policy) {
		return refuse(ReasonMalformed, "the policy is no name")
	}
	return firstError(
		sized("caveat id", r.Caveat, 0, MaxCaveatID),
		sized("endorsement key certificate", r.EKCertificate, 1, MaxCertificate),
		sized("attestation key", r.AK, 1, MaxPublic),
		sized("holder key", r.Holder, 1, MaxPublic),
	)
}

// Check refuses what is too large or missing. It reads none of it. Errors:
// *Refusal with ReasonTooLarge or ReasonMalformed.
func (r *FinishRequest) Check() error {
	if len(r.PCRs) > MaxPCR+1 {
		return refuse(ReasonTooLarge, "%d PCR values", len(r.PCRs))
	}
	for _, v := range r.PCRs {
		if err := sized("PCR value", v, sha256.Size, sha256.Size); err != nil {
			return err
		}
	}
	return firstError(
		sized("challenge id", r.ID, ChallengeIDSize, ChallengeIDSize),
		sized("state", r.State, 0, MaxState),
		sized("activation", r.Activation, 0, sha256.Size),
		sized("quote", r.Quote, 1, MaxAttest),
		sized("signature of the quote", r.QuoteSignature, 1, MaxSignature),
		sized("certification", r.Certify, 1, MaxAttest),
		sized("signature of the certification", r.CertifySignature, 1, MaxSignature),
		sized("signature of the holder key", r.Signature, 1, MaxSignature),
		sized("posture statement", r.Posture, 1, MaxPosture),
	)
}

// Check refuses a challenge that no honest discharger makes. Errors: *Refusal
// with ReasonTooLarge or ReasonMalformed.
func (c *Challenge) Check() error {
	if err := checkSelection(c.PCRs); err != nil {
		return err
	}
	if (len(c.Credential) == 0) != (len(c.Secret) == 0) {
		return refuse(ReasonMalformed, "a credential without its secret")
	}
	if !ValidName(c.Policy) || c.PolicyVersion == 0 || c.Audience == "" || len(c.Audience) > 255 {
		return refuse(ReasonMalformed, "the challenge names no policy or audience")
	}
	return firstError(
		sized("challenge id", c.ID, ChallengeIDSize, ChallengeIDSize),
		sized("nonce", c.Nonce, NonceSize, NonceSize),
		sized("credential", c.Credential, 0, MaxCredential),
		sized("secret", c.Secret, 0, MaxCredential),
		sized("state", c.State, 0, MaxState),
	)
}

// DecodeBegin reads a BeginRequest, strictly, and checks its sizes. Errors:
// *Refusal with ReasonTooLarge or ReasonMalformed.
func DecodeBegin(document []byte) (*BeginRequest, error) {
	return decodeChecked[BeginRequest](document)
}

// DecodeChallenge is DecodeBegin for a Challenge.
func DecodeChallenge(document []byte) (*Challenge, error) {
	return decodeChecked[Challenge](document)
}

// DecodeFinish is DecodeBegin for a FinishRequest.
func DecodeFinish(document []byte) (*FinishRequest, error) {
	return decodeChecked[FinishRequest](document)
}
