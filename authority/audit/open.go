package audit

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"slices"

	"golang.org/x/mod/sumdb/tlog"
)

// Open opens the log in a directory, which it creates with mode 0700 if need be. The origin must be the log's ([ErrOrigin]).
//
// What the last [Log.Sync] made durable must be there and agree with the commit marker, or the log is [ErrCorrupt]. Records after
// that are kept as far as they are whole; what a crash tore is cut off, and Raft appends it again. Bodies of durable records are
// not read here: that is [VerifyDir]'s work, and every read checks its record.
func Open(dir, origin string, options ...Option) (*Log, error) {
	l, fresh, err := prepare(dir, origin, options)
	if err != nil {
		return nil, err
	}
	if fresh {
		err = l.create()
	} else {
		err = l.load()
	}
	if err != nil {
		return nil, errors.Join(err, l.closeFiles())
	}
	return l, nil
}

// Start creates the log of a new incarnation, whose origin is new and whose first leaf, at Raft index 0, is the last checkpoint that
// is known of the one before: the signed note, byte for byte. The state machine's edge begins with its [RecordHash]. A directory that
// has a log already is [ErrExists].
func Start(dir, origin string, previous []byte, options ...Option) (*Log, error) {
	c, err := ReadUnverified(previous)
	if err != nil {
		return nil, err
	}
	if c.Origin == origin {
		return nil, fmt.Errorf("%w: a new incarnation needs another than %q", ErrOrigin, origin)
	}
	l, fresh, err := prepare(dir, origin, options)
	if err != nil {
		return nil, err
	}
	if !fresh {
		return nil, fmt.Errorf("%w: %s", ErrExists, dir)
	}
	if err := l.create(previous); err != nil {
		return nil, errors.Join(err, l.closeFiles())
	}
	return l, nil
}

func prepare(dir, origin string, options []Option) (l *Log, fresh bool, err error) {
	if err := checkOrigin(origin); err != nil {
		return nil, false, err
	}
	l = &Log{dir: dir, origin: origin, segmentSize: defaultSegmentSize, openFile: openOSFile}
	for _, o := range options {
		if err := o(l); err != nil {
			return nil, false, err
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, false, err
	}
	// A marker that was being written when the node stopped is not in force.
	if err := os.Remove(l.path(commitTemp)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, false, err
	}
	fresh, err = isFresh(dir)
	return l, fresh, err
}

func openOSFile(path string, flag int) (file, error) {
	f, err := os.OpenFile(path, flag, 0o600)
	if err != nil {
		return nil, err // not a nil *os.File in an interface
	}
	return f, nil
}

// isFresh reports whether a directory has no log, or one whose creation was cut short before it held a record. A log without its
// commit marker is corrupt.
func isFresh(dir string) (bool, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return false, err
	}
	length := int64(0)
	for _, e := range entries {
		_, body := parseSegmentName(e.Name())
		switch {
		case e.Name() == commitFile:
			return false, nil
		case body, e.Name() == hashesFile, e.Name() == indexFile, e.Name() == checkpointFile:
			info, err := e.Info()
			if err != nil {
				return false, err
			}
			length += info.Size()
		}
	}
	if length > int64(segmentHeader) {
		return false, &CorruptError{File: commitFile, Reason: "missing, though there are records"}
	}
	return true, nil
}

// create makes the files of an empty log, adds the first records at Raft index 0, and commits.
func (l *Log) create(first ...[]byte) (err error) {
	if l.current, err = l.createSegment(0); err != nil {
		return err
	}
	l.segments = []int64{0}
	if err := l.openOthers(os.O_CREATE | os.O_TRUNC | os.O_RDWR); err != nil {
		return err
	}
	if err := l.write(0, first); err != nil {
		return err
	}
	l.committed.segment = -1 // so that the directory is synced
	return l.Sync()
}

func (l *Log) openOthers(flag int) error {
	for name, f := range map[string]*file{hashesFile: &l.hashes, indexFile: &l.index, checkpointFile: &l.checkpoints} {
		var err error
		if *f, err = l.openFile(l.path(name), flag); err != nil {
			return missing(name, err)
		}
	}
	return nil
}

// missing turns the absence of a file that must be there into corruption.
func missing(name string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return &CorruptError{File: name, Reason: "missing"}
	}
	return err
}

// load opens an existing log: the committed part, then what follows it.
func (l *Log) load() error {
	c, err := readCommit(l.dir)
	if err != nil {
		return err
	}
	if c.origin != l.origin {
		return fmt.Errorf("%w: %q, not %q", ErrOrigin, c.origin, l.origin)
	}
	l.committed, l.last, l.first, l.saved = c, c.last, c.first, c.checkpoints
	if err := l.openOthers(os.O_RDWR); err != nil {
		return err
	}
	if err := l.checkCommitted(c); err != nil {
		return err
	}
	tail, err := l.listSegments(c)
	if err != nil {
		return err
	}
	if err := l.loadTail(c, tail); err != nil {
		return err
	}
	if err := l.loadCheckpoints(c); err != nil {
		return err
	}
	return l.Sync()
}

// readCommit reads the commit marker of a directory.
func readCommit(dir string) (commit, error) {
	f, err := os.Open((&Log{dir: dir}).path(commitFile))
	if err != nil {
		return commit{}, missing(commitFile, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, int64(commitFixed+MaxOrigin+1)))
	if err != nil {
		return commit{}, err
	}
	c, err := parseCommit(b)
	if err != nil {
		return commit{}, &CorruptError{File: commitFile, Reason: err.Error()}
	}
	return c, nil
}

// checkCommitted checks that hashes and index reach as far as the marker says and give its root and Raft index.
func (l *Log) checkCommitted(c commit) error {
	var err error
	if l.edge, err = l.edgeAt(c.size); err != nil {
		return &CorruptError{File: hashesFile, Offset: hashesLength(c.size), Reason: "shorter than the commit marker says"}
	}
	if l.edge.Root() != c.root {
		return &CorruptError{File: hashesFile, Reason: "root is not the commit marker's"}
	}
	if c.size == 0 {
		return nil
	}
	p, err := l.position(c.size - 1)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return &CorruptError{File: indexFile, Offset: c.size * indexEntry, Reason: "shorter than the commit marker says"}
	}
	if err == nil && p.index != c.last {
		return &CorruptError{File: indexFile, Offset: c.size * indexEntry, Reason: "last Raft index is not the commit marker's"}
	}
	return err
}

// listSegments finds the committed segments, all of which must be there and whole, and returns the later ones.
func (l *Log) listSegments(c commit) (tail []int64, err error) {
	all, err := segmentsIn(l.dir)
	if err != nil {
		return nil, err
	}
	for _, first := range all {
		switch {
		case first < c.first: // Discard was cut short after its commit
			if err := os.Remove(l.path(segmentName(first))); err != nil {
				return nil, err
			}
		case first <= c.segment:
			l.segments = append(l.segments, first)
		default:
			tail = append(tail, first)
		}
	}
	n := len(l.segments)
	if n == 0 || l.segments[0] != c.first {
		return nil, &CorruptError{File: segmentName(c.first), Reason: "missing"}
	}
	if l.segments[n-1] != c.segment {
		return nil, &CorruptError{File: segmentName(c.segment), Reason: "missing"}
	}
	for i, first := range l.segments[1:] {
		if err := l.checkFull(l.segments[i], first); err != nil {
			return nil, err
		}
	}
	return tail, nil
}

// segmentsIn lists the segments of a directory, rising.
func segmentsIn(dir string) ([]int64, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var all []int64
	for _, e := range entries {
		if first, ok := parseSegmentName(e.Name()); ok {
			all = append(all, first)
		}
	}
	slices.Sort(all)
	return all, nil
}

// checkFull checks that a full segment ends with the record before the next segment's first.
func (l *Log) checkFull(first, next int64) error {
	p, err := l.position(next - 1)
	if err != nil {
		return err
	}
	f, err := os.Open(l.path(segmentName(first)))
	if err != nil {
		return err
	}
	defer f.Close()
	r := io.NewSectionReader(f, int64(p.offset), math.MaxInt64-int64(p.offset))
	if _, _, err := readFrame(r, next-1, nil); err != nil {
		return &CorruptError{File: segmentName(first), Offset: int64(p.offset), Reason: fmt.Sprintf("does not end with record %d: damaged, or the next segment is missing", next-1)}
	}
	end, _ := r.Seek(0, io.SeekCurrent)
	if info, err := f.Stat(); err != nil || info.Size() != end+int64(p.offset) {
		return errors.Join(err, &CorruptError{File: segmentName(first), Offset: end + int64(p.offset), Reason: "goes on after its last record"})
	}
	return nil
}

// loadTail keeps the whole batches that follow the committed records, makes their hashes and index again, and cuts off the rest.
func (l *Log) loadTail(c commit, tail []int64) error {
	err := errors.Join(l.hashes.Truncate(hashesLength(c.size)), l.index.Truncate(c.size*indexEntry))
	if err != nil {
		return err
	}
	if l.current, err = l.openSegment(c.segment); err != nil {
		return missing(segmentName(c.segment), err)
	}
	var header [segmentHeader]byte
	if _, err := l.current.file.ReadAt(header[:], 0); err != nil || !bytes.Equal(header[:], appendSegmentHeader(nil, c.segment)) {
		return &CorruptError{File: segmentName(c.segment), Reason: "header"}
	}
	if info, err := os.Stat(l.path(segmentName(c.segment))); err != nil || info.Size() < c.offset {
		return errors.Join(err, &CorruptError{File: segmentName(c.segment), Offset: c.offset, Reason: "shorter than the commit marker says"})
	}
	l.current.size = c.offset
	for {
		whole, err := l.scan()
		if err != nil {
			return err
		}
		if err := l.current.file.Truncate(l.current.size); err != nil {
			return err
		}
		if !whole || len(tail) == 0 || tail[0] != l.edge.size {
			break
		}
		next, err := l.openSegment(tail[0])
		if err != nil {
			return err
		}
		var header [segmentHeader]byte
		if _, err := next.file.ReadAt(header[:], 0); err != nil || !bytes.Equal(header[:], appendSegmentHeader(nil, next.first)) {
			if err := next.file.Close(); err != nil {
				return err
			}
			break
		}
		l.unsynced = append(l.unsynced, l.current.file)
		l.segments = append(l.segments, next.first)
		l.current = next
		tail = tail[1:]
	}
	for _, first := range tail {
		if err := os.Remove(l.path(segmentName(first))); err != nil {
			return err
		}
	}
	return nil
}

func (l *Log) openSegment(first int64) (segment, error) {
	f, err := l.openFile(l.path(segmentName(first)), os.O_RDWR)
	return segment{first, int64(segmentHeader), f}, err
}

// scan takes over the whole batches of the current segment that follow its known size. It reports whether the segment ended with one.
func (l *Log) scan() (whole bool, err error) {
	start := l.current.size
	r := bufio.NewReaderSize(io.NewSectionReader(l.current.file, start, math.MaxInt64-start), 1<<16)
	var (
		s   = batchScanner{edge: l.edge, last: l.last}
		buf []byte
	)
	for {
		f, record, err := readFrame(r, s.edge.size, buf)
		if err == io.EOF {
			return !s.inside, nil
		}
		if errors.Is(err, errFrame) || errors.Is(err, io.ErrUnexpectedEOF) || err == nil && !s.next(f) {
			return false, nil
		}
		if err != nil {
			return false, err // the disk, not the data
		}
		buf = record
		l.indexBuf = appendPosition(l.indexBuf, s.edge.size, position{f.index, uint32(start)})
		l.hashBuf = s.edge.append(RecordHash(record), l.hashBuf)
		start += int64(frameHeader + f.length)
		if s.inside {
			continue
		}
		_, err = l.hashes.WriteAt(l.hashBuf, hashesLength(l.edge.size))
		if err == nil {
			_, err = l.index.WriteAt(l.indexBuf, l.edge.size*indexEntry)
		}
		if err != nil {
			return false, err
		}
		l.edge, l.last, l.current.size = s.edge, s.last, start
		l.hashBuf, l.indexBuf = l.hashBuf[:0], l.indexBuf[:0]
	}
}

// batchScanner follows frames in order and says which of them can come next.
type batchScanner struct {
	edge   Edge
	last   uint64 // Raft index of the batch before, or of this one
	inside bool   // more records of the batch follow
	more   uint32
}

// next reports whether a frame can be the next one, and takes it over if so.
func (s *batchScanner) next(f frame) bool {
	ok := f.index > s.last || s.edge.size == 0
	if s.inside {
		ok = f.index == s.last && f.more == s.more-1
	}
	if ok {
		s.last, s.more, s.inside = f.index, f.more, f.more > 0
	}
	return ok
}

// loadCheckpoints reads the saved checkpoints. The newest must be of this tree.
func (l *Log) loadCheckpoints(c commit) error {
	r := bufio.NewReader(io.NewSectionReader(l.checkpoints, 0, math.MaxInt64))
	at := int64(0)
	var newest Checkpoint
	for {
		msg, err := readCheckpoint(r)
		if err == io.EOF {
			break
		}
		var next Checkpoint
		if err == nil {
			next, err = ReadUnverified(msg)
		}
		if err == nil && (next.Origin != l.origin || next.Size < newest.Size) {
			err = errors.New("checkpoint is of another log, or out of order")
		}
		if err != nil && at < c.checkpoints {
			return &CorruptError{File: checkpointFile, Offset: at, Reason: err.Error()}
		}
		if err != nil {
			break // torn while it was saved
		}
		at += int64(checkpointHeader + len(msg))
		l.latest, newest = msg, next
	}
	if at < c.checkpoints {
		return &CorruptError{File: checkpointFile, Offset: at, Reason: "shorter than the commit marker says"}
	}
	if l.latest != nil {
		if newest.Size > l.edge.size {
			return &CorruptError{File: checkpointFile, Offset: at, Reason: "newest checkpoint covers more records than there are"}
		}
		root, err := tlog.TreeHash(newest.Size, l)
		if err != nil {
			return err
		}
		if root != newest.Root {
			return &CorruptError{File: checkpointFile, Offset: at, Reason: "newest checkpoint has another root"}
		}
	}
	l.saved = at
	return l.checkpoints.Truncate(at)
}
