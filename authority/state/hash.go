package state

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
)

// ErrDiverged is what a node stops with whose state is not the others'.
var ErrDiverged = fmt.Errorf("state: diverged from the cluster")

// hashRing remembers the state's hash at the newest entries, for CheckHash,
// which names an entry that is some way behind by the time it is applied.
type hashRing [1024]struct {
	index uint64
	hash  Digest
}

func (r *hashRing) add(index uint64, hash Digest) {
	e := &r[index%uint64(len(r))]
	e.index, e.hash = index, hash
}

// stateHash is the hash of the whole state: of the content of its buckets, of
// the fields of meta that move on their own, and of the audit tree.
func (m *memory) stateHash() Digest {
	root := m.edge.Root()
	b := make([]byte, 0, 256)
	b = append(b, "writ/v1/state"...)
	b = append(b, m.meta.Content[:]...)
	b = append(b, root[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(m.edge.Size()))
	b = binary.BigEndian.AppendUint64(b, uint64(m.meta.MinStamp))
	b = binary.BigEndian.AppendUint64(b, m.meta.Incarnation)
	b = append(b, m.meta.Cluster...)
	return sha256.Sum256(b)
}

// checkHash stops this node if it differs. An entry that is no longer, or not
// yet, in the ring (a node that was restored since) says nothing.
func (a *applier) checkHash(b *CheckHash) error {
	if e := &a.hashes[b.Index%uint64(len(a.hashes))]; e.index == b.Index && e.hash != b.Hash {
		panic(fmt.Errorf("%w at index %d", ErrDiverged, b.Index))
	}
	return nil
}

// StateHash returns the state's hash and the index that it is of.
func (m *Machine) StateHash() (index uint64, hash Digest) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.mem.meta.Applied, m.mem.stateHash()
}
