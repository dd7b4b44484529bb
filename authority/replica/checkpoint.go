package replica

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/writ-dev/writ/authority/audit"
)

const consistencyTimeout = 5 * time.Second

func auditVerifier(key string) (note.Verifier, error) { return audit.ParseVerifier(key) }

// offerCheckpoint hands a checkpoint over, unless one is still being looked at:
// the next will do as well.
func (r *Replica) offerCheckpoint(text string) {
	select {
	case r.points <- text:
	default:
	}
}

// readCheckpoint checks the signature if there is a key for it, and so if the
// origin is the key's: another incarnation has another origin and another key.
func (r *Replica) readCheckpoint(text []byte) (audit.Checkpoint, error) {
	if r.cfg.AuditKey != "" {
		v, err := auditVerifier(r.cfg.AuditKey)
		if err != nil {
			return audit.Checkpoint{}, err
		}
		return audit.VerifyCheckpoint(text, v)
	}
	return audit.ReadUnverified(text)
}

// loadCheckpoint reads the last checkpoint of an earlier run. No file is no
// checkpoint; a file that cannot be read is an error, or deleting a byte of it
// would be a way to have the replica forget.
func (r *Replica) loadCheckpoint() (audit.Checkpoint, error) {
	if r.cfg.CheckpointFile == "" {
		return audit.Checkpoint{}, nil
	}
	f, err := os.Open(r.cfg.CheckpointFile)
	if errors.Is(err, os.ErrNotExist) {
		return audit.Checkpoint{}, nil
	}
	if err != nil {
		return audit.Checkpoint{}, fmt.Errorf("%w: checkpoint file: %w", ErrConfig, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, audit.MaxCheckpoint+1))
	if err != nil {
		return audit.Checkpoint{}, fmt.Errorf("%w: checkpoint file: %w", ErrConfig, err)
	}
	c, err := r.readCheckpoint(b)
	if err != nil {
		return audit.Checkpoint{}, fmt.Errorf("%w: checkpoint file %s: %w", ErrConfig, r.cfg.CheckpointFile, err)
	}
	return c, nil
}

// runCheckpoints holds each checkpoint against the last.
func (r *Replica) runCheckpoints(last audit.Checkpoint) {
	for {
		select {
		case text := <-r.points:
			next, err := r.holdAgainst(last, text)
			switch {
			case errors.Is(err, ErrForked):
				r.log.Error("the audit log was changed behind this replica's back", "error", err, "seen", last.Size, "offered", next.Size)
				r.feed.report(err)
				if r.cfg.AuditKey != "" {
					r.forked.Store(true)
				}
			case err != nil:
				r.log.Warn("checkpoint", "error", err)
			case next != last:
				last = next
				if err := replaceFile(r.cfg.CheckpointFile, text); err != nil {
					r.log.Warn("keeping the checkpoint", "error", err)
				}
			}
		case <-r.ctx.Done():
			return
		}
	}
}

// holdAgainst returns the newer of the two if one continues the other.
func (r *Replica) holdAgainst(last audit.Checkpoint, text string) (audit.Checkpoint, error) {
	next, err := r.readCheckpoint([]byte(text))
	if err != nil {
		return last, err
	}
	if last.Origin == "" || last.Origin != next.Origin {
		// The first, or another incarnation's: its log begins with the
		// checkpoint that it continues, which is for an audit to follow.
		if last.Origin != "" {
			r.log.Warn("the audit log has a new origin", "was", last.Origin, "is", next.Origin)
		}
		return next, nil
	}
	older, newer := last, next
	if older.Size > newer.Size {
		older, newer = newer, older
	}
	if older.Size == newer.Size {
		if older.Root != newer.Root {
			return next, fmt.Errorf("%w: two roots of %d records", ErrForked, older.Size)
		}
		return last, nil
	}
	if older.Size == 0 {
		return newer, nil
	}
	ctx, cancel := context.WithTimeout(r.ctx, consistencyTimeout)
	defer cancel()
	answer, err := r.consistency(ctx, older.Size, newer.Size)
	if err != nil {
		return last, err // no proof is no evidence either; the next checkpoint asks again
	}
	proof := make([]audit.Hash, len(answer.Hashes))
	for i, h := range answer.Hashes {
		if len(h) != len(proof[i]) {
			return last, fmt.Errorf("a proof with a hash of %d bytes", len(h))
		}
		copy(proof[i][:], h)
	}
	if err := audit.VerifyConsistency(older, newer, proof); err != nil {
		return next, fmt.Errorf("%w: %d and %d records: %v", ErrForked, older.Size, newer.Size, err)
	}
	return newer, nil
}

// replaceFile writes a file of mode 0600 in whole, or not at all. An empty path
// is no file.
func replaceFile(path, content string) (err error) {
	if path == "" {
		return nil
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	_, err = io.Copy(f, strings.NewReader(content))
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
