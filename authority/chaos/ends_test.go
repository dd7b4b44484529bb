package chaos

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/writ-dev/writ/authority"
	"github.com/writ-dev/writ/authority/chaos/check"
	"github.com/writ-dev/writ/authority/client"
)

// end is what comes over a cluster last, when its run has been judged, since tokens
// that there were end with it.
type end struct {
	kind string
	make func(s *sim, ctx context.Context) error
}

// ends are all kinds. A seed has one of them.
var ends = []end{
	{"a restore", func(s *sim, ctx context.Context) error { return s.restore(ctx) }},
	{"a restore that keeps an epoch", func(s *sim, ctx context.Context) error { return s.restore(ctx, 1) }},
	{"certificates expire without a quorum", (*sim).expire},
}

// end brings the seed's end about. One that fails is a finding, and what was found
// before it counts too.
func (s *sim) end(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	end := endOf(s.seed)
	s.event("end: %s", end.kind)
	begun := s.now()
	if err := end.make(s, ctx); err != nil {
		s.violated("%s: %v", end.kind, err)
	}
	s.record("faults", begun, check.Record{Op: check.OpFault, Code: end.kind})
}

// restore has the cluster be lost under load, restored from a backup that is older,
// and work again. Nothing that was revoked or spent after the backup comes back to
// life, and a guard that followed the cluster of before accepts nothing of it for
// longer than the bound. Where epochs are kept, tokens go on as they were in the
// backup, and have no calls left.
func (s *sim) restore(ctx context.Context, keep ...uint32) error {
	s.pool.limited = nil // it has been accounted for
	for _, g := range s.guards {
		if err := g.open(ctx); err != nil {
			return err
		}
	}
	root := s.client("operator", s.root)
	defer root.Close()
	spent, err := s.issue(root, "operator", s.named("spent", 0, 0), 40)
	if err != nil {
		return err
	}
	stop := s.load(ctx)
	s.pool.add(&s.pool.limited, spent)
	pause(ctx, time.Second)
	begun := s.now()
	var saved bytes.Buffer
	if err := root.SaveSnapshot(ctx, &saved); err != nil {
		return err
	}
	pause(ctx, 2*time.Second)
	s.exhaust(ctx, spent)
	members := s.members()
	for _, n := range members {
		if err := n.kill(); err != nil {
			return err
		}
	}
	pause(ctx, time.Millisecond) // what was acknowledged this very moment is of before
	lost := check.Record{Op: check.OpRestore, Begun: s.now()}
	if len(keep) > 0 {
		lost.Backup = begun
	}
	if err := s.reborn(ctx, members, saved.Bytes(), keep); err != nil {
		return err
	}
	pause(ctx, 2*bound) // they still work with what they had
	if err := stop(); err != nil {
		return err
	}
	for _, g := range s.guards {
		g.kill()
	}
	lost.Ended = s.now()
	s.add1(lost)
	before := s.pool.limited
	s.pool = pool{sent: s.pool.sent, plain: s.pool.plain, gone: s.pool.gone}
	if err := s.serve(ctx); err != nil {
		return err
	}
	s.record("", lost.Begun, check.Record{Op: check.OpCut})
	for _, c := range before {
		s.exhaust(ctx, c)
	}
	stop = s.load(ctx)
	pause(ctx, 3*time.Second)
	if err := stop(); err != nil {
		return err
	}
	return s.finish(ctx)
}

// exhaust shows all guards a credential as often as would overspend what it may
// spend twice over.
func (s *sim) exhaust(ctx context.Context, c *credential) {
	for i := range 2 * slices.Max(c.limits) {
		s.guards[i%uint64(len(s.guards))].present(ctx, c)
	}
}

// reborn restores a backup, and has two nodes join. One node's key file opens it; the
// others never start again. It is one that the guards were set up with.
func (s *sim) reborn(ctx context.Context, members []*node, saved []byte, keep []uint32) error {
	n := members[slices.IndexFunc(members, func(n *node) bool { return slices.Contains(s.known[:voters], n.api()) })]
	s.mu.Lock()
	s.nodes = []*node{n}
	s.mu.Unlock()
	if err := os.RemoveAll(filepath.Join(n.dir, "data")); err != nil {
		return err
	}
	backup, err := authority.OpenBackup(bytes.NewReader(saved), int64(len(saved)))
	if err != nil {
		return err
	}
	reborn, err := authority.Restore(ctx, authority.Rebirth{
		Config: authority.Config{Dir: filepath.Join(n.dir, "data"), KeyFile: filepath.Join(n.dir, "node.key"), NodeID: n.name},
		Raft:   n.peer(), API: n.api(), KeepEpochs: keep,
	}, backup)
	if err != nil {
		return err
	}
	if reborn.Incarnation <= reborn.Before {
		s.violated("incarnation %d came after %d", reborn.Incarnation, reborn.Before)
	}
	s.root, s.known = reborn.RootToken, []string{n.api()}
	if err := errors.Join(s.restart(n), s.ready(ctx)); err != nil {
		return err
	}
	for range voters - 1 {
		another, err := s.add(ctx)
		if err != nil {
			return err
		}
		s.known = append(s.known, another.api())
		s.mu.Lock()
		s.nodes = append(s.nodes, another)
		s.mu.Unlock()
	}
	return s.ready(ctx)
}

// expire has the cluster be without a quorum for longer than any certificate of a
// node lives. It has to form again all the same.
func (s *sim) expire(ctx context.Context) error {
	const later = 100 * 24 * time.Hour // certificates live for 90 days
	members := s.members()
	alone, others := members[0], members[1:]
	_, until, err := alone.certified()
	if err != nil {
		return err
	}
	for _, n := range others {
		if err := n.kill(); err != nil {
			return err
		}
	}
	for _, skew := range s.skews {
		skew.Store(int64(later))
	}
	then := time.Now().Add(later)
	if !then.After(until) {
		return fmt.Errorf("vacuous: the certificate of %s is good until %v", alone.name, until)
	}
	pause(ctx, 5*time.Second)
	short, cancel := context.WithTimeout(ctx, time.Second)
	err = alone.running().Ready(short)
	cancel()
	if err == nil {
		s.violated("%s is ready without a quorum", alone.name)
	}
	if err := errors.Join(s.restart(others...), s.ready(ctx)); err != nil {
		s.violated("certificates have expired, and there is no quorum again: %v", err)
		return nil
	}
	for _, n := range members {
		from, until, err := n.certified()
		if now := time.Now().Add(later); err != nil || now.Before(from) || now.After(until) {
			s.violated("the certificate of %s is good from %v until %v: %v", n.name, from, until, err)
		}
		cfg := s.clientConfig(s.net.Host("operator"), "")
		cfg.Addrs, cfg.Now = []string{n.api()}, func() time.Time { return time.Now().Add(later) }
		c, err := client.New(cfg)
		if err != nil {
			return err
		}
		if err := c.Ready(ctx); err != nil {
			s.violated("certificates have expired, and a client finds of %s: %v", n.name, err)
		}
		c.Close()
	}
	return nil
}

// certified is from when until when the node's certificate is good.
func (n *node) certified() (from, until time.Time, err error) {
	c, err := n.running().TLSConfig().GetCertificate(&tls.ClientHelloInfo{})
	if err != nil {
		return from, until, err
	}
	leaf, err := x509.ParseCertificate(c.Certificate[0])
	if err != nil {
		return from, until, err
	}
	return leaf.NotBefore, leaf.NotAfter, nil
}
