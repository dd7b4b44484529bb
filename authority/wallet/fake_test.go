package wallet_test

import (
	"context"
	"crypto/rand"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats/attest"
	"github.com/writ-dev/writ/caveats/attest/holder"
)

type randReader struct{}

func (randReader) Read(b []byte) (int, error) { return rand.Read(b) }

// holds is a proof of one key that a test takes as given.
func holds(k capability.HolderKey) capability.HolderProof { return proof(k) }

type proof capability.HolderKey

func (p proof) Prove(_ context.Context, k capability.HolderKey) error {
	if k != capability.HolderKey(p) {
		return capability.CodeHolderProof
	}
	return nil
}

// fake is an attester and a discharger that believe each other.
type fake struct {
	key    *capability.DischargerKey
	life   time.Duration
	asked  int
	fail   map[int]bool // by number of the asking
	refuse map[int]bool // likewise

	caveats int // of its tokens; 0: one
	nested  int // how many of its discharges need another
}

// token demands a discharge of the fake, and lives for five minutes.
func (f *fake) token(t testing.TB) *capability.Token {
	t.Helper()
	var err error
	if f.key, err = capability.GenerateDischargerKey(rand.Reader); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	third := capability.NewCaveat{ThirdParty: &capability.ThirdParty{Condition: "attested x", AnyMachine: true}, To: f.key.Public(), Location: "here"}
	root, err := capability.MintCaveats(capability.NewRootKey([32]byte{1}), capability.Identifier{
		Epoch: 1, ID: capability.NewTokenID(now.UnixMilli(), [10]byte{}), NotAfter: now.Add(5 * time.Minute), Audience: audience, Subject: "a",
	}, slices.Repeat([]capability.NewCaveat{third}, max(1, f.caveats))...)
	if err != nil {
		t.Fatal(err)
	}
	return root
}

func (f *fake) Attest(ctx context.Context, d holder.Discharger, w holder.Want) error {
	if _, err := d.Begin(ctx, &attest.BeginRequest{Caveat: w.Caveat}); err != nil {
		return err
	}
	return d.Finish(ctx, &attest.FinishRequest{State: w.Caveat})
}

func (f *fake) AttestBegin(context.Context, *attest.BeginRequest) (*attest.Challenge, error) {
	f.asked++
	switch {
	case f.fail[f.asked]:
		return nil, errors.New("unreachable")
	case f.refuse[f.asked]:
		return nil, api.CodeAttestation
	}
	return &attest.Challenge{}, nil
}

func (f *fake) AttestFinish(_ context.Context, r *attest.FinishRequest) (*api.AttestResponse, error) {
	o, err := f.key.OpenCaveat(r.State)
	if err != nil {
		return nil, err
	}
	ends := time.Now().Add(f.life)
	d, err := o.Discharge("time-before " + ends.UTC().Format(time.RFC3339))
	if err != nil {
		return nil, err
	}
	if f.nested > 0 {
		f.nested--
		if d, err = d.AddThirdParty(f.key.Public(), "here", o.ThirdParty); err != nil {
			return nil, err
		}
	}
	return &api.AttestResponse{Discharge: d.Text(), Expires: ends}, nil
}
