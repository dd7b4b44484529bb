package authoritytest_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/writ-dev/writ/authority"
	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/authoritytest"
	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/authority/replica"
	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats"
	"github.com/writ-dev/writ/raftstore"
)

// guard is a verifier on a replica of its own.
func guard(t testing.TB, r *replica.Replica) func(ctx context.Context, set []byte) error {
	t.Helper()
	checker, err := caveats.Standard()
	if err != nil {
		t.Fatal(err)
	}
	v, err := r.Verifier(checker)
	if err != nil {
		t.Fatal(err)
	}
	return func(ctx context.Context, set []byte) error {
		return v.Verify(ctx, new(capability.Grant), set, &capability.Request{Now: time.Now(), Service: "corp"})
	}
}

func parse(t testing.TB, text string) []byte {
	t.Helper()
	token, err := capability.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return token.Bytes()
}

// until waits for done, looking again every few milliseconds.
func until(t testing.TB, what string, done func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.NewTimer(20 * time.Second)
	defer deadline.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// TestFewCallsForMany has guards on every node share a budget that is smaller
// than they are many: calls that lie with one are recalled for another, so that
// each gets through, and not one more.
func TestFewCallsForMany(t *testing.T) {
	const guards, calls = 50, 10
	// A bound that fifty replicas keep on two cores under the race detector.
	c := authoritytest.StartCluster(t, 3, authoritytest.Options{Bound: 20 * time.Second})
	token, err := c.Join(t.Context(), api.ServiceRequest{Name: "files", Audiences: []string{"corp"}})
	if err != nil {
		t.Fatal(err)
	}
	verify := make([]func(context.Context, []byte) error, guards)
	var opening sync.WaitGroup
	for i := range verify {
		opening.Go(func() {
			cfg := c.Config(token)
			cfg.Addrs = append(cfg.Addrs[i%3:], cfg.Addrs[:i%3]...)
			own, err := client.New(cfg)
			if err != nil {
				t.Error(err)
				return
			}
			t.Cleanup(own.Close)
			r, err := replica.Open(t.Context(), replica.Config{Client: own, Audiences: []string{"corp"}})
			if err != nil {
				t.Error(err)
				return
			}
			t.Cleanup(func() { _ = r.Close() })
			verify[i] = guard(t, r)
		})
	}
	opening.Wait()
	if t.Failed() {
		t.FailNow()
	}
	set := parse(t, c.Mint(t, "corp", "agent", fmt.Sprintf("max-calls %d", calls)).Token)
	var accepted, refused atomic.Int64
	var work sync.WaitGroup
	for _, v := range verify {
		work.Go(func() {
			// Each wants one, and asks again for as long as there is one to be had.
			again := time.NewTicker(50 * time.Millisecond)
			defer again.Stop()
			for ; accepted.Load() < calls; <-again.C {
				err := v(t.Context(), set)
				switch {
				case err == nil:
					accepted.Add(1)
					return
				case errors.Is(err, capability.CodeBudgetExhausted):
					refused.Add(1)
				case !errors.Is(err, capability.CodeUnavailable):
					t.Errorf("refused otherwise: %v", err)
					return
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { work.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(60 * time.Second):
		t.Fatalf("%d of %d calls got through", accepted.Load(), calls)
	}
	for _, v := range verify {
		if err := v(t.Context(), set); err == nil {
			accepted.Add(1)
		}
	}
	if got := accepted.Load(); got != calls {
		t.Errorf("%d calls were accepted, of a budget of %d (%d times refused)", got, calls, refused.Load())
	}
}

// TestClockOffTheMedian has the leader's clock jump: it hands over, and nothing
// is ever stamped by it.
func TestClockOffTheMedian(t *testing.T) {
	c := authoritytest.StartCluster(t, 3)
	for _, skew := range []time.Duration{time.Hour, -20 * time.Minute} {
		leader, err := c.Leader(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		leader.Skew.Store(int64(skew))
		// At once, not only at the next look at the others' clocks.
		_, err = leader.Authority.Issue(t.Context(), authority.Call{Caller: authority.Caller{Name: "system"}}, &api.IssueRequest{
			Audience: "corp", Subject: "agent", Owner: "o", Purpose: "p",
		})
		if !errors.Is(err, api.CodeNotLeader) {
			t.Errorf("a leader whose clock is off by %v proposed: %v", skew, err)
		}
		got := c.Mint(t, "corp", "agent")
		if off := time.Since(got.ID.Time()).Abs(); off > 5*time.Second {
			t.Errorf("with the leader off by %v a token was stamped %v off", skew, off)
		}
		until(t, "another node leads", func() bool { return !leader.Authority.Leads() })
		leader.Skew.Store(0)
		if err := c.WaitReady(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// TestRemovedNodeIsShutOut removes a node: it ends, and does not come back.
func TestRemovedNodeIsShutOut(t *testing.T) {
	c := authoritytest.StartCluster(t, 3)
	root := c.Root()
	defer root.Close()
	followers, err := c.Followers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	out := followers[0]
	if err := root.RemoveNode(t.Context(), out.Name, false); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-out.Fatal:
		if !errors.Is(err, raftstore.ErrRemoved) {
			t.Errorf("it ended with %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the removed node goes on")
	}
	if err := out.Stop(); err != nil {
		t.Log(err) // it has failed already
	}
	leader, err := c.Leader(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if keys := leader.Authority.ClusterStatus(t.Context()); len(keys.Nodes) != 3 {
		t.Errorf("status forgot the removed node: %+v", keys)
	}
	// It is let in by nobody: started again it gets no state, and so never serves.
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if err := out.Start(ctx); err == nil && out.Authority.Ready(ctx) == nil {
		t.Error("a removed node is ready")
	}
	for _, name := range []string{out.Name} {
		if _, err := root.PromoteNode(t.Context(), name); !errors.Is(err, api.CodeNotFound) {
			t.Errorf("promoting a removed node: %v", err)
		}
	}
	// Who got no answer asks again.
	if err := root.RemoveNode(t.Context(), out.Name, false); err != nil {
		t.Errorf("removing a removed node: %v", err)
	}
	if err := root.RemoveNode(t.Context(), "nobody", false); !errors.Is(err, api.CodeNotFound) {
		t.Errorf("removing a node that never was: %v", err)
	}
	// A retry, of a call whose answer was lost, finds it done.
	if err := root.RemoveNode(t.Context(), out.Name, false); err != nil {
		t.Errorf("removing it again: %v", err)
	}
	if err := root.RemoveNode(t.Context(), "n9", false); !errors.Is(err, api.CodeNotFound) {
		t.Errorf("removing nobody: %v", err)
	}
	c.Mint(t, "corp", "agent") // the two that are left are a quorum
	// The last but one can go too; the last cannot.
	followers, err = c.Followers(t.Context())
	if err != nil || len(followers) == 0 {
		t.Fatal(err)
	}
	for _, f := range followers {
		if f != out {
			if err := root.RemoveNode(t.Context(), f.Name, false); err != nil {
				t.Fatal(err)
			}
			<-f.Fatal
		}
	}
	if err := root.RemoveNode(t.Context(), leader.Name, false); !errors.Is(err, api.CodeConflict) {
		t.Errorf("removing the last voter: %v", err)
	}
}

// TestNodeRemovedWhileAway removes nodes that cannot be told then. They end as
// soon as they ask who they are to the others, and do not start again.
func TestNodeRemovedWhileAway(t *testing.T) {
	c := authoritytest.StartCluster(t, 3)
	root := c.Root()
	defer root.Close()
	followers, err := c.Followers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	away := map[string]*authoritytest.ClusterNode{"a voter": followers[0]}
	for _, name := range []string{"a replica", "a replica that was cut off", "a stopped one"} {
		if away[name], err = c.Add(t.Context(), api.ClusterTokenRequest{Replica: true}); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	stopped := away["a stopped one"]
	if err := stopped.Stop(); err != nil {
		t.Fatal(err)
	}
	for name, out := range away {
		for _, n := range others(c, out) {
			c.Cut(n.Name, out.Name)
			if name == "a replica that was cut off" {
				c.Cut(out.Name, n.Name)
			}
		}
		if err := root.RemoveNode(t.Context(), out.Name, false); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		switch name {
		case "a stopped one":
			continue
		case "a replica that was cut off":
			// It has given up on its leader, and nobody calls it any more.
			until(t, "it follows nobody", func() bool { return out.Authority.ClusterStatus(t.Context()).Leader == "" })
			c.Heal()
		}
		select {
		case err := <-out.Fatal:
			if !errors.Is(err, raftstore.ErrRemoved) {
				t.Errorf("%s ended with %v", name, err)
			}
		case <-time.After(20 * time.Second):
			t.Errorf("%s goes on", name)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for _, when := range []string{"the first time", "with nobody to ask"} {
		if err := stopped.Start(ctx); !errors.Is(err, raftstore.ErrRemoved) {
			t.Errorf("started %s: %v", when, err)
		}
		c.Isolate(stopped.Name)
	}
}

// TestFreshnessUnderPartition cuts the node off that a replica streams from.
// The replica goes on to another before its bound is over, what is revoked
// meanwhile is refused within the bound, and what is not is never refused.
func TestFreshnessUnderPartition(t *testing.T) {
	c := authoritytest.StartCluster(t, 3)
	followers, err := c.Followers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	lonely := followers[0]
	r := c.Replica(t, "files", []string{"corp"}, append([]*authoritytest.ClusterNode{lonely}, others(c, lonely)...)...)
	verify := guard(t, r)
	good, bad := c.Mint(t, "corp", "good"), c.Mint(t, "corp", "bad")
	goodSet, badSet := parse(t, good.Token), parse(t, bad.Token)
	ctx, stop := context.WithCancel(t.Context())
	var watching sync.WaitGroup
	defer func() { stop(); watching.Wait() }()
	watching.Go(func() {
		often := time.NewTicker(time.Millisecond)
		defer often.Stop()
		for ; ctx.Err() == nil; <-often.C {
			if err := verify(ctx, goodSet); err != nil && ctx.Err() == nil {
				t.Errorf("a good token was refused: %v", err)
				return
			}
		}
	})
	c.Isolate(lonely.Name)
	root := c.Root()
	defer root.Close()
	if _, err := root.Revoke(t.Context(), api.RevokeRequest{Kind: api.RevokeToken, Token: bad.ID.String(), Reason: "test"}); err != nil {
		t.Fatal(err)
	}
	acknowledged := time.Now()
	until(t, "the revoked token is refused", func() bool { return verify(ctx, badSet) != nil })
	if took := time.Since(acknowledged); took > authoritytest.ClusterBound+100*time.Millisecond {
		t.Errorf("it was accepted until %v after the acknowledgement", took)
	}
	until(t, "its own node says that it is stale", func() bool { return lonely.Authority.Ready(ctx) != nil })
	c.Heal()
	until(t, "the node is ready again", func() bool { return lonely.Authority.Ready(ctx) == nil })
	if at := r.Status().Cursor; at.Incarnation != 1 {
		t.Errorf("cursor: %+v", at)
	}
}

func others(c *authoritytest.Cluster, but *authoritytest.ClusterNode) (rest []*authoritytest.ClusterNode) {
	for _, n := range c.Nodes {
		if n != but {
			rest = append(rest, n)
		}
	}
	return rest
}

// TestJoinBySnapshot has a node join when the log no longer goes back to the
// start: it takes a snapshot, and fetches the audit records behind it.
func TestJoinBySnapshot(t *testing.T) {
	c := authoritytest.StartCluster(t, 1, authoritytest.Options{Authority: func(cfg *authority.Config) {
		cfg.SnapshotThreshold, cfg.TrailingLogs = 8, 4
	}})
	for i := range 30 {
		c.Mint(t, "corp", fmt.Sprintf("agent-%d", i))
	}
	first := c.Nodes[0]
	if err := first.Authority.Compact(t.Context()); err != nil {
		t.Fatal(err)
	}
	n, err := c.Add(t.Context(), api.ClusterTokenRequest{Replica: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	of := func(n *authoritytest.ClusterNode) *api.AuditRecords {
		r, err := n.Authority.AuditRecords(t.Context(), 0, 1000)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	want := of(first)
	until(t, "the audit logs agree", func() bool { return of(n).Size >= want.Size })
	got := of(n)
	for i := range want.Records {
		if string(want.Records[i]) != string(got.Records[i]) {
			t.Fatalf("audit record %d differs", i)
		}
	}
	for _, s := range first.Authority.ClusterStatus(t.Context()).Nodes {
		if s.Node == n.Name && (s.Voter || s.Wanted) {
			t.Errorf("a read replica has a vote: %+v", s)
		}
	}
	// A replica serves feeds: what is revoked elsewhere comes through it.
	r := c.Replica(t, "files", []string{"corp"}, n)
	verify := guard(t, r)
	token := c.Mint(t, "corp", "agent")
	set := parse(t, token.Token)
	if err := verify(t.Context(), set); err != nil {
		t.Fatal(err)
	}
	root := c.Root()
	defer root.Close()
	if _, err := root.Revoke(t.Context(), api.RevokeRequest{Kind: api.RevokeToken, Token: token.ID.String(), Reason: "test"}); err != nil {
		t.Fatal(err)
	}
	until(t, "it is refused", func() bool { return errors.Is(verify(t.Context(), set), capability.CodeRevoked) })
}
