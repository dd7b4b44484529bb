package authority

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"sync/atomic"
	"testing"

	"github.com/writ-dev/writ/authority/audit"
)

const fetchOrigin = "writ.test/0123456789abcdef0123456789abcdef/1"

func fetchLog(t *testing.T) *audit.Log {
	t.Helper()
	log, err := audit.Open(t.TempDir(), fetchOrigin)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { log.Close() })
	return log
}

// TestFetch has a log brought up to another's: also where one entry's records are
// more than an answer holds, and where it has some of them already.
func TestFetch(t *testing.T) {
	from := fetchLog(t)
	size := map[uint64]int{1: 1, 2: 40, 5: 3, 9: 50, 10: 1}
	for _, index := range []uint64{1, 2, 5, 9, 10} {
		var records [][]byte
		for i := range size[index] {
			records = append(records, bytes.Repeat([]byte{byte(index), byte(i + 1)}, 30_000))
		}
		if err := from.Append(index, records...); err != nil {
			t.Fatal(err)
		}
	}
	a := &Authority{trail: &trail{log: from}}
	answers, most := 0, 0
	ask := func(ctx context.Context, r recordsRequest) ([]byte, error) {
		request, err := json.Marshal(r)
		if err != nil {
			return nil, err
		}
		b, err := a.answerRecords(ctx, "n2", request)
		answers, most = answers+1, max(most, len(b))
		return b, err
	}
	to := fetchLog(t)
	for _, size := range []int64{41, 94, 95} { // all but the last two entries, all but the last, all
		if err := fetch(to, size, ask); err != nil {
			t.Fatal(err)
		}
		if to.Size() != size {
			t.Fatalf("%d records, want %d", to.Size(), size)
		}
	}
	if to.Edge() != from.Edge() || to.LastIndex() != 10 {
		t.Errorf("another log: at Raft index %d", to.LastIndex())
	}
	if answers < 6 || most > fetchBytes+recordHead+audit.MaxRecord {
		t.Errorf("%d answers of up to %d bytes", answers, most)
	}
	if err := fetch(to, 96, ask); !errors.Is(err, audit.ErrRange) {
		t.Errorf("more than there are: %v", err)
	}
	a.trail.log = to
	if _, err := a.answerRecords(t.Context(), "n2", []byte(`{"origin":"another","to":1}`)); !errors.Is(err, audit.ErrOrigin) {
		t.Errorf("another cluster's: %v", err)
	}
}

// TestFetchRefuses what is no answer, and more of one entry than a log takes.
func TestFetchRefuses(t *testing.T) {
	head := func(n byte) []byte { return []byte{0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, n} }
	for name, b := range map[string][]byte{
		"nothing":   {},
		"half":      head(3)[:11],
		"short":     append(head(3), 1, 2),
		"empty":     head(0),
		"too large": append([]byte{0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0, 1}, make([]byte, audit.MaxRecord+1)...),
		"trailing":  append(head(1), 7, 0),
	} {
		to := fetchLog(t)
		err := fetch(to, 1000, func(context.Context, recordsRequest) ([]byte, error) { return b, nil })
		if err == nil || to.Size() != 0 {
			t.Errorf("%s: %d records, %v", name, to.Size(), err)
		}
	}
	to, more := fetchLog(t), append(append(head(1), 7), append(head(1), 8)...)
	if err := fetch(to, 1, func(context.Context, recordsRequest) ([]byte, error) { return more, nil }); !errors.Is(err, errRecords) || to.Size() != 0 {
		t.Errorf("more than was asked for: %d records, %v", to.Size(), err)
	}
	endless := bytes.Repeat(append(head(1), 7), 1000)
	var asked atomic.Int64 // one is asked for ahead, also when fetch has returned
	err := fetch(fetchLog(t), audit.MaxSize, func(context.Context, recordsRequest) ([]byte, error) { asked.Add(1); return endless, nil })
	if !errors.Is(err, errRecords) || asked.Load() > audit.MaxBatch/1000+3 {
		t.Errorf("an entry without an end: %v after %d answers", err, asked.Load())
	}
}
