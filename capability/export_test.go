package capability

import (
	"context"
	"testing"
	"time"

	"gopkg.in/macaroon.v2"
)

// UnboundDischarge is a discharge as a library that does not know bound makes it.
func (o *OpenedCaveat) UnboundDischarge() (*Token, error) {
	m, err := macaroon.New(o.key[:], o.id, "", macaroon.V2)
	if err != nil {
		return nil, err
	}
	return newToken(m, nil)
}

// CopyInto adds the caveat id to another token, with its own caveat key.
func (o *OpenedCaveat) CopyInto(t *Token) (*Token, error) {
	m, rest, err := t.open()
	if err != nil {
		return nil, err
	}
	if err := m.AddThirdPartyCaveat(o.key[:], o.id, ""); err != nil {
		return nil, err
	}
	return newToken(m, rest)
}

// NewClearance is a Clearance outside a verification, for measuring what another
// library does with the same Checker.
func NewClearance(g *Grant, id Identity, req *Request, r Revocations) *Clearance {
	g.reset()
	g.id = id
	g.clearance.ctx, g.clearance.request, g.clearance.revocations, g.clearance.grant = context.Background(), req, r, g
	return &g.clearance
}

// HMAC is the chain's HMAC-SHA256.
func HMAC(key [32]byte, msg []byte) (out [32]byte) {
	var h hasher
	h.init()
	h.sum(&out, &key, msg)
	return out
}

// EncodeThirdParty is the plaintext of a caveat id.
func EncodeThirdParty(tp ThirdParty, id Identifier) []byte {
	tp.Token, tp.Audience, tp.Expires = id.ID, id.Audience, id.NotAfter
	return tp.encode(&[32]byte{1})
}

// RecodeThirdParty reads a plaintext and writes it again.
func RecodeThirdParty(b []byte) ([]byte, bool) {
	var o OpenedCaveat
	if o.decode(b) != nil {
		return nil, false
	}
	return o.encode(&o.key), true
}

// TestCache is a verifier with a prefix cache whose hits can be counted.
type TestCache struct {
	Now time.Time
	v   *Verifier
}

// NewTestCache builds one, without revocations if no option is given.
func NewTestCache(t testing.TB, n int, keys Keys, checker Checker, opts ...Option) *TestCache {
	if len(opts) == 0 {
		opts = []Option{UnsafeWithoutRevocations()}
	}
	v, err := NewVerifier(keys, []string{"corp"}, checker, append(opts, WithPrefixCache(n))...)
	if err != nil {
		t.Fatal(err)
	}
	return &TestCache{Now: time.Date(2026, 11, 24, 8, 0, 0, 0, time.UTC), v: v}
}

// Want verifies tok, which must be granted with so many points from the cache.
func (c *TestCache) Want(t testing.TB, tok *Token, points int) {
	t.Helper()
	c.WantCode(t, tok, points, "")
}

// WantCode is Want for a refusal.
func (c *TestCache) WantCode(t testing.TB, tok *Token, points int, want Code) {
	t.Helper()
	var l layout
	if l.parse(tok.raw) != "" {
		t.Fatal("not a token")
	}
	id, err := ParseIdentity(l.root().id.of(tok.raw))
	if err != nil {
		t.Fatal(err)
	}
	got := 0
	if key := c.v.keys.Key(id.Audience, id.Epoch, id.Generation); key != nil {
		_, got = c.v.cache.find(tok.raw, &l, &id, key)
	}
	if got != points {
		t.Errorf("%d points from the cache, want %d", got, points)
	}
	if code := CodeOf(c.Verify(t, tok)); code != want {
		t.Errorf("code %q, want %q", code, want)
	}
}

// Verify verifies tok.
func (c *TestCache) Verify(t testing.TB, tok *Token) error {
	return c.v.Verify(t.Context(), new(Grant), tok.raw, &Request{Now: c.Now})
}

// Entries is how many chains are remembered.
func (c *TestCache) Entries() (n int) {
	for i := range c.v.cache.at {
		for j := range c.v.cache.at[i] {
			if c.v.cache.at[i][j].Load() != nil {
				n++
			}
		}
	}
	return n
}
