package pop_test

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats/pop"
)

const (
	testToken  = "writ_AgEBdGhlIHRva2Vu"
	testOrigin = "https://files.corp.example"
)

var epoch = time.Unix(1_800_000_000, 0)

// clock is a clock that a test sets.
type clock struct{ now time.Time }

func (c *clock) Now() time.Time { return c.now }

func verifier(tb testing.TB, c pop.Config) (*pop.Verifier, *clock) {
	tb.Helper()
	at := &clock{epoch}
	c.Now = at.Now
	if len(c.Origins) == 0 && !c.UnsafeTrustHost {
		c.Origins = []string{testOrigin}
	}
	v, err := pop.New(c)
	if err != nil {
		tb.Fatal(err)
	}
	return v, at
}

func key(tb testing.TB, a pop.Algorithm) *pop.Key {
	tb.Helper()
	k, err := pop.GenerateKey(a)
	if err != nil {
		tb.Fatal(err)
	}
	return k
}

// call is the call that proofs are made for here.
func call() pop.Call {
	return pop.Call{Method: "GET", URI: testOrigin + "/files/q3?page=2", Token: testToken, Issued: epoch}
}

func prove(tb testing.TB, s pop.Signer, c pop.Call) string {
	tb.Helper()
	p, err := s.Prove(context.Background(), c)
	if err != nil {
		tb.Fatal(err)
	}
	return p
}

// evidence is the call as its server sees it.
func evidence(proofs ...string) pop.Evidence {
	return pop.Evidence{Proofs: proofs, Token: testToken, Method: "GET", Scheme: "https", Authority: "files.corp.example", Path: "/files/q3"}
}

func ask(v *pop.Verifier, e pop.Evidence, k capability.HolderKey) error {
	return v.Holder(e).Prove(context.Background(), k)
}

func refused(t *testing.T, err error, code capability.Code, detail string) {
	t.Helper()
	if capability.CodeOf(err) != code {
		t.Fatalf("got %v, want %s", err, code)
	}
	if r, ok := errors.AsType[*capability.Refusal](err); detail != "" && (!ok || !strings.Contains(r.Detail, detail)) {
		t.Fatalf("got %v, want a refusal that says %q", err, detail)
	}
}

var algorithms = []pop.Algorithm{pop.Ed25519, pop.ES256}

// signers are every way to prove with a key of either kind.
func signers(tb testing.TB) map[string]pop.Signer {
	out := make(map[string]pop.Signer)
	for _, a := range algorithms {
		k := key(tb, a)
		out[a.String()] = k
		out[a.String()+" session"] = pop.NewSession(k, 0, func() time.Time { return epoch })
	}
	return out
}

func TestProve(t *testing.T) {
	for name, s := range signers(t) {
		t.Run(name, func(t *testing.T) {
			v, _ := verifier(t, pop.Config{})
			proof := prove(t, s, call())
			h := v.Holder(evidence(proof))
			if err := h.Prove(t.Context(), s.HolderKey()); err != nil {
				t.Fatal(err)
			}
			// A recheck of the same call asks again and consumes nothing.
			if err := h.Prove(t.Context(), s.HolderKey()); err != nil {
				t.Fatalf("asked again: %v", err)
			}
			if n := v.Remembered(); n != 1 {
				t.Fatalf("%d proofs remembered, want 1", n)
			}
			refused(t, ask(v, evidence(proof), s.HolderKey()), capability.CodeReplayed, "")
			if err := ask(v, evidence(prove(t, s, call())), s.HolderKey()); err != nil {
				t.Fatalf("the next proof: %v", err)
			}
		})
	}
}

// Each row takes one thing away from a proof that holds.
func TestRefusals(t *testing.T) {
	for name, s := range signers(t) {
		stranger := key(t, pop.ES256)
		for _, c := range []struct {
			name   string
			call   func(*pop.Call)
			seen   func(*pop.Evidence)
			key    func() capability.HolderKey
			detail string
		}{
			{"no proof", nil, func(e *pop.Evidence) { e.Proofs = nil }, nil, ""},
			{"an empty proof", nil, func(e *pop.Evidence) { e.Proofs = []string{""} }, nil, "three parts"},
			{"two proofs", nil, func(e *pop.Evidence) { e.Proofs = append(e.Proofs, e.Proofs[0]) }, nil, "more than one"},
			{"another key", nil, nil, stranger.HolderKey, ""},
			{"the thumbprint as a certificate's", nil, nil, func() capability.HolderKey {
				k := s.HolderKey()
				k.Method = capability.HolderMTLS
				return k
			}, ""},
			{"a method of no kind", nil, nil, func() capability.HolderKey { k := s.HolderKey(); k.Method = 9; return k }, "method"},
			{"another method", nil, func(e *pop.Evidence) { e.Method = "DELETE" }, nil, "method"},
			{"the method in another case", func(c *pop.Call) { c.Method = "get" }, nil, nil, "method"},
			{"another path", nil, func(e *pop.Evidence) { e.Path = "/files/q4" }, nil, "path"},
			{"another origin", func(c *pop.Call) { c.URI = "https://evil.example/files/q3" }, nil, nil, "origin"},
			{"another scheme", func(c *pop.Call) { c.URI = "http://files.corp.example/files/q3" }, nil, nil, "origin"},
			{"another origin that Host names", func(c *pop.Call) { c.URI = "https://evil.example/files/q3" },
				func(e *pop.Evidence) { e.Authority = "evil.example" }, nil, "origin"},
			{"another token", nil, func(e *pop.Evidence) { e.Token += "A" }, nil, "token"},
			{"no ath", func(c *pop.Call) { c.Token = "" }, nil, nil, "token"},
			{"too old", func(c *pop.Call) { c.Issued = epoch.Add(-pop.DefaultMaxAge - time.Second) }, nil, nil, "too old"},
			{"from the future", func(c *pop.Call) { c.Issued = epoch.Add(pop.DefaultSkew + time.Second) }, nil, nil, "future"},
			{"a jti too long", func(c *pop.Call) { c.ID = strings.Repeat("x", 257) }, nil, nil, "jti"},
			{"too large", nil, func(e *pop.Evidence) { e.Proofs[0] += strings.Repeat("A", pop.MaxProof) }, nil, "8 KiB"},
			{"a space after it", nil, func(e *pop.Evidence) { e.Proofs[0] += " " }, nil, ""},
			{"a line break in it", nil, func(e *pop.Evidence) { e.Proofs[0] = e.Proofs[0][:9] + "\n" + e.Proofs[0][9:] }, nil, "base64url"},
			{"a fourth part", nil, func(e *pop.Evidence) { e.Proofs[0] += ".AAAA" }, nil, "three parts"},
		} {
			t.Run(name+"/"+c.name, func(t *testing.T) {
				v, _ := verifier(t, pop.Config{})
				made, k := call(), s.HolderKey()
				if c.call != nil {
					c.call(&made)
				}
				e := evidence(prove(t, s, made))
				if c.seen != nil {
					c.seen(&e)
				}
				if c.key != nil {
					k = c.key()
				}
				refused(t, ask(v, e, k), capability.CodeHolderProof, c.detail)
				if v.Remembered() != 0 {
					t.Fatal("a proof that was refused takes room")
				}
			})
		}
	}
}

// The edges of the window are accepted: a proof is good for the second it names.
func TestWindow(t *testing.T) {
	k := key(t, pop.Ed25519)
	for _, c := range []struct {
		issued time.Duration
		ok     bool
	}{
		{-31 * time.Second, false}, {-30 * time.Second, true}, {0, true}, {5 * time.Second, true}, {6 * time.Second, false},
	} {
		v, _ := verifier(t, pop.Config{})
		made := call()
		made.Issued = epoch.Add(c.issued)
		if err := ask(v, evidence(prove(t, k, made)), k.HolderKey()); (err == nil) != c.ok {
			t.Errorf("issued %v from now: %v", c.issued, err)
		}
	}
}

// Until a proof is too old, it is remembered; and then it is refused for its age.
func TestReplayedForAsLongAsItLives(t *testing.T) {
	v, at := verifier(t, pop.Config{})
	k := key(t, pop.Ed25519)
	made := call()
	made.Issued = epoch.Add(pop.DefaultSkew)
	proof := prove(t, k, made)
	if err := ask(v, evidence(proof), k.HolderKey()); err != nil {
		t.Fatal(err)
	}
	for age := time.Duration(0); age < 50*time.Second; age += 100 * time.Millisecond {
		at.now = epoch.Add(age)
		if ask(v, evidence(proof), k.HolderKey()) == nil {
			t.Fatalf("accepted again %v later", age)
		}
	}
}

func TestFullCacheRefuses(t *testing.T) {
	v, at := verifier(t, pop.Config{MaxReplays: 64})
	k := key(t, pop.Ed25519)
	accepted := 0
	for range 64 {
		err := ask(v, evidence(prove(t, k, call())), k.HolderKey())
		if err == nil {
			accepted++
			continue
		}
		refused(t, err, capability.CodeUnavailable, "")
	}
	if accepted != 4 {
		t.Fatalf("one key was let through %d times, want its sixteenth of 64", accepted)
	}
	// Another key, of another sixteenth, still gets through.
	for {
		other := key(t, pop.Ed25519)
		if other.HolderKey().Thumbprint[0]%16 == k.HolderKey().Thumbprint[0]%16 {
			continue
		}
		if err := ask(v, evidence(prove(t, other, call())), other.HolderKey()); err != nil {
			t.Fatal(err)
		}
		break
	}
	at.now = epoch.Add(time.Minute)
	made := call()
	made.Issued = at.now
	if err := ask(v, evidence(prove(t, k, made)), k.HolderKey()); err != nil {
		t.Fatalf("when the old ones are dead: %v", err)
	}
}

// Ten thousand garbage proofs, none of which costs memory or a signature check.
func TestGarbage(t *testing.T) {
	v, _ := verifier(t, pop.Config{MaxReplays: 16})
	k := key(t, pop.Ed25519)
	good := prove(t, k, call())
	for i := range 10_000 {
		b := []byte(good)
		h := sha256.Sum256(fmt.Append(nil, i))
		b[(int(h[0])|int(h[1])<<8)%len(b)] ^= 1 + h[2]%127
		if string(b) == good {
			continue
		}
		if ask(v, evidence(string(b)), k.HolderKey()) == nil {
			t.Fatalf("accepted: %s", b)
		}
	}
	if v.Remembered() != 0 {
		t.Fatal("garbage takes room")
	}
	if err := ask(v, evidence(good), k.HolderKey()); err != nil {
		t.Fatalf("the honest holder: %v", err)
	}
}

// A holder caveat of several keys is satisfied by any of them, and the proof's
// signature is checked for the one that it is of.
func TestSeveralKeys(t *testing.T) {
	v, _ := verifier(t, pop.Config{})
	a, b := key(t, pop.Ed25519), key(t, pop.ES256)
	h := v.Holder(evidence(prove(t, b, call())))
	refused(t, h.Prove(t.Context(), a.HolderKey()), capability.CodeHolderProof, "")
	if err := h.Prove(t.Context(), b.HolderKey()); err != nil {
		t.Fatal(err)
	}
	refused(t, h.Prove(t.Context(), a.HolderKey()), capability.CodeHolderProof, "")
}

func TestConfig(t *testing.T) {
	for _, c := range []pop.Config{
		{},
		{Origins: []string{"files.corp.example"}},
		{Origins: []string{"https://files.corp.example/api"}},
		{Origins: []string{"https://u@files.corp.example"}},
		{Origins: []string{testOrigin}, UnsafeTrustHost: true},
		{Origins: []string{testOrigin}, MaxAge: time.Hour},
		{Origins: []string{testOrigin}, MaxAge: -1},
		{Origins: []string{testOrigin}, Skew: -1},
		{Origins: []string{testOrigin}, MaxReplays: -16},
	} {
		if _, err := pop.New(c); err == nil {
			t.Errorf("%+v is accepted", c)
		}
	}
}

// jws is a proof made by hand: header, payload, and a signature by k's private key.
func jws(tb testing.TB, sign func([]byte) []byte, header, payload string) string {
	tb.Helper()
	m := base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + base64.RawURLEncoding.EncodeToString([]byte(payload))
	return m + "." + base64.RawURLEncoding.EncodeToString(sign([]byte(m)))
}

// claims are those of a proof that holds, with some replaced; null takes one out.
func claims(tb testing.TB, replace string) string {
	tb.Helper()
	ath := sha256.Sum256([]byte(testToken))
	m := map[string]any{"htm": "GET", "htu": testOrigin + "/files/q3", "iat": epoch.Unix(), "jti": "a-fresh-id",
		"ath": base64.RawURLEncoding.EncodeToString(ath[:])}
	if replace != "" {
		var r map[string]any
		if err := json.Unmarshal([]byte(replace), &r); err != nil {
			tb.Fatal(err)
		}
		for k, v := range r {
			if m[k] = v; v == nil {
				delete(m, k)
			}
		}
	}
	b, err := json.Marshal(m)
	if err != nil {
		tb.Fatal(err)
	}
	return string(b)
}
