package discharger

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"strings"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats/attest"
	"github.com/writ-dev/writ/caveats/attest/verifier"
)

// Condition is the first word of the conditions that a Service answers; the
// name of a policy follows.
const Condition = "attested"

// Store is what a Service judges by, and where it puts what it found.
type Store interface {
	// Policy returns the newest version of a policy, or nil.
	Policy(name string) (*attest.Policy, error)
	// Roots returns a bundle of roots.
	Roots(bundle string) (*verifier.Roots, bool)
	// Device returns what is known of a device, or nil.
	Device(id capability.DeviceID) (*attest.Stored, error)
	// Accept consumes the challenge, stores what is now known of the device and
	// records the discharge, in one step, or does nothing. It refuses a challenge
	// that was used, and judges again what may have changed: the policy's version,
	// the device, its counters.
	Accept(context.Context, *Accepted) error
	// Fail consumes the challenge, records the refusal, and revokes the device if
	// Revoke says so.
	Fail(context.Context, *Failed) error
}

// Accepted is evidence that was accepted.
type Accepted struct {
	Challenge [attest.ChallengeIDSize]byte
	Expires   time.Time // of the challenge
	Result    *attest.Result
	Posture   []byte // as it was sent
	Evidence  []byte // JSON of an Evidence
	By        string // who asked for an enrolment
	// Of the discharge; nil and zero for an enrolment.
	Caveat     *capability.OpenedCaveat
	Until      time.Time
	Conditions []string
}

// Failed is evidence that a device which was good has changed.
type Failed struct {
	Challenge     [attest.ChallengeIDSize]byte
	Expires       time.Time // of the challenge
	Device        capability.DeviceID
	Policy        string
	PolicyVersion uint64
	Refusal       *attest.Refusal
	Revoke        bool
	Evidence      []byte // JSON of an Evidence
}

// Evidence is what is recorded with an issuance: everything that it takes to
// check the signatures again.
type Evidence struct {
	Challenge        []byte        `json:"challenge"`
	Nonce            []byte        `json:"nonce"`
	CaveatHash       attest.Digest `json:"caveat_hash"`
	EKName           attest.Name   `json:"ek_name"`
	AK               []byte        `json:"ak"`
	Holder           []byte        `json:"holder"`
	Quote            []byte        `json:"quote"`
	QuoteSignature   []byte        `json:"quote_signature"`
	PCRs             [][]byte      `json:"pcrs"`
	Certify          []byte        `json:"certify"`
	CertifySignature []byte        `json:"certify_signature"`
	Signature        []byte        `json:"signature"`
	Posture          []byte        `json:"posture"`
}

// Config makes a Service. Key, Store, Clock and Rand are required.
type Config struct {
	Key    *capability.DischargerKey
	Store  Store
	Clock  func() time.Time
	Rand   io.Reader
	Logger *slog.Logger // nil discards
	// Observe, if set, is told of each refusal, with its reason, and of each
	// evidence that was accepted, with "".
	Observe func(attest.Reason)
}

// Service is the discharger. It is safe for concurrent use.
type Service struct {
	cfg    Config
	sealer *sealer
	room   chan struct{} // for computations under way
}

// New makes a Service.
func New(cfg Config) (*Service, error) {
	if cfg.Key == nil || cfg.Store == nil || cfg.Clock == nil || cfg.Rand == nil {
		return nil, errors.New("discharger: a key, a store, a clock and randomness are required")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s, err := newSealer(cfg.Key, cfg.Rand)
	if err != nil {
		return nil, err
	}
	return &Service{cfg: cfg, sealer: s, room: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)))}, nil
}

// Public is the key that caveats are sealed to.
func (s *Service) Public() capability.DischargerPublicKey { return s.cfg.Key.Public() }

// enter waits for room to compute: more at once than there are processors
// would only make all of them late.
func (s *Service) enter(ctx context.Context) error {
	select {
	case s.room <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *Service) leave() { <-s.room }

// ask opens what the holder wants answered: the policy's name, and whom the
// caveat expects.
func (s *Service) ask(caveat []byte, now time.Time) (*capability.OpenedCaveat, string, error) {
	unexpected := func(format string, args ...any) error {
		return attest.Refuse(attest.ReasonUnexpected, format, args...)
	}
	o, err := s.cfg.Key.OpenCaveat(caveat)
	if err != nil {
		return nil, "", unexpected("the caveat is not sealed to this discharger")
	}
	word, policy, _ := strings.Cut(o.Condition, " ")
	switch {
	case word != Condition || !attest.ValidName(policy):
		return nil, "", unexpected("%q is no condition that this discharger answers", o.Condition)
	case !now.Before(o.Expires):
		return nil, "", unexpected("the caveat ended at %s", o.Expires.Format(time.RFC3339))
	}
	return o, policy, nil
}

// Begin makes a challenge. by names who asks for an enrolment, and is empty for
// a caller who may not: then only a caveat can be answered. Errors:
// *attest.Refusal, or the Store's.
func (s *Service) Begin(ctx context.Context, req *attest.BeginRequest, by string) (*attest.Challenge, error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	defer s.leave()
	c, err := s.begin(req, by)
	return c, s.told("begin", err)
}

func (s *Service) begin(req *attest.BeginRequest, by string) (*attest.Challenge, error) {
	if err := req.Check(); err != nil {
		return nil, err
	}
	now := s.cfg.Clock()
	ask, name := attest.Ask{Audience: api.AdminAudience, AnyMachine: true}, req.Policy
	if len(req.Caveat) == 0 {
		if by == "" {
			return nil, attest.Refuse(attest.ReasonUnexpected, "an enrolment without a caveat needs a credential")
		}
	} else {
		o, policy, err := s.ask(req.Caveat, now)
		if err != nil {
			return nil, err
		}
		by, name = "", policy
		ask = attest.Ask{Caveat: req.Caveat, Audience: o.Audience, Holder: o.Holder, Device: o.Device, AnyMachine: o.AnyMachine}
	}
	policy, err := s.cfg.Store.Policy(name)
	if err != nil {
		return nil, err
	}
	if policy == nil {
		return nil, attest.Refuse(attest.ReasonPolicy, "there is no policy %q", name)
	}
	var failed error
	b := verifier.Begin{
		Now: now, Rand: s.cfg.Rand, Policy: policy, Roots: s.cfg.Store.Roots, Ask: ask, Request: req,
		Known: func(id capability.DeviceID) *attest.Stored {
			d, err := s.cfg.Store.Device(id)
			failed = err
			return d
		},
	}
	c, pending, err := b.Challenge()
	if failed != nil {
		return nil, failed
	}
	if err != nil {
		return nil, err
	}
	if c.State, err = s.sealer.seal(&begun{req.Caveat, by, pending}); err != nil {
		return nil, err
	}
	return c, nil
}

// Finish judges the evidence, has it recorded and makes the discharge. Errors:
// *attest.Refusal, or the Store's.
func (s *Service) Finish(ctx context.Context, req *attest.FinishRequest) (*api.AttestResponse, error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	accepted, failed, err := s.judge(req)
	s.leave() // before anything that waits for a disk
	if failed != nil {
		err = errors.Join(err, s.cfg.Store.Fail(ctx, failed))
	}
	if err == nil {
		err = s.cfg.Store.Accept(ctx, accepted)
	}
	if err != nil {
		return nil, s.told("finish", err)
	}
	r := &api.AttestResponse{Device: accepted.Result.Device.String(), Holder: accepted.Result.Holder.String()}
	s.observe("")
	s.cfg.Logger.Info("attested", "device", r.Device, "policy", accepted.Result.Policy, "activated", accepted.Result.Activated)
	if accepted.Caveat == nil {
		return r, nil
	}
	d, err := accepted.Caveat.Discharge(accepted.Conditions...)
	if err != nil {
		return nil, err
	}
	r.Discharge, r.Expires = d.Text(), accepted.Until
	return r, nil
}

// judge decides about evidence; nothing has been stored when it returns.
func (s *Service) judge(req *attest.FinishRequest) (*Accepted, *Failed, error) {
	if err := req.Check(); err != nil {
		return nil, nil, err
	}
	b, err := s.sealer.open(req.State)
	if err != nil {
		return nil, nil, err
	}
	p, now := b.pending, s.cfg.Clock()
	policy, err := s.cfg.Store.Policy(p.Policy)
	if err != nil {
		return nil, nil, err
	}
	stored, err := s.cfg.Store.Device(p.Device)
	if err != nil {
		return nil, nil, err
	}
	f := verifier.Finish{Now: now, Policy: policy, Pending: p, Stored: stored, Request: req}
	result, err := f.Result()
	evidence, jsonErr := json.Marshal(&Evidence{
		Challenge: p.ID, Nonce: p.Nonce, CaveatHash: p.CaveatHash, EKName: p.EKName, AK: p.AK, Holder: p.Holder,
		Quote: req.Quote, QuoteSignature: req.QuoteSignature, PCRs: req.PCRs, Certify: req.Certify, CertifySignature: req.CertifySignature,
		Signature: req.Signature, Posture: req.Posture,
	})
	if jsonErr != nil {
		return nil, nil, jsonErr
	}
	if err != nil {
		if r, ok := errors.AsType[*attest.Refusal](err); ok && r.Signed() && stored != nil {
			return nil, &Failed{
				Challenge: [attest.ChallengeIDSize]byte(p.ID), Expires: p.Expires, Device: p.Device, Policy: p.Policy, PolicyVersion: p.PolicyVersion,
				Refusal: r, Revoke: policy.OnFailure == attest.Revoke && r.Grave(stored, p.Policy, p.PolicyVersion), Evidence: evidence,
			}, err
		}
		return nil, nil, err
	}
	a := &Accepted{
		Challenge: [attest.ChallengeIDSize]byte(p.ID), Expires: p.Expires, Result: result, Posture: req.Posture, Evidence: evidence, By: b.by,
	}
	if len(b.caveat) == 0 {
		return a, nil, nil
	}
	if a.Caveat, _, err = s.ask(b.caveat, now); err != nil {
		return nil, nil, err
	}
	a.Until = now.Add(result.Lifetime)
	if a.Until.After(a.Caveat.Expires) {
		a.Until = a.Caveat.Expires
	}
	a.Until = a.Until.UTC().Truncate(time.Second)
	a.Conditions, err = result.Conditions(now, a.Caveat.Expires)
	return a, nil, err
}

func (s *Service) observe(r attest.Reason) {
	if s.cfg.Observe != nil {
		s.cfg.Observe(r)
	}
}

// told has the operator told why something was refused, and hands the error on.
func (s *Service) told(step string, err error) error {
	r, ok := errors.AsType[*attest.Refusal](err)
	if !ok {
		// What a Store says of the same: it judges last.
		switch capability.CodeOf(err) {
		case api.CodeAttestation:
			r = &attest.Refusal{Reason: attest.ReasonRevoked, Detail: err.Error()}
		case api.CodeChallenge:
			r = &attest.Refusal{Reason: attest.ReasonChallenge, Detail: err.Error()}
		default:
			return err
		}
	}
	s.observe(r.Reason)
	s.cfg.Logger.Warn("attestation refused", "step", step, "reason", string(r.Reason), "detail", fmt.Sprintf("%q", r.Detail))
	return err
}
