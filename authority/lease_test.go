package authority

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/capability"
)

func leaseRequest(tok *capability.Token, want uint64) *api.LeaseRequest {
	return &api.LeaseRequest{Macaroon: tok.Bytes(), Want: want}
}

// TestLeaseIsExact: from several lessees at once, never more than the limit,
// and all of it.
func TestLeaseIsExact(t *testing.T) {
	a, root := openNode(t, testConfig(t))
	issued, err := a.Issue(t.Context(), Call{Caller: root}, issueRequest("max-calls 500"))
	if err != nil {
		t.Fatal(err)
	}
	narrow, err := parse(t, issued.Token).Attenuate("max-calls 200")
	if err != nil {
		t.Fatal(err)
	}
	var lessees []Caller
	for i := range 3 {
		lessees = append(lessees, joined(t, a, root, &api.ServiceRequest{Name: fmt.Sprint("svc", i), Audiences: []string{"corp"}}))
	}
	spend := func(tok *capability.Token) uint64 {
		var total atomic.Uint64
		var wg sync.WaitGroup
		for _, c := range lessees {
			wg.Go(func() {
				req := leaseRequest(tok, 7)
				for {
					l, err := a.Lease(context.Background(), Call{Caller: c}, req)
					if errors.Is(err, capability.CodeBudgetExhausted) {
						return
					}
					if err != nil {
						t.Error(err)
						return
					}
					// One call of each block is given back, but for the last ones.
					unspent := min(1, l.Granted-1)
					total.Add(l.Granted - unspent)
					req.Lease, req.Unspent = l.Lease, unspent
				}
			})
		}
		wg.Wait()
		return total.Load()
	}
	// What a lessee holds when it gives up, it has not spent: at most one call each.
	if n := spend(narrow); n > 200 || n < 200-3 {
		t.Errorf("%d calls through a max-calls 200", n)
	}
	if n := spend(parse(t, issued.Token)); n > 300+3 || n < 300-6 {
		t.Errorf("%d calls through what is left of a max-calls 500", n)
	}
}

// TestForgedLease: neither the limit nor the branch is taken on trust.
func TestForgedLease(t *testing.T) {
	a, root := openNode(t, testConfig(t))
	svc := joined(t, a, root, &api.ServiceRequest{Name: "files", Audiences: []string{"corp"}})
	issued, err := a.Issue(t.Context(), Call{Caller: root}, issueRequest("max-calls 3", "action read"))
	if err != nil {
		t.Fatal(err)
	}
	good := parse(t, issued.Token)
	lease := func(c Caller, req *api.LeaseRequest) error {
		_, err := a.Lease(t.Context(), Call{Caller: c}, req)
		return err
	}
	raised := good.Bytes()
	copy(raised[bytesIndex(raised, "max-calls 3"):], "max-calls 9")
	wantCode(t, lease(svc, &api.LeaseRequest{Macaroon: raised, Want: 1}), capability.CodeBadSignature)
	flipped := good.Bytes()
	flipped[len(flipped)-1] ^= 1
	wantCode(t, lease(svc, &api.LeaseRequest{Macaroon: flipped, Want: 1}), capability.CodeBadSignature)
	wantCode(t, lease(svc, &api.LeaseRequest{Macaroon: []byte("garbage"), Want: 1}), capability.CodeMalformed)
	wantCode(t, lease(svc, &api.LeaseRequest{Macaroon: make([]byte, 1<<20), Want: 1}), capability.CodeTooLarge)
	wantCode(t, lease(svc, leaseRequest(good, 0)), api.CodeInvalid)
	wantCode(t, lease(svc, leaseRequest(root.Credential, 1)), capability.CodeUnknownKey)
	plain, err := a.Issue(t.Context(), Call{Caller: root}, issueRequest("action read"))
	if err != nil {
		t.Fatal(err)
	}
	wantCode(t, lease(svc, leaseRequest(parse(t, plain.Token), 1)), api.CodeInvalid)
	other := joined(t, a, root, &api.ServiceRequest{Name: "other", Audiences: []string{"elsewhere"}})
	wantCode(t, lease(other, leaseRequest(good, 1)), capability.CodeResourceDenied)

	// With a stolen audience key: a token that nobody issued, and a chain that
	// leaves the issued one out.
	set, err := a.Keys(t.Context(), svc, []string{"corp"})
	if err != nil {
		t.Fatal(err)
	}
	stolen := capability.NewRootKey([32]byte(set.Keys[0].Secret))
	for id, conditions := range map[capability.TokenID][]string{
		capability.NewTokenID(a.now(), [10]byte{7}): {"max-calls 1000000"},
		issued.ID: {"max-calls 1000000"},
	} {
		forged, err := capability.Mint(stolen, capability.Identifier{
			Epoch: set.Keys[0].Epoch, ID: id, NotAfter: issued.NotAfter, Audience: "corp", Subject: "agent-42",
		}, conditions...)
		if err != nil {
			t.Fatal(err)
		}
		wantCode(t, lease(svc, leaseRequest(forged, 1)), capability.CodeUnregistered)
	}
	if m := a.Metrics(); m.Leases != 0 || m.Budgets != 0 {
		t.Errorf("%d leases, %d budgets", m.Leases, m.Budgets)
	}
	if err := lease(svc, leaseRequest(good, 1)); err != nil {
		t.Errorf("the good one: %v", err)
	}
	info, err := a.Token(t.Context(), issued.ID)
	if err != nil || len(info.Budgets) != 1 || info.Budgets[0].Limit != 3 || info.Budgets[0].Remaining != 2 || info.Budgets[0].Leased != 1 {
		t.Errorf("%+v, %v", info, err)
	}
}

func bytesIndex(b []byte, s string) int {
	for i := range b {
		if len(b)-i >= len(s) && string(b[i:i+len(s)]) == s {
			return i
		}
	}
	return -1
}

// TestSelfMadeBudgets: a holder hangs max-calls of its own under its token by the
// thousand. Each is a valid chain; the authority keeps 256 of them.
func TestSelfMadeBudgets(t *testing.T) {
	a, root := openNode(t, testConfig(t))
	issued, err := a.Issue(t.Context(), Call{Caller: root}, issueRequest())
	if err != nil {
		t.Fatal(err)
	}
	tok := parse(t, issued.Token)
	var granted, refused atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 250 {
				own, err := tok.Attenuate("max-calls 1000000")
				if err != nil {
					t.Error(err)
					return
				}
				switch _, err := a.Lease(context.Background(), Call{Caller: root}, leaseRequest(own, 1)); {
				case err == nil:
					granted.Add(1)
				case errors.Is(err, capability.CodeTooLarge):
					refused.Add(1)
				default:
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if granted.Load() != 256 || refused.Load() != 2000-256 || a.Metrics().Budgets != 256 {
		t.Errorf("%d granted, %d refused", granted.Load(), refused.Load())
	}
}

func TestReturnAndRetry(t *testing.T) {
	a, root := openNode(t, testConfig(t))
	svc := joined(t, a, root, &api.ServiceRequest{Name: "files", Audiences: []string{"corp"}})
	issued, err := a.Issue(t.Context(), Call{Caller: root}, issueRequest("max-calls 10"))
	if err != nil {
		t.Fatal(err)
	}
	call := Call{Caller: svc, Request: newRequest(a)}
	first, err := a.Lease(t.Context(), call, leaseRequest(parse(t, issued.Token), 10))
	if err != nil {
		t.Fatal(err)
	}
	again, err := a.Lease(t.Context(), call, leaseRequest(parse(t, issued.Token), 10))
	if err != nil || *again != *first {
		t.Fatalf("a retry: %+v, %v; at first %+v", again, err, first)
	}
	if aud, ok, err := a.LeaseAudience(first.Lease, svc.Name, call.Request); aud != "corp" || !ok || err != nil {
		t.Errorf("%q %v %v", aud, ok, err)
	}
	back := Call{Caller: svc, Request: newRequest(a)}
	for range 2 { // a retry says the same, and credits nothing more
		r, err := a.Return(t.Context(), back, first.Lease, &api.ReturnRequest{Unspent: 4})
		if err != nil || r.Credited != 4 {
			t.Fatalf("%+v, %v", r, err)
		}
	}
	r, err := a.Return(t.Context(), Call{Caller: svc}, first.Lease, &api.ReturnRequest{Unspent: 4})
	if err != nil || r.Credited != 0 {
		t.Errorf("a closed lease: %+v, %v", r, err)
	}
	if _, ok, err := a.LeaseAudience(first.Lease, svc.Name, newRequest(a)); ok || err != nil {
		t.Errorf("a closed lease: %v %v", ok, err)
	}
	info, err := a.Token(t.Context(), issued.ID)
	if err != nil || info.Budgets[0].Remaining != 10-first.Granted+4 {
		t.Errorf("%+v, %v", info.Budgets, err)
	}
	_, err = a.Return(t.Context(), Call{Caller: svc}, "nonsense", &api.ReturnRequest{})
	wantCode(t, err, api.CodeInvalid)
}
