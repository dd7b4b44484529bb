package state

import (
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/audit"
)

// The kinds of command about restoring and the cluster key: 30 to 39.
const (
	KindRevive Kind = 30
	KindReseal Kind = 31
)

const (
	maxRevived  = 4096    // sealed keys of one command
	maxPrevious = 4 << 10 // bytes of a signed checkpoint
)

// Revive starts a new incarnation of a state that may be behind what was once
// acknowledged: one that was restored from a backup, or recovered without its
// quorum. Nothing that was revoked or spent since may come back to life, so of
// what came before
//
//   - every master is gone but those of Keep, and the admin key: their tokens
//     are refused, and so are the credentials of operators and services;
//   - no calls are left to lease on any token, even one of a kept epoch;
//   - secrets that are good for one use (join secrets, challenges, nodes' join
//     tokens) are void, and requests are forgotten;
//   - no node is a member but the one that begins.
//
// The first record of the new audit trail is Previous, byte for byte.
type Revive struct {
	Incarnation uint64        `cbor:"1,keyasint"` // more than any before
	Origin      string        `cbor:"2,keyasint"` // of the new audit trail
	Previous    []byte        `cbor:"3,keyasint"` // last known checkpoint of the trail before: a signed note
	Reason      string        `cbor:"4,keyasint"` // for the audit trail
	Keys        []SealedKey   `cbor:"5,keyasint"` // all there are from now on, under the next cluster key
	Keep        []uint32      `cbor:"6,keyasint,omitempty"`
	Member      *MemberRecord `cbor:"7,keyasint,omitempty"` // the node that begins, if it has peers
}

// Reseal replaces every sealed key by the same under the next cluster key, all at
// once. It is refused if a key has changed since they were read. Result:
// *ResealResult.
type Reseal struct {
	Of   Digest      `cbor:"1,keyasint"` // SealedState's, of what was sealed anew
	Keys []SealedKey `cbor:"2,keyasint"` // by purpose and epoch
}

// ResealResult is the new cluster key's number.
type ResealResult struct {
	Number uint32 `cbor:"1,keyasint"`
}

// newReviveBody is newBody for the kinds of this file.
func newReviveBody(k Kind) any {
	switch k {
	case KindRevive:
		return new(Revive)
	case KindReseal:
		return new(Reseal)
	}
	return nil
}

func (a *applier) dispatchRevive(h *Header, body any) (value any, ok bool, err error) {
	switch b := body.(type) {
	case *Revive:
		err = a.revive(h, b)
	case *Reseal:
		value, err = result(a.reseal(h, b))
	default:
		return nil, false, nil
	}
	return value, true, err
}

// errKeyChanged refuses keys that were made of others than there are.
var errKeyChanged = refuse(api.CodeConflict, "a key has changed meanwhile: try again")

// errSealedUnder refuses a key that was sealed while the cluster key changed.
var errSealedUnder = refuse(api.CodeConflict, "the cluster key has changed meanwhile: try again")

// sealedNow refuses a key that is not under the cluster key in force.
func (a *applier) sealedNow(k *SealedKey) error {
	if k.Under != a.meta.ClusterKey {
		return errSealedUnder
	}
	return nil
}

func (a *applier) revive(h *Header, b *Revive) error {
	switch {
	case h.Actor.Name != SystemActor || b.Incarnation <= a.meta.Incarnation || b.Origin == "" || b.Origin == a.meta.Origin:
		return refuse(api.CodeInvalid, "an incarnation rises and has an origin of its own")
	case len(b.Previous) == 0 || len(b.Previous) > maxPrevious || !validText(b.Reason):
		return refuse(api.CodeInvalid, "the last known checkpoint or the reason is missing, or too long")
	}
	next := a.nextEpoch()
	if err := a.checkRevived(b, next); err != nil {
		return err
	}
	old := a.meta.Incarnation
	a.beginIncarnation(h, b.Incarnation, b.Origin, b.Previous)
	a.audit(h, auditRecord{Action: "revive", Reason: b.Reason, Detail: fmt.Sprintf("incarnation %d after %d, epochs kept: %v", b.Incarnation, old, b.Keep)})
	a.replaceKeys(b.Keys)
	a.endEpochs(h, b.Keep, b.Reason, next)
	a.voidSecrets()
	a.beginMembers(h, b.Member)
	a.events.reset(a.index)
	return nil
}

// beginIncarnation begins a new incarnation, under the next cluster key and with
// an audit trail of its own, whose first record is given.
func (a *applier) beginIncarnation(h *Header, incarnation uint64, origin string, first []byte) {
	// What came before in this entry belongs to the trail that ends here.
	a.flushAudit()
	a.meta.Incarnation, a.meta.Origin = incarnation, origin
	a.meta.ClusterKey++
	a.meta.Revived, a.meta.MinStamp = h.Stamp, h.Stamp+1
	a.edge = audit.Edge{}
	if a.sink != nil {
		if err := a.sink.Open(origin, a.edge); err != nil {
			panic(fmt.Errorf("audit trail: %w", err))
		}
	}
	a.edge.Append(audit.RecordHash(first))
	a.records = append(a.records, first)
}

// checkRevived checks the keys of a new incarnation, the epochs that it keeps,
// and the node that begins it.
func (a *applier) checkRevived(b *Revive, next uint32) error {
	if err := a.checkKeys(b.Keys); err != nil {
		return err
	}
	masters := []uint32{next}
	for _, n := range b.Keep {
		if e := a.epoch(n); e == nil || e.Revoked || slices.Contains(masters, n) {
			return refuse(api.CodeInvalid, fmt.Sprintf("epoch %d cannot be kept: there is none, or it was revoked", n))
		}
		masters = append(masters, n)
	}
	has := make(map[string]int)
	for _, k := range b.Keys {
		has[k.Purpose]++
		if k.Purpose == PurposeMaster && !slices.Contains(masters, k.Epoch) {
			return refuse(api.CodeInvalid, "a master of an epoch that is not kept")
		}
	}
	if has[PurposeMaster] != len(masters) || has[PurposeAdmin] == 0 || has[PurposeAudit] == 0 || has[PurposeCA] == 0 {
		return refuse(api.CodeInvalid, "a key of the new incarnation is missing")
	}
	m := b.Member
	if m == nil {
		return nil
	}
	if old := a.cluster.members[m.ID]; old != nil && old.State == MemberRemoved {
		return refuse(api.CodeConflict, "the node was removed: it begins under another name")
	}
	for _, id := range sortedKeys(a.cluster.members) {
		if r := a.cluster.members[id]; r.State == MemberRemoved && r.Key == m.Key {
			return refuse(api.CodeConflict, "the key is a removed node's")
		}
	}
	return nil
}

// checkKeys checks that keys are well-formed, each once, and under the next cluster key.
func (a *applier) checkKeys(keys []SealedKey) error {
	if len(keys) > maxRevived {
		return refuse(api.CodeOverloaded, "too many keys")
	}
	seen := make(map[keyName]bool, len(keys))
	for _, k := range keys {
		name := keyName{k.Purpose, k.Epoch}
		if k.Purpose == "" || len(k.Purpose) > maxPurpose || len(k.Sealed) == 0 || len(k.Sealed) > maxSealed || seen[name] {
			return refuse(api.CodeInvalid, "a key is malformed, or comes twice")
		}
		if k.Under != a.meta.ClusterKey+1 {
			return errSealedUnder
		}
		seen[name] = true
	}
	return nil
}

// replaceKeys forgets every key there is and stores these.
func (a *applier) replaceKeys(keys []SealedKey) {
	for _, k := range a.sealedKeys() {
		a.deleteKey(k.Purpose, k.Epoch)
	}
	for _, k := range keys {
		a.putKey(k)
	}
}

// endEpochs revokes the epochs that are not kept and begins the next, which
// mints at once: nothing else could.
func (a *applier) endEpochs(h *Header, keep []uint32, reason string, next uint32) {
	for _, e := range slices.Clone(a.epochs) {
		switch {
		case e.Revoked:
		case slices.Contains(keep, e.Epoch):
			if e.Until == 0 {
				e.Until = h.Stamp + MaxTTL.Milliseconds() + 2*a.meta.BoundMillis
				a.putEpoch(e)
			}
		default:
			a.revokeEpoch(h, e.Epoch, reason)
			e.Revoked, e.Until = true, h.Stamp
			a.putEpoch(e)
		}
	}
	a.putEpoch(EpochRecord{Epoch: next, Published: h.Stamp, MintsFrom: h.Stamp})
}

// voidSecrets voids what is good for one use, since it may have been used.
func (a *applier) voidSecrets() {
	a.w.deletePrefixed(bucketRequests, nil, nil)
	a.w.deletePrefixed(bucketAttest, []byte{keyChallenge}, nil)
	a.w.deletePrefixed(bucketMembers, []byte{'j'}, nil)
	clear(a.cluster.joins)
	for _, name := range sortedKeys(a.services) {
		s := *a.services[name]
		// The name stays, for the operator to see, and can be added again.
		s.Joined, s.JoinHash = false, Digest{}
		a.putService(&s)
	}
}

// beginMembers leaves the node that begins as the only member. Those that were
// removed stay removed; the others can join again.
func (a *applier) beginMembers(h *Header, m *MemberRecord) {
	for _, id := range sortedKeys(a.cluster.members) {
		if a.cluster.members[id].State != MemberRemoved {
			a.w.delete(bucketMembers, memberKey(id))
			delete(a.cluster.members, id)
		}
	}
	a.cluster.changes++
	if m != nil {
		r := *m
		r.State, r.Voter, r.Joined, r.Token = MemberActive, true, h.Stamp, Digest{}
		a.putMember(&r)
		a.audit(h, auditRecord{Action: "add-member", Subject: r.ID, Detail: r.describe()})
	}
}

func (a *applier) reseal(h *Header, b *Reseal) (*ResealResult, error) {
	if err := a.checkKeys(b.Keys); err != nil {
		return nil, err
	}
	now := a.sealedKeys()
	same := slices.EqualFunc(now, b.Keys, func(x, y SealedKey) bool { return x.Purpose == y.Purpose && x.Epoch == y.Epoch })
	if b.Of != keysDigest(now) || !same {
		return nil, errKeyChanged
	}
	a.meta.ClusterKey++
	a.replaceKeys(b.Keys)
	a.audit(h, auditRecord{Action: "reseal", Generation: a.meta.ClusterKey, Detail: fmt.Sprintf("%d keys", len(b.Keys))})
	return &ResealResult{Number: a.meta.ClusterKey}, nil
}

// sealedKeys returns all sealed keys by purpose and epoch.
func (m *memory) sealedKeys() []SealedKey {
	return slices.SortedFunc(maps.Values(m.keys), func(x, y SealedKey) int {
		return cmp.Or(cmp.Compare(x.Purpose, y.Purpose), cmp.Compare(x.Epoch, y.Epoch))
	})
}

func keysDigest(keys []SealedKey) Digest {
	b, err := json.Marshal(keys)
	if err != nil {
		panic("state: encoding: " + err.Error())
	}
	return sha256.Sum256(b)
}

// SealedState returns all sealed keys, by purpose and epoch, and their digest for
// Reseal.
func (m *Machine) SealedState() (keys []SealedKey, of Digest) {
	m.read(func(mem *memory) { keys = mem.sealedKeys() })
	return keys, keysDigest(keys)
}
