package state

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/audit"
)

// The kinds of command about the keys of members, of the kinds of the cluster.
const (
	KindExpel       Kind = 25
	KindRekeyMember Kind = 26
)

// Expel begins a new incarnation in which nothing works that a node knew or could
// copy which was compromised, and has been removed: every sealed key is another
// one under another cluster key, every epoch and every credential of before is
// revoked, and secrets that are good for one use are void. It differs from Revive
// in that nothing was lost: the other members stay, and the first record of the
// new audit trail is where the one before ended, to the record.
type Expel struct {
	Node        string      `cbor:"1,keyasint"`
	Of          Digest      `cbor:"2,keyasint"` // SealedState's, of the keys that are replaced
	Incarnation uint64      `cbor:"3,keyasint"` // more than any before
	Origin      string      `cbor:"4,keyasint"` // of the new audit trail
	Reason      string      `cbor:"5,keyasint"`
	Keys        []SealedKey `cbor:"6,keyasint"` // all there are from now on, under the next cluster key
}

// RekeyMember gives a member another key in the place of the one that is pinned,
// with which the old key agrees by its signature. Result: *MemberRecord.
type RekeyMember struct {
	ID        string    `cbor:"1,keyasint"`
	Old       []byte    `cbor:"2,keyasint"` // Ed25519 public key that is pinned
	New       []byte    `cbor:"3,keyasint"` // Ed25519 public key
	Recipient []byte    `cbor:"4,keyasint"` // that the cluster key is wrapped for from now on
	OldProof  []byte    `cbor:"5,keyasint"` // signatures of Statement
	NewProof  []byte    `cbor:"6,keyasint"`
	Wrap      SealedKey `cbor:"7,keyasint"`
}

// Statement is what both keys sign: the tag "writ/v1/member-key", then cluster,
// node, old key, new key and recipient, each behind its length in 2 big-endian bytes.
func (b *RekeyMember) Statement(cluster string) []byte {
	out := []byte("writ/v1/member-key")
	for _, field := range [][]byte{[]byte(cluster), []byte(b.ID), b.Old, b.New, b.Recipient} {
		out = append(binary.BigEndian.AppendUint16(out, uint16(len(field))), field...)
	}
	return out
}

// PeerKeyDigest is how a member's Ed25519 key is pinned: the SHA-256 of its SPKI
// (RFC 8410). The key has 32 bytes.
func PeerKeyDigest(key ed25519.PublicKey) Digest {
	return sha256.Sum256(append([]byte{0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00}, key...))
}

// newExpelBody is newBody for the kinds of this file.
func newExpelBody(k Kind) any {
	switch k {
	case KindExpel:
		return new(Expel)
	case KindRekeyMember:
		return new(RekeyMember)
	}
	return nil
}

func (a *applier) expel(h *Header, b *Expel) error {
	r := a.cluster.members[b.Node]
	switch {
	case r == nil || r.State != MemberRemoved:
		return refuse(api.CodeConflict, "a node is removed first, so that it does not learn of the new keys")
	case b.Incarnation <= a.meta.Incarnation || b.Origin == "" || b.Origin == a.meta.Origin:
		return refuse(api.CodeInvalid, "an incarnation rises and has an origin of its own")
	case !validText(b.Reason):
		return refuse(api.CodeInvalid, "reason: 1 to 500 bytes without control characters")
	case b.Of != keysDigest(a.sealedKeys()):
		return errKeyChanged
	}
	if err := a.checkExpelled(b.Keys); err != nil {
		return err
	}
	for _, k := range a.sealedKeys() {
		if k.Purpose == PurposeAdmin {
			a.revokeEpoch(h, k.Epoch, b.Reason)
		}
	}
	previous := audit.Checkpoint{Origin: a.meta.Origin, Size: a.edge.Size(), Root: a.edge.Root()}
	old := a.meta.Incarnation
	a.beginIncarnation(h, b.Incarnation, b.Origin, []byte(previous.Text()))
	a.audit(h, auditRecord{Action: "expel", Subject: b.Node, Reason: b.Reason, Detail: fmt.Sprintf("incarnation %d after %d", b.Incarnation, old)})
	next := a.nextEpoch()
	a.replaceKeys(b.Keys)
	a.endEpochs(h, nil, b.Reason, next)
	a.voidSecrets()
	a.events.reset(a.index)
	return nil
}

// checkExpelled checks that the keys are those that there are, but for the
// masters and the admin keys, of which there is one each: the next; and that each
// is another than before.
func (a *applier) checkExpelled(keys []SealedKey) error {
	if err := a.checkKeys(keys); err != nil {
		return err
	}
	admin := AdminEpoch
	want := map[keyName][]byte{{PurposeMaster, a.nextEpoch()}: nil}
	for _, k := range a.sealedKeys() {
		switch k.Purpose {
		case PurposeMaster:
		case PurposeAdmin:
			admin = max(admin, k.Epoch+1)
		default:
			want[keyName{k.Purpose, k.Epoch}] = k.Public
		}
	}
	want[keyName{PurposeAdmin, admin}] = nil
	if len(keys) != len(want) {
		return refuse(api.CodeInvalid, "a key is missing, or one too many")
	}
	for _, k := range keys {
		public, ok := want[keyName{k.Purpose, k.Epoch}]
		wraps := bytes.HasPrefix([]byte(k.Purpose), []byte(PurposeWrap))
		if !ok || len(public) > 0 && bytes.Equal(public, k.Public) != wraps {
			return refuse(api.CodeInvalid, fmt.Sprintf("the %s key is not what it is to be", k.Purpose))
		}
	}
	return nil
}

// rekeyMember pins another key for a member that agrees.
func (a *applier) rekeyMember(h *Header, b *RekeyMember) (*MemberRecord, error) {
	old := a.cluster.members[b.ID]
	switch {
	case old == nil || old.State != MemberActive:
		return nil, refuse(api.CodeNotFound, "no such node")
	case len(b.Old) != ed25519.PublicKeySize || len(b.New) != ed25519.PublicKeySize:
		return nil, refuse(api.CodeInvalid, "a key has 32 bytes")
	}
	r := *old
	r.Key, r.Recipient = PeerKeyDigest(b.New), b.Recipient
	statement := b.Statement(a.meta.Cluster)
	switch {
	case old.Key != PeerKeyDigest(b.Old) || !ed25519.Verify(b.Old, statement, b.OldProof) || !ed25519.Verify(b.New, statement, b.NewProof):
		return nil, refuse(api.CodeUnauthorized, "the change is not signed by the key that is pinned and the new one")
	case r.Key == old.Key || bytes.Equal(r.Recipient, old.Recipient):
		return nil, refuse(api.CodeInvalid, "it is the key that the node has")
	}
	if err := a.checkMember(&r); err != nil {
		return nil, err
	}
	if w := &b.Wrap; w.Purpose != PurposeWrap+r.ID || w.Epoch != 0 || len(w.Sealed) == 0 || len(w.Sealed) > maxSealed || !bytes.Equal(w.Public, r.Recipient) {
		return nil, refuse(api.CodeInvalid, "the cluster key is not wrapped for the node")
	}
	if err := a.sealedNow(&b.Wrap); err != nil {
		return nil, err
	}
	a.putKey(b.Wrap)
	a.putMember(&r)
	a.audit(h, auditRecord{Action: "rekey-member", Subject: r.ID, Detail: fmt.Sprintf("%s, before %x", r.describe(), old.Key[:8])})
	return &r, nil
}

// revokeEpoch revokes what an epoch's key has made, of the masters' or of the
// admin series.
func (a *applier) revokeEpoch(h *Header, epoch uint32, reason string) {
	rec := &RevocationRecord{By: h.Actor.Name, At: h.Stamp, Index: a.index}
	rec.Kind, rec.Epoch, rec.Reason = string(api.RevokeEpoch), epoch, reason
	rec.Expires = h.Stamp + MaxAdminTTL.Milliseconds()
	a.putRevocation(rec)
}

// nextEpoch is the number of the next master.
func (m *memory) nextEpoch() uint32 { return m.epochs[len(m.epochs)-1].Epoch + 1 }
