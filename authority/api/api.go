// Package api holds the authority's wire types: what travels as JSON between
// authority/server and authority/client. Fields are snake_case, times are RFC
// 3339 in UTC, ids are in their canonical text forms, byte strings are
// standard base64. Unknown fields are refused on both sides.
//
// Every endpoint is authorized by a capability of the audience "writ"
// (Authorization: Bearer writ_…) that allows the action on the resource
// listed beside it below, unless it says otherwise. NAME and AUD stand for the
// service and the audience concerned.
//
//	POST /v1/tokens                  issue    audiences/AUD/tokens
//	POST /v1/tokens/derive           derive   audiences/AUD/tokens
//	GET  /v1/tokens                  read     tokens
//	GET  /v1/tokens/{id}             read     tokens/ID
//	POST /v1/revocations             revoke   audiences/AUD/tokens, subjects/S, holders/K, devices/D, audiences/AUD, epochs/N
//	POST /v1/revocations/self        (the token in the body is the authorization: its holder may revoke its own branch)
//	GET  /v1/revocations             read     revocations
//	POST /v1/feed                    feed     audiences/AUD for each audience asked for (the body is a stream of pings, the answer one of events)
//	POST /v1/leases                  lease    audiences/AUD/budgets
//	POST /v1/leases/{id}/return      lease    audiences/AUD/budgets
//	POST /v1/registered              feed     audiences/AUD
//	GET  /v1/keys                    keys     audiences/AUD
//	GET  /v1/keys/epochs             read     keys
//	POST /v1/keys/rotate             rotate   keys
//	POST /v1/keys/rekey              rotate   audiences/AUD
//	GET  /v1/keys/recipients         read     keys
//	POST /v1/keys/recovery           seal     keys/recovery
//	POST /v1/keys/cluster            seal     keys/cluster
//	GET  /v1/keys/ca                 read     keys
//	POST /v1/keys/ca                 seal     keys/ca
//	POST /v1/keys/ca/retire          seal     keys/ca
//	GET  /v1/cluster/snapshot        backup   cluster/snapshot (a sealed file)
//	POST /v1/verify                  verify   audiences/AUD
//	POST /v1/services                services services/NAME
//	GET  /v1/services                read     services
//	DELETE /v1/services/{name}       services services/NAME
//	POST /v1/services/join           (the single-use join secret in the body is the authorization)
//	POST /v1/services/renew          renew    services/self, by the service's own credential as it was issued
//	GET  /v1/dischargers             read     dischargers
//	POST /v1/attest/begin            (the caveat id in the body is the authorization; without one: enroll on devices)
//	POST /v1/attest/finish           (the challenge in the body is the authorization)
//	GET  /v1/attest/policies         read     policies
//	POST /v1/attest/policies         policies policies
//	GET  /v1/attest/policies/{name}  read     policies
//	DELETE /v1/attest/policies/{name} policies policies
//	GET  /v1/attest/roots            read     roots
//	POST /v1/attest/roots/{name}     policies roots
//	GET  /v1/attest/roots/{name}     read     roots
//	DELETE /v1/attest/roots/{name}   policies roots
//	GET  /v1/devices                 read     devices
//	GET  /v1/devices/{device}        read     devices/D
//	POST /v1/devices/{device}/forget devices  devices/D
//	GET  /v1/audit/checkpoint        read     audit
//	GET  /v1/audit/records           read     audit
//	GET  /v1/audit/inclusion         read     audit/proofs
//	GET  /v1/audit/consistency       read     audit/proofs
//	GET  /v1/status                  read     status
//	GET  /v1/cluster                 read     cluster
//	POST /v1/cluster/tokens          cluster  nodes
//	POST /v1/cluster/join            (the single-use join token in the body is the authorization)
//	POST /v1/cluster/clean-up        cluster  nodes
//	POST /v1/cluster/nodes/{node}/promote cluster nodes/NODE
//	POST /v1/cluster/nodes/{node}/demote  cluster nodes/NODE
//	POST /v1/cluster/nodes/{node}/lead    cluster nodes/NODE
//	DELETE /v1/cluster/nodes/{node}  cluster  nodes/NODE
//	POST /v1/cluster/nodes/{node}/expel seal  nodes/NODE
//	POST /oauth/token                derive   audiences/AUD/tokens (RFC 8693, a face of derive)
//	POST /oauth/introspect           verify   audiences/AUD (RFC 7662, for one call)
//	POST /oauth/revoke               (the token in the form is the authorization; RFC 7009)
//	GET  /.well-known/oauth-authorization-server (anyone; RFC 8414)
//	GET  /v1/openapi.json            (anyone)
//	/livez /readyz /metrics          (anyone; metrics can be moved to another listener)
package api

import (
	"time"

	"github.com/writ-dev/writ/capability"
)

// AdminAudience is the audience of the authority's own capabilities. It has a
// key series of its own, which is never exported.
const AdminAudience = "writ"

// Headers of the API.
const (
	// HeaderRequestID carries the caller's id for a change, so that a retry is
	// harmless: a UUIDv7, whose time the authority holds against its window.
	HeaderRequestID = "Writ-Request-Id"
	// HeaderDischarges carries discharges that did not fit beside the token.
	HeaderDischarges = "Writ-Discharges"
)

// Problem is a refusal in the form of RFC 9457 (application/problem+json).
type Problem struct {
	Type      string `json:"type"`             // "about:blank"
	Title     string `json:"title"`            // the HTTP status in words
	Status    int    `json:"status"`           // the HTTP status
	Code      Code   `json:"code"`             // stable; also every capability.Code
	Detail    string `json:"detail,omitempty"` // what the caller may know
	Hint      string `json:"hint,omitempty"`   // what the caller can do
	Reference string `json:"reference"`        // random; the log line has the same
}

// Code is a machine-readable refusal of the API: one of capability.Code or one of these.
type Code = capability.Code

// Codes beyond those of package capability.
const (
	CodeInvalid        Code = "invalid_request" // 400: the body or a parameter is wrong; Detail says which
	CodeNotFound       Code = "not_found"       // 404
	CodeConflict       Code = "conflict"        // 409: another body for the same request id, or the name is taken
	CodeRequestExpired Code = "request_expired" // 410: the request id is older than the window; nothing was done
	CodeOverloaded     Code = "overloaded"      // 429 with Retry-After: nothing was done
	CodeNotLeader      Code = "not_leader"      // 503 with Retry-After: nothing was done
	CodeIndeterminate  Code = "indeterminate"   // 503: may or may not have been done; retry with the same request id
	CodeTooOld         Code = "cursor_too_old"  // 410: take a snapshot
	CodeInternal       Code = "internal"        // 500
	CodeAuditCorrupt   Code = "audit_corrupt"   // 500: the node's audit files hold what it never wrote
	CodeDiskFull       Code = "disk_full"       // 503: the authority cannot write; nothing was done
	CodeUnauthorized   Code = "unauthorized"    // 401: no credential
	CodeBodyTooLarge   Code = "body_too_large"  // 413
)

// Agent is the context of the agent that a token is for, as recorded at issue.
type Agent struct {
	Name        string `json:"name,omitempty"`
	Version     string `json:"version,omitempty"`
	Host        string `json:"host,omitempty"`
	ProcessHash string `json:"process_hash,omitempty"`
}

// IssueRequest asks for a token.
type IssueRequest struct {
	Audience   string              `json:"audience"`
	Subject    string              `json:"subject"`
	Owner      string              `json:"owner"`
	Purpose    string              `json:"purpose"`
	Auditor    string              `json:"auditor,omitempty"`
	Agent      *Agent              `json:"agent,omitempty"`
	TTLSeconds int64               `json:"ttl_seconds,omitempty"` // 0: 300; at most 900 (30 days for the audience "writ")
	Caveats    []string            `json:"caveats,omitempty"`
	ThirdParty []ThirdPartyRequest `json:"third_party,omitempty"`
}

// ThirdPartyRequest asks for a third-party caveat, after the first-party ones.
type ThirdPartyRequest struct {
	Discharger string `json:"discharger"` // a name from /v1/dischargers
	Condition  string `json:"condition"`
	Holder     string `json:"holder,omitempty"`
	Device     string `json:"device,omitempty"`
	AnyMachine bool   `json:"any_machine,omitempty"`
}

// TokenResponse is an issued token.
type TokenResponse struct {
	Token    string              `json:"token"` // text form: a credential
	ID       capability.TokenID  `json:"id"`
	Branch   capability.BranchID `json:"branch"`
	NotAfter time.Time           `json:"not_after"`
	Index    uint64              `json:"index"` // of the Raft log
}

// DeriveRequest asks for a token for another audience that dies with the one
// presented. The caller's own credential is the service's that holds it.
type DeriveRequest struct {
	Token      string   `json:"token"` // the presentation, with its discharges
	Audience   string   `json:"audience"`
	TTLSeconds int64    `json:"ttl_seconds,omitempty"`
	Caveats    []string `json:"caveats,omitempty"`
}

// TokenInfo is what the registry knows of a token. It is no credential.
type TokenInfo struct {
	ID         capability.TokenID  `json:"id"`
	Audience   string              `json:"audience"`
	Subject    string              `json:"subject"`
	Owner      string              `json:"owner"`
	Purpose    string              `json:"purpose"`
	Auditor    string              `json:"auditor,omitempty"`
	Agent      *Agent              `json:"agent,omitempty"`
	IssuedBy   string              `json:"issued_by"`
	Issued     time.Time           `json:"issued"`
	NotAfter   time.Time           `json:"not_after"`
	Epoch      uint32              `json:"epoch"`
	Generation uint32              `json:"generation"`
	Caveats    []string            `json:"caveats"` // third-party ones as "third-party …"
	Branch     capability.BranchID `json:"branch"`
	Parent     *capability.TokenID `json:"parent,omitempty"`
	Actors     []string            `json:"actors,omitempty"` // the services between, outermost first
	Revoked    bool                `json:"revoked"`
	Budgets    []BudgetInfo        `json:"budgets,omitempty"`
}

// BudgetInfo is the state of one max-calls.
type BudgetInfo struct {
	Branch    capability.BranchID `json:"branch"`
	Limit     uint64              `json:"limit"`
	Remaining uint64              `json:"remaining"` // not yet leased
	Leased    uint64              `json:"leased"`    // in open leases: at hand with a verifier, spent there, or lost with it
}

// TokenList is one page of tokens.
type TokenList struct {
	Tokens []TokenInfo `json:"tokens"`
	Next   string      `json:"next,omitempty"` // cursor of the next page
	AsOf   uint64      `json:"as_of"`          // index the answer is as fresh as
}

// RevokeRequest revokes. Exactly the fields of Kind are set. Idempotent.
type RevokeRequest struct {
	Kind     RevocationKind `json:"kind"`
	Token    string         `json:"token,omitempty"`    // id: kinds token, branch
	Branch   string         `json:"branch,omitempty"`   // kind branch
	Subject  string         `json:"subject,omitempty"`  // kind subject: all issued until now
	Holder   string         `json:"holder,omitempty"`   // kind holder
	Device   string         `json:"device,omitempty"`   // kind device
	Audience string         `json:"audience,omitempty"` // kind audience: all issued until now
	Epoch    uint32         `json:"epoch,omitempty"`    // kind epoch
	Reason   string         `json:"reason"`
}

// RevocationKind is what a revocation names.
type RevocationKind string

// The kinds of revocation.
const (
	RevokeToken    RevocationKind = "token"
	RevokeBranch   RevocationKind = "branch"
	RevokeSubject  RevocationKind = "subject"
	RevokeHolder   RevocationKind = "holder"
	RevokeDevice   RevocationKind = "device"
	RevokeAudience RevocationKind = "audience"
	RevokeEpoch    RevocationKind = "epoch"
)

// SelfRevokeRequest revokes the branch of the token it carries, or the whole
// token if it is as it was issued.
type SelfRevokeRequest struct {
	Token  string `json:"token"`
	Reason string `json:"reason"`
	Whole  bool   `json:"whole,omitempty"` // needs a credential that may revoke; the token is only how it is named
}

// RevokeResponse acknowledges: no verifier accepts later than its bound from now.
type RevokeResponse struct {
	Index   uint64         `json:"index"`
	Kind    RevocationKind `json:"kind"`
	Token   string         `json:"token,omitempty"`
	Branch  string         `json:"branch,omitempty"`
	Reached int            `json:"reached"` // tokens derived from it that died with it
}

// RevocationInfo is one revocation in force.
type RevocationInfo struct {
	RevokeRequest
	By      string    `json:"by"`
	At      time.Time `json:"at"`
	Expires time.Time `json:"expires"`
	Index   uint64    `json:"index"`
}

// RevocationList is one page of revocations.
type RevocationList struct {
	Revocations []RevocationInfo `json:"revocations"`
	Next        string           `json:"next,omitempty"`
	AsOf        uint64           `json:"as_of"`
}

// Cursor is a position in the feed. Both only rise.
type Cursor struct {
	Incarnation uint64 `json:"incarnation"`
	Index       uint64 `json:"index"`
}

// FeedEvent is one line of the feed (application/x-ndjson). Exactly one field
// besides At is set.
type FeedEvent struct {
	At Cursor `json:"at"`
	// Hello is the first line.
	Hello *FeedHello `json:"hello,omitempty"`
	// Snapshot begins or ends a whole new set, to be swapped in at its end.
	Snapshot string `json:"snapshot,omitempty"` // "begin" or "end"
	// Ended comes with "begin": of tokens that end at or before it, Unix ms, the
	// snapshot may not know that they were revoked. They have ended by the clock of
	// the authority, whatever the reader's says.
	Ended int64 `json:"ended_ms,omitempty"`
	// Revoke adds a revocation.
	Revoke *FeedRevocation `json:"revoke,omitempty"`
	// Issued registers a token, if the stream asked for registered tokens.
	Issued *FeedIssued `json:"issued,omitempty"`
	// Keys says that the keys of the stream's audiences have changed: fetch them.
	Keys bool `json:"keys,omitempty"`
	// Recall asks for unspent calls of a lease path to be given back.
	Recall *FeedRecall `json:"recall,omitempty"`
	// Pong answers a ping: everything up to At has been streamed before it, and
	// a quorum read begun after the ping arrived vouches for At.
	Pong *FeedPong `json:"pong,omitempty"`
	// Checkpoint is the audit log's signed checkpoint, now and then.
	Checkpoint string `json:"checkpoint,omitempty"`
}

// FeedHello opens a stream.
type FeedHello struct {
	Stream string `json:"stream"` // random id, as the node's log has it
	Node   string `json:"node"`
	Bound  int64  `json:"bound_ms"` // the cluster's staleness bound, milliseconds
}

// FeedRevocation is a revocation as verifiers need it.
type FeedRevocation struct {
	Kind     RevocationKind `json:"kind"`
	Token    string         `json:"token,omitempty"`
	Branch   string         `json:"branch,omitempty"`
	Subject  string         `json:"subject,omitempty"`
	Holder   string         `json:"holder,omitempty"`
	Device   string         `json:"device,omitempty"`
	Audience string         `json:"audience,omitempty"`
	Epoch    uint32         `json:"epoch,omitempty"`
	Until    int64          `json:"until,omitempty"` // kinds subject, audience: issued at or before, Unix ms
	Expires  int64          `json:"expires"`         // Unix ms; forget it after
}

// FeedIssued registers a token.
type FeedIssued struct {
	Token   capability.TokenID  `json:"token"`
	Branch  capability.BranchID `json:"branch"` // of the issued tail
	Expires int64               `json:"expires"`
}

// FeedRecall names a lease to give back from.
type FeedRecall struct {
	Lease string `json:"lease"`
}

// FeedPong answers one ping.
type FeedPong struct {
	Nonce uint64 `json:"nonce"`
}

// FeedPing is one line of the body of a feed's request (application/x-ndjson),
// at most MaxFeedPing bytes: it asks for a pong. The body goes on beside the answer,
// on the same connection: over HTTP/1.1 in chunks, over HTTP/2 in frames. Its end
// does not end the feed.
type FeedPing struct {
	Nonce uint64 `json:"nonce"`
}

// MaxFeedPing bounds a ping's line, its end included, in bytes.
const MaxFeedPing = 64

// LeaseRequest asks for calls. The macaroon goes through its deepest
// max-calls; the authority verifies it, so that neither limit nor branch is
// taken on trust.
type LeaseRequest struct {
	Macaroon []byte `json:"macaroon"`          // binary root macaroon
	Want     uint64 `json:"want"`              // calls wished for, at least 1
	Lease    string `json:"lease,omitempty"`   // a lease of the same path to close first …
	Unspent  uint64 `json:"unspent,omitempty"` // … crediting this many
}

// LeaseResponse grants calls.
type LeaseResponse struct {
	Lease   string              `json:"lease"` // 128 random bits, hex
	Token   capability.TokenID  `json:"token"`
	Branch  capability.BranchID `json:"branch"`
	Granted uint64              `json:"granted"` // at least 1
	Expires time.Time           `json:"expires"`
	Index   uint64              `json:"index"`
}

// ReturnRequest gives unspent calls back and closes the lease.
type ReturnRequest struct {
	Unspent uint64 `json:"unspent"`
}

// ReturnResponse says what was credited: 0 for a lease unknown or closed.
type ReturnResponse struct {
	Credited uint64 `json:"credited"`
}

// RegisteredRequest asks whether tokens are registered.
type RegisteredRequest struct {
	Audience string             `json:"audience"`
	Token    capability.TokenID `json:"token"`
}

// RegisteredResponse answers; Branch is meaningless unless Registered.
type RegisteredResponse struct {
	Registered bool                `json:"registered"`
	Branch     capability.BranchID `json:"branch"`
	Expires    int64               `json:"expires"`
}

// KeySet is the root keys of audiences: secrets.
type KeySet struct {
	Keys []Key  `json:"keys"`
	AsOf Cursor `json:"as_of"`
}

// Key is one root key: a secret.
type Key struct {
	Audience   string    `json:"audience"`
	Epoch      uint32    `json:"epoch"`
	Generation uint32    `json:"generation"`
	Secret     []byte    `json:"secret"` // 32 bytes
	Until      time.Time `json:"until"`  // verifies nothing after; zero while the epoch mints
}

// EpochInfo describes a master key's epoch; it holds no key.
type EpochInfo struct {
	Epoch     uint32    `json:"epoch"`
	Published time.Time `json:"published"`
	MintsFrom time.Time `json:"mints_from"`
	Until     time.Time `json:"until"` // zero: current or coming
	State     string    `json:"state"` // published, minting, verifying, revoked
}

// EpochList lists epochs.
type EpochList struct {
	Epochs      []EpochInfo       `json:"epochs"`
	Generations map[string]uint32 `json:"generations"` // of audiences that were rekeyed
}

// RekeyRequest moves one audience to its next generation.
type RekeyRequest struct {
	Audience string `json:"audience"`
	Reason   string `json:"reason"`
}

// RekeyResponse is the audience's new generation.
type RekeyResponse struct {
	Audience   string `json:"audience"`
	Generation uint32 `json:"generation"`
}

// VerifyRequest asks whether exactly this token set is genuine.
type VerifyRequest struct {
	Set []byte `json:"set"`
}

// VerifyResponse is yes, with the branch ids of the root's points (identifier
// first). A no is a Problem. Never a signature, never a caveat key.
type VerifyResponse struct {
	Branches []capability.BranchID `json:"branches"`
	NotAfter time.Time             `json:"not_after"`
	AsOf     Cursor                `json:"as_of"`
}

// ServiceRequest adds a service.
type ServiceRequest struct {
	Name      string   `json:"name"`
	Audiences []string `json:"audiences"`         // may hold their keys, feed and leases
	Derive    []string `json:"derive,omitempty"`  // may derive tokens for these
	Keyless   bool     `json:"keyless,omitempty"` // verify through the authority instead of keys
}

// ServiceResponse carries the single-use join secret, shown once.
type ServiceResponse struct {
	Name       string    `json:"name"`
	JoinSecret string    `json:"join_secret"`
	Expires    time.Time `json:"expires"`
}

// JoinRequest exchanges a join secret for a credential, once.
type JoinRequest struct {
	Name       string `json:"name"`
	JoinSecret string `json:"join_secret"`
	// Holder binds the credential, and each that renews it, to the service's key
	// ("jkt:…", pop.Key.HolderKey); empty: a bearer token.
	Holder string `json:"holder,omitempty"`
}

// CredentialResponse is a service's credential: a capability of audience writ.
type CredentialResponse struct {
	Token    string    `json:"token"`
	NotAfter time.Time `json:"not_after"`
}

// ServiceInfo describes a service.
type ServiceInfo struct {
	Name      string    `json:"name"`
	Audiences []string  `json:"audiences"`
	Derive    []string  `json:"derive,omitempty"`
	Keyless   bool      `json:"keyless,omitempty"`
	Joined    bool      `json:"joined"`
	Added     time.Time `json:"added"`
	AddedBy   string    `json:"added_by"`
}

// ServiceList lists services.
type ServiceList struct {
	Services []ServiceInfo `json:"services"`
}

// DischargerInfo names a discharger and its HPKE public key.
type DischargerInfo struct {
	Name      string `json:"name"`
	Location  string `json:"location"`
	PublicKey []byte `json:"public_key"` // 32 bytes
}

// DischargerList lists dischargers.
type DischargerList struct {
	Dischargers []DischargerInfo `json:"dischargers"`
}

// CheckpointResponse is the audit log's signed checkpoint (C2SP tlog-checkpoint).
type CheckpointResponse struct {
	Checkpoint  string `json:"checkpoint"`
	VerifierKey string `json:"verifier_key"` // note verifier key; trust it only from elsewhere
}

// AuditRecords is a run of audit records.
type AuditRecords struct {
	From    int64    `json:"from"`
	Records [][]byte `json:"records"` // canonical JSON each
	Size    int64    `json:"size"`    // of the log
}

// Proof is an inclusion or a consistency proof.
type Proof struct {
	Hashes [][]byte `json:"hashes"` // 32 bytes each
}

// Status is what a node says of itself.
type Status struct {
	Node        string    `json:"node"`
	Cluster     string    `json:"cluster"`
	Version     string    `json:"version"`
	Incarnation uint64    `json:"incarnation"`
	Leader      bool      `json:"leader"`
	Term        uint64    `json:"term"`
	Applied     uint64    `json:"applied"`
	Tokens      int       `json:"tokens"`
	Revocations int       `json:"revocations"`
	Services    int       `json:"services"`
	Epoch       uint32    `json:"epoch"`
	AuditSize   int64     `json:"audit_size"`
	Started     time.Time `json:"started"`
}
