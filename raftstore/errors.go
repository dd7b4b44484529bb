package raftstore

import "errors"

// The errors that a caller can decide on. Match them with errors.Is; most come
// wrapped, with detail, and some in pairs (ErrDiskFull with ErrNotLeader).
var (
	// ErrNotLeader: this node does not lead, or has not yet committed in its
	// own term, or is handing over. The command was not and will not be
	// applied. Retry at the leader.
	ErrNotLeader = errors.New("raftstore: not the leader")

	// ErrIndeterminate: the command may or may not have been applied, and may
	// still be: leadership was lost, the context ended, or the store closed
	// while it was under way.
	ErrIndeterminate = errors.New("raftstore: outcome unknown")

	// ErrClosed: the store was closed, or has failed for good, before the call
	// had any effect.
	ErrClosed = errors.New("raftstore: closed")

	// ErrTooLarge: the command is bigger than Config.MaxCommand.
	ErrTooLarge = errors.New("raftstore: command too large")

	// ErrLocked: another process (or another Store of this one) has the
	// directory open.
	ErrLocked = errors.New("raftstore: directory is in use")

	// ErrCorrupt: what is on disk does not match its checksum or contradicts
	// itself. The detail names the file. See Corruption.
	ErrCorrupt = errors.New("raftstore: corrupt")

	// ErrDiskFull: the write was refused for want of space (or quota). The
	// command was not and will not be applied; nothing acknowledged is lost;
	// retry once there is space.
	ErrDiskFull = errors.New("raftstore: disk full")

	// ErrDiskStalled: a write took longer than Config.DiskStall: handed to
	// Config.OnFatal. Or Close could not stop the node in that time; the
	// directory then stays locked until the process ends.
	ErrDiskStalled = errors.New("raftstore: disk stalled")

	// ErrStateMachine: the state machine panicked or broke its contract. Handed
	// to Config.OnFatal, or returned by Open.
	ErrStateMachine = errors.New("raftstore: state machine failed")

	// ErrEmptyDir: the directory holds no node and neither Config.Bootstrap nor
	// Config.Join was given.
	ErrEmptyDir = errors.New("raftstore: directory holds no node")

	// ErrNotEmpty: the directory holds a node already.
	ErrNotEmpty = errors.New("raftstore: directory holds a node")

	// ErrConfig: the configuration contradicts itself.
	ErrConfig = errors.New("raftstore: invalid configuration")

	// ErrUnreachable: a peer could not be reached. The call was not executed.
	ErrUnreachable = errors.New("raftstore: peer unreachable")

	// ErrRefused: a peer does not accept this node, or is not the node that it
	// should be. The call was not executed.
	ErrRefused = errors.New("raftstore: peer refused")

	// ErrBusy: a peer has too many calls under way. The call was not executed.
	ErrBusy = errors.New("raftstore: peer busy")

	// ErrUnknownMember: the cluster has no node of that id.
	ErrUnknownMember = errors.New("raftstore: no such member")

	// ErrQuorum: the change would leave the cluster without a majority that
	// answers, or without a voter.
	ErrQuorum = errors.New("raftstore: change would lose the quorum")

	// ErrLagging: the node has not caught up enough to become a voter.
	ErrLagging = errors.New("raftstore: member lags behind")

	// ErrRemoved: this node is no longer a member, and cannot become one under
	// this id again. Handed to Config.OnFatal, and returned by Open from then on.
	ErrRemoved = errors.New("raftstore: removed from the cluster")

	// ErrMember: the node's id is taken by a member of the cluster that the
	// snapshot was taken of.
	ErrMember = errors.New("raftstore: id is of a member")

	// ErrNothingNew: Snapshot found nothing applied since the last one.
	ErrNothingNew = errors.New("raftstore: nothing new to snapshot")
)

// Corruption says what is wrong with which file. It matches ErrCorrupt.
type Corruption struct {
	Path   string
	Detail string
}

func (c *Corruption) Error() string { return ErrCorrupt.Error() + ": " + c.Path + ": " + c.Detail }

// Unwrap makes errors.Is(err, ErrCorrupt) true.
func (c *Corruption) Unwrap() error { return ErrCorrupt }
