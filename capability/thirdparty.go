package capability

import (
	"io"
	"time"

	"gopkg.in/macaroon.v2"
)

// DischargerKey is a discharger's HPKE private key (RFC 9180: DHKEM X25519,
// HKDF-SHA256, AES-256-GCM). It prints redacted.
type DischargerKey struct{ _ [0]func() }

// DischargerPublicKey is its public half, 32 bytes.
type DischargerPublicKey [32]byte

// GenerateDischargerKey makes a key.
func GenerateDischargerKey(rand io.Reader) (*DischargerKey, error) { panic("stub") }

// NewDischargerKey takes the 32-byte seed that Seed returns.
func NewDischargerKey(seed [32]byte) (*DischargerKey, error) { panic("stub") }

// Seed is the private key, for sealing at rest.
func (k *DischargerKey) Seed() [32]byte { panic("stub") }

// Public is the public half.
func (k *DischargerKey) Public() DischargerPublicKey { panic("stub") }

// ThirdParty is what a third-party caveat asks of a discharger: what is sealed
// into the caveat id.
type ThirdParty struct {
	Condition  string     // such as "attested prod" or "approved payments quarter end"
	Token      TokenID    // set by AddThirdParty
	Branch     BranchID   // the point just before the caveat; set by AddThirdParty
	Audience   string     // set by AddThirdParty
	Expires    time.Time  // no discharge is made after; default the token's not-after
	Holder     *HolderKey // for attested: the expected holder
	Device     *DeviceID  // for attested: the expected device
	AnyMachine bool       // for attested: any machine, asked for by name
}

// AddThirdParty appends a third-party caveat for the discharger with this key
// at location (a hint). Whoever adds it knows its caveat key.
func (t *Token) AddThirdParty(to DischargerPublicKey, location string, tp ThirdParty) (*Token, error) {
	m, discharges, err := t.open()
	if err != nil {
		return nil, err
	}
	if err := addThirdParty(m, to, location, tp); err != nil {
		return nil, err
	}
	return newToken(m, discharges)
}

func addThirdParty(m *macaroon.Macaroon, to DischargerPublicKey, location string, tp ThirdParty) error {
	panic("stub")
}

// OpenedCaveat is a caveat id that a discharger has opened.
type OpenedCaveat struct {
	ThirdParty
	id  []byte
	key [32]byte
}

// OpenCaveat opens a caveat id. Errors: CodeDischargeInvalid.
func (k *DischargerKey) OpenCaveat(id []byte) (*OpenedCaveat, error) { panic("stub") }

// Discharge makes the discharge, with a bound caveat for the branch in the
// caveat id, and these conditions.
func (o *OpenedCaveat) Discharge(conditions ...string) (*Token, error) { panic("stub") }

// Missing returns the third-party caveats of the set that no discharge in it answers.
func (t *Token) Missing() []InspectedCaveat {
	var l layout
	if l.parse(t.raw) != "" {
		return nil
	}
	var missing []InspectedCaveat
	for m := range l.nm {
		for _, c := range t.inspect(&l, m) {
			if c.ThirdParty && l.find(t.raw, c.CaveatID) == 0 {
				missing = append(missing, c)
			}
		}
	}
	return missing
}
