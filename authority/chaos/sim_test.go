package chaos

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/writ-dev/writ/authority"
	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/chaos/check"
	"github.com/writ-dev/writ/authority/chaos/simnet"
	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/authority/replica"
	"github.com/writ-dev/writ/authority/state"
	"github.com/writ-dev/writ/capability"
)

const (
	bound       = 2 * time.Second
	rotateEvery = 24 * time.Hour
	maxNodes    = 9
	voters      = 3
	spare       = 2 // nodes that may come in place of others
	guards      = 3
	workers     = 2
	readers     = 8
	lessees     = 2
)

// sim is one seed's run, all of it in one bubble.
type sim struct {
	t      *testing.T
	seed   uint64
	perRun int       // faults
	base   time.Time // of every time that is recorded; no fault touches it
	dir    string
	net    *simnet.Network
	log    *check.Log
	pool   pool
	guards []*guard
	skews  map[string]*atomic.Int64 // of the nodes' clocks, by name

	root, fingerprint string
	known             []string // addresses of nodes, that clients are set up with
	lessees           []string // credentials
	phase             int      // how often a load was begun
	made              int      // nodes; of the fault schedule alone

	zombies sync.WaitGroup // what is left of nodes and guards that were killed
	late    sync.WaitGroup // calls that are repeated

	mu       sync.Mutex
	rng      *rand.Rand // guarded by mu
	nodes    []*node    // that are members; guarded by mu
	trace    hash.Hash  // guarded by mu
	problems []string   // guarded by mu
}

func newSim(t *testing.T, seed uint64, perRun int, dir string) *sim {
	s := &sim{
		t: t, seed: seed, perRun: perRun, dir: dir, base: time.Now(),
		net: simnet.New(seed), log: check.NewLog(nil), skews: make(map[string]*atomic.Int64),
		rng: rand.New(rand.NewPCG(seed, 2)), trace: sha256.New(),
	}
	for i := range maxNodes {
		s.skews[fmt.Sprintf("n%d", i+1)] = new(atomic.Int64)
	}
	for i := range voters + spare {
		s.known = append(s.known, fmt.Sprintf("n%d:7480", i+1))
	}
	return s
}

// random is a source of randomness for one actor.
func (s *sim) random(actor int) *rand.Rand { return rand.New(rand.NewPCG(s.seed, uint64(actor))) }

// now is the campaign's clock, in nanoseconds.
func (s *sim) now() int64 { return int64(time.Since(s.base)) }

// event notes what happened, for people and for the trace.
func (s *sim) event(format string, args ...any) {
	line := fmt.Sprintf("%9.4f %s", time.Since(s.base).Seconds(), strings.ReplaceAll(fmt.Sprintf(format, args...), s.dir, ""))
	first, _, _ := strings.Cut(line, "\n") // a stack may follow, with addresses in it
	s.mu.Lock()
	fmt.Fprintln(s.trace, first)
	s.mu.Unlock()
	s.t.Log(line)
}

// add1 adds a record to the history and to the trace.
func (s *sim) add1(r check.Record) {
	b, err := json.Marshal(r)
	if err != nil {
		panic(err) // it has nothing that could not be written
	}
	s.mu.Lock()
	s.trace.Write(b)
	s.mu.Unlock()
	_ = s.log.Add(r) // writes nowhere
}

func (s *sim) violated(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.problems = append(s.problems, "VIOLATION: "+fmt.Sprintf(format, args...))
}

func (s *sim) logger(node string) *slog.Logger {
	if os.Getenv("CHAOS_LOG") == "" {
		return nil
	}
	return slog.New(slog.NewTextHandler(s.t.Output(), nil)).With("at", node)
}

// members are the nodes that are members.
func (s *sim) members() []*node {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.nodes)
}

// run runs the campaign. It returns what the checks found, and the trace's hash.
func (s *sim) run() (*check.Report, string, error) {
	ctx := context.Background()
	defer s.close()
	if err := s.form(ctx); err != nil {
		return nil, "", err
	}
	began := s.now()
	stop := s.load(ctx)
	err := s.disturb(ctx)
	lasted := time.Duration(s.now() - began)
	if err := errors.Join(err, stop()); err != nil {
		return nil, "", err
	}
	if err := s.finish(ctx); err != nil {
		return nil, "", err
	}
	report := check.Check(s.config(lasted), s.log.Records())
	if report.Err() == nil {
		s.end(ctx)
		report = check.Check(s.config(lasted), s.log.Records())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	report.Violations = append(report.Violations, s.problems...)
	s.trace.Write(s.net.Sum())
	return report, fmt.Sprintf("%x", s.trace.Sum(nil)), nil
}

// load has everyone work until the function that it returns is called, which says
// what they could not go on with.
func (s *sim) load(ctx context.Context) (stop func() error) {
	loading, cancel := context.WithCancel(ctx)
	failed := make(chan error, workers+readers+lessees+1+guards)
	var load sync.WaitGroup
	actor := func(f func() error) { load.Go(func() { failed <- f() }) }
	for n := range workers {
		actor(func() error { return s.work(loading, n) })
	}
	for n := range readers {
		actor(func() error { return s.look(loading, n) })
	}
	for n, token := range s.lessees {
		actor(func() error { return s.lessee(loading, n, token) })
	}
	actor(func() error { return s.grant(loading) })
	for n, g := range s.guards {
		actor(func() error { return g.serve(loading, n) })
	}
	return func() error {
		cancel()
		load.Wait()
		s.late.Wait()
		s.phase++
		close(failed)
		var errs []error
		for err := range failed {
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	}
}

// config asks a little of every run. What is asked of the campaign as a whole is
// asked of the sum.
func (s *sim) config(lasted time.Duration) check.Config {
	n, bygone := int(lasted/time.Second), 0
	if slices.ContainsFunc(s.log.Records(), func(r check.Record) bool { return r.Op == check.OpRestore }) {
		bygone = 100
	}
	return check.Config{Bound: bound, Recovery: bound, Least: check.Least{
		Operations: 8 * n, Leases: n / 4, Repeated: n / 2, Late: n, Siblings: n, Accepted: 4 * n, Budgets: n / 8, Nested: n / 8, Troubled: n,
		Bygone: bygone, Nodes: voters,
	}}
}

// form forms the cluster and opens the guards.
func (s *sim) form(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for range voters {
		n, err := s.add(ctx)
		if err != nil {
			return err
		}
		s.mu.Lock()
		s.nodes = append(s.nodes, n)
		s.mu.Unlock()
	}
	for i := range guards {
		s.guards = append(s.guards, &guard{s: s, name: fmt.Sprintf("guard-%d", i+1), first: i})
	}
	return s.serve(ctx)
}

// serve adds the services to a cluster that has none: those of the guards, which it
// opens, and of the lessees.
func (s *sim) serve(ctx context.Context) error {
	if err := s.ready(ctx); err != nil {
		return err
	}
	var err error
	for _, g := range s.guards {
		if g.token, err = s.service(ctx, g.name); err != nil {
			return err
		}
		pause(ctx, 50*time.Millisecond) // so that every node has it
		if err := g.open(ctx); err != nil {
			return err
		}
	}
	s.lessees = make([]string, lessees)
	for n := range s.lessees {
		if s.lessees[n], err = s.service(ctx, fmt.Sprintf("lessee-%d", n)); err != nil {
			return err
		}
	}
	return nil
}

// service adds a service, joins it, and returns its credential.
func (s *sim) service(ctx context.Context, name string) (string, error) {
	root := s.client("operator", s.root)
	defer root.Close()
	added, err := root.AddService(ctx, api.ServiceRequest{Name: name, Audiences: []string{audience}})
	if err != nil {
		return "", err
	}
	joined, err := root.Join(ctx, api.JoinRequest{Name: name, JoinSecret: added.JoinSecret})
	if err != nil {
		return "", err
	}
	return joined.Token, nil
}

// ready waits until every member serves, and is what it is to be.
func (s *sim) ready(ctx context.Context) error {
	var last error
	for {
		all := true
		for _, n := range s.members() {
			a := n.running()
			if a == nil {
				return fmt.Errorf("%s has stopped", n.name)
			}
			if err := a.Ready(ctx); err != nil {
				all, last = false, fmt.Errorf("%s: %w", n.name, err)
				continue
			}
			if !a.Leads() {
				continue
			}
			for _, st := range a.ClusterStatus(ctx).Nodes {
				if st.State != "active" && st.State != "removed" || st.State == "active" && st.Wanted != st.Voter {
					all, last = false, fmt.Errorf("%s is not yet as it is to be", st.Node)
				}
			}
		}
		if all {
			return nil
		}
		if !pause(ctx, 20*time.Millisecond) {
			return fmt.Errorf("the cluster does not get ready: %w", last)
		}
	}
}

// finish heals everything, and records what there is then.
func (s *sim) finish(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	if err := s.ready(ctx); err != nil {
		return err
	}
	s.event("healed")
	pause(ctx, bound+100*time.Millisecond)
	for _, g := range s.guards {
		for _, c := range s.pool.plain {
			g.present(ctx, c)
		}
	}
	s.drain(ctx)
	for _, g := range s.guards {
		if err := g.close(); err != nil {
			return err
		}
	}
	s.zombies.Wait() // those of guards may have leases on their way
	if err := s.accounts(ctx); err != nil {
		return err
	}
	return s.compare(ctx)
}

// accounts records what is left of each budget.
func (s *sim) accounts(ctx context.Context) error {
	a := s.members()[0].running()
	if err := a.Barrier(ctx); err != nil {
		return err
	}
	for _, c := range s.pool.limited {
		info, err := a.Token(ctx, c.id)
		if errors.Is(err, api.CodeNotFound) {
			s.violated("%s, which was acknowledged and has not ended, is gone", c.name)
			continue
		}
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		mine := make([]check.Record, len(c.limits))
		in, err := c.token.Inspect()
		if err != nil {
			return err
		}
		branches, err := s.branches(c)
		if err != nil {
			return err
		}
		at := 0
		for i, caveat := range in.Caveats {
			var limit uint64
			if _, err := fmt.Sscanf(caveat.Condition, "max-calls %d", &limit); err != nil || !slices.Contains(c.limits, limit) || at == len(mine) {
				continue
			}
			mine[at] = check.Record{Op: check.OpAccount, Name: c.name, Budget: at, Left: limit}
			for _, b := range info.Budgets {
				if b.Branch == branches[i+1] {
					mine[at].Left, mine[at].Calls = b.Remaining, b.Leased
				}
			}
			at++
		}
		for _, r := range mine {
			s.add1(r)
		}
	}
	return nil
}

// branches are the points of a credential's chain, as a guard with its key sees them.
func (s *sim) branches(c *credential) ([]capability.BranchID, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	own := s.client("auditor", s.guards[0].token)
	defer own.Close()
	got, err := own.Keys(ctx, audience)
	if err != nil {
		return nil, err
	}
	for _, k := range got.Keys {
		if all, err := c.token.VerifyChain(capability.NewRootKey([32]byte(k.Secret))); err == nil {
			return all, nil
		}
	}
	return nil, fmt.Errorf("no key verifies %s", c.name)
}

// compare records what every node has.
func (s *sim) compare(ctx context.Context) error {
	nodes := s.members()
	for {
		at := make(map[uint64]bool)
		var states []check.Record
		for _, n := range nodes {
			index, hash := n.running().StateHash()
			at[index] = true
			states = append(states, s.told(n, check.Record{Index: index, Hash: fmt.Sprintf("%x", hash)}))
		}
		if len(at) == 1 {
			for _, r := range states {
				s.add1(r)
			}
			break
		}
		if !pause(ctx, 5*time.Millisecond) {
			return fmt.Errorf("the nodes never came to one index: %v", at)
		}
	}
	for _, n := range nodes {
		a := n.running()
		if err := a.Barrier(ctx); err != nil {
			return err
		}
		seen, err := everything(ctx, a)
		if err != nil {
			return err
		}
		for _, name := range s.pool.sent {
			s.add1(s.told(n, check.Record{Name: name, Seen: seen[name]}))
		}
		records, err := auditRecords(ctx, a)
		if err != nil {
			return fmt.Errorf("audit log of %s: %w", n.name, err)
		}
		s.add1(s.told(n, check.Record{Audit: records}))
	}
	return nil
}

// told is what a node has told.
func (s *sim) told(n *node, r check.Record) check.Record {
	r.Op, r.Client, r.Ended = check.OpNode, n.name, s.now()
	return r
}

// auditRecords reads the whole audit log of a node.
func auditRecords(ctx context.Context, a *authority.Authority) (records [][]byte, err error) {
	for {
		page, err := a.AuditRecords(ctx, int64(len(records)), 1000)
		if err != nil {
			return nil, err
		}
		records = append(records, page.Records...)
		if int64(len(records)) >= page.Size || len(page.Records) == 0 {
			return records, nil
		}
	}
}

// everything is what a node has of all tokens, by name; of those that it has not,
// there is nothing.
func everything(ctx context.Context, a *authority.Authority) (map[string]check.Presence, error) {
	seen := make(map[string]check.Presence)
	for q := (authority.TokenQuery{Audience: audience, Limit: state.MaxPage}); ; {
		list, err := a.Tokens(ctx, q)
		if err != nil {
			return nil, err
		}
		for _, t := range list.Tokens {
			switch _, twice := seen[t.Subject]; {
			case twice:
				seen[t.Subject] = check.Twice
			case t.Revoked:
				seen[t.Subject] = check.Revoked
			default:
				seen[t.Subject] = check.Live
			}
		}
		if q.Cursor = list.Next; q.Cursor == "" {
			return seen, nil
		}
	}
}

// close stops everything, so that nothing is left in the bubble.
func (s *sim) close() {
	s.net.Heal()
	for _, g := range s.guards {
		_ = g.close()
	}
	for _, n := range s.members() {
		if err := n.stop(); err != nil {
			s.event("stopping %s: %v", n.name, err)
		}
	}
	s.late.Wait()
	s.zombies.Wait()
}

// guardLife is a guard from one crash to the next.
type guardLife struct {
	host     *simnet.Host
	client   *client.Client
	replica  *replica.Replica
	verifier *capability.Verifier
	ctx      context.Context // until it crashes
	crash    context.CancelFunc
}

// open begins a life of the guard.
func (g *guard) open(ctx context.Context) error {
	s := g.s
	life := &guardLife{host: s.net.Host(g.name)}
	life.ctx, life.crash = context.WithCancel(context.Background())
	cfg := s.clientConfig(life.host, g.token)
	cfg.Addrs = cfg.Addrs[:voters] // those that it was set up with
	cfg.Addrs = append(slices.Clone(cfg.Addrs[g.first:]), cfg.Addrs[:g.first]...)
	var err error
	if life.client, err = client.New(cfg); err != nil {
		return err
	}
	life.replica, err = replica.Open(ctx, replica.Config{
		Client: life.client, Audiences: []string{audience}, Leases: replica.LeaseConfig{Want: 4, Idle: 3 * time.Second}, Clock: s.boot,
		Logger: s.logger(g.name),
	})
	if err != nil {
		life.client.Close()
		return fmt.Errorf("%s: %w", g.name, err)
	}
	vocabulary, err := checker()
	if err != nil {
		return err
	}
	if life.verifier, err = life.replica.Verifier(vocabulary); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.life = life
	return nil
}

func (g *guard) take() *guardLife {
	g.mu.Lock()
	defer g.mu.Unlock()
	life := g.life
	g.life = nil
	return life
}

// close has the guard give back what it holds.
func (g *guard) close() error {
	life := g.take()
	if life == nil {
		return nil
	}
	life.crash()
	err := life.replica.Close()
	life.client.Close()
	return err
}

// kill ends the guard where it stands: what it held is lost.
func (g *guard) kill() {
	life := g.take()
	if life == nil {
		return
	}
	life.crash()
	life.host.Kill()
	g.s.zombies.Go(func() {
		_ = life.replica.Close()
		life.client.Close()
	})
}

func (s *sim) path(elements ...string) string {
	return filepath.Join(append([]string{s.dir}, elements...)...)
}

// leader is the node that leads, which it waits for, and the running members beside it.
func (s *sim) leader(ctx context.Context) (leader *node, rest []*node, err error) {
	for {
		leader, rest = nil, nil
		for _, n := range s.members() {
			a := n.running()
			switch {
			case a == nil:
			case leader == nil && leads(a):
				leader = n
			default:
				rest = append(rest, n)
			}
		}
		if leader != nil && len(rest) > 0 {
			return leader, rest, nil
		}
		if !pause(ctx, 10*time.Millisecond) {
			return nil, nil, errors.New("nobody leads")
		}
	}
}

func leads(a *authority.Authority) bool { return a.Leads() }
