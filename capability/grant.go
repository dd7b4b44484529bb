package capability

import (
	"context"
	"time"
)

// Grant is what a successful verification gives the service. The caller owns
// it, may reuse it for the next verification, and must not share it between
// goroutines while it is being filled. Its zero value is ready for use.
type Grant struct {
	clearance Clearance
	id        Identity
}

// Clearance is a Checker's view of the verification under way.
type Clearance struct {
	ctx         context.Context
	request     *Request
	revocations Revocations
	stage       Stage
}

// Context is the verification's context.
func (cl *Clearance) Context() context.Context { return cl.ctx }

// Request is what the token is judged against.
func (cl *Clearance) Request() *Request { return cl.request }

// Stage is the pass over the caveats under way.
func (cl *Clearance) Stage() Stage { return cl.stage }

// Identity is the token's authenticated identity.
func (cl *Clearance) Identity() *Identity { panic("stub") }

// Later asks for c to be checked again at the stage s.
func (cl *Clearance) Later(c Caveat, s Stage) { panic("stub") }

// Branch computes the branch id of the chain at c, which stands in the root.
func (cl *Clearance) Branch(c Caveat) BranchID { panic("stub") }

// Spend records a max-calls caveat of the root at StageClear; the verifier
// spends from all of them at once, last. It returns CodeBudgetExhausted's
// refusal for a limit of 0 and CodeTooLarge beyond MaxBudgets in a chain.
func (cl *Clearance) Spend(c Caveat, limit uint64) error { panic("stub") }

// HolderRevoked reports whether a holder's key has been revoked.
func (cl *Clearance) HolderRevoked(k HolderKey) bool { panic("stub") }

// DeviceRevoked reports whether a device has been revoked.
func (cl *Clearance) DeviceRevoked(d DeviceID) bool { panic("stub") }

// ObligeLog records that the call must be logged at least at this level.
func (cl *Clearance) ObligeLog(level string) { panic("stub") }

// Declare records a fact from a discharge's declare caveat. It is ignored
// unless c.Discharge and c.Issued.
func (cl *Clearance) Declare(c Caveat, key, value []byte) { panic("stub") }

// ID is the token's id.
func (g *Grant) ID() TokenID { return g.id.ID }

// Audience is the audience that the token was minted for.
func (g *Grant) Audience() string { return string(g.id.Audience) }

// Subject is who the token was minted for.
func (g *Grant) Subject() string { return string(g.id.Subject) }

// NotAfter is the token's hard expiry; a time-before caveat may end it earlier.
func (g *Grant) NotAfter() time.Time { return time.UnixMilli(g.id.NotAfter).UTC() }

// Branch is the branch id of the token as presented: what to revoke to kill
// exactly it and what was derived from it.
func (g *Grant) Branch() BranchID { panic("stub") }

// AppendBranches appends the branch id of every point of the root's chain: of
// the identifier first, then of each caveat.
func (g *Grant) AppendBranches(dst []BranchID) []BranchID { panic("stub") }

// LogLevel is the strictest level that a log caveat obliges the service to,
// or empty.
func (g *Grant) LogLevel() string { panic("stub") }

// Declared returns a fact declared by a discharge that the minter asked for.
func (g *Grant) Declared(key string) (string, bool) { panic("stub") }

// Token is the token set that was verified, for narrowing and forwarding. It
// is a copy, good after the Grant is reused.
func (g *Grant) Token() *Token { panic("stub") }
