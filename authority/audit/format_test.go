package audit

import (
	"bytes"
	"errors"
	"io"
	"testing"
)

func FuzzCommit(f *testing.F) {
	f.Add(commit{origin: testOrigin, size: 9, last: 90, first: 2, segment: 7, offset: 99, checkpoints: 3, root: Hash{1}}.encode())
	f.Add([]byte(commitMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := parseCommit(b)
		if err == nil && !bytes.Equal(c.encode(), b) {
			t.Fatalf("accepted %x as %+v", b, c)
		}
	})
}

func TestCommitRefusesContradictions(t *testing.T) {
	good := commit{origin: testOrigin, size: 9, last: 90, first: 2, segment: 7, offset: 99, checkpoints: 3, root: Hash{1}}
	if c, err := parseCommit(good.encode()); err != nil || c != good {
		t.Fatalf("%+v, %v", c, err)
	}
	for name, change := range map[string]func(*commit){
		"negative size":       func(c *commit) { c.size = -1 },
		"too many records":    func(c *commit) { c.size = MaxSize + 1 },
		"first after segment": func(c *commit) { c.first = 8 },
		"segment after end":   func(c *commit) { c.segment = 10 },
		"offset in header":    func(c *commit) { c.offset = 3 },
		"negative checkpoint": func(c *commit) { c.checkpoints = -1 },
		"no origin":           func(c *commit) { c.origin = "" },
	} {
		bad := good
		change(&bad)
		if c, err := parseCommit(bad.encode()); err == nil {
			t.Errorf("%s: %+v", name, c)
		}
	}
}

// A frame or an index entry in another record's place does not pass.
func TestChecksumNamesTheRecord(t *testing.T) {
	b := appendFrame(nil, 5, 0, 77, []byte("record"))
	if _, _, err := readFrame(bytes.NewReader(b), 6, nil); !errors.Is(err, errFrame) {
		t.Errorf("frame of record 5 read as record 6: %v", err)
	}
	b = appendPosition(nil, 5, position{77, 16})
	if p, err := parsePosition(b, 5); err != nil || p != (position{77, 16}) {
		t.Errorf("%+v, %v", p, err)
	}
	if _, err := parsePosition(b, 6); !errors.Is(err, errFrame) {
		t.Errorf("position of record 5 read as that of record 6: %v", err)
	}
}

func FuzzFrame(f *testing.F) {
	f.Add(appendFrame(nil, 5, 0, 77, []byte("record")), int64(5))
	f.Add(appendFrame(nil, 1<<40, MaxBatch-1, 1, make([]byte, 300)), int64(1<<40))
	f.Fuzz(func(t *testing.T, b []byte, n int64) {
		r := bytes.NewReader(b)
		frame, record, err := readFrame(r, n, nil)
		if err != nil {
			if !errors.Is(err, errFrame) && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatal(err)
			}
			return
		}
		if again := appendFrame(nil, n, frame.more, frame.index, record); !bytes.Equal(again, b[:len(b)-r.Len()]) {
			t.Fatalf("accepted %x, encodes as %x", b, again)
		}
	})
}

func FuzzArchive(f *testing.F) {
	b := appendSegmentHeader(nil, 3)
	for n := range int64(4) {
		b = appendFrame(b, 3+n, 0, uint64(n), []byte("record"))
	}
	f.Add(b)
	f.Add(append(b, appendSegmentHeader(nil, 7)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		last := int64(-1)
		for e, err := range ReadArchive(bytes.NewReader(b)) {
			if err != nil {
				if !errors.Is(err, ErrMalformed) {
					t.Fatal(err)
				}
				return
			}
			if e.N <= last || len(e.Record) == 0 {
				t.Fatalf("record %d after %d", e.N, last)
			}
			last = e.N
		}
	})
}

func TestSegmentNames(t *testing.T) {
	for _, first := range []int64{0, 255, MaxSize} {
		if got, ok := parseSegmentName(segmentName(first)); !ok || got != first {
			t.Errorf("%s: %d, %t", segmentName(first), got, ok)
		}
	}
	for _, bad := range []string{"bodies-0.seg", "bodies-00000000000000FF.seg", "bodies-+0000000000000ff.seg", "bodies-ffffffffffffffff.seg",
		"bodies-0000000000000000", "0000000000000000.seg", "bodies--000000000000001.seg"} {
		if got, ok := parseSegmentName(bad); ok {
			t.Errorf("%s: %d", bad, got)
		}
	}
}
