package authority

import (
	"context"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/state"
	"github.com/writ-dev/writ/capability"
)

// Revoke revokes. Once it has returned, no verifier accepts what was revoked
// later than its bound from now.
func (a *Authority) Revoke(ctx context.Context, c Call, req *api.RevokeRequest) (*api.RevokeResponse, error) {
	body, err := revocationOf(req)
	if err != nil {
		return nil, err
	}
	resp, err := a.revoke(ctx, c, body)
	if err != nil || req.Kind != api.RevokeEpoch {
		return resp, err
	}
	// Without an epoch that mints, or will, nothing could be issued any more.
	epochs := a.machine.Epochs()
	if len(epochs) > 0 && epochs[len(epochs)-1].Revoked {
		_, err := a.Rotate(ctx, system())
		a.report("rotating after the newest epoch was revoked", err)
	}
	return resp, nil
}

// revocationOf reads a request; the state checks that exactly its kind's fields are there.
func revocationOf(req *api.RevokeRequest) (*state.Revoke, error) {
	r := &state.Revoke{
		Kind: string(req.Kind), Subject: req.Subject, Holder: req.Holder, Device: req.Device,
		Audience: req.Audience, Epoch: req.Epoch, Reason: req.Reason,
	}
	var err error
	if req.Token != "" {
		if r.Token, err = capability.ParseTokenID(req.Token); err != nil {
			return nil, invalid("token: a UUID in lower case")
		}
	}
	if req.Branch != "" {
		if r.Branch, err = capability.ParseBranchID(req.Branch); err != nil {
			return nil, invalid("branch: 32 hexadecimal digits in lower case")
		}
	}
	return r, nil
}

func (a *Authority) revoke(ctx context.Context, c Call, body *state.Revoke) (*api.RevokeResponse, error) {
	kind := api.RevocationKind(body.Kind)
	_, value, err := a.proposer.propose(ctx, laneRevoke, &change{
		header: header(state.KindRevoke, c),
		cutoff: kind == api.RevokeSubject || kind == api.RevokeAudience,
		compose: func(stamp int64) (any, error) {
			// Of a token that the registry knows, the state knows better.
			body.Expires = stamp + state.MaxAdminTTL.Milliseconds()
			return body, nil
		},
	})
	if err != nil {
		return nil, err
	}
	r := value.(*state.RevokeResult)
	resp := &api.RevokeResponse{Index: r.Index, Kind: kind, Reached: r.Reached}
	if body.Token != (capability.TokenID{}) {
		resp.Token = body.Token.String()
	}
	if body.Branch != (capability.BranchID{}) {
		resp.Branch = body.Branch.String()
	}
	return resp, nil
}

// RevokeSelf revokes the branch of the token in the request, or the whole token
// if it is as it was issued: whoever holds a token may, so of the Call only
// Request and Body count. Request ids are scoped to the token. Whole is for
// callers who may revoke: call Revoke with the token's id for them.
func (a *Authority) RevokeSelf(ctx context.Context, c Call, req *api.SelfRevokeRequest) (*api.RevokeResponse, error) {
	if req.Whole {
		return nil, invalid("whole: needs a credential that may revoke the token")
	}
	t, err := capability.Parse(req.Token)
	if err != nil {
		return nil, serviceError(err)
	}
	in, err := t.Inspect()
	if err != nil {
		return nil, serviceError(err)
	}
	id := &in.Identifier
	branches, err := a.verifyChain(t, id)
	if err != nil {
		return nil, err
	}
	record, err := a.registered(id, branches)
	if err != nil {
		return nil, err
	}
	c.Caller = Caller{Name: id.Subject, Token: id.ID, Branches: branches, Audience: id.Audience}
	body := &state.Revoke{Kind: string(api.RevokeBranch), Token: id.ID, Branch: t.Branch(), Reason: req.Reason}
	if body.Branch == record.Tail {
		body.Kind, body.Branch = string(api.RevokeToken), capability.BranchID{}
	}
	return a.revoke(ctx, c, body)
}

// TokenIdentity verifies the MAC chain of a token and returns what it is, for a
// caller who names a token by showing it.
func (a *Authority) TokenIdentity(text string) (*capability.Identifier, error) {
	t, err := capability.Parse(text)
	if err != nil {
		return nil, serviceError(err)
	}
	in, err := t.Inspect()
	if err != nil {
		return nil, serviceError(err)
	}
	if _, err := a.verifyChain(t, &in.Identifier); err != nil {
		return nil, err
	}
	return &in.Identifier, nil
}

// RevocationQuery selects revocations; an empty Kind selects all.
type RevocationQuery struct {
	Kind   api.RevocationKind
	Cursor string
	Limit  int // 1 to 500; 0: 100
}

// RevocationList lists the revocations in force.
func (a *Authority) RevocationList(ctx context.Context, q RevocationQuery) (*api.RevocationList, error) {
	limit, err := pageSize(q.Limit)
	if err != nil {
		return nil, err
	}
	cursor, err := decodeCursor(q.Cursor)
	if err != nil {
		return nil, err
	}
	asOf := a.machine.AppliedIndex()
	page, next, err := a.machine.RevocationList(q.Kind, cursor, limit)
	if err != nil {
		return nil, serviceError(err)
	}
	list := &api.RevocationList{Revocations: make([]api.RevocationInfo, len(page)), Next: encodeCursor(next), AsOf: asOf}
	for i := range page {
		r := &page[i]
		info := api.RevocationInfo{
			RevokeRequest: api.RevokeRequest{
				Kind: api.RevocationKind(r.Kind), Subject: r.Subject, Holder: r.Holder, Device: r.Device,
				Audience: r.Audience, Epoch: r.Epoch, Reason: r.Reason,
			},
			By: r.By, At: time.UnixMilli(r.At).UTC(), Expires: time.UnixMilli(r.Expires).UTC(), Index: r.Index,
		}
		if r.Token != (capability.TokenID{}) {
			info.Token = r.Token.String()
		}
		if r.Branch != (capability.BranchID{}) {
			info.Branch = r.Branch.String()
		}
		list.Revocations[i] = info
	}
	return list, nil
}
