package authority

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/state"
	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats"
)

// DefaultTTL is a token's life unless more is asked for.
const DefaultTTL = 5 * time.Minute

const (
	maxConditions = 48 // of an issued token: a holder needs room to narrow it
	maxThirdParty = 8
	// maxIssued is how large a token may be when issued: as much again stays for its holders.
	maxIssued = capability.MaxTokenSize / 2
)

// minting is a token about to be minted.
type minting struct {
	record  state.TokenRecord // without id, not-after, keys
	ttl     time.Duration
	notPast int64 // Unix ms: the latest not-after; 0: any
	caveats []capability.NewCaveat
	devices []capability.DeviceID // that caveats name
	random  [10]byte              // of the token id
}

func (a *Authority) random(b []byte) error {
	if _, err := io.ReadFull(a.cfg.Rand, b); err != nil {
		return &Error{Code: api.CodeInternal, Err: fmt.Errorf("reading randomness: %w", err)}
	}
	return nil
}

// mint mints the token at a stamp and completes its record.
func (a *Authority) mint(m *minting, stamp int64) (*state.TokenRecord, []string, error) {
	r := m.record
	if err := a.devicesGood(m.devices); err != nil {
		return nil, nil, err
	}
	var err error
	if r.Epoch, r.Generation, err = a.keys.mints(r.Audience, stamp); err != nil {
		return nil, nil, err
	}
	key, err := a.keys.derive(r.Audience, r.Epoch, r.Generation)
	if err != nil {
		return nil, nil, err
	}
	r.ID = capability.NewTokenID(stamp, m.random)
	r.NotAfter = stamp + m.ttl.Milliseconds()
	if m.notPast != 0 {
		r.NotAfter = min(r.NotAfter, m.notPast)
	}
	t, err := capability.MintCaveats(key, capability.Identifier{
		Epoch: r.Epoch, Generation: r.Generation, ID: r.ID, NotAfter: time.UnixMilli(r.NotAfter),
		Audience: r.Audience, Subject: r.Subject,
	}, m.caveats...)
	if err != nil {
		return nil, nil, err
	}
	r.Unsigned, r.Tail = t.Unsigned(), t.Branch()
	if len(r.Unsigned) > maxIssued {
		return nil, nil, &Error{Code: capability.CodeTooLarge, Detail: fmt.Sprintf("the token would be larger than %d bytes", maxIssued)}
	}
	return &r, words(m.caveats), nil
}

// devicesGood refuses to mint for a device that was revoked, for as long as its
// record says so: the revocation itself ends when what was minted before has
// ended, and a token minted since could outlive it.
func (a *Authority) devicesGood(devices []capability.DeviceID) error {
	store := attestStore{a: a}
	for _, id := range devices {
		d, err := store.Device(id)
		if err != nil {
			return serviceError(err)
		}
		if d != nil && d.Revoked {
			return &Error{Code: api.CodeInvalid, Detail: fmt.Sprintf("device %s was revoked", id), Hint: "if it is good again: writ device forget"}
		}
	}
	return nil
}

// words renders caveats for people.
func words(list []capability.NewCaveat) []string {
	out := make([]string, len(list))
	for i, c := range list {
		if out[i] = c.Condition; c.ThirdParty != nil {
			out[i] = "third-party " + c.ThirdParty.Condition
		}
	}
	return out
}

// response mints the token of a record again, byte for byte as it was.
func (a *Authority) response(r *state.TokenRecord) (*api.TokenResponse, error) {
	key, err := a.keys.derive(r.Audience, r.Epoch, r.Generation)
	if err != nil {
		return nil, serviceError(err)
	}
	t, err := capability.Remint(key, r.Unsigned)
	if err != nil {
		return nil, &Error{Code: api.CodeInternal, Err: err}
	}
	return &api.TokenResponse{
		Token: t.Text(), ID: r.ID, Branch: r.Tail, NotAfter: time.UnixMilli(r.NotAfter).UTC(), Index: r.Index,
	}, nil
}

// register has a token registered, and returns it.
func (a *Authority) register(ctx context.Context, c Call, m *minting) (*api.TokenResponse, error) {
	if err := a.random(m.random[:]); err != nil {
		return nil, err
	}
	_, value, err := a.proposer.propose(ctx, laneIssue, &change{
		header: header(state.KindIssue, c),
		compose: func(stamp int64) (any, error) {
			r, words, err := a.mint(m, stamp)
			if err != nil {
				return nil, err
			}
			return &state.Issue{Record: *r, Caveats: words}, nil
		},
	})
	if err != nil {
		return nil, err
	}
	return a.response(value.(*state.TokenRecord))
}

func header(kind state.Kind, c Call) state.Header {
	return state.Header{
		Kind: kind, Request: c.Request, Body: c.Body,
		Actor: state.Actor{Name: c.Name, Token: c.Token, Branches: c.Branches, Audience: c.Audience},
	}
}

// system is the node itself as a caller.
func system() Call { return Call{Caller: Caller{Name: state.SystemActor}} }

// Issue issues a token. It is committed before it is returned. A token for the
// audience "writ" carries at least the caveats of the caller's own credential,
// and, unless that had none, dies with it.
func (a *Authority) Issue(ctx context.Context, c Call, req *api.IssueRequest) (*api.TokenResponse, error) {
	m, err := a.prepareIssue(c, req)
	if err != nil {
		return nil, err
	}
	return a.register(ctx, c, m)
}

func (a *Authority) prepareIssue(c Call, req *api.IssueRequest) (*minting, error) {
	admin := req.Audience == api.AdminAudience
	m := &minting{record: state.TokenRecord{
		Audience: req.Audience, Subject: req.Subject, Owner: req.Owner, Purpose: req.Purpose, Auditor: req.Auditor,
	}}
	switch {
	case !capability.ValidName(req.Audience, capability.MaxAudience):
		return nil, invalid("audience: 1 to 100 bytes of visible ASCII")
	case !capability.ValidName(req.Subject, capability.MaxSubject):
		return nil, invalid("subject: 1 to 200 bytes of visible ASCII")
	case req.Owner == "" || req.Purpose == "":
		return nil, invalid("owner and purpose are required")
	}
	if req.Subject == state.SystemActor || admin && (req.Subject == state.RootSubject || strings.HasPrefix(req.Subject, state.ServicePrefix)) {
		return nil, invalid("the subject is one of the authority's own")
	}
	var err error
	if m.ttl, err = ttl(req.TTLSeconds, admin); err != nil {
		return nil, err
	}
	if req.Agent != nil {
		if m.record.Agent, err = json.Marshal(req.Agent); err != nil {
			return nil, invalid("agent")
		}
	}
	var conditions []string
	if admin {
		if conditions, err = a.narrowedBy(c, m); err != nil {
			return nil, err
		}
	}
	if err := addConditions(m, conditions, req.Caveats); err != nil {
		return nil, err
	}
	return m, a.addThirdParties(m, req.ThirdParty)
}

// narrowedBy returns the caveats that a credential of the audience "writ" must
// carry when c issues it: c's own, for else a narrow credential could issue
// itself a broad one. With no caveat of its own c may do everything anyway.
func (a *Authority) narrowedBy(c Call, m *minting) ([]string, error) {
	if c.Token == (capability.TokenID{}) && c.Name == state.SystemActor || len(c.Branches) == 1 {
		return nil, nil
	}
	if c.Credential == nil {
		return nil, &Error{Code: capability.CodeActionDenied, Detail: "only a credential without caveats, or one shown whole, issues credentials"}
	}
	in, err := c.Credential.Inspect()
	if err != nil || in.Identifier.ID != c.Token {
		return nil, &Error{Code: api.CodeInternal, Detail: "the credential is not the caller's"}
	}
	conditions, ends, err := inherited(in)
	if err != nil {
		return nil, err
	}
	m.notPast = ends
	m.record.Parent = &state.Parent{Token: c.Token, Branches: c.Branches}
	return conditions, nil
}

func ttl(seconds int64, admin bool) (time.Duration, error) {
	most := state.MaxTTL
	if admin {
		most = state.MaxAdminTTL
	}
	switch {
	case seconds == 0:
		return DefaultTTL, nil
	case seconds < 0 || seconds > int64(most/time.Second):
		return 0, invalid(fmt.Sprintf("ttl_seconds: 1 to %d", int64(most/time.Second)))
	}
	return time.Duration(seconds) * time.Second, nil
}

// addConditions adds first-party caveats, those inherited and those asked for,
// and notes their holders and devices.
func addConditions(m *minting, inherited, asked []string) error {
	if len(inherited)+len(asked) > maxConditions {
		return &Error{Code: capability.CodeTooLarge, Detail: fmt.Sprintf("more than %d caveats", maxConditions)}
	}
	budgets := 0
	for i, condition := range slices.Concat(inherited, asked) {
		if err := caveats.Validate(condition); err != nil {
			return invalid(fmt.Sprintf("caveat %d: %v", i+1-len(inherited), err))
		}
		word, rest, _ := strings.Cut(condition, " ")
		switch word {
		case "holder":
			m.record.Holders = append(m.record.Holders, strings.Fields(rest)...)
		case "device":
			id, err := capability.ParseDeviceID(rest)
			if err != nil {
				return invalid(fmt.Sprintf("caveat %d: %v", i+1-len(inherited), err))
			}
			m.devices = append(m.devices, id)
		case "max-calls":
			if budgets++; budgets > capability.MaxBudgets {
				return &Error{Code: capability.CodeTooLarge, Detail: fmt.Sprintf("more than %d max-calls", capability.MaxBudgets)}
			}
		}
		m.caveats = append(m.caveats, capability.NewCaveat{Condition: condition})
	}
	return nil
}

func (a *Authority) addThirdParties(m *minting, asked []api.ThirdPartyRequest) error {
	if len(asked) > maxThirdParty {
		return &Error{Code: capability.CodeTooLarge, Detail: fmt.Sprintf("more than %d third-party caveats", maxThirdParty)}
	}
	dischargers := a.dischargers()
	for _, req := range asked {
		i := slices.IndexFunc(dischargers, func(d Discharger) bool { return d.Name == req.Discharger })
		if i < 0 {
			return invalid(fmt.Sprintf("no discharger %q is configured", req.Discharger))
		}
		if req.Condition == "" || len(req.Condition) > state.MaxText {
			return invalid("third-party condition: 1 to 500 bytes")
		}
		tp := &capability.ThirdParty{Condition: req.Condition, AnyMachine: req.AnyMachine}
		if req.Holder != "" {
			k, err := capability.ParseHolderKey(req.Holder)
			if err != nil {
				return invalid("third-party holder: jkt:… or x5t:…")
			}
			tp.Holder = &k
		}
		if req.Device != "" {
			d, err := capability.ParseDeviceID(req.Device)
			if err != nil {
				return invalid("third-party device: 64 hexadecimal digits")
			}
			tp.Device = &d
			m.devices = append(m.devices, d)
		}
		if strings.HasPrefix(req.Condition, "attested ") && tp.Holder == nil && tp.Device == nil && !tp.AnyMachine {
			return invalid("attested needs the expected holder or device, or any_machine in so many words")
		}
		d := dischargers[i]
		m.caveats = append(m.caveats, capability.NewCaveat{ThirdParty: tp, To: d.PublicKey, Location: d.Location})
	}
	return nil
}

// inherited returns the conditions that a token must carry which replaces one,
// so that it allows no more, and when it must end (Unix ms). It takes those of the
// root and of its discharges. Left out are: holder and request, which bind
// another hop; branch and bound, which say where a chain is; and declare, which
// only ever adds a fact. A max-calls cannot come along: a new chain would have
// a budget of its own, and the calls would be counted twice over, so
// such a token is not_forwardable.
func inherited(in *capability.Inspection) (conditions []string, ends int64, err error) {
	ends = in.Identifier.NotAfter.UnixMilli()
	all := slices.Clone(in.Caveats)
	for _, d := range in.Discharges {
		all = append(all, d.Caveats...)
	}
	for _, c := range all {
		if c.ThirdParty {
			continue // its discharge was shown, and its conditions are in all
		}
		word, rest, _ := strings.Cut(c.Condition, " ")
		switch word {
		case "holder", "request", "branch", "bound", "declare":
			continue
		case "max-calls":
			return nil, 0, &Error{
				Code: capability.CodeNotForwardable, Detail: "a token with a budget of calls cannot be derived from",
				Hint: "narrow and forward it, or have the next audience's token issued",
			}
		case "time-before":
			if t, err := time.Parse(time.RFC3339Nano, rest); err == nil {
				ends = min(ends, t.UnixMilli())
			}
		}
		if !slices.Contains(conditions, c.Condition) {
			conditions = append(conditions, c.Condition)
		}
	}
	return conditions, ends, nil
}

// Derive issues a token for another audience that dies with the one presented.
//
// It carries every first-party condition of the token presented and of its
// discharges, but for those that name another hop (holder, request) and those
// that say nothing (branch, bound, declare). The service vouches that it has
// verified the holder's proof: it is the only one who could. A max-calls cannot
// be carried over without counting its calls twice, so a token with one is
// refused as not_forwardable.
func (a *Authority) Derive(ctx context.Context, c Call, req *api.DeriveRequest) (*api.TokenResponse, error) {
	m, err := a.prepareDerive(ctx, c, req)
	if err != nil {
		return nil, err
	}
	return a.register(ctx, c, m)
}

func (a *Authority) prepareDerive(ctx context.Context, c Call, req *api.DeriveRequest) (*minting, error) {
	set, err := capability.Parse(req.Token)
	if err != nil {
		return nil, serviceError(err)
	}
	in, err := set.Inspect()
	if err != nil {
		return nil, serviceError(err)
	}
	id := &in.Identifier
	service, ok := a.service(c.Caller)
	switch {
	case !ok:
		return nil, &Error{Code: capability.CodeActionDenied, Detail: "only a service derives tokens, with its own credential"}
	case !slices.Contains(service.Audiences, id.Audience):
		return nil, &Error{Code: capability.CodeUnknownKey, Detail: "the token presented is not for an audience of this service"}
	case !slices.Contains(service.Derive, req.Audience):
		return nil, &Error{Code: capability.CodeResourceDenied, Detail: "this service may not derive for that audience"}
	}
	branches, err := a.authenticate(ctx, id.Audience, set.Bytes())
	if err != nil {
		return nil, err
	}
	parent, err := a.registered(id, branches)
	if err != nil {
		return nil, err
	}
	m := &minting{record: state.TokenRecord{
		Audience: req.Audience, Subject: id.Subject, Owner: parent.Owner, Purpose: parent.Purpose, Auditor: parent.Auditor,
		Agent: parent.Agent, Parent: &state.Parent{Token: id.ID, Branches: branches},
		Actors: append(slices.Clone(parent.Actors), service.Name),
	}}
	if m.ttl, err = ttl(req.TTLSeconds, false); err != nil {
		return nil, err
	}
	conditions, ends, err := inherited(in)
	if err != nil {
		return nil, err
	}
	if ends <= a.now() {
		return nil, &Error{Code: capability.CodeExpired, Detail: "the token presented has expired"}
	}
	m.notPast = ends
	return m, addConditions(m, conditions, req.Caveats)
}

// registered returns the record of a token whose chain, which has been
// verified, passes through its registered tail.
func (a *Authority) registered(id *capability.Identifier, branches []capability.BranchID) (*state.TokenRecord, error) {
	r, err := a.machine.Token(id.ID)
	if err != nil {
		return nil, serviceError(err)
	}
	if r == nil || id.Issued >= len(branches) || branches[id.Issued] != r.Tail {
		return nil, &Error{Code: capability.CodeUnregistered, Detail: "the authority did not issue this token"}
	}
	return r, nil
}

// authenticate verifies a token set of an audience, discharges and all.
func (a *Authority) authenticate(ctx context.Context, audience string, set []byte) ([]capability.BranchID, error) {
	if audience == api.AdminAudience {
		return nil, &Error{Code: capability.CodeUnknownKey}
	}
	v, err := capability.NewVerifier(keysOf{ring: a.keys}, []string{audience}, a.checker, capability.UnsafeWithoutRevocations())
	if err != nil {
		return nil, serviceError(err)
	}
	branches, err := v.Authenticate(ctx, set, nil)
	if err != nil {
		return nil, serviceError(err)
	}
	return branches, nil
}

// verifyChain verifies the root macaroon of a token alone.
func (a *Authority) verifyChain(t *capability.Token, id *capability.Identifier) ([]capability.BranchID, error) {
	key, _ := a.keys.key(id.Audience, id.Epoch, id.Generation)
	if key == nil {
		return nil, &Error{Code: capability.CodeUnknownKey}
	}
	branches, err := t.VerifyChain(key)
	if err != nil {
		return nil, serviceError(err)
	}
	return branches, nil
}

// service returns the service whose own credential the caller has.
func (a *Authority) service(c Caller) (state.ServiceRecord, bool) {
	name, ok := strings.CutPrefix(c.Name, state.ServicePrefix)
	if !ok {
		return state.ServiceRecord{}, false
	}
	return a.machine.Service(name)
}

// entitled checks that a service has this audience; who is no service is
// bounded by its credential alone.
func (a *Authority) entitled(c Caller, audience string) error {
	if !strings.HasPrefix(c.Name, state.ServicePrefix) {
		return nil
	}
	if s, ok := a.service(c); !ok || !slices.Contains(s.Audiences, audience) {
		return &Error{Code: capability.CodeResourceDenied, Detail: "this service does not have that audience"}
	}
	return nil
}

// maxCalls reads the limit of a max-calls condition.
func maxCalls(condition string) (limit uint64, ok bool, err error) {
	rest, ok := strings.CutPrefix(condition, "max-calls ")
	if !ok {
		return 0, false, nil
	}
	if err := caveats.Validate(condition); err != nil {
		return 0, false, err
	}
	limit, err = strconv.ParseUint(rest, 10, 64)
	if err != nil {
		return 0, false, errors.Join(err, caveats.ErrCondition)
	}
	return limit, true, nil
}
