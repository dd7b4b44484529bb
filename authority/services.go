package authority

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/seal"
	"github.com/writ-dev/writ/authority/state"
	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats"
)

const (
	// ServiceTTL is the life of a service's credential, which it renews.
	ServiceTTL = 7 * 24 * time.Hour
	// JoinTTL is how long a join secret can be used.
	JoinTTL = 24 * time.Hour
)

// JoinPrefix opens every join secret, so that secret scanners recognize one.
const JoinPrefix = "writ_join_"

const maxJoinSecret = 128 // bytes

// AddService adds a service and makes its single-use join secret.
func (a *Authority) AddService(ctx context.Context, c Call, req *api.ServiceRequest) (*api.ServiceResponse, error) {
	if _, err := serviceCaveats(&state.AddService{
		Name: req.Name, Audiences: req.Audiences, Derive: req.Derive, Keyless: req.Keyless,
	}); err != nil {
		return nil, err
	}
	secret, err := a.joinSecret(c, req.Name)
	if err != nil {
		return nil, err
	}
	_, value, err := a.proposer.propose(ctx, laneRevoke, &change{
		header: header(state.KindAddService, c),
		compose: func(stamp int64) (any, error) {
			return &state.AddService{
				Name: req.Name, Audiences: req.Audiences, Derive: req.Derive, Keyless: req.Keyless,
				JoinHash: sha256.Sum256([]byte(secret)), JoinUntil: stamp + JoinTTL.Milliseconds(),
			}, nil
		},
	})
	if err != nil {
		return nil, err
	}
	r := value.(*state.ServiceRecord)
	return &api.ServiceResponse{Name: r.Name, JoinSecret: secret, Expires: time.UnixMilli(r.JoinUntil).UTC()}, nil
}

// joinSecret makes a join secret. Only its hash is kept, so for a retry to get
// the same one it follows from the request's id, under a secret of the cluster's.
func (a *Authority) joinSecret(c Call, name string) (string, error) {
	var b [32]byte
	if c.Request == (capability.TokenID{}) {
		if err := a.random(b[:]); err != nil {
			return "", err
		}
	} else {
		admin, err := a.keys.secret(state.PurposeAdmin, newestKey(a.machine, state.PurposeAdmin).Epoch)
		if err != nil {
			return "", serviceError(err)
		}
		key, err := seal.PurposeKey(admin, 0, "join").Expose()
		if err != nil {
			return "", serviceError(err)
		}
		defer clear(key)
		mac := hmac.New(sha256.New, key)
		mac.Write(c.Request[:])
		fmt.Fprintf(mac, "%d %s %d %s", len(c.Name), c.Name, len(name), name)
		mac.Sum(b[:0])
	}
	return JoinPrefix + base64.RawURLEncoding.EncodeToString(b[:]), nil
}

// serviceCaveats are the caveats of a service's credential: what its services
// at the authority are, and for which audiences. Being two conditions, they allow
// every action on every one of the resources; where that is too much (keys of
// an audience that it only derives for, keys for a keyless service) the
// registry is asked.
func serviceCaveats(s *state.AddService) ([]string, error) {
	actions := []string{"feed", "lease", "verify", "renew", "read"}
	if !s.Keyless {
		actions = append(actions, "keys")
	}
	resources := []string{"services/self", "dischargers", "audit/proofs"}
	for _, aud := range s.Audiences {
		resources = append(resources, "audiences/"+aud, "audiences/"+aud+"/budgets")
	}
	if len(s.Derive) > 0 {
		actions = append(actions, "derive")
		for _, aud := range s.Derive {
			resources = append(resources, "audiences/"+aud+"/tokens")
		}
	}
	for _, name := range slices.Concat([]string{s.Name}, s.Audiences, s.Derive) {
		// A name is one segment of a resource, and no pattern.
		segments, err := caveats.SplitResource("x/" + name)
		if err != nil || len(segments) != 2 || segments[1] != name || strings.Contains(name, "*") {
			return nil, invalid(fmt.Sprintf("%q cannot be the name of a service or of an audience: no slash, percent sign or asterisk", name))
		}
	}
	action, err := caveats.Action(actions...)
	if err != nil {
		return nil, invalid(err.Error())
	}
	resource, err := caveats.Resource(resources...)
	if err != nil {
		return nil, invalid(err.Error())
	}
	return []string{action, resource}, nil
}

// Join exchanges a join secret for a credential, once; the secret is the
// authorization, so of the Call only Request and Body count.
func (a *Authority) Join(ctx context.Context, c Call, req *api.JoinRequest) (*api.CredentialResponse, error) {
	if len(req.JoinSecret) > maxJoinSecret || !capability.ValidName(req.Name, capability.MaxSubject) {
		return nil, &Error{Code: api.CodeUnauthorized, Detail: "the join secret is wrong, spent or expired"}
	}
	s, ok := a.machine.Service(req.Name)
	if !ok {
		s = state.ServiceRecord{AddService: state.AddService{Name: req.Name, Audiences: []string{"none"}}}
	}
	var holders []string
	if req.Holder != "" {
		// The API asks for no client certificate.
		if k, err := capability.ParseHolderKey(req.Holder); err != nil || k.Method != capability.HolderDPoP {
			return nil, invalid("holder: not a key's thumbprint (jkt:…)")
		}
		holders = []string{req.Holder}
	}
	c.Caller = Caller{Name: state.ServicePrefix + req.Name}
	return a.credential(ctx, c, &s, holders, sha256.Sum256([]byte(req.JoinSecret)))
}

// Renew gives a service that calls with its own credential a fresh one, bound to
// the same key if that one is.
func (a *Authority) Renew(ctx context.Context, c Call) (*api.CredentialResponse, error) {
	s, ok := a.service(c.Caller)
	if !ok {
		return nil, &Error{Code: capability.CodeActionDenied, Detail: "only a service renews its credential"}
	}
	r, err := a.machine.Token(c.Token)
	if err != nil {
		return nil, serviceError(err)
	}
	if r == nil {
		return nil, &Error{Code: capability.CodeUnregistered, Detail: "the authority did not issue this token"}
	}
	return a.credential(ctx, c, &s, r.Holders, state.Digest{})
}

func (a *Authority) credential(ctx context.Context, c Call, s *state.ServiceRecord, holders []string, hash state.Digest) (*api.CredentialResponse, error) {
	conditions, err := serviceCaveats(&s.AddService)
	if err != nil {
		return nil, &Error{Code: api.CodeUnauthorized, Detail: "the join secret is wrong, spent or expired"}
	}
	if len(holders) > 0 {
		conditions = append(conditions, "holder "+strings.Join(holders, " "))
	}
	m := &minting{ttl: ServiceTTL, record: state.TokenRecord{
		Audience: api.AdminAudience, Subject: state.ServicePrefix + s.Name, Owner: owner(s.AddedBy), Purpose: "service credential",
	}}
	if err := addConditions(m, conditions, nil); err != nil {
		return nil, err
	}
	if err := a.random(m.random[:]); err != nil {
		return nil, err
	}
	_, value, err := a.proposer.propose(ctx, laneIssue, &change{
		header: header(state.KindJoinService, c),
		compose: func(stamp int64) (any, error) {
			r, words, err := a.mint(m, stamp)
			if err != nil {
				return nil, err
			}
			return &state.JoinService{Name: s.Name, Hash: hash, Record: *r, Caveats: words}, nil
		},
	})
	if err != nil {
		return nil, err
	}
	t, err := a.response(value.(*state.TokenRecord))
	if err != nil {
		return nil, err
	}
	return &api.CredentialResponse{Token: t.Token, NotAfter: t.NotAfter}, nil
}

func owner(name string) string {
	if name == "" {
		return state.SystemActor
	}
	return name
}

// RemoveService removes a service and revokes its credentials.
func (a *Authority) RemoveService(ctx context.Context, c Call, name string) error {
	_, _, err := a.proposer.propose(ctx, laneRevoke, &change{
		header: header(state.KindRemoveService, c),
		cutoff: true,
		compose: func(int64) (any, error) {
			return &state.RemoveService{Name: name, Reason: "service removed"}, nil
		},
	})
	return err
}

// Services lists the services by name.
func (a *Authority) Services(ctx context.Context) (*api.ServiceList, error) {
	all := a.machine.Services()
	list := &api.ServiceList{Services: make([]api.ServiceInfo, len(all))}
	for i, s := range all {
		list.Services[i] = api.ServiceInfo{
			Name: s.Name, Audiences: s.Audiences, Derive: s.Derive, Keyless: s.Keyless, Joined: s.Joined,
			Added: time.UnixMilli(s.Added).UTC(), AddedBy: s.AddedBy,
		}
	}
	return list, nil
}

// Dischargers lists the dischargers that caveats can name: the authority's own
// and those configured.
func (a *Authority) Dischargers() *api.DischargerList {
	all := a.dischargers()
	list := &api.DischargerList{Dischargers: make([]api.DischargerInfo, len(all))}
	for i, d := range all {
		list.Dischargers[i] = api.DischargerInfo{Name: d.Name, Location: d.Location, PublicKey: d.PublicKey[:]}
	}
	return list
}
