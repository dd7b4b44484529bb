package main

import (
	"context"
	"fmt"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/authority/state"
	"github.com/writ-dev/writ/capability"
)

const (
	clients  = 64
	audience = "corp"
)

// issueRequest is what everybody asks for.
func issueRequest(caveats ...string) api.IssueRequest {
	return api.IssueRequest{
		Audience: audience, Subject: "agent-42", Owner: "owner@corp.example", Purpose: "bench", TTLSeconds: 900, Caveats: caveats,
	}
}

func plainRequest() api.IssueRequest { return issueRequest("action read", "resource files/**") }

// issue holds issuing over HTTPS against what bare Raft commits.
func (b *bench) issue(ctx context.Context) error {
	size, err := issueSize()
	if err != nil {
		return err
	}
	bareOne, bareMany, err := b.yardstick(size, clients)
	if err != nil {
		return fmt.Errorf("bare Raft: %w", err)
	}
	https, err := b.bareHTTPS(ctx, clients)
	if err != nil {
		return fmt.Errorf("bare HTTPS: %w", err)
	}
	c, err := b.newCluster(ctx, "issue", nil)
	if err != nil {
		return err
	}
	defer c.stop()
	at, err := c.leader(ctx)
	if err != nil {
		return err
	}
	one, err := c.issuing(ctx, 1, b.each/2, func(int) int { return at })
	if err != nil {
		return err
	}
	batched, err := c.nodes[at].batches(ctx)
	if err != nil {
		return err
	}
	many, err := c.issuing(ctx, clients, b.each, func(int) int { return at })
	if err != nil {
		return err
	}
	batch, err := c.nodes[at].batches(ctx)
	if err != nil {
		return err
	}
	spread, err := c.issuing(ctx, clients, b.each, func(worker int) int { return worker })
	if err != nil {
		return err
	}
	b.table.report(fmt.Sprintf("bare Raft, %d callers, commands of %d bytes", clients, size), "%.0f/s", bareMany.PerSecond)
	b.table.report("bare Raft, one caller, median", "%s", millis(bareOne.Median))
	// One after the other on the same processors, and nothing else.
	both := 1 / (1/bareMany.PerSecond + 1/https.perSecond())
	b.table.report(fmt.Sprintf("an HTTPS server that does nothing, %d clients", clients), "%.0f/s", https.perSecond())
	b.table.report("… and so, of bare Raft, the most that is left to whoever does both", "%.0f/s, %.2f ×", both, both/bareMany.PerSecond)
	b.table.judge(fmt.Sprintf("issue over HTTPS, %d clients of the leader", clients), "2,500/s", many.perSecond() >= 2500,
		"%.0f/s, p99 %s", many.perSecond(), millis(many.took.at(0.99)))
	ratio := many.perSecond() / bareMany.PerSecond
	b.table.judge("… ÷ bare Raft", "0.50 ×", ratio >= 0.5, "%.2f ×", ratio)
	// Where other work takes the processors away now and then, this is steadier.
	b.table.report("… processor time of everybody for one: bare Raft, HTTPS, both, issue", "%s, %s, %s, %s = %.2f × both",
		micros(bareMany.Each), micros(https.each()), micros(bareMany.Each+https.each()), micros(many.each()),
		float64(many.each())/float64(bareMany.Each+https.each()))
	b.table.report("… tokens that share an entry of the log", "%.1f", float64(batch.changes-batched.changes)/float64(max(batch.entries-batched.entries, 1)))
	b.table.report("… spread over all three nodes", "%.0f/s, p99 %s", spread.perSecond(), millis(spread.took.at(0.99)))
	times := float64(one.took.at(0.5)) / float64(bareOne.Median)
	b.table.judge("issue over HTTPS, one client, median ÷ bare commit", "2 ×", times <= 2, "%.2f × (%s)", times, millis(one.took.at(0.5)))
	return nil
}

// issuing has clients issue tokens, each over a connection of its own; first
// says which node each begins with.
func (c *cluster) issuing(ctx context.Context, workers int, each time.Duration, first func(worker int) int) (load, error) {
	list := make([]*client.Client, workers)
	for w := range list {
		list[w] = c.client(c.token, first(w))
		defer list[w].Close()
	}
	request := plainRequest()
	return drive(ctx, workers, each, func(ctx context.Context, w int) error {
		_, err := list[w].Issue(ctx, request)
		return err
	}, c.pids()...)
}

// batches counts what a leader has proposed.
type batches struct{ changes, entries uint64 }

func (n *node) batches(ctx context.Context) (b batches, err error) {
	if b.changes, err = n.metric(ctx, "writ_raft_proposals_total"); err != nil {
		return b, err
	}
	b.entries, err = n.metric(ctx, "writ_raft_entries_total")
	return b, err
}

// issueSize is how many bytes of the log one such token is.
func issueSize() (int, error) {
	var random [10]byte
	now := time.Now()
	r := plainRequest()
	list := make([]capability.NewCaveat, len(r.Caveats))
	for i, c := range r.Caveats {
		list[i].Condition = c
	}
	id := capability.NewTokenID(now.UnixMilli(), random)
	key := capability.NewRootKey([32]byte{1})
	t, err := capability.MintCaveats(key, capability.Identifier{
		Epoch: 1, ID: id, NotAfter: now, Audience: r.Audience, Subject: r.Subject,
	}, list...)
	if err != nil {
		return 0, err
	}
	command, err := state.EncodeCommand(state.Header{
		Kind: state.KindIssue, Stamp: now.UnixMilli(), Request: id,
		Actor: state.Actor{Name: state.RootSubject, Token: id, Branches: []capability.BranchID{t.Branch()}, Audience: api.AdminAudience},
	}, &state.Issue{
		Record: state.TokenRecord{
			ID: id, Epoch: 1, Audience: r.Audience, Subject: r.Subject, Owner: r.Owner, Purpose: r.Purpose,
			NotAfter: now.UnixMilli(), Unsigned: t.Unsigned(), Tail: t.Branch(),
		},
		Caveats: r.Caveats,
	})
	return len(command), err
}
