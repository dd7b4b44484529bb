package authority

import (
	"context"
	"slices"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/state"
	"github.com/writ-dev/writ/capability"
)

// MacaroonAudience reads the audience of a macaroon in binary form without
// verifying it, to know what a credential must allow before anything is done.
func MacaroonAudience(macaroon []byte) (string, error) {
	t, err := capability.Decode(macaroon)
	if err != nil {
		return "", serviceError(err)
	}
	in, err := t.Inspect()
	if err != nil {
		return "", serviceError(err)
	}
	return in.Identifier.Audience, nil
}

// SetAudience reads the audience of a token set without verifying it.
func SetAudience(set []byte) (string, error) { return MacaroonAudience(set) }

// Lease grants calls of a max-calls path. The macaroon's chain is verified, so
// that neither its limits nor its branches are taken on trust.
func (a *Authority) Lease(ctx context.Context, c Call, req *api.LeaseRequest) (*api.LeaseResponse, error) {
	body, err := a.prepareLease(c, req)
	if err != nil {
		return nil, err
	}
	r, err := a.lease(ctx, c, body)
	if err != nil {
		return nil, err
	}
	return &api.LeaseResponse{
		Lease: r.Lease.String(), Token: body.Token, Branch: body.Path[len(body.Path)-1].Branch,
		Granted: r.Granted, Expires: time.UnixMilli(r.Expires).UTC(), Index: r.Index,
	}, nil
}

func (a *Authority) prepareLease(c Call, req *api.LeaseRequest) (*state.Lease, error) {
	if req.Want == 0 {
		return nil, invalid("want: at least 1")
	}
	t, err := capability.Decode(req.Macaroon)
	if err != nil {
		return nil, serviceError(err)
	}
	in, err := t.Inspect()
	if err != nil {
		return nil, serviceError(err)
	}
	id := &in.Identifier
	if len(in.Discharges) > 0 {
		return nil, invalid("macaroon: the root alone, without discharges")
	}
	if id.Audience == api.AdminAudience {
		return nil, &Error{Code: capability.CodeUnknownKey}
	}
	if err := a.entitled(c.Caller, id.Audience); err != nil {
		return nil, err
	}
	branches, err := a.verifyChain(t, id)
	if err != nil {
		return nil, err
	}
	body := &state.Lease{Token: id.ID, Chain: branches, Want: req.Want, Lessee: c.Name, Unspent: req.Unspent}
	for i, caveat := range in.Caveats {
		if caveat.ThirdParty {
			continue
		}
		limit, ok, err := maxCalls(caveat.Condition)
		if err != nil {
			return nil, serviceError(err)
		}
		if ok {
			body.Path = append(body.Path, state.PathPoint{Branch: branches[i+1], Limit: limit})
		}
	}
	switch {
	case len(body.Path) == 0:
		return nil, invalid("macaroon: no max-calls in it")
	case len(body.Path) > capability.MaxBudgets:
		return nil, &Error{Code: capability.CodeTooLarge, Detail: "more than 4 max-calls in a chain"}
	}
	// A chain that goes on past what was issued must have come through it.
	if id.Issued < len(branches) {
		if tail, _, ok := a.machine.Registered(id.ID); ok && branches[id.Issued] != tail {
			return nil, &Error{Code: capability.CodeUnregistered, Detail: "the authority did not issue this token"}
		}
	}
	if req.Lease != "" {
		if err := body.Close.UnmarshalText([]byte(req.Lease)); err != nil {
			return nil, invalid("lease: 32 hexadecimal digits in lower case")
		}
	} else if req.Unspent != 0 {
		return nil, invalid("unspent: of which lease?")
	}
	return body, a.random(body.ID[:])
}

// LeaseAudience is the audience of the token of a lease that is open, or that was
// closed by this very request of a caller, whose answer was lost; ok is false for
// any other, whose return credits nothing.
func (a *Authority) LeaseAudience(lease, caller string, request capability.TokenID) (audience string, ok bool, err error) {
	var id state.LeaseID
	if err := id.UnmarshalText([]byte(lease)); err != nil {
		return "", false, invalid("lease: 32 hexadecimal digits in lower case")
	}
	token, ok, err := a.machine.LeaseToken(id)
	if err == nil && !ok {
		token, ok, err = a.machine.ReturnedToken(caller, request)
	}
	if err != nil || !ok {
		return "", false, err
	}
	r, err := a.machine.Token(token)
	if err != nil || r == nil {
		return "", false, err
	}
	return r.Audience, true, nil
}

// Return closes a lease and credits what is unspent, once.
func (a *Authority) Return(ctx context.Context, c Call, lease string, req *api.ReturnRequest) (*api.ReturnResponse, error) {
	body := &state.Return{Lessee: c.Name, Unspent: req.Unspent}
	if err := body.ID.UnmarshalText([]byte(lease)); err != nil {
		return nil, invalid("lease: 32 hexadecimal digits in lower case")
	}
	_, value, err := a.proposer.propose(ctx, laneLease, &change{
		header:  header(state.KindReturn, c),
		compose: func(int64) (any, error) { return body, nil },
	})
	if err != nil {
		return nil, err
	}
	return &api.ReturnResponse{Credited: value.(*state.ReturnResult).Credited}, nil
}

// Registered says whether a token of the audience is registered.
func (a *Authority) Registered(ctx context.Context, c Caller, req *api.RegisteredRequest) (*api.RegisteredResponse, error) {
	if err := a.entitled(c, req.Audience); err != nil {
		return nil, err
	}
	r, err := a.machine.Token(req.Token)
	if err != nil {
		return nil, serviceError(err)
	}
	if r == nil || r.Audience != req.Audience {
		return &api.RegisteredResponse{}, nil
	}
	return &api.RegisteredResponse{Registered: true, Branch: r.Tail, Expires: r.NotAfter}, nil
}

// Verify says whether exactly this token set is genuine, for a caller that may
// know of its audience. It tells points of the chain by their branch ids, and
// never a signature.
func (a *Authority) Verify(ctx context.Context, c Caller, req *api.VerifyRequest) (*api.VerifyResponse, error) {
	t, err := capability.Decode(req.Set)
	if err != nil {
		return nil, serviceError(err)
	}
	in, err := t.Inspect()
	if err != nil {
		return nil, serviceError(err)
	}
	if err := a.entitled(c, in.Identifier.Audience); err != nil {
		return nil, &Error{Code: capability.CodeUnknownKey}
	}
	at := a.cursor()
	branches, err := a.authenticate(ctx, in.Identifier.Audience, req.Set)
	if err != nil {
		return nil, err
	}
	id := &in.Identifier
	identity := capability.Identity{
		Epoch: id.Epoch, Generation: id.Generation, ID: id.ID, NotAfter: id.NotAfter.UnixMilli(),
		Audience: []byte(id.Audience), Subject: []byte(id.Subject),
	}
	set := a.machine.Revocations()
	switch s := set.Token(&identity); {
	case s == capability.Revoked, s == capability.BranchesRevoked &&
		slices.ContainsFunc(branches, func(b capability.BranchID) bool { return set.Branch(id.ID, b) }):
		return nil, &Error{Code: capability.CodeRevoked}
	case s == capability.Forgotten, identity.NotAfter <= a.now():
		return nil, &Error{Code: capability.CodeExpired}
	}
	return &api.VerifyResponse{Branches: branches, NotAfter: id.NotAfter, AsOf: at}, nil
}
