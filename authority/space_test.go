package authority_test

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/writ-dev/writ/authority"
	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/authoritytest"
	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats"
)

// TestFullDiskOverHTTPS: a node without space says so in the code and in
// readiness; tokens go on being verified, revocations are refused last, and
// nothing has to be started again once there is space.
func TestFullDiskOverHTTPS(t *testing.T) {
	n := authoritytest.Start(t, authoritytest.Options{Bound: 10 * time.Second})
	var free atomic.Uint64
	free.Store(1 << 40)
	n.Authority.SetFree(func() (uint64, error) { return free.Load(), nil })
	root := n.Root()
	defer root.Close()
	issue := func() error {
		_, err := root.Issue(t.Context(), api.IssueRequest{Audience: "corp", Subject: "a", Owner: "o", Purpose: "p"})
		return err
	}
	revoke := func(subject string) (*api.RevokeResponse, error) {
		return root.Revoke(t.Context(), api.RevokeRequest{Kind: api.RevokeSubject, Subject: subject, Reason: "left"})
	}
	full := func(what string, err error) {
		t.Helper()
		if e, ok := errors.AsType[*client.Error](err); !ok || e.Problem.Status != 503 || e.Problem.Code != api.CodeDiskFull || e.Problem.Hint == "" {
			t.Errorf("%s: %v", what, err)
		}
	}
	done := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	issued := n.Mint(t, "corp", "agent-42")
	checker, err := caveats.Standard()
	if err != nil {
		t.Fatal(err)
	}
	r := n.Replica(t, "files", "corp")
	v, err := r.Verifier(checker)
	if err != nil {
		t.Fatal(err)
	}
	verify := func(text string) error {
		return v.VerifyText(t.Context(), new(capability.Grant), text, &capability.Request{Now: time.Now()})
	}

	free.Store(authority.MinFree - 1)
	full("issuing", issue())
	if err := root.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "disk") {
		t.Errorf("readiness: %v", err)
	}
	_, err = revoke("bob")
	done("revoking", err)
	free.Store(authority.MinFreeRevoke - 1)
	_, err = revoke("agent-42")
	full("revoking", err)
	done("verifying meanwhile", verify(issued.Token))

	free.Store(authority.MinFree)
	done("issuing again", issue())
	done("readiness again", root.Ready(t.Context()))
	revoked, err := revoke("agent-42")
	if err != nil {
		t.Fatalf("revoking again: %v", err)
	}
	done("the revocation's way", r.Wait(t.Context(), api.Cursor{Incarnation: 1, Index: revoked.Index}))
	if err := verify(issued.Token); !errors.Is(err, capability.CodeRevoked) {
		t.Errorf("verifying what was revoked: %v", err)
	}
}
