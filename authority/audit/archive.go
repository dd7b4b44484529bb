package audit

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"slices"
)

// Archive copies to w, byte for byte, the segments of bodies that lie wholly before a record and are still here, and returns the
// first record that it did not copy. Nothing is removed: see [Log.Discard]. [ReadArchive] reads the copy.
func (l *Log) Archive(before int64, w io.Writer) (next int64, err error) {
	if err := l.Sync(); err != nil {
		return 0, err
	}
	l.mu.RLock()
	segments := slices.Clone(l.segments)
	l.mu.RUnlock()
	for i, first := range segments[:len(segments)-1] {
		if segments[i+1] > before {
			return first, nil
		}
		if err := copyFile(w, l.path(segmentName(first))); err != nil {
			return first, err
		}
	}
	return segments[len(segments)-1], nil
}

func copyFile(w io.Writer, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(w, f)
	return err
}

// Discard removes the bodies of the records before next, which must be a number that [Log.Archive] returned. Hashes stay: proofs and
// checkpoints go on holding, and an archived record can still be held against them. The caller has made the archive durable.
func (l *Log) Discard(next int64) error {
	l.commits.Lock()
	defer l.commits.Unlock()
	l.mu.RLock()
	at, found := slices.BinarySearch(l.segments, next)
	gone := slices.Clone(l.segments[:at])
	l.mu.RUnlock()
	if !found {
		return fmt.Errorf("%w: no segment begins with record %d", ErrRange, next)
	}
	// Once the marker says so, a segment that is left over after a crash is removed by Open.
	if err := l.sync(nil, next); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.segments = slices.Delete(l.segments, 0, len(gone))
	var errs []error
	for _, first := range gone {
		errs = append(errs, os.Remove(l.path(segmentName(first))))
	}
	return errors.Join(append(errs, syncDir(l.dir))...)
}

// ReadArchive yields the records of what [Log.Archive] wrote, or of several such archives one after the other. They are checked for
// damage only: hold each against a checkpoint with an inclusion proof, or against the log's hashes.
func ReadArchive(r io.Reader) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		var (
			in = bufio.NewReaderSize(r, 1<<16)
			n  = int64(-1) // no segment yet
		)
		for {
			magic, err := in.Peek(len(segmentMagic))
			if err == io.EOF && len(magic) == 0 {
				return
			}
			// The magic, read as a frame's length, is out of bounds: no frame looks like a header.
			if string(magic) == segmentMagic {
				var header [segmentHeader]byte
				if _, err := io.ReadFull(in, header[:]); err != nil {
					yield(Entry{}, fmt.Errorf("%w: archive: %w", ErrMalformed, err))
					return
				}
				first := int64(binary.BigEndian.Uint64(header[len(segmentMagic):]))
				if first < 0 || first > MaxSize || first < n || !bytes.Equal(header[:], appendSegmentHeader(nil, first)) {
					yield(Entry{}, fmt.Errorf("%w: archive: segment of record %d after record %d", ErrMalformed, first, n))
					return
				}
				n = first
				continue
			}
			if n < 0 {
				yield(Entry{}, fmt.Errorf("%w: not an archive of audit records", ErrMalformed))
				return
			}
			f, record, err := readFrame(in, n, nil)
			if err != nil {
				yield(Entry{}, fmt.Errorf("%w: archive: record %d: %w", ErrMalformed, n, err))
				return
			}
			if !yield(Entry{n, f.index, record}, nil) {
				return
			}
			n++
		}
	}
}
