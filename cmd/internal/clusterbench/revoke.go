package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/cmd/internal/wait"
)

// smallFleet is the smaller of the two fleets of guards.
const smallFleet = 100

// revocations measures how soon guards refuse, and what a cluster costs that
// nobody asks anything while they are attached.
func (b *bench) revocations(ctx context.Context) error {
	c, err := b.newCluster(ctx, "revoke", nil)
	if err != nil {
		return err
	}
	defer c.stop()
	for _, fleet := range []struct {
		guards   int
		p50, p99 time.Duration // 0: nothing was promised
	}{
		{smallFleet, 5 * time.Millisecond, 25 * time.Millisecond},
		{b.fleet, 0, 50 * time.Millisecond},
	} {
		list, err := c.guards(ctx, fleet.guards)
		if err != nil {
			return err
		}
		took, err := b.reach(ctx, c, list)
		if err != nil {
			closeAll(list)
			return err
		}
		what := fmt.Sprintf("revocation acknowledged to refused, %d guards on all nodes", fleet.guards)
		p50, p99 := took.at(0.5), took.at(0.99)
		if fleet.p50 > 0 {
			b.table.judge(what+", median", millis(fleet.p50), p50 <= fleet.p50, "%s", millis(p50))
		} else {
			b.table.report(what+", median", "%s", millis(p50))
		}
		b.table.judge("… 99 %", millis(fleet.p99), p99 <= fleet.p99, "%s (longest %s)", millis(p99), millis(took.at(1)))
		if fleet.guards == b.fleet {
			err = b.idleCost(ctx, c, fleet.guards)
		}
		closeAll(list)
		if err != nil {
			return err
		}
	}
	return nil
}

// between is how long it is between two revocations.
const between = 20 * time.Millisecond

// reach revokes tokens one after the other, each through another node, and
// measures for each guard how long after the acknowledgement it still accepts.
func (b *bench) reach(ctx context.Context, c *cluster, list []*guard) (samples, error) {
	var roots []*client.Client
	for i := range c.nodes {
		roots = append(roots, c.client(c.token, i))
		defer roots[i].Close()
	}
	var took samples
	for i := range b.revokes {
		root := roots[i%len(roots)]
		issued, err := root.Issue(ctx, plainRequest())
		if err != nil {
			return nil, err
		}
		for k, g := range list {
			if err := g.accept(ctx, issued.Token); err != nil {
				return nil, fmt.Errorf("guard %d, before: %w", k, err)
			}
		}
		if _, err := root.Revoke(ctx, api.RevokeRequest{Kind: api.RevokeToken, Token: issued.ID.String(), Reason: "bench"}); err != nil {
			return nil, err
		}
		one, err := refusals(ctx, list, issued)
		if err != nil {
			return nil, err
		}
		took = append(took, one...)
		wait.For(ctx, between)
	}
	return took, ctx.Err()
}

// refusals waits until every guard knows, going round by round, and then asks each
// to decide. To look up what a decision looks up takes a fraction of a whole one,
// which a thousand times over would take the processor that their streams need.
func refusals(ctx context.Context, list []*guard, issued *api.TokenResponse) (samples, error) {
	began := time.Now()
	took := make(samples, 0, len(list))
	id := &capability.Identity{
		Epoch: 1, ID: issued.ID, NotAfter: issued.NotAfter.UnixMilli(), Audience: []byte(audience), Subject: []byte(plainRequest().Subject),
	}
	waiting := append([]*guard(nil), list...)
	for len(waiting) > 0 {
		round := time.Now()
		still := waiting[:0]
		for _, g := range waiting {
			if g.replica.Token(id) == capability.Revoked {
				took = append(took, time.Since(began))
			} else {
				still = append(still, g)
			}
		}
		waiting = still
		if time.Since(began) > 10*time.Second {
			return nil, fmt.Errorf("%d guards still accept after 10 s", len(waiting))
		}
		if len(waiting) > 0 {
			// A quarter of the time at most, but for a round that had to wait itself for
			// the processor: to wait three times as long again would be measured too.
			wait.For(ctx, min(max(200*time.Microsecond, 3*time.Since(round)), 2*time.Millisecond))
		}
	}
	for i, g := range list {
		if err := g.verify(ctx, issued.Token); !errors.Is(err, capability.CodeRevoked) && !errors.Is(err, capability.CodeStaleRevocations) {
			return nil, fmt.Errorf("guard %d knows that the token is revoked, and says %w", i, cmp.Or(err, errAccepted))
		}
	}
	return took, nil
}

var errAccepted = errors.New("it is accepted")

// idleCost watches the cluster while nobody asks it for anything.
func (b *bench) idleCost(ctx context.Context, c *cluster, replicas int) error {
	wait.For(ctx, 2*time.Second)
	before, err := c.usages()
	if err != nil {
		return err
	}
	began, index, err := c.committed(ctx)
	if err != nil {
		return err
	}
	wait.For(ctx, b.watch)
	after, err := c.usages()
	if err != nil {
		return err
	}
	ended, last, err := c.committed(ctx)
	if err != nil {
		return err
	}
	elapsed := ended.Sub(began)
	perDay := float64(24*time.Hour) / float64(elapsed)
	var processor time.Duration
	var written, resident int64
	for i := range after {
		processor += after[i].processor - before[i].processor
		written += after[i].written - before[i].written
		resident = max(resident, after[i].resident)
	}
	nodes := float64(len(after))
	b.table.report(fmt.Sprintf("idle with %d replicas attached: processor of a node", replicas), "%.1f %% of a core",
		100*processor.Seconds()/elapsed.Seconds()/nodes)
	b.table.report("… log entries a day", "%.0f", float64(last-index)*perDay)
	b.table.report("… written to a node's disk a day", "%.0f MiB", float64(written)/nodes*perDay/(1<<20))
	b.table.report("… resident memory of a node", "%s", mebibytes(resident))
	return nil
}

func (c *cluster) usages() (list []usage, err error) {
	for _, n := range c.nodes {
		u, err := n.usage()
		if err != nil {
			return nil, err
		}
		list = append(list, u)
	}
	return list, nil
}

// committed is the index of the last entry of the log, and when that was.
func (c *cluster) committed(ctx context.Context) (time.Time, uint64, error) {
	at, err := c.leader(ctx)
	if err != nil {
		return time.Time{}, 0, err
	}
	index, err := c.nodes[at].metric(ctx, "writ_raft_commit_index")
	return time.Now(), index, err
}
