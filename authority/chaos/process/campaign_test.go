//go:build linux

package process

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/chaos/check"
	"github.com/writ-dev/writ/authority/client"
)

var firstSeed = flag.Uint64("process.seed", 1, "the first seed")

// campaign is one seed's run.
type campaign struct {
	*rig
	t       *testing.T
	guards  []*worker
	clients []*worker
	refused int // nodes whose files were damaged, and that did not start
}

func (r *campaign) violated(format string, args ...any) {
	r.t.Helper()
	r.t.Errorf("VIOLATION: "+format, args...)
}

// TestShort is a short campaign, with the faults that come most often.
func TestShort(t *testing.T) {
	kinds := []string{"kill the leader", "freeze the leader", "partition the leader", "kill a follower", "lossy links"}
	// A bound that holds on a machine with other work to do.
	run(t, 5*time.Second, *firstSeed, kinds, 0, check.Least{
		Operations: 200, Leases: 10, Repeated: 10, Late: 30, Siblings: 10, Accepted: 200, Budgets: 2, Troubled: 50, Nodes: 3,
	})
}

func run(t *testing.T, bound time.Duration, seed uint64, kinds []string, lasts time.Duration, least check.Least) {
	ctx, cancel := context.WithTimeout(t.Context(), lasts+10*time.Minute)
	defer cancel()
	r := &campaign{rig: newRig(t, bound), t: t}
	begun := time.Now()
	if err := r.form(ctx, 3); err != nil {
		t.Fatal(err)
	}
	if err := r.startWorkers(ctx, seed); err != nil {
		t.Fatal(err)
	}
	t.Logf("seed %d: a cluster of three, guards and clients after %v", seed, time.Since(begun).Round(time.Millisecond))
	judged := r.watchMachine()
	made, err := r.disturb(ctx, seed, kinds, lasts)
	part := judged()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.finish(ctx); err != nil {
		t.Fatal(err)
	}
	records, err := r.records()
	if err != nil {
		t.Fatal(err)
	}
	told, err := r.account(ctx, records)
	if err != nil {
		t.Fatal(err)
	}
	least.Faults = make(map[string]int)
	for _, kind := range kinds {
		least.Faults[kind] = 1
	}
	report := check.Check(check.Config{Bound: bound, Recovery: recovery, Least: least}, append(records, told...))
	t.Logf("%v; %d damaged nodes refused to start; the machine left enough to judge freshness for %.0f %% of the time", report, r.refused, 100*part)
	if lasts > 0 && part < 0.2 {
		t.Errorf("vacuous: the machine is too busy to judge freshness but for %.0f %% of the time", 100*part)
	}
	if err := report.Err(); err != nil {
		t.Error(err)
	}
	t.Logf("%d faults, %v in all", made, time.Since(begun).Round(time.Millisecond))
}

// startWorkers starts three guards and two clients.
func (r *campaign) startWorkers(ctx context.Context, seed uint64) error {
	var urls []string
	for i := range 3 {
		name := fmt.Sprintf("guard%d", i+1)
		credential, err := r.service(ctx, name)
		if err != nil {
			return err
		}
		w, err := r.worker(workerConfig{Role: "guard", Name: name, Token: credential, Seed: seed + uint64(i)*1000})
		if err != nil {
			return err
		}
		r.guards = append(r.guards, w)
		urls = append(urls, "http://"+w.Listen)
	}
	for i := range 2 {
		name := fmt.Sprintf("client%d", i+1)
		credential, err := r.service(ctx, name)
		if err != nil {
			return err
		}
		w, err := r.worker(workerConfig{Role: "client", Name: name, Bound: r.bound, Token: r.root, Lessee: credential, Guards: urls, Seed: seed*10 + uint64(i)})
		if err != nil {
			return err
		}
		r.clients = append(r.clients, w)
	}
	return nil
}

// service adds a service and joins it.
func (r *rig) service(ctx context.Context, name string) (credential string, err error) {
	c := r.client()
	defer c.Close()
	added, err := c.AddService(ctx, api.ServiceRequest{Name: name, Audiences: []string{audience}})
	if err != nil {
		return "", err
	}
	joined, err := c.Join(ctx, api.JoinRequest{Name: name, JoinSecret: added.JoinSecret})
	if err != nil {
		return "", err
	}
	return joined.Token, nil
}

// disturb goes through the schedule: all kinds once, and on until the time is up.
// It undoes each fault, and waits until the cluster is whole, before the next.
func (r *campaign) disturb(ctx context.Context, seed uint64, kinds []string, lasts time.Duration) (made int, err error) {
	next := schedule(seed, kinds)
	for begun := time.Now(); made < len(kinds) || time.Since(begun) < lasts; made++ {
		f := next()
		s := scene{fault: f}
		if s.leader, s.others, err = r.leader(ctx); err != nil {
			return made, err
		}
		s.follower = s.others[f.choice%uint64(len(s.others))]
		at := now()
		undone, err := faults[f.kind](r, ctx, s)
		if err != nil {
			return made, fmt.Errorf("%s: %w", f.kind, err)
		}
		pause(ctx, f.lasts)
		if err := undone(ctx); err != nil {
			return made, fmt.Errorf("after %s: %w", f.kind, err)
		}
		if err := r.log.Add(check.Record{Op: check.OpFault, Code: f.kind, Begun: at, Ended: now()}); err != nil {
			return made, err
		}
		if err := r.settle(ctx); err != nil {
			return made, fmt.Errorf("after %s: %w", f.kind, err)
		}
		if testing.Verbose() {
			r.t.Logf("%v: %s (leader %s, follower %s), %v", time.Duration(at), f.kind, s.leader.name, s.follower.name, time.Duration(now()-at).Round(time.Millisecond))
		}
		pause(ctx, f.then)
	}
	return made, nil
}

// finish has the clients end the load and the guards give back what they leased.
func (r *campaign) finish(ctx context.Context) error {
	if err := all(r.clients, "finish"); err != nil {
		return err
	}
	if err := all(r.guards, "close"); err != nil {
		return err
	}
	return r.settle(ctx)
}

// all has all of them do something, side by side.
func all(workers []*worker, command string) error {
	done := make(chan error)
	for _, w := range workers {
		go func() { done <- w.do(command) }()
	}
	var errs []error
	for range workers {
		errs = append(errs, <-done)
	}
	return errors.Join(errs...)
}

// records are what everyone has recorded.
func (r *campaign) records() ([]check.Record, error) {
	all := r.log.Records()
	for _, w := range slices.Concat(r.guards, r.clients) {
		got, err := w.records()
		if err != nil {
			return nil, err
		}
		all = append(all, got...)
	}
	return all, nil
}

// account has the authority tell what is left of each budget, and the nodes what
// they hold.
func (r *campaign) account(ctx context.Context, records []check.Record) ([]check.Record, error) {
	var told []check.Record
	states, err := r.states(ctx)
	if err != nil {
		return nil, err
	}
	told = append(told, states...)
	var known map[string]api.TokenInfo
	for _, n := range r.members() {
		c := r.client(n)
		defer c.Close()
		if known, err = tokens(ctx, c); err != nil {
			return nil, err
		}
		for name, t := range known {
			seen := check.Live
			if t.Revoked {
				seen = check.Revoked
			}
			told = append(told, check.Record{Op: check.OpNode, Client: n.name, Name: name, Seen: seen})
		}
		trail, err := trail(ctx, c)
		if err != nil {
			return nil, err
		}
		told = append(told, check.Record{Op: check.OpNode, Client: n.name, Audit: trail})
	}
	c := r.client()
	defer c.Close()
	accounts, err := budgets(ctx, c, records, known)
	return append(told, accounts...), err
}

// budgets accounts for each budget that guards have spent.
func budgets(ctx context.Context, c *client.Client, records []check.Record, known map[string]api.TokenInfo) (told []check.Record, err error) {
	for _, b := range records {
		if b.Op != check.OpIssue && b.Op != check.OpNarrow || b.Unknown || len(b.Limits) == 0 || strings.HasPrefix(b.Name, byHand) {
			continue
		}
		root, _, _ := strings.Cut(b.Name, "/")
		info, err := c.TokenLinearizable(ctx, known[root].ID)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", root, err)
		}
		for i, limit := range b.Limits {
			account := check.Record{Op: check.OpAccount, Name: b.Name, Budget: i, Left: limit} // none was leased
			for _, at := range info.Budgets {
				if at.Limit == limit { // the limits of one token's budgets differ
					account.Left, account.Calls = at.Remaining, at.Leased
				}
			}
			told = append(told, account)
		}
	}
	return told, nil
}

// states waits for a moment in which all nodes are at one index.
func (r *campaign) states(ctx context.Context) (told []check.Record, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err = until(ctx, "one index on all nodes", func() error {
		told = told[:0]
		at := make(map[uint64]bool)
		for _, n := range r.members() {
			answer, err := n.control("state")
			if err != nil {
				return err
			}
			one := check.Record{Op: check.OpNode, Client: n.name}
			if _, err := fmt.Sscan(answer, &one.Index, &one.Hash); err != nil {
				return err
			}
			at[one.Index] = true
			told = append(told, one)
		}
		if len(at) != 1 {
			return fmt.Errorf("they are at %v", slices.Collect(maps.Keys(at)))
		}
		return nil
	})
	return told, err
}

// tokens are what a node's registry holds, by name.
func tokens(ctx context.Context, c *client.Client) (map[string]api.TokenInfo, error) {
	all := make(map[string]api.TokenInfo)
	for q := (client.TokenQuery{Audience: audience, Limit: 500}); ; {
		page, err := c.Tokens(ctx, q)
		if err != nil {
			return nil, err
		}
		for _, t := range page.Tokens {
			all[t.Subject] = t
		}
		if q.Cursor = page.Next; q.Cursor == "" {
			return all, nil
		}
	}
}

// trail is a node's audit log.
func trail(ctx context.Context, c *client.Client) (all [][]byte, err error) {
	for {
		page, err := c.AuditRecords(ctx, int64(len(all)), 500)
		if err != nil {
			return nil, err
		}
		for _, record := range page.Records {
			all = append(all, bytes.Clone(record))
		}
		if int64(len(all)) >= page.Size || len(page.Records) == 0 {
			return all, nil
		}
	}
}
