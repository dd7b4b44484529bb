package authority

import (
	"math"

	"golang.org/x/sys/unix"

	"github.com/writ-dev/writ/authority/api"
)

// What a change needs to be free on the data directory's file system, in bytes.
// The log refuses by itself what it has no space for; but what is in the log
// must be applied, to the state file and the audit trail, and cannot be refused
// any more. So changes are refused while there is still space for those under
// way, and revocations last of all.
const (
	minFree       = 32 << 20
	minFreeRevoke = 8 << 20
)

// freeSpace returns the bytes that an unprivileged process may still write.
func freeSpace(dir string) (uint64, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return 0, err
	}
	return fs.Bavail * uint64(fs.Bsize), nil
}

// hasSpace returns nil if a change of this lane may be proposed.
func (p *proposer) hasSpace(l lane) error { return enough(p.space(), l) }

// space is how many bytes are free. Who cannot tell leaves it to the log.
func (p *proposer) space() uint64 {
	free, err := p.free()
	if err != nil {
		return math.MaxUint64
	}
	return free
}

// enough returns nil if so much is enough for a change of this lane.
func enough(free uint64, l lane) error {
	need := uint64(minFree)
	if l == laneRevoke {
		need = minFreeRevoke
	}
	if free >= need {
		return nil
	}
	return &Error{Code: api.CodeDiskFull, Detail: "the authority is short of disk space; nothing was done", Hint: "free some space in its data directory"}
}
