package capability

import (
	"errors"
	"fmt"
	"strings"
)

// BudgetPath names the budgets that one call spends from.
type BudgetPath struct {
	Token    TokenID
	Audience []byte
	NotAfter int64                // Unix milliseconds: nothing of it matters after
	Branch   BranchID             // at the deepest max-calls: the key of a local block
	Limits   [MaxBudgets]uint64   // outermost first
	N        int                  // how many of Limits count
	At       [MaxBudgets]BranchID // branch id at each max-calls; At[N-1] == Branch

	grant   *Grant
	deepest int // root caveat of the deepest max-calls
}

// AppendMacaroon appends the root macaroon through its deepest max-calls (or,
// in a keyless verifier, as presented): what a lease request shows to the
// authority. It is good only while Spend runs.
func (p *BudgetPath) AppendMacaroon(dst []byte) []byte {
	g := p.grant
	if g == nil {
		return dst
	}
	root := g.layout.root()
	if !g.keyed {
		return append(dst, g.buf[:root.end]...)
	}
	dst = append(dst, g.buf[:g.layout.caveats[p.deepest].end]...)
	dst = append(dst, wireEOS)
	return appendField(dst, wireSig, g.sigAt(p.deepest + 1)[:])
}

// spend takes one call from every budget of the chain.
func (v *Verifier) spend(cl *Clearance) (blocked bool, err error) {
	g, p := cl.grant, &cl.path
	p.Token, p.Audience, p.NotAfter = g.id.ID, g.id.Audience, g.id.NotAfter
	p.grant = g
	blocked, err = v.budgets.Spend(cl.ctx, p)
	p.grant, p.Audience = nil, nil
	if err != nil {
		if errors.Is(err, CodeBudgetExhausted) {
			return blocked, p.exhausted(g, err)
		}
		if _, ok := errors.AsType[Code](err); ok {
			return blocked, err
		}
		if _, ok := errors.AsType[*Refusal](err); ok {
			return blocked, err
		}
		return blocked, &Refusal{Code: CodeUnavailable, Detail: err.Error()}
	}
	return blocked, nil
}

// exhausted is the refusal of a spent budget, with the caveat's name where it
// can only be the one.
func (p *BudgetPath) exhausted(g *Grant, err error) *Refusal {
	spent := &Refusal{Code: CodeBudgetExhausted}
	if r, ok := errors.AsType[*Refusal](err); ok {
		*spent = *r
	}
	switch {
	case spent.Caveat != "":
	case p.N == 1:
		spent.Caveat = string(g.layout.caveats[p.deepest].id.of(g.buf))
	default:
		spent.Detail = strings.TrimSuffix(fmt.Sprintf("one of %d budgets in the chain: %s", p.N, spent.Detail), ": ")
	}
	return spent
}
