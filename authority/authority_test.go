package authority

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/capability"
)

func testConfig(t testing.TB) Config {
	dir := t.TempDir()
	return Config{
		Dir: filepath.Join(dir, "data"), NodeID: "n1", KeyFile: filepath.Join(dir, "key"), Bootstrap: true,
		Bound: 200 * time.Millisecond, OnFatal: func(err error) { t.Errorf("fatal: %v", err) },
	}
}

// openNode opens a node that ends with the test, and returns its root as a caller.
func openNode(t testing.TB, cfg Config) (*Authority, Caller) {
	t.Helper()
	a, formed, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	if formed == nil {
		return a, Caller{}
	}
	return a, callerOf(t, a, formed.RootToken)
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

func TestIssueAndVerify(t *testing.T) {
	a, root := openNode(t, testConfig(t))
	resp, err := a.Issue(t.Context(), Call{Caller: root}, issueRequest("action read", "max-calls 3"))
	if err != nil {
		t.Fatal(err)
	}
	tok, err := capability.Parse(resp.Token)
	if err != nil {
		t.Fatal(err)
	}
	v, err := a.Verify(t.Context(), root, &api.VerifyRequest{Set: tok.Bytes()})
	if err != nil || len(v.Branches) != 3 || v.Branches[2] != resp.Branch {
		t.Fatal(v, err)
	}
}
