package replica

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats"
)

// bank is an authority's side of call budgets: one account, exact.
type bank struct {
	mu       sync.Mutex
	left     int64
	most     uint64 // of a lease
	open     map[string]int64
	n        int
	requests int
	err      error
	wait     chan struct{} // nil: none
	token    capability.TokenID
	branch   capability.BranchID
}

func newBank(calls int64) *bank {
	return &bank{left: calls, most: 1 << 20, open: map[string]int64{}}
}

func refused(code api.Code) error {
	return &client.Error{Problem: api.Problem{Code: code, Status: http.StatusUnprocessableEntity}}
}

func (b *bank) Lease(ctx context.Context, r api.LeaseRequest) (*api.LeaseResponse, error) {
	if b.wait != nil {
		select {
		case <-b.wait:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.requests++
	if b.err != nil {
		return nil, b.err
	}
	if r.Lease != "" {
		if err := b.close(r.Lease, r.Unspent); err != nil {
			return nil, err
		}
	}
	if b.left == 0 {
		return nil, refused(capability.CodeBudgetExhausted)
	}
	k := max(min(int64(r.Want), b.left/2, int64(b.most)), 1)
	b.left -= k
	b.n++
	id := fmt.Sprintf("%032x", b.n)
	b.open[id] = k
	return &api.LeaseResponse{Lease: id, Token: b.token, Branch: b.branch, Granted: uint64(k)}, nil
}

// close is called with mu held.
func (b *bank) close(id string, unspent uint64) error {
	granted, ok := b.open[id]
	if !ok {
		return nil
	}
	if int64(unspent) > granted {
		return refused(api.CodeInvalid)
	}
	delete(b.open, id)
	b.left += int64(unspent)
	return nil
}

func (b *bank) Return(_ context.Context, id string, r api.ReturnRequest) (*api.ReturnResponse, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return &api.ReturnResponse{Credited: r.Unspent}, b.close(id, r.Unspent)
}

func (b *bank) remaining() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.left
}

// lessee is a replica that has nothing but leases.
func lessee(t testing.TB, from lessor, cfg LeaseConfig) *Replica {
	t.Helper()
	if err := cfg.complete(); err != nil {
		t.Fatal(err)
	}
	base := time.Now()
	clock := func() int64 { return int64(time.Since(base)) }
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	r := &Replica{ctx: ctx, cancel: cancel}
	r.leases = newBlocks(ctx, cfg, from, clock, time.Now, rand.Reader, slog.New(slog.DiscardHandler))
	return r
}

func path(b *bank) *capability.BudgetPath {
	return &capability.BudgetPath{
		Token: b.token, Branch: b.branch, N: 1, NotAfter: time.Now().Add(time.Hour).UnixMilli(),
		Limits: [capability.MaxBudgets]uint64{10_000},
	}
}

func (r *Replica) closeLeases(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := r.leases.close(ctx); err != nil {
		t.Fatal(err)
	}
}

// spendAll spends from r in several goroutines until every one was refused
// several times over, and returns how many calls went through.
func spendAll(t testing.TB, r *Replica, b *bank, workers int) int64 {
	var spent atomic.Int64
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for {
				_, err := r.Spend(context.Background(), path(b))
				switch {
				case err == nil:
					spent.Add(1)
				case errors.Is(err, capability.CodeBudgetExhausted):
					return
				default:
					t.Errorf("spend: %v", err)
					return
				}
			}
		})
	}
	wg.Wait()
	return spent.Load()
}

// TestTwoReplicasSpendExactly has two replicas spend one budget of 10,000 in
// several goroutines each, until both refuse.
func TestTwoReplicasSpendExactly(t *testing.T) {
	for _, want := range []uint64{1, 7, 256, maxWant} {
		t.Run(fmt.Sprint(want), func(t *testing.T) {
			b := newBank(10_000)
			x := lessee(t, b, LeaseConfig{Want: want})
			y := lessee(t, b, LeaseConfig{Want: want})
			// Who is refused while the other still holds calls comes again.
			var total int64
			for b.remaining() > 0 || x.held() > 0 || y.held() > 0 {
				var wg sync.WaitGroup
				var nx, ny int64
				wg.Go(func() { nx = spendAll(t, x, b, 4) })
				wg.Go(func() { ny = spendAll(t, y, b, 4) })
				wg.Wait()
				total += nx + ny
				if t.Failed() {
					return
				}
			}
			if total != 10_000 {
				t.Errorf("%d calls went through, not 10,000", total)
			}
			for _, r := range []*Replica{x, y} {
				if _, err := r.Spend(t.Context(), path(b)); !errors.Is(err, capability.CodeBudgetExhausted) {
					t.Errorf("call 10,001: %v", err)
				}
				r.closeLeases(t)
			}
			if b.left != 0 {
				t.Errorf("%d calls were given back of a budget that is spent", b.left)
			}
		})
	}
}

func (r *Replica) held() (n int64) {
	for _, k := range r.leases.table.all() {
		k.mu.Lock()
		n += k.held()
		k.mu.Unlock()
	}
	return n
}

// TestCloseGivesBackWhatWasNotSpent closes a replica while calls are being
// spent: what went through and what was given back is everything, to the call.
func TestCloseGivesBackWhatWasNotSpent(t *testing.T) {
	for round := range 20 {
		b := newBank(10_000)
		r := lessee(t, b, LeaseConfig{Want: 500})
		var spent atomic.Int64
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for {
					if _, err := r.Spend(context.Background(), path(b)); err != nil {
						return
					}
					if spent.Add(1) == int64(100*round) {
						go r.leases.recall(fmt.Sprintf("%032x", 1))
					}
				}
			})
		}
		for spent.Load() < int64(50*round) {
			// spin: the point is to close amidst spending
		}
		r.closeLeases(t)
		wg.Wait()
		if got := spent.Load() + b.remaining(); got != 10_000 {
			t.Fatalf("round %d: %d spent and %d left make %d", round, spent.Load(), b.remaining(), got)
		}
		if len(b.open) != 0 {
			t.Fatalf("round %d: %d leases left open", round, len(b.open))
		}
	}
}

// TestRecallEmptiesTheBlock gives calls back to another replica that wants them.
func TestRecallEmptiesTheBlock(t *testing.T) {
	b := newBank(100)
	r := lessee(t, b, LeaseConfig{Want: 1000})
	if _, err := r.Spend(t.Context(), path(b)); err != nil {
		t.Fatal(err)
	}
	if b.remaining() != 50 {
		t.Fatalf("%d calls left at the authority, not 50", b.remaining())
	}
	r.leases.recall("no such lease")
	r.leases.recall(fmt.Sprintf("%032x", 1))
	if n := r.held(); n != 0 {
		t.Errorf("%d calls in the block after a recall", n)
	}
	other := lessee(t, b, LeaseConfig{Want: 1000})
	r.leases.wg.Wait()
	if b.remaining() != 99 {
		t.Errorf("%d calls left at the authority, not 99", b.remaining())
	}
	if n := spendAll(t, other, b, 2) + spendAll(t, r, b, 2); n != 99 {
		t.Errorf("%d calls went through after one of 100, not 99", n)
	}
}

// TestCrashForfeits: what a replica held when it died is spent.
func TestCrashForfeits(t *testing.T) {
	b := newBank(100)
	dead := lessee(t, b, LeaseConfig{Want: 40})
	if _, err := dead.Spend(t.Context(), path(b)); err != nil {
		t.Fatal(err)
	}
	dead.cancel() // and nothing else: no Close
	r := lessee(t, b, LeaseConfig{Want: 40})
	if n := spendAll(t, r, b, 2); n != 60 {
		t.Errorf("%d calls went through after a crash that held 40 of 100, not 60", n)
	}
}

// TestIdleBlocksAreGivenBack, and the same for those that are too many.
func TestIdleBlocksAreGivenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBank(1000)
		r := lessee(t, b, LeaseConfig{Want: 100, Idle: 30 * time.Second})
		if _, err := r.Spend(t.Context(), path(b)); err != nil {
			t.Fatal(err)
		}
		r.leases.sweep()
		time.Sleep(29 * time.Second)
		r.leases.sweep()
		if b.remaining() != 900 {
			t.Fatalf("%d calls left before the block was idle, not 900", b.remaining())
		}
		if _, err := r.Spend(t.Context(), path(b)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		r.leases.sweep()
		time.Sleep(29 * time.Second)
		r.leases.sweep()
		synctest.Wait()
		if b.remaining() != 900 {
			t.Fatalf("%d calls left after a use, not 900", b.remaining())
		}
		time.Sleep(2 * time.Second)
		r.leases.sweep()
		synctest.Wait()
		if b.remaining() != 998 || r.leases.len() != 0 {
			t.Fatalf("%d calls left and %d blocks held, not 998 and 0", b.remaining(), r.leases.len())
		}
	})
}

// TestPathsAreBounded spends from many narrowings through a real verifier: the
// macaroon that a lease request shows ends at the deepest max-calls.
func TestPathsAreBounded(t *testing.T) {
	b := newBank(1 << 40)
	r := lessee(t, anyPath{b, t}, LeaseConfig{Want: 4, Paths: 8})
	now := time.Now()
	key := capability.NewRootKey([32]byte{1})
	root, err := capability.Mint(key, capability.Identifier{
		ID: capability.NewTokenID(now.UnixMilli(), [10]byte{}), NotAfter: now.Add(time.Hour), Audience: "corp", Subject: "a",
	}, "max-calls 1000000")
	if err != nil {
		t.Fatal(err)
	}
	checker, err := caveats.Standard()
	if err != nil {
		t.Fatal(err)
	}
	v, err := capability.NewVerifier(oneKey{key}, []string{"corp"}, checker, capability.UnsafeWithoutRevocations(), capability.WithBudgets(r))
	if err != nil {
		t.Fatal(err)
	}
	g := new(capability.Grant)
	for i := range 100 {
		token, err := root.Attenuate("max-calls 500", "action read")
		if err != nil {
			t.Fatal(err)
		}
		req := capability.Request{Now: now, Action: "read", Resource: []string{"x"}}
		if err := v.Verify(t.Context(), g, token.Bytes(), &req); err != nil {
			t.Fatalf("path %d: %v", i, err)
		}
		if n := r.leases.len(); n > 8 {
			t.Fatalf("%d blocks held after %d paths, more than 8", n, i+1)
		}
	}
	r.closeLeases(t)
	if b.left != 1<<40-100 || len(b.open) != 0 {
		t.Errorf("%d calls lost and %d leases open", 1<<40-100-b.left, len(b.open))
	}
}

type oneKey struct{ key *capability.RootKey }

func (k oneKey) Key([]byte, uint32, uint32) *capability.RootKey { return k.key }

// anyPath grants leases for the path that the macaroon shows.
type anyPath struct {
	*bank
	t *testing.T
}

func (a anyPath) Lease(ctx context.Context, r api.LeaseRequest) (*api.LeaseResponse, error) {
	shown, err := capability.Decode(r.Macaroon)
	if err != nil {
		return nil, err
	}
	in, err := shown.Inspect()
	if err != nil {
		return nil, err
	}
	if last := in.Caveats[len(in.Caveats)-1].Condition; last != "max-calls 500" {
		a.t.Errorf("the macaroon shown ends with %q, not with its deepest max-calls", last)
	}
	got, err := a.bank.Lease(ctx, r)
	if err == nil {
		got.Branch, got.Token = shown.Branch(), in.Identifier.ID
	}
	return got, err
}

// TestRefusalsOfLeases: what Budgets may say is passed on, everything else is
// unavailable, and an exhausted budget is asked about again only after a while.
func TestRefusalsOfLeases(t *testing.T) {
	for _, c := range []struct {
		name string
		err  error
		want capability.Code
	}{
		{"exhausted", refused(capability.CodeBudgetExhausted), capability.CodeBudgetExhausted},
		{"revoked", refused(capability.CodeRevoked), capability.CodeRevoked},
		{"unregistered", refused(capability.CodeUnregistered), capability.CodeUnregistered},
		{"forged chain", refused(capability.CodeBadSignature), capability.CodeUnavailable},
		{"own credential revoked", &client.Error{Problem: api.Problem{Code: capability.CodeRevoked, Status: 401}}, capability.CodeUnavailable},
		{"no node", client.ErrUnreachable, capability.CodeUnavailable},
		{"nonsense", errors.New("nonsense"), capability.CodeUnavailable},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBank(10)
				b.err = c.err
				r := lessee(t, b, LeaseConfig{})
				for range 5 {
					if _, err := r.Spend(t.Context(), path(b)); capability.CodeOf(err) != c.want {
						t.Fatalf("%v, not %s", err, c.want)
					}
				}
				if b.requests != 1 {
					t.Errorf("%d requests for 5 calls within 100 ms, not 1", b.requests)
				}
				b.err = nil
				time.Sleep(deniedFor + time.Millisecond)
				if _, err := r.Spend(t.Context(), path(b)); err != nil {
					t.Errorf("after calls were given back: %v", err)
				}
			})
		})
	}
}

// TestSpendWaitsForAWhile: an authority that does not answer holds a call up
// for no longer than the timeout, and one request is under way for all callers.
func TestSpendWaitsForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBank(100)
		b.wait = make(chan struct{})
		r := lessee(t, b, LeaseConfig{Timeout: time.Second})
		start := time.Now()
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				blocked, err := r.Spend(context.Background(), path(b))
				if !blocked || !errors.Is(err, capability.CodeUnavailable) {
					t.Errorf("blocked %v, %v", blocked, err)
				}
			})
		}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if _, err := r.Spend(ctx, path(b)); !errors.Is(err, capability.CodeUnavailable) || time.Since(start) != 100*time.Millisecond {
			t.Errorf("a call whose context ended: %v after %v", err, time.Since(start))
		}
		wg.Wait()
		if d := time.Since(start); d != time.Second {
			t.Errorf("calls waited for %v, not 1 s", d)
		}
		close(b.wait)
		synctest.Wait()
		if b.requests != 1 {
			t.Errorf("%d lease requests for 11 callers, not 1", b.requests)
		}
		if _, err := r.Spend(t.Context(), path(b)); err != nil {
			t.Errorf("after the lease came: %v", err)
		}
	})
}

func BenchmarkSpend(b *testing.B) {
	for _, workers := range []int{1, 2} {
		b.Run(fmt.Sprintf("goroutines=%d", workers), func(b *testing.B) {
			bk := newBank(1 << 50)
			r := lessee(b, bk, LeaseConfig{Want: 1 << 30})
			if _, err := r.Spend(b.Context(), path(bk)); err != nil {
				b.Fatal(err)
			}
			b.ResetTimer()
			b.ReportAllocs()
			var wg sync.WaitGroup
			for w := range workers {
				n := b.N / workers
				if w == 0 {
					n += b.N % workers
				}
				wg.Go(func() {
					p := path(bk)
					ctx := context.Background()
					for range n {
						if _, err := r.Spend(ctx, p); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
		})
	}
}
