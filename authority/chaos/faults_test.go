package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/writ-dev/writ/authority"
	"github.com/writ-dev/writ/authority/chaos/check"
	"github.com/writ-dev/writ/authority/chaos/simnet"
)

// fault is one kind. make makes it and says how to undo it; what it returns
// besides is who may be without a quorum meanwhile. With errNotMade, whatever it did
// is undone too, and does not count.
type fault struct {
	kind string
	make func(s *sim, ctx context.Context, r *rand.Rand) (undo func() error, cut []string, err error)
}

// everyone is all guards, in what may be without a quorum.
var everyone = []string{""}

func nothing() error { return nil }

// errNotMade says that there was no occasion for a fault.
var errNotMade = errors.New("it could not be made")

// links is a fault of the network between nodes.
func links(kind string, set func(s *sim, leader *node, rest []*node, r *rand.Rand)) fault {
	return fault{kind, func(s *sim, ctx context.Context, r *rand.Rand) (func() error, []string, error) {
		leader, rest, err := s.leader(ctx)
		if err != nil {
			return nil, nil, err
		}
		r.Shuffle(len(rest), func(i, j int) { rest[i], rest[j] = rest[j], rest[i] })
		return s.links(func() { set(s, leader, rest, r) }), nil, nil
	}}
}

var down = simnet.Link{Down: true}

// links has set change links, and returns what heals them all. It fails if none was
// used meanwhile.
func (s *sim) links(set func()) (heal func() error) {
	before := s.net.Met()
	set()
	return func() error {
		s.net.Heal()
		if s.net.Met() == before {
			return errors.New("vacuous: nobody used the network")
		}
		return nil
	}
}

// isolate cuts a node off from the other nodes; clients still reach it.
func (s *sim) isolate(n *node) {
	for _, o := range s.members() {
		if o != n {
			s.net.Both(n.name, o.name, down)
		}
	}
}

// on is a fault of one node, the leader or another.
func on(kind string, leads bool, make func(s *sim, ctx context.Context, n *node, r *rand.Rand) (func() error, []string, error)) fault {
	return fault{kind, func(s *sim, ctx context.Context, r *rand.Rand) (func() error, []string, error) {
		n, rest, err := s.leader(ctx)
		if err != nil {
			return nil, nil, err
		}
		if !leads {
			n = rest[r.IntN(len(rest))]
		}
		s.event("%s: %s", kind, n.name)
		return make(s, ctx, n, r)
	}}
}

func kill(s *sim, _ context.Context, n *node, _ *rand.Rand) (func() error, []string, error) {
	return func() error { return s.restart(n) }, nil, n.kill()
}

// guardLink is a fault of the network between one guard and the nodes.
func guardLink(kind string, make func(s *sim, g *guard, r *rand.Rand)) fault {
	return fault{kind, func(s *sim, _ context.Context, r *rand.Rand) (func() error, []string, error) {
		g := s.guards[r.IntN(len(s.guards))]
		s.event("%s: %s", kind, g.name)
		return s.links(func() { make(s, g, r) }), []string{g.name}, nil
	}}
}

func (s *sim) guardLinks(g *guard, l simnet.Link) {
	for _, n := range s.members() {
		s.net.Both(g.name, n.name, l)
	}
}

// press revokes a few tokens, of which a guard that has just been cut off does not
// hear, and shows it what was revoked, in quick succession.
func (s *sim) press(g *guard, r *rand.Rand, d time.Duration) {
	const who = "presser"
	root := s.client(who, s.root)
	defer root.Close()
	for range 8 {
		if c, ok := pick(&s.pool, &s.pool.plain, r); ok && !c.spared {
			s.revoke(root, who, c)
		}
	}
	for end := time.Now().Add(d); time.Now().Before(end); sleep(4 * time.Millisecond) {
		if c, ok := pick(&s.pool, &s.pool.gone, r); ok {
			g.present(context.Background(), c)
		}
	}
}

// faults are all kinds.
var faults = []fault{
	links("isolate the leader", func(s *sim, leader *node, _ []*node, _ *rand.Rand) { s.isolate(leader) }),
	links("isolate a follower", func(s *sim, _ *node, rest []*node, _ *rand.Rand) { s.isolate(rest[0]) }),
	links("the leader is not heard", func(s *sim, leader *node, rest []*node, _ *rand.Rand) {
		for _, n := range rest {
			s.net.Set(leader.name, n.name, down)
		}
	}),
	links("the leader hears nobody", func(s *sim, leader *node, rest []*node, _ *rand.Rand) {
		for _, n := range rest {
			s.net.Set(n.name, leader.name, down)
		}
	}),
	links("two nodes lose each other", func(s *sim, leader *node, rest []*node, _ *rand.Rand) {
		s.net.Both(leader.name, rest[0].name, down)
	}),
	links("slow and lossy links", func(s *sim, leader *node, rest []*node, r *rand.Rand) {
		all := append(rest, leader)
		l := simnet.Link{Delay: time.Duration(r.Int64N(int64(10 * time.Millisecond))), Jitter: 5 * time.Millisecond, Loss: 0.01}
		for _, a := range all {
			for _, b := range all {
				s.net.Set(a.name, b.name, l)
			}
		}
	}),
	on("the leader goes dark", true, func(s *sim, _ context.Context, n *node, _ *rand.Rand) (func() error, []string, error) {
		return s.links(func() {
			s.isolate(n)
			for _, g := range s.guards {
				s.net.Both(g.name, n.name, down)
			}
		}), nil, nil
	}),
	{"no quorum", func(s *sim, _ context.Context, _ *rand.Rand) (func() error, []string, error) {
		return s.links(func() {
			for _, n := range s.members() {
				s.isolate(n)
			}
		}), everyone, nil
	}},
	guardLink("a guard is cut off", func(s *sim, g *guard, r *rand.Rand) {
		s.guardLinks(g, down)
		s.press(g, r, bound)
	}),
	guardLink("a guard hears late, then nothing", func(s *sim, g *guard, r *rand.Rand) {
		late := simnet.Link{Delay: bound*9/20 + time.Duration(r.Int64N(int64(bound*3/10)))}
		for _, n := range s.members() {
			s.net.Set(n.name, g.name, late)
		}
		sleep(bound + time.Duration(r.Int64N(int64(bound))))
		s.guardLinks(g, down)
		s.press(g, r, bound+late.Delay)
	}),
	{"a guard crashes", func(s *sim, ctx context.Context, r *rand.Rand) (func() error, []string, error) {
		g := s.guards[r.IntN(len(s.guards))]
		s.event("a guard crashes: %s", g.name)
		g.kill()
		return func() error {
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			return g.open(ctx)
		}, nil, nil
	}},
	on("kill the leader", true, kill),
	on("kill a follower", false, kill),
	on("stop the leader", true, stop),
	on("stop a follower", false, stop),
	on("the leader freezes", true, freeze),
	on("a follower freezes", false, freeze),
	{"power failure", func(s *sim, _ context.Context, r *rand.Rand) (func() error, []string, error) {
		for _, n := range s.members() {
			if err := n.kill(); err != nil {
				return nil, nil, err
			}
			if err := n.losePower(r); err != nil {
				return nil, nil, err
			}
		}
		return func() error { return s.restart(s.members()...) }, everyone, nil
	}},
	{"rolling restart", func(s *sim, ctx context.Context, _ *rand.Rand) (func() error, []string, error) {
		for _, n := range s.members() {
			if err := n.stop(); err != nil {
				s.event("stopping %s: %v", n.name, err)
			}
			if err := s.restart(n); err != nil {
				return nil, nil, err
			}
			ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
			err := s.ready(ctx)
			cancel()
			if err != nil {
				return nil, nil, err
			}
		}
		return nothing, nil, nil
	}},
	{"transfer leadership", func(s *sim, ctx context.Context, r *rand.Rand) (func() error, []string, error) {
		leader, rest, err := s.leader(ctx)
		if err != nil {
			return nil, nil, err
		}
		to := rest[r.IntN(len(rest))]
		err = leader.with(ctx, func(ctx context.Context, a *authority.Authority) error {
			_, err := a.Lead(ctx, to.name)
			return err
		})
		s.event("transfer from %s to %s: %v", leader.name, to.name, err)
		if err != nil {
			err = errNotMade
		}
		return nothing, nil, err
	}},
	on("the leader's disk is slow", true, slowDisk),
	on("a follower's disk is slow", false, slowDisk),
	on("the leader's disk hangs", true, func(s *sim, _ context.Context, n *node, r *rand.Rand) (func() error, []string, error) {
		met := n.met()
		n.disk.Hang()
		if r.IntN(2) == 0 {
			return func() error { n.disk.Heal(); return met() }, nil, nil // sooner than anybody notices
		}
		sleep(6 * time.Second)
		return func() error { return errors.Join(met(), n.kill(), s.restart(n)) }, nil, nil
	}),
	on("the leader's fsync fails", true, failDisk),
	on("a follower's fsync fails", false, failDisk),
	on("the leader's disk is full", true, func(s *sim, _ context.Context, n *node, _ *rand.Rand) (func() error, []string, error) {
		met := n.met()
		n.disk.Full()
		return func() error { n.disk.Heal(); return met() }, nil, nil
	}),
	on("a torn log tail", true, func(s *sim, _ context.Context, n *node, r *rand.Rand) (func() error, []string, error) {
		if err := errors.Join(n.kill(), n.losePower(r)); err != nil {
			return nil, nil, err
		}
		return func() error { return s.restart(n) }, nil, nil
	}),
	on("the leader's power fails in a write", true, failInWrite),
	on("a follower's power fails in a write", false, failInWrite),
	on("a flipped bit", false, flip),
	on("the leader's clock jumps ahead", true, jump(time.Hour)),
	on("the leader's clock jumps back", true, jump(-time.Hour)),
	on("a follower's clock jumps, and it is made to lead", false, func(s *sim, ctx context.Context, n *node, r *rand.Rand) (func() error, []string, error) {
		undo, _, err := jump(time.Hour)(s, ctx, n, r)
		if err != nil {
			return nil, nil, err
		}
		leader, _, err := s.leader(ctx)
		if err != nil {
			return nil, nil, err
		}
		err = leader.with(ctx, func(ctx context.Context, a *authority.Authority) error {
			_, err := a.Lead(ctx, n.name)
			return err
		})
		s.event("transfer from %s to %s: %v", leader.name, n.name, err)
		if err != nil {
			err = errNotMade
		}
		return undo, nil, err
	}),
	{"a node is replaced", func(s *sim, ctx context.Context, r *rand.Rand) (func() error, []string, error) {
		if s.made == voters+spare {
			return nothing, nil, errNotMade
		}
		members := s.members()
		return nothing, nil, s.replace(ctx, members[r.IntN(len(members))])
	}},
	{"a node loses its vote, and gets it back", func(s *sim, ctx context.Context, r *rand.Rand) (func() error, []string, error) {
		_, rest, err := s.leader(ctx)
		if err != nil {
			return nil, nil, err
		}
		n := rest[r.IntN(len(rest))]
		root := s.client("operator", s.root)
		_, err = root.DemoteNode(ctx, n.name)
		s.event("demote %s: %v", n.name, err)
		if err != nil {
			err = errNotMade
		}
		return func() error {
			defer root.Close()
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			_, err := root.PromoteNode(ctx, n.name)
			s.event("promote %s: %v", n.name, err)
			return nil // the cluster goes on with it by itself, or the end will tell
		}, nil, err
	}},
}

func stop(s *sim, _ context.Context, n *node, _ *rand.Rand) (func() error, []string, error) {
	if err := n.stop(); err != nil {
		s.event("stopping %s: %v", n.name, err)
	}
	return func() error { return s.restart(n) }, nil, nil
}

// freeze has a node stand still, as SIGSTOP would: nothing comes off its network or
// its disk, and time goes on. It is not told that it was away.
func freeze(s *sim, _ context.Context, n *node, r *rand.Rand) (func() error, []string, error) {
	s.net.Freeze(n.name)
	n.disk.Hang()
	sleep(time.Duration(r.Int64N(int64(3 * time.Second)))) // a disk that hangs for longer ends it
	return func() error {
		n.disk.Heal()
		held := s.net.Thaw(n.name)
		s.event("%s goes on: %d calls were held up", n.name, held)
		if held == 0 {
			return fmt.Errorf("vacuous: %s had nothing to do while it was frozen", n.name)
		}
		return nil
	}, nil, nil
}

func slowDisk(s *sim, _ context.Context, n *node, r *rand.Rand) (func() error, []string, error) {
	met := n.met()
	n.disk.Slow(5*time.Millisecond + time.Duration(r.Int64N(int64(400*time.Millisecond))))
	return func() error { n.disk.Heal(); return met() }, nil, nil
}

// failDisk has a node find that a write failed, which ends it.
func failDisk(s *sim, _ context.Context, n *node, _ *rand.Rand) (func() error, []string, error) {
	met := n.met()
	n.disk.Fail()
	return func() error { return errors.Join(met(), n.kill(), s.restart(n)) }, nil, nil
}

// met fails unless the node's disk was written to since.
func (n *node) met() func() error {
	before := n.disk.Hits()
	return func() error {
		if n.disk.Hits() == before {
			return fmt.Errorf("vacuous: %s wrote nothing to its disk", n.name)
		}
		return nil
	}
}

// jump puts a node's clock off by more than the longest life of a token. Half the
// time the node is then killed with its clock as it is, and starts with it; else it
// stays long enough for whatever is done now and then.
func jump(by time.Duration) func(*sim, context.Context, *node, *rand.Rand) (func() error, []string, error) {
	return func(s *sim, _ context.Context, n *node, r *rand.Rand) (func() error, []string, error) {
		s.skews[n.name].Store(int64(by))
		dies := r.IntN(2) == 0
		if !dies {
			sleep(11 * time.Second)
		}
		return func() error {
			if dies {
				if err := errors.Join(n.kill(), s.restart(n)); err != nil {
					return err
				}
			}
			s.skews[n.name].Store(0)
			return nil
		}, nil, nil
	}
}

// restart starts nodes that have stopped, side by side since each waits for a quorum.
func (s *sim) restart(nodes ...*node) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	failed := make(chan error, len(nodes))
	for _, n := range nodes {
		go func() {
			err := n.start(ctx, nil)
			if err != nil {
				err = fmt.Errorf("starting %s again: %w", n.name, err)
			}
			failed <- err
		}()
	}
	var errs []error
	for range nodes {
		errs = append(errs, <-failed)
	}
	return errors.Join(errs...)
}

// replace has another node take the place of one, which is gone for good.
func (s *sim) replace(ctx context.Context, n *node) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	if err := n.kill(); err != nil {
		return err
	}
	another, err := s.add(ctx)
	if err != nil {
		return err
	}
	s.mu.Lock()
	for i := range s.nodes {
		if s.nodes[i] == n {
			s.nodes[i] = another
		}
	}
	s.mu.Unlock()
	root := s.client("operator", s.root)
	defer root.Close()
	for {
		err := root.RemoveNode(ctx, n.name, false)
		s.event("%s in place of %s: %v", another.name, n.name, err)
		if err == nil {
			break
		}
		if !pause(ctx, time.Second) {
			return err
		}
	}
	return s.ready(ctx)
}

// kinds are all kinds of faults, and of ends.
func kinds() (all []string) {
	for _, f := range faults {
		all = append(all, f.kind)
	}
	for _, e := range ends {
		all = append(all, e.kind)
	}
	return all
}

// endOf is the end of a seed.
func endOf(seed uint64) end { return ends[seed%uint64(len(ends))] }

// faultsOf are the faults of a seed, in no order yet. Seeds that follow on each other
// go through all kinds.
func faultsOf(seed uint64, n int) []fault {
	deck := make([]fault, n)
	for i := range deck {
		deck[i] = faults[(int(seed)*n+i)%len(faults)]
	}
	return deck
}

// disturb goes through the schedule, and undoes each fault before the next.
func (s *sim) disturb(ctx context.Context) error {
	r := s.random(0)
	deck := faultsOf(s.seed, s.perRun)
	r.Shuffle(len(deck), func(i, j int) { deck[i], deck[j] = deck[j], deck[i] })
	for _, f := range deck {
		pause(ctx, between(r, 700*time.Millisecond))
		if err := s.one(ctx, f, r); err != nil {
			return fmt.Errorf("%s: %w", f.kind, err)
		}
	}
	return nil
}

// one makes one fault, and undoes it.
func (s *sim) one(ctx context.Context, f fault, r *rand.Rand) error {
	s.event("fault: %s", f.kind)
	begun := s.now()
	making, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	undo, cut, err := f.make(s, making, r)
	made := !errors.Is(err, errNotMade)
	if err != nil && made {
		return err
	}
	pause(ctx, between(r, 600*time.Millisecond))
	if err := undo(); err != nil {
		return err
	}
	if !made {
		s.event("not made: %s", f.kind)
		return nil
	}
	s.record("faults", begun, check.Record{Op: check.OpFault, Code: f.kind})
	for _, guard := range cut {
		s.record(guard, begun, check.Record{Op: check.OpCut})
	}
	s.event("undone: %s", f.kind)
	return nil
}
