// Package state is the authority's replicated state machine: value in, value
// out. Applying a command reads no clock and draws no randomness; both are in
// the command, put there by the proposer.
package state

import (
	"encoding/hex"
	"time"

	"github.com/writ-dev/writ/capability"
)

// The bounds of time that the state holds every command to.
const (
	// RequestWindow is how long a request id may be retried: one whose time is
	// further behind the command's stamp is refused as expired, and what it
	// made is remembered at least that long.
	RequestWindow = 10 * time.Minute
	// RequestAhead is how far ahead of the stamp a request id's time may be.
	RequestAhead = time.Minute
	// MaxAdminTTL is the longest life of any token: a credential of the audience "writ".
	MaxAdminTTL = 30 * 24 * time.Hour
	// MaxTTL is the longest life of every other token.
	MaxTTL = 15 * time.Minute
)

// The bounds of size.
const (
	// MaxLiveBudgets is the most budgets of one token.
	MaxLiveBudgets = 256
	// MaxText bounds an owner, a purpose, an auditor and a reason, in bytes.
	MaxText = 500
	// MaxUnsigned bounds a macaroon without its signature, in bytes.
	MaxUnsigned = capability.MaxTokenSize
)

// AdminEpoch is the first epoch of the admin key series. Its numbers are apart
// from the masters', so that revoking a master's epoch never reaches it.
const AdminEpoch uint32 = 1 << 31

// RootSubject is the subject of root admin tokens.
const RootSubject = "root"

// ServicePrefix opens the subject of a service's credential; its name follows.
const ServicePrefix = "service:"

// SystemActor names the node itself as an actor.
const SystemActor = "system"

// Digest is a SHA-256.
type Digest [32]byte

// MarshalText returns 64 lower-case hexadecimal digits.
func (d Digest) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, d[:]), nil }

// UnmarshalText reads what MarshalText writes.
func (d *Digest) UnmarshalText(b []byte) error { return decodeHex(d[:], b) }

// LeaseID names a lease: 128 random bits.
type LeaseID [16]byte

// String returns 32 lower-case hexadecimal digits.
func (l LeaseID) String() string { return hex.EncodeToString(l[:]) }

// MarshalText returns the text of String.
func (l LeaseID) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, l[:]), nil }

// UnmarshalText reads what MarshalText writes.
func (l *LeaseID) UnmarshalText(b []byte) error { return decodeHex(l[:], b) }

func decodeHex(dst, b []byte) error {
	if len(b) != 2*len(dst) {
		return capability.ErrBadID
	}
	_, err := hex.Decode(dst, b)
	return err
}

// Kind numbers a command. Numbers are permanent: append, never reorder.
type Kind uint16

// The kinds of command.
const (
	KindInit          Kind = 1
	KindIssue         Kind = 2
	KindRevoke        Kind = 3
	KindLease         Kind = 4
	KindReturn        Kind = 5
	KindExpire        Kind = 6
	KindAddEpoch      Kind = 7
	KindRekey         Kind = 8
	KindAddService    Kind = 9
	KindJoinService   Kind = 10
	KindRemoveService Kind = 11
	KindSetKey        Kind = 12
	KindCheckHash     Kind = 13
	KindReincarnate   Kind = 14
)

// Header goes with every command.
type Header struct {
	Kind  Kind  `json:"kind"`
	Stamp int64 `json:"stamp"` // Unix milliseconds by the proposer's clock; never falls, else ErrStamp
	Actor Actor `json:"actor"`
	// Request is the caller's id for the change; zero for none. With Actor.Name
	// and Body it makes a retry harmless.
	Request capability.TokenID `json:"request,omitzero"`
	Body    Digest             `json:"body,omitzero"` // SHA-256 of the request's body
}

// Actor is who is behind a command. Applying rechecks its credential.
type Actor struct {
	Name     string                `json:"name"`               // subject of the credential, or "system"
	Token    capability.TokenID    `json:"token,omitzero"`     // zero for the node itself
	Branches []capability.BranchID `json:"branches,omitempty"` // points of the credential's chain
	Audience string                `json:"audience,omitempty"` // of the credential
}

// Init forms the cluster: the first command, once.
type Init struct {
	Cluster     string      `json:"cluster"`     // random id, 32 hex digits
	Incarnation uint64      `json:"incarnation"` // 1
	BoundMillis int64       `json:"bound_ms"`    // staleness bound
	Origin      string      `json:"origin"`      // of the audit log
	Keys        []SealedKey `json:"keys"`        // cluster-key wrappings, master of epoch 1, admin, audit, discharger, CA, …
}

// SealedKey is key material as the log holds it: never in the clear.
type SealedKey struct {
	Purpose string `json:"purpose"` // "master", "admin", "audit", "discharger", "ca", "wrap/NODE", "wrap/recovery"
	Epoch   uint32 `json:"epoch"`
	// Incarnation is the one that it was sealed in: part of the seal's label.
	Incarnation uint64 `json:"incarnation"`
	Sealed      []byte `json:"sealed"`
	Public      []byte `json:"public,omitempty"` // the public half, where there is one
	// Under numbers the cluster key that it is sealed under, or, of a wrap, that is
	// in it.
	Under uint32 `json:"under,omitempty"`
}

// TokenRecord is the registry's entry of a token, and the dedupe record of the
// request that made it.
type TokenRecord struct {
	ID         capability.TokenID  `json:"id"` // its time is the command's stamp
	Audience   string              `json:"audience"`
	Subject    string              `json:"subject"`
	Owner      string              `json:"owner"`
	Purpose    string              `json:"purpose"`
	Auditor    string              `json:"auditor,omitempty"`
	Agent      []byte              `json:"agent,omitempty"` // JSON of api.Agent
	NotAfter   int64               `json:"not_after"`       // Unix ms
	Epoch      uint32              `json:"epoch"`
	Generation uint32              `json:"generation"`
	Unsigned   []byte              `json:"unsigned"` // the macaroon without its signature (capability.Token.Unsigned)
	Tail       capability.BranchID `json:"tail"`     // branch id of the issued tail
	Parent     *Parent             `json:"parent,omitempty"`
	Actors     []string            `json:"actors,omitempty"`
	Holders    []string            `json:"holders,omitempty"` // of holder caveats, for revocation reach
	// Set when applied:
	IssuedBy string             `json:"issued_by,omitempty"`
	Request  capability.TokenID `json:"request,omitzero"`
	Body     Digest             `json:"body,omitzero"`
	Index    uint64             `json:"index,omitempty"`
}

// Parent is what a derived token hangs on.
type Parent struct {
	Token    capability.TokenID    `json:"token"`
	Branches []capability.BranchID `json:"branches"` // every point of the presented chain
}

// Issue registers a token. Result: *TokenRecord (the earlier one on a retry).
type Issue struct {
	Record  TokenRecord `json:"record"`
	Caveats []string    `json:"caveats,omitempty"` // in words, for the audit record
}

// Revoke revokes; Kind is an api.RevocationKind. Result: *RevokeResult.
type Revoke struct {
	Kind     string              `json:"kind"`
	Token    capability.TokenID  `json:"token,omitzero"`
	Branch   capability.BranchID `json:"branch,omitzero"`
	Subject  string              `json:"subject,omitempty"`
	Holder   string              `json:"holder,omitempty"`
	Device   string              `json:"device,omitempty"`
	Audience string              `json:"audience,omitempty"`
	Epoch    uint32              `json:"epoch,omitempty"`
	Reason   string              `json:"reason"`
	Expires  int64               `json:"expires"` // Unix ms: hard ceiling of what it names
}

// RevokeResult is what Revoke did.
type RevokeResult struct {
	Index   uint64
	Reached int
}

// PathPoint is one budget of a chain.
type PathPoint struct {
	Branch capability.BranchID `json:"branch"`
	Limit  uint64              `json:"limit"`
}

// Lease deducts up to Want calls from every budget of Path, or from none. Result: *LeaseResult.
type Lease struct {
	ID     LeaseID               `json:"id"` // random
	Token  capability.TokenID    `json:"token"`
	Chain  []capability.BranchID `json:"chain"` // every point of the macaroon shown, for revocation
	Path   []PathPoint           `json:"path"`  // outermost first
	Want   uint64                `json:"want"`
	Lessee string                `json:"lessee"`
	// Close, if not zero, is a lease of the same lessee to close first, crediting Unspent.
	Close   LeaseID `json:"close,omitzero"`
	Unspent uint64  `json:"unspent,omitempty"`
}

// LeaseResult is what was granted.
type LeaseResult struct {
	Index   uint64
	Lease   LeaseID // the earlier one on a retry
	Granted uint64
	Expires int64 // Unix ms: the token's not-after
}

// Return closes a lease, crediting what is unspent once. Result: *ReturnResult.
type Return struct {
	ID      LeaseID `json:"id"`
	Lessee  string  `json:"lessee"`
	Unspent uint64  `json:"unspent"`
}

// ReturnResult says what was credited.
type ReturnResult struct{ Credited uint64 }

// Expire drops everything whose hard ceiling is before T. Result: *ExpireResult.
type Expire struct {
	T int64 `json:"t"` // Unix ms
}

// ExpireResult counts what went. More is there to go where one of tokens,
// revocations and requests is as many as a command takes.
type ExpireResult struct{ Tokens, Revocations, Leases, Services, Requests int }

// More reports that the command took as much as one may, and left the rest.
func (r *ExpireResult) More() bool {
	return max(r.Tokens, r.Revocations, r.Requests) == maxExpired
}

// AddEpoch publishes a master key. Result: *EpochRecord.
type AddEpoch struct {
	Key       SealedKey `json:"key"`
	MintsFrom int64     `json:"mints_from"` // Unix ms; at least stamp + twice the bound
	OldUntil  int64     `json:"old_until"`  // Unix ms: the epoch before verifies nothing after
}

// EpochRecord describes an epoch.
type EpochRecord struct {
	Epoch     uint32 `json:"epoch"`
	Published int64  `json:"published"`
	MintsFrom int64  `json:"mints_from"`
	Until     int64  `json:"until,omitempty"` // 0: open
	Revoked   bool   `json:"revoked,omitempty"`
}

// Rekey moves an audience to its next generation. Result: *RekeyResult.
type Rekey struct {
	Audience  string `json:"audience"`
	Reason    string `json:"reason"`
	MintsFrom int64  `json:"mints_from"` // Unix ms: the next generation mints from; at least stamp + twice the bound
	OldUntil  int64  `json:"old_until"`  // Unix ms: the one before verifies nothing after
}

// GenerationRecord describes one generation of an audience's keys. Generation
// 0 is every audience's first and has no record until the second comes.
type GenerationRecord struct {
	Generation uint32 `json:"generation"`
	Published  int64  `json:"published"`
	MintsFrom  int64  `json:"mints_from"`
	Until      int64  `json:"until,omitempty"` // 0: open
}

// RekeyResult is the audience's new generation.
type RekeyResult struct{ Generation uint32 }

// AddService records a service and the hash of its join secret. Result: *ServiceRecord.
type AddService struct {
	Name      string   `json:"name"`
	Audiences []string `json:"audiences"`
	Derive    []string `json:"derive,omitempty"`
	Keyless   bool     `json:"keyless,omitempty"`
	JoinHash  Digest   `json:"join_hash"` // SHA-256 of the secret; spent: zero
	JoinUntil int64    `json:"join_until"`
}

// ServiceRecord describes a service.
type ServiceRecord struct {
	AddService
	Added   int64  `json:"added"`
	AddedBy string `json:"added_by"`
	Joined  bool   `json:"joined,omitempty"`
}

// JoinService spends a join secret (or renews, with Actor being the service's
// own credential and Hash zero) and registers the credential. Result: *TokenRecord.
type JoinService struct {
	Name    string      `json:"name"`
	Hash    Digest      `json:"hash,omitzero"`
	Record  TokenRecord `json:"record"`
	Caveats []string    `json:"caveats,omitempty"`
}

// RemoveService removes a service and revokes its credentials. Result: *RevokeResult.
type RemoveService struct {
	Name   string `json:"name"`
	Reason string `json:"reason"`
}

// SetKey stores sealed key material, replacing the same purpose and epoch.
type SetKey struct {
	Key SealedKey `json:"key"`
}

// CheckHash stops a node whose state's hash differs.
type CheckHash struct {
	Index uint64 `json:"index"`
	Hash  Digest `json:"hash"`
}

// Reincarnate starts a new incarnation after a restore.
type Reincarnate struct {
	Incarnation uint64 `json:"incarnation"`
	Origin      string `json:"origin"`
}
