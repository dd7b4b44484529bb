// Package verifier checks the evidence of package attest, for a discharger. It
// is pure: time, randomness, policy, roots and what is known of a device are
// given to it, and what it returns is for its caller to store. One call of
// Begin makes a challenge, and one of Finish judges the answer.
//
// What it does not do: remember a challenge, and use it once; that is the
// caller's, together with storing the counters of the result, in one step that
// checks Counters.After again.
package verifier

import (
	"io"
	"time"

	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats/attest"
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
// key and the two keys pass checks. Errors: *attest.Refusal, or what Rand returns.
func (b *Begin) Challenge() (*attest.Challenge, *attest.Pending, error) {
	return nil, nil, attest.Refuse(attest.ReasonPolicy, "not built")
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
	return nil, attest.Refuse(attest.ReasonPolicy, "not built")
}
