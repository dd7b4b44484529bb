package guard_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/capability/guard"
	"github.com/writ-dev/writ/capability/guard/internal/guardtest"
	"github.com/writ-dev/writ/caveats"
)

var readFiles = guard.Route{Action: "read", Resource: "files/{path...}"}

// call runs f as the handler of a guarded GET /files/q3.
func call(t *testing.T, a *guardtest.Authority, credential guard.Credential, f http.HandlerFunc, opts ...guard.Option) *httptest.ResponseRecorder {
	t.Helper()
	g := newGuard(t, a, opts...)
	g.HandleFunc("GET /files/{path...}", readFiles, f)
	r := httptest.NewRequest("GET", "/files/q3", nil)
	r.Header.Set("Authorization", "Bearer "+credential.Token)
	for _, d := range credential.Discharges {
		r.Header.Add("Writ-Discharges", d)
	}
	w := httptest.NewRecorder()
	build(t, g).ServeHTTP(w, r)
	return w
}

// grantOf is the Grant of a guarded call with the token.
func grantOf(t *testing.T, a *guardtest.Authority, credential guard.Credential, opts ...guard.Option) *guard.Grant {
	t.Helper()
	var grant *guard.Grant
	w := call(t, a, credential, func(_ http.ResponseWriter, r *http.Request) { grant = guard.FromContext(r.Context()) }, opts...)
	if grant == nil {
		t.Fatalf("refused: %s", w.Body)
	}
	return grant
}

func code(t *testing.T, err error, want capability.Code) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%v, want %s", err, want)
	}
}

func TestNarrow(t *testing.T) {
	a := guardtest.For(t)
	token := a.Token(t, "action read write", "resource files/**")
	grant := grantOf(t, a, guard.Credential{Token: token.Text()})
	narrow, err := grant.Narrow("action read", "resource files/q3")
	if err != nil {
		t.Fatal(err)
	}
	verify := func(action string, resource ...string) error {
		return a.Verifier.VerifyText(t.Context(), new(capability.Grant), narrow.Text(),
			&capability.Request{Now: time.Now(), Action: action, Resource: resource})
	}
	if err := verify("read", "files", "q3"); err != nil {
		t.Error(err)
	}
	code(t, verify("write", "files", "q3"), capability.CodeActionDenied)
	code(t, verify("read", "files", "q4"), capability.CodeResourceDenied)
	a.RevokeBranch(t, token)
	code(t, verify("read", "files", "q3"), capability.CodeRevoked)

	if _, err := grant.Narrow(strings.Repeat("x", capability.MaxTokenSize)); err == nil {
		t.Error("a token over its bound")
	}
}

func TestNotForwardable(t *testing.T) {
	a := guardtest.For(t)
	ours := capability.HolderKey{Method: capability.HolderMTLS, Thumbprint: [32]byte{1}}
	theirs := capability.HolderKey{Method: capability.HolderMTLS, Thumbprint: [32]byte{2}}
	proof := guard.Holder(func(*http.Request, string) capability.HolderProof { return anyKey{} })
	mustHold := func(keys ...capability.HolderKey) string {
		c, err := caveats.Holder(keys...)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	for _, c := range []struct {
		name        string
		conditions  []string
		forwardable bool
	}{
		{"no holder", []string{"action read"}, true},
		{"another's key", []string{mustHold(theirs)}, false},
		{"our key", []string{mustHold(ours)}, true},
		{"our key among several", []string{mustHold(theirs, ours)}, true},
		{"our key in one of two caveats", []string{mustHold(theirs, ours), mustHold(theirs)}, false},
	} {
		grant := grantOf(t, a, guard.Credential{Token: a.Token(t, c.conditions...).Text()}, proof, guard.ForwardAs(ours))
		r := httptest.NewRequest("GET", "https://next.example/", nil)
		_, narrowErr := grant.Narrow("action read")
		_, clientErr := grant.Client(nil, "action read")
		for _, err := range []error{narrowErr, clientErr, grant.Forward(r, "action read")} {
			if c.forwardable && err != nil {
				t.Errorf("%s: %v", c.name, err)
			} else if !c.forwardable && !errors.Is(err, capability.CodeNotForwardable) {
				t.Errorf("%s: %v, want not_forwardable", c.name, err)
			}
		}
		if sent := r.Header.Get("Authorization") != ""; sent != c.forwardable {
			t.Errorf("%s: the request carries a credential: %v", c.name, sent)
		}
	}
}

// TestBoundRequestIsNotForwardable: what is good for one request is no good for
// the next hop's.
func TestBoundRequestIsNotForwardable(t *testing.T) {
	a := guardtest.For(t)
	m, err := caveats.IncomingMessage(httptest.NewRequest("GET", "/files/q3", nil), sha256.Sum256(nil))
	if err != nil {
		t.Fatal(err)
	}
	grant := grantOf(t, a, guard.Credential{Token: a.Token(t, caveats.Request(caveats.RequestHash(m))).Text()})
	_, err = grant.Narrow("action read")
	code(t, err, capability.CodeNotForwardable)
}

// anyKey proves every key.
type anyKey struct{}

func (anyKey) Prove(context.Context, capability.HolderKey) error { return nil }

// approval is a token with a third-party caveat, and its discharge.
func approval(t *testing.T, a *guardtest.Authority) (token, discharge *capability.Token) {
	t.Helper()
	key, err := capability.NewDischargerKey([32]byte{7})
	if err != nil {
		t.Fatal(err)
	}
	token, err = a.Token(t, "action read").AddThirdParty(key.Public(), "https://approve.example",
		capability.ThirdParty{Condition: "approved payments"})
	if err != nil {
		t.Fatal(err)
	}
	opened, err := key.OpenCaveat(token.Missing()[0].CaveatID)
	if err != nil {
		t.Fatal(err)
	}
	if discharge, err = opened.Discharge("action read"); err != nil {
		t.Fatal(err)
	}
	return token, discharge
}

// TestDischarges: they may come in the second header, and go on in it.
func TestDischarges(t *testing.T) {
	a := guardtest.For(t)
	token, discharge := approval(t, a)
	ok := func(http.ResponseWriter, *http.Request) {}
	if w := call(t, a, guard.Credential{Token: token.Text()}, ok); w.Code != 401 || !strings.Contains(w.Body.String(), "discharge_required") {
		t.Errorf("without the discharge: %d %s", w.Code, w.Body)
	}
	if w := call(t, a, guard.Credential{Token: token.Text(), Discharges: []string{discharge.Text() + " " + discharge.Text()}}, ok); w.Code != 401 {
		t.Errorf("the discharge twice: %d", w.Code)
	}
	grant := grantOf(t, a, guard.Credential{Token: token.Text(), Discharges: []string{discharge.Text()}})
	if err := grant.Recheck(t.Context()); err != nil {
		t.Errorf("recheck: %v", err)
	}
	r := httptest.NewRequest("GET", "https://next.example/files/q3", nil)
	if err := grant.Forward(r, "resource files/q3"); err != nil {
		t.Fatal(err)
	}
	if got := r.Header.Values(guard.DischargesHeader); len(got) != 1 || got[0] != discharge.Text() {
		t.Errorf("discharges forwarded: %d", len(got))
	}
	forwarded := guard.Credential{Token: strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "), Discharges: r.Header.Values(guard.DischargesHeader)}
	if w := call(t, a, forwarded, ok); w.Code != 200 {
		t.Errorf("the next hop refuses: %s", w.Body)
	}
	whole, err := grant.Narrow("resource files/q3")
	if err != nil {
		t.Fatal(err)
	}
	if w := call(t, a, guard.Credential{Token: whole.Text()}, ok); w.Code != 200 {
		t.Errorf("the next hop refuses it in one text: %s", w.Body)
	}
}

// TestWatch: a stream that works under Watch ends when its token is revoked,
// no later than the interval.
func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := guardtest.For(t)
		token := a.Token(t, "action read", "max-calls 1")
		grant := grantOf(t, a, guard.Credential{Token: token.Text()})
		ctx, cancel := grant.Watch(t.Context(), time.Second)
		defer cancel()
		<-time.After(10 * time.Second) // of the bubble's clock
		if err := ctx.Err(); err != nil {
			t.Fatalf("ended early, by %v: a recheck spends nothing", context.Cause(ctx))
		}
		a.RevokeBranch(t, token)
		start := time.Now()
		<-ctx.Done()
		if d := time.Since(start); d > time.Second {
			t.Errorf("ended %v after the revocation", d)
		}
		code(t, context.Cause(ctx), capability.CodeRevoked)

		// And by itself when the token expires.
		grant = grantOf(t, a, guard.Credential{Token: a.Token(t).Text()})
		ctx, cancel = grant.Watch(t.Context(), time.Second)
		defer cancel()
		start = time.Now()
		<-ctx.Done()
		code(t, context.Cause(ctx), capability.CodeExpired)
		if d := time.Since(start); d < 5*time.Minute || d > 5*time.Minute+time.Second {
			t.Errorf("ended after %v", d)
		}
	})
	ctx, cancel := (*guard.Grant)(nil).Watch(t.Context(), time.Second)
	defer cancel()
	if context.Cause(ctx) != guard.ErrNoGrant {
		t.Errorf("without a grant: %v", context.Cause(ctx))
	}
}

// TestNoGrant: a handler that nothing guards cannot forward.
func TestNoGrant(t *testing.T) {
	grant := guard.FromContext(t.Context())
	_, narrowErr := grant.Narrow()
	_, clientErr := grant.Client(nil)
	for _, err := range []error{narrowErr, clientErr, grant.Recheck(t.Context()), grant.Forward(httptest.NewRequest("GET", "/", nil))} {
		if !errors.Is(err, guard.ErrNoGrant) {
			t.Errorf("%v, want ErrNoGrant", err)
		}
	}
	defer func() {
		if recover() == nil {
			t.Error("an unguarded handler was told a subject")
		}
	}()
	_ = grant.Subject()
}

// TestKeptGrants: what one call's Grant says never changes to another's, even
// when it is kept while others are judged.
func TestKeptGrants(t *testing.T) {
	a := guardtest.For(t)
	g := newGuard(t, a)
	kept := make(chan *guard.Grant, 64)
	g.HandleFunc("GET /files/{path...}", readFiles, func(_ http.ResponseWriter, r *http.Request) {
		kept <- guard.FromContext(r.Context())
	})
	h := build(t, g)
	var wg sync.WaitGroup
	ids := make(map[capability.TokenID]capability.BranchID)
	for range 32 {
		token := a.Token(t, "action read")
		in, err := token.Inspect()
		if err != nil {
			t.Fatal(err)
		}
		ids[in.Identifier.ID] = token.Branch()
		wg.Go(func() {
			r := httptest.NewRequest("GET", "/files/q3", nil)
			r.Header.Set("Authorization", "Bearer "+token.Text())
			h.ServeHTTP(httptest.NewRecorder(), r)
		})
	}
	wg.Wait()
	close(kept)
	for grant := range kept {
		branch, ok := ids[grant.ID()]
		if !ok || branch != grant.Branch() {
			t.Errorf("grant of %s: unknown, twice, or another's branch", grant.ID())
		}
		delete(ids, grant.ID())
		if err := grant.Recheck(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if len(ids) != 0 {
		t.Errorf("%d grants are missing", len(ids))
	}
}

func TestRedaction(t *testing.T) {
	a := guardtest.For(t)
	text := a.Token(t).Text()
	grant := grantOf(t, a, guard.Credential{Token: text})
	cred := guard.Credential{Token: text}
	var b strings.Builder
	slog.New(slog.NewTextHandler(&b, nil)).Info("x", "grant", grant, "credential", cred)
	all := fmt.Sprintf("%v %+v %#v %s %v %+v %#v", grant, grant, grant, grant, cred, cred, cred) + b.String()
	if strings.Contains(all, text[5:]) || strings.Contains(all, "writ_") {
		t.Errorf("printed: %s", all)
	}
}

// TestLogObligation: the guard writes what a log caveat demands, or refuses.
func TestLogObligation(t *testing.T) {
	a := guardtest.For(t)
	for _, c := range []struct {
		level         string
		want, without []string
	}{
		{"minimal", []string{"capability used", "GET /files/{path...}"}, []string{"agent-42", "files/q3"}},
		{"metadata", []string{"agent-42", `"action":"read"`, `"resource":"files/q3"`, "192.0.2.1"}, []string{"secret"}},
		{"full", []string{"agent-42", `"argument q":"\"secret\\nline\""`}, nil},
	} {
		token := a.Token(t, "log "+c.level)
		var logged journal
		g := newGuard(t, a, guard.Logger(logged.logger()))
		before := ""
		g.HandleFunc("GET /files/{path...}", guard.Route{Action: "read", Resource: "files/{path...}",
			Query: map[string]capability.Kind{"q": capability.KindString}},
			func(http.ResponseWriter, *http.Request) { before = logged.String() })
		r := httptest.NewRequest("GET", "/files/q3?q=secret%0Aline", nil)
		r.Header.Set("Authorization", "Bearer "+token.Text())
		build(t, g).ServeHTTP(httptest.NewRecorder(), r)
		for _, want := range append(c.want, token.Branch().String()) {
			if !strings.Contains(before, want) {
				t.Errorf("%s: no %q in the log before the handler ran: %s", c.level, want, before)
			}
		}
		for _, without := range c.without {
			if strings.Contains(before, without) {
				t.Errorf("%s: %q in %s", c.level, without, before)
			}
		}
	}

	deaf := guard.Logger(slog.New(slog.NewTextHandler(io.Discard, &slog.HandlerOptions{Level: slog.LevelError})))
	w := call(t, a, guard.Credential{Token: a.Token(t, "log minimal").Text()}, func(http.ResponseWriter, *http.Request) {
		t.Error("served without the record")
	}, deaf)
	if w.Code != 403 || !strings.Contains(w.Body.String(), "obligation") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

func TestClientAddress(t *testing.T) {
	a := guardtest.For(t)
	proxies := guard.TrustedProxies(netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8"))
	for _, c := range []struct {
		remote    string
		forwarded []string
		want      string
	}{
		{"192.0.2.1:80", nil, "192.0.2.1"},
		{"192.0.2.1:80", []string{"198.51.100.7"}, "192.0.2.1"}, // not a proxy of ours
		{"10.0.0.1:80", nil, "10.0.0.1"},
		{"10.0.0.1:80", []string{"198.51.100.7"}, "198.51.100.7"},
		{"10.0.0.1:80", []string{"203.0.113.9, 198.51.100.7"}, "198.51.100.7"}, // the left one is hearsay
		{"10.0.0.1:80", []string{"203.0.113.9", "198.51.100.7,10.2.3.4"}, "198.51.100.7"},
		{"10.0.0.1:80", []string{"203.0.113.9, 10.1.1.1", "10.2.3.4"}, "203.0.113.9"},
		{"[fd00::1]:80", []string{"2001:db8::7"}, "2001:db8::7"},
		{"[::ffff:10.0.0.1]:80", []string{"::ffff:198.51.100.7"}, "198.51.100.7"},
		{"10.0.0.1:80", []string{"[2001:db8::7]:443"}, "2001:db8::7"},
		{"10.0.0.1:80", []string{"203.0.113.9, rubbish"}, "invalid IP"},
		{"10.0.0.1:80", []string{"203.0.113.9,"}, "invalid IP"},
		{"@", nil, "invalid IP"},
	} {
		g := newGuard(t, a, proxies)
		got := ""
		g.HandleFunc("GET /files/{path...}", readFiles, func(_ http.ResponseWriter, r *http.Request) {
			got = guard.FromContext(r.Context()).Request().Client.String()
		})
		r := httptest.NewRequest("GET", "/files/q3", nil)
		r.RemoteAddr = c.remote
		r.Header["X-Forwarded-For"] = c.forwarded
		r.Header.Set("Authorization", "Bearer "+a.Token(t).Text())
		build(t, g).ServeHTTP(httptest.NewRecorder(), r)
		if got != c.want {
			t.Errorf("%s %q: %s, want %s", c.remote, c.forwarded, got, c.want)
		}
	}
}
