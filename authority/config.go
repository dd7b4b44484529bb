package authority

import (
	"io"
	"log/slog"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/seal"
	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/raftstore"
)

// Defaults of Config.
const (
	DefaultBound       = 5 * time.Second
	DefaultRotateEvery = 24 * time.Hour
	// An entry holds up to 256 changes.
	DefaultSnapshotThreshold = 4096
)

// Config says how to open a node. Dir, NodeID and KeyFile are required.
type Config struct {
	// Dir holds everything but the key file: raft/, audit/ and state.db.
	// Created with mode 0700.
	Dir string

	// NodeID names this node for good: 1 to 64 bytes of visible ASCII.
	NodeID string

	// KeyFile is the node's identity, which unwraps the cluster key. It must lie
	// outside Dir, so that a copy of Dir is worth nothing. Created on Bootstrap.
	KeyFile string

	// Passphrase protects KeyFile; nil leaves it to the file's mode.
	Passphrase func() ([]byte, error)

	// Protector protects KeyFile in a passphrase's place, such as by a TPM. It reads
	// files of its kind, and is what a new file is written with. Nil: none.
	Protector seal.Protector

	// Bootstrap forms a cluster of one when Dir holds no node yet; otherwise it
	// is ignored.
	Bootstrap bool

	// Recovery, in the form "writ-recipient-…", is an offline identity that the
	// cluster key is wrapped for as well. Optional; only read on Bootstrap.
	Recovery string

	// Bound is how old a verifier's revocations may be before it denies; only
	// read on Bootstrap. 0: DefaultBound. At least 100 ms.
	Bound time.Duration

	// RotateEvery is how long a master key mints. 0: DefaultRotateEvery;
	// negative: only on demand.
	RotateEvery time.Duration

	// Peers is how the node talks with others. Nil: it is alone.
	Peers *PeerConfig

	// Joined is what the cluster answered to PrepareJoin's request, for the
	// first start of a node that joins one.
	Joined *api.ClusterJoinResponse

	// Dischargers are the dischargers for which third-party caveats are made.
	Dischargers []Discharger

	// SnapshotThreshold is how many log entries come between snapshots, and so
	// how many a start replays. 0: DefaultSnapshotThreshold.
	SnapshotThreshold uint64

	// TrailingLogs is how many entries stay in the log behind a snapshot, for
	// nodes that are a little late. 0: raftstore's default.
	TrailingLogs uint64

	// Hosts are the DNS names and IP addresses of the node's TLS certificate,
	// besides its node id, localhost and the loopback addresses.
	Hosts []string

	// Version is what Status says. Optional.
	Version string

	// Clock is the proposer's clock. Nil: time.Now.
	Clock func() time.Time

	// Boot is the clock of freshness, in nanoseconds; it must go on in suspend and
	// never back. Nil: CLOCK_BOOTTIME.
	Boot func() int64

	// Rand is where ids, keys and nonces come from. Nil: crypto/rand.Reader.
	Rand io.Reader

	// Faults is for tests, see raftstoretest. Nil leaves the disk alone.
	Faults raftstore.Faults

	// OnFatal gets what the process cannot recover from and must end it. Nil:
	// logs and exits with status 1.
	OnFatal func(error)

	// Logger is where the node logs. Nil discards.
	Logger *slog.Logger
}

// Discharger names someone who discharges third-party caveats.
type Discharger struct {
	Name      string // 1 to 64 bytes of visible ASCII
	Location  string // a hint in the caveat
	PublicKey capability.DischargerPublicKey
}

// Bootstrapped is what forming a cluster hands out, once.
type Bootstrapped struct {
	// RootToken is the root admin token in text form: a credential of the
	// audience "writ" that allows everything for 30 days. Nothing of it is kept.
	RootToken string
	// CAFingerprint is the SHA-256 of the cluster CA's certificate (DER).
	CAFingerprint [32]byte
}

// Caller is who calls, as the server's verifier found.
type Caller struct {
	Name     string                // subject of the credential
	Token    capability.TokenID    // of the credential
	Branches []capability.BranchID // every point of its chain
	Audience string                // of the credential: "writ"
	// Credential is the credential itself, as verified (Grant.Token). Issuing a
	// credential for the audience "writ" with a narrowed one needs it.
	Credential *capability.Token
}

// Call is a change that a Caller asks for.
type Call struct {
	Caller
	// Request makes a retry harmless: a UUIDv7 of the caller's, not older than
	// the window (state.RequestWindow). Zero: none, and a retry is another call.
	Request capability.TokenID
	// Body is the SHA-256 of the request: another body under the same Request is refused.
	Body [32]byte
}
