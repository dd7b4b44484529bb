package raftstore

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"pgregory.net/rapid"
)

func openTestLog(t testing.TB) *boltLog {
	b, err := openLog(filepath.Join(t.TempDir(), "raft.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

func entry(index uint64, data string) *raft.Log {
	return &raft.Log{Index: index, Term: index/10 + 1, Type: raft.LogCommand, Data: []byte(data)}
}

func entries(from, to uint64) []*raft.Log {
	var list []*raft.Log
	for i := from; i <= to; i++ {
		list = append(list, entry(i, fmt.Sprint("entry ", i)))
	}
	return list
}

func wantBounds(t *testing.T, b *boltLog, first, last uint64) {
	t.Helper()
	f, err1 := b.FirstIndex()
	l, err2 := b.LastIndex()
	if f != first || l != last || err1 != nil || err2 != nil {
		t.Errorf("log holds %d to %d, want %d to %d (%v, %v)", f, l, first, last, err1, err2)
	}
}

// TestLogStoreContract is what hashicorp/raft expects of a LogStore, as its
// documentation and the tests of its other stores have it.
func TestLogStoreContract(t *testing.T) {
	b := openTestLog(t)
	var l raft.Log
	wantBounds(t, b, 0, 0)
	if err := b.GetLog(1, &l); err != raft.ErrLogNotFound {
		t.Errorf("empty log: %v", err)
	}
	if err := b.DeleteRange(1, 10); err != nil {
		t.Errorf("deleting nothing: %v", err)
	}
	if err := b.StoreLogs(nil); err != nil {
		t.Errorf("storing nothing: %v", err)
	}
	want := raft.Log{
		Index: 3, Term: 1 << 40, Type: raft.LogConfiguration, Data: []byte("data"),
		Extensions: []byte("ext"), AppendedAt: time.Unix(1700000000, 123),
	}
	if err := b.StoreLog(&want); err != nil { // the first may be any
		t.Fatal(err)
	}
	if err := b.GetLog(3, &l); err != nil || !reflect.DeepEqual(l, want) {
		t.Errorf("got %+v, %v, want %+v", l, err, want)
	}
	l.Data[0], l.Extensions[0] = 'X', 'X'
	var again raft.Log
	if err := b.GetLog(3, &again); err != nil || string(again.Data) != "data" || string(again.Extensions) != "ext" {
		t.Errorf("a reader's change shows: %+v, %v", again, err)
	}
	if err := b.StoreLogs(entries(4, 20)); err != nil {
		t.Fatal(err)
	}
	wantBounds(t, b, 3, 20)
	for _, bad := range [][]*raft.Log{entries(20, 21), entries(22, 23), {entry(21, ""), entry(23, "")}, {entry(0, "")}} {
		if err := b.StoreLogs(bad); err == nil {
			t.Errorf("stored %d where 21 was next", bad[0].Index)
		}
	}
	wantBounds(t, b, 3, 20)
	if err := b.DeleteRange(5, 6); err == nil {
		t.Error("deleted a hole")
	}
	if err := b.DeleteRange(1, 5); err != nil {
		t.Error(err)
	}
	wantBounds(t, b, 6, 20)
	if err := b.DeleteRange(18, 100); err != nil {
		t.Error(err)
	}
	wantBounds(t, b, 6, 17)
	for _, i := range []uint64{5, 18} {
		if err := b.GetLog(i, &l); err != raft.ErrLogNotFound {
			t.Errorf("deleted entry %d: %v", i, err)
		}
	}
	if err := b.DeleteRange(6, 17); err != nil {
		t.Error(err)
	}
	wantBounds(t, b, 0, 0)
	if err := b.StoreLogs(entries(100, 101)); err != nil { // as after a snapshot
		t.Error(err)
	}
	wantBounds(t, b, 100, 101)
	if !b.IsMonotonic() {
		t.Error("gaps are refused, and Raft is not told")
	}
}

func TestStableStoreContract(t *testing.T) {
	b := openTestLog(t)
	if v, err := b.Get([]byte("none")); len(v) != 0 || err != nil {
		t.Errorf("missing value: %q, %v", v, err)
	}
	if v, err := b.GetUint64([]byte("none")); v != 0 || err != nil {
		t.Errorf("missing number: %d, %v", v, err)
	}
	for _, v := range []string{"x", "", "longer"} {
		if err := b.Set([]byte("k"), []byte(v)); err != nil {
			t.Fatal(err)
		}
		if got, err := b.Get([]byte("k")); string(got) != v || err != nil {
			t.Errorf("got %q, %v, want %q", got, err, v)
		}
	}
	if err := b.SetUint64([]byte("n"), 1<<63+5); err != nil {
		t.Fatal(err)
	}
	if n, err := b.GetUint64([]byte("n")); n != 1<<63+5 || err != nil {
		t.Errorf("got %d, %v", n, err)
	}
	if _, err := b.GetUint64([]byte("k")); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a string read as a number: %v", err)
	}
	if err := raft.BootstrapCluster(testConfigRaft(), b, b, raft.NewInmemSnapshotStore(), nil, raft.Configuration{
		Servers: []raft.Server{{ID: "a", Address: "a"}},
	}); err != nil {
		t.Errorf("raft does not take it for a fresh store: %v", err)
	}
}

func testConfigRaft() *raft.Config {
	cfg, _ := Config{Dir: "x", NodeID: "a"}.withDefaults()
	return cfg.raftConfig()
}

func TestCommitTracking(t *testing.T) {
	b := openTestLog(t)
	check := func(want uint64) {
		t.Helper()
		if got, err := b.GetCommitIndex(); got != want || err != nil {
			t.Errorf("commit index %d, %v, want %d", got, err, want)
		}
	}
	check(0)
	b.StageCommitIndex(7)
	check(0) // not without an append
	if err := b.StoreLogs(entries(1, 3)); err != nil {
		t.Fatal(err)
	}
	check(3) // never beyond the log
	b.StageCommitIndex(4)
	b.StageCommitIndex(2) // and never back
	if err := b.StoreLogs(entries(4, 9)); err != nil {
		t.Fatal(err)
	}
	check(7)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := openLog(b.path)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	check(7)
}

// TestDeleteManyInPieces deletes more than one transaction's worth from both
// ends.
func TestDeleteManyInPieces(t *testing.T) {
	b := openTestLog(t)
	const n = 3*deleteChunk + 17
	if err := b.StoreLogs(entries(1, n)); err != nil {
		t.Fatal(err)
	}
	if err := b.DeleteRange(1, deleteChunk+1); err != nil {
		t.Fatal(err)
	}
	wantBounds(t, b, deleteChunk+2, n)
	if err := b.DeleteRange(2*deleteChunk, n); err != nil {
		t.Fatal(err)
	}
	wantBounds(t, b, deleteChunk+2, 2*deleteChunk-1)
	b.Close()
	c, err := inspect(b.path)
	if err != nil || c.first != deleteChunk+2 || c.last != 2*deleteChunk-1 {
		t.Errorf("on disk: %+v, %v", c, err)
	}
}

// TestLogAgainstOracle drives the log through random operations beside a map.
func TestLogAgainstOracle(t *testing.T) {
	dir := t.TempDir()
	run := 0
	rapid.Check(t, func(t *rapid.T) {
		run++
		path := filepath.Join(dir, fmt.Sprint(run, ".db"))
		b, err := openLog(path)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { b.Close() }()
		b.db.NoSync = true // what is tested here is not the disk
		oracle := map[uint64]raft.Log{}
		var first, last, staged, committed uint64
		stable := map[string]string{}
		data := rapid.SliceOfN(rapid.Byte(), 0, 6000)
		t.Repeat(map[string]func(*rapid.T){
			"append": func(t *rapid.T) {
				next := last + 1
				if last == 0 {
					next = rapid.Uint64Range(1, 1<<40).Draw(t, "first")
				}
				var logs []*raft.Log
				for i := range rapid.Uint64Range(1, 5).Draw(t, "n") {
					l := raft.Log{
						Index: next + i, Term: rapid.Uint64().Draw(t, "term"),
						Type: raft.LogType(rapid.ByteRange(0, 5).Draw(t, "type")), Data: data.Draw(t, "data"),
					}
					if rapid.Bool().Draw(t, "extended") {
						l.Extensions = []byte("e")
						l.AppendedAt = time.Unix(0, rapid.Int64Range(1, 1<<62).Draw(t, "at"))
					}
					oracle[l.Index] = l
					logs = append(logs, &l)
					last = l.Index
				}
				if first == 0 {
					first = next
				}
				committed = min(staged, last)
				if err := b.StoreLogs(logs); err != nil {
					t.Fatal(err)
				}
			},
			"delete": func(t *rapid.T) {
				if last == 0 {
					return
				}
				at := rapid.Uint64Range(first, last).Draw(t, "at")
				lo, hi := first, at
				if rapid.Bool().Draw(t, "suffix") {
					lo, hi = at, last
				}
				if err := b.DeleteRange(lo, hi); err != nil {
					t.Fatal(err)
				}
				for i := lo; i <= hi; i++ {
					delete(oracle, i)
				}
				if hi == last {
					last = lo - 1
				} else {
					first = hi + 1
				}
				if len(oracle) == 0 {
					first, last = 0, 0
				}
			},
			"stage": func(t *rapid.T) {
				to := rapid.Uint64Range(0, last+10).Draw(t, "to")
				staged = max(staged, to)
				b.StageCommitIndex(to)
			},
			"set": func(t *rapid.T) {
				k, v := rapid.SampledFrom([]string{"a", "bb", "c"}).Draw(t, "key"), rapid.String().Draw(t, "value")
				stable[k] = v
				if err := b.Set([]byte(k), []byte(v)); err != nil {
					t.Fatal(err)
				}
			},
			"reopen": func(t *rapid.T) {
				if err := b.Close(); err != nil {
					t.Fatal(err)
				}
				c, err := inspect(path)
				if err != nil || c.first != first || c.last != last {
					t.Fatalf("inspect: %+v, %v, want %d to %d", c, err, first, last)
				}
				if b, err = openLog(path); err != nil {
					t.Fatal(err)
				}
				b.db.NoSync = true
				staged = committed
			},
			"": func(t *rapid.T) {
				f, _ := b.FirstIndex()
				l, _ := b.LastIndex()
				if f != first || l != last {
					t.Fatalf("log holds %d to %d, want %d to %d", f, l, first, last)
				}
				if c, _ := b.GetCommitIndex(); c != min(committed, last) {
					t.Fatalf("commit index %d, want %d", c, min(committed, last))
				}
				for _, i := range []uint64{first - 1, first, (first + last) / 2, last, last + 1} {
					var got raft.Log
					err := b.GetLog(i, &got)
					want, ok := oracle[i]
					if !ok {
						if err != raft.ErrLogNotFound {
							t.Fatalf("entry %d: %v", i, err)
						}
						continue
					}
					if err != nil || got.Index != want.Index || got.Term != want.Term || got.Type != want.Type ||
						!bytes.Equal(got.Data, want.Data) || !bytes.Equal(got.Extensions, want.Extensions) || !got.AppendedAt.Equal(want.AppendedAt) {
						t.Fatalf("entry %d: %+v, %v, want %+v", i, got, err, want)
					}
				}
				for k := range maps.Keys(stable) {
					if v, err := b.Get([]byte(k)); err != nil || string(v) != stable[k] {
						t.Fatalf("value %q: %q, %v, want %q", k, v, err, stable[k])
					}
				}
			},
		})
	})
}

func TestRecordNoticesEveryFlippedBit(t *testing.T) {
	l := &raft.Log{Index: 77, Term: 5, Type: raft.LogCommand, Data: []byte("some data"), Extensions: []byte("x")}
	rec := appendRecord(nil, l)
	if len(rec) != recordSize(l) {
		t.Errorf("record of %d bytes, expected %d", len(rec), recordSize(l))
	}
	var got raft.Log
	if err := decodeRecord(77, rec, &got); err != nil || !reflect.DeepEqual(&got, l) {
		t.Fatalf("%+v, %v", got, err)
	}
	if err := decodeRecord(78, rec, &got); !errors.Is(err, errChecksum) {
		t.Errorf("under another index: %v", err)
	}
	for bit := range len(rec) * 8 {
		rec[bit/8] ^= 1 << (bit % 8)
		if err := decodeRecord(77, rec, &got); err == nil {
			t.Errorf("bit %d: not noticed", bit)
		}
		rec[bit/8] ^= 1 << (bit % 8)
	}
	for n := range rec {
		if err := decodeRecord(77, rec[:n], &got); err == nil {
			t.Errorf("cut to %d bytes: not noticed", n)
		}
	}
}
