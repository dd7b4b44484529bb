package raftstore

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

const benchCommand = 200 // bytes

// appender is what the append benchmark compares.
type appender interface {
	StoreLogs([]*raft.Log) error
	Close() error
}

// openYardstick opens raft-boltdb, with the options that make it fast.
func openYardstick(b *testing.B) *raftboltdb.BoltStore {
	s, err := raftboltdb.New(raftboltdb.Options{
		Path:        filepath.Join(b.TempDir(), "raft.db"),
		BoltOptions: &bbolt.Options{NoFreelistSync: true, FreelistType: bbolt.FreelistMapType},
	})
	if err != nil {
		b.Fatal(err)
	}
	return s
}

// bareFile appends and syncs, and no more: the floor.
type bareFile struct {
	f   *os.File
	buf []byte
	at  int64
}

func (w *bareFile) StoreLogs(logs []*raft.Log) error {
	w.buf = w.buf[:0]
	for _, l := range logs {
		w.buf = appendRecord(w.buf, l)
	}
	if _, err := w.f.WriteAt(w.buf, w.at); err != nil {
		return err
	}
	w.at += int64(len(w.buf))
	return unix.Fdatasync(int(w.f.Fd()))
}

func (w *bareFile) Close() error { return w.f.Close() }

// BenchmarkAppend is one durable append of so many entries.
func BenchmarkAppend(b *testing.B) {
	for _, batch := range []int{1, 64} {
		for _, store := range []struct {
			name string
			open func(*testing.B) appender
		}{
			{"raftstore", func(b *testing.B) appender { return openTestLog(b) }},
			{"raft-boltdb", func(b *testing.B) appender { return openYardstick(b) }},
			{"fdatasync", func(b *testing.B) appender {
				f, err := os.Create(filepath.Join(b.TempDir(), "file"))
				if err != nil {
					b.Fatal(err)
				}
				return &bareFile{f: f}
			}},
		} {
			b.Run(fmt.Sprintf("entries=%d/store=%s", batch, store.name), func(b *testing.B) {
				s := store.open(b)
				defer s.Close()
				logs := make([]*raft.Log, batch)
				for i := range logs {
					logs[i] = &raft.Log{Term: 1, Data: make([]byte, benchCommand)}
				}
				next := uint64(1)
				for b.Loop() {
					for _, l := range logs {
						l.Index = next
						next++
					}
					if err := s.StoreLogs(logs); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(b.N*batch)/b.Elapsed().Seconds(), "entries/s")
			})
		}
	}
}

// yardstickLogs puts raft-boltdb under a Store, for all but the commit index.
type yardstickLogs struct {
	*raftboltdb.BoltStore
	logStore
}

func (y yardstickLogs) FirstIndex() (uint64, error)        { return y.BoltStore.FirstIndex() }
func (y yardstickLogs) LastIndex() (uint64, error)         { return y.BoltStore.LastIndex() }
func (y yardstickLogs) GetLog(i uint64, l *raft.Log) error { return y.BoltStore.GetLog(i, l) }
func (y yardstickLogs) StoreLog(l *raft.Log) error         { return y.BoltStore.StoreLog(l) }
func (y yardstickLogs) StoreLogs(l []*raft.Log) error      { return y.BoltStore.StoreLogs(l) }
func (y yardstickLogs) DeleteRange(lo, hi uint64) error    { return y.BoltStore.DeleteRange(lo, hi) }
func (y yardstickLogs) GetCommitIndex() (uint64, error)    { return 0, nil }
func (y yardstickLogs) StageCommitIndex(uint64) error      { return nil }
func (y yardstickLogs) IsMonotonic() bool                  { return false }

// nothing is a state machine that costs nothing.
type nothing struct{ ledger }

func (n *nothing) Apply(batch []Entry) []any {
	n.mu.Lock()
	n.Applied = batch[len(batch)-1].Index
	n.mu.Unlock()
	return make([]any, len(batch))
}

// BenchmarkPropose is a whole Store of one node, from so many callers at once:
// group commit.
func BenchmarkPropose(b *testing.B) {
	for _, callers := range []int{1, 64} {
		for _, store := range []string{"raftstore", "raft-boltdb"} {
			b.Run(fmt.Sprintf("callers=%d/store=%s", callers, store), func(b *testing.B) {
				cfg := testConfig(b, b.TempDir())
				if store == "raft-boltdb" {
					cfg.wrapLogs = func(l logStore) logStore {
						y := openYardstick(b)
						b.Cleanup(func() { y.Close() })
						var first raft.Log
						if err := l.GetLog(1, &first); err != nil {
							b.Fatal(err)
						}
						if err := y.StoreLog(&first); err != nil {
							b.Fatal(err)
						}
						return yardstickLogs{y, l}
					}
				}
				s := start(b, cfg, &nothing{})
				ctx := b.Context()
				command := make([]byte, benchCommand)
				work := make(chan struct{}, callers)
				var wg sync.WaitGroup
				for range callers {
					wg.Go(func() {
						for range work {
							if _, err := s.Propose(ctx, command); err != nil {
								b.Error(err)
							}
						}
					})
				}
				for b.Loop() {
					work <- struct{}{}
				}
				close(work)
				wg.Wait()
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "commands/s")
				closeStore(b, s)
			})
		}
	}
}

// BenchmarkReadIndex is a linearizable read on one node.
func BenchmarkReadIndex(b *testing.B) {
	s := start(b, testConfig(b, b.TempDir()), &nothing{})
	propose(b, s, "a")
	ctx := b.Context()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.ReadIndex(ctx); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkOpen opens a node with a log of 100,000 entries that no snapshot
// covers: checking, reading, applying.
func BenchmarkOpen(b *testing.B) {
	cfg := testConfig(b, b.TempDir())
	s := start(b, cfg, &nothing{})
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			for range 100_000 / 64 {
				if _, err := s.Propose(b.Context(), make([]byte, benchCommand)); err != nil {
					b.Error(err)
				}
			}
		})
	}
	wg.Wait()
	closeStore(b, s)
	for b.Loop() {
		closeStore(b, start(b, cfg, &nothing{}))
	}
}

// BenchmarkAppendAfterTruncation appends to a log from which a lot was deleted.
func BenchmarkAppendAfterTruncation(b *testing.B) {
	for _, store := range []string{"raftstore", "raft-boltdb"} {
		b.Run("store="+store, func(b *testing.B) {
			var s raft.LogStore = openTestLog(b)
			if store == "raft-boltdb" {
				y := openYardstick(b)
				defer y.Close()
				s = y
			}
			const n = 200_000
			logs := make([]*raft.Log, 1000)
			for at := uint64(1); at <= n; at += uint64(len(logs)) {
				for i := range logs {
					logs[i] = &raft.Log{Index: at + uint64(i), Term: 1, Data: make([]byte, benchCommand)}
				}
				if err := s.StoreLogs(logs); err != nil {
					b.Fatal(err)
				}
			}
			if err := s.DeleteRange(1, n-10_000); err != nil {
				b.Fatal(err)
			}
			next := uint64(n + 1)
			for b.Loop() {
				if err := s.StoreLogs([]*raft.Log{{Index: next, Term: 1, Data: make([]byte, benchCommand)}}); err != nil {
					b.Fatal(err)
				}
				next++
			}
		})
	}
}
