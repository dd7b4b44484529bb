package capability_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/writ-dev/writ/capability"
)

// now is the moment of every test's request.
var now = time.Date(2026, 11, 24, 8, 0, 0, 0, time.UTC)

// keyring has one key for every audience, epoch and generation.
type keyring struct{ key *capability.RootKey }

func (k keyring) Key([]byte, uint32, uint32) *capability.RootKey { return k.key }

func testKey() *capability.RootKey { return capability.NewRootKey([32]byte{1, 2, 3}) }

func testIdentifier() capability.Identifier {
	return capability.Identifier{
		Epoch: 7, Generation: 2,
		ID:       capability.NewTokenID(now.Add(-time.Minute).UnixMilli(), [10]byte{9, 8, 7, 6, 5, 4, 3, 2, 1}),
		NotAfter: now.Add(5 * time.Minute),
		Audience: "corp", Subject: "agent-42",
	}
}

// wordChecker knows "ok", "deny", "branch …" and the words that exercise a
// Clearance.
type wordChecker struct{}

func (wordChecker) Check(cl *capability.Clearance, c capability.Caveat) error {
	word, rest, _ := strings.Cut(string(c.Condition), " ")
	switch word {
	case "ok", "branch":
		return nil
	case "deny":
		return capability.CodeActionDenied
	case "dead":
		return capability.CodeRevoked
	case "calls":
		return cl.Spend(c, uint64(len(rest)))
	case "declare":
		k, v, _ := strings.Cut(rest, " ")
		cl.Declare(c, []byte(k), []byte(v))
		return nil
	}
	return &capability.Refusal{Code: capability.CodeUnknownCaveat, Caveat: string(c.Condition)}
}

func mint(t testing.TB, conditions ...string) *capability.Token {
	t.Helper()
	tok, err := capability.Mint(testKey(), testIdentifier(), conditions...)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func verifier(t testing.TB, opts ...capability.Option) *capability.Verifier {
	t.Helper()
	if len(opts) == 0 {
		opts = []capability.Option{capability.UnsafeWithoutRevocations()}
	}
	v, err := capability.NewVerifier(keyring{testKey()}, []string{"corp"}, wordChecker{}, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func verify(t testing.TB, v *capability.Verifier, tok *capability.Token) (*capability.Grant, error) {
	t.Helper()
	g := new(capability.Grant)
	return g, v.Verify(context.Background(), g, tok.Bytes(), &capability.Request{Now: now})
}

func wantCode(t testing.TB, err error, want capability.Code) {
	t.Helper()
	if got := capability.CodeOf(err); got != want {
		t.Fatalf("code %q (%v), want %q", got, err, want)
	}
}
