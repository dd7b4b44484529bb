package audit

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"sync"

	"golang.org/x/mod/sumdb/tlog"
)

const (
	// MaxRecord bounds a record, in bytes.
	MaxRecord = 64 << 10
	// MaxBatch bounds the records of one Raft entry.
	MaxBatch = 1 << 14
	// MaxBatchBytes bounds the records of one Raft entry together, in bytes.
	MaxBatchBytes = 64 << 20

	defaultSegmentSize = 64 << 20
	maxSegmentSize     = 1 << 30 // with a batch on top, an offset still fits 32 bits
	keepBuffer         = 1 << 20 // a larger write buffer is given back after use
)

// file is what the log needs of an *os.File.
type file interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
	Truncate(size int64) error
	Close() error
}

// segment is the segment that is written to.
type segment struct {
	first int64 // number of its first record
	size  int64 // bytes
	file  file
}

// Log is the on-disk log beside the state. Its methods are safe for concurrent use. One process at a time may have it open: the
// owner of the data directory sees to that.
type Log struct {
	dir         string
	origin      string
	segmentSize int64
	openFile    func(path string, flag int) (file, error)

	// commits serializes what replaces the commit marker: Sync, SaveCheckpoint, Discard, Close. It is taken before mu.
	commits   sync.Mutex
	committed commit // guarded by commits

	mu       sync.RWMutex // guards what follows
	err      error        // why the log cannot be used any more
	edge     Edge
	last     uint64  // Raft index of the last record
	first    int64   // first record whose body is here
	segments []int64 // first records of the segments, rising; the last one is that of current
	current  segment
	unsynced []file // full segments that no Sync has covered yet
	replay   int64  // where the record after the last replayed one lies, probably
	saved    int64  // bytes of the checkpoints file
	latest   []byte // newest saved checkpoint

	hashes, index, checkpoints file

	bodyBuf, hashBuf, indexBuf []byte // reused by Append
}

// Option changes how a log is opened.
type Option func(*Log) error

// WithSegmentSize sets the length at which a segment of bodies is full: 4 KiB to 1 GiB, 64 MiB unless set.
func WithSegmentSize(bytes int64) Option {
	return func(l *Log) error {
		if bytes < 4<<10 || bytes > maxSegmentSize {
			return fmt.Errorf("audit: segment size of %d bytes", bytes)
		}
		l.segmentSize = bytes
		return nil
	}
}

func (l *Log) path(name string) string { return filepath.Join(l.dir, name) }

// Origin returns the origin that the log was opened with.
func (l *Log) Origin() string { return l.origin }

// Size returns the number of records.
func (l *Log) Size() int64 {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.edge.size
}

// Edge returns the right edge of the log.
func (l *Log) Edge() Edge {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.edge
}

// LastIndex returns the Raft index of the last record.
func (l *Log) LastIndex() uint64 {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.last
}

// Append adds the records of the Raft entry with this index, all or none. They are not yet durable (see [Log.Sync]).
//
// Raft applies entries again after a restart, so an index up to [Log.LastIndex] is a replay: nothing is written, and other records
// than those of the first time, or another number of them, are [ErrDiverged]. A failed write is undone and its error returned; if
// it cannot be undone, every later call fails as well.
func (l *Log) Append(index uint64, records ...[]byte) error {
	if err := checkBatch(records); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return l.err
	}
	if index <= l.last {
		return l.checkReplay(index, records)
	}
	return l.write(index, records)
}

func checkBatch(records [][]byte) error {
	total := 0
	for _, r := range records {
		if len(r) == 0 || len(r) > MaxRecord {
			return fmt.Errorf("%w: %d bytes", ErrTooLarge, len(r))
		}
		total += len(r)
	}
	if len(records) > MaxBatch || total > MaxBatchBytes {
		return fmt.Errorf("%w: batch of %d records, %d bytes", ErrTooLarge, len(records), total)
	}
	return nil
}

// write appends a batch. The caller holds mu.
func (l *Log) write(index uint64, records [][]byte) error {
	if len(records) == 0 {
		return nil
	}
	if l.edge.size > MaxSize-int64(len(records)) {
		return fmt.Errorf("%w: the log is full", ErrRange)
	}
	if err := l.roll(); err != nil {
		return err
	}
	next := l.edge
	bodies, hashes, positions := l.bodyBuf[:0], l.hashBuf[:0], l.indexBuf[:0]
	for i, r := range records {
		n := next.size
		positions = appendPosition(positions, n, position{index, uint32(l.current.size + int64(len(bodies)))})
		bodies = appendFrame(bodies, n, uint32(len(records)-1-i), index, r)
		hashes = next.append(RecordHash(r), hashes)
	}
	// Bodies go first: after a crash the other two are made again from them.
	_, err := l.current.file.WriteAt(bodies, l.current.size)
	if err == nil {
		_, err = l.hashes.WriteAt(hashes, hashesLength(l.edge.size))
	}
	if err == nil {
		_, err = l.index.WriteAt(positions, l.edge.size*indexEntry)
	}
	if err != nil {
		return l.undo(fmt.Errorf("audit: appending: %w", err))
	}
	l.current.size += int64(len(bodies))
	l.edge, l.last = next, index
	l.bodyBuf, l.hashBuf, l.indexBuf = bodies, hashes, positions
	if cap(bodies) > keepBuffer {
		l.bodyBuf = nil
	}
	return nil
}

// undo takes a half-written batch back, or makes the log unusable. The caller holds mu.
func (l *Log) undo(cause error) error {
	err := errors.Join(
		l.current.file.Truncate(l.current.size),
		l.hashes.Truncate(hashesLength(l.edge.size)),
		l.index.Truncate(l.edge.size*indexEntry),
	)
	if err != nil {
		l.err = fmt.Errorf("%w, and could not be undone: %w", cause, err)
		return l.err
	}
	return cause
}

// roll begins a new segment if the current one is full. The caller holds mu.
func (l *Log) roll() error {
	if l.current.size < l.segmentSize || l.current.first == l.edge.size {
		return nil
	}
	s, err := l.createSegment(l.edge.size)
	if err != nil {
		return err
	}
	l.unsynced = append(l.unsynced, l.current.file)
	l.segments = append(l.segments, s.first)
	l.current = s
	return nil
}

func (l *Log) createSegment(first int64) (segment, error) {
	path := l.path(segmentName(first))
	f, err := l.openFile(path, os.O_CREATE|os.O_TRUNC|os.O_RDWR)
	if err != nil {
		return segment{}, err
	}
	if _, err := f.WriteAt(appendSegmentHeader(nil, first), 0); err != nil {
		return segment{}, errors.Join(err, f.Close(), os.Remove(path))
	}
	return segment{first, int64(segmentHeader), f}, nil
}

// checkReplay holds a replayed batch against the one that the log has. The caller holds mu.
func (l *Log) checkReplay(index uint64, records [][]byte) error {
	n, err := l.findIndex(index)
	if err != nil {
		return err
	}
	for _, r := range records {
		stored := errDivergedAt(index)
		if n < l.edge.size {
			p, err := l.position(n)
			if err != nil {
				return err
			}
			h, err := l.readHash(tlog.StoredHashIndex(0, n))
			if err != nil {
				return err
			}
			if p.index == index && h == RecordHash(r) {
				stored = nil
			}
		}
		if stored != nil {
			return stored
		}
		n++
	}
	if n < l.edge.size {
		p, err := l.position(n)
		if err != nil {
			return err
		}
		if p.index == index {
			return errDivergedAt(index)
		}
	}
	l.replay = n
	return nil
}

func errDivergedAt(index uint64) error { return fmt.Errorf("%w: at Raft index %d", ErrDiverged, index) }

// findIndex returns the first record of a Raft index, or where it would be. The caller holds mu.
func (l *Log) findIndex(index uint64) (int64, error) {
	var failed error
	reaches := func(n int64) bool {
		p, err := l.position(n)
		failed = errors.Join(failed, err)
		return p.index >= index
	}
	// Replays come in order, so the record after the last one is nearly always the one.
	if n := l.replay; n <= l.edge.size && (n == l.edge.size || reaches(n)) && (n == 0 || !reaches(n-1)) && failed == nil {
		return n, nil
	}
	n := sort.Search(int(l.edge.size), func(i int) bool { return failed != nil || reaches(int64(i)) })
	return int64(n), failed
}

// hashesLength is the length of the hashes file of a tree, in bytes.
func hashesLength(size int64) int64 { return tlog.StoredHashCount(size) * tlog.HashSize }

// position reads the index file. The caller holds mu.
func (l *Log) position(n int64) (position, error) {
	var b [indexEntry]byte
	_, err := l.index.ReadAt(b[:], n*indexEntry)
	if err != nil {
		return position{}, err
	}
	p, err := parsePosition(b[:], n)
	if err != nil {
		return position{}, &CorruptError{File: indexFile, Offset: n * indexEntry, Reason: err.Error()}
	}
	return p, nil
}

func (l *Log) readHash(stored int64) (h Hash, err error) {
	_, err = l.hashes.ReadAt(h[:], stored*tlog.HashSize)
	return h, err
}

// Reconcile holds the log against the edge of the state machine that was loaded. A log that is ahead is kept: Raft replays what the
// state lacks, and [Log.Append] recognizes it. A log with fewer records is [ErrBehind], one with another root at the state's size
// [ErrDiverged].
func (l *Log) Reconcile(edge Edge) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return l.err
	}
	if edge.size > l.edge.size {
		return fmt.Errorf("%w: %d records, the state has %d", ErrBehind, l.edge.size, edge.size)
	}
	here, err := l.edgeAt(edge.size)
	if err != nil {
		return err
	}
	if here != edge {
		return fmt.Errorf("%w: another root at %d records", ErrDiverged, edge.size)
	}
	l.replay = edge.size
	return nil
}

// edgeAt reads the edge of the tree that the first records make. The caller holds mu.
func (l *Log) edgeAt(size int64) (Edge, error) {
	e := Edge{size: size}
	for level := range maxLevels {
		if size>>level&1 == 0 {
			continue
		}
		var err error
		if e.subtree[level], err = l.readHash(tlog.StoredHashIndex(level, size>>level-1)); err != nil {
			return Edge{}, err
		}
	}
	return e, nil
}

// Close closes the files without making anything more durable. It does not call [Log.Sync].
func (l *Log) Close() error {
	l.commits.Lock()
	defer l.commits.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	if errors.Is(l.err, ErrClosed) {
		return nil
	}
	l.err = ErrClosed
	return l.closeFiles()
}

func (l *Log) closeFiles() error {
	var errs []error
	for _, f := range append(l.unsynced, l.current.file, l.hashes, l.index, l.checkpoints) {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}
