package audit

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"os"
	"slices"

	"golang.org/x/mod/sumdb/tlog"
)

// Entry is one record of the log.
type Entry struct {
	N      int64  // record number, from 0
	Index  uint64 // Raft index of the entry that appended it
	Record []byte
}

// Record returns the n-th record, from 0, after holding it against its hash. Errors: [ErrRange], [ErrArchived], [ErrCorrupt].
func (l *Log) Record(n int64) ([]byte, error) {
	for e, err := range l.Records(n, n+1) {
		return e.Record, err
	}
	return nil, fmt.Errorf("%w: record %d", ErrRange, n)
}

// Records yields the records from number from up to, but without, number to, each held against its hash. It ends with the first
// error. The log is not locked in between: appending goes on.
func (l *Log) Records(from, to int64) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		if err := l.checkSize(to); err != nil || from < 0 || from > to {
			yield(Entry{}, errors.Join(err, fmt.Errorf("%w: records %d to %d", ErrRange, from, to)))
			return
		}
		var r segmentReader
		defer r.close()
		for n := from; n < to; n++ {
			e, err := l.entry(n, &r)
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
}

const readAhead = 32 << 10 // bytes

// segmentReader keeps the segment open that was read last, and reads ahead in it: all records that are asked of it were there when it
// began.
type segmentReader struct {
	first int64
	file  *os.File
	ahead *bufio.Reader
	at    int64 // where ahead is in the file
}

func (r *segmentReader) close() {
	if r.file != nil {
		r.file.Close()
		r.file, r.ahead = nil, nil
	}
}

func (l *Log) entry(n int64, r *segmentReader) (Entry, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if l.err != nil {
		return Entry{}, l.err
	}
	if n < l.first {
		return Entry{}, fmt.Errorf("%w: record %d, the first here is %d", ErrArchived, n, l.first)
	}
	p, err := l.position(n)
	if err != nil {
		return Entry{}, err
	}
	at, found := slices.BinarySearch(l.segments, n)
	if !found {
		at-- // the segment that begins before n
	}
	first := l.segments[at]
	if r.file == nil || r.first != first {
		r.close()
		if r.file, err = os.Open(l.path(segmentName(first))); err != nil {
			return Entry{}, err
		}
		r.first = first
	}
	if r.ahead == nil || r.at != int64(p.offset) {
		r.ahead = bufio.NewReaderSize(io.NewSectionReader(r.file, int64(p.offset), math.MaxInt64-int64(p.offset)), readAhead)
	}
	damaged := &CorruptError{File: segmentName(first), Offset: int64(p.offset)}
	f, record, err := readFrame(r.ahead, n, nil)
	r.at = int64(p.offset) + frameHeader + int64(f.length)
	if err != nil {
		damaged.Reason = err.Error()
		return Entry{}, damaged
	}
	h, err := l.readHash(tlog.StoredHashIndex(0, n))
	if err != nil {
		return Entry{}, err
	}
	if h != RecordHash(record) || f.index != p.index {
		damaged.Reason = fmt.Sprintf("record %d does not have the hash or the Raft index that was stored", n)
		return Entry{}, damaged
	}
	return Entry{n, f.index, record}, nil
}

func (l *Log) checkSize(size int64) error {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if l.err != nil {
		return l.err
	}
	if size < 0 || size > l.edge.size {
		return fmt.Errorf("%w: %d of %d records", ErrRange, size, l.edge.size)
	}
	return nil
}

// ReadHashes returns stored hashes of the tree: it makes the log a [tlog.HashReader].
func (l *Log) ReadHashes(indexes []int64) ([]Hash, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if l.err != nil {
		return nil, l.err
	}
	count := tlog.StoredHashCount(l.edge.size)
	hashes := make([]Hash, len(indexes))
	for i, stored := range indexes {
		if stored < 0 || stored >= count {
			return nil, fmt.Errorf("%w: hash %d of %d", ErrRange, stored, count)
		}
		var err error
		if hashes[i], err = l.readHash(stored); err != nil {
			return nil, err
		}
	}
	return hashes, nil
}

// ProveInclusion proves that record n is in the log of the given size: see [VerifyInclusion].
func (l *Log) ProveInclusion(size, n int64) ([]Hash, error) {
	if err := l.checkSize(size); err != nil {
		return nil, err
	}
	if n < 0 || n >= size {
		return nil, fmt.Errorf("%w: record %d of %d", ErrRange, n, size)
	}
	return tlog.ProveRecord(size, n, l)
}

// ProveConsistency proves that the log of the newer size begins with the log of the older: see [VerifyConsistency].
func (l *Log) ProveConsistency(older, newer int64) ([]Hash, error) {
	if err := l.checkSize(newer); err != nil {
		return nil, err
	}
	if older < 0 || older > newer {
		return nil, fmt.Errorf("%w: from %d to %d records", ErrRange, older, newer)
	}
	if older == 0 {
		return nil, nil
	}
	return tlog.ProveTree(newer, older, l)
}
