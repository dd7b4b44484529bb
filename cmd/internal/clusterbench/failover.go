package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os/exec"
	"sync"
	"time"

	"github.com/writ-dev/writ/authority/chaos/netns"
	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/cmd/internal/wait"
)

// fault is a way to lose a leader.
type fault struct {
	name string
	what string
	hit  func(*cluster, *node) error
	mend func(context.Context, *cluster, *node) error
}

func faults() []fault {
	return []fault{{
		name: "kill", what: "kill -9 of the leader",
		hit:  func(_ *cluster, n *node) error { return n.kill() },
		mend: func(ctx context.Context, c *cluster, n *node) error { return c.serve(ctx, n) },
	}, {
		name: "dark", what: "the leader's network goes dark",
		hit:  func(c *cluster, n *node) error { return c.port(n, "disabled") },
		mend: func(_ context.Context, c *cluster, n *node) error { return c.port(n, "forwarding") },
	}}
}

// port switches a node's port of the lab's switch off or on: packets vanish both
// ways, for everyone at the same moment, which rule by rule would take longer than
// an election on a busy machine.
func (c *cluster) port(n *node, state string) error {
	for i := range c.nodes {
		if c.nodes[i] == n {
			return c.lab.Switch().In(exec.Command("bridge", "link", "set", "dev", fmt.Sprintf("p%d", i+2), "state", state).Run)
		}
	}
	return fmt.Errorf("no node %s", n.name)
}

// failover loses leaders, over and over. The two kinds run beside each other,
// on a cluster each, since most of the time is spent waiting.
func (b *bench) failover(ctx context.Context) error {
	list := faults()
	took, errs := make([]samples, len(list)), make([]error, len(list))
	var wg sync.WaitGroup
	for i, f := range list {
		wg.Go(func() { took[i], errs[i] = b.lose(ctx, f) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	for i, f := range list {
		p99 := took[i].at(0.99)
		b.table.judge(fmt.Sprintf("%s to the next acknowledged write, %d times, 99 %%", f.what, b.failovers), "1000 ms", p99 <= time.Second,
			"%s (median %s, longest %s)", millis(p99), millis(took[i].at(0.5)), millis(took[i].at(1)))
	}
	return nil
}

// writers are the clients that watch, each beginning with another node.
const writers = 3

// lose has the clients of a cluster see a leader go, so many times.
func (b *bench) lose(ctx context.Context, f fault) (samples, error) {
	lab, err := netns.New()
	if err != nil {
		return nil, err
	}
	c, err := b.newCluster(ctx, f.name, lab)
	if err != nil {
		return nil, errors.Join(err, lab.Close())
	}
	defer c.stop()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var list []*writer
	var wg sync.WaitGroup
	defer wg.Wait()
	for i := range writers {
		cfg := c.config(c.token, i)
		cfg.Logger = slog.New(slog.NewTextHandler(b.nodes, nil)).With("client", i)
		watching, err := client.New(cfg)
		if err != nil {
			return nil, err
		}
		w := &writer{client: watching, acks: make(chan time.Time, 1)}
		defer w.client.Close()
		list = append(list, w)
		wg.Go(func() {
			if err := w.write(ctx); err != nil {
				cancel(fmt.Errorf("a client's write failed: %w", err))
			}
		})
	}
	defer cancel(nil)
	var took samples
	for i := range b.failovers {
		if err := c.wait(ctx); err != nil {
			return nil, err
		}
		at, err := c.leader(ctx)
		if err != nil {
			return nil, err
		}
		wait.For(ctx, 200*time.Millisecond) // followers come to know it, and clients to use it
		one, err := c.loseOnce(ctx, f, c.nodes[at], list)
		if err != nil {
			return nil, fmt.Errorf("failover %d: %w", i+1, err)
		}
		took = append(took, one...)
		fmt.Fprintf(b.nodes, "%s: leader %s: %v\n", f.name, c.nodes[at].name, one)
		if i%20 == 19 {
			b.say("%s: %d of %d, p50 %s, p99 %s", f.name, i+1, b.failovers, millis(took.at(0.5)), millis(took.at(0.99)))
		}
	}
	return took, nil
}

// inFlight is how long after a fault an answer may arrive that was sent before:
// no election is as quick.
const inFlight = 50 * time.Millisecond

func (c *cluster) loseOnce(ctx context.Context, f fault, leader *node, list []*writer) (samples, error) {
	began := time.Now()
	if err := f.hit(c, leader); err != nil {
		return nil, err
	}
	hit := time.Now() // what was acknowledged meanwhile was by the old leader
	var took samples
	for _, w := range list {
		for {
			select {
			case at := <-w.acks:
				if at.Sub(hit) < inFlight {
					continue
				}
				took = append(took, at.Sub(began))
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			case <-time.After(30 * time.Second):
				return nil, errors.New("nothing is acknowledged any more")
			}
			break
		}
	}
	return took, f.mend(ctx, c, leader)
}

// writer is a client that issues one token after the other.
type writer struct {
	client *client.Client
	acks   chan time.Time // of the newest acknowledgement
}

func (w *writer) write(ctx context.Context) error {
	request := plainRequest()
	for ctx.Err() == nil {
		if _, err := w.client.Issue(ctx, request); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		select {
		case <-w.acks:
		default:
		}
		w.acks <- time.Now()
		wait.For(ctx, 10*time.Millisecond)
	}
	return nil
}
