package raftstore

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// Defaults and limits of a Transport.
const (
	DefaultMaxCall = 2 << 20 // bytes of a request or an answer
	MaxCalls       = 256     // of one peer under way at a time; one more is ErrBusy

	maxPeerConns  = 64 // accepted of one peer
	maxHandshakes = 64 // of strangers under way
	raftPool      = 3  // idle connections kept for Raft to each peer
)

// The protocols on a connection, by ALPN; the cluster's name follows.
const (
	protoRaft = "writ-raft/1"
	protoCall = "writ-call/1"
)

// TransportConfig says how nodes talk. NodeID, Listener, Certificate and
// Authorize are required.
type TransportConfig struct {
	NodeID string

	// Listener is where peers connect, plain TCP. The Transport closes it.
	Listener net.Listener

	// Advertise is the address that peers are to dial, host:port. Empty is
	// the Listener's.
	Advertise string

	// Cluster names the cluster, or one incarnation of it, in at most 200
	// bytes. Nodes of another name cannot connect.
	Cluster string

	// Certificate returns what this node shows, at every handshake, so that it
	// may be renewed.
	Certificate func() (*tls.Certificate, error)

	// Authorize returns the id of the node at the other end, by the key of its
	// certificate, or an error to refuse it. It is all there is: no chain, name
	// or lifetime is checked before, so that members whose certificates have
	// expired can still form a quorum. It runs at every handshake and in
	// Reauthorize.
	Authorize func(tls.ConnectionState) (id string, err error)

	// Removed reports whether a key that Authorize refuses is of a node that was
	// removed. Such a node is told so, once it has proved the key: it could not
	// learn otherwise why nobody lets it in. Nil never does.
	Removed func(tls.ConnectionState) bool

	// Incarnation numbers the cluster's life, as far as this node's state knows; 0
	// says nothing of it. A node whose key Authorize refuses, and that was not
	// removed, is told it once it has proved the key: a cluster that began anew from
	// one node, or from a backup, no longer knows those that it left behind. Nil is
	// always 0.
	Incarnation func() uint64

	// Superseded reports whether a member that is in an incarnation, and does not
	// know this node, shows that the cluster began anew without it. It then ends
	// like one that was removed. Nil never does.
	Superseded func(incarnation uint64) bool

	// Address returns where a node is, if it is known to be elsewhere than the
	// configuration says, or "". Nil is always "".
	Address func(id string) string

	// Profile sets the timeouts that are left zero below. DialTimeout is for
	// connection and handshake, IOTimeout for one message of Raft.
	Profile                Profile
	DialTimeout, IOTimeout time.Duration

	// MaxCall bounds the request and the answer of a call, in bytes.
	MaxCall int

	// Dial connects to an address, for tests and proxies. Nil is TCP.
	Dial func(ctx context.Context, address string) (net.Conn, error)

	// Logger may be nil.
	Logger *slog.Logger
}

func (cfg TransportConfig) withDefaults() (TransportConfig, error) {
	switch {
	case cfg.NodeID == "":
		return cfg, fmt.Errorf("%w: NodeID is empty", ErrConfig)
	case cfg.Listener == nil || cfg.Certificate == nil || cfg.Authorize == nil:
		return cfg, fmt.Errorf("%w: a transport needs Listener, Certificate and Authorize", ErrConfig)
	case len(cfg.Cluster) > 200:
		return cfg, fmt.Errorf("%w: cluster name of %d bytes", ErrConfig, len(cfg.Cluster))
	case cfg.MaxCall < 0 || cfg.MaxCall > 1<<30:
		return cfg, fmt.Errorf("%w: MaxCall", ErrConfig)
	}
	t, err := cfg.Profile.timing()
	if err != nil {
		return cfg, err
	}
	setDefault(&cfg.DialTimeout, t.dial)
	setDefault(&cfg.IOTimeout, t.io)
	setDefault(&cfg.MaxCall, DefaultMaxCall)
	setDefault(&cfg.Advertise, cfg.Listener.Addr().String())
	if cfg.Address == nil {
		cfg.Address = func(string) string { return "" }
	}
	if cfg.Removed == nil {
		cfg.Removed = func(tls.ConnectionState) bool { return false }
	}
	if cfg.Incarnation == nil {
		cfg.Incarnation = func() uint64 { return 0 }
	}
	if cfg.Superseded == nil {
		cfg.Superseded = func(uint64) bool { return false }
	}
	if cfg.Dial == nil {
		cfg.Dial = func(ctx context.Context, address string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", address)
		}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return cfg, nil
}

// Transport carries Raft and calls between nodes over TLS 1.3, on one listener.
// Both ends prove a key that the other's Authorize knows; who dials also checks
// that it reached the node it wanted. It implements raft.Transport and Peers.
// A Store that was given it closes it.
type Transport struct {
	raftTransport
	cfg     TransportConfig
	streams *streams
	tls     *tls.Config
	refused sayings         // of connections that came in
	unknown sayings         // of nodes that do not know this one
	ctx     context.Context // until Close
	cancel  context.CancelFunc

	mu       sync.Mutex
	conns    map[*peerConn]struct{} // guarded by mu; nil once closed
	perPeer  map[string]int         // guarded by mu; accepted connections
	callers  map[string]*caller     // guarded by mu; by node id
	handlers map[byte]Handler       // guarded by mu
}

// raftTransport hides most of raft.NetworkTransport's name in Transport.
type raftTransport struct{ *raft.NetworkTransport }

var (
	_ raft.Transport   = (*Transport)(nil)
	_ raft.WithPreVote = (*Transport)(nil)
	_ raft.WithClose   = (*Transport)(nil)
	_ Peers            = (*Transport)(nil)
)

// NewTransport starts to listen. Errors: ErrConfig.
func NewTransport(cfg TransportConfig) (*Transport, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	t := &Transport{
		cfg:   cfg,
		conns: map[*peerConn]struct{}{}, perPeer: map[string]int{},
		callers: map[string]*caller{}, handlers: map[byte]Handler{},
	}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	t.streams = &streams{t: t, accepted: make(chan net.Conn)}
	t.tls = &tls.Config{
		MinVersion: tls.VersionTLS13,
		// Every connection proves its keys anew; there are few.
		SessionTicketsDisabled: true,
		ClientAuth:             tls.RequireAnyClientCert, // judged by Authorize, in VerifyConnection
		InsecureSkipVerify:     true,                     // likewise
		GetCertificate:         func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return cfg.Certificate() },
		GetClientCertificate:   func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cfg.Certificate() },
	}
	t.NetworkTransport = raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream: t.streams, MaxPool: raftPool, Timeout: cfg.IOTimeout, Logger: newRaftLogger(cfg.Logger),
	})
	go t.listen()
	return t, nil
}

// protocol is the ALPN name of a protocol in this cluster.
func (t *Transport) protocol(name string) string {
	if t.cfg.Cluster == "" {
		return name
	}
	return name + "/" + t.cfg.Cluster
}

// tlsConfig is for one connection: what Authorize says of it ends up in id.
func (t *Transport) tlsConfig(id *string, protocols ...string) *tls.Config {
	cfg := t.tls.Clone()
	cfg.NextProtos = protocols
	cfg.VerifyConnection = func(state tls.ConnectionState) (err error) {
		*id, err = t.authorize(state)
		return err
	}
	return cfg
}

func (t *Transport) authorize(state tls.ConnectionState) (string, error) {
	if len(state.PeerCertificates) == 0 {
		return "", fmt.Errorf("%w: no certificate", ErrRefused)
	}
	id, err := t.cfg.Authorize(state)
	switch {
	case err != nil:
		return "", fmt.Errorf("%w: %w", ErrRefused, err)
	case id == "" || id == t.cfg.NodeID:
		return "", fmt.Errorf("%w: the key is of node %q", ErrRefused, id)
	}
	return id, nil
}

// listen accepts connections until Close.
func (t *Transport) listen() {
	slots := make(chan struct{}, maxHandshakes)
	for {
		raw, err := t.cfg.Listener.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) || t.ctx.Err() != nil {
				return
			}
			t.cfg.Logger.Error("accept", "error", err)
			select {
			case <-time.After(100 * time.Millisecond): // out of file descriptors, most likely
				continue
			case <-t.ctx.Done():
				return
			}
		}
		select {
		case slots <- struct{}{}:
		default:
			raw.Close()
			continue
		}
		go func() {
			conn, err := t.welcome(raw)
			<-slots
			if err != nil {
				raw.Close()
				t.logRefused(raw.RemoteAddr().String(), err)
				return
			}
			t.take(conn)
		}()
	}
}

// logRefused says whose connection was refused, of each host once in a while:
// a node that is not let in tries for ever, and so may a stranger.
func (t *Transport) logRefused(remote string, err error) {
	host, _, _ := net.SplitHostPort(remote)
	if held, now := t.refused.now(host); now {
		t.cfg.Logger.Warn("refused a connection", "remote", remote, "error", err, heldKey, held)
	}
}

// welcome makes the handshake of a connection that came in.
func (t *Transport) welcome(raw net.Conn) (*peerConn, error) {
	ctx, cancel := context.WithTimeout(t.ctx, t.cfg.DialTimeout)
	defer cancel()
	c := &peerConn{t: t, raw: raw, accepted: true}
	cfg := t.tlsConfig(&c.id, t.protocol(protoRaft), t.protocol(protoCall))
	authorized := cfg.VerifyConnection
	var refused error
	var farewell []byte // to a node that is refused, and has to know why
	cfg.VerifyConnection = func(state tls.ConnectionState) error {
		if refused = authorized(state); refused == nil || len(state.PeerCertificates) == 0 {
			return refused
		}
		if t.cfg.Removed(state) {
			refused = fmt.Errorf("%w: its node was removed", ErrRefused)
			farewell = []byte{removedByte}
			return nil
		}
		if incarnation := t.cfg.Incarnation(); incarnation != 0 {
			farewell = binary.BigEndian.AppendUint64([]byte{unknownByte}, incarnation)
			return nil
		}
		return refused
	}
	conn := tls.Server(raw, cfg)
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	if refused != nil {
		return nil, errors.Join(refused, t.greet(conn, farewell...))
	}
	c.Conn = conn
	if err := t.track(c); err != nil {
		return nil, err
	}
	if err := t.greet(conn, welcomeByte); err != nil {
		c.abort()
		return nil, err
	}
	return c, nil
}

// What whoever accepts a connection says first. Numbers are on the wire: append,
// never reorder.
const (
	welcomeByte = 1
	removedByte = 2 // the node that dialed was removed from the cluster
	unknownByte = 3 // it is not known; the incarnation follows, 8 bytes, big-endian
)

// greet says whether a connection was accepted, which a client does not know from
// the handshake in TLS 1.3.
func (t *Transport) greet(conn net.Conn, greeting ...byte) error {
	if err := conn.SetWriteDeadline(time.Now().Add(t.cfg.DialTimeout)); err != nil {
		return err
	}
	if _, err := conn.Write(greeting); err != nil {
		return err
	}
	return conn.SetWriteDeadline(time.Time{})
}

// take hands an accepted connection to its protocol.
func (t *Transport) take(c *peerConn) {
	switch c.state().NegotiatedProtocol {
	case t.protocol(protoRaft):
		select {
		case t.streams.accepted <- c:
		case <-t.ctx.Done():
			c.abort()
		}
	case t.protocol(protoCall):
		t.answer(c)
	default: // a client without ALPN
		c.abort()
	}
}

// dial connects to a node and makes sure that it is the one. ErrUnreachable or
// ErrRefused, with ErrRemoved where the node says that this one was removed.
func (t *Transport) dial(ctx context.Context, id, address, protocol string) (*peerConn, error) {
	ctx, cancel := context.WithTimeout(ctx, t.cfg.DialTimeout)
	defer cancel()
	raw, err := t.cfg.Dial(ctx, address)
	if err != nil {
		return nil, fmt.Errorf("%w: node %q at %s: %w", ErrUnreachable, id, address, err)
	}
	c := &peerConn{t: t, raw: raw}
	cfg := t.tlsConfig(&c.id, t.protocol(protocol))
	authorized := cfg.VerifyConnection
	cfg.VerifyConnection = func(state tls.ConnectionState) error {
		if err := authorized(state); err != nil {
			return err
		}
		if c.id != id {
			return fmt.Errorf("%w: it is node %q", ErrRefused, c.id)
		}
		return nil
	}
	conn := tls.Client(raw, cfg)
	c.Conn = conn
	if err = conn.HandshakeContext(ctx); err == nil {
		err = t.awaitWelcome(ctx, conn, id)
	}
	if err == nil && conn.ConnectionState().NegotiatedProtocol != t.protocol(protocol) {
		err = fmt.Errorf("%w: it is not of this cluster", ErrRefused)
	}
	if err == nil {
		err = t.track(c)
	}
	if err != nil {
		raw.Close()
		kind := ErrUnreachable
		if errors.Is(err, ErrRefused) || isAlert(err) {
			kind = ErrRefused
		}
		if errors.Is(err, ErrRemoved) {
			t.tellRemoved(id)
		}
		return nil, fmt.Errorf("%w: node %q at %s: %w", kind, id, address, err)
	}
	return c, nil
}

// awaitWelcome waits until the other end, node id, has judged this one's certificate.
func (t *Transport) awaitWelcome(ctx context.Context, conn *tls.Conn, id string) error {
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetReadDeadline(deadline); err != nil {
			return err
		}
	}
	stop := context.AfterFunc(ctx, func() { conn.NetConn().Close() })
	defer stop()
	var b [1]byte
	if _, err := io.ReadFull(conn, b[:]); err != nil {
		return err
	}
	switch b[0] {
	case welcomeByte:
		return conn.SetReadDeadline(time.Time{})
	case removedByte:
		return fmt.Errorf("%w: %w", ErrRefused, ErrRemoved)
	case unknownByte:
		var incarnation [8]byte
		if _, err := io.ReadFull(conn, incarnation[:]); err != nil {
			return err
		}
		return t.unknownTo(id, binary.BigEndian.Uint64(incarnation[:]))
	}
	return fmt.Errorf("%w: greeted with %d", ErrRefused, b[0])
}

// unknownTo is what it means that node id, which is in an incarnation, does not know
// this one. The log says it, of each node once in a while: whoever is refused tries
// for ever, and nobody else could tell why.
func (t *Transport) unknownTo(id string, incarnation uint64) error {
	if t.cfg.Superseded(incarnation) {
		t.cfg.Logger.Error("the cluster began anew without this node", "says", id, "incarnation", incarnation)
		return fmt.Errorf("%w: %w: by incarnation %d", ErrRefused, ErrRemoved, incarnation)
	}
	if held, now := t.unknown.now(id); now {
		t.cfg.Logger.Warn("a node does not know this one: it is behind, or the cluster began anew without this node",
			"node", id, "incarnation", incarnation, heldKey, held)
	}
	return fmt.Errorf("%w: in incarnation %d this node is not known", ErrRefused, incarnation)
}

// tellRemoved hands a node's word that this one was removed to whoever answers
// methodRemoved: the node was away when it was called.
func (t *Transport) tellRemoved(by string) {
	h := t.handler(methodRemoved)
	if h == nil {
		return // no Store yet, or none at all
	}
	if _, err := h(t.ctx, by, make([]byte, 8)); err != nil {
		t.cfg.Logger.Warn("a node says that this one was removed", "node", by, "error", err)
	}
}

// isAlert reports whether the other end refused the handshake.
func isAlert(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error"
}

// peerConn is a connection to or from a node that was authorised.
type peerConn struct {
	net.Conn
	raw      net.Conn
	t        *Transport
	id       string
	accepted bool
	extend   time.Duration // how far each Write moves the deadline, if at all

	end context.CancelFunc // called when it is closed; not nil: attended, and without deadlines
}

func (c *peerConn) state() tls.ConnectionState { return c.Conn.(*tls.Conn).ConnectionState() }

// Write implements net.Conn. To Raft, which sets one deadline for a whole message,
// however many entries are in it, every piece that got through is a reason to
// wait on.
func (c *peerConn) Write(b []byte) (int, error) {
	if c.extend > 0 {
		if err := c.SetDeadline(time.Now().Add(c.extend)); err != nil {
			return 0, err
		}
	}
	return c.Conn.Write(b)
}

// SetDeadline implements net.Conn.
func (c *peerConn) SetDeadline(t time.Time) error {
	if c.end != nil {
		return nil
	}
	return c.Conn.SetDeadline(t)
}

// Close says goodbye, and closes.
func (c *peerConn) Close() error {
	c.t.untrack(c)
	return c.Conn.Close()
}

// abort closes at once, whatever is under way.
func (c *peerConn) abort() {
	c.t.untrack(c)
	c.raw.Close()
}

func (t *Transport) track(c *peerConn) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.conns == nil {
		return ErrClosed
	}
	if c.accepted {
		if t.perPeer[c.id] >= maxPeerConns {
			return fmt.Errorf("%w: node %q has %d connections", ErrBusy, c.id, maxPeerConns)
		}
		t.perPeer[c.id]++
	}
	t.conns[c] = struct{}{}
	return nil
}

func (t *Transport) untrack(c *peerConn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.conns[c]; !ok {
		return
	}
	delete(t.conns, c)
	if c.end != nil {
		c.end()
	}
	if c.accepted {
		if t.perPeer[c.id]--; t.perPeer[c.id] == 0 {
			delete(t.perPeer, c.id)
		}
	}
}

// Reauthorize has Authorize judge every open connection again, and cuts those
// that it now refuses: for when a node is removed or a key changes.
func (t *Transport) Reauthorize() {
	for _, c := range t.open() {
		if id, err := t.authorize(c.state()); err != nil || id != c.id {
			t.cfg.Logger.Warn("cut a connection", "node", c.id, "error", err)
			c.abort()
		}
	}
}

func (t *Transport) open() []*peerConn {
	t.mu.Lock()
	defer t.mu.Unlock()
	list := make([]*peerConn, 0, len(t.conns))
	for c := range t.conns {
		list = append(list, c)
	}
	return list
}

// Close stops listening and cuts every connection.
func (t *Transport) Close() error {
	t.cancel()
	err := t.NetworkTransport.Close() // closes the listener too
	for _, c := range t.open() {
		c.abort()
	}
	t.mu.Lock()
	t.conns = nil
	t.mu.Unlock()
	return err
}

// address is where to dial a node.
func (t *Transport) address(id, configured string) string {
	if elsewhere := t.cfg.Address(id); elsewhere != "" {
		return elsewhere
	}
	return configured
}

// target is what raft.NetworkTransport takes for an address: id and address, so
// that streams.Dial knows whom to expect there.
func (t *Transport) target(id raft.ServerID, address raft.ServerAddress) raft.ServerAddress {
	return raft.ServerAddress(string(id) + "\x00" + t.address(string(id), string(address)))
}

// LocalAddr implements raft.Transport.
func (t *Transport) LocalAddr() raft.ServerAddress { return raft.ServerAddress(t.cfg.Advertise) }

// AppendEntriesPipeline implements raft.Transport.
func (t *Transport) AppendEntriesPipeline(id raft.ServerID, address raft.ServerAddress) (raft.AppendPipeline, error) {
	return t.NetworkTransport.AppendEntriesPipeline(id, t.target(id, address))
}

// AppendEntries implements raft.Transport.
func (t *Transport) AppendEntries(id raft.ServerID, address raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	return t.NetworkTransport.AppendEntries(id, t.target(id, address), args, resp)
}

// RequestVote implements raft.Transport.
func (t *Transport) RequestVote(id raft.ServerID, address raft.ServerAddress, args *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	return t.NetworkTransport.RequestVote(id, t.target(id, address), args, resp)
}

// RequestPreVote implements raft.WithPreVote.
func (t *Transport) RequestPreVote(id raft.ServerID, address raft.ServerAddress, args *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	return t.NetworkTransport.RequestPreVote(id, t.target(id, address), args, resp)
}

// InstallSnapshot implements raft.Transport.
func (t *Transport) InstallSnapshot(id raft.ServerID, address raft.ServerAddress, args *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	return t.NetworkTransport.InstallSnapshot(id, t.target(id, address)+snapshotMark, args, resp, data)
}

// TimeoutNow implements raft.Transport.
func (t *Transport) TimeoutNow(id raft.ServerID, address raft.ServerAddress, args *raft.TimeoutNowRequest, resp *raft.TimeoutNowResponse) error {
	return t.NetworkTransport.TimeoutNow(id, t.target(id, address), args, resp)
}

// EncodePeer implements raft.Transport.
func (t *Transport) EncodePeer(_ raft.ServerID, address raft.ServerAddress) []byte {
	return []byte(address)
}

// streams is the raft.StreamLayer of a Transport.
type streams struct {
	t        *Transport
	accepted chan net.Conn
}

// Accept implements net.Listener.
func (s *streams) Accept() (net.Conn, error) {
	select {
	case c := <-s.accepted:
		return c, nil
	case <-s.t.ctx.Done():
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (s *streams) Close() error { return s.t.cfg.Listener.Close() }

// Addr implements net.Listener.
func (s *streams) Addr() net.Addr { return s.t.cfg.Listener.Addr() }

// Dial implements raft.StreamLayer; target is Transport.target's.
func (s *streams) Dial(target raft.ServerAddress, _ time.Duration) (net.Conn, error) {
	to, snapshot := strings.CutSuffix(string(target), snapshotMark)
	id, address, _ := strings.Cut(to, "\x00")
	c, err := s.t.dial(s.t.ctx, id, address, protoRaft)
	if err != nil {
		return nil, err
	}
	if !snapshot {
		c.extend = s.t.cfg.IOTimeout
		return c, nil
	}
	return c, s.t.attended(c, address)
}
