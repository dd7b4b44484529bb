package state

import (
	"encoding/binary"
	"slices"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/capability"
)

// budget is the state of one max-calls: what is left to lease, and how many
// lessees hold an open lease whose deepest budget it is.
type budget struct {
	limit, remaining uint64
	lessees          uint32
}

const budgetSize = 20

func (b *budget) encode() []byte {
	v := binary.BigEndian.AppendUint64(make([]byte, 0, budgetSize), b.limit)
	v = binary.BigEndian.AppendUint64(v, b.remaining)
	return binary.BigEndian.AppendUint32(v, b.lessees)
}

func decodeBudget(v []byte) budget {
	if len(v) != budgetSize {
		panic("state: corrupt: budget")
	}
	return budget{binary.BigEndian.Uint64(v), binary.BigEndian.Uint64(v[8:]), binary.BigEndian.Uint32(v[16:])}
}

func budgetKey(token capability.TokenID, branch capability.BranchID) []byte {
	return join(token[:], branch[:])
}

// leaseRecord is an open lease.
type leaseRecord struct {
	Path    []capability.BranchID `cbor:"1,keyasint"`
	Granted uint64                `cbor:"2,keyasint"`
	Lessee  string                `cbor:"3,keyasint"`
}

func (l *leaseRecord) deepest() capability.BranchID { return l.Path[len(l.Path)-1] }

// lease deducts from every budget of a path or from none.
func (a *applier) lease(h *Header, b *Lease) (*LeaseResult, error) {
	if err := a.checkLease(h, b); err != nil {
		return nil, err
	}
	e := a.tokens.find(b.Token)
	path, fresh, err := a.budgetsOf(b)
	if err != nil {
		return nil, err
	}
	if int(e.budgets)+fresh > MaxLiveBudgets {
		return nil, refuse(capability.CodeTooLarge, "the token has too many budgets")
	}
	closing, err := a.openLease(b.Close, b.Lessee, b.Unspent)
	if err != nil {
		return nil, err
	}
	if closing != nil && !slices.EqualFunc(closing.Path, b.Path, func(c capability.BranchID, p PathPoint) bool { return c == p.Branch }) {
		return nil, refuse(api.CodeInvalid, "the lease to close is of another path")
	}
	// What the path has once the old lease is closed.
	var credit uint64
	if closing != nil {
		credit = b.Unspent
	}
	left := path[0].remaining + credit
	for i := range path {
		left = min(left, path[i].remaining+credit)
	}
	if left == 0 {
		return nil, refuse(capability.CodeBudgetExhausted, "no calls are left to lease")
	}
	if closing != nil {
		a.closeLease(b.Token, b.Close, closing, b.Unspent)
		path, _, _ = a.budgetsOf(b) // as closing left them
	}
	deepest := &path[len(path)-1]
	if a.countLessee(b.Token, b.Path[len(b.Path)-1].Branch, b.Lessee, +1) == 1 {
		deepest.lessees++
	}
	// Half of what is left, divided among who is at work on it, so that the
	// last calls are spread and not locked up with one.
	granted := min(b.Want, left, max(1, left/2/uint64(deepest.lessees)))
	branches := make([]capability.BranchID, len(path))
	for i, p := range b.Path {
		path[i].remaining -= granted
		a.w.put(bucketBudgets, budgetKey(b.Token, p.Branch), path[i].encode())
		branches[i] = p.Branch
	}
	e.budgets += uint16(fresh)
	a.budgets += fresh
	a.leases++
	a.w.put(bucketLeases, join(b.Token[:], b.ID[:]), encoded(&leaseRecord{Path: branches, Granted: granted, Lessee: b.Lessee}))
	a.w.put(bucketLeaseTokens, b.ID[:], b.Token[:])
	a.audit(h, auditRecord{
		Action: "lease", Token: b.Token.String(), Branch: branches[len(branches)-1].String(), Lease: b.ID.String(), Calls: granted,
	})
	return &LeaseResult{Index: a.index, Lease: b.ID, Granted: granted, Expires: e.notAfter}, nil
}

// checkLease checks the request, and that its token may be spent from at all.
func (a *applier) checkLease(h *Header, b *Lease) error {
	invalid := func(what string) error { return refuse(api.CodeInvalid, what) }
	switch {
	case b.ID == LeaseID{} || a.w.get(bucketLeaseTokens, b.ID[:]) != nil:
		return invalid("the lease id is missing or taken")
	case b.Want == 0:
		return invalid("want: at least 1")
	case b.Lessee != h.Actor.Name:
		return invalid("the lessee is another than who asks")
	case len(b.Path) == 0 || len(b.Path) > capability.MaxBudgets:
		return refuse(capability.CodeTooLarge, "a path has 1 to 4 budgets")
	case len(b.Chain) == 0 || len(b.Chain) > capability.MaxCaveats+1:
		return invalid("the chain is missing or too long")
	}
	for i, p := range b.Path {
		if !slices.Contains(b.Chain, p.Branch) || slices.ContainsFunc(b.Path[:i], func(q PathPoint) bool { return q.Branch == p.Branch }) {
			return invalid("the path is not one of the chain's")
		}
	}
	e := a.tokens.find(b.Token)
	switch {
	case e == nil:
		return refuse(capability.CodeUnregistered, "the token is not registered")
	case e.notAfter <= h.Stamp:
		return refuse(capability.CodeExpired, "the token has expired")
	case a.isRevoked(e, b.Chain) || e.holders && a.allHoldersRevoked(a.record(e.id)):
		return refuse(capability.CodeRevoked, "the token was revoked")
	case a.isBygone(b.Token):
		return refuse(capability.CodeBudgetExhausted, "the token is from before the incarnation: what was spent of it since is not known")
	}
	return nil
}

// isBygone reports whether a token is from before the incarnation. No calls are left
// to lease on it, whatever its budgets say.
func (m *memory) isBygone(token capability.TokenID) bool { return token.Millis() <= m.meta.Revived }

// budgetsOf returns the budgets of the path, those that are new (how many)
// with everything left.
func (a *applier) budgetsOf(b *Lease) (path []budget, fresh int, err error) {
	path = make([]budget, len(b.Path))
	for i, p := range b.Path {
		v := a.w.get(bucketBudgets, budgetKey(b.Token, p.Branch))
		if v == nil {
			path[i] = budget{limit: p.Limit, remaining: p.Limit}
			fresh++
			continue
		}
		if path[i] = decodeBudget(v); path[i].limit != p.Limit {
			return nil, 0, refuse(api.CodeInvalid, "the budget has another limit")
		}
	}
	return path, fresh, nil
}

// openLease returns an open lease of this lessee, nil if there is none, and
// refuses to credit more than it was granted.
func (a *applier) openLease(id LeaseID, lessee string, unspent uint64) (*leaseRecord, error) {
	token := a.w.get(bucketLeaseTokens, id[:])
	if token == nil {
		return nil, nil
	}
	r := new(leaseRecord)
	mustDecode(a.w.get(bucketLeases, join(token, id[:])), r)
	if r.Lessee != lessee {
		return nil, nil
	}
	if unspent > r.Granted {
		return nil, refuse(api.CodeInvalid, "more is given back than was leased")
	}
	return r, nil
}

// closeLease credits what is unspent to every budget of the lease's path.
func (a *applier) closeLease(token capability.TokenID, id LeaseID, l *leaseRecord, unspent uint64) {
	last := a.countLessee(token, l.deepest(), l.Lessee, -1) == 0
	for _, branch := range l.Path {
		key := budgetKey(token, branch)
		b := decodeBudget(a.w.get(bucketBudgets, key))
		b.remaining = min(b.limit, b.remaining+unspent)
		if last && branch == l.deepest() {
			b.lessees--
		}
		a.w.put(bucketBudgets, key, b.encode())
	}
	a.w.delete(bucketLeases, join(token[:], id[:]))
	a.w.delete(bucketLeaseTokens, id[:])
	a.leases--
}

// countLessee counts the open leases of a lessee at a budget, and returns how
// many there are now.
func (a *applier) countLessee(token capability.TokenID, branch capability.BranchID, lessee string, by int) uint32 {
	name := nameHash(lessee)
	key := join(token[:], branch[:], name[:])
	var n uint32
	if v := a.w.get(bucketLessees, key); v != nil {
		n = binary.BigEndian.Uint32(v)
	}
	n += uint32(by)
	if n == 0 {
		a.w.delete(bucketLessees, key)
	} else {
		a.w.put(bucketLessees, key, binary.BigEndian.AppendUint32(nil, n))
	}
	return n
}

// giveBack closes a lease.
func (a *applier) giveBack(h *Header, b *Return) (*ReturnResult, error) {
	if b.Lessee != h.Actor.Name {
		return nil, refuse(api.CodeInvalid, "the lessee is another than who asks")
	}
	l, err := a.openLease(b.ID, b.Lessee, b.Unspent)
	if err != nil {
		return nil, err
	}
	if l == nil {
		return &ReturnResult{}, nil // unknown or closed: credits nothing
	}
	token := capability.TokenID(a.w.get(bucketLeaseTokens, b.ID[:]))
	a.closeLease(token, b.ID, l, b.Unspent)
	a.audit(h, auditRecord{
		Action: "return", Token: token.String(), Branch: l.deepest().String(), Lease: b.ID.String(), Calls: b.Unspent,
	})
	r := &ReturnResult{Credited: b.Unspent}
	if a.cluster.version >= 2 {
		r.Token = token
	}
	return r, nil
}
