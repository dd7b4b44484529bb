package capability

import (
	"context"
	"fmt"
	"log/slog"
	"time"
)

// Grant is what a successful verification gives the service. The caller owns
// it, may reuse it for the next verification, and must not share it between
// goroutines while it is being filled. Its zero value is ready for use; after a
// refusal it holds nothing. Reusing one (a sync.Pool) is what makes
// verification free of allocation.
//
// A Grant remembers signatures, from which branch ids are computed when they are
// asked for. It prints redacted.
type Grant struct {
	clearance Clearance
	id        Identity
	layout    layout
	valid     bool

	buf []byte // the token set; a copy, so that nobody changes it meanwhile

	// sigs[i] is the root's signature at point i: 0 is the identifier, i+1 is
	// caveat i. The first shared of them are in prefix instead.
	sigs   [1 + MaxCaveats][32]byte
	keyed  bool // sigs are known; a keyless verifier is told branches instead
	prefix *prefixEntry
	shared int
	key    *RootKey // while a verification is under way

	branches [1 + MaxCaveats]BranchID
	known    [1 + MaxCaveats]bool // which of branches have been computed

	discharged [1 + MaxDischarges]dischargeUse
	declared   []declaration
	facts      []byte // text of declared
	logLevel   string
}

// dischargeUse is what became of a discharge.
type dischargeUse struct {
	used   bool
	issued bool  // it answers a caveat that the minter asked for
	said   uint8 // caveats below this index are the discharger's own
}

// declaration is a fact; the offsets are into Grant.facts.
type declaration struct{ key, value, end int }

// reset forgets the last verification but keeps the memory.
func (g *Grant) reset() {
	g.valid, g.keyed, g.prefix, g.shared, g.key = false, false, nil, 0, nil
	g.id = Identity{}
	g.declared, g.facts, g.logLevel = g.declared[:0], g.facts[:0], ""
	g.clearance.reset()
}

// points is how many points the root's chain has.
func (g *Grant) points() int { return 1 + int(g.layout.macaroons[0].last) }

// sigAt is the root's signature at a point.
func (g *Grant) sigAt(point int) *[32]byte {
	if point < g.shared {
		return &g.prefix.sigs[point]
	}
	return &g.sigs[point]
}

// branchAt is the branch id of a point of the root.
func (g *Grant) branchAt(point int) BranchID {
	if !g.known[point] {
		g.branches[point] = branchOf(g.sigAt(point))
		g.known[point] = true
	}
	return g.branches[point]
}

// ID is the token's id.
func (g *Grant) ID() TokenID { return g.id.ID }

// Audience is the audience that the token was minted for.
func (g *Grant) Audience() string { return string(g.id.Audience) }

// Subject is who the token was minted for.
func (g *Grant) Subject() string { return string(g.id.Subject) }

// Identifier is the whole of the token's identifier.
func (g *Grant) Identifier() Identifier { return g.id.Identifier() }

// NotAfter is the token's hard expiry; a time-before caveat may end it earlier.
func (g *Grant) NotAfter() time.Time { return time.UnixMilli(g.id.NotAfter).UTC() }

// Branch is the branch id of the token as presented: what to revoke to kill
// exactly it and what was derived from it.
func (g *Grant) Branch() BranchID {
	if !g.valid {
		return BranchID{}
	}
	return g.branchAt(g.points() - 1)
}

// AppendBranches appends the branch id of every point of the root's chain: of
// the identifier first, then of each caveat.
func (g *Grant) AppendBranches(dst []BranchID) []BranchID {
	if !g.valid {
		return dst
	}
	for i := range g.points() {
		dst = append(dst, g.branchAt(i))
	}
	return dst
}

// LogLevel is the strictest level that a log caveat obliges the service to,
// or empty.
func (g *Grant) LogLevel() string { return g.logLevel }

// Declared returns a fact declared by a discharge that the minter asked for.
// Two declarations of one key that differ declare nothing.
func (g *Grant) Declared(key string) (string, bool) {
	value, found := "", false
	for _, d := range g.declared {
		if string(g.facts[d.key:d.value]) != key {
			continue
		}
		if v := g.facts[d.value:d.end]; !found {
			value, found = string(v), true
		} else if value != string(v) {
			return "", false
		}
	}
	return value, found
}

// Token is the token set that was verified, for narrowing and forwarding. It
// is a copy, good after the Grant is reused; nil if nothing was verified.
func (g *Grant) Token() *Token {
	if !g.valid {
		return nil
	}
	return &Token{raw: append([]byte(nil), g.buf...)}
}

// String, GoString, Format and LogValue show the token's identity only.
func (g Grant) String() string {
	if !g.valid {
		return "(no grant)"
	}
	return fmt.Sprintf("(grant of %s to %s)", g.id.ID, g.id.Subject)
}
func (g Grant) GoString() string           { return g.String() }
func (g Grant) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(g.String())) }
func (g Grant) LogValue() slog.Value       { return slog.StringValue(g.String()) }

// Clearance is a Checker's view of the verification under way.
type Clearance struct {
	ctx         context.Context
	request     *Request
	revocations Revocations
	stage       Stage

	grant   *Grant
	code    Code      // of the first misuse that must deny, or empty
	later   [3]uint64 // caveats to check again at StageHolder, StageRate, StageGiveBack: a bit each
	path    BudgetPath
	holders []HolderKey // asked about and alive: asked again after a wait
	devices []DeviceID
	ends    int64 // earliest end that a caveat named, Unix milliseconds; 0 if none did
	bound   bool  // a caveat named this one request
}

func (cl *Clearance) reset() {
	*cl = Clearance{holders: cl.holders[:0], devices: cl.devices[:0]}
}

// Context is the verification's context.
func (cl *Clearance) Context() context.Context { return cl.ctx }

// Request is what the token is judged against.
func (cl *Clearance) Request() *Request { return cl.request }

// Stage is the pass over the caveats under way.
func (cl *Clearance) Stage() Stage { return cl.stage }

// Identity is the token's authenticated identity.
func (cl *Clearance) Identity() *Identity { return &cl.grant.id }

// Later asks for c to be checked again at the stage s, which must come after
// the one under way.
func (cl *Clearance) Later(c Caveat, s Stage) {
	if s <= cl.stage || s > StageRate {
		cl.code = CodeUnavailable // a Checker that would never be called again
		return
	}
	cl.later[s-StageHolder] |= 1 << c.index
}

// Branch computes the branch id of the chain at c, which stands in the root.
// For a caveat of a discharge it is an id that no root has, which stays the
// same in whatever token the discharge is presented.
func (cl *Clearance) Branch(c Caveat) BranchID {
	if c.macaroon == 0 {
		return cl.grant.branchAt(int(c.index) + 1)
	}
	return cl.grant.dischargePoint(c)
}

// Spend records a max-calls caveat of the root at StageClear; the verifier
// spends from all of them at once, last. It returns CodeBudgetExhausted's
// refusal for a limit of 0 and CodeTooLarge beyond MaxBudgets in a chain.
func (cl *Clearance) Spend(c Caveat, limit uint64) error {
	p := &cl.path
	switch {
	case c.macaroon != 0 || cl.stage != StageClear:
		return CodeUnknownCaveat
	case limit == 0:
		return CodeBudgetExhausted
	case p.N == MaxBudgets:
		return CodeTooLarge
	}
	p.Limits[p.N] = limit
	p.At[p.N] = cl.grant.branchAt(int(c.index) + 1)
	p.Branch = p.At[p.N]
	p.N++
	p.deepest = int(c.index)
	return nil
}

// HolderRevoked reports whether a holder's key has been revoked.
func (cl *Clearance) HolderRevoked(k HolderKey) bool {
	if cl.revocations == nil {
		return false
	}
	if cl.revocations.Holder(k) {
		return true
	}
	cl.holders = append(cl.holders, k)
	return false
}

// DeviceRevoked reports whether a device has been revoked.
func (cl *Clearance) DeviceRevoked(d DeviceID) bool {
	if cl.revocations == nil {
		return false
	}
	if cl.revocations.Device(d) {
		return true
	}
	cl.devices = append(cl.devices, d)
	return false
}

// logLevels from the least to the strictest.
var logLevels = [...]string{"", "minimal", "metadata", "full"}

// ObligeLog records that the call must be logged at least at this level.
func (cl *Clearance) ObligeLog(level string) {
	if rankOf(level) > rankOf(cl.grant.logLevel) {
		cl.grant.logLevel = level
	}
}

// rankOf orders log levels by how much they have the service record; one that
// is not known counts as the strictest.
func rankOf(level string) int {
	for i, l := range logLevels {
		if l == level {
			return i
		}
	}
	return len(logLevels)
}

// Declare records a fact from a discharge's declare caveat. It is ignored
// unless c.Discharge and c.Issued.
func (cl *Clearance) Declare(c Caveat, key, value []byte) {
	if !c.Discharge || !c.Issued {
		return
	}
	g := cl.grant
	d := declaration{key: len(g.facts)}
	g.facts = append(g.facts, key...)
	d.value = len(g.facts)
	g.facts = append(g.facts, value...)
	d.end = len(g.facts)
	g.declared = append(g.declared, d)
}
