package state

import (
	"cmp"
	"crypto/subtle"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/capability"
)

// The purposes of sealed keys. PurposeWrap is followed by a node's id or "recovery".
const (
	PurposeMaster     = "master"
	PurposeAdmin      = "admin"
	PurposeAudit      = "audit"
	PurposeDischarger = "discharger"
	PurposeCA         = "ca"
	PurposeWrap       = "wrap/"
)

const (
	maxSealed     = 64 << 10 // bytes of a sealed key
	maxPurpose    = 64       // bytes
	maxAudiences  = 64       // of a service
	maxService    = 64       // bytes of a service's name
	maxGeneration = 64       // generations of an audience at one time
)

func (a *applier) putKey(k SealedKey) {
	a.w.put(bucketKeys, keyKey(k.Purpose, k.Epoch), encoded(&k))
	a.keys[keyName{k.Purpose, k.Epoch}] = k
}

func (a *applier) deleteKey(purpose string, epoch uint32) {
	a.w.delete(bucketKeys, keyKey(purpose, epoch))
	delete(a.keys, keyName{purpose, epoch})
}

func keyKey(purpose string, epoch uint32) []byte {
	return binary.BigEndian.AppendUint32(append([]byte(purpose), 0), epoch)
}

func (a *applier) setKey(h *Header, b *SetKey) (*SetKeyResult, error) {
	k := b.Key
	if k.Purpose == "" || len(k.Purpose) > maxPurpose || k.Purpose == PurposeMaster || len(k.Sealed) == 0 || len(k.Sealed) > maxSealed {
		return nil, refuse(api.CodeInvalid, "not a key that can be set")
	}
	if err := a.sealedNow(&k); err != nil {
		return nil, err
	}
	a.putKey(k)
	a.audit(h, auditRecord{Action: "set-key", Detail: k.Purpose, Epoch: k.Epoch})
	return &SetKeyResult{Index: a.index}, nil
}

// epoch returns the record of an epoch, or nil.
func (m *memory) epoch(n uint32) *EpochRecord {
	i, ok := slices.BinarySearchFunc(m.epochs, n, func(e EpochRecord, n uint32) int { return cmp.Compare(e.Epoch, n) })
	if !ok {
		return nil
	}
	return &m.epochs[i]
}

func (a *applier) putEpoch(e EpochRecord) {
	a.w.put(bucketEpochs, binary.BigEndian.AppendUint32(nil, e.Epoch), encoded(&e))
	if old := a.epoch(e.Epoch); old != nil {
		*old = e
		return
	}
	a.epochs = append(a.epochs, e) // epochs only rise
}

// addEpoch publishes the next master.
func (a *applier) addEpoch(h *Header, b *AddEpoch) (*EpochRecord, error) {
	last := a.epochs[len(a.epochs)-1]
	switch {
	case b.Key.Purpose != PurposeMaster || len(b.Key.Sealed) == 0 || len(b.Key.Sealed) > maxSealed:
		return nil, refuse(api.CodeInvalid, "not a master key")
	case b.Key.Epoch != last.Epoch+1 || b.Key.Epoch >= AdminEpoch:
		return nil, refuse(api.CodeConflict, "epochs follow one another")
	case b.MintsFrom < h.Stamp+2*a.meta.BoundMillis:
		return nil, refuse(api.CodeInvalid, "an epoch is published twice the bound before it mints")
	case b.OldUntil < b.MintsFrom+MaxTTL.Milliseconds():
		return nil, refuse(api.CodeInvalid, "an epoch verifies until the longest token has ended")
	}
	if err := a.sealedNow(&b.Key); err != nil {
		return nil, err
	}
	if last.Until == 0 {
		last.Until = b.OldUntil
		a.putEpoch(last)
	}
	e := EpochRecord{Epoch: b.Key.Epoch, Published: h.Stamp, MintsFrom: b.MintsFrom}
	a.putKey(b.Key)
	a.putEpoch(e)
	a.events.add(Event{Index: a.index, Keys: true})
	a.audit(h, auditRecord{Action: "add-epoch", Epoch: e.Epoch, MintsFrom: e.MintsFrom})
	return &e, nil
}

// endEpoch makes a revoked epoch's master unusable.
func (a *applier) endEpoch(h *Header, n uint32) {
	e := a.epoch(n)
	if e == nil {
		return
	}
	ended := *e
	ended.Revoked, ended.Until = true, h.Stamp
	a.putEpoch(ended)
	a.deleteKey(PurposeMaster, n)
	a.events.add(Event{Index: a.index, Keys: true})
}

// generationAt is the generation that mints for an audience at a time.
func (m *memory) generationAt(audience string, ms int64) uint32 {
	gen := uint32(0)
	for _, g := range m.generations[audience] {
		if g.MintsFrom <= ms {
			gen = g.Generation
		}
	}
	return gen
}

func (a *applier) putGenerations(audience string, gens []GenerationRecord) {
	a.w.put(bucketGenerations, []byte(audience), encoded(gens))
	a.generations[audience] = gens
}

// rekey moves an audience to its next generation.
func (a *applier) rekey(h *Header, b *Rekey) (*RekeyResult, error) {
	switch {
	case !capability.ValidName(b.Audience, capability.MaxAudience):
		return nil, refuse(api.CodeInvalid, "audience: 1 to 100 bytes of visible ASCII")
	case !validText(b.Reason):
		return nil, refuse(api.CodeInvalid, "reason: 1 to 500 bytes without control characters")
	case b.MintsFrom < h.Stamp+2*a.meta.BoundMillis:
		return nil, refuse(api.CodeInvalid, "a generation is published twice the bound before it mints")
	case b.OldUntil < b.MintsFrom+MaxTTL.Milliseconds():
		return nil, refuse(api.CodeInvalid, "a generation verifies until the longest token has ended")
	}
	gens := slices.Clone(a.generations[b.Audience])
	if len(gens) == 0 {
		gens = []GenerationRecord{{}}
	}
	last := &gens[len(gens)-1]
	if last.MintsFrom > h.Stamp {
		return nil, refuse(api.CodeConflict, "the generation before does not mint yet")
	}
	if len(gens) >= maxGeneration {
		return nil, refuse(api.CodeOverloaded, "too many generations: wait until the oldest has ended")
	}
	if last.Until == 0 {
		last.Until = b.OldUntil
	}
	next := last.Generation + 1
	gens = append(gens, GenerationRecord{Generation: next, Published: h.Stamp, MintsFrom: b.MintsFrom})
	a.putGenerations(b.Audience, gens)
	a.events.add(Event{Index: a.index, Keys: true, Audience: b.Audience})
	a.audit(h, auditRecord{Action: "rekey", Audience: b.Audience, Generation: next, MintsFrom: b.MintsFrom, Reason: b.Reason})
	return &RekeyResult{Generation: next}, nil
}

// endGenerations ends those that no longer mint when all tokens of an audience
// are revoked: nothing good can come under them any more.
func (a *applier) endGenerations(h *Header, audience string) {
	gens := slices.Clone(a.generations[audience])
	current := a.generationAt(audience, h.Stamp)
	changed := false
	for i := range gens {
		if g := &gens[i]; g.Generation < current && (g.Until == 0 || g.Until > h.Stamp) {
			g.Until, changed = h.Stamp, true
		}
	}
	if changed {
		a.putGenerations(audience, gens)
		a.events.add(Event{Index: a.index, Keys: true, Audience: audience})
	}
}

func (a *applier) putService(s *ServiceRecord) {
	a.w.put(bucketServices, []byte(s.Name), encoded(s))
	a.services[s.Name] = s
}

func (a *applier) addService(h *Header, b *AddService) (*ServiceRecord, error) {
	invalid := func(what string) error { return refuse(api.CodeInvalid, what) }
	if !capability.ValidName(b.Name, maxService) {
		return nil, invalid("name: 1 to 64 bytes of visible ASCII")
	}
	if len(b.Audiences) == 0 || len(b.Audiences) > maxAudiences || len(b.Derive) > maxAudiences {
		return nil, invalid("audiences: 1 to 64; derive: at most 64")
	}
	for _, aud := range slices.Concat(b.Audiences, b.Derive) {
		if !capability.ValidName(aud, capability.MaxAudience) || aud == api.AdminAudience {
			return nil, invalid(fmt.Sprintf("audience %q: 1 to 100 bytes of visible ASCII, and not writ", aud))
		}
	}
	if b.JoinHash == (Digest{}) || b.JoinUntil <= h.Stamp || b.JoinUntil > h.Stamp+MaxAdminTTL.Milliseconds() {
		return nil, invalid("the join secret is missing or lives too long")
	}
	if old := a.services[b.Name]; old != nil && (old.Joined || old.JoinHash != Digest{}) {
		return nil, refuse(api.CodeConflict, "there is a service of this name")
	}
	s := &ServiceRecord{AddService: *b, Added: h.Stamp, AddedBy: h.Actor.Name}
	a.putService(s)
	a.audit(h, auditRecord{Action: "add-service", Service: b.Name, Audiences: b.Audiences, Derive: b.Derive, Keyless: b.Keyless})
	return s, nil
}

// joinService spends a join secret, or renews the caller's credential.
func (a *applier) joinService(h *Header, b *JoinService) (*TokenRecord, error) {
	s := a.services[b.Name]
	action := "join-service"
	switch renewing := b.Hash == (Digest{}); {
	case renewing:
		if s == nil || !s.Joined || h.Actor.Name != ServicePrefix+b.Name {
			return nil, refuse(api.CodeNotFound, "no service that has joined calls with its own credential")
		}
		action = "renew-service"
	case s == nil || s.Joined || s.JoinUntil <= h.Stamp || subtle.ConstantTimeCompare(s.JoinHash[:], b.Hash[:]) != 1:
		// One answer for all, so that names cannot be probed.
		return nil, refuse(api.CodeUnauthorized, "the join secret is wrong, spent or expired")
	}
	r := &b.Record
	if r.Audience != api.AdminAudience || r.Subject != ServicePrefix+b.Name || r.Parent != nil {
		return nil, refuse(api.CodeInvalid, "not the credential of this service")
	}
	if err := a.checkRecord(h, r); err != nil {
		return nil, err
	}
	if !s.Joined {
		joined := *s
		joined.Joined, joined.JoinHash = true, Digest{}
		a.putService(&joined)
	}
	a.register(h, r)
	a.audit(h, auditRecord{
		Action: action, Service: b.Name, Token: r.ID.String(), Audience: r.Audience, Subject: r.Subject, Owner: r.Owner,
		Purpose: r.Purpose, NotAfter: r.NotAfter, Branch: r.Tail.String(), Caveats: b.Caveats,
	})
	return r, nil
}

// removeService removes a service and revokes its credentials.
func (a *applier) removeService(h *Header, b *RemoveService) (*RevokeResult, error) {
	if a.services[b.Name] == nil {
		return nil, refuse(api.CodeNotFound, "no such service")
	}
	if !validText(b.Reason) {
		return nil, refuse(api.CodeInvalid, "reason: 1 to 500 bytes without control characters")
	}
	result, err := a.revoke(h, &Revoke{
		Kind: string(api.RevokeSubject), Subject: ServicePrefix + b.Name, Reason: b.Reason,
		Expires: h.Stamp + MaxAdminTTL.Milliseconds(),
	})
	if err != nil {
		return nil, err
	}
	a.w.delete(bucketServices, []byte(b.Name))
	delete(a.services, b.Name)
	a.audit(h, auditRecord{Action: "remove-service", Service: b.Name, Reason: b.Reason})
	return result, nil
}
