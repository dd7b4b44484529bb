package chaos

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/writ-dev/writ/authority"
	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/chaos/simnet"
	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/authority/server"
	"github.com/writ-dev/writ/raftstore/raftstoretest"
)

// node is a node of the simulated cluster, over all its lives.
type node struct {
	s    *sim
	name string
	disk *disk

	// Of the fault schedule alone:
	life int    // how often it was started
	dir  string // of the life under way, or of the last

	mu     sync.Mutex
	a      *authority.Authority // nil: stopped; guarded by mu
	host   *simnet.Host         // guarded by mu
	end    context.CancelFunc   // ends serving; guarded by mu
	served chan error           // guarded by mu
	ctx    context.Context      // of what the load has under way here; guarded by mu
	cancel context.CancelFunc   // guarded by mu
}

// disk is the disk of one node: its faults, and a lock so that a kill finds every
// write done or not begun.
type disk struct {
	raftstoretest.Disk
	mu sync.Mutex
}

// Write implements raftstore.Faults.
func (d *disk) Write(write func() error) error {
	return d.Disk.Write(func() error {
		d.mu.Lock()
		defer d.mu.Unlock()
		return write()
	})
}

func (n *node) api() string  { return n.name + ":7480" }
func (n *node) peer() string { return n.name + ":7481" }

// boot is time since boot, which no fault touches.
func (s *sim) boot() int64 { return int64(time.Since(s.base)) + int64(time.Hour) }

func (n *node) config(host *simnet.Host, peers net.Listener, fatal func(error)) authority.Config {
	s := n.s
	return authority.Config{
		Dir: filepath.Join(n.dir, "data"), KeyFile: filepath.Join(n.dir, "node.key"), NodeID: n.name, Bound: bound,
		RotateEvery: rotateEvery, Version: "test", SnapshotThreshold: 200, TrailingLogs: 50,
		Clock: func() time.Time { return time.Now().Add(time.Duration(s.skews[n.name].Load())) },
		Boot:  s.boot, Faults: n.disk, OnFatal: fatal, Logger: s.logger(n.name),
		Peers: &authority.PeerConfig{Listener: peers, Advertise: n.peer(), API: n.api(), Dial: host.Dial},
	}
}

// start begins a life. join is nil but for the first of a node that joins.
func (n *node) start(ctx context.Context, prepare func(*authority.Config) error) error {
	s := n.s
	n.life++
	host := s.net.Host(n.name)
	peers, err := host.Listen(n.peer())
	if err != nil {
		return err
	}
	cfg := n.config(host, peers, func(err error) {
		s.event("%s cannot go on: %v", n.name, err)
		host.Kill() // as the end of the process would
	})
	if prepare != nil {
		if err := prepare(&cfg); err != nil {
			host.Kill()
			return err
		}
	}
	a, formed, err := authority.Open(ctx, cfg)
	if err != nil {
		host.Kill()
		return err
	}
	if formed != nil {
		s.root, s.fingerprint = formed.RootToken, fmt.Sprintf("%x", formed.CAFingerprint)
	}
	srv, err := server.New(server.Config{Authority: a, Logger: cfg.Logger, Now: cfg.Clock, Limits: server.Limits{Grace: time.Second}})
	if err != nil {
		return err
	}
	ln, err := host.Listen(n.api())
	if err != nil {
		return errors.Join(err, a.Close())
	}
	serving, end := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- srv.Serve(serving, ln) }()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.a, n.host, n.end, n.served = a, host, end, served
	n.ctx, n.cancel = context.WithCancel(context.Background())
	return nil
}

// take takes the life that is under way, of which the load has no part any more.
func (n *node) take() (a *authority.Authority, host *simnet.Host, stop func() error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.a == nil {
		return nil, nil, nil
	}
	a, host = n.a, n.host
	n.cancel()
	end, served := n.end, n.served
	n.a = nil
	return a, host, func() error {
		end()
		return errors.Join(<-served, a.Close())
	}
}

// stop ends a life in good order.
func (n *node) stop() error {
	_, host, stop := n.take()
	if stop == nil {
		return nil
	}
	err := stop()
	host.Kill()
	return err
}

// kill ends a life where it stands. What was on the disk is what the next begins
// with; what the old one still does reaches nobody.
func (n *node) kill() error {
	n.mu.Lock()
	host := n.host
	running := n.a != nil
	n.mu.Unlock()
	if !running {
		return nil
	}
	host.Kill()
	n.disk.mu.Lock()
	if lost := disks.of(n.raftLog()); len(lost) > 0 {
		n.s.violated("%s has written to its log, and says so, and has not synced it: %d writes", n.name, len(lost))
	}
	err := n.leave()
	n.disk.mu.Unlock()
	n.bury()
	return err
}

// leave has what is on the disk now be what the next life begins with.
func (n *node) leave() error {
	dir := filepath.Join(n.s.dir, fmt.Sprintf("%s-%d", n.name, n.life+1))
	err := copyTree(dir, n.dir)
	n.dir = dir
	return err
}

// bury has the load no longer use a life whose host is dead.
func (n *node) bury() {
	if _, _, stop := n.take(); stop != nil {
		n.s.zombies.Go(func() { _ = stop() })
	}
	n.disk.Heal()
}

// copyTree copies a directory, but for the state file, which is made anew.
func copyTree(to, from string) error {
	return filepath.WalkDir(from, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, rel)
		switch {
		case e.IsDir():
			return os.MkdirAll(target, 0o700)
		case e.Name() == "state.db", strings.HasSuffix(e.Name(), ".tmp"):
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(target, b, 0o600)
	})
}

// with calls f with the node's authority unless the node has stopped.
func (n *node) with(ctx context.Context, f func(ctx context.Context, a *authority.Authority) error) error {
	n.mu.Lock()
	a, life := n.a, n.ctx
	n.mu.Unlock()
	if a == nil {
		return fmt.Errorf("%s has stopped", n.name)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(life, cancel)()
	return f(ctx, a)
}

// running returns the node's authority, or nil.
func (n *node) running() *authority.Authority {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.a
}

// add adds a node: the first forms the cluster, the others join it as voters.
func (s *sim) add(ctx context.Context) (*node, error) {
	s.made++
	name := fmt.Sprintf("n%d", s.made)
	n := &node{s: s, name: name, disk: new(disk), dir: filepath.Join(s.dir, name+"-1")}
	if err := os.MkdirAll(n.dir, 0o700); err != nil {
		return nil, err
	}
	prepare := func(cfg *authority.Config) error { cfg.Bootstrap = true; return nil }
	if s.made > 1 {
		prepare = func(cfg *authority.Config) error { return s.join(ctx, cfg) }
	}
	if err := n.start(ctx, prepare); err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	return n, nil
}

func (s *sim) join(ctx context.Context, cfg *authority.Config) error {
	root := s.client("operator", s.root)
	defer root.Close()
	token, err := root.ClusterToken(ctx, api.ClusterTokenRequest{})
	if err != nil {
		return err
	}
	req, err := authority.PrepareJoin(*cfg, token.Token)
	if err != nil {
		return err
	}
	cfg.Joined, err = root.ClusterJoin(ctx, *req)
	return err
}

// client returns a client of all nodes, on a host of its own.
func (s *sim) client(host, token string) *client.Client {
	c, err := client.New(s.clientConfig(s.net.Host(host), token))
	if err != nil {
		panic("chaos: " + err.Error()) // the configuration is our own
	}
	return c
}

func (s *sim) clientConfig(h *simnet.Host, token string) client.Config {
	return client.Config{
		Addrs: slices.Clone(s.known), CAFingerprint: s.fingerprint, Token: token, Timeout: 3 * time.Second, Attempts: 60,
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) { return h.Dial(ctx, addr) },
	}
}
