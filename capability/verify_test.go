package capability_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/capability/revocation"
)

// feed is a Set whose freshness the test decides.
type feed struct {
	*revocation.Set
	clock  int64
	within func(mark int64) bool
}

func (f *feed) Mark() int64 { f.clock++; return f.clock }
func (f *feed) Within(mark int64, _ time.Duration) bool {
	return f.within == nil || f.within(mark)
}

func newFeed() *feed { return &feed{Set: revocation.New()} }

const never = 1 << 47

func TestRefusalsBeforeTheMAC(t *testing.T) {
	tok := mint(t, "ok")
	forged := tok.Bytes()
	forged[len(forged)-1] ^= 1
	expired := testIdentifier()
	expired.NotAfter = now.Add(-time.Hour)
	stranger := testIdentifier()
	stranger.Audience = "other"
	mintID := func(k *capability.RootKey, id capability.Identifier) []byte {
		return must[*capability.Token](t)(capability.Mint(k, id, "deny")).Bytes()
	}
	wrongKey := capability.NewRootKey([32]byte{0xff})
	f := newFeed()
	f.RevokeToken(testIdentifier().ID, never)
	for _, c := range []struct {
		name string
		set  []byte
		want capability.Code
	}{
		{"nothing", nil, capability.CodeMalformed},
		{"garbage", make([]byte, 100), capability.CodeMalformed},
		{"a mebibyte", make([]byte, 1<<20), capability.CodeTooLarge},
		{"truncated", tok.Bytes()[:40], capability.CodeMalformed},
		{"forged", forged, capability.CodeBadSignature},
		// Nothing else is said of what has not been authenticated.
		{"forged and expired", mintID(wrongKey, expired), capability.CodeBadSignature},
		{"another audience", mintID(testKey(), stranger), capability.CodeUnknownKey},
		{"forged for another audience", mintID(wrongKey, stranger), capability.CodeUnknownKey},
		{"genuine and revoked", tok.Bytes(), capability.CodeRevoked},
	} {
		g := new(capability.Grant)
		err := verifier(t, capability.WithRevocations(f, 0)).Verify(t.Context(), g, c.set, &capability.Request{Now: now})
		if got := capability.CodeOf(err); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
		if g.Token() != nil || g.Subject() != "" || len(g.AppendBranches(nil)) != 0 || g.Branch() != (capability.BranchID{}) {
			t.Errorf("%s: the grant of a refusal holds something", c.name)
		}
	}
	v, err := capability.NewVerifier(keyring{nil}, []string{"corp"}, wordChecker{}, capability.UnsafeWithoutRevocations())
	if err != nil {
		t.Fatal(err)
	}
	_, err = verify(t, v, tok)
	wantCode(t, err, capability.CodeUnknownKey)
}

func TestLifetime(t *testing.T) {
	tok := mint(t)
	end := testIdentifier().NotAfter
	for _, c := range []struct {
		at   time.Time
		want capability.Code
	}{
		{end.Add(-time.Millisecond), ""},
		{end, capability.CodeExpired},
		{end.Add(time.Hour), capability.CodeExpired},
		{time.Time{}, capability.CodeUnavailable},
	} {
		err := verifier(t).Verify(t.Context(), new(capability.Grant), tok.Bytes(), &capability.Request{Now: c.at})
		if got := capability.CodeOf(err); got != c.want {
			t.Errorf("at %v: %q, want %q", c.at, got, c.want)
		}
	}
	wantCode(t, verifier(t).Verify(t.Context(), new(capability.Grant), tok.Bytes(), nil), capability.CodeUnavailable)
}

func TestRevocations(t *testing.T) {
	id := testIdentifier()
	tok := mint(t, "ok")
	left := must[*capability.Token](t)(tok.Attenuate("branch left"))
	leaf := must[*capability.Token](t)(left.Attenuate("ok"))
	right := must[*capability.Token](t)(tok.Attenuate("branch right"))
	for _, c := range []struct {
		name   string
		revoke func(*feed)
		dead   []*capability.Token
	}{
		{"nothing", func(*feed) {}, nil},
		{"token", func(f *feed) { f.RevokeToken(id.ID, never) }, []*capability.Token{tok, left, leaf, right}},
		{"branch", func(f *feed) { f.RevokeBranch(id.ID, left.Branch(), never) }, []*capability.Token{left, leaf}},
		{"leaf", func(f *feed) { f.RevokeBranch(id.ID, leaf.Branch(), never) }, []*capability.Token{leaf}},
		{"branch of the issued tail", func(f *feed) { f.RevokeBranch(id.ID, tok.Branch(), never) }, []*capability.Token{tok, left, leaf, right}},
		{"branch of the identifier", func(f *feed) { f.RevokeBranch(id.ID, mint(t).Branch(), never) }, nil},
		{"subject before", func(f *feed) { f.RevokeSubject("agent-42", id.ID.Millis()-1, never) }, nil},
		{"subject", func(f *feed) { f.RevokeSubject("agent-42", id.ID.Millis(), never) }, []*capability.Token{tok, left, leaf, right}},
		{"another subject", func(f *feed) { f.RevokeSubject("agent-43", never, never) }, nil},
		{"subject as an audience", func(f *feed) { f.RevokeAudience("agent-42", never, never) }, nil},
		{"audience", func(f *feed) { f.RevokeAudience("corp", id.ID.Millis(), never) }, []*capability.Token{tok, left, leaf, right}},
		{"epoch", func(f *feed) { f.RevokeEpoch(7, never) }, []*capability.Token{tok, left, leaf, right}},
		{"another epoch", func(f *feed) { f.RevokeEpoch(8, never) }, nil},
	} {
		f := newFeed()
		c.revoke(f)
		v := verifier(t, capability.WithRevocations(f, 0))
		for i, tok := range []*capability.Token{tok, left, leaf, right} {
			want := capability.Code("")
			if slices.Contains(c.dead, tok) {
				want = capability.CodeRevoked
			}
			_, err := verify(t, v, tok)
			if got := capability.CodeOf(err); got != want {
				t.Errorf("%s: token %d: %q, want %q", c.name, i, got, want)
			}
		}
	}
}

// The identifier's own branch id is point 0: revoking it kills everything.
func TestRevokedIdentifierBranch(t *testing.T) {
	// mint("ok") has Issued 1, so its point 0 is that of a token that was never
	// seen; the grant tells it.
	g, err := verify(t, verifier(t), mint(t, "ok"))
	wantCode(t, err, "")
	f := newFeed()
	f.RevokeBranch(g.ID(), g.AppendBranches(nil)[0], never)
	_, err = verify(t, verifier(t, capability.WithRevocations(f, 0)), mint(t, "ok"))
	wantCode(t, err, capability.CodeRevoked)
}

func TestRevocationIsNotHiddenByADenial(t *testing.T) {
	_, err := verify(t, verifier(t), mint(t, "deny", "dead"))
	wantCode(t, err, capability.CodeRevoked)
	_, err = verify(t, verifier(t), mint(t, "deny", "nonsense"))
	wantCode(t, err, capability.CodeActionDenied) // the first
}

func TestStaleRevocations(t *testing.T) {
	f := newFeed()
	b := &counter{}
	v := verifier(t, capability.WithRevocations(f, time.Second), capability.WithBudgets(b))
	_, err := verify(t, v, mint(t, "calls x"))
	wantCode(t, err, "")
	f.within = func(int64) bool { return false }
	_, err = verify(t, v, mint(t, "calls x"))
	wantCode(t, err, capability.CodeStaleRevocations)
	if b.calls != 1 {
		t.Errorf("%d calls spent; a stale verifier spent one", b.calls)
	}
	_, err = verify(t, v, mint(t, "deny"))
	wantCode(t, err, capability.CodeActionDenied)
}

// A clock that was ahead for a while, and had a revocation dropped for a token
// that seemed to have ended, does not bring that token back to life.
func TestClockAheadForAWhile(t *testing.T) {
	f := newFeed()
	v := verifier(t, capability.WithRevocations(f, time.Second))
	tok := mint(t, "ok")
	id := testIdentifier()
	f.RevokeToken(id.ID, id.NotAfter.UnixMilli())
	_, err := verify(t, v, tok)
	wantCode(t, err, capability.CodeRevoked)
	f.Expire(now.Add(24 * time.Hour).UnixMilli())
	_, err = verify(t, v, tok)
	wantCode(t, err, capability.CodeExpired)
	longer := testIdentifier()
	longer.NotAfter = longer.NotAfter.Add(time.Second)
	_, err = verify(t, v, must[*capability.Token](t)(capability.Mint(testKey(), longer, "ok")))
	wantCode(t, err, "")
}

// counter is a Budgets that remembers what it was asked.
type counter struct {
	calls   int
	path    capability.BudgetPath
	proof   []byte
	blocked bool
	err     error
	during  func()
}

func (c *counter) Spend(_ context.Context, p *capability.BudgetPath) (bool, error) {
	c.calls++
	c.path = *p
	c.path.Audience = slices.Clone(p.Audience)
	c.proof = p.AppendMacaroon(nil)
	if c.during != nil {
		c.during()
	}
	return c.blocked, c.err
}

func TestBudgetPath(t *testing.T) {
	b := new(counter)
	v := verifier(t, capability.UnsafeWithoutRevocations(), capability.WithBudgets(b))
	outer := mint(t, "ok", "calls xxxxx")
	inner := must[*capability.Token](t)(outer.AttenuateExact("branch a", "calls xxx"))
	leaf := must[*capability.Token](t)(inner.AttenuateExact("ok"))
	_, err := verify(t, v, leaf)
	wantCode(t, err, "")
	p := b.path
	if p.N != 2 || p.Limits[0] != 5 || p.Limits[1] != 3 || p.At[0] != outer.Branch() || p.At[1] != inner.Branch() ||
		p.Branch != inner.Branch() || p.Token != testIdentifier().ID || string(p.Audience) != "corp" ||
		p.NotAfter != testIdentifier().NotAfter.UnixMilli() {
		t.Errorf("path %+v", p)
	}
	if string(b.proof) != string(inner.Bytes()) {
		t.Error("the lease proof is not the macaroon through its deepest budget")
	}

	for _, c := range []struct {
		name       string
		conditions []string
		want       capability.Code
	}{
		{"none left", []string{"calls "}, capability.CodeBudgetExhausted},
		{"five", []string{"calls x", "calls x", "calls x", "calls x", "calls x"}, capability.CodeTooLarge},
		{"denied", []string{"calls x", "deny"}, capability.CodeActionDenied},
	} {
		b.calls = 0
		_, err := verify(t, v, mint(t, c.conditions...))
		if got := capability.CodeOf(err); got != c.want || b.calls != 0 {
			t.Errorf("%s: %q after %d calls, want %q and none", c.name, got, b.calls, c.want)
		}
	}
	g := new(capability.Grant)
	if err := v.DryRun(t.Context(), g, leaf.Bytes(), &capability.Request{Now: now}); err != nil || b.calls != 0 {
		t.Errorf("a dry run: %v, %d calls", err, b.calls)
	}
	if g.Branch() != leaf.Branch() {
		t.Error("a dry run fills no grant")
	}
	_, err = verify(t, verifier(t), leaf)
	wantCode(t, err, capability.CodeUnavailable) // nothing to count with

	b.err = &capability.Refusal{Code: capability.CodeBudgetExhausted}
	_, err = verify(t, v, leaf)
	wantCode(t, err, capability.CodeBudgetExhausted)
	if got := err.Error(); got != "budget_exhausted: one of 2 budgets in the chain" {
		t.Errorf("either budget: %q", got)
	}
	for _, b.err = range []error{capability.CodeBudgetExhausted, &capability.Refusal{Code: capability.CodeBudgetExhausted}} {
		if _, err = verify(t, v, outer); err == nil || err.Error() != `budget_exhausted by caveat "calls xxxxx"` {
			t.Errorf("the only budget: %v", err)
		}
	}
	b.err = errors.New("no route to host")
	_, err = verify(t, v, leaf)
	wantCode(t, err, capability.CodeUnavailable)
}

// A discharge is signed by another: a budget in it is nobody's to count.
func TestBudgetInDischarge(t *testing.T) {
	k := discharger(t, 1)
	tok := must[*capability.Token](t)(mint(t).AddThirdParty(k.Public(), "", approved("x")))
	b := new(counter)
	v := verifier(t, capability.UnsafeWithoutRevocations(), capability.WithBudgets(b))
	_, err := verify(t, v, with(t, tok, discharge(t, k, tok, 0, "calls x")))
	wantCode(t, err, capability.CodeUnknownCaveat)
	if b.calls != 0 {
		t.Error("it was spent from")
	}
}

// After a wait everything that was looked up is looked up again.
func TestRevokedWhileSpending(t *testing.T) {
	key := capability.HolderKey{Method: capability.HolderDPoP, Thumbprint: [32]byte{1}}
	for _, c := range []struct {
		name    string
		blocked bool
		revoke  func(*feed, *capability.Token)
		want    capability.Code
	}{
		{"token", true, func(f *feed, tok *capability.Token) { f.RevokeToken(testIdentifier().ID, never) }, capability.CodeRevoked},
		{"branch", true, func(f *feed, tok *capability.Token) { f.RevokeBranch(testIdentifier().ID, tok.Branch(), never) }, capability.CodeRevoked},
		{"holder", true, func(f *feed, tok *capability.Token) { f.RevokeHolder(key, never) }, capability.CodeRevoked},
		{"device", true, func(f *feed, tok *capability.Token) { f.RevokeDevice(capability.DeviceID{2}, never) }, capability.CodeRevoked},
		{"another", true, func(f *feed, tok *capability.Token) { f.RevokeDevice(capability.DeviceID{3}, never) }, ""},
		{"no wait", false, func(f *feed, tok *capability.Token) { f.RevokeToken(testIdentifier().ID, never) }, ""},
	} {
		f := newFeed()
		tok := mint(t, "calls x", "ok")
		b := &counter{blocked: c.blocked, during: func() { c.revoke(f, tok) }}
		v, err := capability.NewVerifier(keyring{testKey()}, []string{"corp"}, looker{key}, capability.WithRevocations(f, 0), capability.WithBudgets(b))
		if err != nil {
			t.Fatal(err)
		}
		_, err = verify(t, v, tok)
		if got := capability.CodeOf(err); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
	// The mark that is held to the bound is that of the last look-up.
	f := newFeed()
	var held []int64
	f.within = func(m int64) bool { held = append(held, m); return true }
	v := verifier(t, capability.WithRevocations(f, 0), capability.WithBudgets(&counter{blocked: true}))
	_, err := verify(t, v, mint(t, "calls x"))
	wantCode(t, err, "")
	if !slices.Equal(held, []int64{1, 2}) {
		t.Errorf("marks %v held to the bound, want 1 before spending and 2 after", held)
	}
}

// looker looks a key and a device up at "ok".
type looker struct{ key capability.HolderKey }

func (l looker) Check(cl *capability.Clearance, c capability.Caveat) error {
	if string(c.Condition) != "ok" {
		return wordChecker{}.Check(cl, c)
	}
	if cl.HolderRevoked(l.key) || cl.DeviceRevoked(capability.DeviceID{2}) {
		return capability.CodeRevoked
	}
	return nil
}

// stages records in what order caveats are checked, and asks for later ones.
type stages struct{ seen []string }

func (s *stages) Check(cl *capability.Clearance, c capability.Caveat) error {
	stage := map[capability.Stage]string{capability.StageClear: "c", capability.StageHolder: "h", capability.StageRate: "r", capability.StageGiveBack: "b"}[cl.Stage()]
	s.seen = append(s.seen, stage+":"+string(c.Condition))
	switch {
	case string(c.Condition) == "calls x" && cl.Stage() == capability.StageClear:
		return cl.Spend(c, 1)
	case (string(c.Condition) == "rate" || string(c.Condition) == "full") && cl.Stage() == capability.StageClear:
		cl.Later(c, capability.StageRate)
	case string(c.Condition) == "full" && cl.Stage() == capability.StageRate:
		return capability.CodeRateLimited
	case string(c.Condition) == "holder" && cl.Stage() == capability.StageClear:
		cl.Later(c, capability.StageHolder)
	case string(c.Condition) == "holder" && cl.Stage() == capability.StageHolder:
		return proof(cl.Request().Holder, cl.Context())
	case string(c.Condition) == "never":
		cl.Later(c, capability.StageClear)
	}
	return nil
}

func proof(h capability.HolderProof, ctx context.Context) error {
	if h == nil {
		return capability.CodeHolderProof
	}
	return h.Prove(ctx, capability.HolderKey{})
}

type yes struct{}

func (yes) Prove(context.Context, capability.HolderKey) error { return nil }

func TestStages(t *testing.T) {
	tok := mint(t, "rate", "holder", "calls x", "ok")
	s, b := new(stages), new(counter)
	v, err := capability.NewVerifier(keyring{testKey()}, []string{"corp"}, s, capability.UnsafeWithoutRevocations(), capability.WithBudgets(b))
	if err != nil {
		t.Fatal(err)
	}
	g := new(capability.Grant)
	wantCode(t, v.Verify(t.Context(), g, tok.Bytes(), &capability.Request{Now: now, Holder: yes{}}), "")
	if want := []string{"c:rate", "c:holder", "c:calls x", "c:ok", "h:holder", "r:rate"}; !slices.Equal(s.seen, want) || b.calls != 1 {
		t.Errorf("order %v, %d calls, want %v and one", s.seen, b.calls, want)
	}
	// Without a proof nothing is taken.
	s.seen, b.calls = nil, 0
	wantCode(t, v.Verify(t.Context(), g, tok.Bytes(), &capability.Request{Now: now}), capability.CodeHolderProof)
	if slices.Contains(s.seen, "r:rate") || b.calls != 0 {
		t.Errorf("order %v, %d calls: something was taken", s.seen, b.calls)
	}
	// A dry run proves but takes nothing.
	s.seen = nil
	wantCode(t, v.DryRun(t.Context(), g, tok.Bytes(), &capability.Request{Now: now, Holder: yes{}}), "")
	if !slices.Contains(s.seen, "h:holder") || slices.Contains(s.seen, "r:rate") || b.calls != 0 {
		t.Errorf("dry run %v, %d calls", s.seen, b.calls)
	}
	// What was taken is given back by a call that the budgets or a later rate refuse,
	// and nothing that was not taken.
	b.err = capability.CodeBudgetExhausted
	s.seen = nil
	wantCode(t, v.Verify(t.Context(), g, tok.Bytes(), &capability.Request{Now: now, Holder: yes{}}), capability.CodeBudgetExhausted)
	if want := []string{"r:rate", "b:rate"}; !slices.Equal(s.seen[len(s.seen)-2:], want) {
		t.Errorf("order %v, want %v at the end", s.seen, want)
	}
	s.seen, b.calls = nil, 0
	_, err = verify(t, v, mint(t, "rate", "full", "rate", "calls x"))
	wantCode(t, err, capability.CodeRateLimited)
	if want := []string{"r:rate", "r:full", "b:rate"}; !slices.Equal(s.seen[4:], want) || b.calls != 0 {
		t.Errorf("order %v, %d calls, want %v at the end", s.seen, b.calls, want)
	}
	// A checker that asks for what cannot come denies.
	_, err = verify(t, v, mint(t, "never"))
	wantCode(t, err, capability.CodeUnavailable)
}

type registry struct {
	id   capability.TokenID
	tail capability.BranchID
	err  error
	wait func()
}

func (r *registry) Registered(_ context.Context, id *capability.Identity, tail capability.BranchID) (bool, error) {
	if r.wait != nil {
		r.wait()
	}
	return id.ID == r.id && tail == r.tail, r.err
}

func TestRegisteredTokensOnly(t *testing.T) {
	tok := mint(t, "ok", "calls x")
	narrow := must[*capability.Token](t)(tok.Attenuate("ok"))
	r, b, f := &registry{id: testIdentifier().ID, tail: tok.Branch()}, new(counter), newFeed()
	v := verifier(t, capability.WithRevocations(f, 0), capability.WithRegistry(r), capability.WithBudgets(b))
	_, err := verify(t, v, narrow)
	wantCode(t, err, "")
	// A stolen audience key mints what nobody registered.
	b.calls = 0
	_, err = verify(t, v, mint(t, "calls x"))
	wantCode(t, err, capability.CodeUnregistered)
	r.err = capability.CodeUnavailable
	_, err = verify(t, v, narrow)
	wantCode(t, err, capability.CodeUnavailable)
	r.err, r.wait = nil, func() { f.RevokeToken(testIdentifier().ID, never) }
	if b.calls != 0 {
		t.Errorf("%d calls spent by tokens that are refused", b.calls)
	}
	_, err = verify(t, v, narrow)
	wantCode(t, err, capability.CodeRevoked)
}

func TestAuthenticate(t *testing.T) {
	k := discharger(t, 1)
	tok := must[*capability.Token](t)(mint(t, "deny").AddThirdParty(k.Public(), "", approved("x")))
	set := with(t, tok, discharge(t, k, tok, 0, "deny"))
	v := verifier(t)
	got, err := v.Authenticate(t.Context(), set.Bytes(), nil)
	wantCode(t, err, "")
	if len(got) != 3 || got[2] != tok.Branch() {
		t.Errorf("branches %v, want three ending in %v", got, tok.Branch())
	}
	_, err = v.Authenticate(t.Context(), tok.Bytes(), nil)
	wantCode(t, err, capability.CodeDischargeRequired)
	_, err = v.Authenticate(t.Context(), make([]byte, capability.MaxTokenSize+1), nil)
	wantCode(t, err, capability.CodeTooLarge)
	forged := set.Bytes()
	forged[10] ^= 1
	_, err = v.Authenticate(t.Context(), forged, nil)
	wantCode(t, err, capability.CodeBadSignature)
}

// remote is an authority as a keyless verifier sees it.
type remote struct {
	v     *capability.Verifier
	asked int
	short bool
}

func (r *remote) Authenticate(ctx context.Context, set []byte, branches []capability.BranchID) ([]capability.BranchID, error) {
	r.asked++
	branches, err := r.v.Authenticate(ctx, set, branches)
	if r.short && err == nil {
		branches = branches[:len(branches)-1]
	}
	return branches, err
}

func TestKeyless(t *testing.T) {
	r, f, b := &remote{v: verifier(t)}, newFeed(), new(counter)
	v, err := capability.NewKeylessVerifier(r, []string{"corp"}, wordChecker{}, capability.WithRevocations(f, 0), capability.WithBudgets(b))
	if err != nil {
		t.Fatal(err)
	}
	k := discharger(t, 1)
	issued := must[*capability.Token](t)(capability.MintCaveats(testKey(), testIdentifier(), capability.NewCaveat{Condition: "calls xx"},
		capability.NewCaveat{ThirdParty: &capability.ThirdParty{Condition: "approved x"}, To: k.Public()}))
	narrow := must[*capability.Token](t)(issued.Attenuate("ok"))
	d := discharge(t, k, issued, 0, "declare role admin")
	g, err := verify(t, v, with(t, narrow, d))
	wantCode(t, err, "")
	if role, _ := g.Declared("role"); role != "admin" || g.Branch() != narrow.Branch() || b.path.At[0] != g.AppendBranches(nil)[1] || b.path.N != 1 {
		t.Errorf("role %q, branch %v, path %+v", role, g.Branch(), b.path)
	}
	if string(b.proof) != string(narrow.Bytes()) {
		t.Error("the lease proof is not the root as presented")
	}
	for _, c := range []struct {
		name string
		tok  *capability.Token
		want capability.Code
	}{
		{"denied", must[*capability.Token](t)(mint(t).Attenuate("deny")), capability.CodeActionDenied},
		{"no discharge", narrow, capability.CodeDischargeRequired},
		{"two discharges", with(t, narrow, d, d), capability.CodeDischargeInvalid},
	} {
		_, err := verify(t, v, c.tok)
		if got := capability.CodeOf(err); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
	asked := r.asked
	stranger := testIdentifier()
	stranger.Audience = "other"
	_, err = verify(t, v, must[*capability.Token](t)(capability.Mint(testKey(), stranger)))
	wantCode(t, err, capability.CodeUnknownKey)
	_, err = verify(t, v, must[*capability.Token](t)(capability.Decode(append([]byte{}, mint(t).Bytes()...))))
	wantCode(t, err, "")
	if r.asked != asked+1 {
		t.Errorf("asked %d times, want once: another audience is refused here", r.asked-asked)
	}
	f.RevokeBranch(testIdentifier().ID, narrow.Branch(), never)
	_, err = verify(t, v, with(t, narrow, d))
	wantCode(t, err, capability.CodeRevoked)
	r.short = true
	_, err = verify(t, v, mint(t))
	wantCode(t, err, capability.CodeUnavailable)
}

func TestConstruction(t *testing.T) {
	ok := capability.UnsafeWithoutRevocations()
	f := newFeed()
	keys := keyring{testKey()}
	for name, build := range map[string]func() (*capability.Verifier, error){
		"no keys": func() (*capability.Verifier, error) {
			return capability.NewVerifier(nil, []string{"a"}, wordChecker{}, ok)
		},
		"no audience": func() (*capability.Verifier, error) { return capability.NewVerifier(keys, nil, wordChecker{}, ok) },
		"bad audience": func() (*capability.Verifier, error) {
			return capability.NewVerifier(keys, []string{""}, wordChecker{}, ok)
		},
		"no checker": func() (*capability.Verifier, error) { return capability.NewVerifier(keys, []string{"a"}, nil, ok) },
		"no revocations": func() (*capability.Verifier, error) {
			return capability.NewVerifier(keys, []string{"a"}, wordChecker{})
		},
		"both": func() (*capability.Verifier, error) {
			return capability.NewVerifier(keys, []string{"a"}, wordChecker{}, ok, capability.WithRevocations(f, 0))
		},
		"nil revocations": func() (*capability.Verifier, error) {
			return capability.NewVerifier(keys, []string{"a"}, wordChecker{}, capability.WithRevocations(nil, 0))
		},
		"negative bound": func() (*capability.Verifier, error) {
			return capability.NewVerifier(keys, []string{"a"}, wordChecker{}, capability.WithRevocations(f, -1))
		},
		"nil registry": func() (*capability.Verifier, error) {
			return capability.NewVerifier(keys, []string{"a"}, wordChecker{}, ok, capability.WithRegistry(nil))
		},
		"no authority": func() (*capability.Verifier, error) {
			return capability.NewKeylessVerifier(nil, []string{"a"}, wordChecker{}, ok)
		},
	} {
		if v, err := build(); err == nil || v != nil {
			t.Errorf("%s: a verifier was built", name)
		}
	}
}
