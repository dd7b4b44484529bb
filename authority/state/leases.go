package state

import (
	bolt "go.etcd.io/bbolt"

	"github.com/writ-dev/writ/capability"
)

// OpenLease is a lease that has not been closed.
type OpenLease struct {
	Lease  LeaseID `cbor:"1,keyasint"`
	Lessee string  `cbor:"2,keyasint"`
}

// maxOpenLeases bounds what OpenLeases returns.
const maxOpenLeases = 1024

// OpenLeases returns the open leases (1,024 at most) whose return would make
// room for a lease on this path, and what the path has left to lease now.
func (m *Machine) OpenLeases(b *Lease) (open []OpenLease, left uint64, err error) {
	var bygone bool
	m.read(func(mem *memory) { bygone = mem.isBygone(b.Token) })
	if bygone {
		return nil, 0, nil
	}
	err = m.view(func(tx *bolt.Tx) error {
		open, left = nil, ^uint64(0)
		empty := make(map[capability.BranchID]bool) // budgets with nothing left
		for _, p := range b.Path {
			remaining := p.Limit
			if v := tx.Bucket(bucketBudgets).Get(budgetKey(b.Token, p.Branch)); v != nil {
				remaining = decodeBudget(v).remaining
			}
			left = min(left, remaining)
			if remaining == 0 {
				empty[p.Branch] = true
			}
		}
		prefixed(tx, bucketLeases, b.Token[:], func(k, v []byte) {
			if len(open) >= maxOpenLeases {
				return
			}
			var r leaseRecord
			mustDecode(v, &r)
			for _, branch := range r.Path {
				if empty[branch] {
					open = append(open, OpenLease{LeaseID(k[16:]), r.Lessee})
					return
				}
			}
		})
		return nil
	})
	return open, left, err
}
