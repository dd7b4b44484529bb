package wallet_test

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/authority/wallet"
	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats/attest"
	"github.com/writ-dev/writ/caveats/attest/attesttest"
	"github.com/writ-dev/writ/caveats/attest/holder"
	"github.com/writ-dev/writ/caveats/pop"
)

// TestRevokedMeanwhile: what is revoked gets no discharge, though its machine is
// as good as ever.
func TestRevokedMeanwhile(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	for _, c := range []struct {
		what   string
		revoke func(token *capability.Token) api.RevokeRequest
		told   string
	}{
		{"the token", func(token *capability.Token) api.RevokeRequest {
			in, err := token.Inspect()
			if err != nil {
				t.Fatal(err)
			}
			return api.RevokeRequest{Kind: api.RevokeToken, Token: in.Identifier.ID.String()}
		}, "the token was revoked"},
		{"the holder key", func(*capability.Token) api.RevokeRequest {
			return api.RevokeRequest{Kind: api.RevokeHolder, Holder: r.machine.holder.HolderKey().String()}
		}, "the device or its holder key was revoked"},
	} {
		r.discharge(r.machine, r.mint(nil))
		token := r.mint(nil)
		revoke := c.revoke(token)
		revoke.Reason = "leaked"
		if _, err := r.root.Revoke(t.Context(), revoke); err != nil {
			t.Fatal(err)
		}
		if _, _, err := r.machine.wallet.Discharge(t.Context(), token); code(err) != api.CodeAttestation {
			t.Errorf("%s: %v", c.what, err)
		}
		r.wantLogged(c.told)
	}
}

// TestRevokedBeforehand: a device can be revoked before it was ever seen, and
// gets no challenge.
func TestRevokedBeforehand(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	if _, err := r.root.Revoke(t.Context(), api.RevokeRequest{Kind: api.RevokeDevice, Device: r.machine.holder.Device().String(), Reason: "stolen"}); err != nil {
		t.Fatal(err)
	}
	want := holder.Want{Caveat: r.mint(nil).Missing()[0].CaveatID, Audience: audience}
	if _, err := r.Client("").AttestBegin(t.Context(), r.machine.holder.Begin(want)); code(err) != api.CodeAttestation {
		t.Errorf("%v", err)
	}
	r.wantLogged("step=begin reason=device_revoked")
}

// TestOneKind: a TPM is a device for each kind of endorsement key. Where the
// policy names one, a machine that was revoked does not come back as another.
func TestOneKind(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(p *attest.Policy) { p.EKKinds = []attest.Kind{attest.ECCP384} })
	r.discharge(r.machine, r.mint(nil))
	if _, err := r.root.Revoke(t.Context(), api.RevokeRequest{Kind: api.RevokeDevice, Device: r.machine.holder.Device().String(), Reason: "stolen"}); err != nil {
		t.Fatal(err)
	}
	h, err := holder.Open(holder.Config{TPM: r.machine.tpm.Address, Dir: t.TempDir(), Kind: attest.RSA2048})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	if h.Device() == r.machine.holder.Device() {
		t.Fatal("it is one device, so that this tests nothing")
	}
	want := holder.Want{Audience: audience, Caveat: r.mint(func(req *api.IssueRequest) {
		req.ThirdParty[0].Holder, req.ThirdParty[0].AnyMachine = "", true
	}).Missing()[0].CaveatID}
	if _, err := r.Client("").AttestBegin(t.Context(), h.Begin(want)); code(err) != api.CodeAttestation {
		t.Errorf("%v", err)
	}
	r.wantLogged("reason=ek_type")
}

// TestPolicyChanges: what the operator stores counts from the next challenge on.
func TestPolicyChanges(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	set := func(change func(*attest.Policy)) *api.PolicyInfo {
		t.Helper()
		info, err := r.root.SetPolicy(t.Context(), api.PolicyRequest{Document: policyOf(t, r.machine.holder, change)})
		if err != nil {
			t.Fatal(err)
		}
		return info
	}
	refused := func(what, told string) {
		t.Helper()
		before := len(r.log.String())
		if _, _, err := r.machine.wallet.Discharge(t.Context(), r.mint(nil)); code(err) != api.CodeAttestation {
			t.Errorf("%s: %v", what, err)
		}
		if !strings.Contains(r.log.String()[before:], told) {
			t.Errorf("%s: the operator is not told %q", what, told)
		}
	}
	accepted := func(policy string) {
		t.Helper()
		if status, _, body := r.call(r.discharge(r.machine, r.mint(nil)), r.machine.key); status != 200 || body != policy+" true" {
			t.Errorf("%d %s, want %s", status, body, policy)
		}
	}
	accepted("prod@1")
	r.machine.tpm.Extend(t, 7)
	refused("it boots something else", "reason=pcrs")
	set(nil) // which is accepted now
	accepted("prod@2")
	set(func(p *attest.Policy) { p.EKDeny = []attest.Digest{attest.Digest(r.machine.holder.Device())} })
	refused("it is on the deny list", "reason=ek_denied")
	set(func(p *attest.Policy) { p.Agents = []attest.Software{{Name: "agent", Minimum: "1.1"}} })
	refused("its agent is old", "reason=posture")
	set(func(p *attest.Policy) { p.MinFirmware = 1<<64 - 1 })
	refused("its firmware is old", "reason=firmware")
	set(func(p *attest.Policy) { p.Agents = []attest.Software{{Name: "agent", Minimum: "1.0"}} })
	accepted("prod@6")

	// Its maker is trusted no longer: another bundle of that name, and none.
	stranger := attesttest.Start(t)
	if _, err := r.root.SetRoots(t.Context(), "factory", api.RootsRequest{PEM: string(stranger.Roots)}); err != nil {
		t.Fatal(err)
	}
	refused("another maker", "reason=ek_untrusted")
	if err := r.root.RemoveRoots(t.Context(), "factory"); err != nil {
		t.Fatal(err)
	}
	refused("no maker", "reason=policy")
	if _, err := r.root.SetRoots(t.Context(), "factory", api.RootsRequest{PEM: string(r.machine.tpm.Roots)}); err != nil {
		t.Fatal(err)
	}
	accepted("prod@6")
	if err := r.root.RemovePolicy(t.Context(), "prod"); err != nil {
		t.Fatal(err)
	}
	refused("no policy", "reason=policy")

	// Versions are the authority's to give, and do not come back.
	document := policyOf(t, r.machine.holder, func(p *attest.Policy) { p.Version = 1 })
	if _, err := r.root.SetPolicy(t.Context(), api.PolicyRequest{Document: document}); code(err) != api.CodeInvalid || !strings.Contains(err.Error(), "version") {
		t.Errorf("a version of the operator's own: %v", err)
	}
	if info := set(nil); info.Version != 8 {
		t.Errorf("version %d after six, and a removal", info.Version)
	}
}

// TestEndedCaveat: a caveat can end before its token does, and is answered no
// more.
func TestEndedCaveat(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	list, err := r.root.Dischargers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	own := list.Dischargers[0]
	plain := r.mint(func(req *api.IssueRequest) { req.ThirdParty = nil })
	hung := func(ends time.Time) *capability.Token {
		token, err := plain.AddThirdParty(capability.DischargerPublicKey(own.PublicKey), own.Location,
			capability.ThirdParty{Condition: "attested prod", AnyMachine: true, Expires: ends})
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	if _, _, err := r.machine.wallet.Discharge(t.Context(), hung(time.Now().Add(-time.Second))); code(err) != api.CodeAttestation {
		t.Errorf("%v", err)
	}
	r.wantLogged("the caveat ended at")
	// And no discharge outlives it.
	ends := time.Now().Add(30 * time.Second)
	whole, until, err := r.machine.wallet.Discharge(t.Context(), hung(ends))
	if err != nil || until.After(ends) {
		t.Fatalf("until %v, %v", until, err)
	}
	_, discharges := whole.Root()
	in, err := discharges[0].Inspect()
	if err != nil {
		t.Fatal(err)
	}
	if got, want := in.Caveats[0].Condition, "time-before "+ends.UTC().Truncate(time.Millisecond).Format(time.RFC3339Nano); got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestAttestedOperator: the authority demands attestation of those who call it
// by the same caveat, and of the same proof.
func TestAttestedOperator(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	token := r.mint(func(req *api.IssueRequest) { req.Audience, req.Caveats = api.AdminAudience, []string{"action read"} })
	as := func(token *capability.Token, key pop.Signer) error {
		t.Helper()
		cfg := r.Config(token.Text())
		cfg.Prover = key
		c, err := client.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, err = c.Devices(t.Context(), "", 0)
		return err
	}
	if err := as(token, r.machine.key); code(err) != capability.CodeDischargeRequired {
		t.Errorf("without a discharge: %v", err)
	}
	whole := r.discharge(r.machine, token)
	if err := as(whole, r.machine.key); err != nil {
		t.Fatal(err)
	}
	thief, err := pop.GenerateKey(pop.ES256)
	if err != nil {
		t.Fatal(err)
	}
	if err := as(whole, thief); code(err) != capability.CodeHolderProof {
		t.Errorf("with another key: %v", err)
	}
	if _, err := r.root.Revoke(t.Context(), api.RevokeRequest{Kind: api.RevokeDevice, Device: r.machine.holder.Device().String(), Reason: "stolen"}); err != nil {
		t.Fatal(err)
	}
	if err := as(whole, r.machine.key); code(err) != capability.CodeRevoked {
		t.Errorf("with a revoked device: %v", err)
	}
}

// TestSessionsAllowed: a policy can let a key in memory prove in place of the
// TPM's, and the discharge says so.
func TestSessionsAllowed(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(p *attest.Policy) { p.SessionKeys = true })
	whole := r.discharge(r.machine, r.mint(nil))
	r.want(whole, pop.NewSession(r.machine.key, 0, nil), 200, "")
	r.want(whole, r.machine.key, 200, "")
	stranger, err := pop.GenerateKey(pop.ES256)
	if err != nil {
		t.Fatal(err)
	}
	r.want(whole, pop.NewSession(stranger, 0, nil), 401, capability.CodeHolderProof)
}

// TestOtherDischarger: a caveat's location is nobody's word. Who is not
// configured is not asked, and nobody else in his place.
func TestOtherDischarger(t *testing.T) {
	a := &fake{life: time.Minute}
	w, err := wallet.Open(wallet.Config{Attester: a, Dischargers: map[string]wallet.Discharger{"elsewhere": a}})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.Discharge(t.Context(), a.token(t)); !errors.Is(err, wallet.ErrDischarger) || a.asked != 0 {
		t.Errorf("%v, asked %d times", err, a.asked)
	}
}

// TestSeveralDischarges: a token can need several, and a discharge others, but no
// more than can come with it: nobody is asked for what would be of no use.
func TestSeveralDischarges(t *testing.T) {
	const most = capability.MaxDischarges
	for _, c := range []struct {
		caveats, nested, asked int
		whole                  bool
	}{{1, 0, 1, true}, {3, 0, 3, true}, {1, 1, 2, true}, {2, 1, 3, true}, {1, most - 1, most, true}, {1, most, most, false}, {most + 1, 0, 0, false}} {
		a := &fake{life: time.Minute, caveats: c.caveats, nested: c.nested}
		w, err := wallet.Open(wallet.Config{Attester: a, Dischargers: map[string]wallet.Discharger{"here": a}})
		if err != nil {
			t.Fatal(err)
		}
		whole, _, err := w.Discharge(t.Context(), a.token(t))
		if a.asked != c.asked || (err == nil) != c.whole || c.whole && len(whole.Missing()) != 0 || !c.whole && !errors.Is(err, wallet.ErrTooMany) {
			t.Errorf("%+v: %v, asked %d times", c, err, a.asked)
		}
	}
}

// TestKeptToTheEnd: a discharge is kept for as long as it is good for a while
// yet, and the next one is got before it has ended.
func TestKeptToTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &fake{life: time.Minute}
		w, err := wallet.Open(wallet.Config{Attester: a, Dischargers: map[string]wallet.Discharger{"here": a}})
		if err != nil {
			t.Fatal(err)
		}
		token := a.token(t)
		for _, c := range []struct {
			after time.Duration // since the one before
			asked int
		}{{0, 1}, {45 * time.Second, 1}, {10 * time.Second, 2}} {
			time.Sleep(c.after)
			whole, ends, err := w.Discharge(t.Context(), token)
			if err != nil || len(whole.Missing()) != 0 || !ends.After(time.Now()) {
				t.Errorf("%v, ends in %v", err, time.Until(ends))
			}
			if a.asked != c.asked {
				t.Errorf("asked %d times, want %d", a.asked, c.asked)
			}
		}
	})
}

// TestWatchEndsWithARefusal: a machine that is refused is refused again, however
// often it asks.
func TestWatchEndsWithARefusal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &fake{life: time.Minute, refuse: map[int]bool{2: true}}
		w, err := wallet.Open(wallet.Config{Attester: a, Dischargers: map[string]wallet.Discharger{"here": a}})
		if err != nil {
			t.Fatal(err)
		}
		err = w.Watch(t.Context(), a.token(t), func(*capability.Token, time.Time) error { return nil })
		if code(err) != api.CodeAttestation || a.asked != 2 {
			t.Errorf("%v, asked %d times", err, a.asked)
		}
	})
}
