package state

import (
	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/capability"
)

// Bounds of a record's lists.
const (
	maxActors      = 16
	maxHolders     = 64
	maxAgent       = 2 << 10 // bytes
	maxCaveatWords = 64
)

// requestRecord remembers what a request without an object of its own came to.
type requestRecord struct {
	Actor  string `cbor:"1,keyasint"`
	Body   Digest `cbor:"2,keyasint"`
	Kind   Kind   `cbor:"3,keyasint"`
	Result []byte `cbor:"4,keyasint"`
}

// requestRecordKey sorts by the request's time.
func requestRecordKey(h *Header) []byte {
	actor := nameHash(h.Actor.Name)
	return join(h.Request[:], actor[:])
}

// earlier returns what the same request came to before, if it was made before.
func (a *applier) earlier(h *Header, body any) (any, error) {
	if h.Request == (capability.TokenID{}) {
		return nil, nil
	}
	switch t := h.Request.Millis(); {
	case h.Request[6]>>4 != 7 || h.Request[8]>>6 != 2:
		return nil, refuse(api.CodeInvalid, "the request id is not a UUIDv7")
	case t < h.Stamp-RequestWindow.Milliseconds():
		return nil, refuse(api.CodeRequestExpired, "the request id is too old to be executed")
	case t > h.Stamp+RequestAhead.Milliseconds():
		return nil, refuse(api.CodeInvalid, "the request id is from the future: check the clock")
	}
	conflict := refuse(api.CodeConflict, "the request id was used for another request")
	if slot, ok := a.tokens.requests[requestKey(h.Actor.Name, h.Request)]; ok {
		r := a.record(a.tokens.slots[slot].id)
		switch body.(type) {
		case *Issue, *JoinService:
			if r.IssuedBy == h.Actor.Name && r.Request == h.Request && r.Body == h.Body {
				return r, nil
			}
		}
		return nil, conflict
	}
	b := a.w.get(bucketRequests, requestRecordKey(h))
	if b == nil {
		return nil, nil
	}
	var r requestRecord
	mustDecode(b, &r)
	result := newResult(r.Kind)
	if r.Kind != h.Kind || r.Body != h.Body || r.Actor != h.Actor.Name || result == nil {
		return nil, conflict
	}
	mustDecode(r.Result, result)
	return result, nil
}

// newResult returns an empty result of the kinds that are remembered.
func newResult(k Kind) any {
	switch k {
	case KindRevoke, KindRemoveService:
		return new(RevokeResult)
	case KindLease:
		return new(LeaseResult)
	case KindReturn:
		return new(ReturnResult)
	case KindAddEpoch:
		return new(EpochRecord)
	case KindRekey:
		return new(RekeyResult)
	case KindAddService:
		return new(ServiceRecord)
	case KindSetKey:
		return new(SetKeyResult)
	case KindReseal:
		return new(ResealResult)
	}
	if r := newAttestResult(k); r != nil {
		return r
	}
	return newMemberResult(k)
}

// rememberedFrom is the version of the cluster from which a kind is remembered:
// what its nodes keep must be the same.
func rememberedFrom(k Kind) uint64 {
	switch k {
	case KindSetKey, KindReseal:
		return 2
	}
	return 0
}

// remember keeps the result of a request. A token's record is its own memory.
func (a *applier) remember(h *Header, result any) {
	if h.Request == (capability.TokenID{}) || newResult(h.Kind) == nil || a.cluster.version < rememberedFrom(h.Kind) {
		return
	}
	a.w.put(bucketRequests, requestRecordKey(h), encoded(&requestRecord{
		Actor: h.Actor.Name, Body: h.Body, Kind: h.Kind, Result: encoded(result),
	}))
}

// issue registers a token.
func (a *applier) issue(h *Header, r *TokenRecord, caveats []string) (*TokenRecord, error) {
	if err := a.checkRecord(h, r); err != nil {
		return nil, err
	}
	if r.Parent != nil {
		if err := a.checkParent(h, r); err != nil {
			return nil, err
		}
	}
	a.register(h, r)
	detail := auditRecord{
		Action: "issue", Token: r.ID.String(), Audience: r.Audience, Subject: r.Subject, Owner: r.Owner, Purpose: r.Purpose,
		Auditor: r.Auditor, Agent: r.Agent, NotAfter: r.NotAfter, Branch: r.Tail.String(), Caveats: caveats, Actors: r.Actors,
	}
	if r.Parent != nil {
		detail.Action, detail.Parent = "derive", r.Parent.Token.String()
	}
	a.audit(h, detail)
	return r, nil
}

// register puts a checked record into the registry and tells the feed.
func (a *applier) register(h *Header, r *TokenRecord) {
	r.IssuedBy, r.Request, r.Body, r.Index = h.Actor.Name, h.Request, h.Body, a.index
	a.w.add(bucketTokens, r.ID[:], encoded(r))
	a.tokens.add(r)
	if r.Parent != nil {
		a.tokens.link(r.ID, r.Parent.Token)
	}
	a.events.add(Event{
		Index: a.index, Audience: r.Audience,
		Issued: api.FeedIssued{Token: r.ID, Branch: r.Tail, Expires: r.NotAfter},
	})
}

// checkRecord checks a new token's record on its own.
func (a *applier) checkRecord(h *Header, r *TokenRecord) error {
	invalid := func(what string) error { return refuse(api.CodeInvalid, what) }
	ttl := MaxTTL
	if r.Audience == api.AdminAudience {
		ttl = MaxAdminTTL
	}
	switch {
	case r.ID.Millis() != h.Stamp:
		return invalid("the token's id is not of the command's stamp")
	case a.tokens.find(r.ID) != nil:
		return refuse(api.CodeConflict, "the token id is taken")
	case !capability.ValidName(r.Audience, capability.MaxAudience):
		return invalid("audience: 1 to 100 bytes of visible ASCII")
	case !capability.ValidName(r.Subject, capability.MaxSubject):
		return invalid("subject: 1 to 200 bytes of visible ASCII")
	case !validText(r.Owner) || !validText(r.Purpose):
		return invalid("owner and purpose are required, and at most 500 bytes each")
	case r.Auditor != "" && !validText(r.Auditor):
		return invalid("auditor: at most 500 bytes")
	case len(r.Agent) > maxAgent || len(r.Actors) > maxActors || len(r.Holders) > maxHolders:
		return invalid("agent, actors or holders are too long")
	case r.NotAfter <= h.Stamp || r.NotAfter > h.Stamp+ttl.Milliseconds():
		return invalid("lifetime: more than nothing, and at most 15 minutes (30 days for the audience writ)")
	case len(r.Unsigned) == 0 || len(r.Unsigned) > MaxUnsigned:
		return invalid("the macaroon is missing or too large")
	}
	return a.checkMints(h, r)
}

// checkMints checks that the keys a token was made with mint at the stamp.
func (a *applier) checkMints(h *Header, r *TokenRecord) error {
	dead := refuse(capability.CodeUnknownKey, "the key does not mint at this time")
	if r.Generation != a.generationAt(r.Audience, h.Stamp) {
		return dead
	}
	if r.Audience == api.AdminAudience {
		if _, ok := a.keys[keyName{PurposeAdmin, r.Epoch}]; !ok {
			return dead
		}
		return nil
	}
	e := a.epoch(r.Epoch)
	if e == nil || e.Revoked || e.MintsFrom > h.Stamp || e.Until != 0 && r.NotAfter > e.Until {
		return dead
	}
	return nil
}

// checkParent checks that what a token is derived from is alive now: a
// revocation that came first in the log wins.
func (a *applier) checkParent(h *Header, r *TokenRecord) error {
	if n := len(r.Parent.Branches); n == 0 || n > capability.MaxCaveats+1 {
		return refuse(api.CodeInvalid, "the parent's chain is missing or too long")
	}
	p := a.tokens.find(r.Parent.Token)
	switch {
	case p == nil:
		return refuse(capability.CodeUnregistered, "the token that it is derived from is not registered")
	case p.notAfter <= h.Stamp:
		return refuse(capability.CodeExpired, "the token that it is derived from has expired")
	case r.NotAfter > p.notAfter:
		return refuse(api.CodeInvalid, "a derived token cannot outlive the one it is derived from")
	case a.isRevoked(p, r.Parent.Branches) || p.holders && a.anyHolderRevoked(a.record(p.id)):
		return refuse(capability.CodeRevoked, "the token that it is derived from was revoked")
	}
	return nil
}

// validText is a short text for people: 1 to MaxText bytes, no control characters.
func validText(s string) bool {
	if s == "" || len(s) > MaxText {
		return false
	}
	for _, r := range s {
		if r < ' ' || r == 0x7f || r == '\uFFFD' {
			return false
		}
	}
	return true
}
