// Package wallet gets the discharges that a token needs, for a holder with a
// TPM, and keeps them until they end.
//
// [Open] it once with the TPM and the authority; then [Wallet.Discharge] is the
// one call that makes a token whole, and [Wallet.Watch] keeps it so. What they
// return is to be presented with a proof of the TPM's key (package
// caveats/pop), since the discharges name that key.
//
// A caveat's location is a hint that nobody vouches for. So a wallet talks to
// the dischargers that it was configured with, and to no other.
package wallet

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats/attest"
	"github.com/writ-dev/writ/caveats/attest/holder"
)

// OwnLocation is the location of caveats that the authority discharges itself.
const OwnLocation = "writ:authority"

var (
	// ErrDischarger says that a caveat is for a discharger that is not configured.
	ErrDischarger = errors.New("no such discharger is configured")
	// ErrTooMany says that a token needs more discharges than can come with it, or
	// that discharges go on demanding discharges.
	ErrTooMany = errors.New("too many discharges are needed")
)

// Attester answers challenges: a *holder.Holder.
type Attester interface {
	Attest(context.Context, holder.Discharger, holder.Want) error
}

// Discharger is who can be asked: a *client.Client.
type Discharger interface {
	AttestBegin(context.Context, *attest.BeginRequest) (*attest.Challenge, error)
	AttestFinish(context.Context, *attest.FinishRequest) (*api.AttestResponse, error)
}

// Config opens a Wallet. Attester, Dischargers and Posture are required.
type Config struct {
	Attester    Attester
	Dischargers map[string]Discharger // by location; the authority is at OwnLocation
	Posture     attest.Posture        // what the holder says of itself
	File        string                // where discharges are kept, mode 0600; empty: in memory
	Now         func() time.Time      // nil: time.Now
	// Waiting is told whom the wallet is about to ask. Nil: nobody.
	Waiting func(location string)
}

// Wallet gets discharges and keeps them. It is safe for concurrent use.
type Wallet struct {
	cfg Config

	mu   sync.Mutex
	kept []cached // guarded by mu
}

// Open opens a wallet. Errors: ErrFile.
func Open(cfg Config) (*Wallet, error) {
	if cfg.Attester == nil || len(cfg.Dischargers) == 0 {
		return nil, errors.New("a wallet needs an attester and a discharger")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	w := &Wallet{cfg: cfg}
	if cfg.File != "" {
		var err error
		if w.kept, err = load(cfg.File); err != nil {
			return nil, err
		}
	}
	return w, nil
}

// maxTries is how often a challenge is begun for one discharge.
const maxTries = 5

// exchange is one discharger as the holder speaks to it.
type exchange struct {
	Discharger
	got *api.AttestResponse
}

func (e *exchange) Begin(ctx context.Context, r *attest.BeginRequest) (*attest.Challenge, error) {
	return e.AttestBegin(ctx, r)
}

func (e *exchange) Finish(ctx context.Context, r *attest.FinishRequest) (err error) {
	e.got, err = e.AttestFinish(ctx, r)
	return err
}

// Enroll enrolls the TPM with a discharger under a policy, without a token. The
// discharger's credential has to allow enroll on devices.
func (w *Wallet) Enroll(ctx context.Context, location, policy string) (*api.AttestResponse, error) {
	return w.attest(ctx, location, holder.Want{Policy: policy, Audience: api.AdminAudience, Posture: w.cfg.Posture})
}

func (w *Wallet) attest(ctx context.Context, location string, want holder.Want) (*api.AttestResponse, error) {
	d := w.cfg.Dischargers[location]
	if d == nil {
		return nil, fmt.Errorf("%w: %q", ErrDischarger, location)
	}
	if w.cfg.Waiting != nil {
		w.cfg.Waiting(location)
	}
	for tries := 1; ; tries++ {
		e := &exchange{Discharger: d}
		err := w.cfg.Attester.Attest(ctx, e, want)
		if err == nil {
			return e.got, nil
		}
		// A challenge that was used or has expired says nothing about the evidence:
		// an answer was lost, or another process on this machine came first.
		if !errors.Is(err, api.CodeChallenge) || tries == maxTries {
			return nil, err
		}
	}
}

// Discharge returns the token with every discharge that it needs, and when the
// first of them ends (zero if it needs none). Errors: ErrDischarger, ErrTooMany,
// ErrFile, the client's, the TPM's.
func (w *Wallet) Discharge(ctx context.Context, t *capability.Token) (*capability.Token, time.Time, error) {
	in, err := t.Inspect()
	if err != nil {
		return nil, time.Time{}, err
	}
	var first time.Time
	for {
		missing := t.Missing()
		if len(missing) == 0 {
			return t, first, nil
		}
		if _, got := t.Root(); len(got)+len(missing) > capability.MaxDischarges {
			return nil, time.Time{}, ErrTooMany
		}
		for _, c := range missing {
			d, ends, err := w.one(ctx, c, in.Identifier.Audience)
			if err != nil {
				return nil, time.Time{}, err
			}
			if first.IsZero() || ends.Before(first) {
				first = ends
			}
			if t, err = t.WithDischarges(d); err != nil {
				return nil, time.Time{}, err
			}
		}
	}
}

// one gets the discharge of one caveat: a kept one, or a fresh one.
func (w *Wallet) one(ctx context.Context, c capability.InspectedCaveat, audience string) (*capability.Token, time.Time, error) {
	now := w.cfg.Now()
	if d, ends := w.find(c.CaveatID, now); d != nil {
		return d, ends, nil
	}
	r, err := w.attest(ctx, c.Location, holder.Want{Caveat: c.CaveatID, Audience: audience, Posture: w.cfg.Posture})
	if err != nil {
		return nil, time.Time{}, err
	}
	d, err := capability.Parse(r.Discharge)
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("the discharger's answer: %w", err)
	}
	return d, r.Expires, w.keep(c.CaveatID, r, now)
}

// retryAfter is how long Watch waits before it asks again for what it did not get.
const retryAfter = 5 * time.Second

// Watch calls each with the discharged token now, and again whenever discharges
// have been renewed, each time when two thirds of their life are over, until ctx
// ends, each returns an error, or the token itself ends. What fails
// is tried again for as long as the discharges at hand are good.
func (w *Wallet) Watch(ctx context.Context, t *capability.Token, each func(*capability.Token, time.Time) error) error {
	in, err := t.Inspect()
	if err != nil {
		return err
	}
	root, _ := t.Root()
	whole, ends, err := w.Discharge(ctx, root)
	if err != nil {
		return err
	}
	for {
		if err := each(whole, ends); err != nil {
			return err
		}
		if ends.IsZero() {
			return nil
		}
		wait := ends.Sub(w.cfg.Now()) * 2 / 3
		for {
			if err := sleep(ctx, max(wait, time.Second)); err != nil {
				return err
			}
			if now := w.cfg.Now(); !now.Add(margin).Before(in.Identifier.NotAfter) {
				return nil
			}
			// What is kept is good still, but not for long.
			for _, c := range root.Missing() {
				w.drop(c.CaveatID)
			}
			renewed, until, err := w.Discharge(ctx, root)
			if err == nil {
				whole, ends = renewed, until
				break
			}
			if !w.cfg.Now().Before(ends) || errors.Is(err, api.CodeAttestation) {
				return err
			}
			wait = retryAfter
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

var _ Discharger = (*client.Client)(nil)
