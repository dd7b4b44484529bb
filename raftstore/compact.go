package raftstore

import (
	"context"
	"crypto/sha256"
	"errors"
	"math"
	"os"
	"path/filepath"

	"go.etcd.io/bbolt"
)

// hashicorp/raft bounds the log by entries alone, and one may be of any size up
// to Config.MaxCommand. What is here bounds it by bytes.

// watchLog takes a snapshot whenever enough was appended since the last. It looks when the guard says that the log has grown:
// one that fails (a full disk, a change of members under way) is tried again
// when it has grown some more.
func (s *Store) watchLog() {
	defer close(s.watched)
	for {
		select {
		case <-s.guard.grown:
		case <-s.fail.dead:
			return
		case <-s.closing:
			return
		}
		index, _ := s.snaps.newest()
		last := s.raft.LastIndex()
		if index+s.fitting(last, math.MaxUint64, s.enough(index)) >= last {
			continue
		}
		err := s.Snapshot(context.Background())
		if err != nil && !errors.Is(err, ErrNothingNew) && !errors.Is(err, ErrClosed) {
			s.cfg.Logger.Warn("the log is long, and no snapshot could be taken", "error", err)
		}
	}
}

// enough is how many bytes of entries behind the snapshot of index are for the next:
// Config.SnapshotBytes or down to half of them, by the node and by the snapshot.
// The nodes have the same log, and would otherwise each write one at the same
// moment, every time.
func (s *Store) enough(index uint64) uint64 {
	sum := sha256.Sum256(append([]byte(s.cfg.NodeID), indexKey(index)...))
	const parts = 16
	return s.cfg.SnapshotBytes - s.cfg.SnapshotBytes/(2*parts)*uint64(sum[0]%parts)
}

// trail tells Raft how much to leave in the log behind the snapshot of index,
// which is complete. Raft drops the rest next, and counts from the end of the log.
func (s *Store) trail(index uint64) {
	last := s.raft.LastIndex()
	if last < index {
		return // one that was sent to this node, and replaces the log
	}
	change := s.raft.ReloadableConfig()
	change.TrailingLogs = last - index + s.fitting(index, s.cfg.TrailingLogs, s.cfg.TrailingBytes)
	if err := s.raft.ReloadConfig(change); err != nil {
		s.cfg.Logger.Warn("cannot bound the log", "error", err)
	}
}

// fitting is boltLog.fitting; an error is fatal.
func (s *Store) fitting(index, entries, bytes uint64) (n uint64) {
	_ = s.guard.read("log", func() (err error) { n, err = s.log.fitting(index, entries, bytes); return err })
	return n
}

// fitting returns how many of the entries up to index, from there backwards, are
// at most so many entries and bytes. The one at index always fits. It reads the
// records' lengths, and not the records.
func (b *boltLog) fitting(index, entries, bytes uint64) (n uint64, err error) {
	err = b.view(func(tx *bbolt.Tx) error {
		c := tx.Bucket(bucketLog).Cursor()
		size := uint64(0)
		for k, v := c.Seek(indexKey(index)); k != nil && n < entries; k, v = c.Prev() {
			size += uint64(len(k) + len(v))
			if n > 0 && size > bytes {
				break
			}
			n++
		}
		return nil
	})
	return n, err
}

// newSuffix is of the name under which raft.db is written, until it is whole.
const newSuffix = ".new"

// renameLog gives a new raft.db its name.
func renameLog(path string) error {
	if err := os.Rename(path+newSuffix, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// shortenChunk is how many bytes one transaction copies.
const shortenChunk = 16 << 20

// shorten copies raft.db into a shorter file where it is more than twice as long
// as its entries and as a log of these bounds make it. bbolt uses free pages again
// and never gives one back, so that a file stays as long as it once was: as after
// hours in which a full disk let no snapshot through. found is what inspect said;
// the copy is held to it before it takes the file's place. Without the space for
// one the file stays as it is.
func (s *Store) shorten(path string, found contents) error {
	fi, err := os.Stat(path)
	if err != nil {
		return err
	}
	half := uint64(fi.Size()) / 2
	if half <= found.bytes || half-min(half, s.cfg.SnapshotBytes) <= s.cfg.TrailingBytes {
		return nil
	}
	err = copyLog(path, found)
	if err == nil {
		err = renameLog(path)
	}
	if errors.Is(diskFull(err), ErrDiskFull) {
		s.cfg.Logger.Warn("no space to shorten the log's file", "path", path, "error", err)
		return os.Remove(path + newSuffix)
	}
	return err
}

// copyLog copies path, under newSuffix.
func copyLog(path string, found contents) (err error) {
	defer catch(path, &err)()
	opts := boltOptions()
	opts.ReadOnly = true
	from, err := bbolt.Open(path, 0o600, opts)
	if err != nil {
		return openError(path, err)
	}
	defer from.Close()
	to, err := bbolt.Open(path+newSuffix, 0o600, boltOptions())
	if err != nil {
		return openError(path+newSuffix, err)
	}
	err = bbolt.Compact(to, from, shortenChunk)
	if err := errors.Join(err, to.Close()); err != nil {
		return err
	}
	copied, err := inspect(path + newSuffix)
	if err != nil {
		return err
	}
	if copied.first != found.first || copied.last != found.last || copied.bytes != found.bytes {
		return &Corruption{path, "its copy differs"}
	}
	return nil
}
