package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/capability"
)

const (
	sharers = 50
	shared  = 10 // calls among them
)

// budgets are spent to the last call.
func (b *bench) budgets(ctx context.Context) error {
	c, err := b.newCluster(ctx, "budget", nil)
	if err != nil {
		return err
	}
	defer c.stop()
	list, err := c.guards(ctx, sharers)
	if err != nil {
		return err
	}
	defer closeAll(list)
	// Of two services: to the authority all guards of one credential are one lessee.
	two := []*guard{list[0], list[ofOneService]}
	before, err := c.proposals(ctx)
	if err != nil {
		return err
	}
	root := c.root()
	defer root.Close()
	began := time.Now()
	accepted, err := spend(ctx, root, two, b.budget)
	if err != nil {
		return err
	}
	took := time.Since(began)
	after, err := c.proposals(ctx)
	if err != nil {
		return err
	}
	b.table.demand(fmt.Sprintf("two guards spend a max-calls of %d until both refuse: accepted", b.budget), fmt.Sprintf("exactly %d", b.budget),
		accepted == b.budget, "%d, in %.2f s", accepted, took.Seconds())
	// The token's own issue is one of them, and expiry proposes by itself.
	b.table.judge("… Raft commands for that", "100", after-before <= 100, "%d", after-before)
	least, rounds := uint64(shared), 10
	for range rounds {
		got, err := spend(ctx, root, list, shared)
		if err != nil {
			return err
		}
		if got > shared {
			return fmt.Errorf("a max-calls of %d was spent %d times", shared, got)
		}
		least = min(least, got)
	}
	b.table.demand(fmt.Sprintf("%d guards share a max-calls of %d, %d times: accepted", sharers, shared, rounds), fmt.Sprintf("all %d", shared),
		least == shared, "%d", least)
	return nil
}

// spend has all guards spend one budget until each has refused for want of it.
func spend(ctx context.Context, root *client.Client, list []*guard, limit uint64) (uint64, error) {
	issued, err := root.Issue(ctx, issueRequest("action read", fmt.Sprintf("max-calls %d", limit)))
	if err != nil {
		return 0, err
	}
	var accepted atomic.Uint64
	errs := make([]error, len(list))
	var wg sync.WaitGroup
	for i, g := range list {
		wg.Go(func() {
			for {
				switch err := g.verify(ctx, issued.Token); {
				case err == nil:
					accepted.Add(1)
				case errors.Is(err, capability.CodeBudgetExhausted):
					return
				case errors.Is(err, capability.CodeUnavailable): // late with a lease
				default:
					errs[i] = err
					return
				}
			}
		})
	}
	wg.Wait()
	return accepted.Load(), errors.Join(errs...)
}

// proposals is how many commands the nodes have proposed.
func (c *cluster) proposals(ctx context.Context) (uint64, error) {
	return c.metric(ctx, "writ_raft_proposals_total")
}

// metric is the sum of a metric over the nodes.
func (c *cluster) metric(ctx context.Context, name string) (sum uint64, err error) {
	for _, n := range c.nodes {
		v, err := n.metric(ctx, name)
		if err != nil {
			return 0, err
		}
		sum += v
	}
	return sum, nil
}

func (n *node) metric(ctx context.Context, name string) (uint64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.metrics+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err
	}
	_, after, _ := strings.Cut("\n"+string(text), "\n"+name+" ")
	value, _, _ := strings.Cut(after, "\n")
	f, err := strconv.ParseFloat(value, 64) // a million is 1e+06
	return uint64(f), err
}
