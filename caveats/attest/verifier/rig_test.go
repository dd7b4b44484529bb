package verifier_test

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"slices"
	"testing"
	"time"

	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats/attest"
	"github.com/writ-dev/writ/caveats/attest/attesttest"
	"github.com/writ-dev/writ/caveats/attest/holder"
	"github.com/writ-dev/writ/caveats/attest/verifier"
)

// rig is a holder with a TPM of its own, and a discharger for it.
type rig struct {
	tpm    *attesttest.TPM
	dir    string // of the holder
	holder *holder.Holder
	roots  *verifier.Roots
	policy *attest.Policy
	ask    attest.Ask
	want   holder.Want
	stored map[capability.DeviceID]*attest.Stored
	now    time.Time

	pending *attest.Pending // of the last challenge
	result  *attest.Result  // of the last evidence
}

func newRig(t testing.TB) *rig {
	t.Helper()
	r := rigFor(t, attesttest.Start(t), "")
	return r
}

func rigFor(t testing.TB, tpm *attesttest.TPM, kind attest.Kind) *rig {
	t.Helper()
	r := &rig{tpm: tpm, dir: t.TempDir(), stored: make(map[capability.DeviceID]*attest.Stored), now: time.Now()}
	r.holder = open(t, tpm, r.dir, kind)
	var err error
	if r.roots, err = verifier.ParseRoots(tpm.Roots); err != nil {
		t.Fatal(err)
	}
	pcrs := []int{0, 1, 7, 16}
	set, err := r.holder.CapturePCRs("golden", pcrs)
	if err != nil {
		t.Fatal(err)
	}
	r.policy = &attest.Policy{
		Format: 1, Name: "prod", Version: 3, EKRoots: []string{"swtpm"}, EKKinds: attest.Kinds(), PCRs: pcrs, PCRSets: []attest.PCRSet{set},
		Lifetime: attest.Duration(5 * time.Minute),
	}
	key := r.holder.HolderKey()
	r.ask = attest.Ask{Caveat: []byte("a caveat id"), Audience: "corp", Holder: &key}
	r.want = holder.Want{Caveat: r.ask.Caveat, Audience: "corp", Posture: attest.Posture{Agent: "agent", Version: "1.2.0"}}
	return r
}

func open(t testing.TB, tpm *attesttest.TPM, dir string, kind attest.Kind) *holder.Holder {
	t.Helper()
	h, err := holder.Open(holder.Config{TPM: tpm.Address, Dir: dir, Kind: kind})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

// Begin and Finish make the rig a holder.Discharger, which stores as the
// authority does.
func (r *rig) Begin(_ context.Context, request *attest.BeginRequest) (*attest.Challenge, error) {
	b := &verifier.Begin{
		Now: r.now, Rand: rand.Reader, Policy: r.policy, Ask: r.ask, Request: request,
		Roots: func(name string) (*verifier.Roots, bool) { return r.roots, name == "swtpm" },
		Known: func(d capability.DeviceID) *attest.Stored { return r.stored[d] },
	}
	c, p, err := b.Challenge()
	if err != nil {
		return nil, err
	}
	r.pending = p
	return c, nil
}

func (r *rig) Finish(_ context.Context, request *attest.FinishRequest) error {
	f := &verifier.Finish{Now: r.now, Policy: r.policy, Pending: r.pending, Request: request}
	if r.pending != nil {
		f.Stored = r.stored[r.pending.Device]
	}
	result, err := f.Result()
	if err != nil {
		return err
	}
	r.pending, r.result = nil, result
	s := r.stored[result.Device]
	if s == nil {
		s = new(attest.Stored)
		r.stored[result.Device] = s
	}
	if !s.Enrolled(result.AKName) {
		s.AKs = append(s.AKs, slices.Clone(result.AKName))
	}
	s.Counters = result.Counters
	return nil
}

func (r *rig) attest(t testing.TB) error {
	t.Helper()
	return r.holder.Attest(t.Context(), r, r.want)
}

// good attests, which must succeed.
func (r *rig) good(t testing.TB) *attest.Result {
	t.Helper()
	if err := r.attest(t); err != nil {
		t.Fatal(err)
	}
	return r.result
}

// refused demands this reason of err.
func refused(t testing.TB, err error, want attest.Reason) {
	t.Helper()
	if err == nil {
		t.Fatalf("accepted; want the refusal %q", want)
	}
	if got := attest.ReasonOf(err); got != want {
		t.Fatalf("refused with %q (%v), want %q", got, err, want)
	}
}

func marshalRequest(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
