package capability

import (
	"errors"
	"strconv"
)

// Code is the stable, machine-readable reason for a refusal. A Code is itself
// an error, so that errors.Is(err, capability.CodeRevoked) works on whatever
// a verifier returns.
type Code string

// Before the MAC has succeeded only the first four codes can be said, so that
// there is nothing to probe.
const (
	CodeMalformed    Code = "malformed"     // not a token set in this format
	CodeTooLarge     Code = "too_large"     // over MaxTokenSize, MaxCaveats or MaxDischarges
	CodeUnknownKey   Code = "unknown_key"   // no root key for its audience, epoch and generation
	CodeBadSignature Code = "bad_signature" // the chain's MAC does not match

	CodeRevoked           Code = "revoked"            // the token, or something that it hangs on, was revoked
	CodeUnregistered      Code = "unregistered"       // the authority does not know this token (registered tokens only)
	CodeExpired           Code = "expired"            // past not-after or a time-before
	CodeNotYetValid       Code = "not_yet_valid"      // ahead of a time-after
	CodeActionDenied      Code = "action_denied"      // an action caveat
	CodeResourceDenied    Code = "resource_denied"    // a resource caveat
	CodeArgumentDenied    Code = "argument_denied"    // an argument caveat
	CodeServiceDenied     Code = "service_denied"     // a service caveat
	CodeClientDenied      Code = "client_denied"      // a client-ip caveat
	CodeContextDenied     Code = "context_denied"     // a context caveat
	CodeRequestMismatch   Code = "request_mismatch"   // a request caveat names another request
	CodeHolderProof       Code = "holder_proof"       // no proof of possession of a key that the token names
	CodeReplayed          Code = "replayed"           // a proof or a request that was seen before
	CodeBudgetExhausted   Code = "budget_exhausted"   // a max-calls is spent
	CodeRateLimited       Code = "rate_limited"       // a max-rate; the call may be tried again later
	CodeDischargeRequired Code = "discharge_required" // a third-party caveat without its discharge
	CodeDischargeInvalid  Code = "discharge_invalid"  // a discharge that does not verify, is not bound, or belongs to nothing
	CodeUnknownCaveat     Code = "unknown_caveat"     // a condition that this verifier does not know, or cannot read
	CodeObligation        Code = "obligation"         // the service does not honor what the token obliges it to
	CodeNotForwardable    Code = "not_forwardable"    // the token is bound to another hop
	CodeStaleRevocations  Code = "stale_revocations"  // the verifier's revocations are older than its bound
	CodeUnavailable       Code = "unavailable"        // something that the decision needs cannot be reached
)

// Error returns the code itself.
func (c Code) Error() string { return string(c) }

// Refusal is a denial with its explanation. The explanation is for the owner
// of the service: it names the caveat. What a stranger may be told is Code.
type Refusal struct {
	Code   Code
	Caveat string // the condition that denied, as in the token; empty if none did
	Detail string // what was compared, never a secret; may be empty
}

// Error renders the refusal on one line; the caveat is quoted against terminal
// and log injection.
func (r *Refusal) Error() string {
	s := string(r.Code)
	if r.Caveat != "" {
		s += " by caveat " + strconv.QuoteToASCII(r.Caveat)
	}
	if r.Detail != "" {
		s += ": " + r.Detail
	}
	return s
}

// Is makes errors.Is(refusal, CodeX) true for the refusal's own code.
func (r *Refusal) Is(target error) bool {
	c, ok := target.(Code)
	return ok && c == r.Code
}

// CodeOf returns the code that err carries, "" for a nil error, and
// CodeUnavailable for an error that carries none: what cannot be explained
// is a failure to decide.
func CodeOf(err error) Code {
	if err == nil {
		return ""
	}
	if c, ok := errors.AsType[Code](err); ok {
		return c
	}
	if r, ok := errors.AsType[*Refusal](err); ok {
		return r.Code
	}
	return CodeUnavailable
}
