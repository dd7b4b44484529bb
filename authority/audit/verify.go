package audit

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// Report is what [VerifyDir] found.
type Report struct {
	Origin      string
	Size        int64  // records in the log
	Root        Hash   // of all of them
	LastIndex   uint64 // Raft index of the last record
	First       int64  // first record whose body is here; of earlier ones only the hashes were checked
	Checkpoints int    // signed checkpoints saved beside the log, all of which hold
	Signed      int64  // records that the newest of these, or of those known, covers; for the rest only this disk vouches
}

// VerifyDir checks the log in a directory offline, byte for byte: it recomputes all hashes from the bodies, and holds the tree against
// the commit marker, against every saved checkpoint, whose signatures it checks, and against the checkpoints in known, which the
// caller remembers from elsewhere and has verified. It changes nothing. No node may be running on the directory.
//
// Damage is a [CorruptError]; a log that is whole but contradicts a known checkpoint is [ErrProof]; a bad signature is
// [ErrSignature]. A crash can leave damage after the last Sync, which [Open] repairs and this function reports, with Tail set.
// The report is filled as far as the check came.
func VerifyDir(dir string, verifier note.Verifier, known ...Checkpoint) (Report, error) {
	c, err := readCommit(dir)
	if err != nil {
		return Report{}, err
	}
	v := &dirVerifier{dir: dir, commit: c}
	v.report = Report{Origin: c.origin, First: c.first}
	defer v.close()
	if c.origin != verifier.Name() {
		return v.report, fmt.Errorf("%w: log %q, key %q", ErrOrigin, c.origin, verifier.Name())
	}
	if err := v.readCheckpoints(verifier); err != nil {
		return v.report, err
	}
	for _, k := range known {
		if k.Origin != c.origin {
			return v.report, fmt.Errorf("%w: known checkpoint %q, log %q", ErrOrigin, k.Origin, c.origin)
		}
		v.due = append(v.due, dueRoot{k.Size, k.Root, fmt.Errorf("%w: known checkpoint of %d records", ErrProof, k.Size)})
		v.report.Signed = max(v.report.Signed, k.Size)
	}
	v.due = append(v.due, dueRoot{c.size, c.root, &CorruptError{File: commitFile, Reason: fmt.Sprintf("root of %d records", c.size)}})
	slices.SortStableFunc(v.due, func(a, b dueRoot) int { return int(a.size - b.size) })
	err = v.walk()
	v.report.Size, v.report.Root, v.report.LastIndex = v.scan.edge.size, v.scan.edge.Root(), v.scan.last
	return v.report, err
}

// dueRoot is a root that the tree must have at a size, and the error if it has not.
type dueRoot struct {
	size int64
	root Hash
	err  error
}

type dirVerifier struct {
	dir    string
	commit commit
	report Report
	due    []dueRoot // by rising size
	scan   batchScanner

	hashes, index *stream
	segments      []int64 // not yet read
	body          *stream // the segment that is being read
	buf           []byte
}

// stream reads a file from its start and knows how far it came.
type stream struct {
	name string
	file *os.File
	r    *bufio.Reader
	at   int64
}

func (v *dirVerifier) open(name string) (*stream, error) {
	f, err := os.Open((&Log{dir: v.dir}).path(name))
	if err != nil {
		return nil, missing(name, err)
	}
	return &stream{name: name, file: f, r: bufio.NewReaderSize(f, 1<<14)}, nil
}

func (s *stream) Read(b []byte) (int, error) {
	n, err := s.r.Read(b)
	s.at += int64(n)
	return n, err
}

// ended reports whether nothing is left.
func (s *stream) ended() (bool, error) {
	_, err := s.r.Peek(1)
	if err == io.EOF {
		return true, nil
	}
	return false, err
}

func (s *stream) close() {
	if s != nil {
		s.file.Close()
	}
}

func (v *dirVerifier) close() {
	v.hashes.close()
	v.index.close()
	v.body.close()
}

// corrupt makes the error for damage that was found while reading the record after those verified.
func (v *dirVerifier) corrupt(s *stream, at int64, reason string) error {
	return &CorruptError{File: s.name, Offset: at, Reason: reason, Tail: v.scan.edge.size >= v.commit.size}
}

func (v *dirVerifier) readCheckpoints(verifier note.Verifier) error {
	s, err := v.open(checkpointFile)
	if err != nil {
		return err
	}
	defer s.close()
	for {
		at := s.at
		bad := func(reason error) error {
			return &CorruptError{File: checkpointFile, Offset: at, Reason: reason.Error(), Tail: at >= v.commit.checkpoints}
		}
		msg, err := readCheckpoint(s)
		if err == io.EOF {
			if at < v.commit.checkpoints {
				return bad(errors.New("shorter than the commit marker says"))
			}
			return nil
		}
		if err != nil {
			return bad(err)
		}
		c, err := VerifyCheckpoint(msg, verifier)
		if err != nil {
			return fmt.Errorf("%s at byte %d: %w", checkpointFile, at, err)
		}
		if c.Size < v.report.Signed {
			return bad(errors.New("out of order"))
		}
		v.due = append(v.due, dueRoot{c.Size, c.Root, bad(fmt.Errorf("root of %d records is not the signed one", c.Size))})
		v.report.Checkpoints++
		v.report.Signed = c.Size
	}
}

// walk reads hashes, index and bodies side by side from the first record to the last.
func (v *dirVerifier) walk() (err error) {
	if v.hashes, err = v.open(hashesFile); err != nil {
		return err
	}
	if v.index, err = v.open(indexFile); err != nil {
		return err
	}
	if v.segments, err = segmentsIn(v.dir); err != nil {
		return err
	}
	if len(v.segments) == 0 || v.segments[0] != v.commit.first {
		return &CorruptError{File: segmentName(v.commit.first), Reason: "missing, or an older one is left"}
	}
	for {
		if err := v.checkDue(); err != nil {
			return err
		}
		if more, err := v.next(); err != nil || !more {
			return errors.Join(err, v.checkEnd(err))
		}
	}
}

// checkDue checks the roots that are due at the present size.
func (v *dirVerifier) checkDue() error {
	for len(v.due) > 0 && v.due[0].size <= v.scan.edge.size {
		if v.due[0].root != v.scan.edge.Root() {
			return v.due[0].err
		}
		v.due = v.due[1:]
	}
	return nil
}

// checkEnd checks, at the end of the records, that nothing is missing. It has nothing to add to an error.
func (v *dirVerifier) checkEnd(err error) error {
	size := v.scan.edge.size
	switch {
	case err != nil:
		return nil
	case v.scan.inside:
		return v.corrupt(v.index, v.index.at, "last batch is not whole")
	case size < v.commit.size:
		return &CorruptError{File: indexFile, Offset: v.index.at, Reason: fmt.Sprintf("%d records, the commit marker says %d", size, v.commit.size)}
	case len(v.due) > 0:
		return fmt.Errorf("%w: the log has only %d", v.due[0].err, size)
	case size == v.commit.size && v.scan.last != v.commit.last:
		return &CorruptError{File: commitFile, Reason: "last Raft index"}
	}
	if ended, err := v.hashes.ended(); err != nil || !ended {
		return errors.Join(err, v.corrupt(v.hashes, v.hashes.at, "goes on after the last record"))
	}
	// The last segment may be empty: the log's first, or one that was begun for a record which did not come.
	if v.body == nil {
		if err := v.nextSegment(); err != nil {
			return err
		}
	}
	committed := size > v.commit.size || v.atCommit()
	if len(v.segments) > 0 && v.segments[0] == size {
		if err := v.nextSegment(); err != nil {
			return err
		}
		committed = committed || v.atCommit()
	}
	if ended, err := v.body.ended(); err != nil || !ended {
		return errors.Join(err, v.corrupt(v.body, v.body.at, "goes on after the last record"))
	}
	if len(v.segments) > 0 {
		return &CorruptError{File: segmentName(v.segments[0]), Reason: "belongs to no record", Tail: true}
	}
	if !committed {
		return &CorruptError{File: commitFile, Reason: "end of the bodies"}
	}
	return nil
}

// atCommit reports whether the bodies were read to where the commit marker says that they end.
func (v *dirVerifier) atCommit() bool {
	first, _ := parseSegmentName(v.body.name)
	return v.commit.segment == first && v.commit.offset == v.body.at
}

// next checks one record. It reports false at the end of the index, which is written last.
func (v *dirVerifier) next() (bool, error) {
	n := v.scan.edge.size
	var entry [indexEntry]byte
	at := v.index.at
	if _, err := io.ReadFull(v.index, entry[:]); err == io.EOF {
		return false, nil
	} else if err != nil {
		return false, v.corrupt(v.index, at, err.Error())
	}
	p, err := parsePosition(entry[:], n)
	if err != nil {
		return false, v.corrupt(v.index, at, err.Error())
	}
	at = v.hashes.at
	var leaf Hash
	if _, err := io.ReadFull(v.hashes, leaf[:]); err != nil {
		return false, v.corrupt(v.hashes, at, "shorter than the index")
	}
	if n >= v.commit.first {
		if err := v.checkBody(n, p, leaf); err != nil {
			return false, err
		}
	} else if p.index < v.scan.last {
		return false, v.corrupt(v.index, at, "Raft index falls")
	} else {
		v.scan.last = p.index
	}
	stored := v.scan.edge.append(leaf, v.buf[:0])
	above := stored[tlog.HashSize:]
	v.buf = stored[:0]
	read := make([]byte, len(above))
	if _, err := io.ReadFull(v.hashes, read); err != nil || !bytes.Equal(read, above) {
		return false, &CorruptError{File: hashesFile, Offset: at, Reason: fmt.Sprintf("nodes above record %d", n), Tail: n >= v.commit.size}
	}
	return true, nil
}

// checkBody checks the body of a record against its place in the index and its leaf hash.
func (v *dirVerifier) checkBody(n int64, p position, leaf Hash) error {
	if len(v.segments) > 0 && v.segments[0] == n {
		if err := v.nextSegment(); err != nil {
			return err
		}
	}
	at := v.body.at
	f, record, err := readFrame(v.body, n, nil)
	switch {
	case err != nil:
		return v.corrupt(v.body, at, fmt.Sprintf("record %d: %v", n, err))
	case int64(p.offset) != at || p.index != f.index:
		return v.corrupt(v.index, n*indexEntry, fmt.Sprintf("record %d lies elsewhere", n))
	case !v.scan.next(f):
		return v.corrupt(v.body, at, fmt.Sprintf("record %d is out of order", n))
	case RecordHash(record) != leaf:
		return v.corrupt(v.body, at, fmt.Sprintf("record %d has another hash", n))
	}
	return nil
}

// nextSegment turns to the next segment, after the present one was read to its end.
func (v *dirVerifier) nextSegment() error {
	if v.body != nil {
		if ended, err := v.body.ended(); err != nil || !ended {
			return errors.Join(err, v.corrupt(v.body, v.body.at, "goes on after its last record"))
		}
		v.body.close()
	}
	first := v.segments[0]
	v.segments = v.segments[1:]
	var err error
	if v.body, err = v.open(segmentName(first)); err != nil {
		return err
	}
	var header [segmentHeader]byte
	if _, err := io.ReadFull(v.body, header[:]); err != nil || !bytes.Equal(header[:], appendSegmentHeader(nil, first)) {
		return v.corrupt(v.body, 0, "header")
	}
	return nil
}
