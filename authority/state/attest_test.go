package state

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats/attest"
)

var (
	testDevice = capability.DeviceID{1, 2, 3}
	testAK     = attest.Name{0, 11, 7}
)

// attestable is a rig with a policy.
func attestable(t testing.TB) *rig {
	t.Helper()
	r := formed(t)
	r.must(KindSetRoots, &SetRoots{Name: "factory", PEM: []byte("certificates")})
	r.must(KindSetPolicy, &SetPolicy{Name: "prod", Document: []byte(`{"format":1}`)})
	return r
}

func (r *rig) evidence(name string) *Attest {
	return &Attest{
		Challenge: bits(name), Expires: epochStart + 60_000, Device: testDevice, EK: "ecc-p384", AK: testAK, Activated: true,
		Holder: holder(0), Counters: attest.Counters{Reset: 3, Restart: 1, Clock: 5000}, Policy: "prod", PolicyVersion: 1, PCRSet: "golden",
		Posture: []byte(`{"agent":"a"}`), Evidence: []byte(`{"quote":"AA=="}`), By: "operator",
	}
}

func (r *rig) wantRefused(kind Kind, body any, code api.Code) {
	r.t.Helper()
	before := hashOf(r.m)
	content := r.m.mem.meta.Content
	if _, err := r.do(kind, body); capability.CodeOf(err) != code {
		r.t.Errorf("%v, want %s", err, code)
	}
	if r.m.mem.meta.Content != content {
		r.t.Errorf("a refused command has changed the state (%x, %x)", before, hashOf(r.m))
	}
}

func TestGoldenAttestCommands(t *testing.T) {
	const file = "testdata/commands-attest.txt"
	r := attestable(t)
	full := r.evidence("c")
	full.Token, full.Branch, full.Audience, full.Until, full.Caveats = tokenID(epochStart, "t"), bits("b"), "corp", epochStart, []string{"device x"}
	full.Firmware = 7
	full.Expires = epochStart
	bodies := []any{
		&SetPolicy{Name: "prod", Document: []byte("{}")}, &SetRoots{Name: "factory", PEM: []byte("pem")}, full,
		&AttestFailed{Challenge: bits("c"), Expires: epochStart, Device: testDevice, Policy: "prod", PolicyVersion: 2, Reason: "pcrs", Revoke: true, Evidence: []byte("{}")},
		&ForgetDevice{Device: testDevice, Reason: "repaired"},
	}
	var got strings.Builder
	for i, body := range bodies {
		h := Header{Kind: KindSetPolicy + Kind(i), Stamp: epochStart, Actor: system}
		c := encode(t, h, body)
		fmt.Fprintf(&got, "%d %s\n", h.Kind, base64.StdEncoding.EncodeToString(c))
		if _, back, err := DecodeCommand(c); err != nil || !reflect.DeepEqual(back, body) {
			t.Errorf("kind %d does not come back: %v\n%+v", h.Kind, err, back)
		}
	}
	if *update {
		if err := os.WriteFile(file, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(want) != got.String() {
		t.Error("the encoding of a command has changed: logs in the field cannot be read")
	}
}

func TestPoliciesHaveVersions(t *testing.T) {
	r := attestable(t)
	for i := 2; i <= PolicyHistory+3; i++ {
		v := r.must(KindSetPolicy, &SetPolicy{Name: "prod", Document: fmt.Appendf(nil, `{"n":%d}`, i)}).(*PolicyRecord)
		if v.Version != uint64(i) {
			t.Fatalf("version %d, want %d", v.Version, i)
		}
	}
	if p, err := r.m.Policy("prod", 0); err != nil || p.Version != PolicyHistory+3 {
		t.Errorf("newest: %+v, %v", p, err)
	}
	if p, err := r.m.Policy("prod", 4); err != nil || p == nil || string(p.Document) != `{"n":4}` {
		t.Errorf("version 4: %+v, %v", p, err)
	}
	if p, err := r.m.Policy("prod", 3); err != nil || p != nil {
		t.Errorf("version 3 should be forgotten: %+v, %v", p, err)
	}
	r.must(KindSetPolicy, &SetPolicy{Name: "prod"})
	if p, err := r.m.Policy("prod", 0); err != nil || p != nil {
		t.Errorf("removed: %+v, %v", p, err)
	}
	r.wantRefused(KindSetPolicy, &SetPolicy{Name: "prod"}, api.CodeNotFound)
	if v := r.must(KindSetPolicy, &SetPolicy{Name: "prod", Document: []byte("{}")}).(*PolicyRecord); v.Version != PolicyHistory+5 {
		t.Errorf("a version number came back: %d", v.Version)
	}
	for _, bad := range []*SetPolicy{{Name: "Prod", Document: []byte("{}")}, {Name: "x", Document: make([]byte, attest.MaxPolicy+1)}} {
		r.wantRefused(KindSetPolicy, bad, api.CodeInvalid)
	}
	r.must(KindSetRoots, &SetRoots{Name: "factory"})
	if b, err := r.m.Roots("factory"); b != nil || err != nil {
		t.Errorf("roots that were removed: %v, %v", b, err)
	}
	r.wantRefused(KindSetRoots, &SetRoots{Name: "factory"}, api.CodeNotFound)
}

func TestAttestStoresOnceAndOnlyForward(t *testing.T) {
	r := attestable(t)
	d := r.must(KindAttest, r.evidence("1")).(*DeviceRecord)
	if d.Count != 1 || d.EnrolledBy != "operator" || !d.Stored().Enrolled(testAK) || d.Counters.Clock != 5000 {
		t.Fatalf("%+v", d)
	}
	last := r.trail.records[len(r.trail.records)-1]
	var rec map[string]any
	if err := json.Unmarshal(last, &rec); err != nil || rec["action"] != "enroll" || rec["evidence"] == nil || rec["policy"] != "prod" {
		t.Errorf("audit record %s, %v", last, err)
	}
	again := r.evidence("1")
	r.wantRefused(KindAttest, again, api.CodeChallenge) // used

	next := r.evidence("2")
	next.Activated = false
	if d := r.must(KindAttest, next).(*DeviceRecord); d.Count != 2 || len(d.AKs) != 1 {
		t.Errorf("renewal: %+v", d)
	}
	for name, break_ := range map[string]func(*Attest){
		"expired":        func(e *Attest) { e.Expires = r.stamp },
		"far":            func(e *Attest) { e.Expires = r.stamp + 3_600_000 },
		"policy version": func(e *Attest) { e.PolicyVersion = 2 },
		"no policy":      func(e *Attest) { e.Policy = "other" },
		"counters":       func(e *Attest) { e.Counters.Reset = 2 },
		"unknown AK":     func(e *Attest) { e.AK, e.Activated = attest.Name{9}, false },
	} {
		e := r.evidence("bad " + name)
		break_(e)
		r.wantRefused(KindAttest, e, api.CodeChallenge)
	}
	e := r.evidence("evidence")
	e.Evidence = []byte("{")
	r.wantRefused(KindAttest, e, api.CodeInvalid)
	for i := range attest.MaxAKs {
		e := r.evidence(fmt.Sprint("ak", i))
		e.AK = attest.Name{0, 11, 100, byte(i)}
		d = r.must(KindAttest, e).(*DeviceRecord)
	}
	if len(d.AKs) != attest.MaxAKs || d.Stored().Enrolled(testAK) {
		t.Errorf("%d AKs: the oldest should be gone", len(d.AKs))
	}
}

func TestRevokedDeviceIsNeverAttested(t *testing.T) {
	r := attestable(t)
	r.must(KindAttest, r.evidence("1"))
	r.must(KindRevoke, &Revoke{Kind: "device", Device: testDevice.String(), Reason: "stolen", Expires: r.stamp + 1000})
	d, err := r.m.Device(testDevice)
	if err != nil || d.Revoked == 0 || d.Reason != "stolen" {
		t.Fatalf("%+v, %v", d, err)
	}
	if !r.m.Revocations().Device(testDevice) {
		t.Error("verifiers do not know")
	}
	r.wantRefused(KindAttest, r.evidence("2"), api.CodeAttestation)
	r.stamp += 10_000
	r.must(KindExpire, &Expire{T: r.stamp})
	r.wantRefused(KindAttest, r.evidence("3"), api.CodeAttestation) // the record remembers
	r.must(KindForgetDevice, &ForgetDevice{Device: testDevice, Reason: "new disk"})
	r.must(KindAttest, r.evidence("4"))
	r.wantRefused(KindForgetDevice, &ForgetDevice{Device: capability.DeviceID{9}, Reason: "r"}, api.CodeNotFound)
	if m, _ := r.replay(3); hashOf(m) != hashOf(r.m) {
		t.Error("a replay gives another state")
	}
}

func TestFailedAttestationRevokes(t *testing.T) {
	r := attestable(t)
	fail := func(name string, revoke bool) *AttestFailed {
		return &AttestFailed{
			Challenge: bits(name), Expires: epochStart + 60_000, Device: testDevice, Policy: "prod", PolicyVersion: 1, Reason: "pcrs: 7 differs", Revoke: revoke,
		}
	}
	r.wantRefused(KindAttestFailed, fail("0", true), api.CodeNotFound) // nobody revokes what was never enrolled
	r.must(KindAttest, r.evidence("1"))
	r.wantRefused(KindAttestFailed, fail("1", true), api.CodeChallenge)
	r.must(KindAttestFailed, fail("2", false))
	if r.m.Revocations().Device(testDevice) {
		t.Fatal("revoked without being told to")
	}
	r.must(KindAttestFailed, fail("3", true))
	if !r.m.Revocations().Device(testDevice) {
		t.Error("not revoked")
	}
	list, _, err := r.m.Events(nil, 0, 100)
	if err != nil || len(list) == 0 || list[len(list)-1].Revoke == nil || list[len(list)-1].Revoke.Device != testDevice.String() {
		t.Errorf("the feed says %+v, %v", list, err)
	}
	r.wantRefused(KindAttest, r.evidence("4"), api.CodeAttestation)
}

// Only the node itself says that evidence is good.
func TestAttestIsTheDischargersAlone(t *testing.T) {
	r := attestable(t)
	id := r.issue("a", api.AdminAudience, "operator")
	actor := Actor{Name: "operator", Token: id, Audience: api.AdminAudience}
	if _, err := r.as(actor, capability.TokenID{}, Digest{}, KindAttest, r.evidence("1")); capability.CodeOf(err) != api.CodeUnauthorized {
		t.Errorf("%v", err)
	}
}

func TestConsumedChallengesExpire(t *testing.T) {
	r := attestable(t)
	for i := range 20 {
		r.must(KindAttest, r.evidence(fmt.Sprint(i)))
	}
	consumed := func() (n int) {
		all, err := viewAll(r.m, keyDevice, func(*DeviceRecord) bool { return true })
		if err != nil || len(all) != 1 {
			t.Fatalf("%d devices, %v", len(all), err)
		}
		tx, err := r.m.db.Load().Begin(false)
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback()
		prefixed(tx, bucketAttest, []byte{keyChallenge}, func(_, _ []byte) { n++ })
		return n
	}
	if n := consumed(); n != 20 {
		t.Fatalf("%d consumed", n)
	}
	r.stamp += 120_000
	r.must(KindExpire, &Expire{T: r.stamp})
	if n := consumed(); n != 0 {
		t.Errorf("%d consumed challenges are kept beyond their end", n)
	}
}

func TestAttestationSurvivesSnapshot(t *testing.T) {
	r := attestable(t)
	r.must(KindAttest, r.evidence("1"))
	b := persist(t, r.m)
	m := openMachine(t, nil)
	if err := m.Restore(bytes.NewReader(b)); err != nil {
		t.Fatal(err)
	}
	if hashOf(m) != hashOf(r.m) {
		t.Error("another state")
	}
	d, err := m.Device(testDevice)
	if err != nil || d == nil || d.Count != 1 {
		t.Errorf("%+v, %v", d, err)
	}
	devices, err := m.Devices(capability.DeviceID{}, 10)
	if err != nil || len(devices) != 1 {
		t.Errorf("%+v, %v", devices, err)
	}
	if more, err := m.Devices(testDevice, 10); err != nil || len(more) != 0 {
		t.Errorf("after the last: %+v, %v", more, err)
	}
	restored := *r
	restored.m = m
	restored.wantRefused(KindAttest, r.evidence("1"), api.CodeChallenge)
}
