package raftstore

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/hashicorp/raft"
)

// Server is a node in a configuration.
type Server struct {
	ID, Address string
	Voter       bool
}

// SnapshotMeta describes a snapshot outside of a Store: a file of the format
// that Store keeps, which says what it is and carries a SHA-256.
type SnapshotMeta struct {
	Index, Term uint64 // of the last entry in it
	Servers     []Server
	Size        int64 // bytes of state, compressed as they are
	SHA256      [sha256.Size]byte
}

func newSnapshotMeta(index, term uint64, configuration raft.Configuration) SnapshotMeta {
	m := SnapshotMeta{Index: index, Term: term}
	for _, s := range configuration.Servers {
		m.Servers = append(m.Servers, Server{string(s.ID), string(s.Address), s.Suffrage == raft.Voter})
	}
	return m
}

// configuration is what Raft makes of servers; ErrConfig unless there is a voter.
func configuration(servers []Server) (raft.Configuration, error) {
	var c raft.Configuration
	for _, s := range servers {
		suffrage := raft.Nonvoter
		if s.Voter {
			suffrage = raft.Voter
		}
		if s.ID == "" || s.Address == "" {
			return c, fmt.Errorf("%w: a member needs an id and an address", ErrConfig)
		}
		for _, other := range c.Servers {
			if other.ID == raft.ServerID(s.ID) || other.Address == raft.ServerAddress(s.Address) {
				return c, fmt.Errorf("%w: id or address of %q twice", ErrConfig, s.ID)
			}
		}
		c.Servers = append(c.Servers, raft.Server{Suffrage: suffrage, ID: raft.ServerID(s.ID), Address: raft.ServerAddress(s.Address)})
	}
	if voters(c.Servers) == 0 {
		return c, fmt.Errorf("%w: no voter", ErrConfig)
	}
	return c, nil
}

// Export writes a snapshot of everything applied here, and checks it on the way.
// The node goes on meanwhile. What was acknowledged elsewhere may be missing
// unless ReadIndex came first. The state is what the state machine persisted,
// compressed: seal what must not be readable. Errors: ErrNothingNew when
// nothing was ever applied, ErrDiskFull, ErrCorrupt, and those of w.
func (s *Store) Export(ctx context.Context, w io.Writer) (SnapshotMeta, error) {
	if err := s.Snapshot(ctx); err != nil && !errors.Is(err, ErrNothingNew) {
		return SnapshotMeta{}, err
	}
	f, err := s.snaps.openNewest()
	if err != nil {
		return SnapshotMeta{}, err
	}
	defer f.Close()
	meta, err := readSnapshot(io.TeeReader(contextReader{ctx, f}, w), func(snapshotInfo, io.Reader) error { return nil })
	if errors.Is(err, ErrCorrupt) {
		err = &Corruption{f.Name(), err.Error()}
		s.fail.fatal(err) // it was whole when the node started
	}
	return meta, err
}

// openNewest opens the file of the newest snapshot. It stays readable even if
// another takes its place.
func (s *snapshots) openNewest() (*os.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.metas) == 0 {
		return nil, fmt.Errorf("%w: there is none", ErrNothingNew)
	}
	return os.Open(filepath.Join(s.dir, s.metas[0].ID+snapshotSuffix))
}

// contextReader reads until its context ends.
type contextReader struct {
	ctx context.Context
	io.Reader
}

func (r contextReader) Read(b []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.Reader.Read(b)
}

// InspectSnapshot reads what Export wrote to the end, checks it, and says what
// it is. ErrCorrupt if it is not whole.
func InspectSnapshot(r io.Reader) (SnapshotMeta, error) {
	return readSnapshot(r, func(snapshotInfo, io.Reader) error { return nil })
}

// readSnapshot reads and checks a snapshot in one pass. take gets the state,
// before it is known to be whole, and need not read all of it.
func readSnapshot(r io.Reader, take func(snapshotInfo, io.Reader) error) (SnapshotMeta, error) {
	bad := func(format string, args ...any) (SnapshotMeta, error) {
		return SnapshotMeta{}, &Corruption{"snapshot", fmt.Sprintf(format, args...)}
	}
	sum := sha256.New()
	tail := &tailReader{r: bufio.NewReaderSize(r, 64<<10)}
	covered := io.TeeReader(tail, sum)
	short := func(err error) (SnapshotMeta, error) {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return bad("too short")
		}
		return SnapshotMeta{}, err
	}
	var head [snapshotHeader]byte
	if _, err := io.ReadFull(covered, head[:]); err != nil {
		return short(err)
	}
	n := binary.BigEndian.Uint32(head[12:])
	switch version := binary.BigEndian.Uint32(head[8:]); {
	case string(head[:8]) != snapshotMagic:
		return bad("not a snapshot")
	case version != snapshotVersion:
		return bad("unknown snapshot version %d", version)
	case n > maxSnapshotInfo:
		return bad("description too long")
	}
	buf := make([]byte, n)
	if _, err := io.ReadFull(covered, buf); err != nil {
		return short(err)
	}
	var info snapshotInfo
	if err := json.Unmarshal(buf, &info); err != nil {
		return bad("description: %v", err)
	}
	meta := newSnapshotMeta(info.Index, info.Term, info.Configuration)
	state := &countingReader{r: covered}
	if err := take(info, state); err != nil {
		return SnapshotMeta{}, err
	}
	if _, err := io.Copy(io.Discard, state); err != nil {
		return short(err)
	}
	meta.Size = state.n
	if copy(meta.SHA256[:], tail.rest()) != sha256.Size || !bytes.Equal(sum.Sum(nil), meta.SHA256[:]) {
		return bad("%v", errChecksum)
	}
	return meta, nil
}

// tailReader reads all but the last sha256.Size bytes.
type tailReader struct{ r *bufio.Reader }

func (t *tailReader) Read(b []byte) (int, error) {
	have, err := t.r.Peek(min(len(b)+sha256.Size, t.r.Size()))
	n := len(have) - sha256.Size
	if n <= 0 {
		if err == nil {
			err = io.EOF
		}
		return 0, err
	}
	copy(b, have[:n])
	return t.r.Discard(n)
}

// rest returns what is left at the end.
func (t *tailReader) rest() []byte {
	b, _ := t.r.Peek(sha256.Size)
	return b
}

type countingReader struct {
	r io.Reader
	n int64
}

func (c *countingReader) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n += int64(n)
	return n, err
}

// RestoreConfig says where a snapshot becomes a new cluster.
type RestoreConfig struct {
	// Dir must not hold a node. Created with mode 0700.
	Dir string

	// NodeID and Address are of the one voter that the new cluster has.
	NodeID, Address string

	// AllowMember lets NodeID be that of a member of the old cluster. If any
	// of the others still runs and can reach this one, it will take it for that
	// member: so only when all of them are gone for good.
	AllowMember bool
}

// Restore makes a new cluster of one voter out of what Export wrote. Open then
// finds it in Dir; the state machine must be empty. To bring nothing back to
// life that has been revoked since is the caller's part. Errors: ErrConfig,
// ErrLocked, ErrNotEmpty, ErrMember, ErrCorrupt, ErrDiskFull; what was begun is
// removed.
func Restore(cfg RestoreConfig, r io.Reader) (_ SnapshotMeta, err error) {
	members, err := configuration([]Server{{cfg.NodeID, cfg.Address, true}})
	if err == nil && cfg.Dir == "" {
		err = fmt.Errorf("%w: Dir is empty", ErrConfig)
	}
	if err != nil {
		return SnapshotMeta{}, err
	}
	if err := makeDir(cfg.Dir); err != nil {
		return SnapshotMeta{}, fmt.Errorf("raftstore: %w", diskFull(err))
	}
	lock, err := lockFile(filepath.Join(cfg.Dir, "LOCK"))
	if err != nil {
		return SnapshotMeta{}, err
	}
	defer lock.Close()
	dir, path := filepath.Join(cfg.Dir, "snapshots"), filepath.Join(cfg.Dir, "raft.db")
	for _, name := range []string{dir, path} {
		if _, err := os.Lstat(name); !errors.Is(err, os.ErrNotExist) {
			return SnapshotMeta{}, fmt.Errorf("%w: %s exists", ErrNotEmpty, name)
		}
	}
	var failed error // a sync that did
	snaps, err := openSnapshots(dir, func(err error) { failed = err })
	if err != nil {
		return SnapshotMeta{}, diskFull(err)
	}
	defer func() {
		if err != nil {
			os.RemoveAll(dir)
			os.Remove(path + newSuffix)
		}
	}()
	var sink raft.SnapshotSink
	meta, err := readSnapshot(r, func(info snapshotInfo, state io.Reader) (err error) {
		for _, server := range info.Configuration.Servers {
			if string(server.ID) == cfg.NodeID && !cfg.AllowMember {
				return fmt.Errorf("%w: %q", ErrMember, cfg.NodeID)
			}
		}
		if sink, err = snaps.Create(1, info.Index, info.Term, members, info.Index, nil); err != nil {
			return err
		}
		_, err = io.Copy(sink, state)
		return err
	})
	if err == nil {
		err = sink.Close() // only now, that it is known to be whole
	} else if sink != nil {
		err = errors.Join(err, sink.Cancel())
	}
	if err == nil {
		err = failed
	}
	if err != nil {
		return SnapshotMeta{}, diskFull(err)
	}
	return meta, diskFull(createLog(path, meta.Term))
}

// createLog makes the log of a node that begins with a snapshot.
func createLog(path string, term uint64) error {
	b, err := openLog(path + newSuffix)
	if err != nil {
		return err
	}
	err = b.SetUint64([]byte("CurrentTerm"), term) // raft's name for it
	if err := errors.Join(err, b.Close()); err != nil {
		return err
	}
	return renameLog(path)
}

// Recover gives a stopped node's directory another configuration, when the
// quorum of its own is lost for good. Everything in its log counts as committed,
// also what never was. Do it on the surviving voter that is furthest (Status),
// with that as the only member, and have others join anew; or on every survivor
// with the same servers, before any of them starts. Nobody that is not among the
// servers may ever run again.
//
// cfg needs Dir and NodeID. sm is as for Open, and of no use afterwards. Errors:
// those of Open, and ErrConfig when servers does not hold this node or a voter.
func Recover(cfg Config, servers []Server, sm StateMachine) (_ SnapshotMeta, err error) {
	members, err := configuration(servers)
	if err != nil {
		return SnapshotMeta{}, err
	}
	cfg.Bootstrap, cfg.Join, cfg.Transport = false, false, nil
	if cfg, err = cfg.withDefaults(); err != nil {
		return SnapshotMeta{}, err
	}
	if self := without(members.Servers, cfg.NodeID); len(self) == len(members.Servers) {
		return SnapshotMeta{}, fmt.Errorf("%w: %q is not among the servers", ErrConfig, cfg.NodeID)
	}
	s := newStore(cfg)
	if s.lock, err = lockFile(filepath.Join(cfg.Dir, "LOCK")); err != nil {
		return SnapshotMeta{}, err
	}
	defer s.lock.Close()
	_, trans := raft.NewInmemTransport(raft.ServerAddress(cfg.NodeID))
	if err := s.openDisk(trans, sm.AppliedIndex()); err != nil {
		if s.log != nil {
			s.log.Close()
		}
		return SnapshotMeta{}, err
	}
	s.fsm = newFSM(sm, s.fail, cfg.NodeID, s.markRemoved)
	err = s.fail.contain("recover", func() error {
		return raft.RecoverCluster(cfg.raftConfig(), s.fsm, s.guard, s.guard, s.snaps, trans, members)
	})
	if err := errors.Join(err, s.log.Close()); err != nil {
		return SnapshotMeta{}, diskFull(err)
	}
	f, err := s.snaps.openNewest()
	if err != nil {
		return SnapshotMeta{}, err
	}
	defer f.Close()
	return InspectSnapshot(f)
}
