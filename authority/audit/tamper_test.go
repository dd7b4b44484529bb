package audit

import (
	"encoding/binary"
	"errors"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/tlog"
)

// sample is a small log of several segments: 20 records synced with two checkpoints, and 3 records beyond.
func sample(t testing.TB) (all map[string][]byte, edge Edge) {
	t.Helper()
	dir := t.TempDir()
	l := openLog(t, dir)
	l.segmentSize = 250
	s := testSigner(t, testOrigin)
	fill(t, l, 9)
	must(t, l.SaveCheckpoint(value(l.Checkpoint(s))(t)))
	fill(t, l, 20)
	must(t, l.SaveCheckpoint(value(l.Checkpoint(s))(t)))
	fill(t, l, 23)
	must(t, l.Close())
	if n := len(l.segments); n < 4 {
		t.Fatalf("%d segments", n)
	}
	return files(t, dir), l.Edge()
}

// clean reports that VerifyDir accepts the sample as it is, without which the tests below would prove nothing.
func clean(t *testing.T, dir string, all map[string][]byte) {
	t.Helper()
	lay(t, dir, all)
	report, err := VerifyDir(dir, testSigner(t, testOrigin).Verifier())
	if err != nil || report.Size != 23 || report.Signed != 20 || report.Checkpoints != 2 {
		t.Fatalf("%+v, %v", report, err)
	}
}

func TestEveryAlteredByteIsFound(t *testing.T) {
	t.Parallel()
	all, _ := sample(t)
	dir := filepath.Join(t.TempDir(), "copy")
	clean(t, dir, all)
	verifier := testSigner(t, testOrigin).Verifier()
	kinds := map[string]int{}
	for name := range all {
		for at := range all[name] {
			altered := maps.Clone(all)
			altered[name] = slices.Clone(all[name])
			altered[name][at] ^= 0x20
			// Only the one file changes; the directory need not be laid out again.
			must(t, writeFile(dir, name, altered[name]))
			if _, err := VerifyDir(dir, verifier); err == nil {
				t.Errorf("%s: byte %d altered, and not found", name, at)
			} else if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrSignature) && !errors.Is(err, ErrOrigin) {
				t.Errorf("%s: byte %d: %v", name, at, err)
			}
			kinds[strings.SplitN(name, "-", 2)[0]]++
		}
		must(t, writeFile(dir, name, all[name]))
	}
	for _, kind := range []string{"bodies", hashesFile, indexFile, checkpointFile, commitFile} {
		if kinds[kind] == 0 {
			t.Errorf("nothing was altered in %s", kind)
		}
	}
	clean(t, dir, all)
}

func TestEveryTruncationAndRemovalIsFound(t *testing.T) {
	t.Parallel()
	all, _ := sample(t)
	dir := filepath.Join(t.TempDir(), "copy")
	clean(t, dir, all)
	verifier := testSigner(t, testOrigin).Verifier()
	for name := range all {
		for size := range all[name] {
			must(t, writeFile(dir, name, all[name][:size]))
			if _, err := VerifyDir(dir, verifier); err == nil {
				t.Errorf("%s cut to %d bytes, and not found", name, size)
			}
		}
		must(t, writeFile(dir, name, append(slices.Clone(all[name]), 0)))
		if _, err := VerifyDir(dir, verifier); err == nil {
			t.Errorf("%s grew by a byte, and not found", name)
		}
		without := maps.Clone(all)
		delete(without, name)
		lay(t, dir, without)
		if _, err := VerifyDir(dir, verifier); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s removed: %v", name, err)
		}
		lay(t, dir, all)
	}
	extra := maps.Clone(all)
	extra[segmentName(24)] = appendSegmentHeader(nil, 24)
	lay(t, dir, extra)
	if _, err := VerifyDir(dir, verifier); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a segment too many: %v", err)
	}
	delete(extra, segmentName(24))
	extra[segmentName(23)] = appendSegmentHeader(nil, 24)
	lay(t, dir, extra)
	if _, err := VerifyDir(dir, verifier); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a segment begun with another's header: %v", err)
	}
	extra[segmentName(23)] = appendSegmentHeader(nil, 23)
	lay(t, dir, extra)
	if _, err := VerifyDir(dir, verifier); err != nil {
		t.Errorf("a segment begun, as Append does before its first record: %v", err)
	}
}

// A forger who rewrites all files consistently, checksums included, is stopped by the signatures or by a remembered checkpoint.
func TestRewrittenHistoryIsFound(t *testing.T) {
	s := testSigner(t, testOrigin)
	write := func(records int, altered int, checkpoints ...[]byte) string {
		dir := t.TempDir()
		l := openLog(t, dir)
		for n := range records {
			r := record(n)
			if n == altered {
				r = []byte(`{"n":"nothing happened"}`)
			}
			must(t, l.Append(uint64(n+1), r))
		}
		must(t, l.Sync())
		for _, msg := range checkpoints { // past SaveCheckpoint, which would refuse
			must(t, l.sync(msg, -1))
		}
		must(t, l.Close())
		return dir
	}
	var honest Edge
	for n := range 20 {
		honest.Append(RecordHash(record(n)))
	}
	c := Checkpoint{testOrigin, 20, honest.Root()}
	signed := value(c.Sign(s))(t)
	forger := value(NewSigner(testOrigin, slices.Repeat([]byte{8}, SeedSize)))(t)
	var rewritten Edge
	for n := range 20 {
		r := record(n)
		if n == 11 {
			r = []byte(`{"n":"nothing happened"}`)
		}
		rewritten.Append(RecordHash(r))
	}
	forged := value(Checkpoint{testOrigin, 20, rewritten.Root()}.Sign(forger))(t)

	for _, test := range []struct {
		name  string
		dir   string
		known []Checkpoint
		want  error
	}{
		{"honest", write(25, -1, signed), []Checkpoint{c}, nil},
		{"honest, and nothing saved", write(25, -1), []Checkpoint{c}, nil},
		{"altered record under a signed checkpoint", write(25, 11, signed), nil, ErrCorrupt},
		{"removed record under a signed checkpoint", write(19, -1, signed), nil, ErrCorrupt},
		{"signed with another key", write(25, 11, forged), nil, ErrSignature},
		{"checkpoint removed, an earlier one remembered", write(25, 11), []Checkpoint{c}, ErrProof},
		{"truncated, an earlier checkpoint remembered", write(19, -1), []Checkpoint{c}, ErrProof},
		{"another incarnation remembered", write(25, -1), []Checkpoint{{"other", 20, c.Root}}, ErrOrigin},
	} {
		if report, err := VerifyDir(test.dir, s.Verifier(), test.known...); !errors.Is(err, test.want) {
			t.Errorf("%s: %v", test.name, err)
		} else if err == nil && report.Signed != 20 {
			t.Errorf("%s: %+v", test.name, report)
		}
	}
	if _, err := VerifyDir(t.TempDir(), s.Verifier()); !errors.Is(err, ErrCorrupt) {
		t.Errorf("no log at all: %v", err)
	}
	other := testSigner(t, "other")
	if _, err := VerifyDir(write(3, -1), other.Verifier()); !errors.Is(err, ErrOrigin) {
		t.Errorf("key of another log: %v", err)
	}
}

// Whatever a crash leaves of what was written after the last Sync, Open keeps a whole number of batches, all that was synced, and
// the rest can be appended again.
func TestCrashAnywhere(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := openLog(t, dir)
	l.segmentSize = 200
	s := testSigner(t, testOrigin)
	fill(t, l, 10)
	must(t, l.SaveCheckpoint(value(l.Checkpoint(s))(t)))
	synced := files(t, dir)
	type batch struct {
		index   uint64
		records [][]byte
		size    int64
	}
	var batches []batch
	n, index := 10, l.LastIndex()
	for i := range 5 { // crosses two segments
		index += 10
		b := batch{index: index}
		for range 1 + i%3 {
			b.records = append(b.records, record(n))
			n++
		}
		b.size = int64(n)
		must(t, l.Append(index, b.records...))
		batches = append(batches, b)
	}
	must(t, l.Close())
	whole := files(t, dir)

	crashed := filepath.Join(t.TempDir(), "crashed")
	recoverFrom := func(what string, left map[string][]byte) int64 {
		t.Helper()
		lay(t, crashed, left)
		l, err := Open(crashed, testOrigin, withoutSync)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		l.segmentSize = 200
		size := l.Size()
		boundary := size == 10 || slices.ContainsFunc(batches, func(b batch) bool { return b.size == size })
		if !boundary {
			t.Fatalf("%s: %d records is not whole batches", what, size)
		}
		if report, err := VerifyDir(crashed, s.Verifier()); err != nil || report.Size != size {
			t.Fatalf("%s: opened with %d records, %+v, %v", what, size, report, err)
		}
		for _, b := range batches {
			if err := l.Append(b.index, b.records...); err != nil {
				t.Fatalf("%s: replay of %d: %v", what, b.index, err)
			}
		}
		if err := errors.Join(l.Sync(), l.Close()); err != nil {
			t.Fatal(err)
		}
		if report, err := VerifyDir(crashed, s.Verifier()); err != nil || report.Size != int64(n) || report.Signed != 10 {
			t.Fatalf("%s: afterwards %+v, %v", what, report, err)
		}
		return size
	}

	if size := recoverFrom("nothing lost", whole); size != int64(n) {
		t.Errorf("%d records after a clean stop", size)
	}
	// Bodies cut at every byte, later segments gone; hashes and index as they were, or as they were synced.
	segments := value(segmentsIn(dir))(t)
	segments = segments[slices.Index(segments, value(parseCommit(synced[commitFile]))(t).segment):]
	sizes := map[int64]bool{}
	for i, first := range segments {
		name := segmentName(first)
		from := len(synced[name])
		for cut := from; cut <= len(whole[name]); cut++ {
			left := maps.Clone(whole)
			for _, later := range segments[i+1:] {
				if cut%3 != 0 { // else they reached the disk, and what is before them did not
					delete(left, segmentName(later))
				}
			}
			left[name] = whole[name][:cut]
			if cut%2 == 0 {
				left[hashesFile], left[indexFile] = synced[hashesFile], synced[indexFile]
			}
			sizes[recoverFrom(name+" cut", left)] = true
		}
	}
	if len(sizes) != len(batches)+1 {
		t.Errorf("crashes left %d different sizes, want %d", len(sizes), len(batches)+1)
	}
	// A page of zeros in the middle of the tail, with later data there, and a later segment there without its predecessor's end.
	for _, first := range segments {
		name := segmentName(first)
		for at := len(synced[name]); at < len(whole[name]); at += 7 {
			left := maps.Clone(whole)
			left[name] = slices.Clone(whole[name])
			clear(left[name][at:min(at+40, len(left[name]))])
			recoverFrom(name+" zeroed", left)
		}
	}
	// A checkpoint torn while it was saved.
	extra := appendCheckpoint(nil, value(Checkpoint{testOrigin, int64(n), l.Edge().Root()}.Sign(s))(t))
	left := maps.Clone(whole)
	for cut := range extra {
		left[checkpointFile] = append(slices.Clone(whole[checkpointFile]), extra[:cut]...)
		recoverFrom("checkpoint torn", left)
	}
	// A checkpoint is saved after what it covers: without that, records were lost.
	left = maps.Clone(synced)
	left[checkpointFile] = append(slices.Clone(synced[checkpointFile]), extra...)
	lay(t, crashed, left)
	var corrupt *CorruptError
	if _, err := Open(crashed, testOrigin); !errors.As(err, &corrupt) || corrupt.File != checkpointFile {
		t.Errorf("a saved checkpoint of records that are not there: %v", err)
	}
	left = maps.Clone(whole)
	left[commitTemp] = []byte("half a mark")
	recoverFrom("commit torn", left)
}

// What the commit marker covers is never cut off: Open refuses.
func TestOpenRefusesDamageToWhatWasSynced(t *testing.T) {
	t.Parallel()
	all, _ := sample(t)
	c := value(parseCommit(all[commitFile]))(t)
	dir := filepath.Join(t.TempDir(), "copy")
	refuse := func(what string, want string, left map[string][]byte) {
		t.Helper()
		lay(t, dir, left)
		l, err := Open(dir, testOrigin)
		var corrupt *CorruptError
		if !errors.As(err, &corrupt) || !errors.Is(err, ErrCorrupt) || want != "" && corrupt.File != want {
			t.Errorf("%s: %v, want damage in %s", what, err, want)
		}
		if err == nil {
			l.Close()
		}
		if after := files(t, dir); len(after) != len(left) || !slices.Equal(after[want], left[want]) {
			t.Errorf("%s: Open changed the files", what)
		}
	}
	lay(t, dir, all)
	l, err := Open(dir, testOrigin)
	must(t, err)
	must(t, l.Close())
	durable := map[string]int64{
		hashesFile: hashesLength(c.size), indexFile: c.size * indexEntry, checkpointFile: c.checkpoints,
		segmentName(c.segment): c.offset, commitFile: int64(len(all[commitFile])),
	}
	for _, first := range l.segments {
		if first < c.segment {
			durable[segmentName(first)] = int64(len(all[segmentName(first)]))
		}
	}
	for name, size := range durable {
		left := maps.Clone(all)
		for cut := int64(0); cut < size; cut += 1 + cut/16 {
			left[name] = all[name][:cut]
			refuse(name+" cut", name, left)
		}
		left[name] = all[name][:size-1]
		refuse(name+" cut by a byte", name, left)
		delete(left, name)
		want := name
		if first, ok := parseSegmentName(name); ok && first > 0 && first < c.segment {
			want = "" // the segment before it may be named
		}
		refuse(name+" removed", want, left)
	}
	for at := range all[commitFile] {
		left := maps.Clone(all)
		left[commitFile] = slices.Clone(all[commitFile])
		left[commitFile][at] ^= 1
		refuse("commit altered", commitFile, left)
	}
	for at := range c.checkpoints {
		left := maps.Clone(all)
		left[checkpointFile] = slices.Clone(all[checkpointFile])
		left[checkpointFile][at] ^= 1
		refuseAltered(t, dir, left)
	}
	// The right edge: any of the hashes from which the root follows.
	for level := range maxLevels {
		if c.size>>level&1 != 0 {
			left := maps.Clone(all)
			left[hashesFile] = slices.Clone(all[hashesFile])
			left[hashesFile][tlog.StoredHashIndex(level, c.size>>level-1)*tlog.HashSize+5] ^= 1
			refuse("edge altered", hashesFile, left)
		}
	}
}

// Good checksums do not help an index or a checkpoint that contradicts what was committed.
func TestOpenRefusesForgeries(t *testing.T) {
	all, edge := sample(t)
	c := value(parseCommit(all[commitFile]))(t)
	dir := filepath.Join(t.TempDir(), "copy")
	for name, forged := range map[string][]byte{
		indexFile: slices.Concat(all[indexFile][:(c.size-1)*indexEntry], appendPosition(nil, c.size-1, position{c.last - 1, 16}),
			all[indexFile][c.size*indexEntry:]),
		checkpointFile: appendCheckpoint(slices.Clone(all[checkpointFile]),
			value(Checkpoint{testOrigin, edge.Size() - 1, Hash{1}}.Sign(testSigner(t, testOrigin)))(t)),
	} {
		left := maps.Clone(all)
		left[name] = forged
		lay(t, dir, left)
		l, err := Open(dir, testOrigin)
		var corrupt *CorruptError
		if !errors.As(err, &corrupt) || corrupt.File != name {
			t.Errorf("%s forged: %v", name, err)
		}
		if err == nil {
			l.Close()
		}
	}
}

// refuseAltered expects an altered byte of a saved checkpoint to be seen.
func refuseAltered(t *testing.T, dir string, left map[string][]byte) {
	t.Helper()
	lay(t, dir, left)
	if l, err := Open(dir, testOrigin); !errors.Is(err, ErrCorrupt) {
		t.Errorf("checkpoint altered: %v", err)
		if err == nil {
			l.Close()
		}
	}
}

// Every record is held against its hash when it is read, so that an altered body is never shown as history.
func TestReadingAnAlteredBody(t *testing.T) {
	all, _ := sample(t)
	first := segmentName(0)
	altered := slices.Clone(all[first])
	// Alter the first record and its checksum with it: only the hash can tell.
	record := altered[segmentHeader+frameHeader:]
	length := binary.BigEndian.Uint32(altered[segmentHeader:])
	record[3] ^= 1
	sum := checksum(0, altered[segmentHeader:segmentHeader+frameHeader-4], record[:length])
	binary.BigEndian.PutUint32(altered[segmentHeader+frameHeader-4:], sum)
	all[first] = altered
	dir := filepath.Join(t.TempDir(), "copy")
	lay(t, dir, all)
	l := openLog(t, dir)
	if r, err := l.Record(0); !errors.Is(err, ErrCorrupt) {
		t.Errorf("read %q, %v", r, err)
	}
	value(l.Record(1))(t)
	if _, err := VerifyDir(dir, testSigner(t, testOrigin).Verifier()); !errors.Is(err, ErrCorrupt) {
		t.Errorf("VerifyDir: %v", err)
	}
}

// What carries good checksums and yet cannot have been written: a forger's work, or another program's. VerifyDir refuses it, and
// Open takes over nothing of it that Append would not have written.
func TestForgedTail(t *testing.T) {
	dir := t.TempDir()
	l := openLog(t, dir)
	for n := range 4 {
		must(t, l.Append(uint64(10+n), record(n)))
	}
	must(t, l.Sync())
	base, edge, last := files(t, dir), l.Edge(), l.current.size
	must(t, l.Close())

	c := value(parseCommit(base[commitFile]))(t)
	c.offset--
	moved := maps.Clone(base)
	moved[commitFile] = c.encode()
	copied := filepath.Join(t.TempDir(), "copy")
	lay(t, copied, moved)
	var corrupt *CorruptError
	if _, err := VerifyDir(copied, testSigner(t, testOrigin).Verifier()); !errors.As(err, &corrupt) || corrupt.File != commitFile {
		t.Errorf("commit marker that ends the bodies elsewhere: %v", err)
	}

	type forged struct {
		index uint64
		more  uint32
		n     int64    // number in the frame's checksum
		at    position // in the index file
	}
	offset := uint32(last)
	good := forged{20, 0, 4, position{20, offset}}
	next := offset + uint32(frameHeader+len(record(0)))
	for _, test := range []struct {
		name   string
		tail   []forged
		opened int64 // records that Open keeps
		whole  bool
	}{
		{"as Append writes it", []forged{good}, 5, true},
		{"a batch", []forged{{20, 1, 4, position{20, offset}}, {20, 0, 5, position{20, next}}}, 6, true},
		{"index has another offset", []forged{{20, 0, 4, position{20, offset + 1}}}, 5, false},
		{"index has another Raft index", []forged{{20, 0, 4, position{21, offset}}}, 5, false},
		{"Raft index stands still", []forged{{13, 0, 4, position{13, offset}}}, 4, false},
		{"Raft index falls", []forged{{5, 0, 4, position{5, offset}}}, 4, false},
		{"frame of another record", []forged{{20, 0, 3, position{20, offset}}}, 4, false},
		{"batch is not whole", []forged{{20, 1, 4, position{20, offset}}}, 4, false},
		{"batch skips a record", []forged{{20, 2, 4, position{20, offset}}, {20, 0, 5, position{20, next}}}, 4, false},
		{"batch of two Raft indexes", []forged{{20, 1, 4, position{20, offset}}, {21, 0, 5, position{21, next}}}, 4, false},
		{"batch grows", []forged{{20, 1, 4, position{20, offset}}, {20, 1, 5, position{20, next}}}, 4, false},
	} {
		left := maps.Clone(base)
		e := edge
		bodies, hashes, index := slices.Clone(base[segmentName(0)]), slices.Clone(base[hashesFile]), slices.Clone(base[indexFile])
		for _, f := range test.tail {
			bodies = appendFrame(bodies, f.n, f.more, f.index, record(0))
			index = appendPosition(index, e.size, f.at)
			hashes = e.append(RecordHash(record(0)), hashes)
		}
		left[segmentName(0)], left[hashesFile], left[indexFile] = bodies, hashes, index
		copied := filepath.Join(t.TempDir(), "copy")
		lay(t, copied, left)
		if _, err := VerifyDir(copied, testSigner(t, testOrigin).Verifier()); (err == nil) != test.whole || err != nil && !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: VerifyDir: %v", test.name, err)
		}
		l := openLog(t, copied)
		if l.Size() != test.opened {
			t.Errorf("%s: opened with %d records, want %d", test.name, l.Size(), test.opened)
		}
		if _, err := VerifyDir(copied, testSigner(t, testOrigin).Verifier()); err != nil {
			t.Errorf("%s: after Open: %v", test.name, err)
		}
	}
}
