package authority

import (
	"context"
	"crypto/tls"
	"errors"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/capability"
)

var errSkeleton = errors.New("authority: not built yet")

// Authority is one node's services. It is safe for concurrent use.
type Authority struct{}

// Open opens the node.
func Open(ctx context.Context, cfg Config) (*Authority, *Bootstrapped, error) {
	return nil, nil, errSkeleton
}

// Close stops the node. It is idempotent.
func (a *Authority) Close() error { return nil }

// Issue issues a token. It is committed before it is returned.
func (a *Authority) Issue(ctx context.Context, c Call, req *api.IssueRequest) (*api.TokenResponse, error) {
	return nil, errSkeleton
}

// Derive issues a token for another audience that dies with the one presented.
func (a *Authority) Derive(ctx context.Context, c Call, req *api.DeriveRequest) (*api.TokenResponse, error) {
	return nil, errSkeleton
}

// Revoke revokes.
func (a *Authority) Revoke(ctx context.Context, c Call, req *api.RevokeRequest) (*api.RevokeResponse, error) {
	return nil, errSkeleton
}

// RevokeSelf revokes the branch of the token in the request, which is the
// authorization. Of the Call only Request and Body count.
func (a *Authority) RevokeSelf(ctx context.Context, c Call, req *api.SelfRevokeRequest) (*api.RevokeResponse, error) {
	return nil, errSkeleton
}

// MacaroonAudience reads the audience of a macaroon without verifying it, to
// know what a credential must allow before the lease is looked at.
func MacaroonAudience(macaroon []byte) (string, error) { return "", errSkeleton }

// Lease grants calls of a max-calls path. The credential must allow "lease" on
// the audience's budgets, which Authority checks against the registry of services.
func (a *Authority) Lease(ctx context.Context, c Call, req *api.LeaseRequest) (*api.LeaseResponse, error) {
	return nil, errSkeleton
}

// LeaseAudience is the audience of an open lease's token; ok is false for a
// lease unknown or closed, whose return credits nothing.
func (a *Authority) LeaseAudience(lease string) (audience string, ok bool, err error) {
	return "", false, errSkeleton
}

// Return closes a lease and credits what is unspent, once.
func (a *Authority) Return(ctx context.Context, c Call, lease string, req *api.ReturnRequest) (*api.ReturnResponse, error) {
	return nil, errSkeleton
}

// Registered says whether a token of the audience is registered.
func (a *Authority) Registered(ctx context.Context, c Caller, req *api.RegisteredRequest) (*api.RegisteredResponse, error) {
	return nil, errSkeleton
}

// Keys returns the root keys of audiences: secrets. It goes through the read index.
func (a *Authority) Keys(ctx context.Context, c Caller, audiences []string) (*api.KeySet, error) {
	return nil, errSkeleton
}

// Epochs lists the master keys' epochs and the generations; no secret.
func (a *Authority) Epochs(ctx context.Context) (*api.EpochList, error) { return nil, errSkeleton }

// Rotate publishes a new master key.
func (a *Authority) Rotate(ctx context.Context, c Call) (*api.EpochInfo, error) {
	return nil, errSkeleton
}

// Rekey moves an audience to its next generation, which it returns.
func (a *Authority) Rekey(ctx context.Context, c Call, req *api.RekeyRequest) (uint32, error) {
	return 0, errSkeleton
}

// Verify says whether exactly this token set is genuine, for an audience that
// the caller is entitled to: the caller's credential must allow "verify" on
// SetAudience of it.
func (a *Authority) Verify(ctx context.Context, c Caller, req *api.VerifyRequest) (*api.VerifyResponse, error) {
	return nil, errSkeleton
}

// AddService adds a service and makes its single-use join secret.
func (a *Authority) AddService(ctx context.Context, c Call, req *api.ServiceRequest) (*api.ServiceResponse, error) {
	return nil, errSkeleton
}

// Join exchanges a join secret for a credential. Of the Call only Request and Body count.
func (a *Authority) Join(ctx context.Context, c Call, req *api.JoinRequest) (*api.CredentialResponse, error) {
	return nil, errSkeleton
}

// Renew gives a service that calls with its own credential a fresh one.
func (a *Authority) Renew(ctx context.Context, c Call) (*api.CredentialResponse, error) {
	return nil, errSkeleton
}

// RemoveService removes a service and revokes its credentials.
func (a *Authority) RemoveService(ctx context.Context, c Call, name string) error { return errSkeleton }

// Services lists the services by name.
func (a *Authority) Services(ctx context.Context) (*api.ServiceList, error) { return nil, errSkeleton }

// Dischargers lists the configured dischargers.
func (a *Authority) Dischargers() *api.DischargerList { return nil }

// Token returns what the registry knows of a token.
func (a *Authority) Token(ctx context.Context, id capability.TokenID) (*api.TokenInfo, error) {
	return nil, errSkeleton
}

// TokenQuery selects tokens; empty fields select all.
type TokenQuery struct {
	Audience, Subject, Owner string
	Cursor                   string // TokenList.Next of the page before
	Limit                    int    // 1 to 500; 0: 100
}

// Tokens lists tokens, newest first.
func (a *Authority) Tokens(ctx context.Context, q TokenQuery) (*api.TokenList, error) {
	return nil, errSkeleton
}

// RevocationQuery selects revocations; an empty Kind selects all.
type RevocationQuery struct {
	Kind   api.RevocationKind
	Cursor string
	Limit  int // 1 to 500; 0: 100
}

// RevocationList lists the revocations in force.
func (a *Authority) RevocationList(ctx context.Context, q RevocationQuery) (*api.RevocationList, error) {
	return nil, errSkeleton
}

// FeedRequest opens a feed.
type FeedRequest struct {
	Audiences  []string   // at least one
	Registered bool       // registered tokens too
	From       api.Cursor // zero: begin with a snapshot
}

// Feed streams to send, hello first, until ctx ends, send fails or the node
// closes (ErrClosed's code is CodeUnavailable). send is called from one goroutine and must return soon: a
// send that blocks holds up this stream alone.
func (a *Authority) Feed(ctx context.Context, c Caller, req FeedRequest, send func(*api.FeedEvent) error) error {
	return errSkeleton
}

// Ping asks for a pong on a stream of the same caller. CodeNotFound: no such stream here.
func (a *Authority) Ping(ctx context.Context, c Caller, req *api.PingRequest) error {
	return errSkeleton
}

// AuditCheckpoint signs the audit log's checkpoint.
func (a *Authority) AuditCheckpoint(ctx context.Context) (*api.CheckpointResponse, error) {
	return nil, errSkeleton
}

// AuditRecords returns up to limit records (1 to 1000; 0: 100) from number from.
func (a *Authority) AuditRecords(ctx context.Context, from int64, limit int) (*api.AuditRecords, error) {
	return nil, errSkeleton
}

// AuditInclusion proves that record n is in the log of this size.
func (a *Authority) AuditInclusion(ctx context.Context, size, n int64) (*api.Proof, error) {
	return nil, errSkeleton
}

// AuditConsistency proves that the log of size older is the start of that of size newer.
func (a *Authority) AuditConsistency(ctx context.Context, older, newer int64) (*api.Proof, error) {
	return nil, errSkeleton
}

// Status is what the node says of itself.
func (a *Authority) Status() *api.Status { return nil }

// Ready returns nil if the node can serve, or an error that says why not.
func (a *Authority) Ready(ctx context.Context) error { return errSkeleton }

// AdminVerifier verifies credentials of the audience "writ", against the
// node's own state, under the same freshness rule as every verifier.
func (a *Authority) AdminVerifier() *capability.Verifier { return nil }

// TLSConfig is the server side of TLS 1.3: the node's certificate with the
// cluster CA's behind it.
func (a *Authority) TLSConfig() *tls.Config { return nil }

// CAFingerprint is the SHA-256 of the cluster CA's certificate (DER).
func (a *Authority) CAFingerprint() [32]byte { return [32]byte{} }

// RootReset issues a new root admin token and revokes the old ones: the way
// back from a lock-out, for whoever can open the seal on this machine.
func (a *Authority) RootReset(ctx context.Context) (string, error) { return "", errSkeleton }

// SetAudience reads the audience of a token set without verifying it.
func SetAudience(set []byte) (string, error) { return "", errSkeleton }

// Metrics is a snapshot of what is worth graphing.
type Metrics struct {
	Applied, CommitIndex, Term           uint64
	Leader, DiskFull                     bool
	Tokens, Revocations, Services        int
	Leases, Budgets                      int
	AuditSize                            int64
	Streams                              int // feeds open
	Pings, Pongs, ReadIndexes            uint64
	QueueRevoke, QueueLease, QueueIssue  int // waiting for the proposer
	Proposals, ProposedEntries, Refusals uint64
}

// Metrics returns the node's numbers.
func (a *Authority) Metrics() Metrics { return Metrics{} }
