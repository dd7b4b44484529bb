package raftstore

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"
)

// testKey is the key of a node in tests, the same in every process.
func testKey(id string) ed25519.PrivateKey {
	seed := sha256.Sum256([]byte("a node's key, for tests: " + id))
	return ed25519.NewKeyFromSeed(seed[:])
}

// testCertificate is of key, and long expired unless it is to be valid.
func testCertificate(key ed25519.PrivateKey, valid bool) *tls.Certificate {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "node"},
		NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1000, 0),
	}
	if valid {
		template.NotAfter = time.Now().Add(time.Hour)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		panic(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// testMembers authorises by the keys of these nodes.
func testMembers(ids ...string) func(tls.ConnectionState) (string, error) {
	return func(state tls.ConnectionState) (string, error) {
		key, _ := state.PeerCertificates[0].PublicKey.(ed25519.PublicKey)
		for _, id := range ids {
			if key.Equal(testKey(id).Public()) {
				return id, nil
			}
		}
		return "", errors.New("no member has this key")
	}
}

// testTransport listens on a free port of loopback.
func testTransport(t testing.TB, id string, change func(*TransportConfig)) *Transport {
	t.Helper()
	trans, err := newTestTransport(id, change)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { trans.Close() })
	return trans
}

func newTestTransport(id string, change func(*TransportConfig)) (*Transport, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	certificate := testCertificate(testKey(id), false) // expired: must not matter
	cfg := TransportConfig{
		NodeID: id, Listener: l, Cluster: "test",
		Certificate: func() (*tls.Certificate, error) { return certificate, nil },
		Authorize:   testMembers("n1", "n2", "n3", "n4", "n5"),
	}
	if change != nil {
		change(&cfg)
	}
	return NewTransport(cfg)
}

// mesh is several nodes in one process, over TLS on loopback.
type mesh struct {
	t     testing.TB
	nodes map[string]*meshNode
	ids   []string
}

type meshNode struct {
	id    string
	cfg   Config
	sm    *ledger
	trans *Transport
	store *Store
	out   *wires // of connections that this node makes
	fatal chan error
}

// newMesh forms a cluster of n voters, n1 leading.
func newMesh(t testing.TB, n int, change func(*Config)) *mesh {
	t.Helper()
	m := &mesh{t: t, nodes: map[string]*meshNode{}}
	for i := range n {
		node := m.open(fmt.Sprintf("n%d", i+1), i == 0, change)
		if i == 0 {
			if _, err := node.store.WaitLeader(testContext(t)); err != nil {
				t.Fatal(err)
			}
			continue
		}
		m.join(m.nodes["n1"], node)
	}
	return m
}

// open starts a node, which has yet to join unless it bootstraps.
func (m *mesh) open(id string, bootstrap bool, change func(*Config)) *meshNode {
	m.t.Helper()
	n := &meshNode{id: id, sm: &ledger{}, out: newWires(), fatal: make(chan error, 1)}
	n.cfg = Config{
		Dir: filepath.Join(m.t.TempDir(), id), NodeID: id, Bootstrap: bootstrap, Join: !bootstrap,
		OnFatal: func(err error) { n.fatal <- err },
		// A machine that is busy with other tests must not depose a leader.
		HeartbeatTimeout: time.Second,
	}
	if change != nil {
		change(&n.cfg)
	}
	m.start(n)
	m.nodes[id] = n
	m.ids = append(m.ids, id)
	return n
}

// start opens a node's store, on a port of its own.
func (m *mesh) start(n *meshNode) {
	m.t.Helper()
	n.trans = testTransport(m.t, n.id, func(cfg *TransportConfig) { cfg.Dial = n.out.dial })
	n.cfg.Transport = n.trans
	var err error
	if n.store, err = Open(n.cfg, n.sm); err != nil {
		m.t.Fatal(err)
	}
	s := n.store
	m.t.Cleanup(func() { s.Close() })
}

// join makes a node a non-voter and then a voter.
func (m *mesh) join(leader, n *meshNode) {
	m.t.Helper()
	ctx := testContext(m.t)
	if err := leader.store.AddNonvoter(ctx, n.id, string(n.trans.LocalAddr())); err != nil {
		m.t.Fatal(err)
	}
	if err := n.store.WaitApplied(ctx, leader.store.AppliedIndex()); err != nil {
		m.t.Fatal(err)
	}
	if err := leader.store.Promote(ctx, n.id, false); err != nil {
		m.t.Fatal(err)
	}
}

// leader waits until one of these nodes leads, of all if none is named.
func (m *mesh) leader(among ...string) *meshNode {
	m.t.Helper()
	if len(among) == 0 {
		among = m.ids
	}
	ctx, cancel := context.WithCancel(testContext(m.t))
	defer cancel()
	won := make(chan *meshNode, len(among))
	for _, id := range among {
		go func() {
			if _, err := m.nodes[id].store.WaitLeader(ctx); err == nil {
				won <- m.nodes[id]
			}
		}()
	}
	select {
	case n := <-won:
		return n
	case <-ctx.Done():
		m.t.Fatal("no leader")
		return nil
	}
}

// atLeader has whoever leads do it, again where leadership moved meanwhile, and
// returns who that was.
func (m *mesh) atLeader(do func(*Store) error) *meshNode {
	m.t.Helper()
	for {
		n := m.leader()
		switch err := do(n.store); {
		case err == nil:
			return n
		case !errors.Is(err, ErrNotLeader) && !errors.Is(err, ErrIndeterminate):
			m.t.Fatal(err)
		}
	}
}

// lead has a node take over.
func (m *mesh) lead(id string) *meshNode {
	m.t.Helper()
	for {
		n := m.leader()
		if n.id == id {
			return n
		}
		if err := n.store.TransferLeadership(testContext(m.t), id); err != nil {
			m.t.Log(err)
		}
	}
}

// others are the ids of all nodes but one.
func (m *mesh) others(id string) []string {
	var rest []string
	for _, other := range m.ids {
		if other != id {
			rest = append(rest, other)
		}
	}
	return rest
}

// isolate makes the network around a node dark, both ways, or lights it again.
func (m *mesh) isolate(id string, dark bool) {
	for _, n := range m.nodes {
		for other, to := range m.nodes {
			if n.id != other && (n.id == id || other == id) {
				n.out.set(string(to.trans.LocalAddr()), func(w *wire) { w.dark = dark })
			}
		}
	}
}

// wires are the connections that a node makes, which tests can disturb: nothing
// is refused, it just does not arrive, like in a network.
type wires struct {
	mu     sync.Mutex
	to     map[string]wire // by address
	change chan struct{}   // closed when to changes
}

type wire struct {
	dark      bool          // nothing arrives either way
	sendDark  bool          // nothing gets there
	replyDark bool          // nothing comes back
	reply     time.Duration // how long what comes back takes
}

func newWires() *wires { return &wires{to: map[string]wire{}, change: make(chan struct{})} }

func (w *wires) set(address string, change func(*wire)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	was := w.to[address]
	change(&was)
	w.to[address] = was
	close(w.change)
	w.change = make(chan struct{})
}

func (w *wires) get(address string) (wire, <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.to[address], w.change
}

func (w *wires) dial(ctx context.Context, address string) (net.Conn, error) {
	for {
		state, change := w.get(address)
		if !state.dark && !state.sendDark {
			break
		}
		select {
		case <-change:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	c := &wireConn{Conn: conn, wires: w, address: address, in: make(chan piece, 64), closed: make(chan struct{})}
	go c.receive()
	return c, nil
}

type piece struct {
	b   []byte
	at  time.Time
	err error
}

// wireConn holds back what it reads and writes as its wire says.
type wireConn struct {
	net.Conn
	wires   *wires
	address string
	in      chan piece
	rest    []byte
	once    sync.Once
	closed  chan struct{}

	mu   sync.Mutex
	late deadline // for reading
	slow deadline // for writing
}

// deadline is a time that can be changed while somebody waits for it.
type deadline struct {
	at     time.Time
	change chan struct{}
}

func (c *wireConn) receive() {
	for {
		b := make([]byte, 16<<10)
		n, err := c.Conn.Read(b)
		select {
		case c.in <- piece{b[:n], time.Now(), err}:
		case <-c.closed:
			return
		}
		if err != nil {
			return
		}
	}
}

func (c *wireConn) Read(b []byte) (int, error) {
	if len(c.rest) > 0 {
		n := copy(b, c.rest)
		c.rest = c.rest[n:]
		return n, nil
	}
	var p piece
	if err := c.wait(&c.late, func() <-chan piece { return c.in }, &p); err != nil {
		return 0, err
	}
	for {
		state, change := c.wires.get(c.address)
		var ready <-chan time.Time
		if !state.dark && !state.replyDark {
			ready = time.After(time.Until(p.at.Add(state.reply)))
		}
		expired, moved := c.expiry(&c.late)
		select {
		case <-ready:
			n := copy(b, p.b)
			c.rest = p.b[n:]
			if n == 0 && p.err != nil {
				return 0, p.err
			}
			return n, nil
		case <-change:
		case <-moved:
		case <-expired:
			return 0, timeoutError{}
		case <-c.closed:
			return 0, net.ErrClosed
		}
	}
}

func (c *wireConn) wait(d *deadline, from func() <-chan piece, p *piece) error {
	for {
		expired, moved := c.expiry(d)
		select {
		case *p = <-from():
			return nil
		case <-moved:
		case <-expired:
			return timeoutError{}
		case <-c.closed:
			return net.ErrClosed
		}
	}
}

func (c *wireConn) Write(b []byte) (int, error) {
	for {
		state, change := c.wires.get(c.address)
		if !state.dark && !state.sendDark {
			return c.Conn.Write(b)
		}
		expired, moved := c.expiry(&c.slow)
		select {
		case <-change:
		case <-moved:
		case <-expired:
			return 0, timeoutError{}
		case <-c.closed:
			return 0, net.ErrClosed
		}
	}
}

func (c *wireConn) expiry(d *deadline) (expired <-chan time.Time, moved <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if d.change == nil {
		d.change = make(chan struct{})
	}
	if !d.at.IsZero() {
		expired = time.After(time.Until(d.at))
	}
	return expired, d.change
}

func (c *wireConn) move(d *deadline, at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	d.at = at
	if d.change != nil {
		close(d.change)
	}
	d.change = make(chan struct{})
}

func (c *wireConn) SetReadDeadline(at time.Time) error  { c.move(&c.late, at); return nil }
func (c *wireConn) SetWriteDeadline(at time.Time) error { c.move(&c.slow, at); return nil }
func (c *wireConn) SetDeadline(at time.Time) error {
	c.move(&c.late, at)
	c.move(&c.slow, at)
	return nil
}

func (c *wireConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

type timeoutError struct{}

func (timeoutError) Error() string   { return "i/o timeout on a test wire" }
func (timeoutError) Timeout() bool   { return true }
func (timeoutError) Temporary() bool { return true }

// report logs how long something took, if it was done often enough to say.
func report(t testing.TB, what string, took []time.Duration) {
	if len(took) < 20 {
		return
	}
	slices.Sort(took)
	t.Logf("%s, %d times: p50 %v, p99 %v, most %v", what, len(took),
		took[len(took)/2].Round(time.Millisecond), took[len(took)*99/100].Round(time.Millisecond), took[len(took)-1].Round(time.Millisecond))
}
