//go:build linux

package process

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/writ-dev/writ/authority/chaos/check"
)

// fault is one entry of a schedule: a pure function of the seed.
type fault struct {
	kind   string
	lasts  time.Duration
	then   time.Duration // of peace
	choice uint64        // which follower, how slow, which byte, …
}

// schedule is an endless sequence of faults. Each pass goes through all of a deck,
// in an order of its own.
func schedule(seed uint64, kinds []string) func() fault {
	r := rand.New(rand.NewPCG(seed, 0))
	var deck []int
	return func() fault {
		if len(deck) == 0 {
			deck = r.Perm(len(kinds))
		}
		kind := kinds[deck[0]]
		deck = deck[1:]
		return fault{
			kind: kind, choice: r.Uint64(),
			lasts: 500*time.Millisecond + time.Duration(r.Int64N(int64(1500*time.Millisecond))),
			then:  200*time.Millisecond + time.Duration(r.Int64N(int64(500*time.Millisecond))),
		}
	}
}

// scene is who is who when a fault begins.
type scene struct {
	fault
	leader, follower *node
	others           []*node // than the leader
}

// nothing undoes what has ended by itself.
func nothing(context.Context) error { return nil }

type undo = func(context.Context) error

// faults are the kinds of faults. Each makes one and returns what undoes it.
var faults = map[string]func(*campaign, context.Context, scene) (undo, error){
	"kill the leader": func(r *campaign, _ context.Context, s scene) (undo, error) {
		s.leader.kill()
		return s.leader.restart, nil
	},
	"kill a follower": func(r *campaign, _ context.Context, s scene) (undo, error) {
		s.follower.kill()
		return s.follower.restart, nil
	},
	"freeze the leader": func(r *campaign, _ context.Context, s scene) (undo, error) { return freeze(s.leader) },
	"freeze a follower": func(r *campaign, _ context.Context, s scene) (undo, error) { return freeze(s.follower) },

	// What the leader sends vanishes, or what is sent to it, or both, among nodes
	// alone, so that clients and guards are still there; or from everyone.
	"partition the leader": func(r *campaign, _ context.Context, s scene) (undo, error) {
		return r.heal, r.partition(s.leader, s.others, true, true)
	},
	"one way from the leader": func(r *campaign, _ context.Context, s scene) (undo, error) {
		return r.heal, r.partition(s.leader, s.others, true, false)
	},
	"no replies to the leader": func(r *campaign, _ context.Context, s scene) (undo, error) {
		return r.heal, r.partition(s.leader, s.others, false, true)
	},
	"isolate the leader": func(r *campaign, _ context.Context, s scene) (undo, error) {
		return r.heal, r.lab.Isolate(s.leader.host)
	},
	"isolate a follower": func(r *campaign, _ context.Context, s scene) (undo, error) {
		return r.heal, r.lab.Isolate(s.follower.host)
	},
	"transfer leadership": (*campaign).transfer,

	"kill a guard":    (*campaign).killGuard,
	"freeze a guard":  (*campaign).freezeGuard,
	"slow links":      (*campaign).slowLinks,
	"lossy links":     (*campaign).lossyLinks,
	"late requests":   (*campaign).lateRequests,
	"slow peers":      (*campaign).slowPeers,
	"lossy peers":     (*campaign).lossyPeers,
	"slow fsync":      (*campaign).slowDisk,
	"hung fsync":      (*campaign).hungDisk,
	"failing fsync":   (*campaign).failingDisk,
	"full disk":       (*campaign).fullDisk,
	"clock, leader":   (*campaign).leadersClock,
	"clock, follower": (*campaign).followersClock,
	"rolling restart": (*campaign).rollingRestart,
	"membership":      (*campaign).membership,
	"no quorum":       (*campaign).noQuorum,
	"torn log":        (*campaign).tornLog,

	// Each kind of file that a node has.
	"flipped meta":              (*campaign).flippedMeta,
	"flipped log":               flipped("raft/raft.db"),
	"flipped snapshot":          flipped("raft/snapshots/*.snap"),
	"flipped state":             flipped("state.db"),
	"flipped audit bodies":      flipped("audit/1/bodies-*"),
	"flipped audit hashes":      flipped("audit/1/hashes"),
	"flipped audit index":       flipped("audit/1/index"),
	"flipped audit commit":      flipped("audit/1/commit"),
	"flipped audit checkpoints": flipped("audit/1/checkpoints"),
	"flipped identity":          flipped("node.json"),
	"flipped key":               flipped("../../node.key"),
}

func freeze(n *node) (undo, error) {
	return func(context.Context) error { return n.thaw() }, n.freeze()
}

func (r *campaign) heal(context.Context) error { return r.lab.Heal() }

func (r *campaign) partition(n *node, others []*node, out, in bool) error {
	var errs []error
	for _, o := range others {
		if out {
			errs = append(errs, r.lab.Cut(n.host, o.host))
		}
		if in {
			errs = append(errs, r.lab.Cut(o.host, n.host))
		}
	}
	return errors.Join(errs...)
}

func (r *campaign) transfer(ctx context.Context, s scene) (undo, error) {
	c := r.client()
	defer c.Close()
	_, err := c.LeadNode(ctx, s.follower.name)
	return nothing, err
}

// killGuard kills a guard, with the calls that it has leased.
func (r *campaign) killGuard(_ context.Context, s scene) (undo, error) {
	g := r.guards[s.choice%uint64(len(r.guards))]
	g.kill()
	return func(context.Context) error { return g.start() }, nil
}

// freezeGuard freezes a guard, whose decisions under way go on when nothing is
// fresh any more.
func (r *campaign) freezeGuard(_ context.Context, s scene) (undo, error) {
	g, begun := r.guards[s.choice%uint64(len(r.guards))], now()
	return func(context.Context) error {
		return errors.Join(g.cmd.Process.Signal(syscall.SIGCONT), r.log.Add(check.Record{Op: check.OpCut, Client: g.Name, Begun: begun, Ended: now()}))
	}, g.cmd.Process.Signal(syscall.SIGSTOP)
}

// slowLinks delays all that clients and guards send and get. A guard's ping and its
// answer stay well within the bound.
func (r *campaign) slowLinks(_ context.Context, s scene) (undo, error) {
	return r.eachLink(func(l *link) { l.slow(time.Duration(50+s.choice%150)*time.Millisecond, 0) }, func(l *link) { l.slow(0, 0) })
}

func (r *campaign) lossyLinks(_ context.Context, s scene) (undo, error) {
	return r.eachLink(func(l *link) { l.slow(0, 0.05+float64(s.choice%20)/100) }, func(l *link) { l.slow(0, 0) })
}

func (r *campaign) eachLink(do, undone func(*link)) (undo, error) {
	for _, l := range r.links {
		do(l)
	}
	return func(context.Context) error {
		for _, l := range r.links {
			undone(l)
		}
		return nil
	}, nil
}

// lateRequests holds up what clients send until they have given up and asked
// another node, with the same request id. Then it arrives.
func (r *campaign) lateRequests(ctx context.Context, _ scene) (undo, error) {
	for _, w := range r.clients {
		w.link.hold()
	}
	pause(ctx, 2500*time.Millisecond)
	return func(context.Context) error {
		waited := 0
		for _, w := range r.clients {
			waited += w.link.release()
		}
		if waited == 0 {
			return errors.New("vacuous: no client sent anything")
		}
		return nil
	}, nil
}

// slowPeers leaves the leader a thin line.
func (r *campaign) slowPeers(_ context.Context, s scene) (undo, error) {
	return func(context.Context) error { return s.leader.host.Limit(0) }, s.leader.host.Limit(2_000_000)
}

// lossyPeers loses what the leader and the others send each other, in bursts.
func (r *campaign) lossyPeers(ctx context.Context, s scene) (undo, error) {
	random := rand.New(rand.NewPCG(s.choice, 0))
	for begun := time.Now(); time.Since(begun) < s.lasts; {
		o := s.others[random.IntN(len(s.others))]
		if err := r.partition(s.leader, []*node{o}, random.IntN(2) == 0, true); err != nil {
			return nothing, err
		}
		pause(ctx, time.Duration(10+random.IntN(60))*time.Millisecond)
		if err := r.lab.Heal(); err != nil {
			return nothing, err
		}
		pause(ctx, time.Duration(20+random.IntN(100))*time.Millisecond)
	}
	return nothing, nil
}

// victim is the leader every other time.
func (s *scene) victim() *node {
	if s.choice%2 == 0 {
		return s.leader
	}
	return s.follower
}

func (r *campaign) slowDisk(_ context.Context, s scene) (undo, error) {
	n := s.victim()
	_, err := n.control(fmt.Sprintf("disk slow %dms", 20+s.choice%200))
	return func(context.Context) error {
		_, err := n.control("disk heal")
		return err
	}, err
}

// hungDisk has a disk hang until the node's watchdog ends it.
func (r *campaign) hungDisk(ctx context.Context, s scene) (undo, error) {
	return r.fatalDisk(ctx, s.victim(), "disk hang", "disk_stalled")
}

// failingDisk has an fsync fail, after which nobody knows what is on the disk.
func (r *campaign) failingDisk(ctx context.Context, s scene) (undo, error) {
	return r.fatalDisk(ctx, s.victim(), "disk fail", "")
}

func (r *campaign) fatalDisk(ctx context.Context, n *node, command, code string) (undo, error) {
	if _, err := n.control(command); err != nil {
		return nothing, err
	}
	e, err := n.awaitEnd(ctx)
	if err != nil {
		r.violated("after %s: %v", command, err)
		n.kill()
		return n.restart, nil
	}
	if e.exit == 0 || code != "" && e.code != code {
		r.violated("after %s %v", command, e)
	}
	return n.restart, nil
}

// fullDisk leaves no byte of the node's file system.
func (r *campaign) fullDisk(ctx context.Context, s scene) (undo, error) {
	n := s.victim()
	path := filepath.Join(n.data(), "ballast")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nothing, err
	}
	defer f.Close()
	for size := int64(64 << 20); size >= 4096; {
		info, err := f.Stat()
		if err != nil {
			return nothing, err
		}
		switch err := unix.Fallocate(int(f.Fd()), 0, info.Size(), size); {
		case errors.Is(err, unix.ENOSPC):
			size /= 2
		case err != nil && !errors.Is(err, unix.EINTR):
			return nothing, err
		}
	}
	pause(ctx, s.lasts)
	return func(ctx context.Context) error {
		if err := os.Remove(path); err != nil {
			return err
		}
		// The log waits for space; but what was to be applied, or signed, meanwhile
		// may have ended the node.
		ending, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		if e, err := n.awaitEnd(ending); err == nil {
			r.t.Logf("a full disk: %v", e)
			return n.restart(ctx)
		}
		return nil
	}, nil
}

// far is longer than anything that is issued lives.
const far = 40 * 24 * time.Hour

func (r *campaign) setClock(n *node, off time.Duration) error {
	n.clock = off
	_, err := n.control("clock " + off.String())
	return err
}

func jump(choice uint64) time.Duration {
	if choice%2 == 0 {
		return far
	}
	return -far
}

// leadersClock puts the leader's clock off, has it fail a little later, and come
// back with the same clock.
func (r *campaign) leadersClock(ctx context.Context, s scene) (undo, error) {
	if err := r.setClock(s.leader, jump(s.choice)); err != nil {
		return nothing, err
	}
	pause(ctx, s.lasts)
	s.leader.kill()
	pause(ctx, s.lasts)
	err := s.leader.restart(ctx)
	return func(context.Context) error { return r.setClock(s.leader, 0) }, err
}

// followersClock puts a follower's clock off, and has the leader fail.
func (r *campaign) followersClock(ctx context.Context, s scene) (undo, error) {
	if err := r.setClock(s.follower, jump(s.choice)); err != nil {
		return nothing, err
	}
	s.leader.kill()
	pause(ctx, s.lasts)
	err := s.leader.restart(ctx)
	return func(context.Context) error { return r.setClock(s.follower, 0) }, err
}

func (r *campaign) rollingRestart(ctx context.Context, s scene) (undo, error) {
	for _, n := range append([]*node{s.leader}, s.others...) {
		n.quit()
		if err := n.restart(ctx); err != nil {
			return nothing, err
		}
		if err := r.settle(ctx); err != nil {
			return nothing, err
		}
	}
	return nothing, nil
}

// membership takes in a node, and removes a follower: what a broken node is
// replaced by.
func (r *campaign) membership(ctx context.Context, s scene) (undo, error) {
	return nothing, r.replace(ctx, s.follower)
}

// replace has another node take the place of one, which may be down.
func (r *campaign) replace(ctx context.Context, n *node) error {
	if _, err := r.join(ctx); err != nil {
		return err
	}
	c := r.client()
	defer c.Close()
	if err := until(ctx, "the removal of "+n.name, func() error {
		asking, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		return c.RemoveNode(asking, n.name, false)
	}); err != nil {
		return err
	}
	n.removed = true
	r.place()
	if n.running() {
		e, err := n.awaitEnd(ctx)
		if err != nil {
			r.violated("a node that was removed: %v", err)
			n.kill()
		} else if e.code != "removed" {
			r.violated("a node that was removed: %v", e)
		}
	}
	return nil
}

// noQuorum leaves one node of three. Nobody can be fresh meanwhile.
func (r *campaign) noQuorum(ctx context.Context, s scene) (undo, error) {
	begun := now()
	s.leader.kill()
	s.follower.kill()
	return func(ctx context.Context) error {
		// Either needs the other for a quorum.
		started := make(chan error, 1)
		go func() { started <- s.leader.restart(ctx) }()
		err := errors.Join(s.follower.restart(ctx), <-started)
		if err == nil {
			err = r.settle(ctx)
		}
		return errors.Join(err, r.log.Add(check.Record{Op: check.OpCut, Begun: begun, Ended: now()}))
	}, nil
}
