package attest

import (
	"errors"
	"fmt"
)

// Reason says which check refused. Its text is stable, for logs, metrics and
// the operator. A stranger is told Refusal.Public alone.
type Reason string

// The reasons, in the order of the checks.
const (
	ReasonTooLarge  Reason = "too_large"
	ReasonMalformed Reason = "malformed" // JSON, or a TPM structure that is not in its one encoding

	ReasonUnexpected Reason = "unexpected" // the caveat expects another holder or device, or the request names another policy
	ReasonPolicy     Reason = "policy"     // no such policy, it cannot be used, or it has changed since the challenge

	ReasonCertificate Reason = "ek_certificate" // not an endorsement key certificate
	ReasonUntrusted   Reason = "ek_untrusted"   // no chain to the policy's roots
	ReasonDenied      Reason = "ek_denied"      // on the deny list, or not on the allow list
	ReasonEKType      Reason = "ek_type"        // a kind of endorsement key that is unknown or that the policy does not accept
	ReasonRevoked     Reason = "device_revoked"
	ReasonAK          Reason = "ak"     // no restricted signing key of a TPM
	ReasonHolderKey   Reason = "holder" // no unrestricted signing key of a TPM, or the AK itself

	ReasonChallenge  Reason = "challenge"  // unknown, used, expired, or another's
	ReasonActivation Reason = "activation" // the secret was not recovered by this endorsement key for this AK

	ReasonSignature  Reason = "signature"       // of a quote or certification
	ReasonMagic      Reason = "magic"           // not made by a TPM
	ReasonType       Reason = "attest_type"     // a quote where a certification belongs, or the other way round
	ReasonQualifying Reason = "qualifying_data" // made for another transcript
	ReasonHierarchy  Reason = "hierarchy"       // the AK is not in the endorsement hierarchy
	ReasonSelection  Reason = "pcr_selection"   // another bank, none, or not the policy's PCRs
	ReasonPCRDigest  Reason = "pcr_digest"      // the values are not those that were quoted
	ReasonPCRs       Reason = "pcrs"            // the values are in none of the policy's sets
	ReasonCertified  Reason = "certified"       // another key was certified

	ReasonCounters Reason = "counters" // a count or the clock went back: cleared, or another state
	ReasonFirmware Reason = "firmware" // older than the policy's minimum
	ReasonProof    Reason = "proof"    // the holder key's signature over the transcript
	ReasonPosture  Reason = "posture"
)

// Refusal is why evidence was refused, for the operator. It names no secret.
type Refusal struct {
	Reason Reason
	Detail string // may quote what a stranger sent, escaped
}

// Error returns the reason and the detail.
func (r *Refusal) Error() string {
	return "attestation refused: " + string(r.Reason) + ": " + r.Detail
}

// Is matches a Refusal of the same reason, whatever its detail.
func (r *Refusal) Is(target error) bool {
	t, ok := target.(*Refusal)
	return ok && t.Reason == r.Reason && (t.Detail == "" || t.Detail == r.Detail)
}

// Public is what a stranger may know: "too_large", "malformed", "challenge"
// (begin again), or "refused".
func (r *Refusal) Public() string {
	switch r.Reason {
	case ReasonTooLarge, ReasonMalformed, ReasonChallenge:
		return string(r.Reason)
	}
	return "refused"
}

// Signed says that the device's own AK has signed what the refusal is for: its
// PCRs, counters or firmware are not what they have to be. Anything else a
// stranger could send in its name, so that nothing is held against a device for it.
func (r *Refusal) Signed() bool {
	switch r.Reason {
	case ReasonPCRs, ReasonCounters, ReasonFirmware:
		return true
	}
	return false
}

// Grave says that a device which was good before has changed, so that what is
// bound to it may be in other hands: its counters went back, or its PCRs or
// firmware no longer satisfy the very version of the policy that they satisfied
// the last time. By a policy that it never satisfied a device is refused, and
// has not changed. A policy whose OnFailure is Revoke revokes it where it has.
func (r *Refusal) Grave(known *Stored, policy string, version uint64) bool {
	return r.Signed() && known != nil && (r.Reason == ReasonCounters || known.Policy == policy && known.PolicyVersion == version)
}

// ReasonOf returns the reason of a refusal in err's tree, or "".
func ReasonOf(err error) Reason {
	if r, ok := errors.AsType[*Refusal](err); ok {
		return r.Reason
	}
	return ""
}

// Refuse makes a Refusal. Errors in it are quoted, not wrapped: they are for reading.
func Refuse(reason Reason, format string, args ...any) error {
	return &Refusal{Reason: reason, Detail: fmt.Sprintf(format, args...)}
}

func refuse(reason Reason, format string, args ...any) error {
	return Refuse(reason, format, args...)
}
