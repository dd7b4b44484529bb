package authoritytest_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/writ-dev/writ/authority"
	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/authoritytest"
	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/raftstore"
)

// patience is how long a follower of TestLeaderHandsOver waits for its leader
// before it stands for election: who leads before that was handed the lead.
const patience = 30 * time.Second

// TestLeaderHandsOver takes the lead away from a node in each way that is planned:
// it hands over first, so that the cluster does not wait for an election.
func TestLeaderHandsOver(t *testing.T) {
	for name, do := range map[string]func(context.Context, *authoritytest.Cluster, *authoritytest.ClusterNode) error{
		"stopped": func(_ context.Context, _ *authoritytest.Cluster, leader *authoritytest.ClusterNode) error {
			return leader.Stop()
		},
		"demoted": func(ctx context.Context, c *authoritytest.Cluster, leader *authoritytest.ClusterNode) error {
			root := c.Root()
			defer root.Close()
			if _, err := root.DemoteNode(ctx, leader.Name); err != nil {
				return err
			}
			return c.WaitReady(ctx)
		},
		"removed": func(ctx context.Context, c *authoritytest.Cluster, leader *authoritytest.ClusterNode) error {
			root := c.Root()
			defer root.Close()
			if err := root.RemoveNode(ctx, leader.Name, false); err != nil {
				return err
			}
			select {
			case err := <-leader.Fatal:
				if !errors.Is(err, raftstore.ErrRemoved) {
					t.Errorf("the removed leader ended with %v", err)
				}
				_ = leader.Stop() // it has ended already
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // the last to stop waits for the others in vain
			c := authoritytest.StartCluster(t, 3, authoritytest.Options{
				Authority: func(cfg *authority.Config) { cfg.Peers.Heartbeat = patience }, Bound: 20 * time.Second,
			})
			before, err := c.Leader(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			if err := do(ctx, c, before); err != nil {
				t.Fatal(err)
			}
			after, err := c.Leader(ctx)
			if err != nil || after == before {
				t.Fatalf("%+v leads: %v", after, err)
			}
			c.Mint(t, "corp", "agent")
			for _, n := range after.Authority.ClusterStatus(ctx).Nodes {
				if n.Node == before.Name && name != "stopped" && n.Voter {
					t.Errorf("it has its vote still: %+v", n)
				}
			}
		})
	}
}

// membershipErrors counts what the log says of changes that the leader tried to make
// by itself.
type membershipErrors struct {
	slog.Handler
	n *atomic.Int64
}

// Handle implements slog.Handler.
func (h membershipErrors) Handle(_ context.Context, r slog.Record) error {
	if strings.Contains(r.Message, "changing the cluster's membership") {
		h.n.Add(1)
	}
	return nil
}

// WithAttrs implements slog.Handler.
func (h membershipErrors) WithAttrs([]slog.Attr) slog.Handler { return h }

// Enabled implements slog.Handler.
func (membershipErrors) Enabled(context.Context, slog.Level) bool { return true }

// TestRefusedChangesAreForgotten: a demotion and a removal that would cost the
// majority are refused, and nothing of them is made behind the operator's back:
// neither meanwhile, by the leader that finds them in the records, nor later.
func TestRefusedChangesAreForgotten(t *testing.T) {
	var tried atomic.Int64
	c := authoritytest.StartCluster(t, 3, authoritytest.Options{Logger: slog.New(membershipErrors{slog.DiscardHandler, &tried})})
	followers, err := c.Followers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	up, down := followers[0], followers[1]
	if err := down.Stop(); err != nil {
		t.Fatal(err)
	}
	root := c.Root()
	defer root.Close()
	if _, err := root.DemoteNode(t.Context(), up.Name); !errors.Is(err, api.CodeConflict) {
		t.Fatalf("a demotion with another voter down: %v", err)
	}
	if err := root.RemoveNode(t.Context(), up.Name, false); !errors.Is(err, api.CodeConflict) {
		t.Fatalf("a removal with another voter down: %v", err)
	}
	if err := down.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	leader, err := c.Leader(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range leader.Authority.ClusterStatus(t.Context()).Nodes {
		if !n.Voter || !n.Wanted || n.State != "active" {
			t.Errorf("after changes that were refused: %+v", n)
		}
	}
	if n := tried.Load(); n != 0 {
		t.Errorf("the leader tried %d times what it was refusing", n)
	}
}

// TestNodeMovesWhileThereIsNoQuorum: a node comes back elsewhere when only one other
// is up, which has more than it and so has to lead. Nobody can record where it is
// before there is a quorum, and there is none before the other finds it.
func TestNodeMovesWhileThereIsNoQuorum(t *testing.T) {
	for _, restarted := range []bool{false, true} {
		c := authoritytest.StartCluster(t, 3)
		root := c.Root()
		defer root.Close()
		ahead, gone, moves := c.Nodes[0], c.Nodes[1], c.Nodes[2]
		if err := moves.Stop(); err != nil {
			t.Fatal(err)
		}
		c.Mint(t, "corp", "agent")
		if err := c.WaitApplied(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := gone.Stop(); err != nil {
			t.Fatal(err)
		}
		if restarted {
			if err := ahead.Stop(); err != nil {
				t.Fatal(err)
			}
		}
		before := moves.PeerAddr
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		moves.PeerAddr = ln.Addr().String()
		ln.Close() // taken again at once
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		var starts sync.WaitGroup
		for _, n := range []*authoritytest.ClusterNode{ahead, moves} {
			starts.Go(func() {
				if err := n.Start(ctx); err != nil {
					t.Errorf("%s: %v", n.Name, err)
				}
			})
		}
		starts.Wait()
		if t.Failed() {
			t.FailNow()
		}
		if err := c.WaitReady(ctx); err != nil {
			t.Fatalf("n1 restarted %v: %v", restarted, err)
		}
		c.Mint(t, "corp", "agent")
		until(t, "its record says where it is", func() bool {
			for _, n := range ahead.Authority.ClusterStatus(ctx).Nodes {
				if n.Node == moves.Name {
					return n.Raft == moves.PeerAddr && n.Raft != before
				}
			}
			return false
		})
	}
}

// TestJoinUnderLoad has a node join while many clients issue: it catches up with a
// log that goes on growing, gets its vote, and nothing fails or is lost meanwhile.
func TestJoinUnderLoad(t *testing.T) {
	c := authoritytest.StartCluster(t, 3, authoritytest.Options{
		Bound: 20 * time.Second,
		Authority: func(cfg *authority.Config) {
			cfg.TrailingLogs = 2 // it takes a snapshot, and perhaps the next, before the log
			// The load is on the machine, too: it must not cost the leader its lead.
			cfg.Peers.Heartbeat = 2 * time.Second
		},
	})
	ctx, stop := context.WithTimeout(t.Context(), 2*time.Minute)
	defer stop()
	r, wait := load(ctx, c, 16)
	r.more(ctx, 300)
	leader, err := c.Leader(ctx)
	if err != nil {
		t.Fatal(err)
	}
	joined := make(chan struct{})
	var compacting sync.WaitGroup
	compacting.Go(func() {
		for {
			if err := leader.Authority.Compact(ctx); err != nil && !errors.Is(err, raftstore.ErrNothingNew) && ctx.Err() == nil {
				t.Errorf("compacting: %v", err)
			}
			select {
			case <-joined:
				return
			default:
				r.more(ctx, 50)
			}
		}
	})
	begun := time.Now()
	if _, err := c.Add(ctx, api.ClusterTokenRequest{}); err != nil {
		t.Fatal(err)
	}
	t.Logf("it serves after %v", time.Since(begun))
	if err := c.WaitReady(ctx); err != nil {
		t.Fatalf("it has no vote: %v", err)
	}
	t.Logf("it has its vote after %v", time.Since(begun))
	close(joined)
	compacting.Wait()
	r.more(ctx, 100)
	stop()
	wait()
	for _, err := range r.failed {
		t.Errorf("a call failed: %v", err)
	}
	if err := c.WaitApplied(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.check(t, c)
	t.Logf("%d tokens, longest wait of a client %v", len(r.issued), r.longest())
}

// TestReplicaKeepsFeedsOffTheVoters has services follow a node without a vote: what
// is revoked reaches them all through it, and the voters have none of their feeds and
// pings, but a read for many of these.
func TestReplicaKeepsFeedsOffTheVoters(t *testing.T) {
	const services = 20
	c := authoritytest.StartCluster(t, 3, authoritytest.Options{Bound: 4 * time.Second})
	voters := append([]*authoritytest.ClusterNode(nil), c.Nodes...)
	node, err := c.Add(t.Context(), api.ClusterTokenRequest{Replica: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	token := c.Mint(t, "corp", "agent")
	set := parse(t, token.Token)
	verify := make([]func(context.Context, []byte) error, services)
	for i := range verify {
		verify[i] = guard(t, c.Replica(t, fmt.Sprintf("service-%d", i), []string{"corp"}, node))
		until(t, "it is accepted", func() bool { return verify[i](t.Context(), set) == nil })
	}
	begun := node.Authority.Metrics()
	until(t, "they have pinged", func() bool { return node.Authority.Metrics().Pongs > begun.Pongs+4*services })
	root := c.Root()
	defer root.Close()
	if _, err := root.Revoke(t.Context(), api.RevokeRequest{Kind: api.RevokeToken, Token: token.ID.String(), Reason: "test"}); err != nil {
		t.Fatal(err)
	}
	for i, v := range verify {
		until(t, fmt.Sprintf("service %d refuses it", i), func() bool { return errors.Is(v(t.Context(), set), capability.CodeRevoked) })
	}
	for _, n := range voters {
		if m := n.Authority.Metrics(); m.Streams != 0 || m.Pings != 0 {
			t.Errorf("%s, a voter, has %d feeds and got %d pings", n.Name, m.Streams, m.Pings)
		}
	}
	m := node.Authority.Metrics()
	t.Logf("%d feeds, and %d reads for %d pongs", m.Streams, m.ReadIndexes-begun.ReadIndexes, m.Pongs-begun.Pongs)
	if m.Streams < services || 2*(m.ReadIndexes-begun.ReadIndexes) > m.Pongs-begun.Pongs {
		t.Errorf("%d feeds, and %d reads for %d pongs", m.Streams, m.ReadIndexes-begun.ReadIndexes, m.Pongs-begun.Pongs)
	}
}
