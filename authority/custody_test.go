package authority_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/writ-dev/writ/authority"
	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/authoritytest"
	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/raftstore"
	"github.com/writ-dev/writ/raftstore/raftstoretest"
)

// pinned asks a node over a new connection, with a pin.
func pinned(t *testing.T, c *authoritytest.Cluster, node, pin string) error {
	t.Helper()
	cfg := c.Config(c.RootToken)
	cfg.Addrs, cfg.CAFingerprint, cfg.Attempts = []string{c.Node(node).Addr}, pin, 1
	own, err := client.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	_, err = own.CA(t.Context())
	return err
}

// TestKeysChangeUnderLoad changes every key that can be while tokens are issued
// and verified through followers, and leadership moves: no call fails, no token is
// refused, and a client that pins either CA is served until the old one is retired.
func TestKeysChangeUnderLoad(t *testing.T) {
	c := authoritytest.StartCluster(t, 3)
	accepts := guard(t, c.Replica(t, "files", []string{"corp"}))
	root := c.Root()
	defer root.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var work sync.WaitGroup
	var issued atomic.Int64
	for _, n := range c.Nodes {
		work.Go(func() {
			own := n.Root()
			defer own.Close()
			for ctx.Err() == nil {
				r, err := own.Issue(t.Context(), api.IssueRequest{Audience: "corp", Subject: "agent", Owner: "o", Purpose: "p"})
				if err != nil {
					t.Errorf("issuing through %s: %v", n.Name, err)
					return
				}
				if _, err := own.Verify(t.Context(), parse(t, r.Token).Bytes()); err != nil {
					t.Errorf("verifying through %s: %v", n.Name, err)
				}
				// A machine that is too busy makes a guard stale, and no key can help that.
				if err := accepts(r.Token); err != nil && !errors.Is(err, capability.CodeStaleRevocations) {
					t.Errorf("at a guard: %v", err)
				}
				issued.Add(1)
			}
		})
	}
	oldPin, number := c.CAFingerprint, uint32(0)
	var ca *api.CAInfo
	for round := range 3 {
		if _, err := root.Rotate(t.Context()); err != nil {
			t.Fatal(err)
		}
		list, err := root.RotateClusterKey(t.Context())
		if err != nil || list.Number <= number {
			t.Fatal(list, err)
		}
		number = list.Number
		if round == 0 {
			if ca, err = root.RotateCA(t.Context(), api.CARequest{}); err != nil || ca.CAFingerprint == oldPin || ca.Retiring != oldPin {
				t.Fatal(ca, err)
			}
		}
		until(t, "the rotated epoch mints, and it was used", func() bool {
			epochs, err := root.Epochs(t.Context())
			return err == nil && epochs.Epochs[len(epochs.Epochs)-1].State == "minting"
		})
		followers, err := c.Followers(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		until(t, "another leads", func() bool {
			_, err := root.LeadNode(t.Context(), followers[0].Name)
			return err == nil
		})
	}
	if _, err := root.RotateCA(t.Context(), api.CARequest{}); !errors.Is(err, api.CodeConflict) {
		t.Errorf("a third CA while two are good: %v", err)
	}
	for _, n := range c.Nodes {
		until(t, n.Name+" shows the new CA", func() bool { return pinned(t, c, n.Name, ca.CAFingerprint) == nil })
		until(t, n.Name+" is good for the old pin", func() bool { return pinned(t, c, n.Name, oldPin) == nil })
	}
	cancel()
	work.Wait()
	if n := issued.Load(); n < 30 {
		t.Errorf("only %d tokens were issued meanwhile", n)
	}
	// A node that joins and one that starts anew know both, too.
	if err := c.Nodes[2].Stop(); err != nil {
		t.Fatal(err)
	}
	if err := c.Nodes[2].Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	until(t, "the old pin is good after a restart", func() bool { return pinned(t, c, "n3", oldPin) == nil })
	c.CAFingerprint = ca.CAFingerprint
	repinned := c.Root()
	defer repinned.Close()
	if ca, err := repinned.RetireCA(t.Context()); err != nil || ca.Retiring != "" || ca.CAFingerprint != c.CAFingerprint {
		t.Fatal(ca, err)
	}
	if again, err := repinned.RetireCA(t.Context()); err != nil || again.CAFingerprint != c.CAFingerprint {
		t.Errorf("retiring nothing: %+v, %v", again, err)
	}
	for _, n := range c.Nodes {
		until(t, n.Name+" shows the old CA no more", func() bool { return errors.Is(pinned(t, c, n.Name, oldPin), client.ErrFingerprint) })
		until(t, n.Name+" is good for the new pin", func() bool { return pinned(t, c, n.Name, c.CAFingerprint) == nil })
	}
	// At once: the pin that was good is not.
	if ca, err := repinned.RotateCA(t.Context(), api.CARequest{AtOnce: true}); err != nil || ca.Retiring != "" {
		t.Fatal(ca, err)
	}
	until(t, "a CA replaced at once", func() bool { return errors.Is(pinned(t, c, "n1", c.CAFingerprint), client.ErrFingerprint) })
}

// TestKeysChangeOnce: a call that changes keys, made again through another leader
// since its answer was lost, is answered as it was, and changes nothing more.
func TestKeysChangeOnce(t *testing.T) {
	c := authoritytest.StartCluster(t, 3)
	root := c.Root()
	defer root.Close()
	until(t, "every node remembers such calls", func() bool {
		s, err := root.Cluster(t.Context())
		return err == nil && s.Version >= 2
	})
	call := func(random byte) context.Context {
		return client.WithRequestID(t.Context(), capability.NewTokenID(time.Now().UnixMilli(), [10]byte{random}))
	}
	lead := func() {
		followers, err := c.Followers(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		until(t, "another leads", func() bool {
			_, err := root.LeadNode(t.Context(), followers[0].Name)
			return err == nil
		})
	}
	ca, cluster := call(1), call(2)
	first, err := root.RotateCA(ca, api.CARequest{})
	if err != nil {
		t.Fatal(err)
	}
	lead()
	// A second rotation would be refused, as long as the old CA is good.
	if again, err := root.RotateCA(ca, api.CARequest{}); err != nil || again.CAFingerprint != first.CAFingerprint {
		t.Errorf("the CA, again: %+v, %v; first %+v", again, err, first)
	}
	if _, err := root.RotateCA(ca, api.CARequest{AtOnce: true}); !errors.Is(err, api.CodeConflict) {
		t.Errorf("another request under the same id: %v", err)
	}
	if _, err := root.RotateCA(call(3), api.CARequest{}); !errors.Is(err, api.CodeConflict) {
		t.Errorf("another call: %v", err)
	}
	keys, err := root.RotateClusterKey(cluster)
	if err != nil {
		t.Fatal(err)
	}
	lead()
	if again, err := root.RotateClusterKey(cluster); err != nil || again.Number != keys.Number {
		t.Errorf("the cluster key, again: %+v, %v; first %+v", again, err, keys)
	}
}

// warnings counts the records of a log that say something.
type warnings struct {
	slog.Handler
	about string
	seen  *atomic.Int64
}

func (w warnings) Enabled(context.Context, slog.Level) bool { return true }
func (w warnings) WithAttrs([]slog.Attr) slog.Handler       { return w }
func (w warnings) WithGroup(string) slog.Handler            { return w }

// Handle implements slog.Handler.
func (w warnings) Handle(_ context.Context, r slog.Record) error {
	if strings.Contains(r.Message, w.about) {
		w.seen.Add(1)
	}
	return nil
}

// TestExpiredCertificates: nodes that were all down for longer than their
// certificates live form a quorum again, and have new ones.
func TestExpiredCertificates(t *testing.T) {
	var seen atomic.Int64
	c := authoritytest.StartCluster(t, 3, authoritytest.Options{Logger: slog.New(warnings{about: "certificate is out of date", seen: &seen})})
	for _, n := range c.Nodes {
		if err := n.Stop(); err != nil {
			t.Fatal(err)
		}
		n.Skew.Store(int64(100 * 24 * time.Hour))
	}
	if n := seen.Load(); n != 0 {
		t.Fatalf("%d certificates were out of date before", n)
	}
	var starts sync.WaitGroup
	for _, n := range c.Nodes {
		starts.Go(func() {
			if err := n.Start(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	starts.Wait()
	if t.Failed() {
		t.FailNow()
	}
	if err := c.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	if seen.Load() == 0 {
		t.Error("no certificate was out of date, and so nothing was shown")
	}
	// The root token has ended, too; this is the way back.
	token, err := authority.MemberRoot(t.Context(), nodeConfig(c, "n2"))
	if err != nil || token == "" {
		t.Fatal(err)
	}
}

// TestMemberChangesItsKey: a member has another key in place, the old one is
// worth nothing, and what was interrupted can be done again.
func TestMemberChangesItsKey(t *testing.T) {
	c := authoritytest.StartCluster(t, 3)
	for _, name := range []string{"n2", "n1"} {
		n, cfg := c.Node(name), nodeConfig(c, name)
		next := authority.NodeKey{File: cfg.KeyFile + ".next"}
		if err := authority.ChangeNodeKey(t.Context(), cfg, nil, next); !errors.Is(err, raftstore.ErrLocked) {
			t.Errorf("while the node runs: %v", err)
		}
		if err := n.Stop(); err != nil {
			t.Fatal(err)
		}
		leaked := copyOf(t, c, name)
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		if err := authority.ChangeNodeKey(ended, cfg, nil, next); err == nil {
			t.Error("changed without anybody's knowing")
		}
		for range 2 { // the second time as if the answer had been lost
			if err := authority.ChangeNodeKey(t.Context(), cfg, nil, next); err != nil {
				t.Fatal(err)
			}
		}
		// Whichever peer is asked has to have heard of it.
		if err := c.WaitApplied(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := authority.MemberRoot(t.Context(), leaked); !errors.Is(err, raftstore.ErrRefused) {
			t.Errorf("a peer with the old key: %v", err)
		}
		if _, err := authority.MemberRoot(t.Context(), cfg); !errors.Is(err, authority.ErrKeyFile) {
			t.Errorf("the old key in the node's place: %v", err)
		}
		cfg.Peers = &authority.PeerConfig{Listener: listen(t)}
		if _, _, err := authority.Open(t.Context(), cfg); !errors.Is(err, authority.ErrKeyFile) {
			t.Errorf("the node with the old key: %v", err)
		}
		if err := os.Rename(next.File, cfg.KeyFile); err != nil {
			t.Fatal(err)
		}
		if err := n.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := c.WaitReady(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Root().RotateClusterKey(t.Context()); err != nil {
			t.Fatal(err)
		}
		own := n.Root()
		if _, err := own.Issue(t.Context(), api.IssueRequest{Audience: "corp", Subject: "agent", Owner: "o", Purpose: "p"}); err != nil {
			t.Errorf("through %s: %v", name, err)
		}
		own.Close()
	}
	// A whole restart goes by what was written down.
	for _, n := range c.Nodes {
		if err := n.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	var starts sync.WaitGroup
	for _, n := range c.Nodes {
		starts.Go(func() {
			if err := n.Start(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	starts.Wait()
	if err := c.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestCopiedMember: a member's directory elsewhere does not start without its key
// file, with another's, or next to the node that it is a copy of; and nothing in
// it opens anything.
func TestCopiedMember(t *testing.T) {
	c := authoritytest.StartCluster(t, 3)
	if err := c.Node("n3").Stop(); err != nil {
		t.Fatal(err)
	}
	cfg := copyOf(t, c, "n3")
	whole := cfg
	cfg.KeyFile = filepath.Join(t.TempDir(), "key")
	try := func(what string, keyFile string) {
		t.Helper()
		cfg.KeyFile, cfg.Peers = keyFile, &authority.PeerConfig{Listener: listen(t)}
		if _, _, err := authority.Open(t.Context(), cfg); !errors.Is(err, authority.ErrKeyFile) {
			t.Errorf("%s: %v", what, err)
		}
		if _, err := authority.MemberRoot(t.Context(), cfg); err == nil {
			t.Errorf("%s gives a root token", what)
		}
	}
	try("without a key file", cfg.KeyFile)
	if _, err := authority.Recover(t.Context(), authority.Rebirth{Config: cfg}); !errors.Is(err, authority.ErrKeyFile) {
		t.Errorf("without a key file, by itself: %v", err)
	}
	if _, err := os.Stat(cfg.KeyFile); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a key file was made")
	}
	try("with another node's key file", nodeConfig(c, "n1").KeyFile)

	// Removed, it does not come back, key file or not.
	root := c.Root()
	defer root.Close()
	if err := root.RemoveNode(t.Context(), "n3", false); err != nil {
		t.Fatal(err)
	}
	// A peer that has yet to hear of it passes the call on to the leader, who has.
	if _, err := authority.MemberRoot(t.Context(), whole); !errors.Is(err, raftstore.ErrRefused) && !errors.Is(err, raftstore.ErrUnknownMember) {
		t.Errorf("a removed node asks for a root token: %v", err)
	}
	whole.Peers = &authority.PeerConfig{Listener: listen(t)}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if a, _, err := authority.Open(ctx, whole); err == nil {
		t.Error("a removed node starts", a.Close())
	}
}

// TestBackupAsksAQuorum: a node that may be behind gives no backup, rather than one
// without what was acknowledged elsewhere.
func TestBackupAsksAQuorum(t *testing.T) {
	c := authoritytest.StartCluster(t, 3)
	followers, err := c.Followers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	save := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		return followers[0].Authority.Backup(ctx, io.Discard)
	}
	if err := save(); err != nil {
		t.Fatal(err)
	}
	c.Isolate(followers[0].Name)
	if err := save(); err == nil {
		t.Error("a node that is cut off gives a backup")
	}
	c.Heal()
	until(t, "the node gives a backup again", func() bool { return save() == nil })
}

// TestBackupThatFails on its way is cut off for whoever fetches it: it does not look
// like one that ended.
func TestBackupThatFails(t *testing.T) {
	disk := new(raftstoretest.Disk)
	n := authoritytest.Start(t, authoritytest.Options{Authority: func(cfg *authority.Config) { cfg.Faults = disk }})
	n.Mint(t, "corp", "agent")
	root := n.Root()
	defer root.Close()
	disk.Full()
	var b bytes.Buffer
	if err := root.SaveSnapshot(t.Context(), &b); err == nil {
		t.Errorf("%d bytes, and no error", b.Len())
	}
	disk.Heal()
	b.Reset()
	if err := root.SaveSnapshot(t.Context(), &b); err != nil {
		t.Error(err)
	}
	if _, err := authority.OpenBackup(bytes.NewReader(b.Bytes()), int64(b.Len())); err != nil {
		t.Error(err)
	}
}
