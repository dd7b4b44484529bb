package attest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/writ-dev/writ/capability"
)

// Counters is what a TPM says of its own life in everything that it attests
// (TPMS_CLOCK_INFO, TPM 2.0 Library, Part 2, section 10.11.1).
type Counters struct {
	Reset   uint32 `json:"reset"`   // TPM resets since TPM2_Clear
	Restart uint32 `json:"restart"` // restarts and resumes since the last reset
	Clock   uint64 `json:"clock"`   // milliseconds that the TPM was powered since TPM2_Clear
	Safe    bool   `json:"safe"`    // false: Clock may have been higher, before power was lost
}

// clockSlack is the most by which Clock may go back when power is lost: it is
// saved at least so often (Part 1, section 36.3.2), in milliseconds.
const clockSlack = 1 << 22

// After says whether c can follow prev in the life of one TPM that nobody has
// cleared. Whatever goes back, does so for ever: TPM2_Clear zeroes the counters
// while the keys of the endorsement hierarchy stay, and a copied state has an
// older count than the original. Errors: *Refusal with ReasonCounters.
func (c Counters) After(prev Counters) error {
	switch {
	case c.Reset < prev.Reset:
		return refuse(ReasonCounters, "reset count %d, after %d", c.Reset, prev.Reset)
	case c.Reset == prev.Reset && c.Restart < prev.Restart:
		return refuse(ReasonCounters, "restart count %d, after %d", c.Restart, prev.Restart)
	case c.Clock >= prev.Clock:
		return nil
	case (c.Reset != prev.Reset || c.Restart != prev.Restart) && !c.Safe && prev.Clock-c.Clock <= clockSlack:
		return nil
	}
	return refuse(ReasonCounters, "clock %d ms, after %d ms", c.Clock, prev.Clock)
}

// Name is a TPM Name: the hash algorithm's identifier and the digest of a
// public area.
type Name []byte

// MaxAKs is how many attestation keys a device can have enrolled.
const MaxAKs = 8

// Stored is what a discharger knows of a device from before.
type Stored struct {
	AKs      []Name   // enrolled: their credential was activated once
	Counters Counters // of the last evidence that was accepted
	Revoked  bool

	// Of the policy that the last evidence satisfied.
	Policy        string
	PolicyVersion uint64
}

// Enrolled says whether this AK is enrolled.
func (s *Stored) Enrolled(ak Name) bool {
	return s != nil && slices.ContainsFunc(s.AKs, func(n Name) bool { return bytes.Equal(n, ak) })
}

// Ask is what a caveat, once opened, or an enrolment demands.
type Ask struct {
	Caveat     []byte // the caveat id; empty for an enrolment
	Audience   string
	Holder     *capability.HolderKey // expected; a key that is no DPoP key is never met
	Device     *capability.DeviceID  // expected
	AnyMachine bool                  // asked for by name
}

// Pending is what the discharger remembers of a challenge until it is answered
// or expires. It holds the challenge's secret: in the hands of the holder it has
// to be sealed. It prints redacted.
type Pending struct {
	ID            []byte
	Nonce         []byte
	Secret        []byte // empty for an enrolled AK
	Expires       time.Time
	Audience      string
	CaveatHash    Digest
	Policy        string
	PolicyVersion uint64
	Kind          Kind
	Device        capability.DeviceID
	EKName        Name
	AK            []byte    // TPMT_PUBLIC
	Holder        []byte    // TPMT_PUBLIC
	Counters      *Counters // what was known of the device when the challenge was made, or nil
}

// String, GoString, Format, LogValue and MarshalText never show the secret.
func (p Pending) String() string               { return fmt.Sprintf("(challenge %x of device %s)", p.ID, p.Device) }
func (p Pending) GoString() string             { return p.String() }
func (p Pending) Format(f fmt.State, _ rune)   { _, _ = f.Write([]byte(p.String())) }
func (p Pending) LogValue() slog.Value         { return slog.StringValue(p.String()) }
func (p Pending) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// MaxPending is the most bytes of an encoded Pending.
const MaxPending = 2048

// wirePending is Pending with its encoding.
type wirePending struct {
	ID            []byte              `json:"id"`
	Nonce         []byte              `json:"nonce"`
	Secret        []byte              `json:"secret,omitempty"`
	Expires       time.Time           `json:"expires"`
	Audience      string              `json:"audience"`
	CaveatHash    Digest              `json:"caveat_hash"`
	Policy        string              `json:"policy"`
	PolicyVersion uint64              `json:"policy_version"`
	Kind          Kind                `json:"kind"`
	Device        capability.DeviceID `json:"device"`
	EKName        Name                `json:"ek_name"`
	AK            []byte              `json:"ak"`
	Holder        []byte              `json:"holder"`
	Counters      *Counters           `json:"counters,omitempty"`
}

// Encode returns the challenge with its secret, to be stored or sealed.
func (p *Pending) Encode() ([]byte, error) { return json.Marshal((*wirePending)(p)) }

// DecodePending is the inverse of Encode. Errors: *Refusal with ReasonChallenge.
func DecodePending(b []byte) (*Pending, error) {
	var w wirePending
	if err := decode(b, MaxPending, &w); err != nil {
		return nil, refuse(ReasonChallenge, "it cannot be read: %v", err)
	}
	if len(w.ID) != ChallengeIDSize || len(w.Nonce) != NonceSize || len(w.Secret) != 0 && len(w.Secret) != SecretSize {
		return nil, refuse(ReasonChallenge, "it cannot be read")
	}
	p := Pending(w)
	return &p, nil
}
