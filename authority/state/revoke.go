package state

import (
	"encoding/binary"
	"slices"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/capability/revocation"
)

// RevocationRecord is a revocation in force.
type RevocationRecord struct {
	Revoke
	About string `cbor:"32,keyasint,omitempty"` // audience of the token that it names, if it is known
	Until int64  `cbor:"33,keyasint,omitempty"` // kinds subject, audience: issued at or before, Unix ms
	By    string `cbor:"34,keyasint"`
	At    int64  `cbor:"35,keyasint"` // stamp
	Index uint64 `cbor:"36,keyasint"`
}

type branchKey [32]byte // token id, branch id

type cutoff struct{ until, expires int64 } // Unix ms

// revoked indexes the revocations in force; the values are when each ends.
type revoked struct {
	tokens    map[capability.TokenID]int64
	branches  map[branchKey]int64
	subjects  map[name16]cutoff
	audiences map[name16]cutoff
	holders   map[capability.HolderKey]int64
	devices   map[capability.DeviceID]int64
	epochs    map[uint32]int64
}

func newRevoked() revoked {
	return revoked{
		tokens: make(map[capability.TokenID]int64), branches: make(map[branchKey]int64),
		subjects: make(map[name16]cutoff), audiences: make(map[name16]cutoff),
		holders: make(map[capability.HolderKey]int64), devices: make(map[capability.DeviceID]int64),
		epochs: make(map[uint32]int64),
	}
}

func (r *revoked) len() int {
	return len(r.tokens) + len(r.branches) + len(r.subjects) + len(r.audiences) + len(r.holders) + len(r.devices) + len(r.epochs)
}

func branchKeyOf(id capability.TokenID, b capability.BranchID) (k branchKey) {
	copy(k[:16], id[:])
	copy(k[16:], b[:])
	return k
}

// add puts a record into the index. What it names has been checked.
func (r *revoked) add(rec *RevocationRecord) {
	switch api.RevocationKind(rec.Kind) {
	case api.RevokeToken:
		r.tokens[rec.Token] = rec.Expires
	case api.RevokeBranch:
		r.branches[branchKeyOf(rec.Token, rec.Branch)] = rec.Expires
	case api.RevokeSubject:
		r.subjects[nameHash(rec.Subject)] = cutoff{rec.Until, rec.Expires}
	case api.RevokeAudience:
		r.audiences[nameHash(rec.Audience)] = cutoff{rec.Until, rec.Expires}
	case api.RevokeHolder:
		k, _ := capability.ParseHolderKey(rec.Holder)
		r.holders[k] = rec.Expires
	case api.RevokeDevice:
		d, _ := capability.ParseDeviceID(rec.Device)
		r.devices[d] = rec.Expires
	case api.RevokeEpoch:
		r.epochs[rec.Epoch] = rec.Expires
	}
}

func (r *revoked) remove(rec *RevocationRecord) {
	switch api.RevocationKind(rec.Kind) {
	case api.RevokeToken:
		delete(r.tokens, rec.Token)
	case api.RevokeBranch:
		delete(r.branches, branchKeyOf(rec.Token, rec.Branch))
	case api.RevokeSubject:
		delete(r.subjects, nameHash(rec.Subject))
	case api.RevokeAudience:
		delete(r.audiences, nameHash(rec.Audience))
	case api.RevokeHolder:
		k, _ := capability.ParseHolderKey(rec.Holder)
		delete(r.holders, k)
	case api.RevokeDevice:
		d, _ := capability.ParseDeviceID(rec.Device)
		delete(r.devices, d)
	case api.RevokeEpoch:
		delete(r.epochs, rec.Epoch)
	}
}

// addTo adds a record to the set that verifiers look into.
func addTo(s *revocation.Set, rec *RevocationRecord) {
	switch api.RevocationKind(rec.Kind) {
	case api.RevokeToken:
		s.RevokeToken(rec.Token, rec.Expires)
	case api.RevokeBranch:
		s.RevokeBranch(rec.Token, rec.Branch, rec.Expires)
	case api.RevokeSubject:
		s.RevokeSubject(rec.Subject, rec.Until, rec.Expires)
	case api.RevokeAudience:
		s.RevokeAudience(rec.Audience, rec.Until, rec.Expires)
	case api.RevokeHolder:
		k, _ := capability.ParseHolderKey(rec.Holder)
		s.RevokeHolder(k, rec.Expires)
	case api.RevokeDevice:
		d, _ := capability.ParseDeviceID(rec.Device)
		s.RevokeDevice(d, rec.Expires)
	case api.RevokeEpoch:
		s.RevokeEpoch(rec.Epoch, rec.Expires)
	}
}

// isRevoked reports whether a registered token, or any of these points of its
// chain, was revoked. Holders are apart, since their keys are in the record.
func (m *memory) isRevoked(e *tokenEntry, branches []capability.BranchID) bool {
	r, id := &m.revoked, capability.TokenID(e.id)
	if _, ok := r.tokens[id]; ok {
		return true
	}
	for _, b := range branches {
		if _, ok := r.branches[branchKeyOf(id, b)]; ok {
			return true
		}
	}
	if c, ok := r.subjects[e.subject]; ok && id.Millis() <= c.until {
		return true
	}
	if c, ok := r.audiences[e.audience]; ok && id.Millis() <= c.until {
		return true
	}
	_, ok := r.epochs[e.epoch]
	return ok
}

func (a *applier) holderRevoked(holder string) bool {
	k, err := capability.ParseHolderKey(holder)
	if err != nil {
		return false
	}
	_, ok := a.revoked.holders[k]
	return ok
}

// anyHolderRevoked is asked of a token that others hang on: which of its holders
// derived them is not known, so one is enough.
func (a *applier) anyHolderRevoked(r *TokenRecord) bool {
	return slices.ContainsFunc(r.Holders, a.holderRevoked)
}

// allHoldersRevoked is asked of a credential in use, which any other of its holders may use.
func (a *applier) allHoldersRevoked(r *TokenRecord) bool {
	return !slices.ContainsFunc(r.Holders, func(h string) bool { return !a.holderRevoked(h) })
}

// revocationKey is where a revocation is kept: its kind, and what it names.
func revocationKey(r *Revoke) []byte {
	kind := append([]byte(r.Kind), 0)
	switch api.RevocationKind(r.Kind) {
	case api.RevokeToken:
		return append(kind, r.Token[:]...)
	case api.RevokeBranch:
		return append(append(kind, r.Token[:]...), r.Branch[:]...)
	case api.RevokeSubject:
		return append(kind, r.Subject...)
	case api.RevokeHolder:
		return append(kind, r.Holder...)
	case api.RevokeDevice:
		return append(kind, r.Device...)
	case api.RevokeAudience:
		return append(kind, r.Audience...)
	case api.RevokeEpoch:
		return binary.BigEndian.AppendUint32(kind, r.Epoch)
	}
	return nil
}

// checkRevoke checks that exactly what the kind needs is there.
func checkRevoke(r *Revoke) error {
	only := Revoke{Kind: r.Kind, Reason: r.Reason, Expires: r.Expires}
	ok := false
	switch api.RevocationKind(r.Kind) {
	case api.RevokeToken:
		only.Token, ok = r.Token, r.Token != capability.TokenID{}
	case api.RevokeBranch:
		only.Token, only.Branch = r.Token, r.Branch
		ok = r.Token != capability.TokenID{} && r.Branch != capability.BranchID{}
	case api.RevokeSubject:
		only.Subject, ok = r.Subject, capability.ValidName(r.Subject, capability.MaxSubject)
	case api.RevokeHolder:
		_, err := capability.ParseHolderKey(r.Holder)
		only.Holder, ok = r.Holder, err == nil
	case api.RevokeDevice:
		_, err := capability.ParseDeviceID(r.Device)
		only.Device, ok = r.Device, err == nil
	case api.RevokeAudience:
		only.Audience, ok = r.Audience, capability.ValidName(r.Audience, capability.MaxAudience)
	case api.RevokeEpoch:
		only.Epoch, ok = r.Epoch, r.Epoch != 0
	default:
		return refuse(api.CodeInvalid, "unknown kind of revocation")
	}
	if !ok || *r != only {
		return refuse(api.CodeInvalid, "a revocation has exactly the fields of its kind")
	}
	if !validText(r.Reason) {
		return refuse(api.CodeInvalid, "reason: 1 to 500 bytes without control characters")
	}
	return nil
}

// revoke revokes, and everything that hangs on what it names.
func (a *applier) revoke(h *Header, b *Revoke) (*RevokeResult, error) {
	if err := checkRevoke(b); err != nil {
		return nil, err
	}
	rec := RevocationRecord{Revoke: *b, By: h.Actor.Name, At: h.Stamp, Index: a.index}
	kind := api.RevocationKind(b.Kind)
	if e := a.tokens.find(b.Token); e != nil {
		rec.Expires = e.notAfter
		rec.About = a.record(e.id).Audience
		if _, dead := a.revoked.tokens[b.Token]; dead && kind == api.RevokeBranch {
			return &RevokeResult{Index: a.index}, nil // the whole token is gone
		}
	}
	if rec.Expires <= h.Stamp {
		return &RevokeResult{Index: a.index}, nil // what it names has ended
	}
	if rec.Expires > h.Stamp+2*MaxAdminTTL.Milliseconds() {
		return nil, refuse(api.CodeInvalid, "nothing lives that long")
	}
	switch kind {
	case api.RevokeSubject, api.RevokeAudience:
		// Whatever is issued from now on must be told from what was.
		rec.Until, a.meta.MinStamp = h.Stamp, h.Stamp+1
		rec.About = b.Audience // who asks for another audience need not know
	default:
		if old := a.w.get(bucketRevocations, revocationKey(b)); old != nil {
			var was RevocationRecord
			mustDecode(old, &was)
			if was.Expires >= rec.Expires {
				return &RevokeResult{Index: was.Index}, nil
			}
		}
	}
	a.putRevocation(&rec)
	switch kind {
	case api.RevokeEpoch:
		a.endEpoch(h, b.Epoch)
	case api.RevokeAudience:
		a.endGenerations(h, b.Audience)
	case api.RevokeDevice:
		a.endDevice(h, b)
	}
	reached := a.reach(h, &rec)
	a.audit(h, auditRecord{
		Action: "revoke", Kind: b.Kind, Token: textOf(b.Token), Branch: textOfBranch(b.Branch), Subject: b.Subject, Holder: b.Holder,
		Device: b.Device, Audience: b.Audience, Epoch: b.Epoch, Reason: b.Reason, NotAfter: rec.Expires, Reached: reached,
	})
	return &RevokeResult{Index: a.index, Reached: len(reached)}, nil
}

func (a *applier) putRevocation(rec *RevocationRecord) {
	a.w.put(bucketRevocations, revocationKey(&rec.Revoke), encoded(rec))
	a.revoked.add(rec)
	addTo(a.set, rec)
	a.events.add(Event{Index: a.index, Audience: rec.About, Revoke: rec.feed()})
}

// feed is the revocation as verifiers need it.
func (rec *RevocationRecord) feed() *api.FeedRevocation {
	f := &api.FeedRevocation{
		Kind: api.RevocationKind(rec.Kind), Subject: rec.Subject, Holder: rec.Holder, Device: rec.Device,
		Audience: rec.Audience, Epoch: rec.Epoch, Until: rec.Until, Expires: rec.Expires,
	}
	f.Token, f.Branch = textOf(rec.Token), textOfBranch(rec.Branch)
	return f
}

// reach revokes what was derived from the things that rec names, and what was
// derived from that in turn, each with an event of its own. It returns their ids.
func (a *applier) reach(h *Header, rec *RevocationRecord) []string {
	var roots []capability.TokenID
	issuedBefore := func(e *tokenEntry) bool { return capability.TokenID(e.id).Millis() <= rec.Until }
	switch api.RevocationKind(rec.Kind) {
	case api.RevokeToken, api.RevokeBranch:
		roots = []capability.TokenID{rec.Token}
	case api.RevokeSubject:
		name := nameHash(rec.Subject)
		roots = a.tokens.withChildren(func(e *tokenEntry) bool { return e.subject == name && issuedBefore(e) })
	case api.RevokeAudience:
		name := nameHash(rec.Audience)
		roots = a.tokens.withChildren(func(e *tokenEntry) bool { return e.audience == name && issuedBefore(e) })
	case api.RevokeEpoch:
		roots = a.tokens.withChildren(func(e *tokenEntry) bool { return e.epoch == rec.Epoch })
	case api.RevokeHolder:
		roots = a.tokens.withChildren(func(e *tokenEntry) bool {
			return e.holders && slices.Contains(a.record(e.id).Holders, rec.Holder)
		})
	}
	var reached []string
	for first := true; len(roots) > 0; first = false {
		var next []capability.TokenID
		for _, root := range roots {
			for _, id := range a.tokens.children(root) {
				e := a.tokens.find(id)
				if _, dead := a.revoked.tokens[id]; dead || e.notAfter <= h.Stamp {
					continue
				}
				r := a.record(id)
				if first && rec.Branch != (capability.BranchID{}) && !slices.Contains(r.Parent.Branches, rec.Branch) {
					continue
				}
				a.putRevocation(&RevocationRecord{
					Revoke: Revoke{Kind: string(api.RevokeToken), Token: id, Reason: rec.Reason, Expires: e.notAfter},
					About:  r.Audience, By: h.Actor.Name, At: h.Stamp, Index: a.index,
				})
				reached = append(reached, id.String())
				next = append(next, id)
			}
		}
		roots = next
	}
	return reached
}

func textOf(id capability.TokenID) string {
	if id == (capability.TokenID{}) {
		return ""
	}
	return id.String()
}

func textOfBranch(b capability.BranchID) string {
	if b == (capability.BranchID{}) {
		return ""
	}
	return b.String()
}
