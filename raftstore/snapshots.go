package raftstore

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/hashicorp/raft"
)

// A snapshot is one file, mode 0600, named after index and term:
//
//	0  "writsnap", 8 bytes
//	8  version (2), 4 bytes, big-endian
//	12 length of the description, 4 bytes, big-endian
//	16 description: a snapshotInfo as JSON
//	…  the state, as compress writes it
//	-32 SHA-256 of all of the above
//
// It appears under its name complete and synced, or not at all. Unlike the
// library's own store it covers the description by the checksum, and a damaged
// snapshot stops a node instead of being passed over.
//
// One is kept. A second, older one would never be read: if the newest is
// damaged, or the state machine refuses it, the node stops. A leader that is
// just opening one when the next takes its place finds it gone and begins again
// with that; whoever has it open can read it to its end.
//
// Version 1, in which the state was not compressed, was never released.
const (
	snapshotMagic   = "writsnap"
	snapshotVersion = 2
	snapshotHeader  = 16
	snapshotSuffix  = ".snap"
	snapshotTemp    = ".tmp"
	maxSnapshotInfo = 1 << 20 // bytes
)

type snapshotInfo struct {
	Index              uint64             `json:"index"`
	Term               uint64             `json:"term"`
	Configuration      raft.Configuration `json:"configuration"`
	ConfigurationIndex uint64             `json:"configuration_index"`
}

// snapshots implements raft.SnapshotStore.
type snapshots struct {
	dir     string
	fatal   func(error)     // for a failed sync
	faults  Faults          // nil but in tests
	closing <-chan struct{} // closed to end what is being written; nil for never

	mu    sync.Mutex
	metas []*raft.SnapshotMeta // newest first
	err   error                // the last failure to write, since Raft only passes on its text
	taken func(index uint64)   // called when one is complete; nil for nothing to do
}

// failed records err, if it is one, and returns it.
func (s *snapshots) failed(err error) error {
	if err != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.err = diskFull(err)
		return s.err
	}
	return nil
}

// failure returns the last failure to write, and forgets it.
func (s *snapshots) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.err
	s.err = nil
	return err
}

// openSnapshots checks every snapshot in dir, and removes what a crash left
// half written.
func openSnapshots(dir string, fatal func(error)) (*snapshots, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	s := &snapshots{dir: dir, fatal: fatal}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		switch {
		case strings.HasSuffix(e.Name(), snapshotTemp):
			if err := os.Remove(path); err != nil {
				return nil, err
			}
		case strings.HasSuffix(e.Name(), snapshotSuffix):
			meta, f, err := openSnapshot(path)
			if err != nil {
				return nil, err
			}
			f.Close()
			s.metas = append(s.metas, meta)
		default:
			return nil, &Corruption{path, "not a snapshot"}
		}
	}
	s.sort()
	return s, nil
}

// newest returns the index and term of the newest snapshot, 0 and 0 for none.
func (s *snapshots) newest() (index, term uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.metas) == 0 {
		return 0, 0
	}
	return s.metas[0].Index, s.metas[0].Term
}

func (s *snapshots) sort() {
	slices.SortFunc(s.metas, func(a, b *raft.SnapshotMeta) int { return strings.Compare(b.ID, a.ID) })
}

// Create begins a snapshot.
func (s *snapshots) Create(version raft.SnapshotVersion, index, term uint64, configuration raft.Configuration,
	configurationIndex uint64, _ raft.Transport) (raft.SnapshotSink, error) {
	if version != 1 {
		return nil, fmt.Errorf("raftstore: snapshot version %d", version)
	}
	info, err := json.Marshal(snapshotInfo{index, term, configuration, configurationIndex})
	if err != nil {
		return nil, err
	}
	if len(info) > maxSnapshotInfo {
		return nil, fmt.Errorf("%w: snapshot description of %d bytes", ErrTooLarge, len(info))
	}
	id := fmt.Sprintf("%020d-%020d", index, term)
	// One from a leader may come in while this node writes its own of the same index.
	f, err := os.CreateTemp(s.dir, id+"-*"+snapshotTemp)
	if err != nil {
		return nil, s.failed(err)
	}
	k := &snapshotSink{store: s, f: f, sum: sha256.New(), meta: &raft.SnapshotMeta{
		Version: 1, ID: id, Index: index, Term: term,
		Configuration: configuration, ConfigurationIndex: configurationIndex,
	}}
	k.w = bufio.NewWriterSize(io.MultiWriter(f, k.sum), 64<<10)
	k.w.WriteString(snapshotMagic) // errors stick to the writer and show in Close
	k.w.Write(binary.BigEndian.AppendUint32(nil, snapshotVersion))
	k.w.Write(binary.BigEndian.AppendUint32(nil, uint32(len(info))))
	k.w.Write(info)
	return k, nil
}

// List returns the snapshots, newest first.
func (s *snapshots) List() ([]*raft.SnapshotMeta, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]*raft.SnapshotMeta, len(s.metas))
	for i, m := range s.metas {
		c := *m
		list[i] = &c
	}
	return list, nil
}

// Open checks a snapshot and returns its state, compressed. Damage is fatal: it
// was whole when the node started.
func (s *snapshots) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	meta, r, err := openSnapshot(filepath.Join(s.dir, filepath.Base(id)+snapshotSuffix))
	if errors.Is(err, ErrCorrupt) {
		s.fatal(err)
	}
	return meta, r, err
}

// openSnapshot reads a snapshot file through, checks it, and returns it
// positioned at the state.
func openSnapshot(path string) (_ *raft.SnapshotMeta, _ io.ReadCloser, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	fi, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	bad := func(format string, args ...any) error { return &Corruption{path, fmt.Sprintf(format, args...)} }
	covered := fi.Size() - sha256.Size
	if covered < snapshotHeader {
		return nil, nil, bad("too short")
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, io.LimitReader(f, covered)); err != nil {
		return nil, nil, err
	}
	var stored [sha256.Size]byte
	if _, err := f.ReadAt(stored[:], covered); err != nil {
		return nil, nil, err
	}
	if !bytes.Equal(sum.Sum(nil), stored[:]) {
		return nil, nil, bad("%v", errChecksum)
	}
	var head [snapshotHeader]byte
	if _, err := f.ReadAt(head[:], 0); err != nil {
		return nil, nil, err
	}
	n := int64(binary.BigEndian.Uint32(head[12:]))
	switch version := binary.BigEndian.Uint32(head[8:]); {
	case string(head[:8]) != snapshotMagic:
		return nil, nil, bad("not a snapshot")
	case version != snapshotVersion:
		return nil, nil, bad("unknown snapshot version %d", version)
	case n > maxSnapshotInfo || n > covered-snapshotHeader:
		return nil, nil, bad("description too long")
	}
	buf := make([]byte, n)
	if _, err := f.ReadAt(buf, snapshotHeader); err != nil {
		return nil, nil, err
	}
	var info snapshotInfo
	if err := json.Unmarshal(buf, &info); err != nil {
		return nil, nil, bad("description: %v", err)
	}
	if _, err := f.Seek(snapshotHeader+n, io.SeekStart); err != nil {
		return nil, nil, err
	}
	size := covered - snapshotHeader - n
	meta := &raft.SnapshotMeta{
		Version: 1, ID: strings.TrimSuffix(filepath.Base(path), snapshotSuffix),
		Index: info.Index, Term: info.Term,
		Configuration: info.Configuration, ConfigurationIndex: info.ConfigurationIndex,
		Size: size,
	}
	if meta.ID != fmt.Sprintf("%020d-%020d", info.Index, info.Term) {
		return nil, nil, bad("holds the snapshot of index %d, term %d", info.Index, info.Term)
	}
	return meta, &snapshotState{bufio.NewReaderSize(io.LimitReader(f, size), 64<<10), f, meta}, nil
}

// snapshotState is the state in a snapshot, compressed, being read.
type snapshotState struct {
	io.Reader
	io.Closer
	meta *raft.SnapshotMeta
}

// snapshotOf returns what r, as Raft hands it to the state machine, is within.
func snapshotOf(r io.ReadCloser) *snapshotState {
	for {
		switch in := r.(type) {
		case *snapshotState:
			return in
		case raft.ReadCloserWrapper:
			r = in.WrappedReadCloser()
		default:
			return nil
		}
	}
}

// snapshotSink is a snapshot being written.
type snapshotSink struct {
	store *snapshots
	f     *os.File
	w     *bufio.Writer // to f and sum
	sum   hash.Hash
	meta  *raft.SnapshotMeta
	done  bool
}

func (k *snapshotSink) ID() string { return k.meta.ID }

// Write fails once the Store is being closed, which waits for it.
func (k *snapshotSink) Write(b []byte) (int, error) {
	select {
	case <-k.store.closing:
		return 0, errStopped
	default:
	}
	n, err := k.w.Write(b)
	k.meta.Size += int64(n)
	return n, k.store.failed(err)
}

// Cancel gives the snapshot up.
func (k *snapshotSink) Cancel() error {
	if k.done {
		return nil
	}
	k.done = true
	return errors.Join(k.f.Close(), os.Remove(k.f.Name()))
}

// Close completes the snapshot, which takes the place of the one before it.
func (k *snapshotSink) Close() error {
	if k.done {
		return nil
	}
	err := k.w.Flush()
	if err == nil {
		_, err = k.f.Write(k.sum.Sum(nil))
	}
	if err == nil {
		if err = k.sync(); err != nil && !outOfSpace(err) {
			k.store.fatal(fmt.Errorf("raftstore: %s: sync failed: %w", k.f.Name(), err))
		}
	}
	if err != nil {
		return errors.Join(k.store.failed(err), k.Cancel())
	}
	before, taken, err := k.store.add(k)
	if err != nil {
		return errors.Join(k.store.failed(err), k.Cancel())
	}
	k.done = true
	errs := []error{k.f.Close()}
	if err := syncDir(k.store.dir); err != nil {
		k.store.fatal(fmt.Errorf("raftstore: %s: sync failed: %w", k.store.dir, err))
		return err
	}
	for _, m := range before {
		errs = append(errs, os.Remove(filepath.Join(k.store.dir, m.ID+snapshotSuffix)))
	}
	if taken != nil {
		taken(k.meta.Index)
	}
	return errors.Join(errs...)
}

func (k *snapshotSink) sync() error {
	if k.store.faults != nil {
		return k.store.faults.Write(k.f.Sync)
	}
	return k.f.Sync()
}

// errOlder: a snapshot was received while this node wrote its own. Raft must not
// take the end of the log for that of the one that was late.
var errOlder = errors.New("raftstore: there is a newer snapshot")

// add gives a snapshot that is written and synced its name. It returns those whose
// place it takes, and what is to be called then. A snapshot that comes when there is
// a newer one is refused: a leader's came in while this node wrote its own, and
// Raft must not go back to the end of that.
func (s *snapshots) add(k *snapshotSink) (before []*raft.SnapshotMeta, taken func(index uint64), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.metas) > 0 && s.metas[0].ID > k.meta.ID {
		return nil, nil, fmt.Errorf("%w: a newer one came in", ErrNothingNew)
	}
	if err := os.Rename(k.f.Name(), filepath.Join(s.dir, k.meta.ID+snapshotSuffix)); err != nil {
		return nil, nil, err
	}
	before = slices.DeleteFunc(s.metas, func(m *raft.SnapshotMeta) bool { return m.ID == k.meta.ID })
	s.metas = []*raft.SnapshotMeta{k.meta}
	return before, s.taken, nil
}

// whenTaken has taken called, with a snapshot's index, whenever one is complete.
func (s *snapshots) whenTaken(taken func(index uint64)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.taken = taken
}
