package capability

import (
	"context"

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
