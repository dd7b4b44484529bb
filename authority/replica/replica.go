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
// # What it does not promise
//
// It acts on what a service decides after the bound, not on what it has decided
// before: long streams have to verify again. And it trusts the authority that
// its client is pinned to.
package replica

import (
	"context"
	"io"
	"log/slog"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/capability"
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
	// 100 ms.
	Bound time.Duration
	// Leases tunes call budgets.
	Leases LeaseConfig
	// AuditKey is the verifier key of the audit log (note format), from a source
	// other than the authority itself. Empty: checkpoints are held against each
	// other only.
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
	// and never back. nil: CLOCK_BOOTTIME.
	Clock func() int64
	// Now is the wall clock, for expiries alone. nil: time.Now.
	Now func() time.Time
	// Rand makes nonces. nil: crypto/rand.Reader.
	Rand io.Reader
}

// LeaseConfig tunes call budgets. Zero values are the defaults.
type LeaseConfig struct {
	Want    uint64        // calls asked for at a time; 0: 256
	Paths   int           // blocks held at a time; 0: 4096. The least used is given back
	Idle    time.Duration // a block unused for as long is given back; 0: 30 s
	Timeout time.Duration // longest that a call waits for a lease; 0: 1 s
}

// Status is what a replica says of itself.
type Status struct {
	Cursor      api.Cursor
	Age         time.Duration // of the last answered ping
	Bound       time.Duration
	Node        string // that the replica is fresh by
	Streams     int    // open and caught up, of 2
	Revocations int
	Keys        int
	Blocks      int   // lease paths held
	Err         error // why the replica is not fresh; nil if it is
}

var (
	_ capability.Keys          = (*Replica)(nil)
	_ capability.Revocations   = (*Replica)(nil)
	_ capability.Registry      = (*Replica)(nil)
	_ capability.Budgets       = (*Replica)(nil)
	_ capability.Authenticator = (*Replica)(nil)
)

// Replica is safe for concurrent use.
type Replica struct{}

// Open starts a replica and waits for its first sync: keys are there, and the
// revocations are fresh. ctx bounds the wait only; Close ends the replica.
func Open(ctx context.Context, cfg Config) (*Replica, error) { panic("stub") }

// Close gives leases back, ends the streams and forgets the keys. After it, the
// replica refuses everything.
func (r *Replica) Close() error { panic("stub") }

// Verifier returns a verifier of the replica's audiences, on the replica's keys
// (or the authority's answers, if keyless), revocations and budgets, and, if
// Registered, on its registry. opts are added.
func (r *Replica) Verifier(checker capability.Checker, opts ...capability.Option) (*capability.Verifier, error) {
	panic("stub")
}

// Status describes the replica.
func (r *Replica) Status() Status { panic("stub") }

// Wait returns once the replica has applied everything up to at, or ctx ends.
func (r *Replica) Wait(ctx context.Context, at api.Cursor) error { panic("stub") }

// Key implements capability.Keys.
func (r *Replica) Key(audience []byte, epoch, generation uint32) *capability.RootKey { panic("stub") }

// Mark implements capability.Revocations.
func (r *Replica) Mark() int64 { panic("stub") }

// Within implements capability.Revocations.
func (r *Replica) Within(mark int64, bound time.Duration) bool { panic("stub") }

// Token implements capability.Revocations.
func (r *Replica) Token(id *capability.Identity) capability.RevocationState { panic("stub") }

// Branch implements capability.Revocations.
func (r *Replica) Branch(id capability.TokenID, b capability.BranchID) bool { panic("stub") }

// Holder implements capability.Revocations.
func (r *Replica) Holder(k capability.HolderKey) bool { panic("stub") }

// Device implements capability.Revocations.
func (r *Replica) Device(d capability.DeviceID) bool { panic("stub") }

// Registered implements capability.Registry.
func (r *Replica) Registered(ctx context.Context, id *capability.Identity, tail capability.BranchID) (bool, error) {
	panic("stub")
}

// Spend implements capability.Budgets.
func (r *Replica) Spend(ctx context.Context, p *capability.BudgetPath) (blocked bool, err error) {
	panic("stub")
}

// Authenticate implements capability.Authenticator.
func (r *Replica) Authenticate(ctx context.Context, set []byte, branches []capability.BranchID) ([]capability.BranchID, error) {
	panic("stub")
}
