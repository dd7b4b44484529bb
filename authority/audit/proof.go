package audit

import (
	"fmt"
	"iter"

	"golang.org/x/mod/sumdb/tlog"
)

// maxProof bounds a proof's hashes: an inclusion proof has one a level, a consistency proof one more.
const maxProof = maxLevels + 1

// VerifyInclusion checks that record is the n-th of the log at a checkpoint. Any failure is [ErrProof].
func VerifyInclusion(c Checkpoint, n int64, record []byte, proof []Hash) error {
	if len(proof) > maxProof {
		return fmt.Errorf("%w: %d hashes", ErrProof, len(proof))
	}
	if err := tlog.CheckRecord(proof, c.Size, c.Root, n, RecordHash(record)); err != nil {
		return fmt.Errorf("%w: record %d of %d", ErrProof, n, c.Size)
	}
	return nil
}

// VerifyConsistency checks that the log at the newer checkpoint contains, unchanged, the log at the older one. Both must be of one
// origin. The empty log needs no proof. Any failure is [ErrProof].
func VerifyConsistency(older, newer Checkpoint, proof []Hash) error {
	var empty Edge
	switch {
	case older.Origin != newer.Origin:
		return fmt.Errorf("%w: origins %q and %q", ErrProof, older.Origin, newer.Origin)
	case older.Size > newer.Size:
		return fmt.Errorf("%w: the log shrank from %d records to %d", ErrProof, older.Size, newer.Size)
	case len(proof) > maxProof:
		return fmt.Errorf("%w: %d hashes", ErrProof, len(proof))
	case older.Size == 0:
		if older.Root != empty.Root() || len(proof) != 0 || newer.Size == 0 && newer.Root != older.Root {
			return fmt.Errorf("%w: from the empty log", ErrProof)
		}
		return nil
	}
	if err := tlog.CheckTree(proof, newer.Size, newer.Root, older.Size, older.Root); err != nil {
		return fmt.Errorf("%w: %d records are not the start of %d", ErrProof, older.Size, newer.Size)
	}
	return nil
}

// VerifyRecords recomputes the tree over all records, first to last, and holds it against checkpoints, which must be in rising
// order of size. It returns the edge after the last record; a checkpoint that does not match or lies beyond it is [ErrProof].
func VerifyRecords(records iter.Seq2[[]byte, error], checkpoints ...Checkpoint) (Edge, error) {
	var e Edge
	check := func() error {
		for len(checkpoints) > 0 && checkpoints[0].Size <= e.size {
			if c := checkpoints[0]; c.Size < e.size || c.Root != e.Root() {
				return fmt.Errorf("%w: records do not give the root of the checkpoint at %d", ErrProof, c.Size)
			}
			checkpoints = checkpoints[1:]
		}
		return nil
	}
	if err := check(); err != nil {
		return e, err
	}
	for record, err := range records {
		if err != nil {
			return e, err
		}
		e.Append(RecordHash(record))
		if err := check(); err != nil {
			return e, err
		}
	}
	if len(checkpoints) > 0 {
		return e, fmt.Errorf("%w: %d records, but a checkpoint of %d", ErrProof, e.size, checkpoints[0].Size)
	}
	return e, nil
}
