package capability

import (
	"context"
	"time"
)

// Verifier verifies and clears token sets for one service. It is safe for
// concurrent use.
type Verifier struct{}

// Authenticator stands in for root keys in a service that has none: it asks
// the authority whether exactly this token set is genuine.
type Authenticator interface {
	// Authenticate returns nil if the set's MACs and bindings verify, having
	// appended the branch ids of the root's points (identifier, then each
	// caveat) to branches. The answer holds for exactly these bytes.
	Authenticate(ctx context.Context, set []byte, branches []BranchID) ([]BranchID, error)
}

// Option configures a Verifier.
type Option func(*Verifier) error

// WithRevocations has the verifier refuse what r says is revoked, and refuse
// everything while r is older than bound (0: r's own bound).
func WithRevocations(r Revocations, bound time.Duration) Option { panic("stub") }

// UnsafeWithoutRevocations says in so many words that nothing can be revoked
// before it expires. Without this or WithRevocations there is no Verifier.
func UnsafeWithoutRevocations() Option { panic("stub") }

// WithBudgets lets max-calls caveats be spent; without it they deny.
func WithBudgets(b Budgets) Option { panic("stub") }

// WithRegistry accepts registered tokens only.
func WithRegistry(r Registry) Option { panic("stub") }

// WithPrefixCache remembers up to n verified prefixes (0: none, the default).
func WithPrefixCache(n int) Option { panic("stub") }

// NewVerifier returns a verifier that takes root keys from keys, accepts tokens of
// these audiences only (at least one), and clears caveats with checker.
func NewVerifier(keys Keys, audiences []string, checker Checker, opts ...Option) (*Verifier, error) {
	panic("stub")
}

// NewKeylessVerifier is NewVerifier for a service without keys.
func NewKeylessVerifier(auth Authenticator, audiences []string, checker Checker, opts ...Option) (*Verifier, error) {
	panic("stub")
}

// Verify decides whether the token set, in binary form, allows the request,
// and fills g if so. The error carries a Code (see CodeOf).
func (v *Verifier) Verify(ctx context.Context, g *Grant, set []byte, req *Request) error {
	panic("stub")
}

// VerifyText is Verify for the text form; extra holds texts of further
// discharges that came beside it, in the same form.
func (v *Verifier) VerifyText(ctx context.Context, g *Grant, text string, req *Request, extra ...string) error {
	panic("stub")
}

// Authenticate verifies MACs, discharges, bindings and audience alone: it is
// what an authority answers a keyless service with. No caveat is cleared.
func (v *Verifier) Authenticate(ctx context.Context, set []byte, branches []BranchID) ([]BranchID, error) {
	panic("stub")
}

// DryRun is Verify that spends nothing: budgets and rates are not touched.
func (v *Verifier) DryRun(ctx context.Context, g *Grant, set []byte, req *Request) error {
	panic("stub")
}

// BudgetPath names the budgets that one call spends from.
type BudgetPath struct {
	Token    TokenID
	Audience []byte
	NotAfter int64                // Unix milliseconds: nothing of it matters after
	Branch   BranchID             // at the deepest max-calls: the key of a local block
	Limits   [MaxBudgets]uint64   // outermost first
	N        int                  // how many of Limits count
	At       [MaxBudgets]BranchID // branch id at each max-calls; At[N-1] == Branch. Computed by Branches
}

// AppendMacaroon appends the root macaroon through its deepest max-calls (or,
// in a keyless verifier, as presented): what a lease request shows to the authority.
func (p *BudgetPath) AppendMacaroon(dst []byte) []byte { panic("stub") }
