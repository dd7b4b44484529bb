package replica_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/authoritytest"
	"github.com/writ-dev/writ/authority/replica"
	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats"
)

func verifier(t testing.TB, r *replica.Replica, opts ...capability.Option) *capability.Verifier {
	t.Helper()
	checker, err := caveats.Standard()
	if err != nil {
		t.Fatal(err)
	}
	v, err := r.Verifier(checker, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// allow verifies a token for an action on files/q3.
func allow(ctx context.Context, v *capability.Verifier, text, action string) error {
	req := capability.Request{Now: time.Now(), Action: action, Resource: []string{"files", "q3"}}
	return v.VerifyText(ctx, new(capability.Grant), text, &req)
}

// TestTheWholeJob: what a service does with a replica, end to end over HTTPS.
func TestTheWholeJob(t *testing.T) {
	n := authoritytest.Start(t, authoritytest.Options{Bound: time.Second})
	r := n.Replica(t, "files", "corp")
	v := verifier(t, r)
	minted := n.Mint(t, "corp", "agent-42", "action read", "resource files/**", "max-calls 3")
	token, err := capability.Parse(minted.Token)
	if err != nil {
		t.Fatal(err)
	}
	helper, err := token.Attenuate("branch helper", "resource files/q3")
	if err != nil {
		t.Fatal(err)
	}
	backup, err := token.Attenuate("branch backup", "resource files/q3")
	if err != nil {
		t.Fatal(err)
	}
	if err := allow(t.Context(), v, helper.Text(), "read"); err != nil {
		t.Fatalf("helper reads: %v", err)
	}
	if err := allow(t.Context(), v, helper.Text(), "write"); !errors.Is(err, capability.CodeActionDenied) {
		t.Fatalf("helper writes: %v", err)
	}
	start := time.Now()
	if _, err := n.Root().RevokeSelf(t.Context(), api.SelfRevokeRequest{Token: helper.Text(), Reason: "leaked"}); err != nil {
		t.Fatal(err)
	}
	for err = nil; !errors.Is(err, capability.CodeRevoked); {
		if err = allow(t.Context(), v, helper.Text(), "write"); time.Since(start) > time.Second {
			t.Fatalf("still not revoked after the bound: %v", err)
		}
	}
	t.Logf("refused %v after the revocation was asked for", time.Since(start))
	for i := range 2 {
		if err := allow(t.Context(), v, backup.Text(), "read"); err != nil {
			t.Fatalf("backup reads, call %d: %v", i+2, err)
		}
	}
	if err := allow(t.Context(), v, backup.Text(), "read"); !errors.Is(err, capability.CodeBudgetExhausted) {
		t.Fatalf("call 4 of 3: %v", err)
	}
}
