package authority

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/discharger"
	"github.com/writ-dev/writ/authority/state"
	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats/attest"
	"github.com/writ-dev/writ/caveats/attest/verifier"
)

// OwnDischarger is the name of the discharger that every authority has, and
// OwnLocation where it is: whoever was given an authority's address asks that.
const (
	OwnDischarger = "authority"
	OwnLocation   = "writ:authority"
)

// attestation is the authority's own discharger, opened when it is first asked,
// and again when its key was replaced.
type attestation struct {
	mu      sync.Mutex
	service *discharger.Service // guarded by mu

	countsMu sync.Mutex
	counts   map[attest.Reason]uint64 // of refusals, and of what was accepted by ""; guarded by countsMu
}

func (t *attestation) count(r attest.Reason) {
	t.countsMu.Lock()
	defer t.countsMu.Unlock()
	if t.counts == nil {
		t.counts = make(map[attest.Reason]uint64)
	}
	t.counts[r]++
}

// outcomes are the counts by name: "accepted", or the reason of a refusal. They
// are as many as package attest has reasons.
func (t *attestation) outcomes() map[string]uint64 {
	t.countsMu.Lock()
	defer t.countsMu.Unlock()
	all := map[string]uint64{"accepted": t.counts[""]}
	for r, n := range t.counts {
		if r != "" {
			all[string(r)] = n
		}
	}
	return all
}

// discharger returns the authority's own discharger.
func (a *Authority) discharger() (*discharger.Service, error) {
	a.attestation.mu.Lock()
	defer a.attestation.mu.Unlock()
	k := a.machine.SealedKey(state.PurposeDischarger, 1)
	if k == nil {
		return nil, &Error{Code: capability.CodeUnavailable, Detail: "this authority has no discharger"}
	}
	// A new incarnation has another key.
	current := func(s *discharger.Service) bool { p := s.Public(); return bytes.Equal(p[:], k.Public) }
	if s := a.attestation.service; s != nil && current(s) {
		return s, nil
	}
	secret, err := a.keys.secret(state.PurposeDischarger, 1)
	if err != nil {
		return nil, serviceError(err)
	}
	seed, err := secret.Expose()
	if err != nil {
		return nil, serviceError(err)
	}
	defer clear(seed)
	key, err := capability.NewDischargerKey([32]byte(seed))
	if err != nil {
		return nil, serviceError(err)
	}
	s, err := discharger.New(discharger.Config{
		Key: key, Store: &attestStore{a: a}, Clock: a.cfg.Clock, Rand: a.cfg.Rand, Logger: a.cfg.Logger, Observe: a.attestation.count,
	})
	if err != nil {
		return nil, serviceError(err)
	}
	if !current(s) {
		return nil, &Error{Code: capability.CodeUnavailable, Detail: "the discharger's key is being replaced"}
	}
	a.attestation.service = s
	return s, nil
}

// dischargers are those configured, and the authority's own.
func (a *Authority) dischargers() []Discharger {
	all := a.cfg.Dischargers
	if k := a.machine.SealedKey(state.PurposeDischarger, 1); k != nil && len(k.Public) == len(capability.DischargerPublicKey{}) {
		own := Discharger{Name: OwnDischarger, Location: OwnLocation, PublicKey: capability.DischargerPublicKey(k.Public)}
		all = append([]Discharger{own}, all...)
	}
	return all
}

// AttestBegin makes a challenge. by names the caller who may enroll a device
// without a caveat, and is empty for any other.
func (a *Authority) AttestBegin(ctx context.Context, by string, req *attest.BeginRequest) (*attest.Challenge, error) {
	s, err := a.discharger()
	if err != nil {
		return nil, err
	}
	c, err := s.Begin(ctx, req, by)
	return c, attestError(err)
}

// AttestFinish judges evidence, and returns the discharge that it is worth.
func (a *Authority) AttestFinish(ctx context.Context, req *attest.FinishRequest) (*api.AttestResponse, error) {
	s, err := a.discharger()
	if err != nil {
		return nil, err
	}
	r, err := s.Finish(ctx, req)
	return r, attestError(err)
}

// attestError tells a stranger little, and the log why.
func attestError(err error) error {
	if err == nil {
		return nil
	}
	r, ok := errors.AsType[*attest.Refusal](err)
	if !ok {
		return serviceError(err)
	}
	e := &Error{Code: api.CodeAttestation, Detail: "the attestation was refused; the operator's log says why", Err: err}
	switch r.Public() {
	case string(attest.ReasonTooLarge):
		e.Code, e.Detail = capability.CodeTooLarge, "a part of the message is too large"
	case string(attest.ReasonMalformed):
		e.Code, e.Detail = api.CodeInvalid, "a part of the message cannot be read"
	case string(attest.ReasonChallenge):
		e.Code, e.Detail = api.CodeChallenge, "the challenge is unknown, used or expired: begin again"
	}
	return e
}

// attestStore is the replicated state as a discharger's Store.
type attestStore struct {
	a *Authority

	mu     sync.Mutex
	policy map[string]*parsedPolicy // guarded by mu
	roots  map[string]*parsedRoots  // guarded by mu
}

type parsedPolicy struct {
	version uint64
	at      int64 // a restored state may give a version again
	policy  *attest.Policy
}

type parsedRoots struct {
	at    int64
	pem   [sha256.Size]byte
	roots *verifier.Roots
}

// Policy implements discharger.Store.
func (s *attestStore) Policy(name string) (*attest.Policy, error) {
	r, err := s.a.machine.Policy(name, 0)
	if err != nil || r == nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.policy[name]; p != nil && p.version == r.Version && p.at == r.At {
		return p.policy, nil
	}
	p, err := attest.ParsePolicy(r.Document)
	if err != nil {
		return nil, fmt.Errorf("policy %q, version %d: %w", name, r.Version, err)
	}
	p.Version = r.Version
	if s.policy == nil || len(s.policy) >= state.MaxPolicies {
		s.policy = make(map[string]*parsedPolicy)
	}
	s.policy[name] = &parsedPolicy{r.Version, r.At, p}
	return p, nil
}

// Roots implements discharger.Store.
func (s *attestStore) Roots(bundle string) (*verifier.Roots, bool) {
	r, err := s.a.machine.Roots(bundle)
	if err != nil || r == nil {
		return nil, false
	}
	sum := sha256.Sum256(r.PEM)
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.roots[bundle]; p != nil && p.at == r.At && p.pem == sum {
		return p.roots, true
	}
	roots, err := verifier.ParseRoots(r.PEM)
	if err != nil {
		return nil, false
	}
	if s.roots == nil || len(s.roots) >= state.MaxBundles {
		s.roots = make(map[string]*parsedRoots)
	}
	s.roots[bundle] = &parsedRoots{r.At, sum, roots}
	return roots, true
}

// Device implements discharger.Store. A device that was revoked without ever
// having been enrolled is as good as one whose record says so.
func (s *attestStore) Device(id capability.DeviceID) (*attest.Stored, error) {
	r, err := s.a.machine.Device(id)
	if err != nil {
		return nil, err
	}
	revoked := s.a.machine.Revocations().Device(id)
	if r == nil {
		if revoked {
			return &attest.Stored{Revoked: true}, nil
		}
		return nil, nil
	}
	stored := r.Stored()
	stored.Revoked = stored.Revoked || revoked
	return stored, nil
}

// Accept implements discharger.Store.
func (s *attestStore) Accept(ctx context.Context, e *discharger.Accepted) error {
	r := e.Result
	body := &state.Attest{
		Challenge: state.ChallengeID(e.Challenge), Expires: e.Expires.UnixMilli(), Device: r.Device, EK: string(r.Kind), AK: r.AKName,
		Activated: r.Activated, Holder: r.Holder.String(), Counters: r.Counters, Firmware: r.Firmware, Policy: r.Policy, PolicyVersion: r.Version,
		PCRSet: r.PCRSet, Posture: e.Posture, Evidence: e.Evidence, By: e.By,
	}
	if c := e.Caveat; c != nil {
		body.Token, body.Branch, body.Audience = c.Token, c.Branch, c.Audience
		body.Until, body.Caveats = e.Until.UnixMilli(), e.Conditions
	}
	return s.propose(ctx, laneIssue, state.KindAttest, body)
}

// Fail implements discharger.Store.
func (s *attestStore) Fail(ctx context.Context, f *discharger.Failed) error {
	reason := string(f.Refusal.Reason) + ": " + f.Refusal.Detail
	return s.propose(ctx, laneRevoke, state.KindAttestFailed, &state.AttestFailed{
		Challenge: state.ChallengeID(f.Challenge), Expires: f.Expires.UnixMilli(), Device: f.Device, Policy: f.Policy, PolicyVersion: f.PolicyVersion,
		Reason: clipReason(reason), Revoke: f.Revoke, Evidence: f.Evidence,
	})
}

// clipReason makes a refusal's text one that the state takes as a reason.
func clipReason(s string) string {
	b := []rune(fmt.Sprintf("%+q", s)) // ASCII, without control characters
	return string(b[1:min(len(b)-1, state.MaxText)])
}

func (s *attestStore) propose(ctx context.Context, l lane, kind state.Kind, body any) error {
	_, _, err := s.a.proposer.propose(ctx, l, &change{
		header:  header(kind, system()),
		compose: func(int64) (any, error) { return body, nil },
	})
	return err
}

// SetPolicy stores the next version of an attestation policy.
func (a *Authority) SetPolicy(ctx context.Context, c Call, req *api.PolicyRequest) (*api.PolicyInfo, error) {
	p, err := attest.ParsePolicy([]byte(req.Document))
	if err != nil {
		return nil, invalidAttest(err)
	}
	if p.Version != 0 {
		return nil, invalid("a policy's version is the authority's to give: leave it out")
	}
	for _, bundle := range p.EKRoots {
		if r, err := a.machine.Roots(bundle); err != nil || r == nil {
			return nil, &Error{Code: api.CodeInvalid, Detail: fmt.Sprintf("no bundle of roots %q is known", bundle), Hint: "store it first: writ device roots set", Err: err}
		}
	}
	return a.setPolicy(ctx, c, &state.SetPolicy{Name: p.Name, Document: []byte(req.Document)})
}

// RemovePolicy removes a policy: nothing is attested by it any more.
func (a *Authority) RemovePolicy(ctx context.Context, c Call, name string) error {
	_, err := a.setPolicy(ctx, c, &state.SetPolicy{Name: name})
	return err
}

func (a *Authority) setPolicy(ctx context.Context, c Call, body *state.SetPolicy) (*api.PolicyInfo, error) {
	_, value, err := a.proposer.propose(ctx, laneRevoke, &change{
		header:  header(state.KindSetPolicy, c),
		compose: func(int64) (any, error) { return body, nil },
	})
	if err != nil {
		return nil, err
	}
	info := policyInfo(value.(*state.PolicyRecord))
	return &info, nil
}

func policyInfo(r *state.PolicyRecord) api.PolicyInfo {
	return api.PolicyInfo{Name: r.Name, Version: r.Version, Document: string(r.Document), By: r.By, At: millis(r.At)}
}

// invalidAttest is a document's fault, told in full to the operator who sent it.
func invalidAttest(err error) error {
	if r, ok := errors.AsType[*attest.Refusal](err); ok {
		return invalid(r.Detail)
	}
	return invalid(err.Error())
}

// Policy returns a version of a policy; 0 is the newest.
func (a *Authority) Policy(ctx context.Context, name string, version uint64) (*api.PolicyInfo, error) {
	r, err := a.machine.Policy(name, version)
	if err != nil {
		return nil, serviceError(err)
	}
	if r == nil {
		return nil, &Error{Code: api.CodeNotFound, Detail: "no such policy, or a version that is kept no longer"}
	}
	info := policyInfo(r)
	return &info, nil
}

// Policies lists the newest version of each policy, without the documents.
func (a *Authority) Policies(ctx context.Context) (*api.PolicyList, error) {
	all, err := a.machine.Policies()
	if err != nil {
		return nil, serviceError(err)
	}
	list := &api.PolicyList{Policies: make([]api.PolicyInfo, len(all))}
	for i := range all {
		all[i].Document = nil
		list.Policies[i] = policyInfo(&all[i])
	}
	return list, nil
}

// SetRoots stores a bundle of roots.
func (a *Authority) SetRoots(ctx context.Context, c Call, name string, req *api.RootsRequest) (*api.RootsInfo, error) {
	roots, err := verifier.ParseRoots([]byte(req.PEM))
	if err != nil {
		return nil, invalid(err.Error())
	}
	if err := a.setRoots(ctx, c, &state.SetRoots{Name: name, PEM: roots.PEM()}); err != nil {
		return nil, err
	}
	return a.Roots(ctx, name)
}

// RemoveRoots removes a bundle of roots: nothing that it certifies is trusted any more.
func (a *Authority) RemoveRoots(ctx context.Context, c Call, name string) error {
	return a.setRoots(ctx, c, &state.SetRoots{Name: name})
}

func (a *Authority) setRoots(ctx context.Context, c Call, body *state.SetRoots) error {
	_, _, err := a.proposer.propose(ctx, laneRevoke, &change{
		header:  header(state.KindSetRoots, c),
		compose: func(int64) (any, error) { return body, nil },
	})
	return err
}

// Roots returns a bundle of roots.
func (a *Authority) Roots(ctx context.Context, name string) (*api.RootsInfo, error) {
	r, err := a.machine.Roots(name)
	if err != nil {
		return nil, serviceError(err)
	}
	if r == nil {
		return nil, &Error{Code: api.CodeNotFound, Detail: "no such bundle of roots"}
	}
	return rootsInfo(r)
}

func rootsInfo(r *state.RootsRecord) (*api.RootsInfo, error) {
	roots, err := verifier.ParseRoots(r.PEM)
	if err != nil {
		return nil, serviceError(err)
	}
	info := &api.RootsInfo{Name: r.Name, PEM: string(r.PEM), By: r.By, At: millis(r.At)}
	for _, c := range roots.Certificates() {
		sum := sha256.Sum256(c.Raw)
		info.Certificates = append(info.Certificates, api.RootInfo{
			Subject: c.Subject.String(), Fingerprint: hex.EncodeToString(sum[:]), NotAfter: c.NotAfter.UTC(),
		})
	}
	return info, nil
}

// AllRoots lists the bundles of roots, without the certificates themselves.
func (a *Authority) AllRoots(ctx context.Context) (*api.RootsList, error) {
	all, err := a.machine.AllRoots()
	if err != nil {
		return nil, serviceError(err)
	}
	list := &api.RootsList{Bundles: make([]api.RootsInfo, len(all))}
	for i := range all {
		info, err := rootsInfo(&all[i])
		if err != nil {
			return nil, err
		}
		info.PEM = ""
		list.Bundles[i] = *info
	}
	return list, nil
}

// Device returns what is known of a device.
func (a *Authority) Device(ctx context.Context, id capability.DeviceID) (*api.DeviceInfo, error) {
	r, err := a.machine.Device(id)
	if err != nil {
		return nil, serviceError(err)
	}
	if r == nil {
		return nil, &Error{Code: api.CodeNotFound, Detail: "no such device"}
	}
	info := deviceInfo(r)
	return &info, nil
}

func deviceInfo(r *state.DeviceRecord) api.DeviceInfo {
	info := api.DeviceInfo{
		Device: r.ID.String(), EK: r.EK, AKs: make([]string, len(r.AKs)), Holder: r.Holder, Reset: r.Counters.Reset, Restart: r.Counters.Restart,
		Clock: r.Counters.Clock, Firmware: r.Firmware.String(), Policy: r.Policy, PolicyVersion: r.PolicyVersion, PCRSet: r.PCRSet,
		Posture: string(r.Posture), Enrolled: millis(r.Enrolled), EnrolledBy: r.EnrolledBy, Attested: millis(r.Attested), Count: r.Count,
		Revoked: millis(r.Revoked), Reason: r.Reason,
	}
	for i, ak := range r.AKs {
		info.AKs[i] = hex.EncodeToString(ak)
	}
	return info
}

// Devices lists devices by id, after the cursor; a limit of 0 is 100.
func (a *Authority) Devices(ctx context.Context, cursor string, limit int) (*api.DeviceList, error) {
	limit, err := pageSize(limit)
	if err != nil {
		return nil, err
	}
	var after capability.DeviceID
	if cursor != "" {
		if after, err = capability.ParseDeviceID(cursor); err != nil {
			return nil, invalid("cursor: not one of this list's")
		}
	}
	page, err := a.machine.Devices(after, limit)
	if err != nil {
		return nil, serviceError(err)
	}
	list := &api.DeviceList{Devices: make([]api.DeviceInfo, len(page))}
	for i := range page {
		list.Devices[i] = deviceInfo(&page[i])
	}
	if len(page) == limit {
		list.Next = page[limit-1].ID.String()
	}
	return list, nil
}

// ForgetDevice forgets a device, so that it can enroll anew: after a repair, or
// when its TPM was cleared on purpose. A revocation outlives it.
func (a *Authority) ForgetDevice(ctx context.Context, c Call, id capability.DeviceID, reason string) (*api.ForgetDeviceResponse, error) {
	_, value, err := a.proposer.propose(ctx, laneRevoke, &change{
		header:  header(state.KindForgetDevice, c),
		compose: func(int64) (any, error) { return &state.ForgetDevice{Device: id, Reason: reason}, nil },
	})
	if err != nil {
		return nil, err
	}
	var until time.Time
	if r := value.(*state.ForgetResult); r.Until != 0 {
		until = millis(r.Until)
	}
	return &api.ForgetDeviceResponse{RevokedUntil: until}, nil
}
