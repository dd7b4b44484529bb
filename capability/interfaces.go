package capability

import (
	"context"
	"time"
)

// What a Verifier asks of the world. Each is safe for concurrent use, answers
// from memory unless it takes a context, and keeps no slice that it is given.

// Keys finds root keys. A service that holds the keys of its audience verifies
// alone, and could mint for that audience: with HMAC, who can verify can mint.
type Keys interface {
	// Key returns the root key of an audience's epoch and generation, or nil.
	Key(audience []byte, epoch, generation uint32) *RootKey
}

// RevocationState is what Revocations knows of a token by its identity alone.
type RevocationState uint8

// The answers of Revocations.Token.
const (
	Live            RevocationState = iota // nothing is known against it
	BranchesRevoked                        // some branch of it is revoked: ask for each
	Revoked                                // all of it is
	Forgotten                              // it had ended by some clock, and what was known against it was dropped
)

// Revocations answers what has been revoked, and how fresh that answer is.
type Revocations interface {
	// Mark is the moment, in nanoseconds of the implementation's own clock,
	// that whatever is looked up from now on is at least as new as.
	Mark() int64
	// Within reports whether mark is still no older than the bound: bound 0 is
	// the implementation's own. It is asked last, just before a decision.
	Within(mark int64, bound time.Duration) bool
	// Token looks up the token, its subject, audience and epoch.
	Token(id *Identity) RevocationState
	// Branch looks up one branch of a token for which Token said BranchesRevoked.
	Branch(id TokenID, b BranchID) bool
	// Holder looks up a holder's key.
	Holder(k HolderKey) bool
	// Device looks up a device.
	Device(d DeviceID) bool
}

// Registry answers whether the authority issued a token, for verifiers that
// accept registered tokens only.
type Registry interface {
	// Registered reports whether id was issued with the branch id tail at the
	// end of its issued prefix. It may ask a node, once, on a miss.
	Registered(ctx context.Context, id *Identity, tail BranchID) (bool, error)
}

// Budgets counts calls exactly.
type Budgets interface {
	// Spend takes one call from every budget of the path or from none. Its
	// error carries CodeBudgetExhausted, CodeUnregistered, CodeRevoked or
	// CodeUnavailable. Blocked reports whether it may have waited: the verifier
	// then looks at the revocations again.
	Spend(ctx context.Context, p *BudgetPath) (blocked bool, err error)
}

// A Checker clears first-party caveats. It is called only with caveats of a
// chain whose MAC, and whose discharges' MACs, have been verified.
type Checker interface {
	// Check returns nil if the condition holds for the request, or an error
	// that carries the refusal's code. It must return CodeUnknownCaveat for a
	// condition that it does not know. It does not keep c.
	Check(cl *Clearance, c Caveat) error
}

// Caveat is one authenticated first-party caveat, as a Checker sees it.
type Caveat struct {
	// Condition is the caveat's text. It aliases the token: do not keep it.
	Condition []byte
	// Discharge is true for a caveat that stands in a discharge.
	Discharge bool
	// Issued is true for a caveat of the root within the issued prefix, and for
	// one in a discharge of a third-party caveat within it, ahead of the
	// discharge's bound caveat: only these were put there, or asked for, by the
	// minter, and what stands behind the bound caveat may be anyone's.
	Issued bool

	macaroon uint8 // 0 is the root
	index    uint8 // position over the whole token set
}

// Stage tells a Checker which pass over the caveats it is in.
type Stage uint8

// The stages of clearing, in order. Every caveat is checked at StageClear; one
// for which the Checker asked (Clearance.Later) is checked again later, when
// everything before has held, so that a call refused for another reason costs
// nothing. StageGiveBack is for the caveats alone that have held at StageRate, in a
// call whose later ones, or whose budgets, have not; what it returns is ignored.
const (
	StageClear    Stage = iota // plain conditions; nothing is consumed
	StageHolder                // proof of possession
	StageRate                  // rate tokens are taken
	StageGiveBack              // the call is refused after all: what StageRate took is given back
)
