package authority

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/audit"
	"github.com/writ-dev/writ/authority/seal"
	"github.com/writ-dev/writ/authority/state"
	"github.com/writ-dev/writ/capability"
)

// TestJoinOnce: a join secret is good once, a retry of the same request gets the
// same credential, and a retry of adding gets the same secret.
func TestJoinOnce(t *testing.T) {
	a, root := openNode(t, testConfig(t))
	req := &api.ServiceRequest{Name: "files", Audiences: []string{"corp"}}
	add := Call{Caller: root, Request: newRequest(a)}
	first, err := a.AddService(t.Context(), add, req)
	if err != nil {
		t.Fatal(err)
	}
	again, err := a.AddService(t.Context(), add, req)
	if err != nil || again.JoinSecret != first.JoinSecret || !strings.HasPrefix(first.JoinSecret, JoinPrefix) {
		t.Fatalf("a retry: %v, %v", again, err)
	}
	_, err = a.AddService(t.Context(), Call{Caller: root, Request: newRequest(a)}, req)
	wantCode(t, err, api.CodeConflict)

	for name, j := range map[string]api.JoinRequest{
		"wrong secret": {Name: "files", JoinSecret: JoinPrefix + "x"}, "no secret": {Name: "files"},
		"no such service": {Name: "nobody", JoinSecret: first.JoinSecret}, "a long secret": {Name: "files", JoinSecret: strings.Repeat("x", 1000)},
		"a bad name": {Name: "a b", JoinSecret: first.JoinSecret}, "a wildcard": {Name: "*", JoinSecret: first.JoinSecret},
	} {
		if _, err := a.Join(t.Context(), Call{}, &j); !errors.Is(err, api.CodeUnauthorized) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, holder := range []string{"jkt:", "x5t:" + strings.Repeat("A", 43), "jkt:" + strings.Repeat("A", 43) + " jkt:" + strings.Repeat("A", 43)} {
		_, err := a.Join(t.Context(), Call{}, &api.JoinRequest{Name: "files", JoinSecret: first.JoinSecret, Holder: holder})
		wantCode(t, err, api.CodeInvalid)
	}
	join := Call{Request: newRequest(a), Body: [32]byte{1}}
	cred, err := a.Join(t.Context(), join, &api.JoinRequest{Name: "files", JoinSecret: first.JoinSecret})
	if err != nil {
		t.Fatal(err)
	}
	retried, err := a.Join(t.Context(), join, &api.JoinRequest{Name: "files", JoinSecret: first.JoinSecret})
	if err != nil || retried.Token != cred.Token {
		t.Fatalf("a retry: %v", err)
	}
	_, err = a.Join(t.Context(), Call{}, &api.JoinRequest{Name: "files", JoinSecret: first.JoinSecret})
	wantCode(t, err, api.CodeUnauthorized)

	// What it may, and what it may not.
	var g capability.Grant
	check := func(action string, resource ...string) error {
		return a.AdminVerifier().VerifyText(t.Context(), &g, cred.Token, &capability.Request{Now: time.Now(), Action: action, Resource: resource})
	}
	for _, r := range [][]string{
		{"feed", "audiences", "corp"}, {"keys", "audiences", "corp"}, {"lease", "audiences", "corp", "budgets"}, {"verify", "audiences", "corp"},
		{"renew", "services", "self"}, {"read", "dischargers"},
	} {
		if err := check(r[0], r[1:]...); err != nil {
			t.Errorf("%v: %v", r, err)
		}
	}
	for _, r := range [][]string{
		{"feed", "audiences", "other"}, {"issue", "audiences", "corp", "tokens"}, {"derive", "audiences", "corp", "tokens"}, {"read", "tokens"},
		{"read", "audit"}, {"revoke", "audiences", "corp", "tokens"}, {"services", "services", "files"}, {"keys", "audiences", "writ"}, {"rotate", "keys"},
	} {
		if err := check(r[0], r[1:]...); err == nil {
			t.Errorf("%v is allowed", r)
		}
	}
	svc := callerWith(t, a, cred.Token)
	fresh, err := a.Renew(t.Context(), Call{Caller: svc})
	if err != nil || fresh.Token == cred.Token {
		t.Fatalf("renewing: %v", err)
	}
	_, err = a.Renew(t.Context(), Call{Caller: root})
	wantCode(t, err, capability.CodeActionDenied)
	if err := a.RemoveService(t.Context(), Call{Caller: root}, "files"); err != nil {
		t.Fatal(err)
	}
	cred = fresh
	wantCode(t, check("feed", "audiences", "corp"), capability.CodeRevoked)
	list, err := a.Services(t.Context())
	if err != nil || len(list.Services) != 0 {
		t.Errorf("%+v, %v", list, err)
	}
}

func callerWith(t testing.TB, a *Authority, text string) Caller {
	t.Helper()
	var g capability.Grant
	if err := a.AdminVerifier().VerifyText(t.Context(), &g, text, &capability.Request{
		Now: time.Now(), Action: "renew", Resource: []string{"services", "self"},
	}); err != nil {
		t.Fatal(err)
	}
	return Caller{Name: g.Subject(), Token: g.ID(), Branches: g.AppendBranches(nil), Audience: g.Audience(), Credential: g.Token()}
}

func TestServiceNamesAreNoPatterns(t *testing.T) {
	a, root := openNode(t, testConfig(t))
	for _, req := range []api.ServiceRequest{
		{Name: "x", Audiences: []string{"*"}}, {Name: "x", Audiences: []string{"**"}}, {Name: "x", Audiences: []string{"a/b"}},
		{Name: "*", Audiences: []string{"corp"}}, {Name: "a/b", Audiences: []string{"corp"}}, {Name: "x", Audiences: []string{"corp"}, Derive: []string{"*"}},
		{Name: "x", Audiences: []string{".."}}, {Name: "x", Audiences: []string{"a%2fb"}}, {Name: "x", Audiences: []string{"writ"}}, {Name: "x"}, {Name: "", Audiences: []string{"corp"}},
		{Name: "x", Audiences: []string{"corp"}, Derive: []string{"writ"}},
	} {
		if _, err := a.AddService(t.Context(), Call{Caller: root}, &req); !errors.Is(err, api.CodeInvalid) {
			t.Errorf("%+v: %v", req, err)
		}
	}
}

// TestKeysGoToTheirServicesOnly.
func TestKeysGoToTheirServicesOnly(t *testing.T) {
	a, root := openNode(t, testConfig(t))
	svc := joined(t, a, root, &api.ServiceRequest{Name: "files", Audiences: []string{"corp"}, Derive: []string{"next"}})
	keyless := joined(t, a, root, &api.ServiceRequest{Name: "edge", Audiences: []string{"corp"}, Keyless: true})
	keys := func(c Caller, audiences ...string) (*api.KeySet, error) { return a.Keys(t.Context(), c, audiences) }
	set, err := keys(svc, "corp")
	if err != nil || len(set.Keys) != 1 || set.Keys[0].Epoch != 1 || !set.Keys[0].Until.IsZero() {
		t.Fatalf("%+v, %v", set, err)
	}
	_, err = keys(svc, "next")
	wantCode(t, err, capability.CodeResourceDenied)
	_, err = keys(svc, "corp", "writ")
	wantCode(t, err, capability.CodeResourceDenied)
	_, err = keys(root, "writ")
	wantCode(t, err, capability.CodeResourceDenied)
	_, err = keys(keyless, "corp")
	wantCode(t, err, capability.CodeActionDenied)
	_, err = keys(svc)
	wantCode(t, err, api.CodeInvalid)
	if err := a.RemoveService(t.Context(), Call{Caller: root}, "files"); err != nil {
		t.Fatal(err)
	}
	if _, err := keys(svc, "corp"); err == nil {
		t.Error("a removed service gets keys")
	}

	// Keyless: yes or no for exactly the bytes.
	issued, err := a.Issue(t.Context(), Call{Caller: root}, issueRequest("action read"))
	if err != nil {
		t.Fatal(err)
	}
	raw := parse(t, issued.Token).Bytes()
	if v, err := a.Verify(t.Context(), keyless, &api.VerifyRequest{Set: raw}); err != nil || v.Branches[1] != issued.Branch {
		t.Fatalf("%+v, %v", v, err)
	}
	location := bytes.Index(raw, []byte("writ")) // a hint that no MAC covers
	for i := range raw {
		if location >= 0 && i >= location && i < location+len("writ") {
			continue
		}
		bad := slices.Clone(raw)
		bad[i] ^= 1
		if _, err := a.Verify(t.Context(), keyless, &api.VerifyRequest{Set: bad}); err == nil {
			t.Fatalf("a flip of byte %d is genuine", i)
		}
	}
}

// movedClock is a clock that tests set.
type movedClock struct{ ahead atomic.Int64 }

func (c *movedClock) now() time.Time { return time.Now().Add(time.Duration(c.ahead.Load())) }

func (c *movedClock) move(d time.Duration) { c.ahead.Add(int64(d)) }

// TestRotation walks a clock over the epoch's edges: the new master is served
// before it mints, the old one verifies until its last token has ended, and a
// clock that goes back mints nothing with it again.
func TestRotation(t *testing.T) {
	clock := new(movedClock)
	cfg := testConfig(t)
	cfg.Clock, cfg.RotateEvery = clock.now, -1
	a, root := openNode(t, cfg)
	issue := func() (*api.TokenResponse, uint32) {
		t.Helper()
		r, err := a.Issue(t.Context(), Call{Caller: root}, issueRequest("action read"))
		if err != nil {
			t.Fatal(err)
		}
		in, err := parse(t, r.Token).Inspect()
		if err != nil {
			t.Fatal(err)
		}
		return r, in.Identifier.Epoch
	}
	served := func() (epochs []uint32) {
		t.Helper()
		set, err := a.Keys(t.Context(), root, []string{"corp"})
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range set.Keys {
			epochs = append(epochs, k.Epoch)
		}
		return epochs
	}
	old, epoch := issue()
	if epoch != 1 {
		t.Fatal(epoch)
	}
	info, err := a.Rotate(t.Context(), Call{Caller: root})
	if err != nil || info.Epoch != 2 || info.State != "published" {
		t.Fatalf("%+v, %v", info, err)
	}
	if lead := info.MintsFrom.Sub(info.Published); lead < 2*cfg.Bound {
		t.Errorf("published %v before it mints", lead)
	}
	if got := served(); !slices.Equal(got, []uint32{1, 2}) {
		t.Errorf("serves epochs %v", got)
	}
	// Just before the edge, and just after.
	clock.move(time.Until(info.MintsFrom) - time.Since(clock.now()) - 50*time.Millisecond)
	for clock.now().Before(info.MintsFrom.Add(-time.Millisecond)) {
		if r, epoch := issue(); epoch == 2 && r.ID.Time().Before(info.MintsFrom) {
			t.Fatalf("minted with epoch 2 at %v, which mints from %v", r.ID.Time(), info.MintsFrom)
		}
		clock.move(10 * time.Millisecond)
	}
	clock.move(100 * time.Millisecond)
	if _, epoch := issue(); epoch != 2 {
		t.Errorf("after the edge: epoch %d", epoch)
	}
	verify := func(text string) error {
		_, err := a.Verify(t.Context(), root, &api.VerifyRequest{Set: parse(t, text).Bytes()})
		return err
	}
	if err := verify(old.Token); err != nil {
		t.Errorf("a token of the epoch before: %v", err)
	}
	// A clock that goes back: stamps do not, and neither do epochs.
	clock.move(-time.Hour)
	if r, epoch := issue(); epoch != 2 || r.ID.Time().Before(info.MintsFrom) {
		t.Errorf("after the clock went back: epoch %d at %v", epoch, r.ID.Time())
	}
	clock.move(time.Hour + state.MaxTTL + time.Minute)
	wantCode(t, verify(old.Token), capability.CodeUnknownKey)
	if got := served(); !slices.Equal(got, []uint32{2}) {
		t.Errorf("serves epochs %v", got)
	}
	if err := a.expire(t.Context()); err != nil {
		t.Fatal(err)
	}
	list, err := a.Epochs(t.Context())
	if err != nil || len(list.Epochs) != 1 || list.Epochs[0].State != "minting" {
		t.Errorf("%+v, %v", list, err)
	}

	// Rekeying one audience leaves the others.
	gen, err := a.Rekey(t.Context(), Call{Caller: root}, &api.RekeyRequest{Audience: "corp", Reason: "a service was broken into"})
	if err != nil || gen != 1 {
		t.Fatal(gen, err)
	}
	clock.move(3 * time.Second)
	rekeyed, _ := issue()
	in, err := parse(t, rekeyed.Token).Inspect()
	if err != nil || in.Identifier.Generation != 1 {
		t.Errorf("generation %d, %v", in.Identifier.Generation, err)
	}
	if _, err := a.Revoke(t.Context(), Call{Caller: root}, &api.RevokeRequest{Kind: api.RevokeEpoch, Epoch: 2, Reason: "leaked"}); err != nil {
		t.Fatal(err)
	}
	wantCode(t, verify(rekeyed.Token), capability.CodeUnknownKey)
	_, err = a.Issue(t.Context(), Call{Caller: root}, issueRequest())
	wantCode(t, err, capability.CodeUnavailable)
	clock.move(3 * time.Second) // the one that takes its place has been published
	if _, epoch := issue(); epoch != 3 {
		t.Errorf("after the newest epoch was revoked: epoch %d", epoch)
	}
}

// TestExpiryForgets: what has ended goes, by a command, and what it takes along.
func TestExpiryForgets(t *testing.T) {
	clock := new(movedClock)
	cfg := testConfig(t)
	cfg.Clock = clock.now
	a, root := openNode(t, cfg)
	issued, err := a.Issue(t.Context(), Call{Caller: root, Request: newRequest(a)}, issueRequest("max-calls 5"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Lease(t.Context(), Call{Caller: root}, leaseRequest(parse(t, issued.Token), 1)); err != nil {
		t.Fatal(err)
	}
	if _, err := a.RevokeSelf(t.Context(), Call{}, &api.SelfRevokeRequest{Token: issued.Token, Reason: "done"}); err != nil {
		t.Fatal(err)
	}
	proposed := a.Metrics().Proposals
	if err := a.expire(t.Context()); err != nil {
		t.Fatal(err)
	}
	if m := a.Metrics(); m.Tokens != 2 || m.Revocations != 1 || m.Leases != 1 || m.Budgets != 1 || m.Proposals != proposed {
		t.Fatalf("too early: %+v", m)
	}
	clock.move(20 * time.Minute)
	if err := a.expire(t.Context()); err != nil {
		t.Fatal(err)
	}
	if m := a.Metrics(); m.Tokens != 1 || m.Revocations != 0 || m.Leases != 0 || m.Budgets != 0 {
		t.Fatalf("it is still there: %+v", m)
	}
	proposed = a.Metrics().Proposals
	if err := a.expire(t.Context()); err != nil || a.Metrics().Proposals != proposed {
		t.Errorf("with nothing to drop: %v, or a proposal", err)
	}
	if a.machine.Revocations().Len() != 0 {
		t.Error("verifiers still look it up")
	}
}

// TestRootReset: the way back gives a new root, and takes the old one's powers
// and those of what hung on it.
func TestRootReset(t *testing.T) {
	a, root := openNode(t, testConfig(t))
	text, err := a.RootReset(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, err = a.Issue(t.Context(), Call{Caller: root}, issueRequest())
	wantCode(t, err, capability.CodeRevoked)
	if _, err := a.Issue(t.Context(), Call{Caller: callerOf(t, a, text)}, issueRequest()); err != nil {
		t.Error(err)
	}
}

// TestRecovery: the offline identity opens the cluster key.
func TestRecovery(t *testing.T) {
	cfg := testConfig(t)
	id, err := seal.GenerateIdentity(&failingRand{left: 1 << 10})
	if err != nil {
		t.Fatal(err)
	}
	cfg.Recovery = id.Recipient().String()
	a, _ := openNode(t, cfg)
	wrapped := a.machine.SealedKey(state.PurposeWrap+"recovery", 0)
	if wrapped == nil {
		t.Fatal("not wrapped for recovery")
	}
	key, err := id.Unwrap(label(a.machine.Cluster().ID, wrapped), wrapped.Sealed)
	if err != nil {
		t.Fatal(err)
	}
	master := a.machine.SealedKey(state.PurposeMaster, 1)
	if _, err := key.OpenSecret(label(a.machine.Cluster().ID, master), master.Sealed); err != nil {
		t.Error(err)
	}
}

// TestTLS: version 1.3, a certificate of the cluster's CA, which comes along.
func TestTLS(t *testing.T) {
	cfg := testConfig(t)
	cfg.Hosts = []string{"writ.example", "192.0.2.1"}
	a, _ := openNode(t, cfg)
	conf := a.TLSConfig()
	if conf.MinVersion != tls.VersionTLS13 {
		t.Error("not TLS 1.3")
	}
	c, err := conf.GetCertificate(nil)
	if err != nil || len(c.Certificate) != 2 {
		t.Fatal(c, err)
	}
	leaf, err := x509.ParseCertificate(c.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	ca, err := x509.ParseCertificate(c.Certificate[1])
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	for _, host := range []string{"localhost", "127.0.0.1", "n1", "writ.example", "192.0.2.1"} {
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: host}); err != nil {
			t.Errorf("%s: %v", host, err)
		}
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: "elsewhere.example"}); err == nil {
		t.Error("good for any host")
	}
}

// TestAuditTrail: what was done is in the log, proved against its checkpoint,
// and holds no credential.
func TestAuditTrail(t *testing.T) {
	a, root := openNode(t, testConfig(t))
	issued, err := a.Issue(t.Context(), Call{Caller: root}, issueRequest("action read"))
	if err != nil {
		t.Fatal(err)
	}
	first, err := a.AuditCheckpoint(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Revoke(t.Context(), Call{Caller: root}, &api.RevokeRequest{Kind: api.RevokeToken, Token: issued.ID.String(), Reason: "leaked"}); err != nil {
		t.Fatal(err)
	}
	second, err := a.AuditCheckpoint(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := audit.ParseVerifier(second.VerifierKey)
	if err != nil {
		t.Fatal(err)
	}
	older, err := audit.VerifyCheckpoint([]byte(first.Checkpoint), verifier)
	if err != nil {
		t.Fatal(err)
	}
	newer, err := audit.VerifyCheckpoint([]byte(second.Checkpoint), verifier)
	if err != nil {
		t.Fatal(err)
	}
	p, err := a.AuditConsistency(t.Context(), older.Size, newer.Size)
	if err != nil {
		t.Fatal(err)
	}
	if err := audit.VerifyConsistency(older, newer, hashes(p)); err != nil {
		t.Error(err)
	}
	records, err := a.AuditRecords(t.Context(), 0, 0)
	if err != nil || int64(len(records.Records)) != newer.Size {
		t.Fatal(records, err)
	}
	signature := parse(t, issued.Token).Text()
	for i, r := range records.Records {
		p, err := a.AuditInclusion(t.Context(), newer.Size, int64(i))
		if err != nil {
			t.Fatal(err)
		}
		if err := audit.VerifyInclusion(newer, int64(i), r, hashes(p)); err != nil {
			t.Error(err)
		}
		if strings.Contains(string(r), signature[len(signature)-40:]) {
			t.Error("a credential is in the audit log")
		}
	}
	last := string(records.Records[newer.Size-1])
	for _, want := range []string{`"action":"revoke"`, `"actor":"root"`, `"reason":"leaked"`, issued.ID.String()} {
		if !strings.Contains(last, want) {
			t.Errorf("the last record has no %s: %s", want, last)
		}
	}
	_, err = a.AuditInclusion(t.Context(), newer.Size, newer.Size)
	wantCode(t, err, api.CodeNotFound)
	_, err = a.AuditRecords(t.Context(), -1, 0)
	wantCode(t, err, api.CodeNotFound)
}

func hashes(p *api.Proof) []audit.Hash {
	out := make([]audit.Hash, len(p.Hashes))
	for i, h := range p.Hashes {
		copy(out[i][:], h)
	}
	return out
}
