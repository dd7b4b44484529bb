package capability

import (
	"crypto/ecdh"
	"crypto/hpke"
	"crypto/rand"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"gopkg.in/macaroon.v2"
)

// DischargerKey is a discharger's HPKE private key (RFC 9180: DHKEM X25519,
// HKDF-SHA256, AES-256-GCM). It prints redacted.
type DischargerKey struct {
	_ [0]func() // not comparable

	seed [32]byte
	key  hpke.PrivateKey
}

// DischargerPublicKey is its public half, 32 bytes.
type DischargerPublicKey [32]byte

// GenerateDischargerKey makes a key.
func GenerateDischargerKey(rand io.Reader) (*DischargerKey, error) {
	var seed [32]byte
	if _, err := io.ReadFull(rand, seed[:]); err != nil {
		return nil, err
	}
	return NewDischargerKey(seed)
}

// NewDischargerKey takes the 32-byte seed that Seed returns.
func NewDischargerKey(seed [32]byte) (*DischargerKey, error) {
	key, err := hpke.DHKEM(ecdh.X25519()).NewPrivateKey(seed[:])
	if err != nil {
		return nil, err
	}
	return &DischargerKey{seed: seed, key: key}, nil
}

// Seed is the private key, for sealing at rest.
func (k *DischargerKey) Seed() [32]byte { return k.seed }

// Public is the public half.
func (k *DischargerKey) Public() DischargerPublicKey {
	return DischargerPublicKey(k.key.PublicKey().Bytes())
}

// Equal reports, in constant time, whether both are the same key.
func (k *DischargerKey) Equal(o *DischargerKey) bool {
	return subtle.ConstantTimeCompare(k.seed[:], o.seed[:]) == 1
}

const dischargerRedacted = "(discharger key redacted)"

// String, GoString, Format, LogValue and MarshalText never show the seed.
func (k DischargerKey) String() string               { return dischargerRedacted }
func (k DischargerKey) GoString() string             { return dischargerRedacted }
func (k DischargerKey) Format(f fmt.State, _ rune)   { _, _ = f.Write([]byte(dischargerRedacted)) }
func (k DischargerKey) LogValue() slog.Value         { return slog.StringValue(dischargerRedacted) }
func (k DischargerKey) MarshalText() ([]byte, error) { return []byte(dischargerRedacted), nil }

// ThirdParty is what a third-party caveat asks of a discharger: what is sealed
// into the caveat id.
type ThirdParty struct {
	Condition  string     // such as "attested prod" or "approved payments quarter end"
	Token      TokenID    // set by AddThirdParty
	Branch     BranchID   // the point just before the caveat; set by AddThirdParty
	Audience   string     // set by AddThirdParty
	Expires    time.Time  // no discharge is to be made after; default, and at most, the token's not-after
	Holder     *HolderKey // for attested: the expected holder
	Device     *DeviceID  // for attested: the expected device
	AnyMachine bool       // for attested: any machine, asked for by name
}

// MaxThirdPartyCondition is the most bytes of a third-party caveat's condition.
const MaxThirdPartyCondition = 1024

// AddThirdParty appends a third-party caveat for the discharger with this key
// at location (a hint). Whoever adds it knows its caveat key: it proves
// nothing to anyone else unless the minter added it (see MintCaveats).
//
// On a token, Token, Branch and Audience are set, whatever tp says of them. On
// a discharge, which has none of its own, they must be given, as the discharger
// read them from the caveat that it answers, and so must Expires.
//
// Errors: CodeMalformed for a condition that is empty, over
// MaxThirdPartyCondition or not printable, and for "attested" without an
// expected holder or device; CodeTooLarge.
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
	if id, err := ParseIdentity(m.Id()); err == nil {
		tp.Token, tp.Audience = id.ID, string(id.Audience)
		tp.Branch = branchOf((*[32]byte)(m.Signature()))
		if notAfter := time.UnixMilli(id.NotAfter); tp.Expires.IsZero() || tp.Expires.After(notAfter) {
			tp.Expires = notAfter
		}
	}
	if err := tp.check(); err != nil {
		return err
	}
	var key [32]byte
	if _, err := io.ReadFull(rand.Reader, key[:]); err != nil {
		return err
	}
	id, err := sealCaveat(to, &tp, &key)
	if err != nil {
		return err
	}
	return m.AddThirdPartyCaveat(key[:], id, location)
}

// check refuses what no discharger could act on safely.
func (tp *ThirdParty) check() error {
	malformed := func(detail string) error {
		return &Refusal{Code: CodeMalformed, Caveat: tp.Condition, Detail: detail}
	}
	ms := tp.Expires.UnixMilli()
	switch word, _, _ := strings.Cut(tp.Condition, " "); {
	case !validCondition(tp.Condition):
		return malformed("a third-party condition is 1 to 1024 bytes of printable text")
	case !ValidName(tp.Audience, MaxAudience):
		return malformed("no audience")
	case ms <= 0 || ms >= 1<<48:
		return malformed("no expiry")
	case tp.Holder != nil && tp.Holder.Method != HolderDPoP && tp.Holder.Method != HolderMTLS:
		return malformed("a holder of an unknown method")
	case tp.AnyMachine && (tp.Holder != nil || tp.Device != nil):
		return malformed("any machine, and one in particular")
	case word == "attested" && tp.Holder == nil && tp.Device == nil && !tp.AnyMachine:
		return malformed("an attestation needs an expected holder or device; any machine must be asked for by name")
	}
	return nil
}

func validCondition(s string) bool {
	return s != "" && len(s) <= MaxThirdPartyCondition && utf8.ValidString(s) &&
		!strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

// The caveat id is a version byte, then HPKE base mode's enc ‖ ciphertext
// (RFC 9180 section 6.1) with caveatInfo as info and no associated data. The
// plaintext is, big-endian: flags 1, caveat key 32, token id 16, branch id 16,
// expiry 8 (Unix milliseconds), audience length 1, audience, condition length
// 2, condition; by flag 1 the holder's method 1 and thumbprint 32; by flag 2
// the device 32; then zeros to a multiple of 64, so that its length says
// little about what is asked.
const (
	// caveatVersion history: 0xc1 is the first. No token's identifier begins so.
	caveatVersion = 0xc1
	caveatInfo    = "writ/v1/caveat-id"
	caveatPad     = 64

	flagHolder     = 1
	flagDevice     = 2
	flagAnyMachine = 4

	// maxCaveatID bounds what a discharger opens.
	maxCaveatID = 2048
)

func sealCaveat(to DischargerPublicKey, tp *ThirdParty, key *[32]byte) ([]byte, error) {
	pub, err := hpke.DHKEM(ecdh.X25519()).NewPublicKey(to[:])
	if err != nil {
		return nil, err
	}
	sealed, err := hpke.Seal(pub, hpke.HKDFSHA256(), hpke.AES256GCM(), []byte(caveatInfo), tp.encode(key))
	if err != nil {
		return nil, err
	}
	return append([]byte{caveatVersion}, sealed...), nil
}

func (tp *ThirdParty) encode(key *[32]byte) []byte {
	var flags byte
	if tp.Holder != nil {
		flags |= flagHolder
	}
	if tp.Device != nil {
		flags |= flagDevice
	}
	if tp.AnyMachine {
		flags |= flagAnyMachine
	}
	b := append([]byte{flags}, key[:]...)
	b = append(b, tp.Token[:]...)
	b = append(b, tp.Branch[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(tp.Expires.UnixMilli()))
	b = append(b, byte(len(tp.Audience)))
	b = append(b, tp.Audience...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(tp.Condition)))
	b = append(b, tp.Condition...)
	if tp.Holder != nil {
		b = append(b, byte(tp.Holder.Method))
		b = append(b, tp.Holder.Thumbprint[:]...)
	}
	if tp.Device != nil {
		b = append(b, tp.Device[:]...)
	}
	return append(b, make([]byte, -len(b)&(caveatPad-1))...)
}

// errBadPlaintext is returned for a plaintext that encode does not make.
var errBadPlaintext = errors.New("malformed caveat id")

func (o *OpenedCaveat) decode(b []byte) error {
	take := func(n int) (out []byte) {
		if n > len(b) {
			b = nil
			return make([]byte, n) // zeros; re-encoding will differ
		}
		out, b = b[:n], b[n:]
		return out
	}
	whole := b
	flags := take(1)[0]
	o.key = [32]byte(take(32))
	o.Token = TokenID(take(16))
	o.Branch = BranchID(take(16))
	o.Expires = time.UnixMilli(int64(binary.BigEndian.Uint64(take(8)))).UTC()
	o.Audience = string(take(int(take(1)[0])))
	o.Condition = string(take(int(binary.BigEndian.Uint16(take(2)))))
	if flags&flagHolder != 0 {
		o.Holder = &HolderKey{Method: HolderMethod(take(1)[0]), Thumbprint: [32]byte(take(32))}
	}
	if flags&flagDevice != 0 {
		d := DeviceID(take(32))
		o.Device = &d
	}
	o.AnyMachine = flags&flagAnyMachine != 0
	// Whatever is not exactly what encode makes is refused: unknown flags,
	// other padding, a truncated field.
	if o.check() != nil || !slices.Equal(o.encode(&o.key), whole) {
		return errBadPlaintext
	}
	return nil
}

// OpenedCaveat is a caveat id that a discharger has opened. What it says is
// what whoever added the caveat wanted sealed; nothing vouches for that it
// stands in a token. The discharge is worth something in that token alone.
type OpenedCaveat struct {
	ThirdParty
	id  []byte
	key [32]byte
}

// String, GoString, Format and LogValue never show the caveat key.
func (o OpenedCaveat) String() string {
	return fmt.Sprintf("(caveat %q of token %s)", o.Condition, o.Token)
}
func (o OpenedCaveat) GoString() string           { return o.String() }
func (o OpenedCaveat) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(o.String())) }
func (o OpenedCaveat) LogValue() slog.Value       { return slog.StringValue(o.String()) }

// OpenCaveat opens a caveat id. Errors: CodeDischargeInvalid.
func (k *DischargerKey) OpenCaveat(id []byte) (*OpenedCaveat, error) {
	if len(id) > maxCaveatID || len(id) < 1 || id[0] != caveatVersion {
		return nil, CodeDischargeInvalid
	}
	plain, err := hpke.Open(k.key, hpke.HKDFSHA256(), hpke.AES256GCM(), []byte(caveatInfo), id[1:])
	if err != nil {
		return nil, CodeDischargeInvalid
	}
	o := &OpenedCaveat{id: slices.Clone(id)}
	if err := o.decode(plain); err != nil {
		return nil, CodeDischargeInvalid
	}
	return o, nil
}

// Discharge makes the discharge: these conditions, and then a bound caveat for
// the branch in the caveat id. The bound caveat closes what the discharger
// says: anyone who holds the discharge can append to it, so that a declare
// caveat counts only before it. Whether Expires is past is the caller's to
// judge, by its own clock, before it calls.
//
// Errors: CodeMalformed for a condition that is empty or itself bound;
// CodeTooLarge.
func (o *OpenedCaveat) Discharge(conditions ...string) (*Token, error) {
	m, err := macaroon.New(o.key[:], o.id, mintLocation, macaroon.V2)
	if err != nil {
		return nil, err
	}
	for _, c := range conditions {
		if isBound([]byte(c)) {
			return nil, &Refusal{Code: CodeMalformed, Caveat: c, Detail: "a discharge is bound by its own branch alone"}
		}
		if err := addCondition(m, c); err != nil {
			return nil, err
		}
	}
	if err := addCondition(m, BoundCondition(o.Branch)); err != nil {
		return nil, err
	}
	return newToken(m, nil)
}

// Bind ties a discharge to this root by signature, as macaroon.v2's Bind does:
// it is good with exactly this root, and with none that is narrowed from it. A
// discharge made by Discharge does not need it, and should not have it.
func (t *Token) Bind(root *Token) (*Token, error) {
	d, rest, err := t.open()
	if err != nil {
		return nil, err
	}
	r, _, err := root.open()
	if err != nil {
		return nil, err
	}
	d.Bind(r.Signature())
	return newToken(d, rest)
}

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
