package raftstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

var (
	bucketLog    = []byte("log")
	bucketStable = []byte("stable")
	bucketCommit = []byte("commit")
	keyCommit    = []byte("index")
)

// deleteChunk is how many records one transaction of DeleteRange deletes, so
// that an append never waits long behind it.
const deleteChunk = 8192

// boltLog is Raft's log and stable store in one bbolt file. It refuses what
// would leave a gap, checks every record that it reads, and returns after the
// sync. Errors match ErrDiskFull (nothing was changed, try again), ErrCorrupt,
// raft.ErrLogNotFound, or are of the kind after which nobody knows what is on
// the disk.
type boltLog struct {
	db   *bbolt.DB
	path string

	file *os.File // for reserve
	size int64    // of the file, as far as space is reserved; belongs to the write transaction

	mu          sync.RWMutex // guards what follows; never held across a transaction
	first, last uint64       // of the log, 0 and 0 when empty
	staged      uint64       // commit index to be written with the next append
	committed   uint64       // commit index as written
}

func boltOptions() *bbolt.Options {
	return &bbolt.Options{
		Timeout:        time.Second,
		NoFreelistSync: true,
		FreelistType:   bbolt.FreelistMapType,
	}
}

// openLog opens, or creates, a file without judging what is in it: see
// inspect.
func openLog(path string) (_ *boltLog, err error) {
	db, err := bbolt.Open(path, 0o600, boltOptions())
	if err != nil {
		return nil, openError(path, err)
	}
	b := &boltLog{db: db, path: path}
	if b.file, err = os.OpenFile(path, os.O_RDWR, 0); err != nil {
		db.Close()
		return nil, fmt.Errorf("raftstore: %w", err)
	}
	err = b.update(smallSpace, func(tx *bbolt.Tx) error {
		for _, name := range [][]byte{bucketLog, bucketStable, bucketCommit} {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		err = b.view(func(tx *bbolt.Tx) error {
			var err error
			if b.first, b.last, err = logBounds(tx); err != nil {
				return err
			}
			b.committed, err = readCommit(tx)
			return err
		})
	}
	if err != nil {
		b.Close()
		return nil, err
	}
	b.staged = b.committed
	return b, nil
}

func openError(path string, err error) error {
	if errors.Is(err, bolterrors.ErrTimeout) {
		return fmt.Errorf("%w: %s is open elsewhere", ErrLocked, path)
	}
	return fmt.Errorf("raftstore: open %s: %w", path, diskFull(err))
}

func (b *boltLog) Close() error { return errors.Join(b.db.Close(), b.file.Close()) }

// IsMonotonic tells Raft that gaps are refused, so that it clears the log when
// a snapshot takes its place.
func (b *boltLog) IsMonotonic() bool { return true }

// FirstIndex returns the index of the first entry, 0 for an empty log.
func (b *boltLog) FirstIndex() (uint64, error) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.first, nil
}

// LastIndex returns the index of the last entry, 0 for an empty log.
func (b *boltLog) LastIndex() (uint64, error) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.last, nil
}

// GetLog reads one entry, or returns raft.ErrLogNotFound.
func (b *boltLog) GetLog(index uint64, l *raft.Log) error {
	return b.view(func(tx *bbolt.Tx) error {
		rec := tx.Bucket(bucketLog).Get(indexKey(index))
		if rec == nil {
			return raft.ErrLogNotFound
		}
		if err := decodeRecord(index, rec, l); err != nil {
			return fmt.Errorf("log entry %d: %w", index, err)
		}
		return nil
	})
}

// StoreLog appends one entry.
func (b *boltLog) StoreLog(l *raft.Log) error { return b.StoreLogs([]*raft.Log{l}) }

// StoreLogs appends entries, which follow on the last and on each other, and
// with them the staged commit index; all of it or nothing.
func (b *boltLog) StoreLogs(logs []*raft.Log) error {
	if len(logs) == 0 {
		return nil
	}
	b.mu.RLock()
	next, commit, written := b.last+1, b.staged, b.committed
	if b.last == 0 {
		next = logs[0].Index
	}
	b.mu.RUnlock()
	size := 0
	for i, l := range logs {
		if l.Index == 0 || l.Index != next+uint64(i) {
			return fmt.Errorf("raftstore: append of entry %d where %d is next", l.Index, next+uint64(i))
		}
		size += 8 + recordSize(l)
	}
	last := logs[len(logs)-1].Index
	commit = min(commit, last)

	// bbolt wants keys and values untouched until the transaction ends: one
	// piece of memory for all of them, big enough never to move.
	arena := make([]byte, 0, size)
	err := b.update(2*int64(size)+spareSpace, func(tx *bbolt.Tx) error {
		bucket := tx.Bucket(bucketLog)
		bucket.FillPercent = 1 // keys only rise
		for _, l := range logs {
			start := len(arena)
			arena = binary.BigEndian.AppendUint64(arena, l.Index)
			arena = appendRecord(arena, l)
			if err := bucket.Put(arena[start:start+8], arena[start+8:]); err != nil {
				return err
			}
		}
		if commit == written {
			return nil
		}
		return tx.Bucket(bucketCommit).Put(keyCommit, sealValue(keyCommit, indexKey(commit)))
	})
	if err != nil {
		return err
	}
	b.mu.Lock()
	if b.last == 0 {
		b.first = logs[0].Index
	}
	b.last, b.committed = last, commit
	b.mu.Unlock()
	return nil
}

// DeleteRange deletes the entries lo to hi, which must include one end of the
// log. In a crash some may stay, but never around a hole: it works from the
// end that it was given towards the middle.
func (b *boltLog) DeleteRange(lo, hi uint64) error {
	b.mu.RLock()
	first, last := b.first, b.last
	b.mu.RUnlock()
	lo, hi = max(lo, first), min(hi, last)
	if last == 0 || lo > hi {
		return nil
	}
	if lo != first && hi != last {
		return fmt.Errorf("raftstore: deleting entries %d to %d would leave a gap in %d to %d", lo, hi, first, last)
	}
	for suffix := hi == last; lo <= hi; {
		from, to := lo, hi
		if suffix {
			from = max(lo, hi-min(hi, deleteChunk-1))
			hi = from - 1
		} else {
			to = min(hi, lo+deleteChunk-1)
			lo = to + 1
		}
		if err := b.deleteRecords(from, to); err != nil {
			return err
		}
		b.mu.Lock()
		if suffix {
			b.last = from - 1
		} else {
			b.first = to + 1
		}
		if b.first > b.last {
			b.first, b.last = 0, 0
		}
		b.mu.Unlock()
	}
	return nil
}

// deleteRecords deletes the records from to to, in one transaction.
func (b *boltLog) deleteRecords(from, to uint64) error {
	return b.update(smallSpace, func(tx *bbolt.Tx) error {
		bucket := tx.Bucket(bucketLog)
		for index := from; index <= to; index++ {
			if err := bucket.Delete(indexKey(index)); err != nil {
				return err
			}
		}
		return nil
	})
}

// StageCommitIndex keeps index for the next StoreLogs.
func (b *boltLog) StageCommitIndex(index uint64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.staged = max(b.staged, index)
	return nil
}

// GetCommitIndex returns the commit index as written, never beyond the log.
func (b *boltLog) GetCommitIndex() (uint64, error) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return min(b.committed, b.last), nil
}

// Set stores a value durably.
func (b *boltLog) Set(key, val []byte) error {
	return b.update(2*int64(len(val))+smallSpace, func(tx *bbolt.Tx) error {
		return tx.Bucket(bucketStable).Put(key, sealValue(key, val))
	})
}

// Get returns a value, or nil for none.
func (b *boltLog) Get(key []byte) (val []byte, err error) {
	err = b.view(func(tx *bbolt.Tx) error {
		sealed := tx.Bucket(bucketStable).Get(key)
		if sealed == nil {
			return nil
		}
		v, err := openValue(key, sealed)
		if err != nil {
			return fmt.Errorf("value %q: %w", key, err)
		}
		val = append([]byte{}, v...)
		return nil
	})
	return val, err
}

// SetUint64 stores a number durably.
func (b *boltLog) SetUint64(key []byte, val uint64) error { return b.Set(key, indexKey(val)) }

// GetUint64 returns a number, or 0 for none.
func (b *boltLog) GetUint64(key []byte) (uint64, error) {
	val, err := b.Get(key)
	if err != nil || val == nil {
		return 0, err
	}
	if len(val) != 8 {
		return 0, &Corruption{b.path, fmt.Sprintf("value %q: not a number", key)}
	}
	return binary.BigEndian.Uint64(val), nil
}

// view runs fn in a read transaction. What is wrong with the file comes out as
// ErrCorrupt, also where bbolt panics or follows a bad offset out of the
// mapping.
func (b *boltLog) view(fn func(*bbolt.Tx) error) (err error) {
	defer catch(b.path, &err)()
	err = b.db.View(fn)
	if isRecordError(err) {
		return &Corruption{b.path, err.Error()}
	}
	return err
}

// update runs fn, which takes up to space bytes of new pages, in a read-write
// transaction and commits it.
func (b *boltLog) update(space int64, fn func(*bbolt.Tx) error) (err error) {
	defer catch(b.path, &err)()
	txid := 0
	err = b.db.Update(func(tx *bbolt.Tx) error {
		txid = tx.ID()
		if err := b.reserve(tx.Size(), space); err != nil {
			return err
		}
		return fn(tx)
	})
	if err == nil || !outOfSpace(err) {
		return err
	}
	// Full while it wrote pages that nothing refers to yet: as if it had not
	// been. But if the new meta page is in the file, then the sync after it is
	// what failed, and whether the transaction survives is anyone's guess.
	if b.db.View(func(tx *bbolt.Tx) error {
		if tx.ID() >= txid {
			return errMetaWritten
		}
		return nil
	}) != nil {
		return fmt.Errorf("raftstore: %s: sync failed: %v", b.path, err) // hides ENOSPC: not for retrying
	}
	return diskFull(err)
}

// Space for a transaction, in bytes.
const (
	smallSpace = 64 << 10  // for one that writes the pages on the way to the root
	spareSpace = 256 << 10 // left by an append, for a term and a vote when the next no longer fits
	growSpace  = 16 << 20  // reserved at a time, at most; a small file doubles
)

// reserve makes the file longer by space than its pages in use, with the blocks
// to go with it, or more while there is room. So a full disk shows here, before
// anything is written, where bbolt would lengthen the file sparsely and run into
// it halfway (and would lose the error's kind).
func (b *boltLog) reserve(used, space int64) error {
	if b.size == 0 {
		fi, err := b.file.Stat()
		if err != nil {
			return err
		}
		b.size = fi.Size()
	}
	need := used + space
	if need <= b.size {
		return nil
	}
	size := need + min(used, growSpace)
	err := allocate(b.file, b.size, size)
	if err != nil && outOfSpace(err) {
		size = need
		err = allocate(b.file, b.size, size)
	}
	if err != nil && outOfSpace(err) && b.freeSpace() >= space {
		return nil // a truncation left room within
	}
	if err != nil {
		return fmt.Errorf("raftstore: %s: %w", b.path, err)
	}
	if err := b.file.Sync(); err != nil {
		return fmt.Errorf("raftstore: %s: sync failed: %v", b.path, err) // hides ENOSPC: not for retrying
	}
	b.size = size
	return nil
}

// freeSpace is how many bytes the free pages in the file make.
func (b *boltLog) freeSpace() int64 {
	return int64(b.db.Stats().FreePageN) * int64(b.db.Info().PageSize)
}

var errMetaWritten = errors.New("meta page written")

// catch returns what to defer: it turns a panic, or a fault in mapped memory,
// into ErrCorrupt.
func catch(path string, err *error) func() {
	old := debug.SetPanicOnFault(true)
	return func() {
		debug.SetPanicOnFault(old)
		if p := recover(); p != nil {
			*err = &Corruption{path, fmt.Sprint(p)}
		}
	}
}

func isRecordError(err error) bool {
	return errors.Is(err, errChecksum) || errors.Is(err, errFormat) || errors.Is(err, errShort)
}

func outOfSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.EFBIG)
}

// diskFull makes an error for want of space match ErrDiskFull.
func diskFull(err error) error {
	if outOfSpace(err) {
		return fmt.Errorf("%w: %w", ErrDiskFull, err)
	}
	return err
}

func logBounds(tx *bbolt.Tx) (first, last uint64, err error) {
	c := tx.Bucket(bucketLog).Cursor()
	lo, _ := c.First()
	hi, _ := c.Last()
	if lo == nil {
		return 0, 0, nil
	}
	if len(lo) != 8 || len(hi) != 8 {
		return 0, 0, fmt.Errorf("log key: %w", errShort)
	}
	return binary.BigEndian.Uint64(lo), binary.BigEndian.Uint64(hi), nil
}

func readCommit(tx *bbolt.Tx) (uint64, error) {
	sealed := tx.Bucket(bucketCommit).Get(keyCommit)
	if sealed == nil {
		return 0, nil
	}
	v, err := openValue(keyCommit, sealed)
	if err != nil || len(v) != 8 {
		return 0, fmt.Errorf("commit index: %w", errors.Join(err, errShort))
	}
	return binary.BigEndian.Uint64(v), nil
}

// contents is what inspect found.
type contents struct {
	first, last uint64
	configs     []uint64 // indexes of configuration entries
	bytes       uint64   // that the entries take
}

// inspect reads all of a file, read-only, and returns ErrCorrupt where anything
// does not add up: a meta page, a page, a record, a gap.
func inspect(path string) (c contents, err error) {
	if err := checkMeta(path); err != nil {
		return c, err
	}
	defer catch(path, &err)()
	opts := boltOptions()
	opts.ReadOnly = true // does not scan for free pages, in which bbolt panics out of reach
	db, err := bbolt.Open(path, 0o600, opts)
	if err != nil {
		return c, openError(path, err)
	}
	defer db.Close()
	err = db.View(func(tx *bbolt.Tx) error {
		for _, name := range [][]byte{bucketLog, bucketStable, bucketCommit} {
			if tx.Bucket(name) == nil {
				return &Corruption{path, fmt.Sprintf("no bucket %q", name)}
			}
		}
		if err := tx.Bucket(bucketStable).ForEach(func(k, v []byte) error {
			if _, err := openValue(k, v); err != nil {
				return fmt.Errorf("value %q: %w", k, err)
			}
			return nil
		}); err != nil {
			return err
		}
		if _, err := readCommit(tx); err != nil {
			return err
		}
		return tx.Bucket(bucketLog).ForEach(func(k, v []byte) error {
			if len(k) != 8 {
				return fmt.Errorf("log key: %w", errShort)
			}
			index := binary.BigEndian.Uint64(k)
			if c.first == 0 {
				c.first = index
			} else if index != c.last+1 {
				return &Corruption{path, fmt.Sprintf("log entry %d follows %d", index, c.last)}
			}
			c.last = index
			c.bytes += uint64(len(k) + len(v))
			if err := checkRecord(index, v); err != nil {
				return fmt.Errorf("log entry %d: %w", index, err)
			}
			if raft.LogType(v[1]) == raft.LogConfiguration {
				c.configs = append(c.configs, index)
			}
			return nil
		})
	})
	if isRecordError(err) {
		err = &Corruption{path, err.Error()}
	}
	return c, err
}

// syncDir makes a rename or a new name in dir durable.
func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// makeDir makes dir, and its name durable.
func makeDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return syncDir(filepath.Dir(dir))
}
