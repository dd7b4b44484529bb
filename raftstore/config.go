package raftstore

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/hashicorp/raft"
)

// StateMachine is what a Store replicates. Apply, Snapshot and Restore are
// called from one goroutine at a time. A panic in any of them, or in Persist,
// ends the process through Config.OnFatal.
type StateMachine interface {
	// Apply takes in committed entries, in order, and returns one result for
	// each. It must be deterministic: no clock, no randomness, no map order.
	// Indexes rise but are not consecutive, since Raft has entries of its own.
	// The state machine keeps the last index with its state, atomically: what
	// is at or below AppliedIndex is not delivered again. An entry's Command
	// must not be modified, and may be kept. Where a disk of its own is full,
	// Apply waits for space: it cannot fail, and a panic ends the process.
	Apply(batch []Entry) []any

	// Snapshot captures the state as of now. It must be quick, since nothing
	// is applied meanwhile; the writing happens in Persist.
	Snapshot() (Snapshot, error)

	// Restore replaces the whole state with what a Persist wrote, and
	// AppliedIndex with it.
	Restore(r io.Reader) error

	// AppliedIndex is the index of the last entry that the state holds, 0 for
	// an empty one. Safe for concurrent use.
	AppliedIndex() uint64
}

// Snapshot is a captured state. Persist runs concurrently with Apply; Release is
// called once, after it, or without it when the snapshot was not wanted.
type Snapshot interface {
	Persist(w io.Writer) error
	Release()
}

// Entry is one committed command.
type Entry struct {
	Index, Term uint64
	Command     []byte
}

// Defaults of Config, for nodes on one local network. With these a cluster
// fails over in about half a second.
const (
	DefaultHeartbeatTimeout  = 200 * time.Millisecond
	DefaultElectionTimeout   = 200 * time.Millisecond
	DefaultLeaderLease       = 100 * time.Millisecond
	DefaultSnapshotThreshold = 16384
	DefaultTrailingLogs      = 10240
	DefaultSnapshotBytes     = 64 << 20
	DefaultTrailingBytes     = 64 << 20
	DefaultSnapshotInterval  = 30 * time.Second
	DefaultDiskStall         = 5 * time.Second
	DefaultMaxCommand        = 1 << 20
)

// Config says how to open a Store. Dir and NodeID are required, and Bootstrap
// or Join the first time.
type Config struct {
	// Dir holds raft.db, snapshots/ and LOCK. Created with mode 0700.
	Dir string

	// NodeID names this node in the cluster's configuration, for good.
	NodeID string

	// Transport carries Raft between nodes; the Store closes it if it can be
	// closed. Nil is in memory, for a cluster of one.
	Transport raft.Transport

	// Peers carries calls between the nodes. Nil is the Transport, where that
	// can; without, there are no linearizable reads once there are other voters.
	Peers Peers

	// Bootstrap forms a new cluster with this node as its one voter when Dir
	// holds no node yet; otherwise it is ignored.
	Bootstrap bool

	// Join starts a node without any configuration when Dir holds no node yet;
	// it waits until a leader adds it. Not together with Bootstrap.
	Join bool

	// Profile sets the timeouts that are left zero below.
	Profile Profile

	// HeartbeatTimeout is how long a follower waits for its leader, and
	// ElectionTimeout a candidate for its votes (at least HeartbeatTimeout).
	// LeaderLeaseTimeout is how long a leader leads without hearing from a
	// quorum: at most half of HeartbeatTimeout, or reads could be stale.
	HeartbeatTimeout, ElectionTimeout, LeaderLeaseTimeout time.Duration

	// A snapshot is taken when, at a check every SnapshotInterval (to twice
	// that), SnapshotThreshold entries came since the last, and at once when
	// SnapshotBytes of them did, or down to half of that: every node at its own
	// time.
	SnapshotThreshold, SnapshotBytes uint64
	SnapshotInterval                 time.Duration

	// What stays in the log behind a snapshot, for followers that are a little
	// late, is at most TrailingLogs entries and at most TrailingBytes of them,
	// but always the last. A follower that is further behind gets the snapshot:
	// beyond some size that is less to send, and the log would otherwise take
	// as many bytes as its entries happen to have.
	TrailingLogs, TrailingBytes uint64

	// DiskStall is how long one write to raft.db may take.
	DiskStall time.Duration

	// MaxCommand bounds a command, in bytes.
	MaxCommand int

	// OnFatal gets what the process cannot recover from, once, and must end
	// it. It runs on whatever goroutine met the error, and must not call
	// Close. The default logs and exits with status 1. If it returns all the
	// same, the Store stops taking part: it acknowledges nothing any more.
	OnFatal func(error)

	// Faults is for tests, see raftstoretest. Nil leaves the disk alone.
	Faults Faults

	// Logger gets Raft's messages too. Nil discards.
	Logger *slog.Logger

	commitTimeout time.Duration

	wrapLogs   func(logStore) logStore       // tests put faults in here
	wrapStable func(stableStore) stableStore // tests put faults in here
}

// withDefaults returns cfg with its zero values replaced, or ErrConfig.
func (cfg Config) withDefaults() (Config, error) {
	t, err := cfg.Profile.timing()
	if err != nil {
		return cfg, err
	}
	cfg.commitTimeout = t.commit
	setDefault(&cfg.HeartbeatTimeout, t.heartbeat)
	setDefault(&cfg.ElectionTimeout, max(t.election, cfg.HeartbeatTimeout))
	setDefault(&cfg.LeaderLeaseTimeout, cfg.HeartbeatTimeout/2)
	setDefault(&cfg.SnapshotThreshold, DefaultSnapshotThreshold)
	setDefault(&cfg.TrailingLogs, DefaultTrailingLogs)
	setDefault(&cfg.SnapshotBytes, DefaultSnapshotBytes)
	setDefault(&cfg.TrailingBytes, DefaultTrailingBytes)
	setDefault(&cfg.SnapshotInterval, DefaultSnapshotInterval)
	setDefault(&cfg.DiskStall, DefaultDiskStall)
	setDefault(&cfg.MaxCommand, DefaultMaxCommand)
	if cfg.OnFatal == nil {
		logger := cfg.Logger
		if logger == nil {
			logger = slog.Default() // nobody dies in silence
		}
		cfg.OnFatal = func(err error) {
			logger.Error("raftstore cannot go on", "error", err)
			os.Exit(1)
		}
	}
	if peers, ok := cfg.Transport.(Peers); ok && cfg.Peers == nil {
		cfg.Peers = peers
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	switch {
	case cfg.Dir == "":
		return cfg, fmt.Errorf("%w: Dir is empty", ErrConfig)
	case cfg.NodeID == "":
		return cfg, fmt.Errorf("%w: NodeID is empty", ErrConfig)
	case cfg.Bootstrap && cfg.Join:
		return cfg, fmt.Errorf("%w: both Bootstrap and Join", ErrConfig)
	case cfg.Transport == nil && cfg.Join:
		return cfg, fmt.Errorf("%w: Join without a Transport", ErrConfig)
	case cfg.Transport != nil && !hasPreVote(cfg.Transport):
		return cfg, fmt.Errorf("%w: the Transport has no pre-vote", ErrConfig)
	case cfg.LeaderLeaseTimeout > cfg.HeartbeatTimeout/2:
		return cfg, fmt.Errorf("%w: LeaderLeaseTimeout %v is more than half of HeartbeatTimeout %v",
			ErrConfig, cfg.LeaderLeaseTimeout, cfg.HeartbeatTimeout)
	case cfg.MaxCommand < 0 || cfg.DiskStall < 0:
		return cfg, fmt.Errorf("%w: negative limit", ErrConfig)
	}
	return cfg, nil
}

func hasPreVote(t raft.Transport) bool {
	_, ok := t.(raft.WithPreVote)
	return ok
}

func setDefault[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

// raftConfig is what hashicorp/raft gets.
func (cfg Config) raftConfig() *raft.Config {
	rc := raft.DefaultConfig()
	rc.LocalID = raft.ServerID(cfg.NodeID)
	rc.HeartbeatTimeout = cfg.HeartbeatTimeout
	rc.ElectionTimeout = cfg.ElectionTimeout
	rc.LeaderLeaseTimeout = cfg.LeaderLeaseTimeout
	rc.SnapshotThreshold = cfg.SnapshotThreshold
	rc.SnapshotInterval = cfg.SnapshotInterval
	rc.TrailingLogs = cfg.TrailingLogs
	rc.CommitTimeout = cfg.commitTimeout
	rc.MaxAppendEntries = maxAppendEntries
	rc.BatchApplyCh = true
	rc.RestoreCommittedLogs = true
	rc.ShutdownOnRemove = false
	rc.NoLegacyTelemetry = true
	rc.Logger = newRaftLogger(cfg.Logger)
	return rc
}

// maxAppendEntries is how many commands share one append to the log.
const maxAppendEntries = 512
