package audit

import (
	"errors"
	"io"
	"iter"

	"golang.org/x/mod/sumdb/note"
)

const (
	// MaxRecord bounds a record, in bytes.
	MaxRecord = 64 << 10
	// MaxBatch bounds the records of one Raft entry.
	MaxBatch = 1 << 14
)

// Entry is one record of the log.
type Entry struct {
	N      int64  // record number, from 0
	Index  uint64 // Raft index of the entry that appended it
	Record []byte
}

// Option changes how a log is opened.
type Option func(*Log) error

// Log is the on-disk log beside the state.
type Log struct{ edge Edge }

var errSkeleton = errors.New("audit: not built yet")

// WithSegmentSize sets the size at which a segment of bodies is full, in bytes.
func WithSegmentSize(n int64) Option { return func(*Log) error { return nil } }

func Open(dir, origin string, options ...Option) (*Log, error) { return nil, errSkeleton }
func Start(dir, origin string, previous []byte, options ...Option) (*Log, error) {
	return nil, errSkeleton
}
func (l *Log) Append(index uint64, records ...[]byte) error        { return errSkeleton }
func (l *Log) Sync() error                                         { return errSkeleton }
func (l *Log) Close() error                                        { return errSkeleton }
func (l *Log) Reconcile(edge Edge) error                           { return errSkeleton }
func (l *Log) Size() int64                                         { return 0 }
func (l *Log) LastIndex() uint64                                   { return 0 }
func (l *Log) Origin() string                                      { return "" }
func (l *Log) Record(n int64) ([]byte, error)                      { return nil, errSkeleton }
func (l *Log) Records(from, to int64) iter.Seq2[Entry, error]      { return nil }
func (l *Log) Checkpoint(signer note.Signer) ([]byte, error)       { return nil, errSkeleton }
func (l *Log) SaveCheckpoint(msg []byte) error                     { return errSkeleton }
func (l *Log) LatestCheckpoint() ([]byte, bool)                    { return nil, false }
func (l *Log) ReadHashes(indexes []int64) ([]Hash, error)          { return nil, errSkeleton }
func (l *Log) ProveInclusion(size, n int64) ([]Hash, error)        { return nil, errSkeleton }
func (l *Log) ProveConsistency(older, newer int64) ([]Hash, error) { return nil, errSkeleton }
func (l *Log) Archive(before int64, w io.Writer) (int64, error)    { return 0, errSkeleton }
func (l *Log) Discard(before int64) error                          { return errSkeleton }

// Report is what VerifyDir found.
type Report struct {
	Origin      string
	Size        int64  // records in the log
	Root        Hash   // of all of them
	LastIndex   uint64 // Raft index of the last record
	First       int64  // first record whose body is here; earlier ones are archived
	Checkpoints int    // signed checkpoints that were saved
	Signed      int64  // records that the newest of them covers
}

func VerifyDir(dir string, verifier note.Verifier, known ...Checkpoint) (Report, error) {
	return Report{}, errSkeleton
}
