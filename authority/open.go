package authority

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/audit"
	"github.com/writ-dev/writ/authority/seal"
	"github.com/writ-dev/writ/authority/state"
	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats"
	"github.com/writ-dev/writ/raftstore"
)

const minBound = 100 * time.Millisecond

// Authority is one node's services. It is safe for concurrent use.
type Authority struct {
	cfg     Config
	started time.Time

	machine  *state.Machine
	store    *raftstore.Store
	trail    *trail
	keys     *keyring
	checker  *caveats.Checker
	proposer *proposer
	fresh    *freshness
	certs    *certificates
	admin    *capability.Verifier
	nobody   *capability.RootKey // signs what is only looked at

	feeds       feeds
	attestation attestation
	recalls     *recalls

	peers        *peers  // nil: the node is alone
	clocks       *clocks // of the quorum; for one that is alone, its own
	reconcileNow chan struct{}
	deciding     sync.Mutex // held while an operator's change of a member is made, or refused and taken back
	aways        *aways

	stop      context.CancelFunc
	work      sync.WaitGroup
	closeOnce sync.Once
	closeErr  error
}

// lockedReader makes a source of randomness safe for concurrent use.
type lockedReader struct {
	mu sync.Mutex
	r  io.Reader
}

func (l *lockedReader) Read(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return io.ReadFull(l.r, b)
}

func (cfg Config) withDefaults() (Config, error) {
	wrong := func(format string, args ...any) (Config, error) {
		return cfg, fmt.Errorf("%w: %s", ErrConfig, fmt.Sprintf(format, args...))
	}
	if cfg.Bound == 0 {
		cfg.Bound = DefaultBound
	}
	if cfg.RotateEvery == 0 {
		cfg.RotateEvery = DefaultRotateEvery
	}
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	if cfg.Boot == nil {
		cfg.Boot = bootTime
	}
	if cfg.Rand == nil {
		cfg.Rand = rand.Reader
	}
	cfg.Rand = &lockedReader{r: cfg.Rand}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.SnapshotThreshold == 0 {
		cfg.SnapshotThreshold = DefaultSnapshotThreshold
	}
	switch {
	case cfg.Dir == "" || cfg.KeyFile == "":
		return wrong("Dir and KeyFile are required")
	case !capability.ValidName(cfg.NodeID, 50):
		return wrong("NodeID: 1 to 50 bytes of visible ASCII")
	case cfg.Bound < minBound:
		return wrong("Bound: at least %v", minBound)
	}
	for _, d := range cfg.Dischargers {
		if !capability.ValidName(d.Name, 64) {
			return wrong("discharger name %q: 1 to 64 bytes of visible ASCII", d.Name)
		}
	}
	return cfg, outside(cfg.KeyFile, cfg.Dir)
}

// outside makes sure that a copy of the data directory has no key in it.
func outside(file, dir string) error {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	parent, err := filepath.Abs(filepath.Dir(file))
	if err != nil {
		return err
	}
	if real, err := filepath.EvalSymlinks(abs); err == nil {
		abs = real
	}
	if real, err := filepath.EvalSymlinks(parent); err == nil {
		parent = real
	}
	rel, err := filepath.Rel(abs, parent)
	if err != nil {
		return err
	}
	if rel == "." || filepath.IsLocal(rel) {
		return fmt.Errorf("%w: %s lies inside the data directory, where a copy of that would take it along", ErrKeyFile, file)
	}
	return nil
}

// Open opens the node, and forms a cluster of one first if Config.Bootstrap
// says so and there is none: only then is Bootstrapped not nil. Errors:
// ErrConfig, ErrKeyFile, ErrNotFormed, raftstore's, audit's.
func Open(ctx context.Context, cfg Config) (_ *Authority, _ *Bootstrapped, err error) {
	cfg, err = cfg.withDefaults()
	if err != nil {
		return nil, nil, err
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, nil, err
	}
	if half, err := exists(filepath.Join(cfg.Dir, unfinishedName)); half || err != nil {
		return nil, nil, errors.Join(err, fmt.Errorf("%w: %s", ErrUnfinished, cfg.Dir))
	}
	formed, err := exists(filepath.Join(cfg.Dir, "raft", "raft.db"))
	if err != nil {
		return nil, nil, err
	}
	file, err := readNodeFile(cfg.Dir)
	if err != nil {
		return nil, nil, err
	}
	if file != nil && cfg.Peers == nil {
		return nil, nil, fmt.Errorf("%w: %s is a node of a cluster, and needs an address for its peers", ErrConfig, cfg.Dir)
	}
	if !formed && !cfg.Bootstrap && cfg.Joined == nil && file == nil {
		return nil, nil, fmt.Errorf("%w: %s", ErrNotFormed, cfg.Dir)
	}
	identity, err := openIdentity(cfg, !formed)
	if err != nil {
		return nil, nil, err
	}
	defer identity.Destroy()
	a := &Authority{
		cfg: cfg, started: cfg.Clock(), nobody: capability.NewRootKey([32]byte{}),
		clocks: newClocks(cfg.Clock, cfg.Boot, cfg.NodeID), recalls: newRecalls(cfg.Boot), reconcileNow: make(chan struct{}, 1),
		aways: newAways(cfg.Boot),
	}
	defer func() {
		if err != nil {
			_ = a.Close()
		}
	}()
	if a.checker, err = caveats.Standard(); err != nil {
		return nil, nil, err
	}
	if cfg.Peers != nil {
		file, err := a.nodeFile(formed)
		if err != nil {
			return nil, nil, err
		}
		if err := file.own(cfg, identity); err != nil {
			return nil, nil, err
		}
		if a.peers, err = openPeers(cfg, identity, file); err != nil {
			return nil, nil, err
		}
	}
	if err := a.openStore(ctx); err != nil {
		return nil, nil, err
	}
	var root *state.TokenRecord
	if a.machine.Cluster().ID == "" {
		if !cfg.Bootstrap {
			return nil, nil, fmt.Errorf("%w: %s", ErrNotFormed, cfg.Dir)
		}
		if root, err = a.form(ctx, identity); err != nil {
			return nil, nil, err
		}
	}
	if err := a.unseal(identity); err != nil {
		return nil, nil, err
	}
	if err := a.start(ctx); err != nil {
		return nil, nil, err
	}
	if root == nil {
		return a, nil, nil
	}
	t, err := a.response(root)
	if err != nil {
		return nil, nil, err
	}
	return a, &Bootstrapped{RootToken: t.Token, CAFingerprint: a.CAFingerprint()}, nil
}

func exists(path string) (bool, error) {
	_, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// openIdentity reads the node's key file, or makes it for a new node.
func openIdentity(cfg Config, fresh bool) (*seal.Identity, error) {
	there, err := exists(cfg.KeyFile)
	if err != nil {
		return nil, err
	}
	if !there && !fresh {
		return nil, fmt.Errorf("%w: %s is missing; without it nothing in %s can be opened", ErrKeyFile, cfg.KeyFile, cfg.Dir)
	}
	if there {
		return cfg.nodeKey().read()
	}
	id, err := seal.GenerateIdentity(cfg.Rand)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(cfg.KeyFile), 0o700); err != nil {
		return nil, err
	}
	return id, cfg.nodeKey().write(id)
}

// openStore opens the state, its audit trail and the log, and waits until
// everything that was acknowledged is applied.
func (a *Authority) openStore(ctx context.Context) (err error) {
	a.trail = &trail{dir: filepath.Join(a.cfg.Dir, "audit"), peers: a.peers}
	a.machine, err = state.Open(state.Config{
		Path: filepath.Join(a.cfg.Dir, "state.db"), Audit: a.trail, Logger: a.cfg.Logger,
	})
	if err != nil {
		return err
	}
	raft := raftstore.Config{
		Dir: filepath.Join(a.cfg.Dir, "raft"), NodeID: a.cfg.NodeID, Bootstrap: a.cfg.Bootstrap,
		SnapshotThreshold: a.cfg.SnapshotThreshold, TrailingLogs: a.cfg.TrailingLogs, OnFatal: a.cfg.OnFatal, Logger: a.cfg.Logger,
		Faults: a.cfg.Faults,
	}
	if a.peers != nil {
		raft.Transport, raft.Profile, raft.Join = a.peers.transport, a.cfg.Peers.Profile, !a.cfg.Bootstrap
		raft.HeartbeatTimeout, raft.ElectionTimeout, raft.LeaderLeaseTimeout = a.cfg.Peers.Heartbeat, a.cfg.Peers.Election, a.cfg.Peers.Lease
		a.peers.setState(a.machine)
	}
	if a.store, err = raftstore.Open(raft, a.machine); err != nil {
		return err
	}
	if a.peers != nil {
		handle(a.peers, methodMember, a.hearMember)
		return a.awaitState(ctx)
	}
	if _, err := a.store.WaitLeader(ctx); err != nil {
		return fmt.Errorf("waiting to lead: %w", err)
	}
	_, err = a.store.ReadIndex(ctx)
	return err
}

// form forms the cluster: keys, CA, and the root token, in one log entry, so
// that there is none or all of it.
func (a *Authority) form(ctx context.Context, identity *seal.Identity) (*state.TokenRecord, error) {
	id, err := a.clusterID()
	if err != nil {
		return nil, err
	}
	init := &state.Init{Cluster: id, Incarnation: 1, BoundMillis: a.cfg.Bound.Milliseconds()}
	if init.Origin, err = audit.Origin(init.Cluster, init.Incarnation); err != nil {
		return nil, err
	}
	cluster, err := seal.NewClusterKey(a.cfg.Rand)
	if err != nil {
		return nil, err
	}
	defer cluster.Destroy()
	if err := a.wrapKeys(init, cluster, identity); err != nil {
		return nil, err
	}
	admin, err := a.sealKeys(init, cluster)
	if err != nil {
		return nil, err
	}
	stamp := max(a.cfg.Clock().UnixMilli(), 1)
	m := rootMinting()
	if _, err := io.ReadFull(a.cfg.Rand, m.random[:]); err != nil {
		return nil, err
	}
	record, err := mintRoot(m, capability.NewRootKey(seal.AudienceKey(admin, state.AdminEpoch, 0, m.record.Audience)), state.AdminEpoch, stamp)
	if err != nil {
		return nil, err
	}
	node := state.Actor{Name: state.SystemActor}
	first, err := state.EncodeCommand(state.Header{Kind: state.KindInit, Stamp: stamp, Actor: node}, init)
	if err != nil {
		return nil, err
	}
	second, err := state.EncodeCommand(state.Header{Kind: state.KindIssue, Stamp: stamp, Actor: node}, &state.Issue{Record: *record})
	if err != nil {
		return nil, err
	}
	commands := [][]byte{first, second}
	if a.peers != nil {
		third, err := state.EncodeCommand(state.Header{Kind: state.KindSetMember, Stamp: stamp, Actor: node}, &state.SetMember{Member: a.peers.record()})
		if err != nil {
			return nil, err
		}
		commands = append(commands, third)
	}
	entry, err := state.EncodeEntry(commands...)
	if err != nil {
		return nil, err
	}
	res, err := a.store.Propose(ctx, entry)
	if err != nil {
		return nil, err
	}
	for _, r := range res.Value.([]state.Result) {
		if r.Err != nil {
			return nil, fmt.Errorf("forming the cluster: %w", r.Err)
		}
	}
	return record, nil
}

// clusterID is the name of the cluster that is being formed.
func (a *Authority) clusterID() (string, error) {
	if a.peers != nil {
		return a.peers.cluster, nil
	}
	return a.newClusterID()
}

func (a *Authority) newClusterID() (string, error) {
	var id [16]byte
	_, err := io.ReadFull(a.cfg.Rand, id[:])
	return hex.EncodeToString(id[:]), err
}

// wrapKeys wraps the cluster key for this node and for recovery.
func (a *Authority) wrapKeys(init *state.Init, cluster *seal.ClusterKey, identity *seal.Identity) error {
	wrap := func(name string, to seal.Recipient) error {
		k := state.SealedKey{Purpose: state.PurposeWrap + name, Incarnation: init.Incarnation, Public: to.Bytes()}
		var err error
		if k.Sealed, err = seal.Wrap(to, label(init.Cluster, &k), cluster); err != nil {
			return err
		}
		init.Keys = append(init.Keys, k)
		return nil
	}
	if err := wrap(a.cfg.NodeID, identity.Recipient()); err != nil {
		return err
	}
	if a.cfg.Recovery == "" {
		return nil
	}
	to, err := seal.ParseRecipient(a.cfg.Recovery)
	if err != nil {
		return fmt.Errorf("%w: Recovery: %w", ErrConfig, err)
	}
	return wrap("recovery", to)
}

// sealKeys makes the cluster's secrets and returns that of the admin keys.
func (a *Authority) sealKeys(init *state.Init, cluster *seal.ClusterKey) (admin *seal.Secret, err error) {
	add := func(k state.SealedKey, plaintext []byte) error {
		k.Incarnation = init.Incarnation
		if k.Sealed, err = cluster.Seal(a.cfg.Rand, label(init.Cluster, &k), plaintext); err != nil {
			return err
		}
		clear(plaintext)
		init.Keys = append(init.Keys, k)
		return nil
	}
	for _, k := range []state.SealedKey{
		{Purpose: state.PurposeMaster, Epoch: 1}, {Purpose: state.PurposeAdmin, Epoch: state.AdminEpoch}, {Purpose: state.PurposeAudit, Epoch: 1},
		{Purpose: state.PurposeDischarger, Epoch: 1}, {Purpose: state.PurposeCA, Epoch: 1},
	} {
		secret, err := drawKey(a.cfg, init.Cluster, init.Origin, &k)
		if err != nil {
			return nil, err
		}
		if k.Purpose == state.PurposeAdmin {
			if admin, err = seal.SecretFromBytes(secret); err != nil {
				return nil, err
			}
		}
		if err := add(k, secret); err != nil {
			return nil, err
		}
	}
	return admin, nil
}

// drawKey draws the secret of a key's purpose, and fills in its public half where
// there is one. Of a CA that is replaced, k has the public half already.
func drawKey(cfg Config, cluster, origin string, k *state.SealedKey) (secret []byte, err error) {
	if k.Purpose == state.PurposeCA {
		var before *x509.Certificate
		if chain, err := x509.ParseCertificates(k.Public); err != nil {
			return nil, fmt.Errorf("the cluster's CA certificate: %w", err)
		} else if len(chain) > 0 {
			before = chain[0]
		}
		k.Public, secret, err = newCA(cluster, before, cfg.Clock())
		return secret, err
	}
	secret = make([]byte, seal.KeySize)
	if _, err := io.ReadFull(cfg.Rand, secret); err != nil {
		return nil, err
	}
	switch k.Purpose {
	case state.PurposeAudit:
		signer, err := audit.NewSigner(origin, secret)
		if err != nil {
			return nil, err
		}
		k.Public = []byte(signer.VerifierKey())
	case state.PurposeDischarger:
		discharger, err := capability.NewDischargerKey([32]byte(secret))
		if err != nil {
			return nil, err
		}
		public := discharger.Public()
		k.Public = public[:]
	}
	return secret, nil
}

// mintRoot mints the first root token, before there is a state to ask for keys.
func mintRoot(m *minting, key *capability.RootKey, epoch uint32, stamp int64) (*state.TokenRecord, error) {
	r := m.record
	r.ID, r.Epoch, r.NotAfter = capability.NewTokenID(stamp, m.random), epoch, stamp+m.ttl.Milliseconds()
	t, err := capability.Mint(key, capability.Identifier{
		Epoch: r.Epoch, ID: r.ID, NotAfter: time.UnixMilli(r.NotAfter), Audience: r.Audience, Subject: r.Subject,
	})
	if err != nil {
		return nil, err
	}
	r.Unsigned, r.Tail = t.Unsigned(), t.Branch()
	return &r, nil
}

// unseal opens the cluster key with the node's identity, and with it the keys
// that the node works with.
func (a *Authority) unseal(identity *seal.Identity) error {
	cluster := a.machine.Cluster()
	wrapped := a.machine.SealedKey(state.PurposeWrap+a.cfg.NodeID, 0)
	if wrapped == nil {
		return fmt.Errorf("%w: the cluster's key is not wrapped for a node %q", ErrKeyFile, a.cfg.NodeID)
	}
	key, err := identity.Unwrap(label(cluster.ID, wrapped), wrapped.Sealed)
	if err != nil {
		return fmt.Errorf("%w: %s does not open the cluster's key: %w", ErrKeyFile, a.cfg.KeyFile, err)
	}
	a.keys = newKeyring(a.machine, key, wrapped.Under, a.cfg.Clock)
	a.keys.reopen = a.reopenClusterKey
	a.certs = &certificates{issuer: a.keys.issuer, node: a.cfg.NodeID, hosts: a.cfg.Hosts, clock: a.cfg.Clock}
	_, err = a.certs.get(nil)
	return err
}

// start starts what runs for as long as the node does.
func (a *Authority) start(ctx context.Context) error {
	a.clocks.voters = func() []string { return a.store.Status().Voters }
	a.clocks.ask = a.askHellos
	a.proposer = newProposer(a.store, a.machine, a.cfg.Clock, func() (uint64, error) { return freeSpace(a.cfg.Dir) }, a.mayPropose)
	a.fresh = newFreshness(a.store, a.machine, time.Duration(a.machine.Cluster().BoundMillis)*time.Millisecond, a.cfg.Boot)
	a.feeds.open = make(map[string]*feed)
	var err error
	a.admin, err = capability.NewVerifier(keysOf{a.keys, true}, []string{api.AdminAudience}, a.checker,
		capability.WithRevocations(a.fresh.revocations(), 0), capability.WithRegistry(registry{a.machine}))
	if err != nil {
		return err
	}
	running, cancel := context.WithCancel(context.Background())
	a.stop = cancel
	a.work.Go(func() { a.fresh.run(running) })
	a.work.Go(func() { a.drive(running) })
	if a.peers != nil {
		// Whoever waited for a quorum could not be one of it where all start anew.
		a.fresh.after(func(uint64) {}) // but the first read need not wait for a tick
		a.startPeers(running)
		return nil
	}
	return a.fresh.wait(ctx)
}

// Close stops the node. It is idempotent.
func (a *Authority) Close() error {
	a.closeOnce.Do(func() {
		if a.stop != nil {
			a.stop()
		}
		a.feeds.close()
		a.work.Wait()
		if a.proposer != nil {
			a.proposer.close()
		}
		var errs []error
		if a.store != nil {
			errs = append(errs, a.store.Close())
		} else if a.peers != nil && a.peers.transport != nil {
			errs = append(errs, a.peers.transport.Close())
		}
		if a.trail != nil {
			errs = append(errs, a.trail.close())
		}
		if a.machine != nil {
			errs = append(errs, a.machine.Close())
		}
		if a.keys != nil {
			a.keys.cluster.Destroy()
		}
		a.closeErr = errors.Join(errs...)
	})
	return a.closeErr
}

// AdminVerifier verifies credentials of the audience "writ", registered ones
// only, against the node's own state and under the same freshness rule as
// every verifier.
func (a *Authority) AdminVerifier() *capability.Verifier { return a.admin }

// now is the node's clock in Unix milliseconds.
func (a *Authority) now() int64 { return a.cfg.Clock().UnixMilli() }
