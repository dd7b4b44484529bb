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
	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/chaos/check"
	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/capability"
)

// ends are what comes over a cluster last, when its run has been judged, since all
// tokens that there were end with it. A seed has one of them.
var ends = []struct {
	kind string
	make func(s *sim, ctx context.Context) error
}{
	{"a restore", (*sim).restore},
	{"certificates expire without a quorum", (*sim).expire},
}

// end brings the seed's end about. One that fails is a finding, and what was found
// before it counts too.
func (s *sim) end(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	end := ends[s.seed%uint64(len(ends))]
	s.event("end: %s", end.kind)
	begun := s.now()
	if err := end.make(s, ctx); err != nil {
		s.violated("%s: %v", end.kind, err)
	}
	s.record("faults", begun, check.Record{Op: check.OpFault, Code: end.kind})
}

// restore has the cluster be lost, and restored from a backup. Nothing that was
// revoked or spent after the backup comes back to life, and a guard that followed the
// cluster of before accepts nothing of it for longer than the bound.
func (s *sim) restore(ctx context.Context) error {
	before := s.guards[0]
	if err := before.open(ctx); err != nil {
		return err
	}
	alive, revoked, spent, err := s.threeTokens(ctx)
	if err != nil {
		return err
	}
	s.expect(ctx, before, "before the backup", true, alive, revoked)

	root := s.client("operator", s.root)
	defer root.Close()
	var saved bytes.Buffer
	if err := root.SaveSnapshot(ctx, &saved); err != nil {
		return err
	}
	if _, err := root.Revoke(ctx, api.RevokeRequest{Kind: api.RevokeToken, Token: revoked.ID.String(), Reason: "after the backup"}); err != nil {
		return err
	}
	s.expect(ctx, before, "after the backup", true, spent)
	s.expect(ctx, before, "when it was spent", false, spent)
	members := s.members()
	for _, n := range members {
		if err := n.kill(); err != nil {
			return err
		}
	}
	killed := time.Now()

	// One node's key file opens the backup; the others never start again. It is one that
	// the guards were set up with.
	n := members[slices.IndexFunc(members, func(n *node) bool { return n.name <= fmt.Sprintf("n%d", voters) })]
	s.mu.Lock()
	s.nodes = []*node{n}
	s.mu.Unlock()
	if err := os.RemoveAll(filepath.Join(n.dir, "data")); err != nil {
		return err
	}
	backup, err := authority.OpenBackup(bytes.NewReader(saved.Bytes()), int64(saved.Len()))
	if err != nil {
		return err
	}
	reborn, err := authority.Restore(ctx, authority.Rebirth{
		Config: authority.Config{Dir: filepath.Join(n.dir, "data"), KeyFile: filepath.Join(n.dir, "node.key"), NodeID: n.name},
		Raft:   n.peer(), API: n.api(),
	}, backup)
	if err != nil {
		return err
	}
	if reborn.Incarnation <= reborn.Before {
		s.violated("incarnation %d came after %d", reborn.Incarnation, reborn.Before)
	}
	s.root = reborn.RootToken
	if err := errors.Join(s.restart(n), s.ready(ctx)); err != nil {
		return err
	}
	after := &guard{s: s, name: "guard-anew"}
	if after.token, err = s.service(ctx, after.name); err != nil {
		return err
	}
	if err := after.open(ctx); err != nil {
		return err
	}
	defer after.kill()
	fresh, _, _, err := s.threeTokens(ctx)
	if err != nil {
		return err
	}
	s.expect(ctx, after, "after the restore", false, alive, revoked, spent)
	s.expect(ctx, after, "after the restore", true, fresh)
	s.expect(ctx, before, "after the restore", false, revoked, spent)
	pause(ctx, time.Until(killed.Add(bound)))
	s.expect(ctx, before, "past the bound", false, alive)
	before.kill()
	return nil
}

// threeTokens issues one to keep, one to revoke, and one with a call to spend.
func (s *sim) threeTokens(ctx context.Context) (keep, revoke, spend *api.TokenResponse, err error) {
	root := s.client("operator", s.root)
	defer root.Close()
	issue := func(conditions ...string) *api.TokenResponse {
		got, failed := root.Issue(ctx, api.IssueRequest{
			Audience: audience, Subject: "agent-end", Owner: "o@corp.example", Purpose: "campaign", TTLSeconds: 900, Caveats: conditions,
		})
		err = errors.Join(err, failed)
		return got
	}
	keep, revoke, spend = issue(), issue(), issue("max-calls 1")
	return keep, revoke, spend, err
}

// expect shows tokens to a guard, which is to accept or to refuse each.
func (s *sim) expect(ctx context.Context, g *guard, when string, accept bool, tokens ...*api.TokenResponse) {
	for _, t := range tokens {
		token, err := capability.Parse(t.Token)
		if err == nil {
			err = g.life.verifier.Verify(ctx, new(capability.Grant), token.Bytes(), &capability.Request{Now: time.Now(), Service: "corp"})
		}
		s.event("%s, %s is shown %s: %v", when, g.name, t.ID, err)
		if accept != (err == nil) {
			s.violated("%s, %s says of %s: %v", when, g.name, t.ID, err)
		}
	}
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
