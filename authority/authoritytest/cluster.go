package authoritytest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/writ-dev/writ/authority"
	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/authority/replica"
	"github.com/writ-dev/writ/authority/server"
)

// ClusterBound is the staleness bound of a cluster unless Options say otherwise.
const ClusterBound = 2 * time.Second

// Cluster is an authority of several nodes in one process, over TLS on loopback.
type Cluster struct {
	CAFingerprint string // hex
	RootToken     string // of audience writ; may do everything
	Dir           string
	Nodes         []*ClusterNode // n1, n2, …; those that have stopped included

	options Options
	mu      sync.Mutex
	names   map[string]string  // of nodes, by their address for peers; guarded by mu
	cut     map[[2]string]bool // whom whom does not reach; guarded by mu
}

// ClusterNode is one node of a Cluster. Authority and Server are nil while it is
// stopped. Its addresses stay its own.
type ClusterNode struct {
	Name      string
	Addr      string // of the API, host:port
	PeerAddr  string // for the other nodes, host:port
	Authority *authority.Authority
	Server    *server.Server
	// Skew is how far the node's clock is off, in nanoseconds.
	Skew atomic.Int64
	// Fatal gets what the node could not go on after: it has stopped taking part.
	Fatal chan error

	c      *Cluster
	dir    string
	end    context.CancelFunc
	served chan error
	conns  *conns
}

// StartCluster starts a cluster of n nodes, all voters, which ends with the
// test. At most one Options; RotateEvery and Authority hold for every node.
func StartCluster(t testing.TB, n int, options ...Options) *Cluster {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, stop, err := RunCluster(ctx, t.TempDir(), n, options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Errorf("stopping the cluster: %v", err)
		}
	})
	return c
}

// RunCluster is StartCluster without a test. ctx bounds the start only.
func RunCluster(ctx context.Context, dir string, n int, options ...Options) (c *Cluster, stop func() error, err error) {
	c = &Cluster{Dir: dir, names: make(map[string]string), cut: make(map[[2]string]bool)}
	if len(options) > 0 {
		c.options = options[0]
	}
	if c.options.Bound == 0 {
		c.options.Bound = ClusterBound
	}
	stop = func() error {
		var errs []error
		for _, node := range c.Nodes {
			errs = append(errs, node.Stop())
		}
		return errors.Join(errs...)
	}
	for range n {
		if _, err := c.Add(ctx, api.ClusterTokenRequest{}); err != nil {
			return nil, nil, errors.Join(err, stop())
		}
	}
	if err := c.WaitReady(ctx); err != nil {
		return nil, nil, errors.Join(err, stop())
	}
	return c, stop, nil
}

// Add adds a node: the first forms the cluster, the others join it, as voters
// unless r says otherwise. It returns once the node serves.
func (c *Cluster) Add(ctx context.Context, r api.ClusterTokenRequest) (*ClusterNode, error) {
	name := fmt.Sprintf("n%d", len(c.Nodes)+1)
	n := &ClusterNode{Name: name, c: c, dir: filepath.Join(c.Dir, name), Fatal: make(chan error, 1)}
	if err := os.MkdirAll(n.dir, 0o700); err != nil {
		return nil, err
	}
	for _, addr := range []*string{&n.Addr, &n.PeerAddr} {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		*addr = ln.Addr().String()
		ln.Close() // taken again at once
	}
	c.mu.Lock()
	c.names[n.PeerAddr] = name
	c.mu.Unlock()
	var err error
	if len(c.Nodes) == 0 {
		err = n.start(ctx, func(cfg *authority.Config) error { cfg.Bootstrap = true; return nil })
	} else {
		err = n.start(ctx, func(cfg *authority.Config) error { return c.join(ctx, cfg, r) })
	}
	if err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	c.Nodes = append(c.Nodes, n)
	return n, nil
}

// join has the cluster take in the node that cfg describes.
func (c *Cluster) join(ctx context.Context, cfg *authority.Config, r api.ClusterTokenRequest) error {
	root := c.Root()
	defer root.Close()
	token, err := root.ClusterToken(ctx, r)
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

// Start starts a node that has stopped, on the directory and the addresses that
// it had.
func (n *ClusterNode) Start(ctx context.Context) error {
	if n.Authority != nil {
		return nil
	}
	return n.start(ctx, func(*authority.Config) error { return nil })
}

func (n *ClusterNode) start(ctx context.Context, prepare func(*authority.Config) error) error {
	o := n.c.options
	peerListener, err := net.Listen("tcp", n.PeerAddr)
	if err != nil {
		return err
	}
	n.conns = newConns()
	cfg := authority.Config{
		Dir: filepath.Join(n.dir, "data"), KeyFile: filepath.Join(n.dir, "node.key"), NodeID: n.Name, Bound: o.Bound,
		RotateEvery: o.RotateEvery, Version: "test", Logger: o.Logger,
		Clock: func() time.Time { return time.Now().Add(time.Duration(n.Skew.Load())) },
		Peers: &authority.PeerConfig{
			Listener: n.conns.listen(peerListener), Advertise: n.PeerAddr, API: n.Addr, Dial: n.dial,
		},
		OnFatal: func(err error) {
			select {
			case n.Fatal <- err:
			default:
			}
		},
	}
	if o.Logger != nil {
		cfg.Logger = o.Logger.With("at", n.Name)
	}
	if o.Authority != nil {
		o.Authority(&cfg)
	}
	if err := prepare(&cfg); err != nil {
		return errors.Join(err, peerListener.Close())
	}
	a, formed, err := authority.Open(ctx, cfg)
	if err != nil {
		return err
	}
	if formed != nil {
		n.c.RootToken, n.c.CAFingerprint = formed.RootToken, fmt.Sprintf("%x", formed.CAFingerprint)
	}
	s, err := server.New(server.Config{Authority: a, Logger: cfg.Logger, Limits: o.Limits, TracerProvider: o.Tracing})
	if err != nil {
		return errors.Join(err, a.Close())
	}
	ln, err := net.Listen("tcp", n.Addr)
	if err != nil {
		return errors.Join(err, a.Close())
	}
	serving, cancel := context.WithCancel(context.Background())
	n.Authority, n.Server, n.end, n.served = a, s, cancel, make(chan error, 1)
	go func() { n.served <- s.Serve(serving, n.conns.listen(ln)) }()
	return nil
}

// Stop stops a node in good order: it hands leadership over first.
func (n *ClusterNode) Stop() error {
	if n.Authority == nil {
		return nil
	}
	n.end()
	err := errors.Join(<-n.served, n.Authority.Close())
	n.Authority, n.Server = nil, nil
	return err
}

// Kill stops a node as its peers and clients see a kill: every connection is
// cut at once, and nothing goes out any more. Its disk is left as it is; what
// kill -9 does to that is for tests with processes.
func (n *ClusterNode) Kill() error {
	if n.Authority == nil {
		return nil
	}
	n.conns.cut()
	return n.Stop()
}

// Isolate cuts a node off from its peers, both ways; clients still reach it.
func (c *Cluster) Isolate(name string) {
	for _, n := range c.Nodes {
		if n.Name != name {
			c.Cut(name, n.Name)
			c.Cut(n.Name, name)
		}
	}
}

// Cut has one node not reach another any more: connections that it made break,
// and it makes no new ones. Those that the other made stay.
func (c *Cluster) Cut(from, to string) {
	c.mu.Lock()
	c.cut[[2]string{from, to}] = true
	c.mu.Unlock()
	for _, n := range c.Nodes {
		if n.Name == from && n.conns != nil {
			n.conns.cutDialed(c.Node(to).PeerAddr)
		}
	}
}

// Heal undoes every Cut and Isolate.
func (c *Cluster) Heal() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.cut)
}

// dial connects to a peer, if the two are not cut off.
func (n *ClusterNode) dial(ctx context.Context, address string) (net.Conn, error) {
	n.c.mu.Lock()
	cut := n.c.cut[[2]string{n.Name, n.c.names[address]}]
	n.c.mu.Unlock()
	if cut {
		return nil, errors.New("cut off")
	}
	return n.conns.dial(ctx, address)
}

// Node returns a node by its name; it panics if there is none.
func (c *Cluster) Node(name string) *ClusterNode {
	for _, n := range c.Nodes {
		if n.Name == name {
			return n
		}
	}
	panic("authoritytest: no node " + name)
}

// Running are the nodes that have not been stopped.
func (c *Cluster) Running() []*ClusterNode {
	var running []*ClusterNode
	for _, n := range c.Nodes {
		if n.Authority != nil {
			running = append(running, n)
		}
	}
	return running
}

// Leader returns the node that leads, which it waits for.
func (c *Cluster) Leader(ctx context.Context) (*ClusterNode, error) {
	var leader *ClusterNode
	err := poll(ctx, func() bool {
		for _, n := range c.Running() {
			if n.Authority.Leads() {
				leader = n
				return true
			}
		}
		return false
	})
	return leader, err
}

// Followers are the running nodes but the leader.
func (c *Cluster) Followers(ctx context.Context) ([]*ClusterNode, error) {
	leader, err := c.Leader(ctx)
	if err != nil {
		return nil, err
	}
	var rest []*ClusterNode
	for _, n := range c.Running() {
		if n != leader {
			rest = append(rest, n)
		}
	}
	return rest, nil
}

// WaitReady waits until every running node can serve, and those that are to
// vote do.
func (c *Cluster) WaitReady(ctx context.Context) error {
	var last error
	err := poll(ctx, func() bool {
		leader, err := c.Leader(ctx)
		if err != nil {
			last = err
			return false
		}
		for _, n := range c.Running() {
			if last = n.Authority.Ready(ctx); last != nil {
				return false
			}
		}
		for _, s := range leader.Authority.ClusterStatus(ctx).Nodes {
			if s.State != "active" && s.State != "removed" || s.State == "active" && s.Wanted != s.Voter {
				last = fmt.Errorf("node %s is not yet as it is to be", s.Node)
				return false
			}
		}
		return true
	})
	if err != nil {
		return fmt.Errorf("%w: %w", err, last)
	}
	return nil
}

// WaitApplied waits until every running node has applied what the leader has by now.
func (c *Cluster) WaitApplied(ctx context.Context) error {
	leader, err := c.Leader(ctx)
	if err != nil {
		return err
	}
	index := leader.Authority.Metrics().Applied
	return poll(ctx, func() bool {
		return !slices.ContainsFunc(c.Running(), func(n *ClusterNode) bool { return n.Authority.Metrics().Applied < index })
	})
}

func poll(ctx context.Context, done func() bool) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// Addrs are the addresses of all nodes' APIs.
func (c *Cluster) Addrs() []string {
	var addrs []string
	for _, n := range c.Nodes {
		addrs = append(addrs, n.Addr)
	}
	return addrs
}

// Config is a client's configuration for all nodes with a credential.
func (c *Cluster) Config(token string) client.Config {
	return client.Config{Addrs: c.Addrs(), CAFingerprint: c.CAFingerprint, Token: token, Timeout: 3 * time.Second, Attempts: 30}
}

// Root returns a client of all nodes with the root token.
func (c *Cluster) Root() *client.Client { return c.Client(c.RootToken) }

// Client returns a client of all nodes with this credential.
func (c *Cluster) Client(token string) *client.Client { return mustClient(c.Config(token)) }

func mustClient(cfg client.Config) *client.Client {
	c, err := client.New(cfg)
	if err != nil {
		panic("authoritytest: " + err.Error()) // the configuration is our own
	}
	return c
}

// Client returns a client of this node alone with this credential.
func (n *ClusterNode) Client(token string) *client.Client {
	cfg := n.c.Config(token)
	cfg.Addrs = []string{n.Addr}
	return mustClient(cfg)
}

// Root returns a client of this node alone with the root token.
func (n *ClusterNode) Root() *client.Client { return n.Client(n.c.RootToken) }

// Join adds a service, joins it and returns its credential.
func (c *Cluster) Join(ctx context.Context, r api.ServiceRequest) (string, error) {
	root := c.Root()
	defer root.Close()
	return join(ctx, root, r)
}

// Replica opens a replica for a fresh service of these audiences, which ends
// with the test. nodes are those that it knows, in its order; none: all.
func (c *Cluster) Replica(t testing.TB, name string, audiences []string, nodes ...*ClusterNode) *replica.Replica {
	t.Helper()
	token, err := c.Join(t.Context(), api.ServiceRequest{Name: name, Audiences: audiences})
	if err != nil {
		t.Fatal(err)
	}
	cfg := c.Config(token)
	if len(nodes) > 0 {
		cfg.Addrs = nil
		for _, n := range nodes {
			cfg.Addrs = append(cfg.Addrs, n.Addr)
		}
	}
	own := mustClient(cfg)
	t.Cleanup(own.Close)
	return Open(t, replica.Config{Client: own, Audiences: audiences})
}

// Mint issues a token through any node, for 15 minutes.
func (c *Cluster) Mint(t testing.TB, audience, subject string, caveats ...string) *api.TokenResponse {
	t.Helper()
	root := c.Root()
	defer root.Close()
	return mint(t, root, audience, subject, caveats...)
}

// conns are the connections of one node, so that they can be cut.
type conns struct {
	mu   sync.Mutex
	open map[*trackedConn]struct{} // guarded by mu; nil once cut
}

func newConns() *conns { return &conns{open: make(map[*trackedConn]struct{})} }

type trackedConn struct {
	net.Conn
	in     *conns
	dialed string // the address, if this end made it
}

// Close implements net.Conn.
func (t *trackedConn) Close() error {
	t.in.mu.Lock()
	delete(t.in.open, t)
	t.in.mu.Unlock()
	return t.Conn.Close()
}

func (c *conns) track(conn net.Conn, dialed string) (net.Conn, error) {
	t := &trackedConn{conn, c, dialed}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open == nil {
		conn.Close()
		return nil, net.ErrClosed
	}
	c.open[t] = struct{}{}
	return t, nil
}

func (c *conns) dial(ctx context.Context, address string) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	return c.track(conn, address)
}

// cut ends every connection, those to come included.
func (c *conns) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for t := range c.open {
		t.Conn.Close()
	}
	c.open = nil
}

func (c *conns) cutDialed(address string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for t := range c.open {
		if t.dialed == address {
			t.Conn.Close()
		}
	}
}

type trackedListener struct {
	net.Listener
	in *conns
}

func (c *conns) listen(ln net.Listener) net.Listener { return trackedListener{ln, c} }

// Accept implements net.Listener.
func (l trackedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if tracked, err := l.in.track(conn, ""); err == nil {
			return tracked, nil
		}
	}
}
