// Package guardtest has what the tests of the guards share: a verifier over
// one key, tokens for it, and revocations.
package guardtest

import (
	"testing"
	"time"

	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/capability/revocation"
	"github.com/writ-dev/writ/caveats"
)

// Audience is the audience of every token here.
const Audience = "corp"

// Authority mints and revokes.
type Authority struct {
	Verifier *capability.Verifier
	Revoked  *revocation.Set
	key      *capability.RootKey
	minted   byte
}

// Key implements capability.Keys.
func (a *Authority) Key(audience []byte, _, _ uint32) *capability.RootKey {
	if string(audience) != Audience {
		return nil
	}
	return a.key
}

// New returns an authority whose verifier has the standard caveats, budgets in
// this process, and honors every log level.
func New(opts ...caveats.Option) (*Authority, error) {
	a := &Authority{key: capability.NewRootKey([32]byte{1, 2, 3}), Revoked: revocation.New()}
	checker, err := caveats.Standard(append([]caveats.Option{caveats.Honor(caveats.LogLevels()...)}, opts...)...)
	if err != nil {
		return nil, err
	}
	budgets, err := caveats.NewLocalBudgets(1024, nil)
	if err != nil {
		return nil, err
	}
	a.Verifier, err = capability.NewVerifier(a, []string{Audience}, checker,
		capability.WithRevocations(revocation.Static{Set: a.Revoked}, 0), capability.WithBudgets(budgets))
	return a, err
}

// For is New for a test.
func For(tb testing.TB, opts ...caveats.Option) *Authority {
	tb.Helper()
	a, err := New(opts...)
	if err != nil {
		tb.Fatal(err)
	}
	return a
}

// Mint returns a token of five minutes for agent-42.
func (a *Authority) Mint(conditions ...string) (*capability.Token, error) {
	a.minted++
	now := time.Now()
	return capability.Mint(a.key, capability.Identifier{
		Epoch: 1, Generation: 1, Audience: Audience, Subject: "agent-42",
		ID:       capability.NewTokenID(now.UnixMilli(), [10]byte{1, 2, 3, 4, 5, 6, 7, 8, a.minted}),
		NotAfter: now.Add(5 * time.Minute),
	}, conditions...)
}

// Token is Mint for a test.
func (a *Authority) Token(tb testing.TB, conditions ...string) *capability.Token {
	tb.Helper()
	t, err := a.Mint(conditions...)
	if err != nil {
		tb.Fatal(err)
	}
	return t
}

// RevokeBranch revokes the token as it stands, and what was derived from it.
func (a *Authority) RevokeBranch(tb testing.TB, t *capability.Token) {
	tb.Helper()
	in, err := t.Inspect()
	if err != nil {
		tb.Fatal(err)
	}
	a.Revoked.RevokeBranch(in.Identifier.ID, t.Branch(), in.Identifier.NotAfter.Add(time.Minute).UnixMilli())
}
