package authority

// SetFree has the authority take its disk's free bytes from free. It is called
// before anything is asked of the node.
func (a *Authority) SetFree(free func() (uint64, error)) { a.proposer.free = free }

// What SetFree is told for issues, and for revocations, to be refused below.
const (
	MinFree       = minFree
	MinFreeRevoke = minFreeRevoke
)
