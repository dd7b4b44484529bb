package authority

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/raftstore"
)

func testConfig(t testing.TB) Config {
	dir := t.TempDir()
	return Config{
		Dir: filepath.Join(dir, "data"), NodeID: "n1", KeyFile: filepath.Join(dir, "key"), Bootstrap: true,
		Bound: time.Second, OnFatal: func(err error) { t.Errorf("fatal: %v", err) },
	}
}

// openNode opens a node that ends with the test, and returns its root as a
// caller if it has just formed.
func openNode(t testing.TB, cfg Config) (*Authority, Caller) {
	t.Helper()
	a, formed, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeNode(t, a) })
	if formed == nil {
		return a, Caller{}
	}
	return a, callerOf(t, a, formed.RootToken)
}

func closeNode(t testing.TB, a *Authority) {
	t.Helper()
	if err := a.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
}

// callerOf verifies a credential as the server does.
func callerOf(t testing.TB, a *Authority, text string) Caller {
	t.Helper()
	var g capability.Grant
	if err := a.AdminVerifier().VerifyText(context.Background(), &g, text, &capability.Request{Now: time.Now()}); err != nil {
		t.Fatal(err)
	}
	return Caller{Name: g.Subject(), Token: g.ID(), Branches: g.AppendBranches(nil), Audience: g.Audience(), Credential: g.Token()}
}

func issueRequest(caveats ...string) *api.IssueRequest {
	return &api.IssueRequest{
		Audience: "corp", Subject: "agent-42", Owner: "owner@corp.example", Purpose: "Q3", Caveats: caveats,
	}
}

// TestReopen: a node that was closed has everything when it opens again, and
// does not form a second time.
func TestReopen(t *testing.T) {
	cfg := testConfig(t)
	a, root := openNode(t, cfg)
	resp, err := a.Issue(t.Context(), Call{Caller: root}, issueRequest("action read"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Revoke(t.Context(), Call{Caller: root}, &api.RevokeRequest{Kind: api.RevokeToken, Token: resp.ID.String(), Reason: "leaked"}); err != nil {
		t.Fatal(err)
	}
	fingerprint, _ := a.CAFingerprint(), a.Status()
	before, edge := a.cursor(), a.Metrics().AuditSize
	closeNode(t, a)

	a, formed, err := Open(t.Context(), cfg)
	if err != nil || formed != nil {
		t.Fatalf("%v, %v", formed, err)
	}
	defer closeNode(t, a)
	if a.CAFingerprint() != fingerprint || a.Metrics().AuditSize != edge || a.cursor().Index < before.Index {
		t.Error("another cluster, or an earlier state")
	}
	_, err = a.Verify(t.Context(), root, &api.VerifyRequest{Set: parse(t, resp.Token).Bytes()})
	wantCode(t, err, capability.CodeRevoked)
	if _, err := a.Issue(t.Context(), Call{Caller: root}, issueRequest()); err != nil {
		t.Errorf("the root token after a restart: %v", err)
	}
}

// TestDataDirIsWorthNothingWithoutItsKey: a copy without the key file, or with
// another, does not open; and the key does not go into the directory.
func TestDataDirIsWorthNothingWithoutItsKey(t *testing.T) {
	cfg := testConfig(t)
	a, _ := openNode(t, cfg)
	closeNode(t, a)
	copied := cfg
	copied.Dir = filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(copied.Dir, os.DirFS(cfg.Dir)); err != nil {
		t.Fatal(err)
	}
	copied.KeyFile = filepath.Join(t.TempDir(), "key")
	for _, bootstrap := range []bool{false, true} {
		copied.Bootstrap = bootstrap
		if _, _, err := Open(t.Context(), copied); !errors.Is(err, ErrKeyFile) {
			t.Errorf("without the key file: %v", err)
		}
	}
	other := testConfig(t)
	b, _ := openNode(t, other)
	closeNode(t, b)
	copied.KeyFile = other.KeyFile
	if _, _, err := Open(t.Context(), copied); !errors.Is(err, ErrKeyFile) {
		t.Errorf("with another node's key file: %v", err)
	}
	copied.KeyFile = cfg.KeyFile
	c, _ := openNode(t, copied)
	closeNode(t, c)

	inside := testConfig(t)
	inside.KeyFile = filepath.Join(inside.Dir, "sub", "key")
	if _, _, err := Open(t.Context(), inside); !errors.Is(err, ErrKeyFile) {
		t.Errorf("a key file inside: %v", err)
	}
	if err := os.Chmod(cfg.KeyFile, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Open(t.Context(), cfg); !errors.Is(err, ErrKeyFile) {
		t.Errorf("a key file for everyone: %v", err)
	}
}

func TestOpenRefuses(t *testing.T) {
	empty := testConfig(t)
	empty.Bootstrap = false
	if _, _, err := Open(t.Context(), empty); !errors.Is(err, ErrNotFormed) {
		t.Errorf("an empty directory: %v", err)
	}
	for name, change := range map[string]func(*Config){
		"no directory": func(c *Config) { c.Dir = "" },
		"no key file":  func(c *Config) { c.KeyFile = "" },
		"no node id":   func(c *Config) { c.NodeID = "" },
		"a tiny bound": func(c *Config) { c.Bound = time.Millisecond },
		"bad recovery": func(c *Config) { c.Recovery = "writ-recipient-nonsense" },
	} {
		cfg := testConfig(t)
		change(&cfg)
		if _, _, err := Open(t.Context(), cfg); !errors.Is(err, ErrConfig) {
			t.Errorf("%s: %v", name, err)
		}
	}
	cfg := testConfig(t)
	openNode(t, cfg)
	if _, _, err := Open(t.Context(), cfg); !errors.Is(err, raftstore.ErrLocked) {
		t.Errorf("a second process: %v", err)
	}
}

// failingRand fails after a while: randomness is never made up.
type failingRand struct{ left int }

func (f *failingRand) Read(b []byte) (int, error) {
	if f.left -= len(b); f.left < 0 {
		return 0, io.ErrUnexpectedEOF
	}
	for i := range b {
		b[i] = byte(f.left + i)
	}
	return len(b), nil
}

func TestRandomnessThatFails(t *testing.T) {
	cfg := testConfig(t)
	source := &failingRand{left: 1 << 20}
	cfg.Rand = source
	a, root := openNode(t, cfg)
	source.left = 0
	_, err := a.Issue(t.Context(), Call{Caller: root}, issueRequest())
	wantCode(t, err, api.CodeInternal)
	_, err = a.Rotate(t.Context(), Call{Caller: root})
	wantCode(t, err, api.CodeInternal)
	if a.Metrics().Tokens != 1 || len(a.machine.Epochs()) != 1 {
		t.Error("something was made all the same")
	}
}

// TestShortOfSpace: changes are refused before the disk is full, issues first,
// and the node goes on by itself once there is space.
func TestShortOfSpace(t *testing.T) {
	a, root := openNode(t, testConfig(t))
	if free, err := freeSpace(a.cfg.Dir); err != nil || free == 0 {
		t.Fatal(free, err)
	}
	var free atomic.Uint64
	a.proposer.close()
	a.proposer = newProposer(a.store, a.machine, a.cfg.Clock, func() (uint64, error) { return free.Load(), nil }, a.mayPropose)
	issue := func() error {
		_, err := a.Issue(t.Context(), Call{Caller: root}, issueRequest())
		return err
	}
	revoke := func() error {
		_, err := a.Revoke(t.Context(), Call{Caller: root}, &api.RevokeRequest{Kind: api.RevokeSubject, Subject: "bob", Reason: "left"})
		return err
	}
	free.Store(minFree - 1)
	wantCode(t, issue(), api.CodeDiskFull)
	wantCode(t, a.Ready(t.Context()), api.CodeDiskFull)
	if err := revoke(); err != nil {
		t.Errorf("revoking with %d bytes left: %v", free.Load(), err)
	}
	free.Store(minFreeRevoke - 1)
	wantCode(t, revoke(), api.CodeDiskFull)
	free.Store(minFree)
	if err := errors.Join(issue(), revoke(), a.Ready(t.Context())); err != nil {
		t.Error(err)
	}
}
