package raftstore

import (
	"fmt"
	"io"
	"math/rand/v2"
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

// registry is a state of records like a token registry's: 400 bytes, half of
// which repeat from record to record and half of which are random.
type registry struct {
	nothing
	records [][]byte
}

func newRegistry(n int) *registry {
	random := rand.NewChaCha8([32]byte{})
	m := &registry{records: make([][]byte, n)}
	for i := range m.records {
		m.records[i] = fmt.Appendf(nil, "%-200s", fmt.Sprintf(
			"token %012d audience payments.example.com subject agent-%05d purpose reconcile invoices of the month "+
				"context env is prod max-calls %d action read resource invoices/2026/%04d", i, i%9973, i%100, i%1201))
		m.records[i] = append(m.records[i], make([]byte, 200)...)
		random.Read(m.records[i][200:])
	}
	return m
}

func (m *registry) Snapshot() (Snapshot, error) { return registrySnapshot{m}, nil }

type registrySnapshot struct{ m *registry }

func (s registrySnapshot) Persist(w io.Writer) error {
	for _, record := range s.m.records {
		if _, err := w.Write(record); err != nil {
			return err
		}
	}
	return nil
}

func (s registrySnapshot) Release() {}

func (m *registry) Restore(r io.Reader) error {
	buf := make([]byte, 400)
	for {
		if _, err := io.ReadFull(r, buf); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// BenchmarkSnapshot writes a state of 100,000 records to a snapshot, and reads it
// back: its checksum first, as at a start.
func BenchmarkSnapshot(b *testing.B) {
	m := newRegistry(100_000)
	snaps, err := openSnapshots(b.TempDir(), func(err error) { b.Error(err) })
	if err != nil {
		b.Fatal(err)
	}
	f := newFSM(m, &failure{}, "n1", func() {})
	write := func() raft.SnapshotSink {
		sink, err := snaps.Create(1, 1, 1, raft.Configuration{}, 1, nil)
		if err != nil {
			b.Fatal(err)
		}
		if err := (&fsmSnapshot{f, registrySnapshot{m}}).Persist(sink); err != nil {
			b.Fatal(err)
		}
		if err := sink.Close(); err != nil {
			b.Fatal(err)
		}
		return sink
	}
	b.Run("do=write", func(b *testing.B) {
		b.SetBytes(int64(len(m.records)) * 400)
		for b.Loop() {
			write()
		}
		b.ReportMetric(float64(snaps.metas[0].Size)/float64(len(m.records)), "disk-B/record")
	})
	b.Run("do=read", func(b *testing.B) {
		id := write().ID()
		b.SetBytes(int64(len(m.records)) * 400)
		for b.Loop() {
			_, r, err := snaps.Open(id)
			if err != nil {
				b.Fatal(err)
			}
			if err := f.Restore(r); err != nil {
				b.Fatal(err)
			}
			r.Close()
		}
	})
}
