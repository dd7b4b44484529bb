package authority

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/seal"
	"github.com/writ-dev/writ/authority/state"
	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/raftstore"
)

// PeerConfig says how a node talks with the others of its cluster.
type PeerConfig struct {
	// Listener is where peers connect, plain TCP. The node closes it. Required.
	Listener net.Listener

	// Advertise is where peers reach this node, host:port. Empty: the
	// Listener's address. It may change from one start to the next.
	Advertise string

	// API is where clients reach this node, host:port, for status. Optional.
	API string

	// Profile sets Raft's timeouts. Empty: raftstore.ProfileLAN.
	Profile raftstore.Profile

	// Heartbeat, Election and Lease set Raft's timeouts one by one, as those of
	// raftstore.Config. 0: the Profile's; a Lease of half the Heartbeat.
	Heartbeat, Election, Lease time.Duration

	// JoinWait bounds how long a node waits that has just joined and that no leader
	// reaches. 0: DefaultJoinWait. A node that starts again waits for as long as it
	// takes.
	JoinWait time.Duration

	// Dial connects to a peer, for tests and proxies. Nil: TCP.
	Dial func(ctx context.Context, address string) (net.Conn, error)
}

// DefaultJoinWait is enough for a failover, and for a machine that is busy.
const DefaultJoinWait = time.Minute

func (cfg *PeerConfig) address() string {
	if cfg.Advertise != "" {
		return cfg.Advertise
	}
	return cfg.Listener.Addr().String()
}

// The calls between nodes, besides raftstore's. Numbers are on the wire: append,
// never reorder.
const (
	methodHello   = raftstore.FirstMethod     // → hello
	methodForward = raftstore.FirstMethod + 1 // Forwarded → Answer
	methodRecords = raftstore.FirstMethod + 2 // recordsRequest → records, see answerRecords
	methodRecall  = raftstore.FirstMethod + 3 // []recall → nothing
	methodMember  = raftstore.FirstMethod + 4 // state.MemberRecord of the caller: its addresses → nothing
	methodPeers   = raftstore.FirstMethod + 5 // → []api.ClusterPeer: the members
	methodRoot    = raftstore.FirstMethod + 6 // rootRequest → rootAnswer
	methodRekey   = raftstore.FirstMethod + 7 // state.RekeyMember of the caller, but for its Wrap → nothing
)

// peers is this node among the others: who it is to them, and whom it takes for
// whom.
type peers struct {
	cfg       *PeerConfig
	node      string
	cluster   string // id; known before there is a state
	recipient []byte
	machine   *state.Machine // nil until it is open
	transport *raftstore.Transport
	clock     func() time.Time
	warn      func(msg string, args ...any)

	key ed25519.PrivateKey

	mu    sync.Mutex
	cert  *tls.Certificate  // guarded by mu
	by    *issuer           // of cert; nil: another's, or its own; guarded by mu
	renew time.Time         // guarded by mu
	ca    *certificates     // guarded by mu; nil until the CA's key is open
	file  *nodeFile         // as it was last written; guarded by mu
	heard map[string]string // where members said that they are, until a record does; guarded by mu
	dir   string
}

// nodeFile is what a node keeps beside its state, to meet its peers before it
// has one. It holds no secret.
type nodeFile struct {
	Cluster     string            `json:"cluster"`
	Node        string            `json:"node"`
	Key         []byte            `json:"key,omitempty"`         // SHA-256 of its SPKI: with another key the node does not start
	Certificate []byte            `json:"certificate,omitempty"` // DER
	CA          []byte            `json:"ca,omitempty"`          // DER
	Peers       []api.ClusterPeer `json:"peers,omitempty"`

	// In which the state had this node, with this key, as a member: by a later
	// incarnation that does not know it, it is superseded.
	Incarnation uint64 `json:"incarnation,omitempty"`
}

const nodeFileName = "node.json"

func readNodeFile(dir string) (*nodeFile, error) {
	b, err := os.ReadFile(filepath.Join(dir, nodeFileName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	f := new(nodeFile)
	if err := json.Unmarshal(b, f); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrConfig, nodeFileName, err)
	}
	return f, nil
}

func (f *nodeFile) write(dir string) error {
	b, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(dir, nodeFileName)
	temp, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = temp.Write(append(b, '\n'))
	if err = errors.Join(err, temp.Sync(), temp.Close()); err != nil {
		return err
	}
	return os.Rename(temp.Name(), path)
}

// openPeers starts to listen for peers, which are refused until the state says
// who they are, but for those that a new node was told of when it joined.
func openPeers(cfg Config, identity *seal.Identity, file *nodeFile) (*peers, error) {
	if cfg.Peers.Listener == nil {
		return nil, fmt.Errorf("%w: Peers: no Listener", ErrConfig)
	}
	p := &peers{
		cfg: cfg.Peers, node: cfg.NodeID, cluster: file.Cluster, recipient: identity.Recipient().Bytes(),
		clock: cfg.Clock, warn: cfg.Logger.Warn, file: file, heard: make(map[string]string), dir: cfg.Dir,
	}
	var err error
	if p.key, err = identity.PeerKey(); err != nil {
		return nil, err
	}
	if file.Certificate != nil {
		p.cert = &tls.Certificate{Certificate: [][]byte{file.Certificate, file.CA}, PrivateKey: p.key}
	}
	p.transport, err = raftstore.NewTransport(raftstore.TransportConfig{
		NodeID: cfg.NodeID, Listener: p.cfg.Listener, Advertise: p.cfg.address(), Cluster: file.Cluster,
		Certificate: p.certificate, Authorize: p.authorize, Removed: p.removed,
		Incarnation: p.incarnation, Superseded: p.superseded, Address: p.addressOf,
		Profile: p.cfg.Profile, Dial: p.cfg.Dial, Logger: cfg.Logger,
	})
	return p, err
}

// record is this node as a member.
func (p *peers) record() state.MemberRecord {
	return state.MemberRecord{
		ID: p.node, Key: state.PeerKeyDigest(p.key.Public().(ed25519.PublicKey)), Recipient: p.recipient,
		Raft: p.cfg.address(), API: p.cfg.API, Voter: true, State: state.MemberActive,
	}
}

// authorize says whose key it is at the other end. Nothing but the key counts:
// members whose certificates have expired must still find a quorum.
func (p *peers) authorize(s tls.ConnectionState) (string, error) {
	leaf, digest := s.PeerCertificates[0], keyShown(s)
	id, ok := p.holder(digest)
	if !ok {
		return "", fmt.Errorf("no member of this cluster has the key %x", digest[:8])
	}
	if now := p.clock(); now.After(leaf.NotAfter) || now.Before(leaf.NotBefore) {
		p.warn("a peer's certificate is out of date", "node", id, "not_before", leaf.NotBefore, "not_after", leaf.NotAfter)
	}
	return id, nil
}

// keyShown is how members know the key at the other end.
func keyShown(s tls.ConnectionState) state.Digest {
	return sha256.Sum256(s.PeerCertificates[0].RawSubjectPublicKeyInfo)
}

// removed reports whether the key at the other end is of a node that was removed.
func (p *peers) removed(s tls.ConnectionState) bool {
	m := p.state()
	return m != nil && m.RemovedKey(keyShown(s))
}

// incarnation is told to nodes that are not known. The first left nobody behind.
func (p *peers) incarnation() uint64 {
	if m := p.state(); m != nil {
		if now := m.Cluster().Incarnation; now > 1 {
			return now
		}
	}
	return 0
}

// superseded reports whether a member that does not know this node is of another
// cluster by now: one that was recovered, or restored, from before or without it.
// There is one log, so what a later incarnation knows begins with what an earlier
// one did; it forgets a member only by beginning anew.
func (p *peers) superseded(incarnation uint64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.file.Incarnation != 0 && incarnation > p.file.Incarnation
}

// holder returns the member that a key is pinned for.
func (p *peers) holder(digest state.Digest) (string, bool) {
	if m := p.state(); m != nil && m.Cluster().ID != "" {
		r, ok := m.MemberByKey(digest)
		return r.ID, ok
	}
	for _, known := range p.known() {
		if string(known.Key) == string(digest[:]) {
			return known.Node, true
		}
	}
	return "", false
}

// known are the peers that were written down: all there is to go by until the
// state is there. After a restart it comes from a peer, or once there is a
// quorum, since nobody knows before what of the log is committed.
func (p *peers) known() []api.ClusterPeer {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.file.Peers
}

// remember writes down who the peers are, and the incarnation in which the state has
// this node as a member; 0: as it was.
func (p *peers) remember(list []api.ClusterPeer, incarnation uint64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	file := *p.file
	file.Peers = list
	file.Incarnation = max(file.Incarnation, incarnation)
	if p.ca != nil && p.cert != nil {
		file.Certificate, file.CA = p.cert.Certificate[0], p.cert.Certificate[1]
	}
	if err := file.write(p.dir); err != nil {
		return err
	}
	p.file = &file
	return nil
}

// learn asks the peers that were written down for those that have joined since.
func (p *peers) learn(ctx context.Context) {
	for _, known := range p.known() {
		ctx, cancel := context.WithTimeout(ctx, sampleWait)
		b, err := p.callAt(ctx, known.Node, known.Raft, methodPeers, struct{}{})
		cancel()
		var list []api.ClusterPeer
		if err == nil {
			err = json.Unmarshal(b, &list)
		}
		if err != nil || len(list) == 0 {
			continue
		}
		if err := p.remember(list, 0); err != nil {
			p.warn("writing down the peers failed", "error", err)
		}
		return
	}
}

func (p *peers) state() *state.Machine {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.machine
}

func (p *peers) setState(m *state.Machine) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.machine = m
}

// hear takes a member's own word for where it is: nothing can be recorded without a
// quorum, and there may be none before this node finds it. It is dialed there and
// nothing more: whoever answers has to prove its key.
func (p *peers) hear(r *state.MemberRecord) {
	if !capability.ValidName(r.Raft, state.MaxAddress) {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.heard[r.ID] = r.Raft
}

// forgetHeard goes by the records again: whoever is elsewhere goes on saying so.
func (p *peers) forgetHeard() {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.heard)
}

// addressOf is where a member says that it is.
func (p *peers) addressOf(id string) string {
	p.mu.Lock()
	heard := p.heard[id]
	p.mu.Unlock()
	if heard != "" {
		return heard
	}
	if m := p.state(); m != nil {
		if r, ok := m.Member(id); ok {
			return r.Raft
		}
	}
	return ""
}

// others are the peers that this node could ask, with their addresses.
func (p *peers) others() map[string]string {
	all := make(map[string]string)
	if m := p.state(); m != nil {
		for _, r := range m.Members() {
			if r.State == state.MemberActive && r.ID != p.node {
				all[r.ID] = r.Raft
			}
		}
	}
	if len(all) == 0 {
		for _, known := range p.known() {
			all[known.Node] = known.Raft
		}
	}
	return all
}

// adopt has certificates signed by the cluster's CA from now on.
func (p *peers) adopt(ca *certificates) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ca = ca
	p.renew = time.Time{}
}

// certificate returns what this node shows to its peers, renewed after two
// thirds of its life. The key stays, since peers know it. Until the CA's key is
// open it signs itself: what peers judge by is the key.
func (p *peers) certificate() (*tls.Certificate, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.clock()
	var ca *issuer
	if p.ca != nil {
		var err error
		if ca, err = p.ca.issuer(); err != nil {
			p.warn("opening the CA failed", "error", err)
		}
	}
	if p.cert != nil && (ca == nil || ca == p.by && now.Before(p.renew)) {
		return p.cert, nil
	}
	if ca == nil {
		der, err := signNode(nil, p.key, p.node, nil, p.key.Public(), now)
		if err != nil {
			return nil, err
		}
		return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: p.key}, nil
	}
	chain, err := ca.sign(p.node, nil, p.key.Public(), now)
	if err != nil {
		return nil, err
	}
	p.cert, p.by, p.renew = &tls.Certificate{Certificate: chain, PrivateKey: p.key}, ca, now.Add(nodeLife*2/3)
	return p.cert, nil
}

// signNode signs a node's certificate; with no CA it is signed by its own key.
func signNode(ca *x509.Certificate, signer crypto.Signer, node string, hosts []string, key crypto.PublicKey, now time.Time) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: node},
		NotBefore:    now.Add(-backdate),
		NotAfter:     now.Add(nodeLife),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, host := range hosts {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	if ca == nil {
		ca = template
	}
	return x509.CreateCertificate(rand.Reader, template, ca, key, signer)
}

// call has a member answer, and decodes its answer; answer may be nil.
func (a *Authority) call(ctx context.Context, node string, method byte, request, answer any) error {
	b, err := json.Marshal(request)
	if err != nil {
		return err
	}
	out, err := a.store.Call(ctx, node, method, b)
	if err != nil || answer == nil {
		return err
	}
	return json.Unmarshal(out, answer)
}

// callAt is call to a node that Raft may not know, at an address.
func (p *peers) callAt(ctx context.Context, node, address string, method byte, request any) ([]byte, error) {
	b, err := json.Marshal(request)
	if err != nil {
		return nil, err
	}
	return p.transport.Call(ctx, node, address, method, b)
}

// handle has calls of a method answered with what h returns.
func handle[Req, Ans any](p *peers, method byte, h func(ctx context.Context, from string, req *Req) (*Ans, error)) {
	p.transport.Handle(method, func(ctx context.Context, from string, request []byte) ([]byte, error) {
		req := new(Req)
		if err := json.Unmarshal(request, req); err != nil {
			return nil, err
		}
		answer, err := h(ctx, from, req)
		if err != nil {
			return nil, err
		}
		return json.Marshal(answer)
	})
}
