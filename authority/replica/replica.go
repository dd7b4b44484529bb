// Package replica is a service's live copy of what it needs from the authority
// to decide by itself: the root keys of its audiences, what has been revoked,
// and leases on call budgets. [Open] one, build a verifier with
// [Replica.Verifier], and guard handlers with that:
//
//	c, err := client.FromEnv()
//	r, err := replica.Open(ctx, replica.Config{Client: c, Audiences: []string{"corp"}})
//	defer r.Close()
//	checker, err := caveats.Standard()
//	v, err := r.Verifier(checker)
//
// # Freshness
//
// A replica pings the node that it streams from and notes the moment on its own
// clock (CLOCK_BOOTTIME, which goes on in suspend). The answer comes in the
// stream, behind everything that a quorum had committed when the ping arrived. A
// replica is as old as its last answered ping, and beyond the bound it refuses
// everything: no clock is shared, and no partition, however shaped, lets a
// revoked token through for longer than the bound.
//
// # Call budgets
//
// A max-calls is spent from a block of calls that the authority has leased to
// this replica, by one atomic operation. The block is filled again in the
// background; a call that finds it empty waits for a lease, for a second at
// most. What is left is given back when it lies idle, on Close and on recall;
// what a process held when it died counts as spent.
//
// # What it does not promise
//
// It vouches for the moment of decision. What the service does later with the
// call is the service's: long streams have to verify again. And it trusts the
// authority that its client is pinned to.
package replica

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/capability"
)

// MinBound is the shortest bound: what a ping every eighth of it still fits in.
const MinBound = 100 * time.Millisecond

const maxAudiences = 16

var (
	// ErrConfig is wrapped by what Open says of its configuration.
	ErrConfig = errors.New("invalid replica configuration")
	// ErrClosed says that the replica was closed. It carries
	// capability.CodeUnavailable.
	ErrClosed = fmt.Errorf("the replica was closed: %w", capability.CodeUnavailable)
	// ErrBehind says that a node offered a state older than what the replica
	// has seen.
	ErrBehind = errors.New("the node is behind what this replica has seen")
	// ErrForked says that the authority's audit log does not continue the log
	// that this replica has seen.
	ErrForked = errors.New("the audit log does not continue the one seen before")
)

// Config configures a Replica.
type Config struct {
	// Client talks to the authority with the service's credential. Required.
	Client *client.Client
	// Audiences are those that the service accepts tokens of, at most 16. Required.
	Audiences []string
	// Registered has the verifier accept registered tokens only.
	Registered bool
	// Keyless has the authority verify instead of fetching keys: for services
	// that share an audience with services of another owner.
	Keyless bool
	// Bound is how old revocations may be. 0: the cluster's own bound. At least
	// MinBound.
	Bound time.Duration
	// Leases tunes call budgets.
	Leases LeaseConfig
	// AuditKey is the verifier key of the audit log (note format), from a source
	// other than the authority itself. With it, an audit log that does not
	// continue the one seen before has the replica refuse everything. Empty:
	// checkpoints are held against each other, and a difference is logged.
	AuditKey string
	// CheckpointFile keeps the last checkpoint over restarts. Empty: it is not kept.
	CheckpointFile string
	// CredentialFile has the replica renew the service's credential and write it
	// here (mode 0600, replaced in whole) when a third of its life is left. It is
	// the client's TokenFile. Empty: the credential is left alone.
	CredentialFile string
	// Logger gets what an operator should know. nil: none.
	Logger *slog.Logger

	// Clock is the clock of freshness, in nanoseconds; it must go on in suspend
	// and never back. nil: CLOCK_BOOTTIME, read cheaply.
	Clock func() int64
	// Now is the wall clock, for expiries alone. nil: time.Now.
	Now func() time.Time
	// Rand makes nonces. nil: crypto/rand.Reader.
	Rand io.Reader
}

// LeaseConfig tunes call budgets. Zero values are the defaults.
type LeaseConfig struct {
	Want    uint64        // calls asked for at a time, or what is spent in a second if that is more; 0: 256, at most 1<<30
	Paths   int           // blocks held at a time; 0: 4096. Beyond, one that lies idle is given back
	Idle    time.Duration // a block unused for as long is given back; 0: 30 s
	Timeout time.Duration // longest that a call waits for a lease; 0: 1 s
}

const maxWant = 1 << 30

// Status is what a replica says of itself.
type Status struct {
	Cursor      api.Cursor
	Age         time.Duration // since the last answered ping was sent; negative: never answered
	Bound       time.Duration
	Streams     int // open and caught up, of 2
	Revocations int
	Registered  int // tokens known to be registered
	Keys        int
	Blocks      int   // lease paths held
	Err         error // what last went wrong on a stream or with keys, if it has not gone right since
}

var (
	_ capability.Keys          = (*Replica)(nil)
	_ capability.Revocations   = (*Replica)(nil)
	_ capability.Registry      = (*Replica)(nil)
	_ capability.Budgets       = (*Replica)(nil)
	_ capability.Authenticator = (*Replica)(nil)
)

// Replica is safe for concurrent use.
type Replica struct {
	cfg    Config
	client *client.Client
	log    *slog.Logger
	clock  func() int64
	now    func() time.Time

	bound  atomic.Int64 // ns; 0 until a node has named it
	fresh  atomic.Int64 // when the last answered ping was sent; never: none was
	closed atomic.Bool
	forked atomic.Bool

	data atomic.Pointer[dataset]
	keys atomic.Pointer[keyring]

	feed    feedState
	refetch chan struct{} // capacity 1: keys have changed
	points  chan string   // capacity 1: a checkpoint to hold against the last
	// consistency asks the authority for a proof between two sizes of its log.
	consistency func(ctx context.Context, older, newer int64) (*api.Proof, error)
	asking      chan struct{} // capacity: calls to a node for registered tokens and keyless checks
	leases      *blocks

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// never is a mark that is within no bound.
const never = int64(-1 << 62)

// Open starts a replica and waits for its first sync: keys are there, and the
// revocations are fresh. ctx bounds the wait only; Close ends the replica.
func Open(ctx context.Context, cfg Config) (*Replica, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	r := &Replica{
		cfg: cfg, client: cfg.Client, log: cfg.Logger, clock: cfg.Clock, now: cfg.Now,
		refetch: make(chan struct{}, 1),
		points:  make(chan string, 1),
		asking:  make(chan struct{}, 64),

		consistency: cfg.Client.Consistency,
	}
	r.bound.Store(int64(cfg.Bound))
	r.fresh.Store(never)
	r.data.Store(newDataset(0))
	r.keys.Store(&keyring{})
	r.feed.changed = make(chan struct{})
	last, err := r.loadCheckpoint()
	if err != nil {
		return nil, err
	}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	r.leases = newBlocks(r.ctx, cfg.Leases, cfg.Client, r.clock, r.now, cfg.Rand, r.log)
	r.start(func() { r.runStream(0) })
	r.start(func() { r.runStream(1) })
	r.start(func() { r.runCheckpoints(last) })
	r.start(r.runJanitor)
	if !cfg.Keyless {
		r.start(r.runKeys)
	}
	if cfg.CredentialFile != "" {
		r.start(r.runRenewal)
	}
	if err := r.synced(ctx); err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

func (cfg *Config) complete() error {
	if cfg.Client == nil {
		return fmt.Errorf("%w: no client", ErrConfig)
	}
	if len(cfg.Audiences) == 0 || len(cfg.Audiences) > maxAudiences {
		return fmt.Errorf("%w: %d audiences, not 1 to %d", ErrConfig, len(cfg.Audiences), maxAudiences)
	}
	cfg.Audiences = slices.Clone(cfg.Audiences)
	for i, a := range cfg.Audiences {
		if !capability.ValidName(a, capability.MaxAudience) || slices.Contains(cfg.Audiences[:i], a) {
			return fmt.Errorf("%w: audience %.100q", ErrConfig, a)
		}
	}
	if cfg.Bound != 0 && cfg.Bound < MinBound {
		return fmt.Errorf("%w: a bound of %v, below %v", ErrConfig, cfg.Bound, MinBound)
	}
	if cfg.AuditKey != "" {
		if _, err := auditVerifier(cfg.AuditKey); err != nil {
			return fmt.Errorf("%w: audit key: %v", ErrConfig, err)
		}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Clock == nil {
		cfg.Clock = newBootClock(readBootTime).now
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Rand == nil {
		cfg.Rand = rand.Reader
	}
	return cfg.Leases.complete()
}

func (c *LeaseConfig) complete() error {
	if c.Paths < 0 || c.Idle < 0 || c.Timeout < 0 || c.Want > maxWant {
		return fmt.Errorf("%w: a lease setting is out of bounds", ErrConfig)
	}
	if c.Want == 0 {
		c.Want = 256
	}
	if c.Paths == 0 {
		c.Paths = 4096
	}
	if c.Idle == 0 {
		c.Idle = 30 * time.Second
	}
	if c.Timeout == 0 {
		c.Timeout = time.Second
	}
	return nil
}

func (r *Replica) start(f func()) { r.wg.Go(f) }

// synced waits until the replica can decide.
func (r *Replica) synced(ctx context.Context) error {
	for {
		changed := r.feed.wait()
		if r.Within(r.Mark(), 0) && (r.cfg.Keyless || r.keys.Load().fetched) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			err := r.feed.lastError()
			if err == nil {
				err = ctx.Err()
			}
			return fmt.Errorf("first sync with the authority: %w", err)
		}
		if err := r.feed.lastError(); err != nil && hopeless(err) {
			return fmt.Errorf("first sync with the authority: %w", err)
		}
	}
}

// hopeless says that no waiting helps: the authority has refused the
// credential, or is not the one that is pinned. A certificate that is out of date
// is one node's, whose clock may be off: others may be well.
func hopeless(err error) bool {
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Reason == x509.Expired {
		return false
	}
	if errors.Is(err, client.ErrNoToken) || errors.Is(err, client.ErrFingerprint) {
		return true
	}
	e, ok := errors.AsType[*client.Error](err)
	return ok && (e.Problem.Status == 401 || e.Problem.Status == 403)
}

// closeGrace bounds how long Close waits for leases to be taken back.
const closeGrace = 5 * time.Second

// Close gives leases back, ends the streams and forgets the keys. After it, the
// replica refuses everything. It is idempotent.
func (r *Replica) Close() error {
	if r.closed.Swap(true) {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeGrace)
	defer cancel()
	err := r.leases.close(ctx)
	r.cancel()
	r.wg.Wait()
	r.keys.Store(&keyring{})
	return err
}

// Verifier returns a verifier of the replica's audiences, on the replica's keys
// (or the authority's answers, if keyless), revocations and budgets, and, if
// Registered, on its registry. opts are added, and win: for routes that want
// fresher revocations than the rest, capability.WithRevocations(r, bound) makes
// a verifier to go into their guard.Route.
func (r *Replica) Verifier(checker capability.Checker, opts ...capability.Option) (*capability.Verifier, error) {
	all := []capability.Option{capability.WithRevocations(r, 0), capability.WithBudgets(r)}
	if r.cfg.Registered {
		all = append(all, capability.WithRegistry(r))
	}
	all = append(all, opts...)
	if r.cfg.Keyless {
		return capability.NewKeylessVerifier(r, r.cfg.Audiences, checker, all...)
	}
	return capability.NewVerifier(r, r.cfg.Audiences, checker, all...)
}

// Status describes the replica.
func (r *Replica) Status() Status {
	d := r.data.Load()
	s := Status{
		Bound:       time.Duration(r.bound.Load()),
		Revocations: d.revoked.Len(),
		Registered:  d.issued.len(),
		Keys:        len(r.keys.Load().keys),
		Blocks:      r.leases.len(),
		Age:         -1,
	}
	if mark := r.fresh.Load(); mark != never {
		s.Age = time.Duration(r.clock() - mark)
	}
	r.feed.mu.Lock()
	s.Cursor, s.Streams, s.Err = r.feed.cursor, r.feed.live, r.feed.err
	r.feed.mu.Unlock()
	if r.forked.Load() {
		s.Err = ErrForked
	}
	return s
}

// Wait returns once the replica has applied everything up to at, or ctx ends.
func (r *Replica) Wait(ctx context.Context, at api.Cursor) error {
	for {
		changed := r.feed.wait()
		if !less(r.feed.at(), at) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		case <-r.ctx.Done():
			return ErrClosed
		}
	}
}

// less orders cursors.
func less(a, b api.Cursor) bool {
	return a.Incarnation < b.Incarnation || a.Incarnation == b.Incarnation && a.Index < b.Index
}

// Mark implements capability.Revocations.
func (r *Replica) Mark() int64 { return r.fresh.Load() }

// Within implements capability.Revocations.
func (r *Replica) Within(mark int64, bound time.Duration) bool {
	if bound == 0 {
		bound = time.Duration(r.bound.Load())
	}
	if mark == never || r.closed.Load() || r.forked.Load() {
		return false
	}
	return r.clock()-mark <= int64(bound)
}

// Token implements capability.Revocations.
func (r *Replica) Token(id *capability.Identity) capability.RevocationState {
	return r.data.Load().revoked.Token(id)
}

// Branch implements capability.Revocations.
func (r *Replica) Branch(id capability.TokenID, b capability.BranchID) bool {
	return r.data.Load().revoked.Branch(id, b)
}

// Holder implements capability.Revocations.
func (r *Replica) Holder(k capability.HolderKey) bool { return r.data.Load().revoked.Holder(k) }

// Device implements capability.Revocations.
func (r *Replica) Device(d capability.DeviceID) bool { return r.data.Load().revoked.Device(d) }
