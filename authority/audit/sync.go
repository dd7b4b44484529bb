package audit

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// Sync makes durable what was appended before the call. Appending goes on meanwhile. A failure makes the log unusable: what the
// kernel dropped after a failed fsync is not known, so only opening it again tells what is there. A full disk does not: nothing relies
// on what it refused, and the log can be synced again once there is space.
func (l *Log) Sync() error {
	l.commits.Lock()
	defer l.commits.Unlock()
	return l.sync(nil, -1)
}

// sync makes everything durable, then appends a checkpoint if there is one, and records both in the commit marker, with first as
// the first record whose body is here unless that is negative. The caller holds commits.
func (l *Log) sync(checkpoint []byte, first int64) (err error) {
	l.mu.Lock()
	if l.err != nil {
		defer l.mu.Unlock()
		return l.err
	}
	if first < 0 {
		first = l.first
	}
	c := commit{
		origin: l.origin, size: l.edge.size, last: l.last, first: first, root: l.edge.Root(),
		segment: l.current.first, offset: l.current.size, checkpoints: l.saved,
	}
	full := l.unsynced
	l.unsynced = nil
	current := l.current.file
	l.mu.Unlock()

	if c == l.committed && checkpoint == nil {
		return nil
	}
	refused := false // for want of space, what the old commit marker does not cover
	defer func() {
		if err != nil {
			err = fmt.Errorf("audit: sync: %w", err)
		}
		if err != nil && !refused {
			l.mu.Lock()
			l.err = err
			l.mu.Unlock()
		}
	}()
	var errs []error
	for _, f := range full {
		errs = append(errs, f.Sync(), f.Close())
	}
	errs = append(errs, current.Sync(), l.hashes.Sync(), l.index.Sync())
	if c.segment != l.committed.segment {
		errs = append(errs, syncDir(l.dir))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if checkpoint != nil {
		b := appendCheckpoint(nil, checkpoint)
		if _, err := l.checkpoints.WriteAt(b, c.checkpoints); err != nil {
			refused = errors.Is(err, syscall.ENOSPC) && l.checkpoints.Truncate(c.checkpoints) == nil // it took some of it
			return err
		}
		if err := l.checkpoints.Sync(); err != nil {
			return err
		}
		c.checkpoints += int64(len(b))
	}
	if refused, err = l.writeCommit(c); err != nil {
		return err
	}
	l.committed = c
	l.mu.Lock()
	defer l.mu.Unlock()
	l.first, l.saved = c.first, c.checkpoints
	if checkpoint != nil {
		l.latest = checkpoint
	}
	return nil
}

// writeCommit replaces the commit marker: after a crash the old one is there or the new one. Where the new one is refused for want
// of space, the old one stays.
func (l *Log) writeCommit(c commit) (refused bool, err error) {
	temp := l.path(commitTemp)
	f, err := l.openFile(temp, os.O_CREATE|os.O_TRUNC|os.O_RDWR)
	if err != nil {
		return errors.Is(err, syscall.ENOSPC), err
	}
	if _, err := f.WriteAt(c.encode(), 0); err != nil {
		return errors.Is(err, syscall.ENOSPC), errors.Join(err, f.Close())
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return false, err
	}
	if err := os.Rename(temp, l.path(commitFile)); err != nil {
		return false, err
	}
	return false, syncDir(l.dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Checkpoint signs the log as it is now. It stores nothing: see [Log.SaveCheckpoint].
func (l *Log) Checkpoint(signer note.Signer) ([]byte, error) {
	l.mu.RLock()
	edge, err := l.edge, l.err
	l.mu.RUnlock()
	if err != nil {
		return nil, err
	}
	return Checkpoint{l.origin, edge.size, edge.Root()}.Sign(signer)
}

// SaveCheckpoint keeps a signed checkpoint of this log beside it, after making durable what it covers, so that whoever checks the
// files finds how much of them is signed. The log holds the checkpoint against its own tree ([ErrDiverged]), but has no key to
// check the signature with. An older one than the newest saved is [ErrRange]; the same again is no change.
func (l *Log) SaveCheckpoint(msg []byte) error {
	c, err := ReadUnverified(msg)
	if err != nil {
		return err
	}
	if c.Origin != l.origin {
		return fmt.Errorf("%w: checkpoint %q, log %q", ErrOrigin, c.Origin, l.origin)
	}
	l.commits.Lock()
	defer l.commits.Unlock()
	root, err := l.rootAt(c.Size)
	if err != nil {
		return err
	}
	if root != c.Root {
		return fmt.Errorf("%w: checkpoint of %d records has another root", ErrDiverged, c.Size)
	}
	if latest, ok := l.LatestCheckpoint(); ok {
		if bytes.Equal(latest, msg) {
			return nil
		}
		if newest, err := ReadUnverified(latest); err != nil || c.Size < newest.Size {
			return errors.Join(err, fmt.Errorf("%w: a checkpoint of %d records, after one of %d", ErrRange, c.Size, newest.Size))
		}
	}
	return l.sync(bytes.Clone(msg), -1)
}

// LatestCheckpoint returns the newest checkpoint that was saved.
func (l *Log) LatestCheckpoint() (msg []byte, ok bool) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return bytes.Clone(l.latest), l.latest != nil
}

// rootAt returns the root of the tree that the first records make.
func (l *Log) rootAt(size int64) (Hash, error) {
	if err := l.checkSize(size); err != nil {
		return Hash{}, err
	}
	return tlog.TreeHash(size, l)
}
