package wallet_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"gopkg.in/macaroon.v2"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/authority/wallet"
	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats"
	"github.com/writ-dev/writ/caveats/attest"
	"github.com/writ-dev/writ/caveats/attest/holder"
	"github.com/writ-dev/writ/caveats/pop"
)

// journal is what the operator reads, while it is being written.
type journal struct {
	mu   sync.Mutex
	text strings.Builder
}

func (j *journal) Write(b []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.Write(b)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.String()
}

func code(err error) api.Code { return capability.CodeOf(err) }

// TestAttestedHolder is the whole of it: a token that demands attestation, the
// discharge by one call, the service that takes it from the holder alone.
func TestAttestedHolder(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	token := r.mint(nil)
	r.want(token, r.machine.key, 401, capability.CodeDischargeRequired)
	whole := r.discharge(r.machine, token)
	if status, _, body := r.call(whole, r.machine.key); status != 200 || body != "prod@1 true" {
		t.Fatalf("%d %s", status, body)
	}
	// Narrowed, it is as good.
	narrow, err := whole.Attenuate("resource files/q3")
	if err != nil {
		t.Fatal(err)
	}
	r.want(narrow, r.machine.key, 200, "")

	// In anybody else's hands it is not.
	thief, err := pop.GenerateKey(pop.Ed25519)
	if err != nil {
		t.Fatal(err)
	}
	r.want(whole, thief, 401, capability.CodeHolderProof)
	r.want(whole, nil, 401, capability.CodeHolderProof)

	// A session key is the weaker binding, which this policy does not allow.
	r.want(whole, pop.NewSession(r.machine.key, 0, nil), 403, capability.CodeContextDenied)

	// The state knows the device, and the audit trail the evidence.
	d, err := r.root.Device(t.Context(), r.machine.holder.Device())
	if err != nil || d.Policy != "prod" || d.Holder != r.machine.holder.HolderKey().String() || d.Count != 1 {
		t.Fatalf("%+v, %v", d, err)
	}
	records, err := r.root.AuditRecords(t.Context(), 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, rec := range records.Records {
		found = found || strings.Contains(string(rec), `"action":"enroll"`) && strings.Contains(string(rec), `"quote_signature"`)
	}
	if !found {
		t.Error("the evidence is not recorded")
	}

	// The next one is a renewal: the AK is known, and quotes all the same.
	again := r.discharge(r.machine, r.mint(nil))
	r.want(again, r.machine.key, 200, "")
	if d, err = r.root.Device(t.Context(), r.machine.holder.Device()); err != nil || d.Count != 2 || len(d.AKs) != 1 {
		t.Errorf("%+v, %v", d, err)
	}
	// And it survives a restart of the machine.
	r.machine.tpm.Shutdown(t)
	r.want(r.discharge(r.machine, r.mint(nil)), r.machine.key, 200, "")
}

// TestThief: someone with the token, and a genuine TPM of his own that the
// policy accepts.
func TestThief(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	thief := newMachine(t, r.machine.tpm.Sibling(t), r.Client(""))
	for name, change := range map[string]func(*api.IssueRequest){
		"bound to the holder": nil,
		"bound to the device": func(req *api.IssueRequest) {
			req.ThirdParty[0].Holder, req.ThirdParty[0].Device = "", r.machine.holder.Device().String()
		},
	} {
		token := r.mint(change)
		if _, _, err := thief.wallet.Discharge(t.Context(), token); code(err) != api.CodeAttestation || strings.Contains(err.Error(), "holder") {
			t.Errorf("%s: %v", name, err)
		}
		r.want(r.discharge(r.machine, token), r.machine.key, 200, "")
	}
	r.wantLogged("reason=unexpected")
	if n := r.Authority.Metrics().Attestations; n["unexpected"] != 2 || n["accepted"] != 2 {
		t.Errorf("counted %v", n)
	}
	// Any machine has to be asked for by name.
	token := r.mint(func(req *api.IssueRequest) {
		req.ThirdParty[0].Holder, req.ThirdParty[0].AnyMachine = "", true
	})
	r.want(r.discharge(thief, token), thief.key, 200, "")
}

func TestDischargeAttacks(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	token := r.mint(nil)
	whole := r.discharge(r.machine, token)
	root, discharges := whole.Root()
	if len(discharges) != 1 {
		t.Fatalf("%d discharges", len(discharges))
	}
	good := discharges[0]

	t.Run("with another root token", func(t *testing.T) {
		other, err := r.mint(nil).WithDischarges(good)
		if err != nil {
			t.Fatal(err)
		}
		r.want(other, r.machine.key, 401, capability.CodeDischargeRequired)
	})
	t.Run("twice", func(t *testing.T) {
		// As bytes, whatever a library makes of it.
		set := slices.Concat(root.Bytes(), good.Bytes(), good.Bytes())
		if s, c := r.present(set, r.machine.key); s != 401 || c != capability.CodeDischargeInvalid {
			t.Errorf("%d %s", s, c)
		}
	})
	t.Run("unbound", func(t *testing.T) {
		// Whoever hangs a caveat on a token has its key, and can leave bound out.
		plain := r.mint(func(req *api.IssueRequest) { req.ThirdParty = nil })
		var m macaroon.Macaroon
		if err := m.UnmarshalBinary(plain.Bytes()); err != nil {
			t.Fatal(err)
		}
		if err := m.AddThirdPartyCaveat([]byte("key"), []byte("id"), "here"); err != nil {
			t.Fatal(err)
		}
		d, err := macaroon.New([]byte("key"), []byte("id"), "", macaroon.V2)
		if err != nil {
			t.Fatal(err)
		}
		for _, bound := range []bool{false, true} {
			want := 401
			if bound {
				d.Bind(m.Signature())
				want = 200
			}
			set, err := macaroon.Slice{&m, d}.MarshalBinary()
			if err != nil {
				t.Fatal(err)
			}
			if s, c := r.present(set, nil); s != want || !bound && c != capability.CodeDischargeInvalid {
				t.Errorf("bound %v: %d %s", bound, s, c)
			}
		}
	})
	t.Run("of another caveat beside its own", func(t *testing.T) {
		extra := r.discharge(r.machine, r.mint(nil))
		_, more := extra.Root()
		both, err := root.WithDischarges(good, more[0])
		if err != nil {
			t.Fatal(err)
		}
		r.want(both, r.machine.key, 401, capability.CodeDischargeInvalid)
	})
	t.Run("forged declare behind the discharge", func(t *testing.T) {
		forged, err := good.AttenuateExact("declare attest.policy root@9")
		if err != nil {
			t.Fatal(err)
		}
		set, err := root.WithDischarges(forged)
		if err != nil {
			t.Fatal(err)
		}
		if s, _, body := r.call(set, r.machine.key); s != 200 || body != "prod@1 true" {
			t.Errorf("%d %q: what the holder appends counts, for him or against", s, body)
		}
	})
	t.Run("forged declare by whoever hung the caveat", func(t *testing.T) {
		plain := r.mint(func(req *api.IssueRequest) { req.ThirdParty = nil })
		mine, err := capability.GenerateDischargerKey(randReader{})
		if err != nil {
			t.Fatal(err)
		}
		hung, err := plain.AddThirdParty(mine.Public(), "mine", capability.ThirdParty{Condition: "attested prod", AnyMachine: true})
		if err != nil {
			t.Fatal(err)
		}
		o, err := mine.OpenCaveat(hung.Missing()[0].CaveatID)
		if err != nil {
			t.Fatal(err)
		}
		d, err := o.Discharge("declare attest.policy prod@1")
		if err != nil {
			t.Fatal(err)
		}
		set, err := hung.WithDischarges(d)
		if err != nil {
			t.Fatal(err)
		}
		if s, _, body := r.call(set, nil); s != 200 || body != " false" {
			t.Errorf("%d %q: what the holder says of itself is taken for the discharger's word", s, body)
		}
	})
	t.Run("expired", func(t *testing.T) {
		checker, err := caveats.Standard()
		if err != nil {
			t.Fatal(err)
		}
		v, err := r.Replica(t, "later", audience).Verifier(checker)
		if err != nil {
			t.Fatal(err)
		}
		var g capability.Grant
		req := capability.Request{
			Now: time.Now(), Action: "read", Resource: []string{"files", "q3"}, Service: "later",
			Holder:  holds(r.machine.holder.HolderKey()),
			Context: capability.Fields{{Name: pop.FactKey, Value: capability.StringValue(pop.FactDirect)}},
		}
		if err := v.Verify(t.Context(), &g, whole.Bytes(), &req); err != nil {
			t.Fatal(err)
		}
		// The token itself lives for a quarter of an hour.
		req.Now = req.Now.Add(2 * time.Minute)
		if err := v.Verify(t.Context(), &g, whole.Bytes(), &req); code(err) != capability.CodeExpired {
			t.Errorf("two minutes later: %v", err)
		}
	})
	t.Run("issued before the device was revoked", func(t *testing.T) {
		r.want(whole, r.machine.key, 200, "")
		if _, err := r.root.Revoke(t.Context(), api.RevokeRequest{
			Kind: api.RevokeDevice, Device: r.machine.holder.Device().String(), Reason: "stolen",
		}); err != nil {
			t.Fatal(err)
		}
		deadline := time.Now().Add(5 * time.Second)
		for {
			status, c, _ := r.call(whole, r.machine.key)
			if status == 401 && c == capability.CodeRevoked {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("still %d %s", status, c)
			}
			runtime.Gosched()
		}
		if _, _, err := r.machine.wallet.Discharge(t.Context(), r.mint(nil)); code(err) != api.CodeAttestation {
			t.Errorf("a revoked device gets a discharge: %v", err)
		}
		r.wantLogged("reason=device_revoked")
	})
}

// TestChangedMachine: what it boots is not what the policy accepts any more.
func TestChangedMachine(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(p *attest.Policy) { p.OnFailure = attest.Revoke })
	whole := r.discharge(r.machine, r.mint(nil))
	r.want(whole, r.machine.key, 200, "")
	r.machine.tpm.Extend(t, 7)
	if _, _, err := r.machine.wallet.Discharge(t.Context(), r.mint(nil)); code(err) != api.CodeAttestation {
		t.Fatalf("%v", err)
	}
	r.wantLogged("reason=pcrs")
	d, err := r.root.Device(t.Context(), r.machine.holder.Device())
	if err != nil || d.Revoked.IsZero() || !strings.HasPrefix(d.Reason, "pcrs: ") {
		t.Fatalf("%+v, %v", d, err)
	}
	// The audit log has why, and what the TPM has signed of it.
	records, err := r.root.AuditRecords(t.Context(), 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(records.Records, func(rec []byte) bool {
		return strings.Contains(string(rec), `"action":"attest-refused"`) && strings.Contains(string(rec), d.Device) &&
			strings.Contains(string(rec), `"reason":"pcrs: `) && strings.Contains(string(rec), `"quote_signature"`)
	}) {
		t.Error("the refusal is not recorded")
	}
	// And with it what was bound to it before.
	deadline := time.Now().Add(5 * time.Second)
	for {
		if s, c, _ := r.call(whole, r.machine.key); s == 401 && c == capability.CodeRevoked {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("still %d %s", s, c)
		}
		runtime.Gosched()
	}
	// A way back: the operator forgets the device, and the revocation has its end.
	f, err := r.root.ForgetDevice(t.Context(), r.machine.holder.Device(), api.ForgetDeviceRequest{Reason: "reinstalled"})
	if err != nil || f.RevokedUntil.IsZero() {
		t.Errorf("%+v, %v", f, err)
	}
}

// TestPolicyOfOthers: a machine that does not satisfy a policy which it never
// satisfied is refused, and has not changed.
func TestPolicyOfOthers(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(p *attest.Policy) { p.OnFailure = attest.Revoke })
	r.discharge(r.machine, r.mint(nil))
	strict := policyOf(t, r.machine.holder, func(p *attest.Policy) {
		p.Name, p.OnFailure = "strict", attest.Revoke
		p.PCRSets[0].Values["7"] = attest.Digest{1}
	})
	if _, err := r.root.SetPolicy(t.Context(), api.PolicyRequest{Document: strict}); err != nil {
		t.Fatal(err)
	}
	other := r.mint(func(req *api.IssueRequest) { req.ThirdParty[0].Condition = "attested strict" })
	if _, _, err := r.machine.wallet.Discharge(t.Context(), other); code(err) != api.CodeAttestation {
		t.Fatalf("%v", err)
	}
	r.wantLogged("reason=pcrs")
	r.want(r.discharge(r.machine, r.mint(nil)), r.machine.key, 200, "")
}

// TestRevokedDeviceIsNotMintedFor: not even where the revocation itself has
// ended, since what is minted now could outlive it.
func TestRevokedDeviceIsNotMintedFor(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.discharge(r.machine, r.mint(nil))
	id := r.machine.holder.Device()
	if _, err := r.root.Revoke(t.Context(), api.RevokeRequest{Kind: api.RevokeDevice, Device: id.String(), Reason: "stolen"}); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*api.IssueRequest){
		"device":      func(req *api.IssueRequest) { req.Caveats = append(req.Caveats, "device "+id.String()) },
		"third party": func(req *api.IssueRequest) { req.ThirdParty[0].Device = id.String() },
	} {
		req := api.IssueRequest{
			Audience: audience, Subject: "a", Owner: "o", Purpose: "p",
			ThirdParty: []api.ThirdPartyRequest{{Discharger: "authority", Condition: "attested prod", AnyMachine: true}},
		}
		change(&req)
		if _, err := r.root.Issue(t.Context(), req); code(err) != api.CodeInvalid || !strings.Contains(err.Error(), "revoked") {
			t.Errorf("%s: %v", name, err)
		}
	}
	r.mint(nil) // for the key, which nobody has revoked
}

// TestClearedTPM: the counters of a TPM that was cleared go back.
func TestClearedTPM(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	for range 3 {
		r.machine.tpm.Shutdown(t)
	}
	r.discharge(r.machine, r.mint(nil))
	r.machine.holder.Close()
	r.machine.tpm.Clear(t)
	r.machine = newMachine(t, r.machine.tpm, r.Client("")) // with a new holder key
	if _, _, err := r.machine.wallet.Discharge(t.Context(), r.mint(nil)); code(err) != api.CodeAttestation {
		t.Fatalf("%v", err)
	}
	r.wantLogged("reason=counters")
	if _, err := r.root.ForgetDevice(t.Context(), r.machine.holder.Device(), api.ForgetDeviceRequest{Reason: "cleared on purpose"}); err != nil {
		t.Fatal(err)
	}
	r.want(r.discharge(r.machine, r.mint(nil)), r.machine.key, 200, "")
}

// recorder keeps what was handed in, to hand it in again.
type recorder struct {
	wallet.Discharger
	finish *attest.FinishRequest
}

func (r *recorder) AttestFinish(ctx context.Context, f *attest.FinishRequest) (*api.AttestResponse, error) {
	r.finish = f
	return r.Discharger.AttestFinish(ctx, f)
}

func TestEvidenceIsGoodOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	anyone := r.Client("")
	rec := &recorder{Discharger: anyone}
	w, err := wallet.Open(wallet.Config{
		Attester: r.machine.holder, Dischargers: map[string]wallet.Discharger{wallet.OwnLocation: rec}, Posture: attest.Posture{Agent: "agent"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.Discharge(t.Context(), r.mint(nil)); err != nil {
		t.Fatal(err)
	}
	if _, err := anyone.AttestFinish(t.Context(), rec.finish); code(err) != api.CodeChallenge {
		t.Errorf("replayed evidence: %v", err)
	}
	forged := *rec.finish
	forged.State = append([]byte(nil), forged.State...)
	forged.State[len(forged.State)-1] ^= 1
	if _, err := anyone.AttestFinish(t.Context(), &forged); code(err) != api.CodeChallenge {
		t.Errorf("a forged challenge: %v", err)
	}
	big := *rec.finish
	big.Posture = make([]byte, 1<<20)
	if _, err := anyone.AttestFinish(t.Context(), &big); code(err) != api.CodeBodyTooLarge {
		t.Errorf("1 MiB of evidence: %v", err)
	}
	big.Posture = make([]byte, attest.MaxPosture+1)
	if _, err := anyone.AttestFinish(t.Context(), &big); code(err) != capability.CodeTooLarge {
		t.Errorf("a part that is too large: %v", err)
	}
}

func TestEnrolment(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	if _, err := r.machine.wallet.Enroll(t.Context(), wallet.OwnLocation, "prod"); code(err) != api.CodeUnauthorized && !errors.Is(err, client.ErrNoToken) {
		t.Errorf("a stranger enrolls: %v", err)
	}
	operator, err := wallet.Open(wallet.Config{
		Attester: r.machine.holder, Dischargers: map[string]wallet.Discharger{wallet.OwnLocation: r.root}, Posture: attest.Posture{Agent: "agent"},
	})
	if err != nil {
		t.Fatal(err)
	}
	got, err := operator.Enroll(t.Context(), wallet.OwnLocation, "prod")
	if err != nil || got.Discharge != "" || got.Holder != r.machine.holder.HolderKey().String() {
		t.Fatalf("%+v, %v", got, err)
	}
	list, err := r.root.Devices(t.Context(), "", 0)
	if err != nil || len(list.Devices) != 1 || list.Devices[0].EnrolledBy != "root" || list.Devices[0].Device != got.Device {
		t.Fatalf("%+v, %v", list, err)
	}
	if _, err := operator.Enroll(t.Context(), wallet.OwnLocation, "other"); code(err) != api.CodeAttestation {
		t.Errorf("a policy that is not there: %v", err)
	}
	if _, err := operator.Enroll(t.Context(), "https://elsewhere.example", "prod"); !errors.Is(err, wallet.ErrDischarger) {
		t.Errorf("a discharger that is not configured: %v", err)
	}
	// A credential that may do other things does not enroll.
	root, err := capability.Parse(r.RootToken)
	if err != nil {
		t.Fatal(err)
	}
	reader, err := root.Attenuate("action read")
	if err != nil {
		t.Fatal(err)
	}
	other, err := wallet.Open(wallet.Config{
		Attester: r.machine.holder, Dischargers: map[string]wallet.Discharger{wallet.OwnLocation: r.Client(reader.Text())}, Posture: attest.Posture{Agent: "agent"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Enroll(t.Context(), wallet.OwnLocation, "prod"); code(err) != capability.CodeActionDenied {
		t.Errorf("a credential that may only read: %v", err)
	}
}

// unfinished is how many challenges are begun.
const unfinished = 10_000

// TestUnfinishedChallenges: ten thousand are begun and never finished. Nothing of them is
// kept, and honest holders still get through.
func TestUnfinishedChallenges(t *testing.T) {
	r := newRig(t, nil)
	r.discharge(r.machine, r.mint(nil)) // enrolled: no credential to make, which costs most
	token := r.mint(nil)
	req := r.machine.holder.Begin(holder.Want{Caveat: token.Missing()[0].CaveatID, Audience: audience})
	heap := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	applied, before := r.Authority.Status().Applied, heap()
	const callers = 4
	var flood sync.WaitGroup
	for range callers {
		flood.Go(func() {
			for range unfinished / callers {
				if _, err := r.Authority.AttestBegin(t.Context(), "", req); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 3 {
		r.want(r.discharge(r.machine, r.mint(nil)), r.machine.key, 200, "")
	}
	flood.Wait()
	if grown := heap() - before; grown > 4<<20 {
		t.Errorf("%d KiB are kept of %d challenges", grown>>10, unfinished)
	}
	if grown := r.Authority.Status().Applied - applied; grown > 200 {
		t.Errorf("%d log entries", grown)
	}
}

func TestWalletFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "wallet")
	a := &fake{life: time.Minute}
	open := func() (*wallet.Wallet, error) {
		return wallet.Open(wallet.Config{Attester: a, Dischargers: map[string]wallet.Discharger{"here": a}, File: path})
	}
	w, err := open()
	if err != nil {
		t.Fatal(err)
	}
	token := a.token(t)
	for range 2 {
		if _, _, err := w.Discharge(t.Context(), token); err != nil {
			t.Fatal(err)
		}
	}
	if w, err = open(); err != nil {
		t.Fatal(err)
	}
	if whole, _, err := w.Discharge(t.Context(), token); err != nil || len(whole.Missing()) != 0 {
		t.Fatal(err)
	}
	if a.asked != 1 {
		t.Errorf("asked %d times for what was in the file", a.asked)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := open(); !errors.Is(err, wallet.ErrFile) {
		t.Errorf("a wallet that others can read: %v", err)
	}
	if err := errors.Join(os.WriteFile(path, []byte(`{"discharges":[],"more":1}`), 0o600), os.Chmod(path, 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := open(); !errors.Is(err, wallet.ErrFile) {
		t.Errorf("a wallet that is none: %v", err)
	}
}

// TestWatch: renewed before they end, until the token ends; what fails
// meanwhile is tried again.
func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &fake{life: time.Minute, fail: map[int]bool{3: true, 4: true}}
		w, err := wallet.Open(wallet.Config{Attester: a, Dischargers: map[string]wallet.Discharger{"here": a}})
		if err != nil {
			t.Fatal(err)
		}
		token := a.token(t) // for five minutes
		calls := 0
		err = w.Watch(t.Context(), token, func(whole *capability.Token, ends time.Time) error {
			calls++
			if len(whole.Missing()) != 0 || !ends.After(time.Now()) {
				t.Errorf("call %d: %d missing, ends in %v", calls, len(whole.Missing()), time.Until(ends))
			}
			return nil
		})
		if err != nil || calls < 6 || calls > 9 {
			t.Errorf("%d calls, %v", calls, err)
		}
	})
}

// TestOvertaken: processes of one machine attest at the same time. That one's
// evidence is older than what another has just proved is no offence.
func TestOvertaken(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(p *attest.Policy) { p.OnFailure = attest.Revoke })
	r.discharge(r.machine, r.mint(nil))
	var all sync.WaitGroup
	for range 4 {
		w, err := wallet.Open(wallet.Config{
			Attester: r.machine.holder, Dischargers: map[string]wallet.Discharger{wallet.OwnLocation: r.Client("")}, Posture: attest.Posture{Agent: "agent"},
		})
		if err != nil {
			t.Fatal(err)
		}
		token := r.mint(nil)
		all.Go(func() {
			if _, _, err := w.Discharge(t.Context(), token); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if d, err := r.root.Device(t.Context(), r.machine.holder.Device()); err != nil || !d.Revoked.IsZero() || d.Count != 5 {
		t.Errorf("%+v, %v", d, err)
	}
}
