package audit

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/bits"

	"golang.org/x/mod/sumdb/tlog"
)

// Hash is a node of the tree: SHA-256, 32 bytes (RFC 6962, section 2.1).
type Hash = tlog.Hash

// maxLevels bounds a tree to fewer than 2^48 records: 10,000 a second for 890 years.
const maxLevels = 48

// MaxSize is the number of records that a log can hold at most.
const MaxSize int64 = 1<<maxLevels - 1

// MaxEdgeSize is the length of the longest encoded [Edge], in bytes.
const MaxEdgeSize = 1 + 8 + maxLevels*tlog.HashSize

const edgeVersion = 1

// RecordHash returns the leaf hash of a record: SHA-256(0x00 ‖ record).
func RecordHash(record []byte) Hash { return tlog.RecordHash(record) }

// Edge is the compact right edge of the tree, all that a state machine keeps of it: the size, and the root of each perfect subtree
// in its binary decomposition. Edges are values: assigning one copies it, == compares the trees. The zero Edge is the empty tree.
type Edge struct {
	size int64
	// subtree[i] is the root of the perfect subtree of 2^i records if bit i of size is set, and otherwise zero.
	subtree [maxLevels]Hash
}

// Size returns the number of records in the tree.
func (e Edge) Size() int64 { return e.size }

// Append adds the record with this hash to the tree. It panics when the tree is full, at [MaxSize] records.
func (e *Edge) Append(record Hash) { e.append(record, nil) }

// append adds a record and appends to stored the hashes of the nodes that it completes, in stored order (tlog.StoredHashes).
func (e *Edge) append(h Hash, stored []byte) []byte {
	if e.size >= MaxSize {
		panic("audit: the tree is full")
	}
	stored = append(stored, h[:]...)
	level := 0
	for ; e.size>>level&1 != 0; level++ {
		h = tlog.NodeHash(e.subtree[level], h)
		e.subtree[level] = Hash{}
		stored = append(stored, h[:]...)
	}
	e.subtree[level] = h
	e.size++
	return stored
}

// Root returns the root of the tree; for the empty tree SHA-256 of the empty string.
func (e Edge) Root() Hash {
	if e.size == 0 {
		return sha256.Sum256(nil)
	}
	low := bits.TrailingZeros64(uint64(e.size))
	root := e.subtree[low]
	for level := low + 1; level < maxLevels; level++ {
		if e.size>>level&1 != 0 {
			root = tlog.NodeHash(e.subtree[level], root)
		}
	}
	return root
}

// AppendBinary appends the edge's only encoding: version, 8-byte big-endian size, then the subtrees' roots from the largest to the
// smallest. It never fails.
func (e Edge) AppendBinary(b []byte) ([]byte, error) {
	b = append(b, edgeVersion)
	b = binary.BigEndian.AppendUint64(b, uint64(e.size))
	for level := maxLevels - 1; level >= 0; level-- {
		if e.size>>level&1 != 0 {
			b = append(b, e.subtree[level][:]...)
		}
	}
	return b, nil
}

// MarshalBinary returns the encoding that [Edge.AppendBinary] appends.
func (e Edge) MarshalBinary() ([]byte, error) { return e.AppendBinary(nil) }

// UnmarshalBinary reads exactly what [Edge.MarshalBinary] wrote; anything else is [ErrMalformed] and leaves the edge as it was.
func (e *Edge) UnmarshalBinary(b []byte) error {
	if len(b) < 9 || b[0] != edgeVersion {
		return fmt.Errorf("%w: edge: header", ErrMalformed)
	}
	size := binary.BigEndian.Uint64(b[1:9])
	if size > uint64(MaxSize) {
		return fmt.Errorf("%w: edge: %d records", ErrMalformed, size)
	}
	b = b[9:]
	if len(b) != bits.OnesCount64(size)*tlog.HashSize {
		return fmt.Errorf("%w: edge: length", ErrMalformed)
	}
	read := Edge{size: int64(size)}
	for level := maxLevels - 1; level >= 0; level-- {
		if size>>level&1 != 0 {
			b = b[copy(read.subtree[level][:], b):]
		}
	}
	*e = read
	return nil
}
