package authority

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/state"
	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats"
)

// wantCode fails unless err carries the code.
func wantCode(t testing.TB, err error, code api.Code) {
	t.Helper()
	if !errors.Is(err, code) {
		t.Fatalf("got %v, want %v", err, code)
	}
}

func newRequest(a *Authority) capability.TokenID {
	var b [10]byte
	if err := a.random(b[:]); err != nil {
		panic(err)
	}
	return capability.NewTokenID(a.now(), b)
}

func parse(t testing.TB, text string) *capability.Token {
	t.Helper()
	tok, err := capability.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func TestIssue(t *testing.T) {
	a, root := openNode(t, testConfig(t))
	req := issueRequest("action read", "max-calls 3")
	req.Agent = &api.Agent{Name: "planner", Version: "1.2"}
	req.TTLSeconds = 60
	resp, err := a.Issue(t.Context(), Call{Caller: root}, req)
	if err != nil {
		t.Fatal(err)
	}
	v, err := a.Verify(t.Context(), root, &api.VerifyRequest{Set: parse(t, resp.Token).Bytes()})
	if err != nil || len(v.Branches) != 3 || v.Branches[2] != resp.Branch {
		t.Fatalf("%+v, %v", v, err)
	}
	if life := resp.NotAfter.Sub(resp.ID.Time()); life != time.Minute {
		t.Errorf("lives for %v", life)
	}
	info, err := a.Token(t.Context(), resp.ID)
	if err != nil {
		t.Fatal(err)
	}
	if info.Subject != "agent-42" || info.IssuedBy != "root" || info.Agent.Version != "1.2" || info.Revoked || info.Branch != resp.Branch ||
		!slices.Equal(info.Caveats, []string{"action read", "max-calls 3"}) {
		t.Errorf("registry says %+v", info)
	}
	list, err := a.Tokens(t.Context(), TokenQuery{Subject: "agent-42"})
	if err != nil || len(list.Tokens) != 1 || list.Tokens[0].ID != resp.ID || list.Next != "" {
		t.Errorf("%+v, %v", list, err)
	}
}

// TestRetryGetsTheSameToken, byte for byte, and only who asked for it.
func TestRetryGetsTheSameToken(t *testing.T) {
	a, root := openNode(t, testConfig(t))
	call := Call{Caller: root, Request: newRequest(a), Body: [32]byte{1}}
	first, err := a.Issue(t.Context(), call, issueRequest("action read"))
	if err != nil {
		t.Fatal(err)
	}
	again, err := a.Issue(t.Context(), call, issueRequest("action read"))
	if err != nil || again.Token != first.Token || *again != *first {
		t.Fatalf("a retry got another token: %v", err)
	}
	other := call
	other.Body = [32]byte{2}
	_, err = a.Issue(t.Context(), other, issueRequest("action write"))
	wantCode(t, err, api.CodeConflict)
	old := call
	old.Request = capability.NewTokenID(a.now()-state.RequestWindow.Milliseconds()-1000, [10]byte{})
	_, err = a.Issue(t.Context(), old, issueRequest("action read"))
	wantCode(t, err, api.CodeRequestExpired)
}

func TestIssueRefuses(t *testing.T) {
	a, root := openNode(t, testConfig(t))
	for name, c := range map[string]struct {
		change func(*api.IssueRequest)
		code   api.Code
	}{
		"no owner":          {func(r *api.IssueRequest) { r.Owner = "" }, api.CodeInvalid},
		"no purpose":        {func(r *api.IssueRequest) { r.Purpose = "" }, api.CodeInvalid},
		"no audience":       {func(r *api.IssueRequest) { r.Audience = "" }, api.CodeInvalid},
		"a long owner":      {func(r *api.IssueRequest) { r.Owner = strings.Repeat("x", 501) }, api.CodeInvalid},
		"a control char":    {func(r *api.IssueRequest) { r.Purpose = "a\x1b[31m" }, api.CodeInvalid},
		"16 minutes":        {func(r *api.IssueRequest) { r.TTLSeconds = 16 * 60 }, api.CodeInvalid},
		"a negative life":   {func(r *api.IssueRequest) { r.TTLSeconds = -1 }, api.CodeInvalid},
		"an unknown caveat": {func(r *api.IssueRequest) { r.Caveats = []string{"frobnicate"} }, api.CodeInvalid},
		"a bad caveat":      {func(r *api.IssueRequest) { r.Caveats = []string{"max-calls -1"} }, api.CodeInvalid},
		"49 caveats":        {func(r *api.IssueRequest) { r.Caveats = slices.Repeat([]string{"action read"}, 49) }, capability.CodeTooLarge},
		"5 budgets":         {func(r *api.IssueRequest) { r.Caveats = slices.Repeat([]string{"max-calls 1"}, 5) }, capability.CodeTooLarge},
		"no such discharger": {func(r *api.IssueRequest) {
			r.ThirdParty = []api.ThirdPartyRequest{{Discharger: "x", Condition: "approved a b"}}
		}, api.CodeInvalid},
		"the system":      {func(r *api.IssueRequest) { r.Subject = "system" }, api.CodeInvalid},
		"a service":       {func(r *api.IssueRequest) { r.Audience, r.Subject = "writ", "service:x" }, api.CodeInvalid},
		"another root":    {func(r *api.IssueRequest) { r.Audience, r.Subject = "writ", "root" }, api.CodeInvalid},
		"31 days of writ": {func(r *api.IssueRequest) { r.Audience, r.TTLSeconds = "writ", 31*24*3600 }, api.CodeInvalid},
	} {
		before := a.Metrics().Tokens
		req := issueRequest("action read")
		c.change(req)
		if _, err := a.Issue(t.Context(), Call{Caller: root}, req); !errors.Is(err, c.code) {
			t.Errorf("%s: got %v, want %v", name, err, c.code)
		}
		if a.Metrics().Tokens != before {
			t.Errorf("%s: a token was registered", name)
		}
	}
	_, err := a.Issue(t.Context(), Call{Caller: Caller{Name: "stranger"}}, issueRequest())
	wantCode(t, err, api.CodeUnauthorized)
}

// TestNarrowCredentialIssuesNoBroadOne: whoever may only issue cannot issue
// himself a credential that may more, and what he issues dies with his own.
func TestNarrowCredentialIssuesNoBroadOne(t *testing.T) {
	a, root := openNode(t, testConfig(t))
	narrow, err := root.Credential.Attenuate("action issue read", "resource audiences/** tokens")
	if err != nil {
		t.Fatal(err)
	}
	var g capability.Grant
	err = a.AdminVerifier().VerifyText(t.Context(), &g, narrow.Text(), &capability.Request{
		Now: time.Now(), Action: "issue", Resource: []string{"audiences", "writ", "tokens"},
	})
	if err != nil {
		t.Fatal(err)
	}
	caller := Caller{Name: g.Subject(), Token: g.ID(), Branches: g.AppendBranches(nil), Audience: g.Audience(), Credential: g.Token()}
	req := issueRequest()
	req.Audience, req.Subject = "writ", "helper"
	resp, err := a.Issue(t.Context(), Call{Caller: caller}, req)
	if err != nil {
		t.Fatal(err)
	}
	check := func(action string, resource ...string) error {
		return a.AdminVerifier().VerifyText(t.Context(), &g, resp.Token, &capability.Request{Now: time.Now(), Action: action, Resource: resource})
	}
	if err := check("read", "tokens"); err != nil {
		t.Error(err)
	}
	wantCode(t, check("revoke", "tokens"), capability.CodeActionDenied)
	wantCode(t, check("read", "audit"), capability.CodeResourceDenied)
	if _, err := a.Revoke(t.Context(), Call{Caller: root}, &api.RevokeRequest{
		Kind: api.RevokeBranch, Token: caller.Token.String(), Branch: narrow.Branch().String(), Reason: "left us",
	}); err != nil {
		t.Fatal(err)
	}
	wantCode(t, check("read", "tokens"), capability.CodeRevoked)
	_, err = a.Issue(t.Context(), Call{Caller: caller}, issueRequest())
	wantCode(t, err, capability.CodeRevoked)

	hidden := caller
	hidden.Credential = nil
	_, err = a.Issue(t.Context(), Call{Caller: hidden}, req)
	wantCode(t, err, capability.CodeActionDenied)
}

// joined makes a service and returns it as a caller.
func joined(t testing.TB, a *Authority, root Caller, req *api.ServiceRequest) Caller {
	t.Helper()
	added, err := a.AddService(t.Context(), Call{Caller: root}, req)
	if err != nil {
		t.Fatal(err)
	}
	cred, err := a.Join(t.Context(), Call{}, &api.JoinRequest{Name: req.Name, JoinSecret: added.JoinSecret})
	if err != nil {
		t.Fatal(err)
	}
	var g capability.Grant
	if err := a.AdminVerifier().VerifyText(t.Context(), &g, cred.Token, &capability.Request{
		Now: time.Now(), Action: "renew", Resource: []string{"services", "self"},
	}); err != nil {
		t.Fatal(err)
	}
	return Caller{Name: g.Subject(), Token: g.ID(), Branches: g.AppendBranches(nil), Audience: g.Audience(), Credential: g.Token()}
}

func TestDerive(t *testing.T) {
	a, root := openNode(t, testConfig(t))
	svc := joined(t, a, root, &api.ServiceRequest{Name: "files", Audiences: []string{"corp"}, Derive: []string{"next"}})
	holder := capability.HolderKey{Method: capability.HolderDPoP, Thumbprint: [32]byte{1}}
	held, err := caveats.Holder(holder)
	if err != nil {
		t.Fatal(err)
	}
	soon := caveats.TimeBefore(time.Now().Add(time.Minute).Truncate(time.Second))
	issued, err := a.Issue(t.Context(), Call{Caller: root}, issueRequest("action read write", held))
	if err != nil {
		t.Fatal(err)
	}
	parent, err := parse(t, issued.Token).Attenuate("branch helper", "action read", soon)
	if err != nil {
		t.Fatal(err)
	}
	derive := func(tok *capability.Token, audience string) (*api.TokenResponse, error) {
		return a.Derive(t.Context(), Call{Caller: svc}, &api.DeriveRequest{Token: tok.Text(), Audience: audience, Caveats: []string{"resource q3"}})
	}
	child, err := derive(parent, "next")
	if err != nil {
		t.Fatal(err)
	}
	info, err := a.Token(t.Context(), child.ID)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"action read write", "action read", soon, "resource q3"}; !slices.Equal(info.Caveats, want) {
		t.Errorf("caveats %q, want %q", info.Caveats, want)
	}
	if info.Audience != "next" || info.Subject != "agent-42" || *info.Parent != issued.ID || !slices.Equal(info.Actors, []string{"files"}) {
		t.Errorf("%+v", info)
	}
	if child.NotAfter.After(time.Now().Add(time.Minute)) {
		t.Error("the child outlives its parent's time-before")
	}

	_, err = derive(parent, "elsewhere")
	wantCode(t, err, capability.CodeResourceDenied)
	_, err = a.Derive(t.Context(), Call{Caller: root}, &api.DeriveRequest{Token: parent.Text(), Audience: "next"})
	wantCode(t, err, capability.CodeActionDenied)
	_, err = derive(parse(t, child.Token), "next")
	wantCode(t, err, capability.CodeUnknownKey) // not for an audience of this service
	budgeted, err := parent.Attenuate("max-calls 3")
	if err != nil {
		t.Fatal(err)
	}
	_, err = derive(budgeted, "next")
	wantCode(t, err, capability.CodeNotForwardable)
	forged := parent.Bytes()
	forged[len(forged)-1] ^= 1
	bad, err := capability.Decode(forged)
	if err != nil {
		t.Fatal(err)
	}
	_, err = derive(bad, "next")
	wantCode(t, err, capability.CodeBadSignature)

	// What the holder revokes, reaches the child.
	resp, err := a.RevokeSelf(t.Context(), Call{}, &api.SelfRevokeRequest{Token: parent.Text(), Reason: "leaked"})
	if err != nil || resp.Kind != api.RevokeBranch || resp.Reached != 1 {
		t.Fatalf("%+v, %v", resp, err)
	}
	_, err = a.Verify(t.Context(), root, &api.VerifyRequest{Set: parse(t, child.Token).Bytes()})
	wantCode(t, err, capability.CodeRevoked)
	_, err = derive(parent, "next")
	wantCode(t, err, capability.CodeRevoked)
	if _, err := derive(parse(t, issued.Token), "next"); err != nil {
		t.Errorf("the branch's sibling: %v", err)
	}
}

// TestDeriveNeedsARegisteredToken: one who stole an audience's key can mint for
// it, and gets nothing for another audience with that.
func TestDeriveNeedsARegisteredToken(t *testing.T) {
	a, root := openNode(t, testConfig(t))
	svc := joined(t, a, root, &api.ServiceRequest{Name: "files", Audiences: []string{"corp"}, Derive: []string{"next"}})
	set, err := a.Keys(t.Context(), svc, []string{"corp"})
	if err != nil || len(set.Keys) != 1 {
		t.Fatal(set, err)
	}
	stolen := capability.NewRootKey([32]byte(set.Keys[0].Secret))
	issued, err := a.Issue(t.Context(), Call{Caller: root}, issueRequest("action read"))
	if err != nil {
		t.Fatal(err)
	}
	mint := func(id capability.TokenID, conditions ...string) string {
		tok, err := capability.Mint(stolen, capability.Identifier{
			Epoch: set.Keys[0].Epoch, ID: id, NotAfter: issued.NotAfter, Audience: "corp", Subject: "agent-42",
		}, conditions...)
		if err != nil {
			t.Fatal(err)
		}
		return tok.Text()
	}
	for name, text := range map[string]string{
		"another id":                 mint(capability.NewTokenID(a.now(), [10]byte{9}), "action read"),
		"the id of a registered one": mint(issued.ID),
		"and more caveats":           mint(issued.ID, "action write"),
	} {
		_, err := a.Derive(t.Context(), Call{Caller: svc}, &api.DeriveRequest{Token: text, Audience: "next"})
		if !errors.Is(err, capability.CodeUnregistered) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
