package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/authority/replica"
	"github.com/writ-dev/writ/cmd/internal/wait"
)

// measured is what so many feeds took.
type measured struct {
	feeds   int
	bound   time.Duration
	opened  time.Duration // until all were live, a few connecting at a time
	opening usage         // of the replicas meanwhile

	// Of the replicas, for each feed, in bytes.
	heap, stack, resident float64
	// Both ways, on top of TCP, for each verifier.
	idleBytes float64 // a second
	toldBytes float64 // for a revocation, by both feeds
	// Of the replicas' processors.
	perOpen   time.Duration // what a feed takes to be opened
	perPing   time.Duration // what keeps feeds fresh, by its pings
	perTold   time.Duration // what a revocation takes for each verifier
	idleCores float64       // of all replicas
	voters    float64       // cores, of all voters, idle
	reads     float64       // quorum reads a second, of all replicas

	told  []time.Duration // for each revocation, until the last verifier was told
	half  []time.Duration // and until half of them were
	storm *storm
}

// storm is a replica's death, as those see it who were there.
type storm struct {
	feeds   int           // that were at it
	back    time.Duration // until every feed is live again
	stale   int           // verifiers that were older than the bound, at the worst moment
	oldest  time.Duration // the greatest age
	guards  int           // whole replicas beside them
	refused int           // of those, that were ever stale
	told    time.Duration // a revocation in the middle of it, until the last was told
}

// measure runs so many feeds on a cluster of its own.
func (s *simulation) measure(ctx context.Context, feeds int, plain, thenStorm bool) (m *measured, err error) {
	c, err := s.cluster(ctx, feeds, plain)
	if err != nil {
		return nil, err
	}
	defer c.stop()
	token, err := service(ctx, c.root, "swarm")
	if err != nil {
		return nil, err
	}
	m = &measured{feeds: feeds, bound: s.boundFor(feeds)}
	swarm := newSwarm(c, plain, token, m.bound)
	defer swarm.close()
	// What the first feed brings about is not every feed's.
	if err := swarm.grow(ctx, 1); err != nil {
		return nil, err
	}
	before, err := total(c.replicas, "rest")
	if err != nil {
		return nil, err
	}
	if err := s.grow(ctx, c, swarm, m); err != nil {
		return nil, err
	}
	after, err := total(c.replicas, "rest")
	if err != nil {
		return nil, err
	}
	grown := float64(after.Feeds - before.Feeds)
	m.heap, m.stack, m.resident = float64(after.Heap-before.Heap)/grown, float64(after.Stack-before.Stack)/grown, float64(after.Resident-before.Resident)/grown
	s.say("  %d feeds are live after %s, bound %s: %.0f KiB of heap, %.0f of stack, %.0f resident each", after.Feeds,
		m.opened.Round(10*time.Millisecond), m.bound, m.heap/1024, m.stack/1024, m.resident/1024)
	if err := s.idle(ctx, c, swarm, m); err != nil {
		return nil, err
	}
	if err := s.busy(ctx, c, swarm, m); err != nil {
		return nil, err
	}
	if thenStorm && len(c.replicas) > 1 {
		if m.storm, err = s.kill(ctx, c, swarm); err != nil {
			return nil, err
		}
	}
	if n, oldest := swarm.stale(); n > 0 {
		s.say("  %d verifiers are stale at the end, the oldest by %s", n, oldest)
	}
	return m, nil
}

// grow opens the feeds.
func (s *simulation) grow(ctx context.Context, c *cluster, swarm *swarm, m *measured) error {
	if err := s.profile(c, m, "open"); err != nil {
		return err
	}
	before, err := s.spent(c, swarm)
	if err != nil {
		return err
	}
	if err := swarm.grow(ctx, m.feeds/2-len(swarm.list)); err != nil {
		return err
	}
	after, err := s.spent(c, swarm)
	if err != nil {
		return err
	}
	m.opened = after.at.Sub(before.at)
	m.opening = after.replicas.since(before.replicas)
	return s.profiled(c)
}

// service adds a service and returns its credential.
func service(ctx context.Context, root *client.Client, name string) (string, error) {
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

// total asks several nodes and adds up what they say.
func total(list []*node, command string) (sum usage, err error) {
	for _, n := range list {
		u, err := n.ask(command)
		if err != nil {
			return sum, err
		}
		sum.Heap += u.Heap
		sum.Stack += u.Stack
		sum.Resident += u.Resident
		sum.Processor += u.Processor
		sum.Feeds += u.Feeds
		sum.Pings += u.Pings
		sum.Reads += u.Reads
	}
	return sum, nil
}

// since is what was used from then on.
func (u usage) since(then usage) usage {
	u.Processor -= then.Processor
	u.Feeds -= then.Feeds
	u.Pings -= then.Pings
	u.Reads -= then.Reads
	return u
}

// spent is what replicas and voters took over a while.
type spent struct {
	replicas, voters usage
	bytes            int64
	at               time.Time
}

func (s *simulation) spent(c *cluster, swarm *swarm) (p spent, err error) {
	if p.replicas, err = total(c.replicas, "usage"); err != nil {
		return p, err
	}
	p.voters, err = total(c.voters, "usage")
	p.bytes, p.at = swarm.bytes.Load(), time.Now()
	return p, err
}

// idle measures what it takes to keep everybody fresh.
func (s *simulation) idle(ctx context.Context, c *cluster, swarm *swarm, m *measured) error {
	if err := s.profile(c, m, "idle"); err != nil {
		return err
	}
	before, err := s.spent(c, swarm)
	if err != nil {
		return err
	}
	wait.For(ctx, max(s.watch, m.bound/2))
	after, err := s.spent(c, swarm)
	if err != nil {
		return err
	}
	if err := s.profiled(c); err != nil {
		return err
	}
	elapsed := after.at.Sub(before.at).Seconds()
	u := after.replicas.since(before.replicas)
	m.idleBytes = float64(after.bytes-before.bytes) / elapsed / float64(len(swarm.list))
	m.perPing = u.Processor / time.Duration(max(1, u.Pings))
	m.perOpen = max(0, m.opening.Processor-time.Duration(m.opening.Pings)*m.perPing) / time.Duration(m.opening.Feeds)
	m.idleCores = u.Processor.Seconds() / elapsed
	m.voters = after.voters.since(before.voters).Processor.Seconds() / elapsed
	m.reads = float64(u.Reads) / elapsed
	stale, oldest := swarm.stale()
	s.say("  idle: %.0f pings a second, %s of a replica's processor each, and %s to open a feed; %.2f cores of replicas, %.2f of voters; %.0f quorum reads a second; %.0f bytes a second for a verifier; %d stale, the oldest by %s",
		float64(u.Pings)/elapsed, micros(m.perPing), micros(m.perOpen), m.idleCores, m.voters, m.reads, m.idleBytes, stale, oldest.Round(time.Millisecond))
	return ctx.Err()
}

// busy measures what revocations take.
func (s *simulation) busy(ctx context.Context, c *cluster, swarm *swarm, m *measured) error {
	if err := s.profile(c, m, "busy"); err != nil {
		return err
	}
	before, err := s.spent(c, swarm)
	if err != nil {
		return err
	}
	tick := time.NewTicker(time.Second / time.Duration(s.rate))
	defer tick.Stop()
	for end := time.Now().Add(s.watch); time.Now().Before(end) && ctx.Err() == nil; <-tick.C {
		index, acknowledged, err := revoke(ctx, c.root, len(m.told))
		if err == nil {
			err = swarm.everybody(ctx, index)
		}
		if err != nil {
			return err
		}
		times := swarm.telling(index).at()
		m.told = append(m.told, max(0, times[len(times)-1].Sub(acknowledged)))
		m.half = append(m.half, max(0, times[len(times)/2].Sub(acknowledged)))
	}
	elapsed := time.Since(before.at)
	wait.For(ctx, m.bound/2) // second feeds are told with their next pong
	after, err := s.spent(c, swarm)
	if err != nil {
		return err
	}
	if err := s.profiled(c); err != nil {
		return err
	}
	// What the pings took meanwhile is not the revocations'.
	tellings := float64(len(m.told) * len(swarm.list))
	u := after.replicas.since(before.replicas)
	processor := u.Processor - time.Duration(u.Pings)*m.perPing
	bytes := float64(after.bytes-before.bytes) - m.idleBytes*after.at.Sub(before.at).Seconds()*float64(len(swarm.list))
	m.perTold, m.toldBytes = time.Duration(max(0, float64(processor)/tellings)), max(0, bytes/tellings)
	s.say("  %.1f revocations a second: half told after %s, the last after %s at the median, %s at the worst; %s of a replica's processor and %.0f bytes for a verifier",
		float64(len(m.told))/elapsed.Seconds(), millis(at(m.half, 0.5)), millis(at(m.told, 0.5)), millis(at(m.told, 1)), micros(m.perTold), m.toldBytes)
	return ctx.Err()
}

// revoke revokes a subject of its own and returns when that was acknowledged.
func revoke(ctx context.Context, root *client.Client, n int) (index uint64, at time.Time, err error) {
	r, err := root.Revoke(ctx, api.RevokeRequest{Kind: api.RevokeSubject, Subject: fmt.Sprintf("agent-%d", n), Reason: "simulated"})
	if err != nil {
		return 0, at, err
	}
	return r.Index, time.Now(), nil
}

// toldMost is how long a revocation may take to reach everybody.
const toldMost = time.Minute

// everybody waits until all verifiers have been told a revocation.
func (s *swarm) everybody(ctx context.Context, index uint64) error {
	ctx, cancel := context.WithTimeout(ctx, toldMost)
	defer cancel()
	t := s.telling(index)
	told := func() int {
		t.mu.Lock()
		defer t.mu.Unlock()
		return len(t.times)
	}
	if err := wait.Until(ctx, 5*time.Millisecond, func() bool { return told() == len(s.list) }); err != nil {
		return fmt.Errorf("%d of %d verifiers were told of %d: %w", told(), len(s.list), index, err)
	}
	return nil
}

// wholeOnes is how many replicas as services have them watch the storm too.
const wholeOnes = 12

// kill ends a replica, as kill -9 does, and watches until everyone is back.
func (s *simulation) kill(ctx context.Context, c *cluster, swarm *swarm) (*storm, error) {
	guards, stop, err := whole(ctx, c)
	if err != nil {
		return nil, err
	}
	defer stop()
	dead := c.replicas[0]
	u, err := dead.ask("usage")
	if err != nil {
		return nil, err
	}
	st := &storm{feeds: u.Feeds, guards: len(guards)}
	refusedBefore := swarm.refused.Load()
	watching, watched := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		stale := make([]bool, len(guards))
		_ = wait.Until(watching, 5*time.Millisecond, func() bool {
			n, oldest := swarm.stale()
			st.stale, st.oldest = max(st.stale, n), max(st.oldest, oldest)
			for i, g := range guards {
				if !stale[i] && !g.Within(g.Mark(), 0) {
					stale[i] = true
					st.refused++
				}
			}
			return false
		})
	}()
	swarm.rush.Store(true) // everybody at once
	began := time.Now()
	dead.kill()
	c.replicas = c.replicas[1:]
	wait.For(ctx, 100*time.Millisecond) // it is under way
	index, acknowledged, err := revoke(ctx, c.root, 1<<20)
	if err == nil {
		err = swarm.everybody(ctx, index)
	}
	if err == nil {
		waiting, cancel := context.WithTimeout(ctx, toldMost)
		err = wait.Until(waiting, 5*time.Millisecond, func() bool { return swarm.live.Load() == int64(2*len(swarm.list)) })
		cancel()
	}
	st.back = time.Since(began)
	wait.For(ctx, swarm.bound) // whoever is stale late is as well
	watched()
	<-done
	if err != nil {
		return nil, fmt.Errorf("storm: %d feeds live: %w", swarm.live.Load(), err)
	}
	times := swarm.telling(index).at()
	st.told = times[len(times)-1].Sub(acknowledged)
	s.say("  storm: %d feeds lost their node, all are back after %s; %d verifiers were stale, the oldest was %s old (bound %s); %d of %d whole replicas were stale; a revocation meanwhile reached the last after %s; %d refusals",
		st.feeds, st.back.Round(10*time.Millisecond), st.stale, st.oldest.Round(time.Millisecond), swarm.bound, st.refused, st.guards, millis(st.told), swarm.refused.Load()-refusedBefore)
	return st, ctx.Err()
}

// whole opens replicas as services have them.
func whole(ctx context.Context, c *cluster) (list []*replica.Replica, stop func(), err error) {
	token, err := service(ctx, c.root, "guards")
	if err != nil {
		return nil, nil, err
	}
	stop = func() {
		for _, r := range list {
			_ = r.Close()
		}
	}
	for i := range wholeOnes {
		cfg := client.Config{CAFingerprint: c.voters[0].Fingerprint, Token: token}
		for k := range c.replicas {
			cfg.Addrs = append(cfg.Addrs, c.replicas[(i+k)%len(c.replicas)].Addr)
		}
		own, err := client.New(cfg)
		if err != nil {
			stop()
			return nil, nil, err
		}
		opening, cancel := context.WithTimeout(ctx, time.Minute)
		r, err := replica.Open(opening, replica.Config{Client: own, Audiences: []string{audience}})
		cancel()
		if err != nil {
			stop()
			return nil, nil, err
		}
		list = append(list, r)
	}
	both := func() bool {
		for _, r := range list {
			if r.Status().Streams < 2 {
				return false
			}
		}
		return true
	}
	opening, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return list, stop, wait.Until(opening, 5*time.Millisecond, both)
}

// profile begins a profile of what the replicas' processors do.
func (s *simulation) profile(c *cluster, m *measured, what string) error {
	if s.profiles == "" {
		return nil
	}
	if err := os.MkdirAll(s.profiles, 0o700); err != nil {
		return err
	}
	for _, n := range c.replicas {
		if _, err := n.ask("profile " + filepath.Join(s.profiles, fmt.Sprintf("%d-%s-%s.pprof", m.feeds, what, n.name))); err != nil {
			return err
		}
	}
	return nil
}

func (s *simulation) profiled(c *cluster) error {
	if s.profiles == "" {
		return nil
	}
	_, err := total(c.replicas, "profiled")
	return err
}
