package capability

import "gopkg.in/macaroon.v2"

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
