package audit

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"pgregory.net/rapid"
)

func TestAppendReadReopen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "audit")
	l := openLog(t, dir, WithSegmentSize(4<<10))
	fill(t, l, 300)
	var e Edge
	check := func(l *Log) {
		t.Helper()
		e = Edge{}
		n := 0
		for entry, err := range l.Records(0, l.Size()) {
			must(t, err)
			if entry.N != int64(n) || !bytes.Equal(entry.Record, record(n)) || entry.Index == 0 || entry.Index%10 != 0 {
				t.Fatalf("record %d is %+v", n, entry)
			}
			e.Append(RecordHash(entry.Record))
			n++
		}
		if n != 300 || l.Edge() != e {
			t.Fatalf("%d records, edge agrees: %t", n, l.Edge() == e)
		}
	}
	check(l)
	last := l.LastIndex()
	must(t, l.Close()) // not synced: a process that dies leaves this
	l = openLog(t, dir, WithSegmentSize(4<<10))
	check(l)
	if l.LastIndex() != last {
		t.Errorf("last index %d, was %d", l.LastIndex(), last)
	}
	must(t, l.Sync())
	must(t, l.Close())
	l = openLog(t, dir)
	check(l)
	must(t, l.Reconcile(e))
	if segments := len(l.segments); segments < 3 {
		t.Errorf("%d segments: the test means to cross some", segments)
	}
	if info := value(os.Stat(dir))(t); info.Mode().Perm() != 0o700 {
		t.Errorf("directory has mode %v", info.Mode())
	}
	for name := range files(t, dir) {
		if info := value(os.Stat(filepath.Join(dir, name)))(t); info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", name, info.Mode())
		}
	}
}

func TestBounds(t *testing.T) {
	l := openLog(t, t.TempDir())
	must(t, l.Append(5, make([]byte, MaxRecord)))
	for name, batch := range map[string][][]byte{
		"empty record": {{}},
		"long record":  {make([]byte, MaxRecord+1)},
		"many records": slices.Repeat([][]byte{{1}}, MaxBatch+1),
		"many bytes":   slices.Repeat([][]byte{make([]byte, MaxRecord)}, MaxBatchBytes/MaxRecord+1),
	} {
		if err := l.Append(6, batch...); !errors.Is(err, ErrTooLarge) {
			t.Errorf("%s: %v", name, err)
		}
	}
	must(t, l.Append(6, slices.Repeat([][]byte{{1}}, MaxBatch)...))
	if l.Size() != 1+MaxBatch {
		t.Errorf("size %d", l.Size())
	}
	for _, n := range []int64{-1, l.Size(), 1 << 62, 1<<63 - 1} {
		if _, err := l.Record(n); !errors.Is(err, ErrRange) {
			t.Errorf("record %d: %v", n, err)
		}
	}
	for _, p := range [][2]int64{{-1, 0}, {5, -1}, {5, 5}, {1 << 40, 0}} {
		if _, err := l.ProveInclusion(p[0], p[1]); !errors.Is(err, ErrRange) {
			t.Errorf("inclusion %v: %v", p, err)
		}
	}
	for _, p := range [][2]int64{{-1, 4}, {5, 4}, {1, 1 << 40}} {
		if _, err := l.ProveConsistency(p[0], p[1]); !errors.Is(err, ErrRange) {
			t.Errorf("consistency %v: %v", p, err)
		}
	}
	if _, err := l.ReadHashes([]int64{1 << 40}); !errors.Is(err, ErrRange) {
		t.Errorf("hashes: %v", err)
	}
}

func TestReplay(t *testing.T) {
	dir := t.TempDir()
	l := openLog(t, dir)
	a, b, c := []byte("a"), []byte("b"), []byte("c")
	must(t, l.Append(3, a))
	must(t, l.Append(5, a, b, c))
	must(t, l.Append(8, c))
	replay := func(l *Log) {
		t.Helper()
		before := l.Edge()
		for range 2 { // in order, twice: the second time the hint is wrong
			must(t, l.Append(3, a))
			must(t, l.Append(4))
			must(t, l.Append(5, a, b, c))
			must(t, l.Append(8, c))
		}
		for name, err := range map[string]error{
			"another record":        l.Append(3, b),
			"a record too few":      l.Append(5, a, b),
			"a record too many":     l.Append(3, a, a),
			"at the end":            l.Append(8, c, c),
			"another order":         l.Append(5, b, a, c),
			"none where some were":  l.Append(5),
			"some where none were":  l.Append(4, a),
			"some before the first": l.Append(0, a),
		} {
			if !errors.Is(err, ErrDiverged) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if l.Edge() != before {
			t.Error("a replay changed the log")
		}
	}
	replay(l)
	must(t, l.Close())
	l = openLog(t, dir)
	replay(l)
	must(t, l.Append(9, a))
	if l.Size() != 6 {
		t.Errorf("size %d", l.Size())
	}
}

func TestReconcile(t *testing.T) {
	l := openLog(t, t.TempDir())
	var edges []Edge
	var e Edge
	edges = append(edges, e)
	for i := range 70 {
		must(t, l.Append(uint64(i+1), record(i)))
		e.Append(RecordHash(record(i)))
		edges = append(edges, e)
	}
	for _, e := range edges {
		if err := l.Reconcile(e); err != nil {
			t.Fatalf("state at %d: %v", e.Size(), err)
		}
		if e.Size() < 70 { // what Raft does next
			must(t, l.Append(uint64(e.Size()+1), record(int(e.Size()))))
		}
	}
	ahead := e
	ahead.Append(Hash{})
	if err := l.Reconcile(ahead); !errors.Is(err, ErrBehind) {
		t.Errorf("state ahead: %v", err)
	}
	other := edges[41]
	other.Append(RecordHash([]byte("another")))
	if err := l.Reconcile(other); !errors.Is(err, ErrDiverged) {
		t.Errorf("other state: %v", err)
	}
}

func TestOrigins(t *testing.T) {
	dir := t.TempDir()
	l := openLog(t, dir)
	fill(t, l, 5)
	first := testSigner(t, testOrigin)
	msg := value(l.Checkpoint(first))(t)
	must(t, l.Close())
	if _, err := Open(dir, "writ/audit/test/2"); !errors.Is(err, ErrOrigin) {
		t.Errorf("open under another origin: %v", err)
	}
	if _, err := Start(dir, "writ/audit/test/2", msg); !errors.Is(err, ErrExists) {
		t.Errorf("start over a log: %v", err)
	}
	if _, err := Start(t.TempDir(), testOrigin, msg); !errors.Is(err, ErrOrigin) {
		t.Errorf("start under the same origin: %v", err)
	}
	if _, err := Start(t.TempDir(), "writ/audit/test/2", []byte("no checkpoint")); !errors.Is(err, ErrMalformed) {
		t.Errorf("start without a checkpoint: %v", err)
	}

	dir = t.TempDir()
	l, err := Start(dir, "writ/audit/test/2", msg)
	must(t, err)
	must(t, l.Append(1, record(0)))
	must(t, l.Sync())
	must(t, l.Close())
	l, err = Open(dir, "writ/audit/test/2")
	must(t, err)
	var e Edge
	e.Append(RecordHash(msg))
	must(t, l.Reconcile(e))
	must(t, l.Append(1, record(0)))
	if got := value(l.Record(0))(t); !bytes.Equal(got, msg) || l.Size() != 2 {
		t.Errorf("first leaf of %d is %q", l.Size(), got)
	}
	if _, err := l.Checkpoint(first); !errors.Is(err, ErrOrigin) {
		t.Errorf("checkpoint signed with the key of the last incarnation: %v", err)
	}
	must(t, l.Close())
	report, err := VerifyDir(dir, testSigner(t, "writ/audit/test/2").Verifier())
	if err != nil || report.Size != 2 {
		t.Errorf("%+v, %v", report, err)
	}
	for _, bad := range []string{"", "with space", "with+plus", "line\nbreak", "ünicode", strings.Repeat("x", 256)} {
		if _, err := Open(t.TempDir(), bad); !errors.Is(err, ErrMalformed) {
			t.Errorf("origin %q: %v", bad, err)
		}
	}
}

func TestSaveCheckpoint(t *testing.T) {
	dir := t.TempDir()
	l := openLog(t, dir)
	s := testSigner(t, testOrigin)
	if _, ok := l.LatestCheckpoint(); ok {
		t.Error("a checkpoint from nowhere")
	}
	fill(t, l, 7)
	old := value(l.Checkpoint(s))(t)
	must(t, l.SaveCheckpoint(old))
	fill(t, l, 20)
	newer := value(l.Checkpoint(s))(t)
	must(t, l.SaveCheckpoint(newer))
	before := files(t, dir)
	must(t, l.SaveCheckpoint(newer))
	if after := files(t, dir); !bytes.Equal(before[checkpointFile], after[checkpointFile]) {
		t.Error("saving the same checkpoint again wrote it again")
	}
	if err := l.SaveCheckpoint(old); !errors.Is(err, ErrRange) {
		t.Errorf("an older one: %v", err)
	}
	forged := value(Checkpoint{testOrigin, 20, Hash{1}}.Sign(s))(t)
	if err := l.SaveCheckpoint(forged); !errors.Is(err, ErrDiverged) {
		t.Errorf("another root: %v", err)
	}
	ahead := value(Checkpoint{testOrigin, 21, Hash{1}}.Sign(s))(t)
	if err := l.SaveCheckpoint(ahead); !errors.Is(err, ErrRange) {
		t.Errorf("beyond the log: %v", err)
	}
	must(t, l.Close())
	l = openLog(t, dir)
	if got, ok := l.LatestCheckpoint(); !ok || !bytes.Equal(got, newer) {
		t.Errorf("after reopening: %q", got)
	}
	must(t, l.Close())
	report, err := VerifyDir(dir, s.Verifier())
	if err != nil || report.Checkpoints != 2 || report.Signed != 20 || report.Size != 20 {
		t.Errorf("%+v, %v", report, err)
	}
}

func TestProofs(t *testing.T) {
	l := openLog(t, t.TempDir())
	fill(t, l, 33)
	at := func(size int64) Checkpoint { return Checkpoint{testOrigin, size, value(l.rootAt(size))(t)} }
	for size := int64(0); size <= 33; size++ {
		c := at(size)
		for n := range size {
			proof := value(l.ProveInclusion(size, n))(t)
			must(t, VerifyInclusion(c, n, record(int(n)), proof))
			if err := VerifyInclusion(c, n, record(int(n+1)), proof); !errors.Is(err, ErrProof) {
				t.Fatalf("another record passed at %d of %d", n, size)
			}
			for i := range proof {
				bad := slices.Clone(proof)
				bad[i][3] ^= 1
				if err := VerifyInclusion(c, n, record(int(n)), bad); !errors.Is(err, ErrProof) {
					t.Fatalf("altered proof passed at %d of %d", n, size)
				}
			}
		}
		for older := range size + 1 {
			proof := value(l.ProveConsistency(older, size))(t)
			must(t, VerifyConsistency(at(older), c, proof))
			forged := at(older)
			forged.Root[0] ^= 1
			if err := VerifyConsistency(forged, c, proof); !errors.Is(err, ErrProof) {
				t.Fatalf("forged older root passed: %d to %d", older, size)
			}
			if err := VerifyConsistency(at(older), c, append(proof, Hash{})); !errors.Is(err, ErrProof) {
				t.Fatalf("longer proof passed: %d to %d", older, size)
			}
		}
	}
	if err := VerifyConsistency(at(5), at(4), nil); !errors.Is(err, ErrProof) {
		t.Errorf("a log that shrank: %v", err)
	}
	other := at(5)
	other.Origin = "other"
	if err := VerifyConsistency(other, at(5), nil); !errors.Is(err, ErrProof) {
		t.Errorf("another origin: %v", err)
	}

	bodies := func(yield func([]byte, error) bool) {
		for e, err := range l.Records(0, l.Size()) {
			if !yield(e.Record, err) {
				return
			}
		}
	}
	e, err := VerifyRecords(bodies, at(0), at(9), at(9), at(33))
	if err != nil || e != l.Edge() {
		t.Errorf("records against checkpoints: %v", err)
	}
	forged := at(9)
	forged.Root[0] ^= 1
	if _, err := VerifyRecords(bodies, forged); !errors.Is(err, ErrProof) {
		t.Errorf("records against a forged checkpoint: %v", err)
	}
	if _, err := VerifyRecords(bodies, Checkpoint{testOrigin, 34, Hash{}}); !errors.Is(err, ErrProof) {
		t.Errorf("records that end before a checkpoint: %v", err)
	}
}

func TestArchive(t *testing.T) {
	dir := t.TempDir()
	l := openLog(t, dir, WithSegmentSize(4<<10))
	fill(t, l, 400)
	s := testSigner(t, testOrigin)
	must(t, l.SaveCheckpoint(value(l.Checkpoint(s))(t)))
	var archive bytes.Buffer
	next := value(l.Archive(200, &archive))(t)
	if next == 0 || next > 200 {
		t.Fatalf("archived before %d", next)
	}
	if err := l.Discard(next + 1); !errors.Is(err, ErrRange) {
		t.Errorf("discard inside a segment: %v", err)
	}
	before := files(t, dir)
	must(t, l.Discard(next))
	if _, err := l.Record(next - 1); !errors.Is(err, ErrArchived) {
		t.Errorf("discarded record: %v", err)
	}
	if got := value(l.Record(next))(t); !bytes.Equal(got, record(int(next))) {
		t.Errorf("first record that is left: %q", got)
	}
	c := value(ReadUnverified(value(l.Checkpoint(s))(t)))(t)
	n := int64(0)
	for e, err := range ReadArchive(bytes.NewReader(archive.Bytes())) {
		must(t, err)
		if e.N != n || !bytes.Equal(e.Record, record(int(n))) {
			t.Fatalf("archive has %+v, want record %d", e, n)
		}
		must(t, VerifyInclusion(c, n, e.Record, value(l.ProveInclusion(c.Size, n))(t)))
		n++
	}
	if n != next {
		t.Errorf("archive has %d records, %d were discarded", n, next)
	}
	must(t, l.Append(10, record(0))) // a replay needs no body
	fill(t, l, 450)
	more := value(l.Archive(300, &archive))(t)
	must(t, l.Discard(more))
	must(t, l.Sync())
	must(t, l.Close())

	report, err := VerifyDir(dir, s.Verifier())
	if err != nil || report.First != more || report.Size != 450 {
		t.Errorf("%+v, %v", report, err)
	}
	l = openLog(t, dir)
	if l.Size() != 450 || l.first != more {
		t.Errorf("reopened with %d records from %d", l.Size(), l.first)
	}
	// A crash after the commit and before the removal leaves segments, which Open removes.
	must(t, l.Close())
	after := files(t, dir)
	for name, b := range before {
		if first, ok := parseSegmentName(name); ok && first < more {
			after[name] = b
		}
	}
	lay(t, dir, after)
	l = openLog(t, dir)
	if first := value(segmentsIn(dir))(t)[0]; first != more {
		t.Errorf("segment %d was left", first)
	}

	b := archive.Bytes()
	for cut := 0; cut < len(b); cut += 5 {
		var failed error
		read := int64(0)
		for _, err := range ReadArchive(bytes.NewReader(b[:cut])) {
			failed = err
			read++
		}
		if failed != nil && !errors.Is(failed, ErrMalformed) || read > more+1 {
			t.Fatalf("archive cut at %d: %d records, %v", cut, read, failed)
		}
	}
}

// flaky is a file whose writes and syncs fail when told.
type flaky struct {
	file
	faults *faults
}

type faults struct {
	write, truncate, sync error
	allow                 int // writes that still succeed
}

func (f flaky) WriteAt(b []byte, at int64) (int, error) {
	if f.faults.write != nil {
		if f.faults.allow == 0 {
			n, _ := f.file.WriteAt(b[:len(b)/2], at) // a full disk takes some of it
			return n, f.faults.write
		}
		f.faults.allow--
	}
	return f.file.WriteAt(b, at)
}

func (f flaky) Truncate(n int64) error {
	if f.faults.truncate != nil {
		return f.faults.truncate
	}
	return f.file.Truncate(n)
}

func (f flaky) Sync() error {
	if f.faults.sync != nil {
		return f.faults.sync
	}
	return f.file.Sync()
}

// withoutSync spares tests that open thousands of logs the disk.
func withoutSync(l *Log) error {
	open := l.openFile
	l.openFile = func(path string, flag int) (file, error) {
		under, err := open(path, flag)
		return unsynced{under}, err
	}
	return nil
}

type unsynced struct{ file }

func (unsynced) Sync() error { return nil }

func withFaults(f *faults) Option {
	return func(l *Log) error {
		open := l.openFile
		l.openFile = func(path string, flag int) (file, error) {
			under, err := open(path, flag)
			return flaky{under, f}, err
		}
		return nil
	}
}

func TestFullDisk(t *testing.T) {
	for allow := range 4 {
		dir := t.TempDir()
		f := &faults{}
		l := openLog(t, dir, withFaults(f), WithSegmentSize(4<<10))
		fill(t, l, 100) // more than a segment: the next append begins a new one
		l.segmentSize = l.current.size
		before := l.Edge()
		f.write, f.allow = syscall.ENOSPC, allow
		if err := l.Append(9000, record(100), record(101)); !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("%d writes allowed: %v", allow, err)
		}
		if l.Edge() != before {
			t.Error("a failed append changed the log")
		}
		f.write = nil
		must(t, l.Sync()) // of the empty segment that is left
		if report, err := VerifyDir(dir, testSigner(t, testOrigin).Verifier()); err != nil || report.Size != 100 {
			t.Errorf("%d writes allowed: %+v, %v", allow, report, err)
		}
		must(t, l.Append(9000, record(100), record(101))) // there is room again
		must(t, l.Sync())
		must(t, l.Close())
		if report, err := VerifyDir(dir, testSigner(t, testOrigin).Verifier()); err != nil || report.Size != 102 {
			t.Errorf("%d writes allowed: %+v, %v", allow, report, err)
		}
	}
}

// TestFullDiskAtSync refuses first the checkpoint, then the commit marker.
func TestFullDiskAtSync(t *testing.T) {
	signer := testSigner(t, testOrigin)
	for allow := range 2 {
		dir := t.TempDir()
		f := &faults{}
		l := openLog(t, dir, withFaults(f))
		fill(t, l, 10)
		must(t, l.Sync())
		fill(t, l, 20)
		f.write, f.allow = syscall.ENOSPC, allow
		if err := l.SaveCheckpoint(value(l.Checkpoint(signer))(t)); !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("%d writes allowed: %v", allow, err)
		}
		f.write = nil
		if report, err := VerifyDir(dir, signer.Verifier()); err != nil || report.Size < 10 {
			t.Errorf("%d writes allowed: %+v, %v", allow, report, err)
		}
		must(t, l.Append(9000, record(20))) // there is room again
		must(t, l.SaveCheckpoint(value(l.Checkpoint(signer))(t)))
		must(t, l.Close())
		if report, err := VerifyDir(dir, signer.Verifier()); err != nil || report.Size != 21 || report.Signed != 21 {
			t.Errorf("%d writes allowed: %+v, %v", allow, report, err)
		}
		l = openLog(t, dir)
		if l.Size() != 21 {
			t.Errorf("reopened with %d records", l.Size())
		}
	}
}

func TestFailuresThatStop(t *testing.T) {
	t.Run("undo", func(t *testing.T) {
		f := &faults{}
		dir := t.TempDir()
		l := openLog(t, dir, withFaults(f))
		fill(t, l, 10)
		f.write, f.truncate = syscall.EIO, syscall.EIO
		if err := l.Append(9000, record(10)); !errors.Is(err, syscall.EIO) {
			t.Fatal(err)
		}
		f.write, f.truncate = nil, nil
		if err := l.Append(9000, record(10)); !errors.Is(err, syscall.EIO) {
			t.Errorf("went on after a write that could not be undone: %v", err)
		}
		must(t, l.Close())
		l = openLog(t, dir)
		if l.Size() != 10 {
			t.Errorf("reopened with %d records", l.Size())
		}
	})
	t.Run("fsync", func(t *testing.T) {
		f := &faults{}
		dir := t.TempDir()
		l := openLog(t, dir, withFaults(f))
		fill(t, l, 10)
		f.sync = syscall.EIO
		if err := l.Sync(); !errors.Is(err, syscall.EIO) {
			t.Fatal(err)
		}
		f.sync = nil
		if err := l.Sync(); !errors.Is(err, syscall.EIO) {
			t.Errorf("went on after a failed fsync: %v", err)
		}
		if err := l.Append(9000, record(10)); !errors.Is(err, syscall.EIO) {
			t.Errorf("appended after a failed fsync: %v", err)
		}
	})
	t.Run("closed", func(t *testing.T) {
		l := openLog(t, t.TempDir())
		fill(t, l, 10)
		must(t, l.Close())
		must(t, l.Close())
		_, recordErr := l.Record(1)
		_, checkpointErr := l.Checkpoint(testSigner(t, testOrigin))
		_, proofErr := l.ProveInclusion(3, 1)
		_, archiveErr := l.Archive(3, io.Discard)
		for name, err := range map[string]error{
			"append": l.Append(9000, record(10)), "sync": l.Sync(), "reconcile": l.Reconcile(Edge{}), "discard": l.Discard(0),
			"record": recordErr, "checkpoint": checkpointErr, "proof": proofErr, "archive": archiveErr,
		} {
			if !errors.Is(err, ErrClosed) {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}

func TestConcurrentUse(t *testing.T) {
	l := openLog(t, t.TempDir(), WithSegmentSize(4<<10))
	s := testSigner(t, testOrigin)
	var readers sync.WaitGroup
	done := make(chan struct{})
	reader := func(f func() error) {
		readers.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if err := f(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	reader(l.Sync)
	reader(func() error {
		msg, err := l.Checkpoint(s)
		if err != nil {
			return err
		}
		c, err := VerifyCheckpoint(msg, s.Verifier())
		if err != nil || c.Size == 0 {
			return err
		}
		n := c.Size / 2
		proof, err := l.ProveInclusion(c.Size, n)
		if err != nil {
			return err
		}
		return VerifyInclusion(c, n, record(int(n)), proof)
	})
	reader(func() error {
		size := l.Size()
		for _, err := range l.Records(max(0, size-20), size) {
			if err != nil {
				return err
			}
		}
		return nil
	})
	fill(t, l, 2000)
	close(done)
	readers.Wait()
	must(t, l.Sync())
	must(t, l.Close())
	if report, err := VerifyDir(l.dir, s.Verifier()); err != nil || report.Size != 2000 {
		t.Errorf("%+v, %v", report, err)
	}
}

// A log under any sequence of appends, replays, syncs and reopenings is the list of records that were appended.
func TestLogModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp("", "audit")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		l, err := Open(dir, testOrigin, withoutSync, WithSegmentSize(4<<10))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { l.Close() }()
		var (
			all     [][]byte
			batches = map[uint64][][]byte{}
			last    uint64
		)
		t.Repeat(map[string]func(*rapid.T){
			"append": func(t *rapid.T) {
				index := last + rapid.Uint64Range(1, 3).Draw(t, "step")
				batch := rapid.SliceOfN(rapid.SliceOfN(rapid.Byte(), 1, 900), 1, 4).Draw(t, "batch")
				if err := l.Append(index, batch...); err != nil {
					t.Fatal(err)
				}
				all, batches[index], last = append(all, batch...), batch, index
			},
			"replay": func(t *rapid.T) {
				if len(batches) == 0 {
					return
				}
				index := rapid.SampledFrom(slices.Sorted(maps.Keys(batches))).Draw(t, "index")
				if err := l.Append(index, batches[index]...); err != nil {
					t.Fatal(err)
				}
				if err := l.Append(index, append(slices.Clone(batches[index]), []byte{1})...); !errors.Is(err, ErrDiverged) {
					t.Fatal(err)
				}
			},
			"sync": func(t *rapid.T) {
				if err := l.Sync(); err != nil {
					t.Fatal(err)
				}
			},
			"reopen": func(t *rapid.T) {
				if err := l.Close(); err != nil {
					t.Fatal(err)
				}
				again, err := Open(dir, testOrigin, withoutSync, WithSegmentSize(4<<10))
				if err != nil {
					t.Fatal(err)
				}
				l = again
			},
			"": func(t *rapid.T) {
				if l.Size() != int64(len(all)) || l.LastIndex() != last {
					t.Fatalf("%d records to index %d, want %d to %d", l.Size(), l.LastIndex(), len(all), last)
				}
				if len(all) == 0 {
					return
				}
				n := rapid.IntRange(0, len(all)-1).Draw(t, "n")
				if r, err := l.Record(int64(n)); err != nil || !bytes.Equal(r, all[n]) {
					t.Fatalf("record %d: %v", n, err)
				}
			},
		})
	})
}

func BenchmarkAppend(b *testing.B) {
	for _, size := range []int{1, 16} {
		b.Run(map[int]string{1: "1", 16: "16"}[size], func(b *testing.B) {
			l := openLog(b, b.TempDir())
			batch := slices.Repeat([][]byte{bytes.Repeat([]byte("x"), 400)}, size)
			b.ReportAllocs()
			index := uint64(0)
			for b.Loop() {
				index++
				if err := l.Append(index, batch...); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
