package caveats_test

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats"
)

// now is the moment of every request here.
var now = time.Date(2026, 11, 24, 8, 0, 0, 0, time.UTC)

type keyring struct{ key *capability.RootKey }

func (k keyring) Key([]byte, uint32, uint32) *capability.RootKey { return k.key }

func testKey() *capability.RootKey { return capability.NewRootKey([32]byte{1, 2, 3}) }

func mint(t testing.TB, conditions ...string) *capability.Token {
	t.Helper()
	tok, err := capability.Mint(testKey(), capability.Identifier{
		ID:       capability.NewTokenID(now.UnixMilli(), [10]byte{9, 8, 7}),
		NotAfter: now.Add(5 * time.Minute), Audience: "corp", Subject: "agent-42",
	}, conditions...)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func attenuate(t testing.TB, tok *capability.Token, conditions ...string) *capability.Token {
	t.Helper()
	tok, err := tok.Attenuate(conditions...)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

// blocklist revokes keys and devices by name.
type blocklist struct {
	holders map[capability.HolderKey]bool
	devices map[capability.DeviceID]bool
}

func (blocklist) Mark() int64                                           { return 0 }
func (blocklist) Within(int64, time.Duration) bool                      { return true }
func (blocklist) Token(*capability.Identity) capability.RevocationState { return capability.Live }
func (blocklist) Branch(capability.TokenID, capability.BranchID) bool   { return false }
func (b blocklist) Holder(k capability.HolderKey) bool                  { return b.holders[k] }
func (b blocklist) Device(d capability.DeviceID) bool                   { return b.devices[d] }

type harness struct {
	verifier *capability.Verifier
	grant    capability.Grant
}

func newHarness(t testing.TB, revoked blocklist, opts ...caveats.Option) *harness {
	t.Helper()
	checker, err := caveats.Standard(opts...)
	if err != nil {
		t.Fatal(err)
	}
	budgets, err := caveats.NewLocalBudgets(64, func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	v, err := capability.NewVerifier(keyring{testKey()}, []string{"corp"}, checker,
		capability.WithRevocations(revoked, 0), capability.WithBudgets(budgets))
	if err != nil {
		t.Fatal(err)
	}
	return &harness{verifier: v}
}

func (h *harness) verify(tok *capability.Token, req *capability.Request) error {
	return h.verifier.Verify(context.Background(), &h.grant, tok.Bytes(), req)
}

// proofs proves some keys and returns errors for others.
type proofs map[capability.HolderKey]error

func (p proofs) Prove(_ context.Context, k capability.HolderKey) error {
	if err, ok := p[k]; ok {
		return err
	}
	return capability.CodeHolderProof
}

func holderKey(n byte) capability.HolderKey {
	return capability.HolderKey{Method: capability.HolderDPoP + capability.HolderMethod(n%2), Thumbprint: [32]byte{n}}
}

func must(t testing.TB) func(string, error) string {
	return func(s string, err error) string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
}

// readRequest is a request that many of the conditions below allow.
func readRequest() *capability.Request {
	return &capability.Request{
		Now: now, Service: "billing", Action: "read", Resource: []string{"files", "q3"},
		Arguments: capability.Fields{{Name: "amount", Value: capability.NumberValue("99.50")}, {Name: "secret", Value: capability.StringValue("hunter2")}},
		Client:    netip.MustParseAddr("10.1.2.3"),
		Context:   capability.Fields{{Name: "environment", Value: capability.StringValue("staging")}},
	}
}

func TestRefusalCodes(t *testing.T) {
	h := newHarness(t, blocklist{devices: map[capability.DeviceID]bool{{7}: true}}, caveats.Honor("minimal"),
		caveats.WithExtension("region", func(_ *capability.Clearance, args string) error {
			switch args {
			case "eu", "":
				return nil
			case "down":
				return errors.New("cannot say\x1b[31m")
			}
			return capability.CodeContextDenied
		}))
	for _, c := range []struct {
		condition string
		want      capability.Code // "" for allowed
	}{
		{"time-before 2026-11-24T08:00:00.001Z", ""},
		{"time-before 2026-11-24T08:00:00Z", capability.CodeExpired},
		{"time-before 2026-11-24T09:00:00+01:00", capability.CodeExpired},
		{"time-before 2026-11-24T08:30:00+01:00", capability.CodeExpired},
		{"time-before 2026-11-24T08:30:00-01:00", ""},
		{"time-after 2026-11-24T08:00:00Z", ""},
		{"time-after 2026-11-24T08:00:00.000000001Z", capability.CodeNotYetValid},
		{"action read", ""}, {"action list read", ""}, {"action write", capability.CodeActionDenied},
		{"resource files/**", ""}, {"resource files/q4", capability.CodeResourceDenied},
		{"argument amount <= 100", ""}, {"argument amount > 100", capability.CodeArgumentDenied},
		{"argument other is x", capability.CodeArgumentDenied}, {"argument secret is x", capability.CodeArgumentDenied},
		{"context environment is staging", ""}, {"context environment in prod", capability.CodeContextDenied},
		{"context other is x", capability.CodeContextDenied}, {"context pop is direct", capability.CodeHolderProof},
		{"service billing", ""}, {"service Billing", capability.CodeServiceDenied},
		{"client-ip 10.0.0.0/8", ""}, {"client-ip 192.0.2.0/24", capability.CodeClientDenied},
		{"max-calls 1000", ""}, {"max-calls 0", capability.CodeBudgetExhausted},
		{"max-rate 1000/1h", ""},
		{"holder " + holderKey(1).String(), capability.CodeHolderProof},
		{"request 47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU", capability.CodeRequestMismatch},
		{"branch 000102030405060708090a0b", ""}, {"branch 000102030405060708090a0b helper", ""},
		{"device " + capability.DeviceID{8}.String(), ""}, {"device " + capability.DeviceID{7}.String(), capability.CodeRevoked},
		{"log minimal", ""}, {"log metadata", capability.CodeObligation}, {"log full", capability.CodeObligation},
		{"ext:region eu", ""}, {"ext:region", ""}, {"ext:region us", capability.CodeContextDenied}, {"ext:region down", capability.CodeUnavailable},

		// Unreadable, unknown, or out of place.
		{"ext:Region eu", capability.CodeUnknownCaveat}, {"ext:other eu", capability.CodeUnknownCaveat}, {"ext:", capability.CodeUnknownCaveat},
		{"ext:region eu ", capability.CodeUnknownCaveat}, {"ext:region \"eu", capability.CodeUnknownCaveat},
		{"time-before", capability.CodeUnknownCaveat}, {"time-before tomorrow", capability.CodeUnknownCaveat},
		{"time-before 2027-01-01T00:00:00Z 2027-01-01T00:00:00Z", capability.CodeUnknownCaveat},
		{`time-before "2027-01-01T00:00:00Z"`, capability.CodeUnknownCaveat},
		{"Action read", capability.CodeUnknownCaveat}, {"actions read", capability.CodeUnknownCaveat}, {"action", capability.CodeUnknownCaveat},
		{"action read  list", capability.CodeUnknownCaveat}, {"action read ", capability.CodeUnknownCaveat}, {" action read", capability.CodeUnknownCaveat},
		{"action read\n", capability.CodeUnknownCaveat}, {"action read \xff", capability.CodeUnknownCaveat}, {`action read "`, capability.CodeUnknownCaveat},
		{"resource files/** /", capability.CodeUnknownCaveat}, {"client-ip 10.0.0.0/8 nowhere", capability.CodeUnknownCaveat},
		{"argument amount <= 100 200", capability.CodeUnknownCaveat}, {"argument amount in 99.5 1e100001", capability.CodeUnknownCaveat},
		{"max-calls", capability.CodeUnknownCaveat}, {"max-calls 01", capability.CodeUnknownCaveat}, {"max-calls -1", capability.CodeUnknownCaveat},
		{"max-calls 1000000000001", capability.CodeUnknownCaveat}, {"max-calls 18446744073709551617", capability.CodeUnknownCaveat},
		{"max-calls 1e3", capability.CodeUnknownCaveat}, {`max-calls "1"`, capability.CodeUnknownCaveat}, {"max-calls 1 2", capability.CodeUnknownCaveat},
		{"max-rate 0/1s", capability.CodeUnknownCaveat}, {"max-rate 1/0s", capability.CodeUnknownCaveat}, {"max-rate 1/s", capability.CodeUnknownCaveat},
		{"max-rate 1/25h", capability.CodeUnknownCaveat}, {"max-rate 1/1d", capability.CodeUnknownCaveat}, {"max-rate 1", capability.CodeUnknownCaveat},
		{"max-rate 1/1m30s", capability.CodeUnknownCaveat}, {"max-rate 1/1s/1s", capability.CodeUnknownCaveat},
		{"holder", capability.CodeUnknownCaveat}, {"holder jkt:abc", capability.CodeUnknownCaveat},
		{"holder " + holderKey(1).String() + "A", capability.CodeUnknownCaveat},
		{"holder " + strings.Replace(holderKey(1).String(), "x5t:", "X5T:", 1), capability.CodeUnknownCaveat},
		// the last character carries two bits too many: a second spelling
		{"holder " + strings.TrimSuffix(holderKey(1).String(), "A") + "B", capability.CodeUnknownCaveat},
		{"holder" + strings.Repeat(" "+holderKey(1).String(), 17), capability.CodeUnknownCaveat},
		{"request abc", capability.CodeUnknownCaveat}, {"request", capability.CodeUnknownCaveat},
		{"branch", capability.CodeUnknownCaveat}, {"branch helper", capability.CodeUnknownCaveat}, {"branch 000102030405060708090A0B", capability.CodeUnknownCaveat},
		{"branch 000102030405060708090a0b a b", capability.CodeUnknownCaveat},
		{"bound 000102030405060708090a0b0c0d0e0f", capability.CodeUnknownCaveat}, {"declare key value", capability.CodeUnknownCaveat},
		{"device abc", capability.CodeUnknownCaveat}, {"device " + strings.ToUpper(capability.DeviceID{0xab}.String()), capability.CodeUnknownCaveat},
		{"log", capability.CodeUnknownCaveat}, {"log none", capability.CodeUnknownCaveat}, {"log minimal full", capability.CodeUnknownCaveat},
		{"frobnicate", capability.CodeUnknownCaveat}, {"\x00", capability.CodeUnknownCaveat}, {`"action" read`, capability.CodeUnknownCaveat},
	} {
		err := h.verify(mint(t, c.condition), readRequest())
		if got := capability.CodeOf(err); got != c.want {
			t.Errorf("%q: %v, want %q", c.condition, err, c.want)
		}
		if err != nil {
			for _, r := range err.Error() {
				if r < ' ' || r > '~' {
					t.Errorf("%q: the explanation %q is not safe to print", c.condition, err.Error())
				}
			}
			if r, ok := errors.AsType[*capability.Refusal](err); !ok || r.Caveat != c.condition || strings.Contains(r.Detail, "hunter2") {
				t.Errorf("%q: refusal %+v", c.condition, r)
			}
		}
		// Validate knows what no verifier accepts, and takes extensions on trust.
		readable := c.want != capability.CodeUnknownCaveat || c.condition == "ext:other eu"
		if err := caveats.Validate(c.condition); (err == nil) != readable {
			t.Errorf("Validate(%q): %v", c.condition, err)
		} else if err != nil && !errors.Is(err, caveats.ErrCondition) {
			t.Errorf("Validate(%q): %v is not ErrCondition", c.condition, err)
		}
	}
}

func TestEmptyRequestMatchesNothing(t *testing.T) {
	h := newHarness(t, blocklist{})
	for condition, want := range map[string]capability.Code{
		"action read": capability.CodeActionDenied, "resource **": capability.CodeResourceDenied,
		"argument x is a": capability.CodeArgumentDenied, "context x is a": capability.CodeContextDenied,
		"service s": capability.CodeServiceDenied, "client-ip 0.0.0.0/0 ::/0": capability.CodeClientDenied,
	} {
		if got := capability.CodeOf(h.verify(mint(t, condition), &capability.Request{Now: now})); got != want {
			t.Errorf("%s: %s, want %s", condition, got, want)
		}
	}
}

func TestHolder(t *testing.T) {
	a, b, c := holderKey(1), holderKey(2), holderKey(3)
	ab := must(t)(caveats.Holder(a, b))
	revoke := func(keys ...capability.HolderKey) blocklist {
		l := blocklist{holders: map[capability.HolderKey]bool{}}
		for _, k := range keys {
			l.holders[k] = true
		}
		return l
	}
	for _, x := range []struct {
		name    string
		revoked blocklist
		proof   capability.HolderProof
		want    capability.Code
	}{
		{"no proof", revoke(), nil, capability.CodeHolderProof},
		{"first", revoke(), proofs{a: nil}, ""},
		{"second", revoke(), proofs{b: nil}, ""},
		{"another key", revoke(), proofs{c: nil}, capability.CodeHolderProof},
		{"replayed", revoke(), proofs{a: capability.CodeReplayed}, capability.CodeReplayed},
		{"replayed for one, proved for the other", revoke(), proofs{a: capability.CodeReplayed, b: nil}, ""},
		{"a revoked key proves nothing", revoke(a), proofs{a: nil}, capability.CodeHolderProof},
		{"the other of a revoked key", revoke(a), proofs{b: nil}, ""},
		{"all revoked", revoke(a, b), proofs{a: nil, b: nil}, capability.CodeRevoked},
		{"all revoked, no proof", revoke(a, b), nil, capability.CodeRevoked},
	} {
		req := readRequest()
		req.Holder = x.proof
		if err := newHarness(t, x.revoked).verify(mint(t, ab), req); capability.CodeOf(err) != x.want {
			t.Errorf("%s: %v, want %q", x.name, err, x.want)
		}
	}
	// Same thumbprint, other method: another key.
	other := a
	other.Method = capability.HolderDPoP + capability.HolderMTLS - a.Method
	req := readRequest()
	req.Holder = proofs{other: nil}
	if err := newHarness(t, revoke()).verify(mint(t, ab), req); !errors.Is(err, capability.CodeHolderProof) {
		t.Errorf("another method: %v", err)
	}
}

// A proof is not asked for while another condition refuses: it costs a signature.
func TestHolderComesAfterTheRest(t *testing.T) {
	asked := 0
	req := readRequest()
	req.Holder = proofFunc(func(capability.HolderKey) error { asked++; return nil })
	tok := mint(t, must(t)(caveats.Holder(holderKey(1))), "action write")
	if err := newHarness(t, blocklist{}).verify(tok, req); !errors.Is(err, capability.CodeActionDenied) || asked != 0 {
		t.Fatalf("%v, and %d proofs", err, asked)
	}
	if err := newHarness(t, blocklist{}).verify(mint(t, must(t)(caveats.Holder(holderKey(1)))), req); err != nil || asked != 1 {
		t.Fatalf("%v, and %d proofs", err, asked)
	}
}

type proofFunc func(capability.HolderKey) error

func (f proofFunc) Prove(_ context.Context, k capability.HolderKey) error { return f(k) }

// A request caveat is not a holder proof, in whatever order they stand.
func TestRequestIsNoHolderProof(t *testing.T) {
	m := &capability.Message{Method: "GET", Authority: "h", Target: "/"}
	holder, request := must(t)(caveats.Holder(holderKey(1))), caveats.Request(caveats.RequestHash(m))
	req := readRequest()
	req.Message = m
	h := newHarness(t, blocklist{})
	for _, conditions := range [][]string{{holder, request}, {request, holder}} {
		if err := h.verify(mint(t, conditions...), req); !errors.Is(err, capability.CodeHolderProof) {
			t.Errorf("%q: %v", conditions, err)
		}
	}
	if err := h.verify(mint(t, request), req); err != nil || !h.grant.RequestBound() {
		t.Errorf("%v, bound %v", err, h.grant.RequestBound())
	}
	if err := h.verify(mint(t, "action read"), req); err != nil || h.grant.RequestBound() {
		t.Errorf("%v, bound %v", err, h.grant.RequestBound())
	}
}

func TestGrantEnds(t *testing.T) {
	h := newHarness(t, blocklist{})
	for _, c := range []struct {
		in   time.Duration
		want time.Duration
	}{{time.Minute, time.Minute}, {time.Hour, 5 * time.Minute}, {1500 * time.Microsecond, time.Millisecond}} {
		tok := mint(t, caveats.TimeBefore(now.Add(2*time.Hour)), caveats.TimeBefore(now.Add(c.in)), caveats.TimeBefore(now.Add(3*time.Hour)))
		if err := h.verify(tok, readRequest()); err != nil || !h.grant.Ends().Equal(now.Add(c.want)) {
			t.Errorf("%v: ends %v, want %v (%v)", c.in, h.grant.Ends(), now.Add(c.want), err)
		}
	}
}

func TestReplay(t *testing.T) {
	cache, err := caveats.NewReplayCache(2)
	if err != nil {
		t.Fatal(err)
	}
	h := newHarness(t, blocklist{}, caveats.WithReplays(cache, nil))
	call := func(method, nonce string, life time.Duration, more ...string) error {
		m := &capability.Message{Method: method, Authority: "h", Target: "/", Nonce: nonce}
		req := readRequest()
		req.Message = m
		tok := mint(t, append([]string{caveats.Request(caveats.RequestHash(m)), caveats.TimeBefore(now.Add(life))}, more...)...)
		return h.verify(tok, req)
	}
	for _, c := range []struct {
		name string
		err  error
		want capability.Code
	}{
		{"refused for another reason, and so not remembered", call("POST", "1", time.Minute, "action write"), capability.CodeActionDenied},
		{"first", call("POST", "1", time.Minute), ""},
		{"again", call("POST", "1", time.Minute), capability.CodeReplayed},
		{"again, narrowed otherwise", call("POST", "1", time.Minute, "action read"), capability.CodeReplayed},
		{"without a short end", call("POST", "2", time.Hour), capability.CodeRequestMismatch},
		{"another nonce", call("POST", "2", time.Minute), ""},
		{"full", call("POST", "3", time.Minute), capability.CodeUnavailable},
		{"idempotent", call("GET", "1", time.Hour), ""},
		{"idempotent again", call("GET", "1", time.Hour), ""},
	} {
		if capability.CodeOf(c.err) != c.want {
			t.Errorf("%s: %v, want %q", c.name, c.err, c.want)
		}
	}
	if cache.Len() != 2 {
		t.Errorf("%d requests remembered", cache.Len())
	}
}

func TestMaxCallsAndRate(t *testing.T) {
	h := newHarness(t, blocklist{})
	root := mint(t, "max-calls 3")
	one := attenuate(t, root, "max-calls 2")
	two := attenuate(t, root, "branch sibling")
	for i, c := range []struct {
		tok  *capability.Token
		want capability.Code
	}{{one, ""}, {one, ""}, {one, capability.CodeBudgetExhausted}, {two, ""}, {two, capability.CodeBudgetExhausted}, {root, capability.CodeBudgetExhausted}} {
		if err := h.verify(c.tok, readRequest()); capability.CodeOf(err) != c.want {
			t.Errorf("call %d: %v, want %q", i, err, c.want)
		}
	}
	limited := mint(t, "max-rate 2/1m")
	req := readRequest()
	for i, c := range []struct {
		wait   time.Duration
		action string
		want   capability.Code
	}{{0, "read", ""}, {0, "read", ""}, {0, "read", capability.CodeRateLimited}, {29 * time.Second, "read", capability.CodeRateLimited},
		{time.Second, "read", ""}, {0, "read", capability.CodeRateLimited}} {
		req.Now = req.Now.Add(c.wait)
		if err := h.verify(limited, req); capability.CodeOf(err) != c.want {
			t.Errorf("call %d: %v, want %q", i, err, c.want)
		}
	}
	// A dry run and a call that is refused otherwise take nothing.
	req = readRequest()
	fresh := mint(t, "max-rate 1/1m", "action read", "max-calls 1")
	if err := h.verifier.DryRun(context.Background(), &h.grant, fresh.Bytes(), req); err != nil {
		t.Error(err)
	}
	req.Action = "write"
	if err := h.verify(fresh, req); !errors.Is(err, capability.CodeActionDenied) {
		t.Error(err)
	}
	req.Action = "read"
	if err := h.verify(fresh, req); err != nil {
		t.Error(err)
	}
}

// A call that the budget refuses has used no rate and no request.
func TestRefusedCallsGiveBack(t *testing.T) {
	cache, err := caveats.NewReplayCache(2)
	if err != nil {
		t.Fatal(err)
	}
	h := newHarness(t, blocklist{}, caveats.WithReplays(cache, nil))
	limited := mint(t, "max-rate 2/1h", "max-rate 3/1h")
	spent := attenuate(t, limited, "max-calls 1", "max-rate 1/1h")
	for i, want := range []capability.Code{"", capability.CodeRateLimited, capability.CodeRateLimited} {
		if err := h.verify(spent, readRequest()); capability.CodeOf(err) != want {
			t.Errorf("call %d: %v, want %q", i, err, want)
		}
	}
	exhausted := attenuate(t, limited, "max-calls 1")
	for i, want := range []capability.Code{"", capability.CodeRateLimited} {
		if err := h.verify(exhausted, readRequest()); capability.CodeOf(err) != want {
			t.Errorf("call %d: %v, want %q", i, err, want)
		}
	}
	other := mint(t, "max-rate 2/2h", "max-calls 1")
	for i, want := range []capability.Code{"", capability.CodeBudgetExhausted, capability.CodeBudgetExhausted, capability.CodeBudgetExhausted} {
		if err := h.verify(other, readRequest()); capability.CodeOf(err) != want {
			t.Errorf("call %d: %v, want %q", i, err, want)
		}
	}
	// Once there are calls again, the very same request is accepted, once.
	m := &capability.Message{Method: "POST", Authority: "h", Target: "/", Nonce: "1"}
	req := readRequest()
	req.Message = m
	bound := []string{caveats.Request(caveats.RequestHash(m)), caveats.TimeBefore(now.Add(time.Minute))}
	once := mint(t, "max-calls 1")
	if err := h.verify(once, readRequest()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := h.verify(attenuate(t, once, bound...), req); !errors.Is(err, capability.CodeBudgetExhausted) {
			t.Errorf("a request that the budget refuses: %v", err)
		}
	}
	again := mint(t, append(bound, "max-calls 2")...)
	if err := h.verify(again, req); err != nil {
		t.Errorf("a request that was refused before: %v", err)
	}
	if err := h.verify(again, req); !errors.Is(err, capability.CodeReplayed) {
		t.Errorf("a request for the second time: %v", err)
	}
}

func TestDischargeConditions(t *testing.T) {
	discharger, err := capability.GenerateDischargerKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tok, err := capability.MintCaveats(testKey(), capability.Identifier{
		ID: capability.NewTokenID(now.UnixMilli(), [10]byte{1}), NotAfter: now.Add(5 * time.Minute), Audience: "corp", Subject: "agent-42",
	}, capability.NewCaveat{ThirdParty: &capability.ThirdParty{Condition: "approved payments q3"}, To: discharger.Public()})
	if err != nil {
		t.Fatal(err)
	}
	opened, err := discharger.OpenCaveat(tok.Missing()[0].CaveatID)
	if err != nil {
		t.Fatal(err)
	}
	h := newHarness(t, blocklist{})
	for _, c := range []struct {
		condition string
		want      capability.Code
	}{
		{"declare approver alice", ""}, {`declare approver "alice \"a\" smith"`, ""},
		{"declare approver", capability.CodeUnknownCaveat}, {"declare approver a b", capability.CodeUnknownCaveat},
		{"action read", ""}, {"action write", capability.CodeActionDenied},
		{"time-before 2026-11-24T08:00:00Z", capability.CodeExpired},
		{"max-calls 5", capability.CodeUnknownCaveat}, {"max-rate 1/24h", ""},
	} {
		d, err := opened.Discharge(c.condition)
		if err != nil {
			t.Fatal(err)
		}
		set, err := tok.WithDischarges(d)
		if err != nil {
			t.Fatal(err)
		}
		err = h.verify(set, readRequest())
		if capability.CodeOf(err) != c.want {
			t.Errorf("%q: %v, want %q", c.condition, err, c.want)
		}
		if readable := c.want != capability.CodeUnknownCaveat; (caveats.ValidateDischarge(c.condition) == nil) != readable {
			t.Errorf("ValidateDischarge(%q): %v", c.condition, caveats.ValidateDischarge(c.condition))
		}
		if strings.HasPrefix(c.condition, "declare") && err == nil {
			want := "alice"
			if strings.Contains(c.condition, "smith") {
				want = `alice "a" smith`
			}
			if got, ok := h.grant.Declared("approver"); got != want || !ok {
				t.Errorf("%q declared %q %v", c.condition, got, ok)
			}
		}
	}
}

func TestLogLevel(t *testing.T) {
	h := newHarness(t, blocklist{}, caveats.Honor(caveats.LogLevels()...))
	if err := h.verify(mint(t, "log full", "log minimal"), readRequest()); err != nil || h.grant.LogLevel() != "full" {
		t.Errorf("%v, level %q", err, h.grant.LogLevel())
	}
}

func TestStandardRefuses(t *testing.T) {
	f := func(*capability.Clearance, string) error { return nil }
	for name, o := range map[string][]caveats.Option{
		"unknown level":   {caveats.Honor("everything")},
		"extension name":  {caveats.WithExtension("Bad Name", f)},
		"no function":     {caveats.WithExtension("x", nil)},
		"twice":           {caveats.WithExtension("x", f), caveats.WithExtension("x", f)},
		"no rate table":   {caveats.WithRates(nil)},
		"no replay cache": {caveats.WithReplays(nil, nil)},
	} {
		if _, err := caveats.Standard(o...); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// fiveCaveats is the token and the request that the allocation test and the
// benchmark share.
func fiveCaveats(t testing.TB) ([]string, *capability.Request) {
	req := readRequest()
	req.Message = &capability.Message{Method: "POST", Authority: "files.corp.example", Target: "/files/q3", ContentType: "application/json", BodyDigest: sha256.Sum256(nil)}
	return []string{
		caveats.TimeBefore(now.Add(time.Minute)), "action read list", "resource files/reports/** files/q3",
		"argument amount <= 100.00", "client-ip 10.0.0.0/8",
	}, req
}

func TestNoAllocations(t *testing.T) {
	five, req := fiveCaveats(t)
	holder := must(t)(caveats.Holder(holderKey(1), holderKey(2)))
	req.Holder = proofs{holderKey(2): nil}
	all := append(five, "branch 000102030405060708090a0b helper", "service billing", "context environment is staging",
		"max-calls 1000000", "max-rate 1000000/1s", holder, caveats.Request(caveats.RequestHash(req.Message)),
		"device "+capability.DeviceID{8}.String(), "log minimal", "time-after 2026-01-01T00:00:00Z",
		`argument secret in "a" "b" hunter2`, "client-ip 2001:db8::/32 10.1.2.3", `resource "files/my report" files/*`)
	h := newHarness(t, blocklist{}, caveats.Honor("minimal"))
	for _, conditions := range append([][]string{all}, split(all)...) {
		set := mint(t, conditions...).Bytes()
		var err error
		n := testing.AllocsPerRun(100, func() {
			err = errors.Join(err, h.verifier.Verify(context.Background(), &h.grant, set, req))
		})
		if err != nil {
			t.Fatalf("%q: %v", conditions, err)
		}
		if n != 0 {
			t.Errorf("%q: %v allocations", conditions, n)
		}
	}
}

func split(conditions []string) (each [][]string) {
	for _, c := range conditions {
		each = append(each, []string{c})
	}
	return each
}

func BenchmarkVerify(b *testing.B) {
	five, req := fiveCaveats(b)
	h := newHarness(b, blocklist{})
	for n := 0; n <= len(five); n++ {
		set := mint(b, five[:n]...).Bytes()
		b.Run(fmt.Sprintf("caveats=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := h.verifier.Verify(context.Background(), &h.grant, set, req); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// during runs f within a verification, with the clearance and all caveats.
type during struct {
	caveats []capability.Caveat
	last    int
	f       func(cl *capability.Clearance, cs []capability.Caveat) error
}

func (d *during) Check(cl *capability.Clearance, c capability.Caveat) error {
	d.caveats = append(d.caveats, c)
	if len(d.caveats) < d.last {
		return nil
	}
	return d.f(cl, d.caveats)
}

// BenchmarkClear is the clearing alone: what verification costs beyond its MACs.
func BenchmarkClear(b *testing.B) {
	five, req := fiveCaveats(b)
	checker, err := caveats.Standard()
	if err != nil {
		b.Fatal(err)
	}
	for name, conditions := range map[string][]string{
		"five": five, "time-before": five[:1], "action": five[1:2], "resource": five[2:3], "argument": five[3:4], "client-ip": five[4:],
		"request": {caveats.Request(caveats.RequestHash(req.Message))}, "branch": {"branch 000102030405060708090a0b helper"},
	} {
		b.Run(name, func(b *testing.B) {
			d := &during{last: len(conditions), f: func(cl *capability.Clearance, cs []capability.Caveat) error {
				b.ReportAllocs()
				for b.Loop() {
					for i := range cs {
						if err := checker.Check(cl, cs[i]); err != nil {
							return err
						}
					}
				}
				return nil
			}}
			v, err := capability.NewVerifier(keyring{testKey()}, []string{"corp"}, d, capability.UnsafeWithoutRevocations())
			if err != nil {
				b.Fatal(err)
			}
			if err := v.Verify(context.Background(), new(capability.Grant), mint(b, conditions...).Bytes(), req); err != nil {
				b.Fatal(err)
			}
		})
	}
}
