package state

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"slices"

	bolt "go.etcd.io/bbolt"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats/attest"
)

// The kinds of command about attestation: 40 to 59.
const (
	KindSetPolicy    Kind = 40
	KindSetRoots     Kind = 41
	KindAttest       Kind = 42
	KindAttestFailed Kind = 43
	KindForgetDevice Kind = 44
)

// The bounds of what attestation keeps.
const (
	// MaxPolicies bounds the policies, and PolicyHistory the versions of each
	// that are kept.
	MaxPolicies   = 256
	PolicyHistory = 16
	// MaxBundles bounds the bundles of roots, and MaxBundle each, in bytes of PEM.
	MaxBundles = 64
	MaxBundle  = 256 << 10
	// MaxEvidence bounds the evidence that is recorded with an issuance, in bytes of JSON.
	MaxEvidence = 16 << 10
)

// ChallengeID names a challenge: 128 random bits.
type ChallengeID [attest.ChallengeIDSize]byte

// MarshalText returns 32 lower-case hexadecimal digits.
func (c ChallengeID) MarshalText() ([]byte, error) { return LeaseID(c).MarshalText() }

// UnmarshalText reads what MarshalText writes.
func (c *ChallengeID) UnmarshalText(b []byte) error { return decodeHex(c[:], b) }

// SetPolicy stores the next version of an attestation policy, or, without a
// document, removes the policy. Result: *PolicyRecord without its document.
type SetPolicy struct {
	Name     string `cbor:"1,keyasint"`
	Document []byte `cbor:"2,keyasint,omitempty"` // JSON of an attest.Policy that has been checked, without its version
}

// PolicyRecord is one version of a policy. One without a document was removed.
type PolicyRecord struct {
	Name     string `cbor:"1,keyasint"`
	Version  uint64 `cbor:"2,keyasint"` // from 1
	Document []byte `cbor:"3,keyasint,omitempty"`
	By       string `cbor:"4,keyasint"`
	At       int64  `cbor:"5,keyasint"` // stamp
}

// SetRoots stores a bundle of roots that certify endorsement keys, or, without
// certificates, removes it. Result: *RootsRecord without the certificates.
type SetRoots struct {
	Name string `cbor:"1,keyasint"`
	PEM  []byte `cbor:"2,keyasint,omitempty"` // checked
}

// RootsRecord is a bundle of roots.
type RootsRecord struct {
	Name string `cbor:"1,keyasint"`
	PEM  []byte `cbor:"2,keyasint,omitempty"`
	By   string `cbor:"3,keyasint"`
	At   int64  `cbor:"4,keyasint"` // stamp
}

// Attest consumes a challenge whose evidence has been accepted, stores what is
// now known of the device, and records the discharge that is made of it.
// Result: *DeviceRecord.
type Attest struct {
	Challenge     ChallengeID         `cbor:"1,keyasint"`
	Expires       int64               `cbor:"2,keyasint"` // of the challenge, Unix ms
	Device        capability.DeviceID `cbor:"3,keyasint"`
	EK            string              `cbor:"4,keyasint"` // attest.Kind
	AK            attest.Name         `cbor:"5,keyasint"`
	Activated     bool                `cbor:"6,keyasint,omitempty"` // this AK was activated with this challenge
	Holder        string              `cbor:"7,keyasint"`
	Counters      attest.Counters     `cbor:"8,keyasint"`
	Firmware      attest.Firmware     `cbor:"9,keyasint"`
	Policy        string              `cbor:"10,keyasint"`
	PolicyVersion uint64              `cbor:"11,keyasint"`
	PCRSet        string              `cbor:"12,keyasint"`
	Posture       []byte              `cbor:"13,keyasint,omitempty"` // JSON
	Evidence      []byte              `cbor:"14,keyasint,omitempty"` // JSON: what an auditor can check again
	By            string              `cbor:"15,keyasint,omitempty"` // who asked for an enrolment
	// Of the discharge; zero for an enrolment.
	Token    capability.TokenID  `cbor:"16,keyasint,omitzero"`
	Branch   capability.BranchID `cbor:"17,keyasint,omitzero"`
	Audience string              `cbor:"18,keyasint,omitempty"`
	Until    int64               `cbor:"19,keyasint,omitempty"` // Unix ms
	Caveats  []string            `cbor:"20,keyasint,omitempty"`
}

// AttestFailed consumes a challenge whose evidence shows that a device which was
// good has changed, and revokes the device if its policy says so. Result: *RevokeResult.
type AttestFailed struct {
	Challenge     ChallengeID         `cbor:"1,keyasint"`
	Expires       int64               `cbor:"2,keyasint"` // of the challenge, Unix ms
	Device        capability.DeviceID `cbor:"3,keyasint"`
	Policy        string              `cbor:"4,keyasint"`
	PolicyVersion uint64              `cbor:"5,keyasint"`
	Reason        string              `cbor:"6,keyasint"` // an attest.Reason and its detail
	Revoke        bool                `cbor:"7,keyasint,omitempty"`
	Evidence      []byte              `cbor:"8,keyasint,omitempty"`
}

// ForgetDevice forgets a device, so that it can enroll anew. What was revoked
// stays so until the revocation has ended. Result: *ForgetResult.
type ForgetDevice struct {
	Device capability.DeviceID `cbor:"1,keyasint"`
	Reason string              `cbor:"2,keyasint"`
}

// ForgetResult says until when (Unix ms) the device remains revoked; 0 is not at all.
type ForgetResult struct {
	Until int64 `cbor:"1,keyasint"`
}

// DeviceRecord is what is known of a device: of its last good evidence.
type DeviceRecord struct {
	ID            capability.DeviceID `cbor:"1,keyasint"`
	EK            string              `cbor:"2,keyasint"`
	AKs           []attest.Name       `cbor:"3,keyasint"` // enrolled, the oldest first
	Holder        string              `cbor:"4,keyasint"`
	Counters      attest.Counters     `cbor:"5,keyasint"`
	Firmware      attest.Firmware     `cbor:"6,keyasint"`
	Policy        string              `cbor:"7,keyasint"`
	PolicyVersion uint64              `cbor:"8,keyasint"`
	PCRSet        string              `cbor:"9,keyasint"`
	Posture       []byte              `cbor:"10,keyasint,omitempty"`
	Enrolled      int64               `cbor:"11,keyasint"` // stamps
	EnrolledBy    string              `cbor:"12,keyasint,omitempty"`
	Attested      int64               `cbor:"13,keyasint"`
	Count         uint64              `cbor:"14,keyasint"` // of attestations
	Revoked       int64               `cbor:"15,keyasint,omitempty"`
	Reason        string              `cbor:"16,keyasint,omitempty"` // of the revocation
}

// Stored is the record as package attest takes it.
func (d *DeviceRecord) Stored() *attest.Stored {
	return &attest.Stored{
		AKs: slices.Clone(d.AKs), Counters: d.Counters, Revoked: d.Revoked != 0, Policy: d.Policy, PolicyVersion: d.PolicyVersion,
	}
}

// bucketAttest holds, by the first byte of the key: d, device → DeviceRecord;
// p, policy → its newest PolicyRecord; h, policy, 0, version → PolicyRecord; r,
// bundle → RootsRecord; c, expiry, challenge → consumed.
var bucketAttest = []byte("attest")

const (
	keyDevice    = 'd'
	keyPolicy    = 'p'
	keyHistory   = 'h'
	keyRoots     = 'r'
	keyChallenge = 'c'
)

func attestKey(what byte, name []byte) []byte { return append([]byte{what}, name...) }

func historyKey(name string, version uint64) []byte {
	return binary.BigEndian.AppendUint64(append(attestKey(keyHistory, []byte(name)), 0), version)
}

func challengeKey(expires int64, id ChallengeID) []byte {
	return append(binary.BigEndian.AppendUint64([]byte{keyChallenge}, uint64(expires)), id[:]...)
}

func newAttestBody(k Kind) any {
	switch k {
	case KindSetPolicy:
		return new(SetPolicy)
	case KindSetRoots:
		return new(SetRoots)
	case KindAttest:
		return new(Attest)
	case KindAttestFailed:
		return new(AttestFailed)
	case KindForgetDevice:
		return new(ForgetDevice)
	}
	return nil
}

// newAttestResult returns an empty result of the kinds that are remembered.
func newAttestResult(k Kind) any {
	switch k {
	case KindSetPolicy:
		return new(PolicyRecord)
	case KindSetRoots:
		return new(RootsRecord)
	case KindForgetDevice:
		return new(ForgetResult)
	}
	return nil
}

// dispatchAttest applies a command about attestation; ok is false for any other.
func (a *applier) dispatchAttest(h *Header, body any) (value any, ok bool, err error) {
	switch b := body.(type) {
	case *SetPolicy:
		value, err = result(a.setPolicy(h, b))
	case *SetRoots:
		value, err = result(a.setRoots(h, b))
	case *Attest:
		value, err = result(a.attest(h, b))
	case *AttestFailed:
		value, err = result(a.attestFailed(h, b))
	case *ForgetDevice:
		value, err = result(a.forgetDevice(h, b))
	default:
		return nil, false, nil
	}
	return value, true, err
}

// getRecord reads a record of the bucket; ok is false if there is none.
func (a *applier) getRecord(key []byte, v any) (ok bool) {
	b := a.w.get(bucketAttest, key)
	if b != nil {
		mustDecode(b, v)
	}
	return b != nil
}

func (a *applier) countPrefix(prefix []byte) (n int) {
	prefixed(a.w.tx, bucketAttest, prefix, func(_, _ []byte) { n++ })
	return n
}

func (a *applier) setPolicy(h *Header, b *SetPolicy) (*PolicyRecord, error) {
	if !attest.ValidName(b.Name) || len(b.Document) > attest.MaxPolicy {
		return nil, refuse(api.CodeInvalid, "not a policy")
	}
	key := attestKey(keyPolicy, []byte(b.Name))
	var last PolicyRecord
	known := a.getRecord(key, &last)
	switch {
	case len(b.Document) == 0 && len(last.Document) == 0:
		return nil, refuse(api.CodeNotFound, "no such policy")
	case !known && a.countPrefix([]byte{keyPolicy}) >= MaxPolicies:
		return nil, refuse(api.CodeOverloaded, "too many policies")
	}
	r := PolicyRecord{Name: b.Name, Version: last.Version + 1, Document: b.Document, By: h.Actor.Name, At: h.Stamp}
	a.w.put(bucketAttest, key, encoded(&r))
	a.w.put(bucketAttest, historyKey(r.Name, r.Version), encoded(&r))
	if r.Version > PolicyHistory {
		a.w.delete(bucketAttest, historyKey(r.Name, r.Version-PolicyHistory))
	}
	action := "set-policy"
	if len(b.Document) == 0 {
		action = "remove-policy"
	}
	a.audit(h, auditRecord{Action: action, Policy: r.Name, PolicyVersion: r.Version, Document: digestOf(b.Document)})
	r.Document = nil
	return &r, nil
}

func (a *applier) setRoots(h *Header, b *SetRoots) (*RootsRecord, error) {
	if !attest.ValidName(b.Name) || len(b.PEM) > MaxBundle {
		return nil, refuse(api.CodeInvalid, "not a bundle of roots")
	}
	key := attestKey(keyRoots, []byte(b.Name))
	known := a.w.get(bucketAttest, key) != nil
	r := RootsRecord{Name: b.Name, PEM: b.PEM, By: h.Actor.Name, At: h.Stamp}
	switch {
	case len(b.PEM) == 0 && !known:
		return nil, refuse(api.CodeNotFound, "no such bundle of roots")
	case len(b.PEM) == 0:
		a.w.delete(bucketAttest, key)
		a.audit(h, auditRecord{Action: "remove-roots", Detail: b.Name})
	case !known && a.countPrefix([]byte{keyRoots}) >= MaxBundles:
		return nil, refuse(api.CodeOverloaded, "too many bundles of roots")
	default:
		a.w.put(bucketAttest, key, encoded(&r))
		a.audit(h, auditRecord{Action: "set-roots", Detail: b.Name, Document: digestOf(b.PEM)})
	}
	r.PEM = nil
	return &r, nil
}

// digestOf is the SHA-256 of a document, for the audit trail; empty for none.
func digestOf(document []byte) string {
	if len(document) == 0 {
		return ""
	}
	sum := sha256.Sum256(document)
	return hex.EncodeToString(sum[:])
}

// validDocument accepts no bytes, and JSON of at most so many.
func validDocument(b []byte, most int) bool {
	return len(b) <= most && (len(b) == 0 || json.Valid(b))
}

// consume uses a challenge up: once, and only while it has not expired.
func (a *applier) consume(h *Header, id ChallengeID, expires int64) error {
	key := challengeKey(expires, id)
	switch {
	case h.Actor.Name != SystemActor:
		return refuse(api.CodeUnauthorized, "evidence is the discharger's to judge")
	case expires <= h.Stamp || expires > h.Stamp+2*attest.ChallengeLifetime.Milliseconds():
		return refuse(api.CodeChallenge, "the challenge has expired: begin again")
	case a.w.get(bucketAttest, key) != nil:
		return refuse(api.CodeChallenge, "the challenge was used: begin again")
	}
	a.w.put(bucketAttest, key, []byte{1})
	return nil
}

// expireChallenges forgets consumed challenges that have expired.
func (a *applier) expireChallenges(t int64) {
	var keys [][]byte
	end := challengeKey(max(t, 0), ChallengeID{})
	c := a.w.tx.Bucket(bucketAttest).Cursor()
	for k, _ := c.Seek([]byte{keyChallenge}); k != nil && bytes.Compare(k, end) < 0 && len(keys) < maxExpired; k, _ = c.Next() {
		keys = append(keys, bytes.Clone(k))
	}
	for _, k := range keys {
		a.w.delete(bucketAttest, k)
	}
}

// attest stores accepted evidence. What may have changed since it was judged is
// judged again: the policy's version, the device and its counters.
func (a *applier) attest(h *Header, b *Attest) (*DeviceRecord, error) {
	refused := func(detail string) (*DeviceRecord, error) { return nil, refuse(api.CodeAttestation, detail) }
	var policy PolicyRecord
	if !a.getRecord(attestKey(keyPolicy, []byte(b.Policy)), &policy) || len(policy.Document) == 0 || policy.Version != b.PolicyVersion {
		return nil, refuse(api.CodeChallenge, "the policy has changed: begin again")
	}
	if len(b.AK) == 0 || len(b.AK) > 64 || !validDocument(b.Posture, attest.MaxPosture) || !validDocument(b.Evidence, MaxEvidence) {
		return nil, refuse(api.CodeInvalid, "not evidence")
	}
	if _, dead := a.revoked.devices[b.Device]; dead || a.holderRevoked(b.Holder) {
		return refused("the device or its holder key was revoked")
	}
	if e := a.tokens.find(b.Token); e != nil && a.isRevoked(e, []capability.BranchID{b.Branch}) {
		return refused("the token was revoked")
	}
	d := DeviceRecord{ID: b.Device, EK: b.EK, Enrolled: h.Stamp, EnrolledBy: b.By}
	key := attestKey(keyDevice, b.Device[:])
	switch known := a.getRecord(key, &d); {
	case d.Revoked != 0:
		return refused("the device was revoked")
	case known && b.Counters.After(d.Counters) != nil:
		return nil, refuse(api.CodeChallenge, "newer evidence of this device came first: begin again")
	case !b.Activated && !d.Stored().Enrolled(b.AK):
		return nil, refuse(api.CodeChallenge, "the device was forgotten meanwhile: begin again")
	}
	if err := a.consume(h, b.Challenge, b.Expires); err != nil {
		return nil, err
	}
	action := "attest"
	if !d.Stored().Enrolled(b.AK) {
		action = "enroll"
		d.AKs = append(d.AKs, b.AK)
		d.AKs = d.AKs[max(0, len(d.AKs)-attest.MaxAKs):] // the oldest can be activated again
	}
	d.Holder, d.Counters, d.Firmware = b.Holder, b.Counters, b.Firmware
	d.Policy, d.PolicyVersion, d.PCRSet, d.Posture = b.Policy, b.PolicyVersion, b.PCRSet, b.Posture
	d.Attested = h.Stamp
	d.Count++
	a.w.put(bucketAttest, key, encoded(&d))
	a.audit(h, auditRecord{
		Action: action, Token: textOf(b.Token), Branch: textOfBranch(b.Branch), Audience: b.Audience, NotAfter: b.Until, Caveats: b.Caveats,
		Holder: b.Holder, Device: b.Device.String(), Owner: b.By, Policy: b.Policy, PolicyVersion: b.PolicyVersion,
		Posture: b.Posture, Evidence: b.Evidence,
	})
	return &d, nil
}

func (a *applier) attestFailed(h *Header, b *AttestFailed) (*RevokeResult, error) {
	key := attestKey(keyDevice, b.Device[:])
	if !validText(b.Reason) || !validDocument(b.Evidence, MaxEvidence) {
		return nil, refuse(api.CodeInvalid, "not evidence")
	}
	if a.w.get(bucketAttest, key) == nil {
		return nil, refuse(api.CodeNotFound, "no such device")
	}
	if err := a.consume(h, b.Challenge, b.Expires); err != nil {
		return nil, err
	}
	a.audit(h, auditRecord{
		Action: "attest-refused", Device: b.Device.String(), Policy: b.Policy, PolicyVersion: b.PolicyVersion, Reason: b.Reason, Evidence: b.Evidence,
	})
	if !b.Revoke {
		return &RevokeResult{Index: a.index}, nil
	}
	return a.revoke(h, &Revoke{
		Kind: string(api.RevokeDevice), Device: b.Device.String(), Reason: b.Reason,
		Expires: h.Stamp + MaxAdminTTL.Milliseconds(),
	})
}

// endDevice marks a device's record when the device is revoked: the revocation
// ends when nothing that was bound to the device can still live, the mark stays.
func (a *applier) endDevice(h *Header, b *Revoke) {
	id, err := capability.ParseDeviceID(b.Device)
	if err != nil {
		return
	}
	var d DeviceRecord
	if key := attestKey(keyDevice, id[:]); a.getRecord(key, &d) && d.Revoked == 0 {
		d.Revoked, d.Reason = h.Stamp, b.Reason
		a.w.put(bucketAttest, key, encoded(&d))
	}
}

func (a *applier) forgetDevice(h *Header, b *ForgetDevice) (*ForgetResult, error) {
	key := attestKey(keyDevice, b.Device[:])
	switch {
	case a.w.get(bucketAttest, key) == nil:
		return nil, refuse(api.CodeNotFound, "no such device")
	case !validText(b.Reason):
		return nil, refuse(api.CodeInvalid, "reason: 1 to 500 bytes without control characters")
	}
	a.w.delete(bucketAttest, key)
	a.audit(h, auditRecord{Action: "forget-device", Device: b.Device.String(), Reason: b.Reason})
	return &ForgetResult{Until: a.revoked.devices[b.Device]}, nil
}

// loadAttest checks a record of a snapshot.
func loadAttest(k, v []byte) error {
	if len(k) == 0 {
		return errors.New("a record of nothing")
	}
	switch k[0] {
	case keyDevice:
		return decodeStrict(v, new(DeviceRecord))
	case keyPolicy, keyHistory:
		return decodeStrict(v, new(PolicyRecord))
	case keyRoots:
		return decodeStrict(v, new(RootsRecord))
	case keyChallenge:
		return nil
	}
	return errors.New("a record of an unknown kind")
}

// viewRecord reads a record from the state file; nil if there is none.
func viewRecord[T any](m *Machine, key []byte) (*T, error) {
	var v *T
	err := m.view(func(tx *bolt.Tx) error {
		if b := tx.Bucket(bucketAttest).Get(key); b != nil {
			v = new(T)
			mustDecode(b, v)
		}
		return nil
	})
	return v, err
}

// Device returns a device's record, or nil.
func (m *Machine) Device(id capability.DeviceID) (*DeviceRecord, error) {
	return viewRecord[DeviceRecord](m, attestKey(keyDevice, id[:]))
}

// Policy returns a version of a policy, or with version 0 the newest; nil if
// there is none, if it was removed, or if it is too old to be kept.
func (m *Machine) Policy(name string, version uint64) (*PolicyRecord, error) {
	key := attestKey(keyPolicy, []byte(name))
	if version != 0 {
		key = historyKey(name, version)
	}
	r, err := viewRecord[PolicyRecord](m, key)
	if r != nil && len(r.Document) == 0 {
		return nil, err
	}
	return r, err
}

// Roots returns a bundle of roots, or nil.
func (m *Machine) Roots(name string) (*RootsRecord, error) {
	return viewRecord[RootsRecord](m, attestKey(keyRoots, []byte(name)))
}

// Policies returns the newest version of each policy, by name.
func (m *Machine) Policies() (all []PolicyRecord, err error) {
	return viewAll(m, keyPolicy, func(r *PolicyRecord) bool { return len(r.Document) > 0 })
}

// AllRoots returns the bundles of roots, by name.
func (m *Machine) AllRoots() ([]RootsRecord, error) {
	return viewAll(m, keyRoots, func(*RootsRecord) bool { return true })
}

func viewAll[T any](m *Machine, what byte, keep func(*T) bool) (all []T, err error) {
	err = m.view(func(tx *bolt.Tx) error {
		prefixed(tx, bucketAttest, []byte{what}, func(_, v []byte) {
			var r T
			if mustDecode(v, &r); keep(&r) {
				all = append(all, r)
			}
		})
		return nil
	})
	return all, err
}

// Devices returns up to limit devices by id, after the cursor (zero: the first).
// A full page may have a next: the id of its last.
func (m *Machine) Devices(cursor capability.DeviceID, limit int) (page []DeviceRecord, err error) {
	err = m.view(func(tx *bolt.Tx) error {
		c := tx.Bucket(bucketAttest).Cursor()
		start := attestKey(keyDevice, cursor[:])
		for k, v := c.Seek(start); k != nil && k[0] == keyDevice && len(page) < limit; k, v = c.Next() {
			if bytes.Equal(k, start) {
				continue
			}
			var r DeviceRecord
			mustDecode(v, &r)
			page = append(page, r)
		}
		return nil
	})
	return page, err
}
