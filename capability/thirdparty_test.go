package capability_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/writ-dev/writ/capability"
)

func discharger(t testing.TB, seed byte) *capability.DischargerKey {
	t.Helper()
	k, err := capability.NewDischargerKey([32]byte{1, seed, 2, 3, 4})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// must returns v of a call that cannot fail in this test.
func must[T any](t testing.TB) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// discharge answers the set's n-th missing third-party caveat.
func discharge(t testing.TB, k *capability.DischargerKey, tok *capability.Token, n int, conditions ...string) *capability.Token {
	t.Helper()
	missing := tok.Missing()
	if len(missing) <= n {
		t.Fatalf("%d third-party caveats are unanswered, want more than %d", len(missing), n)
	}
	o, err := k.OpenCaveat(missing[n].CaveatID)
	if err != nil {
		t.Fatal(err)
	}
	return must[*capability.Token](t)(o.Discharge(conditions...))
}

func with(t testing.TB, tok *capability.Token, ds ...*capability.Token) *capability.Token {
	t.Helper()
	return must[*capability.Token](t)(tok.WithDischarges(ds...))
}

func approved(condition string) capability.ThirdParty {
	return capability.ThirdParty{Condition: condition}
}

func TestThirdPartyCaveat(t *testing.T) {
	k := discharger(t, 1)
	key := capability.HolderKey{Method: capability.HolderDPoP, Thumbprint: [32]byte{5}}
	dev := capability.DeviceID{6}
	before := mint(t, "ok")
	tok := must[*capability.Token](t)(before.AddThirdParty(k.Public(), "https://d.example",
		capability.ThirdParty{Condition: "attested prod", Holder: &key, Device: &dev, Audience: "a lie", Expires: now.Add(time.Hour)}))

	o := must[*capability.OpenedCaveat](t)(k.OpenCaveat(tok.Missing()[0].CaveatID))
	if o.Condition != "attested prod" || *o.Holder != key || *o.Device != dev || o.AnyMachine ||
		o.Token != testIdentifier().ID || o.Branch != before.Branch() || o.Audience != "corp" ||
		!o.Expires.Equal(testIdentifier().NotAfter) {
		t.Errorf("opened %+v", o.ThirdParty)
	}
	if _, err := discharger(t, 2).OpenCaveat(tok.Missing()[0].CaveatID); !errors.Is(err, capability.CodeDischargeInvalid) {
		t.Errorf("another discharger opens it: %v", err)
	}

	v := verifier(t)
	_, err := verify(t, v, tok)
	wantCode(t, err, capability.CodeDischargeRequired)

	d := discharge(t, k, tok, 0, "ok d")
	_, err = verify(t, v, with(t, tok, d))
	wantCode(t, err, "")
	// A bound discharge survives narrowing.
	narrow := must[*capability.Token](t)(tok.Attenuate("ok"))
	_, err = verify(t, v, with(t, narrow, d))
	wantCode(t, err, "")
	// Its conditions count.
	_, err = verify(t, v, with(t, tok, discharge(t, k, tok, 0, "deny")))
	wantCode(t, err, capability.CodeActionDenied)
	appended := must[*capability.Token](t)(d.AttenuateExact("deny"))
	_, err = verify(t, v, with(t, tok, appended))
	wantCode(t, err, capability.CodeActionDenied)
	// It is used exactly once.
	_, err = verify(t, v, with(t, tok, d, d))
	wantCode(t, err, capability.CodeDischargeInvalid)
	_, err = verify(t, v, with(t, before, d))
	wantCode(t, err, capability.CodeDischargeInvalid)
}

// A caveat id copied into another token buys nothing, even for one who knows
// its caveat key: the discharge is bound to where the id was first.
func TestCopiedCaveatID(t *testing.T) {
	k := discharger(t, 1)
	tok := must[*capability.Token](t)(mint(t, "ok").AddThirdParty(k.Public(), "", approved("approved x")))
	o := must[*capability.OpenedCaveat](t)(k.OpenCaveat(tok.Missing()[0].CaveatID))
	d := must[*capability.Token](t)(o.Discharge())
	again := must[*capability.Token](t)(o.CopyInto(mint(t, "ok")))
	_, err := verify(t, verifier(t), with(t, again, d))
	wantCode(t, err, "") // the same point, and the same question
	elsewhere := must[*capability.Token](t)(o.CopyInto(mint(t, "ok other")))
	_, err = verify(t, verifier(t), with(t, elsewhere, d))
	wantCode(t, err, capability.CodeDischargeInvalid)
}

func TestBindings(t *testing.T) {
	k := discharger(t, 1)
	tok := must[*capability.Token](t)(mint(t, "ok").AddThirdParty(k.Public(), "", approved("approved x")))
	o := must[*capability.OpenedCaveat](t)(k.OpenCaveat(tok.Missing()[0].CaveatID))
	raw := rawDischarge(t, o)
	v := verifier(t)
	for _, c := range []struct {
		name string
		set  func() *capability.Token
		want capability.Code
	}{
		{"neither", func() *capability.Token { return with(t, tok, raw) }, capability.CodeDischargeInvalid},
		{"bound by signature", func() *capability.Token {
			return with(t, tok, must[*capability.Token](t)(raw.Bind(tok)))
		}, ""},
		{"bound by signature to what was narrowed since", func() *capability.Token {
			narrow := must[*capability.Token](t)(tok.Attenuate("ok"))
			return with(t, narrow, must[*capability.Token](t)(raw.Bind(tok)))
		}, capability.CodeDischargeInvalid},
		{"both", func() *capability.Token {
			return with(t, tok, must[*capability.Token](t)(must[*capability.Token](t)(o.Discharge()).Bind(tok)))
		}, ""},
		{"bound by signature, and by a branch elsewhere", func() *capability.Token {
			d := must[*capability.Token](t)(raw.AttenuateExact(capability.BoundCondition(capability.BranchID{1})))
			return with(t, tok, must[*capability.Token](t)(d.Bind(tok)))
		}, capability.CodeDischargeInvalid},
		{"bound twice, once elsewhere", func() *capability.Token {
			d := must[*capability.Token](t)(o.Discharge())
			return with(t, tok, must[*capability.Token](t)(d.AttenuateExact(capability.BoundCondition(capability.BranchID{1}))))
		}, capability.CodeDischargeInvalid},
		{"bound to any point of the root", func() *capability.Token {
			return with(t, tok, must[*capability.Token](t)(raw.AttenuateExact(capability.BoundCondition(tok.Branch()))))
		}, ""},
		{"bound, unreadable", func() *capability.Token {
			return with(t, tok, must[*capability.Token](t)(raw.AttenuateExact("bound "+strings.ToUpper(o.Branch.String()))))
		}, capability.CodeDischargeInvalid},
		{"bound, with more behind", func() *capability.Token {
			return with(t, tok, must[*capability.Token](t)(raw.AttenuateExact(capability.BoundCondition(o.Branch)+" ")))
		}, capability.CodeDischargeInvalid},
		{"a forged signature", func() *capability.Token {
			b := must[*capability.Token](t)(o.Discharge()).Bytes()
			b[len(b)-1] ^= 1
			return with(t, tok, must[*capability.Token](t)(capability.Decode(b)))
		}, capability.CodeDischargeInvalid},
	} {
		if c.name == "bound, unreadable" && strings.ToUpper(o.Branch.String()) == o.Branch.String() {
			t.Fatal("a branch id without letters: choose another")
		}
		_, err := verify(t, v, c.set())
		if got := capability.CodeOf(err); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
	// A bound caveat in the root is the Checker's: no vocabulary knows it there.
	_, err := verify(t, v, mint(t, capability.BoundCondition(capability.BranchID{})))
	wantCode(t, err, capability.CodeUnknownCaveat)
}

func TestNestedDischarges(t *testing.T) {
	k1, k2 := discharger(t, 1), discharger(t, 2)
	tok := must[*capability.Token](t)(mint(t, "ok").AddThirdParty(k1.Public(), "", approved("approved x")))
	o := must[*capability.OpenedCaveat](t)(k1.OpenCaveat(tok.Missing()[0].CaveatID))
	outer := must[*capability.Token](t)(o.Discharge("ok"))
	nest := o.ThirdParty
	nest.Condition = "approved y"
	outer = must[*capability.Token](t)(outer.AddThirdParty(k2.Public(), "", nest))
	set := with(t, tok, outer)
	v := verifier(t)
	_, err := verify(t, v, set)
	wantCode(t, err, capability.CodeDischargeRequired)
	inner := discharge(t, k2, set, 0)
	for _, whole := range []*capability.Token{with(t, set, inner), with(t, tok, inner, outer)} {
		_, err = verify(t, v, whole)
		wantCode(t, err, "")
	}
	_, err = verify(t, v, with(t, set, must[*capability.Token](t)(inner.AttenuateExact("deny"))))
	wantCode(t, err, capability.CodeActionDenied)
	_, err = verify(t, v, with(t, set, inner, inner))
	wantCode(t, err, capability.CodeDischargeInvalid)
	// The inner alone does not do for the outer.
	_, err = verify(t, v, with(t, tok, inner))
	wantCode(t, err, capability.CodeDischargeRequired)
}

// Only the discharger's own words, about a caveat that the minter asked for,
// are facts.
func TestDeclare(t *testing.T) {
	k := discharger(t, 1)
	issued := must[*capability.Token](t)(capability.MintCaveats(testKey(), testIdentifier(),
		capability.NewCaveat{Condition: "ok"},
		capability.NewCaveat{ThirdParty: &capability.ThirdParty{Condition: "approved x"}, To: k.Public()}))
	added := must[*capability.Token](t)(mint(t, "ok").AddThirdParty(k.Public(), "", approved("approved x")))
	honest := func(tok *capability.Token) *capability.Token { return discharge(t, k, tok, 0, "declare device d1") }
	appendTo := func(d *capability.Token, c ...string) *capability.Token {
		return must[*capability.Token](t)(d.AttenuateExact(c...))
	}
	for _, c := range []struct {
		name   string
		set    *capability.Token
		device string
		role   string
	}{
		{"asked for by the minter", with(t, issued, honest(issued)), "d1", ""},
		{"added by the holder", with(t, added, honest(added)), "", ""},
		{"appended to the discharge", with(t, issued, appendTo(honest(issued), "declare role admin")), "d1", ""},
		{"appended with a bound caveat of one's own", with(t, issued, appendTo(honest(issued), "declare role admin",
			capability.BoundCondition(issued.Branch()))), "d1", ""},
		{"declared in the root", with(t, appendTo(issued, "declare role admin"), honest(issued)), "d1", ""},
		{"two that differ", with(t, issued, discharge(t, k, issued, 0, "declare device d1", "declare device d2")), "", ""},
		{"two that agree", with(t, issued, discharge(t, k, issued, 0, "declare device d1", "declare device d1")), "d1", ""},
	} {
		g, err := verify(t, verifier(t), c.set)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if d, _ := g.Declared("device"); d != c.device {
			t.Errorf("%s: device %q, want %q", c.name, d, c.device)
		}
		if r, _ := g.Declared("role"); r != c.role {
			t.Errorf("%s: role %q, want %q", c.name, r, c.role)
		}
	}
}

func TestThirdPartyRefusals(t *testing.T) {
	k := discharger(t, 1)
	holder := &capability.HolderKey{Method: capability.HolderMTLS}
	for name, tp := range map[string]capability.ThirdParty{
		"empty":                     {},
		"control character":         {Condition: "approved\nx"},
		"not UTF-8":                 {Condition: "approved \xff"},
		"too long":                  {Condition: strings.Repeat("a", 1025)},
		"attested by nobody":        {Condition: "attested prod"},
		"any machine and a holder":  {Condition: "attested prod", AnyMachine: true, Holder: holder},
		"holder of unknown method":  {Condition: "attested prod", Holder: &capability.HolderKey{}},
		"any machine and a devices": {Condition: "attested prod", AnyMachine: true, Device: &capability.DeviceID{}},
	} {
		if _, err := mint(t).AddThirdParty(k.Public(), "", tp); !errors.Is(err, capability.CodeMalformed) {
			t.Errorf("%s: %v, want malformed", name, err)
		}
	}
	tok := must[*capability.Token](t)(mint(t).AddThirdParty(k.Public(), "", capability.ThirdParty{Condition: "attested prod", AnyMachine: true}))
	if _, err := discharge(t, k, tok, 0).AddThirdParty(k.Public(), "", approved("x")); !errors.Is(err, capability.CodeMalformed) {
		t.Errorf("nested without a branch: %v", err)
	}
	o := must[*capability.OpenedCaveat](t)(k.OpenCaveat(tok.Missing()[0].CaveatID))
	if !o.AnyMachine {
		t.Error("any machine was lost")
	}
	if _, err := o.Discharge("bound 00"); !errors.Is(err, capability.CodeMalformed) {
		t.Errorf("a bound condition of the discharger's: %v", err)
	}
}

func rawDischarge(t testing.TB, o *capability.OpenedCaveat) *capability.Token {
	t.Helper()
	return must[*capability.Token](t)(o.UnboundDischarge())
}
