package capability

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"time"
)

// Verifier verifies and clears token sets for one service. It is safe for
// concurrent use.
type Verifier struct {
	keys        Keys
	auth        Authenticator // instead of keys
	audiences   []string
	checker     Checker
	revocations Revocations
	bound       time.Duration
	unsafe      bool
	budgets     Budgets
	registry    Registry
	cache       *prefixCache
	answers     *answerCache
}

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
func WithRevocations(r Revocations, bound time.Duration) Option {
	return func(v *Verifier) error {
		if r == nil || bound < 0 {
			return errors.New("revocations must be given, with a bound of 0 or more")
		}
		v.revocations, v.bound = r, bound
		return nil
	}
}

// UnsafeWithoutRevocations says in so many words that nothing can be revoked
// before it expires. Without this or WithRevocations there is no Verifier.
func UnsafeWithoutRevocations() Option {
	return func(v *Verifier) error { v.unsafe = true; return nil }
}

// WithBudgets lets max-calls caveats be spent; without it they deny.
func WithBudgets(b Budgets) Option {
	return func(v *Verifier) error { v.budgets = b; return nil }
}

// WithRegistry accepts registered tokens only.
func WithRegistry(r Registry) Option {
	return func(v *Verifier) error {
		if r == nil {
			return errors.New("registered tokens only, and no registry")
		}
		v.registry = r
		return nil
	}
}

// WithPrefixCache remembers up to n verified chains (0: none, the default), so
// that a token that comes again, or was narrowed since, costs only the caveats
// that were not verified before. It is filled by granted calls alone, hit by
// identical bytes under the same key alone, and holds at most two chains of a
// token; an entry takes the token's size and 32 bytes a caveat. A keyless
// verifier has WithAnswerCache instead.
func WithPrefixCache(n int) Option {
	return func(v *Verifier) error {
		if n < 0 {
			return errors.New("a prefix cache of negative size")
		}
		if v.keys == nil {
			return errors.New("a prefix cache needs keys; a keyless verifier uses WithAnswerCache")
		}
		if n > 0 {
			v.cache = newPrefixCache(n)
		}
		return nil
	}
}

// NewVerifier returns a verifier that takes root keys from keys, accepts tokens of
// these audiences only (at least one), and clears caveats with checker.
func NewVerifier(keys Keys, audiences []string, checker Checker, opts ...Option) (*Verifier, error) {
	if keys == nil {
		return nil, errors.New("a verifier needs keys; a service without keys uses NewKeylessVerifier")
	}
	return newVerifier(&Verifier{keys: keys}, audiences, checker, opts)
}

// NewKeylessVerifier is NewVerifier for a service without keys.
func NewKeylessVerifier(auth Authenticator, audiences []string, checker Checker, opts ...Option) (*Verifier, error) {
	if auth == nil {
		return nil, errors.New("a keyless verifier needs an authenticator")
	}
	return newVerifier(&Verifier{auth: auth}, audiences, checker, opts)
}

func newVerifier(v *Verifier, audiences []string, checker Checker, opts []Option) (*Verifier, error) {
	if checker == nil {
		return nil, errors.New("a verifier needs a checker of caveats")
	}
	if len(audiences) == 0 {
		return nil, errors.New("a verifier needs at least one audience")
	}
	for _, a := range audiences {
		if !ValidName(a, MaxAudience) {
			return nil, errors.New("malformed audience")
		}
	}
	v.audiences, v.checker = append([]string(nil), audiences...), checker
	for _, opt := range opts {
		if err := opt(v); err != nil {
			return nil, err
		}
	}
	if (v.revocations == nil) != v.unsafe {
		return nil, errors.New("a verifier needs either WithRevocations or UnsafeWithoutRevocations")
	}
	return v, nil
}

// Verify decides whether the token set, in binary form, allows the request,
// and fills g if so. The error carries a Code (see CodeOf).
func (v *Verifier) Verify(ctx context.Context, g *Grant, set []byte, req *Request) error {
	return v.verify(ctx, g, set, req, false)
}

// DryRun is Verify that spends nothing: budgets and rates are not touched.
func (v *Verifier) DryRun(ctx context.Context, g *Grant, set []byte, req *Request) error {
	return v.verify(ctx, g, set, req, true)
}

func (v *Verifier) verify(ctx context.Context, g *Grant, set []byte, req *Request, dry bool) error {
	g.reset()
	if len(set) > MaxTokenSize {
		return CodeTooLarge
	}
	g.buf = append(g.buf[:0], set...)
	return v.decide(ctx, g, req, dry)
}

// VerifyText is Verify for the text form; extra holds texts of further
// discharges that came beside it, in the same form.
func (v *Verifier) VerifyText(ctx context.Context, g *Grant, text string, req *Request, extra ...string) error {
	g.reset()
	var code Code
	if g.buf, code = decodeText(g.buf[:0], text); code != "" {
		return code
	}
	if len(extra) > MaxDischarges {
		return CodeTooLarge
	}
	for _, t := range extra {
		if g.buf, code = decodeText(g.buf, t); code != "" {
			return code
		}
	}
	return v.decide(ctx, g, req, false)
}

// Authenticate verifies MACs, discharges, bindings and audience alone: it is
// what an authority answers a keyless service with. No caveat is cleared.
func (v *Verifier) Authenticate(ctx context.Context, set []byte, branches []BranchID) ([]BranchID, error) {
	if len(set) > MaxTokenSize {
		return branches, CodeTooLarge
	}
	var g Grant
	g.buf = append([]byte(nil), set...)
	if err := v.authenticate(ctx, &g, 0); err != nil {
		return branches, err
	}
	g.valid = true
	return g.AppendBranches(branches), nil
}

// decide judges the token set in g.buf.
func (v *Verifier) decide(ctx context.Context, g *Grant, req *Request, dry bool) error {
	now := nowOf(req)
	err := v.authenticate(ctx, g, now)
	if err == nil {
		cl := &g.clearance
		cl.ctx, cl.request, cl.revocations, cl.grant = ctx, req, v.revocations, g
		err = v.clear(cl, dry)
		cl.ctx, cl.request, cl.revocations, cl.grant = nil, nil, nil, nil
	}
	if err != nil {
		if v.cache != nil && g.id.NotAfter != 0 && (now >= g.id.NotAfter || errors.Is(err, CodeRevoked)) {
			v.cache.drop(g.id.ID)
		}
		g.reset()
		return err
	}
	if v.cache != nil && !dry {
		v.cache.store(g, g.key, now)
	}
	g.key, g.valid = nil, true
	return nil
}

// nowOf is the request's moment in Unix milliseconds, or 0.
func nowOf(req *Request) int64 {
	if req == nil || req.Now.IsZero() {
		return 0
	}
	return req.Now.UnixMilli()
}

// authenticate does everything that must come before the token's word counts
// for anything: bounds, the key, the chain's MAC, and then the discharges.
func (v *Verifier) authenticate(ctx context.Context, g *Grant, now int64) error {
	if code := g.layout.parse(g.buf); code != "" {
		return code
	}
	root := g.layout.root()
	id, err := ParseIdentity(root.id.of(g.buf))
	if err != nil || id.Issued > root.last {
		return CodeMalformed
	}
	if !v.accepts(id.Audience) {
		return CodeUnknownKey
	}
	if v.auth != nil {
		err = v.askAuthority(ctx, g, &id, now)
	} else if code := v.checkMACs(g, &id); code != "" {
		err = code
	}
	if err != nil {
		return err
	}
	g.id = id
	return nil
}

func (v *Verifier) accepts(audience []byte) bool {
	for _, a := range v.audiences {
		if a == string(audience) {
			return true
		}
	}
	return false
}

// checkMACs verifies the root's chain and, after that alone, the discharges.
func (v *Verifier) checkMACs(g *Grant, id *Identity) Code {
	key := v.keys.Key(id.Audience, id.Epoch, id.Generation)
	if key == nil {
		return CodeUnknownKey
	}
	var h hasher
	h.init()
	root, set := g.layout.root(), g.buf
	g.keyed, g.key = true, key
	clear(g.known[:g.points()])
	if v.cache != nil {
		g.prefix, g.shared = v.cache.find(set, &g.layout, id, key)
	}
	if g.shared == 0 {
		h.sum(&g.sigs[0], &key.derived, root.id.of(set))
	}
	for i := max(g.shared-1, 0); i < int(root.last); i++ {
		h.caveat(&g.sigs[i+1], g.sigAt(i), set, &g.layout.caveats[i])
	}
	if subtle.ConstantTimeCompare(g.sigAt(int(root.last))[:], set[root.sig:root.sig+32]) != 1 {
		return CodeBadSignature
	}
	return g.checkDischarges(&h)
}

// caveat sets out to the chain's signature after c.
func (h *hasher) caveat(out, sig *[32]byte, set []byte, c *caveatSpan) {
	if c.thirdParty() {
		h.sum2(out, sig, c.vid.of(set), c.id.of(set))
	} else {
		h.sum(out, sig, c.id.of(set))
	}
}

// askAuthority has the authority do what checkMACs does, and repeats what can
// be done without keys.
func (v *Verifier) askAuthority(ctx context.Context, g *Grant, id *Identity, now int64) error {
	n := g.points()
	known := false
	var sum [sha256.Size]byte
	if v.answers != nil && now != 0 {
		sum = sha256.Sum256(g.buf)
		_, known = v.answers.find(&sum, now, g.branches[:0])
	}
	if !known {
		got, err := v.auth.Authenticate(ctx, g.buf, nil)
		if err != nil {
			return err
		}
		if len(got) != n {
			return &Refusal{Code: CodeUnavailable, Detail: "the authority's answer is not about this token"}
		}
		copy(g.branches[:], got)
		if v.answers != nil && now != 0 {
			v.answers.store(&sum, got, now, id.NotAfter)
		}
	}
	for i := range n {
		g.known[i] = true
	}
	if code := g.checkDischarges(nil); code != "" {
		return code
	}
	return nil
}

// clear holds an authentic token against the request.
func (v *Verifier) clear(cl *Clearance, dry bool) error {
	g, req := cl.grant, cl.request
	if req == nil || req.Now.IsZero() {
		return &Refusal{Code: CodeUnavailable, Detail: "a request without its moment"}
	}
	if req.Now.UnixMilli() >= g.id.NotAfter {
		return CodeExpired
	}
	var mark int64
	if v.revocations != nil {
		mark = v.revocations.Mark()
		if code := v.revoked(g); code != "" {
			return code
		}
	}
	if err := v.checkAll(cl); err != nil {
		return err
	}
	if cl.path.N > 0 && v.budgets == nil && !dry {
		return &Refusal{Code: CodeUnavailable, Detail: "a max-calls caveat, and nothing to count calls with"}
	}
	if _, err := v.checkLater(cl, StageHolder); err != nil {
		return err
	}
	waited := false
	if v.registry != nil {
		ok, err := v.registry.Registered(cl.ctx, &g.id, g.branchAt(int(g.id.Issued)))
		if err != nil {
			return err
		}
		if !ok {
			return CodeUnregistered
		}
		waited = true
	}
	if !dry && (cl.path.N > 0 || cl.later[StageRate-StageHolder] != 0) {
		blocked, err := v.consume(cl, mark)
		if err != nil {
			return err
		}
		waited = waited || blocked
	}
	if waited && v.revocations != nil {
		mark = v.revocations.Mark()
		if code := v.revoked(g); code != "" {
			return code
		}
		if v.revokedSince(cl) {
			return CodeRevoked
		}
	}
	if !v.fresh(mark) {
		return CodeStaleRevocations
	}
	return nil
}

// consume takes a call from rates and budgets, all or nothing. A call that waited
// for its budgets, and is refused for what has changed meanwhile, has spent them.
func (v *Verifier) consume(cl *Clearance, mark int64) (blocked bool, err error) {
	// What a stale verifier would refuse anyway must not cost a call.
	if !v.fresh(mark) {
		return false, CodeStaleRevocations
	}
	taken, err := v.checkLater(cl, StageRate)
	if err == nil && cl.path.N > 0 {
		blocked, err = v.spend(cl)
	}
	if err != nil && taken != 0 {
		cl.later[StageGiveBack-StageHolder] = taken
		_, _ = v.checkLater(cl, StageGiveBack)
	}
	return blocked, err
}

func (v *Verifier) fresh(mark int64) bool {
	return v.revocations == nil || v.revocations.Within(mark, v.bound)
}

// revoked looks the token up, and its branches only if some are revoked.
func (v *Verifier) revoked(g *Grant) Code {
	switch v.revocations.Token(&g.id) {
	case Live:
		return ""
	case BranchesRevoked:
		for i := range g.points() {
			if v.revocations.Branch(g.id.ID, g.branchAt(i)) {
				return CodeRevoked
			}
		}
		return ""
	case Forgotten:
		return CodeExpired // by a clock that this one is behind
	}
	return CodeRevoked
}

// revokedSince asks again for the keys and devices that were alive before.
func (v *Verifier) revokedSince(cl *Clearance) bool {
	for _, k := range cl.holders {
		if v.revocations.Holder(k) {
			return true
		}
	}
	for _, d := range cl.devices {
		if v.revocations.Device(d) {
			return true
		}
	}
	return false
}

// checkAll clears every first-party caveat at StageClear. The first denial is
// the answer, unless a caveat further on knows of a revocation: an owner must
// not be told "wrong action" of a stolen token that is already dead.
func (v *Verifier) checkAll(cl *Clearance) error {
	g := cl.grant
	var denied error
	for m := range g.layout.nm {
		mac := &g.layout.macaroons[m]
		for i := mac.first; i < mac.last; i++ {
			if g.layout.caveats[i].thirdParty() || m > 0 && isBound(g.layout.caveats[i].id.of(g.buf)) {
				continue // answered by its discharge; held against the root before
			}
			err := v.check(cl, m, i)
			if err == nil {
				continue
			}
			if errors.Is(err, CodeRevoked) {
				return err
			}
			if denied == nil {
				denied = err
			}
		}
	}
	return denied
}

// checkLater clears the caveats that asked for a later stage, and returns those
// that held: a bit each.
func (v *Verifier) checkLater(cl *Clearance, s Stage) (held uint64, err error) {
	todo := cl.later[s-StageHolder]
	if todo == 0 {
		return 0, nil
	}
	cl.stage = s
	g := cl.grant
	for m := range g.layout.nm {
		mac := &g.layout.macaroons[m]
		for i := mac.first; i < mac.last; i++ {
			if todo>>i&1 == 0 {
				continue
			}
			if err := v.check(cl, m, i); err != nil {
				return held, err
			}
			held |= 1 << i
		}
	}
	return held, nil
}

func (v *Verifier) check(cl *Clearance, m int, i uint8) error {
	g := cl.grant
	c := Caveat{
		Condition: g.layout.caveats[i].id.of(g.buf),
		Discharge: m > 0,
		Issued:    m == 0 && i < g.id.Issued || m > 0 && g.discharged[m].issued && i < g.discharged[m].said,
		macaroon:  uint8(m), index: i,
	}
	if err := v.checker.Check(cl, c); err != nil {
		return err
	}
	if cl.code != "" {
		return &Refusal{Code: cl.code, Caveat: string(c.Condition), Detail: "the checker misused its clearance"}
	}
	return nil
}
