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
	Kind  Kind  `cbor:"1,keyasint"`
	Stamp int64 `cbor:"2,keyasint"` // Unix milliseconds by the proposer's clock; never falls, else ErrStamp
	Actor Actor `cbor:"3,keyasint"`
	// Request is the caller's id for the change; zero for none. With Actor.Name
	// and Body it makes a retry harmless.
	Request capability.TokenID `cbor:"4,keyasint,omitzero"`
	Body    Digest             `cbor:"5,keyasint,omitzero"` // SHA-256 of the request's body
}

// Actor is who is behind a command. Applying rechecks its credential.
type Actor struct {
	Name     string                `cbor:"1,keyasint"`           // subject of the credential, or "system"
	Token    capability.TokenID    `cbor:"2,keyasint,omitzero"`  // zero for the node itself
	Branches []capability.BranchID `cbor:"3,keyasint,omitempty"` // points of the credential's chain
	Audience string                `cbor:"4,keyasint,omitempty"` // of the credential
}

// Init forms the cluster: the first command, once.
type Init struct {
	Cluster     string      `cbor:"1,keyasint"` // random id, 32 hex digits
	Incarnation uint64      `cbor:"2,keyasint"` // 1
	BoundMillis int64       `cbor:"3,keyasint"` // staleness bound
	Origin      string      `cbor:"4,keyasint"` // of the audit log
	Keys        []SealedKey `cbor:"5,keyasint"` // cluster-key wrappings, master of epoch 1, admin, audit, discharger, CA, …
}

// SealedKey is key material as the log holds it: never in the clear.
type SealedKey struct {
	Purpose string `cbor:"1,keyasint"` // "master", "admin", "audit", "discharger", "ca", "wrap/NODE", "wrap/recovery"
	Epoch   uint32 `cbor:"2,keyasint"`
	// Incarnation is the one that it was sealed in: part of the seal's label.
	Incarnation uint64 `cbor:"3,keyasint"`
	Sealed      []byte `cbor:"4,keyasint"`
	Public      []byte `cbor:"5,keyasint,omitempty"` // the public half, where there is one
	// Under numbers the cluster key that it is sealed under, or, of a wrap, that is
	// in it.
	Under uint32 `cbor:"6,keyasint,omitempty"`
}

// TokenRecord is the registry's entry of a token, and the dedupe record of the
// request that made it.
type TokenRecord struct {
	ID         capability.TokenID  `cbor:"1,keyasint"` // its time is the command's stamp
	Audience   string              `cbor:"2,keyasint"`
	Subject    string              `cbor:"3,keyasint"`
	Owner      string              `cbor:"4,keyasint"`
	Purpose    string              `cbor:"5,keyasint"`
	Auditor    string              `cbor:"6,keyasint,omitempty"`
	Agent      []byte              `cbor:"7,keyasint,omitempty"` // JSON of api.Agent
	NotAfter   int64               `cbor:"8,keyasint"`           // Unix ms
	Epoch      uint32              `cbor:"9,keyasint"`
	Generation uint32              `cbor:"10,keyasint"`
	Unsigned   []byte              `cbor:"11,keyasint"` // the macaroon without its signature (capability.Token.Unsigned)
	Tail       capability.BranchID `cbor:"12,keyasint"` // branch id of the issued tail
	Parent     *Parent             `cbor:"13,keyasint,omitempty"`
	Actors     []string            `cbor:"14,keyasint,omitempty"`
	Holders    []string            `cbor:"15,keyasint,omitempty"` // of holder caveats, for revocation reach
	// Set when applied:
	IssuedBy string             `cbor:"16,keyasint,omitempty"`
	Request  capability.TokenID `cbor:"17,keyasint,omitzero"`
	Body     Digest             `cbor:"18,keyasint,omitzero"`
	Index    uint64             `cbor:"19,keyasint,omitempty"`
}

// Parent is what a derived token hangs on.
type Parent struct {
	Token    capability.TokenID    `cbor:"1,keyasint"`
	Branches []capability.BranchID `cbor:"2,keyasint"` // every point of the presented chain
}

// Issue registers a token. Result: *TokenRecord (the earlier one on a retry).
type Issue struct {
	Record  TokenRecord `cbor:"1,keyasint"`
	Caveats []string    `cbor:"2,keyasint,omitempty"` // in words, for the audit record
}

// Revoke revokes; Kind is an api.RevocationKind. Result: *RevokeResult.
type Revoke struct {
	Kind     string              `cbor:"1,keyasint"`
	Token    capability.TokenID  `cbor:"2,keyasint,omitzero"`
	Branch   capability.BranchID `cbor:"3,keyasint,omitzero"`
	Subject  string              `cbor:"4,keyasint,omitempty"`
	Holder   string              `cbor:"5,keyasint,omitempty"`
	Device   string              `cbor:"6,keyasint,omitempty"`
	Audience string              `cbor:"7,keyasint,omitempty"`
	Epoch    uint32              `cbor:"8,keyasint,omitempty"`
	Reason   string              `cbor:"9,keyasint"`
	Expires  int64               `cbor:"10,keyasint"` // Unix ms: hard ceiling of what it names
}

// RevokeResult is what Revoke did.
type RevokeResult struct {
	Index   uint64 `cbor:"1,keyasint"`
	Reached int    `cbor:"2,keyasint"`
}

// PathPoint is one budget of a chain.
type PathPoint struct {
	Branch capability.BranchID `cbor:"1,keyasint"`
	Limit  uint64              `cbor:"2,keyasint"`
}

// Lease deducts up to Want calls from every budget of Path, or from none. Result: *LeaseResult.
type Lease struct {
	ID     LeaseID               `cbor:"1,keyasint"` // random
	Token  capability.TokenID    `cbor:"2,keyasint"`
	Chain  []capability.BranchID `cbor:"3,keyasint"` // every point of the macaroon shown, for revocation
	Path   []PathPoint           `cbor:"4,keyasint"` // outermost first
	Want   uint64                `cbor:"5,keyasint"`
	Lessee string                `cbor:"6,keyasint"`
	// Close, if not zero, is a lease of the same lessee to close first, crediting Unspent.
	Close   LeaseID `cbor:"7,keyasint,omitzero"`
	Unspent uint64  `cbor:"8,keyasint,omitempty"`
}

// LeaseResult is what was granted.
type LeaseResult struct {
	Index   uint64  `cbor:"1,keyasint"`
	Lease   LeaseID `cbor:"2,keyasint"` // the earlier one on a retry
	Granted uint64  `cbor:"3,keyasint"`
	Expires int64   `cbor:"4,keyasint"` // Unix ms: the token's not-after
}

// Return closes a lease, crediting what is unspent once. Result: *ReturnResult.
type Return struct {
	ID      LeaseID `cbor:"1,keyasint"`
	Lessee  string  `cbor:"2,keyasint"`
	Unspent uint64  `cbor:"3,keyasint"`
}

// ReturnResult says what was credited, and of an open lease for which token, from
// version 2 of the cluster on.
type ReturnResult struct {
	Credited uint64             `cbor:"1,keyasint"`
	Token    capability.TokenID `cbor:"2,keyasint,omitzero"`
}

// Expire drops everything whose hard ceiling is before T. Result: *ExpireResult.
type Expire struct {
	T int64 `cbor:"1,keyasint"` // Unix ms
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
	Key       SealedKey `cbor:"1,keyasint"`
	MintsFrom int64     `cbor:"2,keyasint"` // Unix ms; at least stamp + twice the bound
	OldUntil  int64     `cbor:"3,keyasint"` // Unix ms: the epoch before verifies nothing after
}

// EpochRecord describes an epoch.
type EpochRecord struct {
	Epoch     uint32 `cbor:"1,keyasint"`
	Published int64  `cbor:"2,keyasint"`
	MintsFrom int64  `cbor:"3,keyasint"`
	Until     int64  `cbor:"4,keyasint,omitempty"` // 0: open
	Revoked   bool   `cbor:"5,keyasint,omitempty"`
}

// Rekey moves an audience to its next generation. Result: *RekeyResult.
type Rekey struct {
	Audience  string `cbor:"1,keyasint"`
	Reason    string `cbor:"2,keyasint"`
	MintsFrom int64  `cbor:"3,keyasint"` // Unix ms: the next generation mints from; at least stamp + twice the bound
	OldUntil  int64  `cbor:"4,keyasint"` // Unix ms: the one before verifies nothing after
}

// GenerationRecord describes one generation of an audience's keys. Generation
// 0 is every audience's first and has no record until the second comes.
type GenerationRecord struct {
	Generation uint32 `cbor:"1,keyasint"`
	Published  int64  `cbor:"2,keyasint"`
	MintsFrom  int64  `cbor:"3,keyasint"`
	Until      int64  `cbor:"4,keyasint,omitempty"` // 0: open
}

// RekeyResult is the audience's new generation.
type RekeyResult struct {
	Generation uint32 `cbor:"1,keyasint"`
}

// AddService records a service and the hash of its join secret. Result: *ServiceRecord.
type AddService struct {
	Name      string   `cbor:"1,keyasint"`
	Audiences []string `cbor:"2,keyasint"`
	Derive    []string `cbor:"3,keyasint,omitempty"`
	Keyless   bool     `cbor:"4,keyasint,omitempty"`
	JoinHash  Digest   `cbor:"5,keyasint"` // SHA-256 of the secret; spent: zero
	JoinUntil int64    `cbor:"6,keyasint"`
}

// ServiceRecord describes a service.
type ServiceRecord struct {
	AddService
	Added   int64  `cbor:"32,keyasint"`
	AddedBy string `cbor:"33,keyasint"`
	Joined  bool   `cbor:"34,keyasint,omitempty"`
}

// JoinService spends a join secret (or renews, with Actor being the service's
// own credential and Hash zero) and registers the credential. Result: *TokenRecord.
type JoinService struct {
	Name    string      `cbor:"1,keyasint"`
	Hash    Digest      `cbor:"2,keyasint,omitzero"`
	Record  TokenRecord `cbor:"3,keyasint"`
	Caveats []string    `cbor:"4,keyasint,omitempty"`
}

// RemoveService removes a service and revokes its credentials. Result: *RevokeResult.
type RemoveService struct {
	Name   string `cbor:"1,keyasint"`
	Reason string `cbor:"2,keyasint"`
}

// SetKey stores sealed key material, replacing the same purpose and epoch. Result:
// *SetKeyResult.
type SetKey struct {
	Key SealedKey `cbor:"1,keyasint"`
}

// SetKeyResult says when the key was set.
type SetKeyResult struct {
	Index uint64 `cbor:"1,keyasint"`
}

// CheckHash stops a node whose state's hash differs.
type CheckHash struct {
	Index uint64 `cbor:"1,keyasint"`
	Hash  Digest `cbor:"2,keyasint"`
}

// Reincarnate starts a new incarnation after a restore.
type Reincarnate struct {
	Incarnation uint64 `cbor:"1,keyasint"`
	Origin      string `cbor:"2,keyasint"`
}
