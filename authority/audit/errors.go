package audit

import (
	"errors"
	"fmt"
)

var (
	// ErrCorrupt is matched by a [CorruptError]: the files hold what this package never wrote. A node stops.
	ErrCorrupt = errors.New("audit log is corrupt")
	// ErrDiverged says that the log and the state machine disagree about history: another record at a replayed Raft index, or
	// another root at the same size. A node stops.
	ErrDiverged = errors.New("audit log diverges from the state")
	// ErrBehind says that the log lacks records which the state has: the node fetches them, rebuilds, or refuses to start.
	ErrBehind = errors.New("audit log is behind the state")
	// ErrOrigin says that a log or checkpoint is of another origin: another cluster or incarnation.
	ErrOrigin = errors.New("audit log has another origin")
	// ErrExists is returned by [Start] where a log is already there.
	ErrExists = errors.New("audit log exists")
	// ErrRange says that no record or tree of the number asked for is in the log.
	ErrRange = errors.New("outside the audit log")
	// ErrArchived says that a record's body was archived and discarded; its hash remains.
	ErrArchived = errors.New("audit record is archived")
	// ErrTooLarge says that a record is empty or longer than [MaxRecord], or that a batch is over its bounds.
	ErrTooLarge = errors.New("audit record is empty or too large")
	// ErrMalformed says that an encoding of this package was not parsed: edge, checkpoint, key.
	ErrMalformed = errors.New("malformed")
	// ErrSignature says that a checkpoint carries no good signature of the key asked for.
	ErrSignature = errors.New("checkpoint signature does not verify")
	// ErrProof says that a proof does not hold, or that two checkpoints cannot belong to one log.
	ErrProof = errors.New("audit proof does not hold")
	// ErrClosed is returned by every use of a closed log.
	ErrClosed = errors.New("audit log is closed")
)

// CorruptError says where a log is damaged. It matches [ErrCorrupt].
type CorruptError struct {
	File   string // base name
	Offset int64  // bytes from the file's start, as near as is known
	Reason string
	// Tail is set when the damage lies beyond what the last Sync made durable. A crash can leave that, and [Open] repairs it.
	Tail bool
}

func (e *CorruptError) Error() string {
	where := ""
	if e.Tail {
		where = " in the tail that was never synced"
	}
	return fmt.Sprintf("%v: %s at byte %d%s: %s", ErrCorrupt, e.File, e.Offset, where, e.Reason)
}

// Is reports whether target is [ErrCorrupt].
func (e *CorruptError) Is(target error) bool { return target == ErrCorrupt }
