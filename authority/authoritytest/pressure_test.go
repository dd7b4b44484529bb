package authoritytest_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/writ-dev/writ/authority"
	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/authoritytest"
	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/authority/server"
	"github.com/writ-dev/writ/capability"
)

// TestBackPressure asks for more than the nodes take, on every node: issues are
// refused with 429 and Retry-After, revocations, leases and reads go through
// meanwhile, a client waits as long as it is told and gets through, and afterwards
// all is as before.
func TestBackPressure(t *testing.T) {
	c := authoritytest.StartCluster(t, 3, authoritytest.Options{
		Limits: server.Limits{Issues: 2}, Bound: 20 * time.Second,
		// The load is on the machine, too: it must not cost the leader its lead.
		Authority: func(cfg *authority.Config) { cfg.Peers.Heartbeat = 10 * time.Second },
	})
	credential, err := c.Join(t.Context(), api.ServiceRequest{Name: "files", Audiences: []string{"corp"}})
	if err != nil {
		t.Fatal(err)
	}
	ask := api.IssueRequest{Audience: "corp", Subject: "agent", Owner: "o", Purpose: "p"}
	var issued []capability.TokenID
	for range 3 * 5 {
		issued = append(issued, c.Mint(t, "corp", "agent").ID)
	}

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var load sync.WaitGroup
	var impatient []*client.Client // of one node each, who tries once
	shed, through := make([]atomic.Int64, len(c.Nodes)), make([]atomic.Int64, len(c.Nodes))
	for i, n := range c.Nodes {
		cfg := c.Config(c.RootToken)
		cfg.Addrs, cfg.Attempts, cfg.Timeout = []string{n.Addr}, 1, 20*time.Second
		one, err := client.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer one.Close()
		impatient = append(impatient, one)
		for range 4 {
			load.Go(func() {
				for ctx.Err() == nil {
					_, err := one.Issue(ctx, ask)
					refused, ok := errors.AsType[*client.Error](err)
					switch {
					case ctx.Err() != nil:
					case err == nil:
						through[i].Add(1)
					case ok && refused.Problem.Code == api.CodeOverloaded && refused.Problem.Status == 429 && refused.RetryAfter == time.Second:
						shed[i].Add(1)
					default:
						t.Errorf("at %s: %v", n.Name, err)
						return
					}
				}
			})
		}
	}
	for i, n := range c.Nodes {
		until(t, n.Name+" sheds issues", func() bool { return shed[i].Load() > 5 && through[i].Load() > 0 })
	}
	// Revocations have room of their own on each node: the first attempt succeeds.
	var slowest time.Duration
	for i := range c.Nodes {
		for _, id := range issued[5*i : 5*i+5] {
			begun := time.Now()
			if _, err := impatient[i].Revoke(ctx, api.RevokeRequest{Kind: api.RevokeToken, Token: id.String(), Reason: "test"}); err != nil {
				t.Errorf("revoking at %s under load: %v", c.Nodes[i].Name, err)
			}
			slowest = max(slowest, time.Since(begun))
		}
	}
	t.Logf("the slowest of %d revocations took %v", len(issued), slowest)
	// So have reads and leases; and no node takes itself for anything but healthy.
	set := parse(t, c.Mint(t, "corp", "agent", "max-calls 3").Token)
	for i, n := range c.Nodes {
		if err := n.Authority.Ready(ctx); err != nil {
			t.Errorf("%s under load is not ready: %v", n.Name, err)
		}
		read, err := impatient[i].Tokens(ctx, client.TokenQuery{Subject: "agent", Linearizable: true})
		if err != nil || len(read.Tokens) == 0 {
			t.Errorf("reading at %s under load: %v", n.Name, err)
		}
		cfg := c.Config(credential)
		cfg.Addrs, cfg.Attempts, cfg.Timeout = []string{n.Addr}, 1, 20*time.Second
		service, err := client.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer service.Close()
		if _, err := service.Lease(ctx, api.LeaseRequest{Macaroon: set, Want: 1}); err != nil {
			t.Errorf("leasing at %s under load: %v", n.Name, err)
		}
	}
	// A client that is told to wait a second does, and gets through.
	waits := new(retries)
	cfg := c.Config(c.RootToken)
	cfg.Timeout, cfg.Logger = 20*time.Second, slog.New(waits)
	patient, err := client.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer patient.Close()
	done := make(chan error, 1)
	go func() {
		var err error
		for err == nil && len(waits.all()) == 0 {
			_, err = patient.Issue(t.Context(), ask)
		}
		done <- err
	}()
	until(t, "a client is told to wait", func() bool { return len(waits.all()) > 0 })
	stop() // now there is room again
	load.Wait()
	if err := <-done; err != nil {
		t.Errorf("a client that tries again: %v", err)
	}
	for _, wait := range waits.all() {
		if wait < time.Second {
			t.Errorf("it waited %v, and had been told a second", wait)
		}
	}
	for _, n := range c.Nodes {
		root := n.Root()
		defer root.Close()
		if _, err := root.Issue(t.Context(), ask); err != nil {
			t.Errorf("at %s after the load: %v", n.Name, err)
		}
	}
}

// retries is a slog.Handler that keeps how long a client waits each time that a
// node was overloaded.
type retries struct {
	mu    sync.Mutex
	waits []time.Duration
}

func (r *retries) all() []time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]time.Duration(nil), r.waits...)
}

// Enabled implements slog.Handler.
func (r *retries) Enabled(context.Context, slog.Level) bool { return true }

// Handle implements slog.Handler.
func (r *retries) Handle(_ context.Context, record slog.Record) error {
	var wait time.Duration
	shed := false
	record.Attrs(func(a slog.Attr) bool {
		switch a.Key {
		case "wait":
			wait = a.Value.Duration()
		case "error":
			shed = strings.Contains(a.Value.String(), string(api.CodeOverloaded))
		}
		return true
	})
	if shed {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.waits = append(r.waits, wait)
	}
	return nil
}

// WithAttrs implements slog.Handler.
func (r *retries) WithAttrs([]slog.Attr) slog.Handler { return r }

// WithGroup implements slog.Handler.
func (r *retries) WithGroup(string) slog.Handler { return r }

// TestCountsOnceThroughFailover leases a budget call by call while the leader is
// killed: clients retry with their request ids, and the calls that they were
// told of are the budget, not one more and not one less.
func TestCountsOnceThroughFailover(t *testing.T) {
	const calls, workers = 120, 4
	c := authoritytest.StartCluster(t, 3, authoritytest.Options{Bound: 20 * time.Second})
	credential, err := c.Join(t.Context(), api.ServiceRequest{Name: "files", Audiences: []string{"corp"}})
	if err != nil {
		t.Fatal(err)
	}
	set := parse(t, c.Mint(t, "corp", "agent", "max-calls 120").Token)
	var mu sync.Mutex
	granted := make(map[string]uint64) // by lease
	total := func() (n uint64) {
		mu.Lock()
		defer mu.Unlock()
		for _, g := range granted {
			n += g
		}
		return n
	}
	var work sync.WaitGroup
	for range workers {
		work.Go(func() {
			own := c.Client(credential)
			defer own.Close()
			last := ""
			for {
				got, err := own.Lease(t.Context(), api.LeaseRequest{Macaroon: set, Want: 1, Lease: last})
				if errors.Is(err, capability.CodeBudgetExhausted) {
					return
				}
				if err != nil {
					t.Errorf("a lease: %v", err)
					return
				}
				mu.Lock()
				if _, twice := granted[got.Lease]; twice {
					t.Errorf("lease %s was granted twice", got.Lease)
				}
				granted[got.Lease] = got.Granted
				mu.Unlock()
				last = got.Lease
			}
		})
	}
	for _, at := range []uint64{calls / 4, calls / 2} {
		until(t, "calls are leased", func() bool { return total() >= at })
		leader, err := c.Leader(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := leader.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := leader.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	work.Wait()
	if got := total(); got != calls {
		t.Errorf("%d calls were leased of a budget of %d", got, calls)
	}
}
