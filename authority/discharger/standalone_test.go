package discharger_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/authority/discharger"
	"github.com/writ-dev/writ/authority/wallet"
	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats/attest"
	"github.com/writ-dev/writ/caveats/attest/attesttest"
	"github.com/writ-dev/writ/caveats/attest/holder"
)

const location = "https://attest.corp.example"

// alone is a discharger without an authority, and a machine with a TPM.
type alone struct {
	t      *testing.T
	dir    string
	tpm    *attesttest.TPM
	holder *holder.Holder
	key    *capability.DischargerKey
	client *client.Client
	stop   func()
	follow capability.Revocations // of an authority; nil: none
}

func newAlone(t *testing.T, change func(*attest.Policy)) *alone {
	t.Helper()
	a := &alone{t: t, dir: t.TempDir(), tpm: attesttest.Start(t)}
	var err error
	if a.holder, err = holder.Open(holder.Config{TPM: a.tpm.Address, Dir: t.TempDir()}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.holder.Close() })
	set, err := a.holder.CapturePCRs("golden", []int{0, 7})
	if err != nil {
		t.Fatal(err)
	}
	p := attest.Policy{
		Format: 1, Name: "prod", Version: 3, EKRoots: []string{"factory"}, EKKinds: attest.Kinds(), PCRs: []int{0, 7}, PCRSets: []attest.PCRSet{set},
		Lifetime: attest.Duration(time.Minute),
	}
	if change != nil {
		change(&p)
	}
	document, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	for path, b := range map[string][]byte{"policies/prod.json": document, "roots/factory.pem": a.tpm.Roots} {
		path = filepath.Join(a.dir, path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, b, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	a.start()
	return a
}

// start serves it; stop ends that, and start again finds everything on disk.
func (a *alone) start() {
	a.t.Helper()
	certs, err := discharger.OpenCertificates(a.dir, nil, time.Now)
	if err != nil {
		a.t.Fatal(err)
	}
	if a.key, err = discharger.OpenKey(a.dir); err != nil {
		a.t.Fatal(err)
	}
	store, err := discharger.OpenFile(a.dir, time.Now)
	if err != nil {
		a.t.Fatal(err)
	}
	judges := discharger.Store(store)
	if a.follow != nil {
		judges = discharger.Follow(store, a.follow)
	}
	s, err := discharger.New(discharger.Config{Key: a.key, Store: judges, Clock: time.Now, Rand: rand.Reader})
	if err != nil {
		a.t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		a.t.Fatal(err)
	}
	srv := &http.Server{Handler: s.Handler(), ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	go func() { _ = srv.Serve(tls.NewListener(ln, certs.TLSConfig())) }()
	if a.client, err = client.New(client.Config{Addrs: []string{ln.Addr().String()}, CAFingerprint: certs.Fingerprint()}); err != nil {
		a.t.Fatal(err)
	}
	a.stop = func() {
		a.client.Close()
		srv.Close()
	}
	a.t.Cleanup(a.stop)
}

// token demands what condition says of the machine's key.
func (a *alone) token(condition string) *capability.Token {
	a.t.Helper()
	now := time.Now()
	key := a.holder.HolderKey()
	token, err := capability.MintCaveats(capability.NewRootKey([32]byte{1}), capability.Identifier{
		Epoch: 1, ID: capability.NewTokenID(now.UnixMilli(), [10]byte{}), NotAfter: now.Add(5 * time.Minute), Audience: "corp", Subject: "a",
	}, capability.NewCaveat{ThirdParty: &capability.ThirdParty{Condition: condition, Holder: &key}, To: a.key.Public(), Location: location})
	if err != nil {
		a.t.Fatal(err)
	}
	return token
}

// recorder keeps what was handed in.
type recorder struct {
	*client.Client
	finish *attest.FinishRequest
}

func (r *recorder) AttestFinish(ctx context.Context, f *attest.FinishRequest) (*api.AttestResponse, error) {
	r.finish = f
	return r.Client.AttestFinish(ctx, f)
}

func (a *alone) discharge(token *capability.Token) (*capability.Token, *attest.FinishRequest, error) {
	rec := &recorder{Client: a.client}
	w, err := wallet.Open(wallet.Config{
		Attester: a.holder, Dischargers: map[string]wallet.Discharger{location: rec}, Posture: attest.Posture{Agent: "agent"},
	})
	if err != nil {
		a.t.Fatal(err)
	}
	whole, _, err := w.Discharge(a.t.Context(), token)
	return whole, rec.finish, err
}

func TestStandalone(t *testing.T) {
	a := newAlone(t, nil)
	whole, finish, err := a.discharge(a.token("attested prod"))
	if err != nil {
		t.Fatal(err)
	}
	_, discharges := whole.Root()
	if len(discharges) != 1 || len(whole.Missing()) != 0 {
		t.Fatalf("%d discharges", len(discharges))
	}
	if in, err := whole.Inspect(); err != nil || !strings.Contains(conditions(in), "declare attest.policy prod@3") {
		t.Errorf("%v, %v", conditions(in), err)
	}
	for _, condition := range []string{"approved payments", "attested", "attested other", "attested prod prod", "attested ../prod"} {
		if _, _, err := a.discharge(a.token(condition)); capability.CodeOf(err) != api.CodeAttestation {
			t.Errorf("%s: %v", condition, err)
		}
	}
	// Nobody enrolls without a caveat, whatever credential he sends along.
	somebody := a.client.WithToken(whole.Text())
	if _, err := somebody.AttestBegin(t.Context(), a.holder.Begin(holder.Want{Policy: "prod"})); capability.CodeOf(err) != api.CodeAttestation {
		t.Errorf("enrolled without a caveat: %v", err)
	}
	if _, err := a.client.AttestFinish(t.Context(), finish); capability.CodeOf(err) != api.CodeChallenge {
		t.Errorf("replayed: %v", err)
	}
	// Another process goes on where this one stopped.
	a.stop()
	a.start()
	if _, err := a.client.AttestFinish(t.Context(), finish); capability.CodeOf(err) != api.CodeChallenge {
		t.Errorf("replayed after a restart: %v", err)
	}
	_, renewal, err := a.discharge(a.token("attested prod"))
	if err != nil || len(renewal.Activation) != 0 {
		t.Errorf("the device is not known any more: %v", err)
	}
	big := *finish
	big.Posture = make([]byte, 1<<20)
	if _, err := a.client.AttestFinish(t.Context(), &big); capability.CodeOf(err) != api.CodeBodyTooLarge {
		t.Errorf("1 MiB: %v", err)
	}
}

func conditions(in *capability.Inspection) string {
	var b strings.Builder
	for _, d := range in.Discharges {
		for _, c := range d.Caveats {
			b.WriteString(c.Condition + "\n")
		}
	}
	return b.String()
}

// TestStandaloneRevokes: a device that quotes something else is attested no
// more, after a restart neither.
func TestStandaloneRevokes(t *testing.T) {
	a := newAlone(t, func(p *attest.Policy) { p.OnFailure = attest.Revoke })
	if _, _, err := a.discharge(a.token("attested prod")); err != nil {
		t.Fatal(err)
	}
	a.tpm.Extend(t, 7)
	if _, _, err := a.discharge(a.token("attested prod")); capability.CodeOf(err) != api.CodeAttestation {
		t.Fatalf("%v", err)
	}
	a.stop()
	// Even a policy that accepts it now does not bring it back.
	set, err := a.holder.CapturePCRs("golden", []int{0, 7})
	if err != nil {
		t.Fatal(err)
	}
	document, err := json.Marshal(attest.Policy{
		Format: 1, Name: "prod", Version: 4, EKRoots: []string{"factory"}, EKKinds: attest.Kinds(), PCRs: []int{0, 7}, PCRSets: []attest.PCRSet{set},
		Lifetime: attest.Duration(time.Minute),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(a.dir, "policies/prod.json"), document, 0o600); err != nil {
		t.Fatal(err)
	}
	a.start()
	if _, _, err := a.discharge(a.token("attested prod")); capability.CodeOf(err) != api.CodeAttestation {
		t.Fatalf("a revoked device: %v", err)
	}
	b, err := os.ReadFile(filepath.Join(a.dir, "state.json"))
	if err != nil || !bytes.Contains(b, []byte(`"revoked": "pcrs"`)) {
		t.Errorf("%s, %v", b, err)
	}
}

// TestStandaloneOperator: another process revokes, lists and forgets devices
// while the discharger runs, and neither loses what the other has written.
func TestStandaloneOperator(t *testing.T) {
	a := newAlone(t, nil)
	if _, _, err := a.discharge(a.token("attested prod")); err != nil {
		t.Fatal(err)
	}
	operator, err := discharger.OpenFile(a.dir, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	id := a.holder.Device()
	if err := operator.Revoke(id, "stolen"); err != nil {
		t.Fatal(err)
	}
	list, err := operator.Devices()
	if err != nil || len(list) != 1 || list[0].Device != id.String() || list[0].Policy != "prod" || list[0].PolicyVersion != 3 ||
		list[0].Revoked.IsZero() || list[0].Reason != "stolen" {
		t.Fatalf("%+v, %v", list, err)
	}
	if _, _, err := a.discharge(a.token("attested prod")); capability.CodeOf(err) != api.CodeAttestation {
		t.Errorf("a revoked device: %v", err)
	}
	if known, err := operator.Forget(id); err != nil || !known {
		t.Errorf("%v, %v", known, err)
	}
	_, finish, err := a.discharge(a.token("attested prod"))
	if err != nil || len(finish.Activation) == 0 {
		t.Errorf("a forgotten device does not enroll anew: %v", err)
	}
	if list, err = operator.Devices(); err != nil || len(list) != 1 || !list[0].Revoked.IsZero() {
		t.Errorf("the operator does not see it: %+v, %v", list, err)
	}
	// One that was never seen can be revoked beforehand.
	stranger := capability.DeviceID{7}
	if err := operator.Revoke(stranger, "sold"); err != nil {
		t.Fatal(err)
	}
	if _, err := a.client.AttestFinish(t.Context(), finish); capability.CodeOf(err) != api.CodeChallenge {
		t.Errorf("a challenge that another process's change has made fresh: %v", err)
	}
	if known, err := operator.Forget(stranger); err != nil || !known {
		t.Errorf("%v, %v", known, err)
	}
	if known, err := operator.Forget(stranger); err != nil || known {
		t.Errorf("forgotten twice: %v, %v", known, err)
	}
}

func TestFilesOfItsOwn(t *testing.T) {
	dir := t.TempDir()
	key, err := discharger.OpenKey(dir)
	if err != nil {
		t.Fatal(err)
	}
	again, err := discharger.OpenKey(dir)
	if err != nil || !again.Equal(key) {
		t.Errorf("another key: %v", err)
	}
	first, err := discharger.OpenCertificates(dir, []string{"attest.corp.example"}, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	second, err := discharger.OpenCertificates(dir, nil, time.Now)
	if err != nil || first.Fingerprint() != second.Fingerprint() {
		t.Errorf("another CA: %v", err)
	}
	for _, name := range []string{"discharger.key", "tls.pem"} {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
		if err := os.Chmod(path, 0o640); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := discharger.OpenKey(dir); !errors.Is(err, discharger.ErrKeys) {
		t.Errorf("a key that others can read: %v", err)
	}
	if _, err := discharger.OpenCertificates(dir, nil, time.Now); !errors.Is(err, discharger.ErrKeys) {
		t.Errorf("a CA that others can read: %v", err)
	}
	device := `{"device":"` + capability.DeviceID{1}.String() + `"}`
	for name, state := range map[string]string{
		"none": `{"devices":[],"used":[],"more":1}`, "a device twice": `{"devices":[` + device + `,` + device + `],"used":[]}`,
	} {
		if err := os.WriteFile(filepath.Join(dir, "state.json"), []byte(state), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := discharger.OpenFile(dir, time.Now); !errors.Is(err, discharger.ErrState) {
			t.Errorf("a state with %s: %v", name, err)
		}
	}
}

// FuzzState: whatever a stranger hands back as the discharger's own state is
// refused, unless it is exactly that.
func FuzzState(f *testing.F) {
	key, err := capability.GenerateDischargerKey(rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	store, err := discharger.OpenFile(f.TempDir(), time.Now)
	if err != nil {
		f.Fatal(err)
	}
	s, err := discharger.New(discharger.Config{Key: key, Store: store, Clock: time.Now, Rand: rand.Reader, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte{})
	f.Add([]byte{1})
	f.Add(append([]byte{1}, make([]byte, 64)...))
	f.Fuzz(func(t *testing.T, state []byte) {
		r := &attest.FinishRequest{
			ID: make([]byte, attest.ChallengeIDSize), State: state, Quote: []byte{1}, QuoteSignature: []byte{1}, Certify: []byte{1},
			CertifySignature: []byte{1}, Signature: []byte{1}, Posture: []byte("{}"),
		}
		if _, err := s.Finish(t.Context(), r); err == nil {
			t.Error("accepted")
		}
	})
}
