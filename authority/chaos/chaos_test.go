//go:build chaos

package chaos

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/writ-dev/writ/authority"
	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/authoritytest"
	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/authority/replica"
	"github.com/writ-dev/writ/authority/state"
	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats"
)

var (
	firstSeed = flag.Uint64("chaos.seed", 1, "the first seed")
	seeds     = flag.Uint64("chaos.seeds", 1, "how many seeds")
	lasts     = flag.Duration("chaos.time", 15*time.Second, "how long there are faults, for each seed")
)

// campaign is one seed's run.
type campaign struct {
	t        *testing.T
	c        *authoritytest.Cluster
	bound    time.Duration
	nodes    map[string]*node
	guards   []*guard
	links    []*link
	history  history
	pool     pool
	verdicts verdicts
}

// guard is a service's verifier on a replica of its own.
type guard struct {
	name     string
	replica  *replica.Replica
	client   *client.Client
	verifier *capability.Verifier
}

func (g *guard) verify(ctx context.Context, set []byte) error {
	return g.verifier.Verify(ctx, new(capability.Grant), set, &capability.Request{Now: time.Now(), Service: "corp"})
}

func (r *campaign) violated(format string, args ...any) {
	r.t.Helper()
	r.t.Errorf("VIOLATION: "+format, args...)
}

// TestCampaign runs the campaign once for each seed.
func TestCampaign(t *testing.T) {
	for seed := *firstSeed; seed < *firstSeed+*seeds; seed++ {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) { run(t, seed, *lasts) })
	}
}

func run(t *testing.T, seed uint64, lasts time.Duration) {
	const guards, workers, readers = 3, 3, 16
	r := &campaign{t: t, c: authoritytest.StartCluster(t, 3, authoritytest.Options{}), bound: authoritytest.ClusterBound,
		nodes: make(map[string]*node), history: history{base: time.Now()}}
	for _, n := range r.c.Nodes {
		own := &node{ClusterNode: n}
		own.up()
		t.Cleanup(func() { own.cancel() })
		r.nodes[n.Name] = own
	}
	for i := range guards {
		r.openGuard(i)
	}

	ctx, stop := context.WithTimeout(t.Context(), lasts)
	defer stop()
	var load sync.WaitGroup
	for n := range workers {
		load.Go(func() { r.work(ctx, n, seed) })
	}
	for n := range readers {
		load.Go(func() { r.look(ctx, workers+n, seed) })
	}
	load.Go(func() { r.grantBudgets(ctx) })
	for n, g := range r.guards {
		load.Go(func() { r.serve(ctx, g, n, seed) })
		load.Go(func() { r.charge(ctx, g, n, seed) })
	}
	faults, err := r.disturb(ctx, seed)
	stop()
	load.Wait()
	if err != nil {
		t.Fatal(err)
	}

	healing, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := r.c.WaitReady(healing); err != nil {
		t.Fatal(err)
	}
	r.outlive(healing)
	r.checkBudgets(healing)
	if got := r.history.check(); got != porcupine.Ok {
		r.violated("the history of %d operations is %s to linearize", len(r.history.ops), got)
	}
	r.checkNodes(healing)
	r.checkWorth(faults, lasts)
}

func (r *campaign) openGuard(i int) {
	r.t.Helper()
	name := fmt.Sprintf("guard-%d", i+1)
	credential, err := r.c.Join(r.t.Context(), api.ServiceRequest{Name: name, Audiences: []string{audience}})
	if err != nil {
		r.t.Fatal(err)
	}
	l := new(link)
	cfg := r.c.Config(credential)
	cfg.Addrs = append(cfg.Addrs[i%3:], cfg.Addrs[:i%3]...)
	cfg.DialContext = l.dial
	own, err := client.New(cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(own.Close)
	copied := authoritytest.Open(r.t, replica.Config{Client: own, Audiences: []string{audience}, Leases: replica.LeaseConfig{Want: 8}})
	checker, err := caveats.Standard()
	if err != nil {
		r.t.Fatal(err)
	}
	v, err := copied.Verifier(checker)
	if err != nil {
		r.t.Fatal(err)
	}
	r.guards, r.links = append(r.guards, &guard{name, copied, own, v}), append(r.links, l)
}

// outlive shows every guard every token once more, a bound after the last
// acknowledgement: by now there is nothing stale either.
func (r *campaign) outlive(ctx context.Context) {
	pause(ctx, r.bound+100*time.Millisecond)
	for _, g := range r.guards {
		for _, t := range r.pool.tokens {
			r.present(ctx, g, t)
		}
	}
}

// checkBudgets offers each budget at least twice its limit, and every other one
// until every guard refuses, has the rest given back, and counts.
func (r *campaign) checkBudgets(ctx context.Context) {
	for n, b := range r.pool.budgets {
		exhausted := 0 // times in a row
		for i := 0; (b.offered.Load() < 2*b.limits[len(b.limits)-1] || n%2 == 0 && exhausted < 2*len(r.guards)) && ctx.Err() == nil; i++ {
			if r.spend(ctx, r.guards[i%len(r.guards)], b) == capability.CodeBudgetExhausted {
				exhausted++
			} else {
				exhausted = 0
			}
		}
	}
	for _, g := range r.guards {
		if err := g.replica.Close(); err != nil {
			r.t.Error(err)
		}
	}
	leader, err := r.c.Leader(ctx)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := leader.Authority.Barrier(ctx); err != nil {
		r.t.Fatal(err)
	}
	var accepted, unspent, forfeited int64
	for _, b := range r.pool.budgets {
		took := b.accepted.Load()
		if b.offered.Load() < 2*b.least() {
			r.t.Errorf("vacuous: only %d calls of %s were offered, of %v", b.offered.Load(), b.subject, b.limits)
		}
		if took > b.least() {
			r.violated("%d calls of %s were accepted, of %v", took, b.subject, b.limits)
		}
		info, err := leader.Authority.Token(ctx, b.id)
		if err != nil {
			r.t.Fatal(err)
		}
		if n := len(info.Budgets); n != len(b.limits) && (n != 0 || took != 0) { // none before the first lease
			r.violated("%s has %d budgets at the authority, not %d", b.subject, n, len(b.limits))
		}
		for _, at := range info.Budgets {
			gone := int64(at.Limit) - int64(took) - int64(at.Remaining)
			if gone < 0 {
				r.violated("%s: %d were accepted and %d are unspent, of %d", b.subject, took, at.Remaining, at.Limit)
			}
			forfeited += gone
			unspent += int64(at.Remaining)
		}
		accepted += int64(took)
	}
	open := leader.Authority.Metrics().Leases
	r.t.Logf("%d budgets: %d accepted, %d unspent, %d forfeited with %d leases open", len(r.pool.budgets), accepted, unspent, forfeited, open)
	if open == 0 && forfeited != 0 {
		r.violated("%d calls are gone, and no lease is open", forfeited)
	}
	if len(r.pool.budgets) < 3 || accepted == 0 {
		r.t.Errorf("vacuous: %d budgets, %d calls accepted", len(r.pool.budgets), accepted)
	}
}

// checkNodes holds what was acknowledged against every node, and the nodes against each other.
func (r *campaign) checkNodes(ctx context.Context) {
	for _, n := range r.c.Nodes {
		select {
		case err := <-n.Fatal:
			r.violated("%s could not go on: %v", n.Name, err)
		default:
		}
		if err := n.Authority.Barrier(ctx); err != nil {
			r.t.Fatal(err)
		}
		for _, t := range r.pool.tokens {
			info, err := n.Authority.Token(ctx, t.id)
			switch {
			case err != nil:
				r.violated("%s, which was acknowledged, is not on %s: %v", t.subject, n.Name, err)
			case t.acked.Load() != 0 && !info.Revoked, info.Revoked && !t.asked.Load():
				r.violated("on %s revoked is %v of %s", n.Name, info.Revoked, t.subject)
			}
		}
	}
	r.compareStates(ctx)
	var longest [][]byte
	for _, n := range r.c.Nodes {
		got := records(ctx, r.t, n.Authority)
		for i := range min(len(got), len(longest)) {
			if !bytes.Equal(got[i], longest[i]) {
				r.violated("audit record %d on %s differs", i, n.Name)
				break
			}
		}
		if len(got) > len(longest) {
			longest = got
		}
	}
	if len(longest) < len(r.pool.tokens) {
		r.violated("%d audit records of %d tokens", len(longest), len(r.pool.tokens))
	}
}

// compareStates waits for a moment in which all nodes are at one index.
func (r *campaign) compareStates(ctx context.Context) {
	for {
		at := make(map[uint64]bool)
		hashes := make(map[state.Digest]bool)
		for _, n := range r.c.Nodes {
			index, hash := n.Authority.StateHash()
			at[index], hashes[hash] = true, true
		}
		if len(at) == 1 {
			if len(hashes) != 1 {
				r.violated("the nodes' states differ at %v", at)
			}
			return
		}
		if !pause(ctx, 5*time.Millisecond) {
			r.t.Errorf("the nodes never came to one index: %v", at)
			return
		}
	}
}

func records(ctx context.Context, t *testing.T, a *authority.Authority) (all [][]byte) {
	t.Helper()
	for {
		page, err := a.AuditRecords(ctx, int64(len(all)), 1000)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, page.Records...)
		if int64(len(all)) >= page.Size || len(page.Records) == 0 {
			return all
		}
	}
}

// checkWorth holds that the run has shown something.
func (r *campaign) checkWorth(faults map[string]int, lasts time.Duration) {
	h, v := &r.history, &r.verdicts
	total := h.known[issue] + h.known[revoke] + h.known[read]
	made := 0
	for _, n := range faults {
		made += n
	}
	r.t.Logf("%d issued, %d revoked, %d read (%d refused), %d of unknown outcome", h.known[issue], h.known[revoke], h.known[read], h.unserved, h.unknown)
	r.t.Logf("guards: %d revoked and refused past the bound, %d accepted before, %d spared accepted, %d stale",
		v.lateRefused.Load(), v.beforeRevoked.Load(), v.spared.Load(), v.stale.Load())
	r.t.Logf("%d faults: %v", made, faults)
	least := int(lasts / time.Second)
	for what, got := range map[string]int{
		"issued": h.known[issue], "revoked": h.known[revoke] * 2, "read": h.known[read], "faults": made * 4,
		"revoked tokens shown past the bound": int(v.lateRefused.Load()), "accepted before their revocation": int(v.beforeRevoked.Load()),
		"spared tokens accepted": int(v.spared.Load()),
	} {
		if got < least {
			r.t.Errorf("vacuous: too few %s (%d of %d)", what, got, least)
		}
	}
	if h.known[read]*10 < total*3 {
		r.t.Errorf("vacuous: %d of %d operations were reads", h.known[read], total)
	}
}
