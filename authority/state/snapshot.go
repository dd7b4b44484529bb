package state

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"slices"

	bolt "go.etcd.io/bbolt"

	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/raftstore"
)

// ErrSnapshot is returned for a snapshot that is damaged, or in a format that
// this version does not know.
var ErrSnapshot = errors.New("state: unreadable snapshot")

// The format of a snapshot: a line that names its version, then for each bucket
// in their fixed order its records (length of the key plus 1, key, length of the
// value, value; lengths as uvarints) and a 0; then SHA-256 of all before.
const (
	snapshotMagic = "writ state snapshot 4\n"
	maxKey        = 1 << 10
	maxValue      = 1 << 20
	restoreTx     = 1 << 14 // records that one transaction of a restore writes
	restorePages  = 4 << 20 // bytes of the state file that a restore has mapped at a time
)

// snapshotBuckets is how many of the buckets a version holds, by the line that
// names it: a version adds buckets at the end. Those before 4 held JSON, and no
// release wrote them.
var snapshotBuckets = map[string]int{
	snapshotMagic: 14,
}

// snapshot is a state as it was: a read transaction of the state file.
type snapshot struct {
	tx   *bolt.Tx
	sink AuditSink
}

// Snapshot captures the state as it is.
func (m *Machine) Snapshot() (raftstore.Snapshot, error) {
	tx, err := m.db.Load().Begin(false)
	if err != nil {
		return nil, err
	}
	return &snapshot{tx, m.cfg.Audit}, nil
}

// Release ends the read transaction.
func (s *snapshot) Release() { _ = s.tx.Rollback() }

// Persist writes the snapshot, once everything that it covers of the audit
// trail is durable.
func (s *snapshot) Persist(w io.Writer) error {
	if s.sink != nil {
		if err := s.sink.Sync(); err != nil {
			return fmt.Errorf("audit trail: %w", err)
		}
	}
	defer wholeFile(s.tx)
	sum := sha256.New()
	buf := bufio.NewWriterSize(io.MultiWriter(w, sum), 64<<10)
	buf.WriteString(snapshotMagic)
	for _, name := range buckets {
		c := s.tx.Bucket(name).Cursor()
		for k, v := c.First(); k != nil; k, v = c.Next() {
			buf.Write(binary.AppendUvarint(buf.AvailableBuffer(), uint64(len(k))+1))
			buf.Write(k)
			buf.Write(binary.AppendUvarint(buf.AvailableBuffer(), uint64(len(v))))
			if _, err := buf.Write(v); err != nil {
				return err
			}
		}
		buf.WriteByte(0)
	}
	if err := buf.Flush(); err != nil {
		return err
	}
	_, err := w.Write(sum.Sum(nil))
	return err
}

// Restore replaces the whole state with a snapshot's. Until all of it has been
// read and checked the old state stands. Errors: ErrSnapshot, or the file
// system's.
func (m *Machine) Restore(r io.Reader) (err error) {
	old := m.db.Load()
	path := m.cfg.Path + ".restore"
	db, err := openFile(path)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			db.Close()
			os.Remove(path)
		}
	}()
	tokens, err := readSnapshot(db, r)
	if err != nil {
		return err
	}
	mem := newMemory(m.cfg.Events, m.set.Fresh())
	// What is made as large as it will be leaves no smaller ones behind: the old
	// state is in memory as well.
	mem.tokens.slots = slices.Grow(mem.tokens.slots, tokens+tokens/8)
	if err := db.View(mem.load); err != nil {
		return err
	}
	if m.cfg.Audit != nil && mem.meta.Origin != "" {
		if err := m.cfg.Audit.Open(mem.meta.Origin, mem.edge); err != nil {
			return fmt.Errorf("audit trail: %w", err)
		}
	}
	// The new file takes the old one's name while it is open; readers of the
	// old one finish on theirs. It is removed first, since ext4 writes out all of a
	// file that is renamed over another, and nothing needs this one to be.
	if err := os.Remove(m.cfg.Path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.Rename(path, m.cfg.Path); err != nil {
		return err
	}
	m.set.Swap(mem.set)
	mem.set = m.set
	m.mu.Lock()
	m.mem = mem
	m.db.Store(db)
	m.applied.Store(mem.meta.Applied)
	m.mu.Unlock()
	m.announce(true)
	return old.Close()
}

// summedReader hashes what is read through it.
type summedReader struct {
	*bufio.Reader
	sum hash.Hash
}

func (r summedReader) ReadByte() (byte, error) {
	b, err := r.Reader.ReadByte()
	if err == nil {
		r.sum.Write([]byte{b})
	}
	return b, err
}

func (r summedReader) field(n uint64, most uint64) ([]byte, error) {
	if n > most {
		return nil, fmt.Errorf("%w: a field of %d bytes", ErrSnapshot, n)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r.Reader, b); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSnapshot, err)
	}
	r.sum.Write(b)
	return b, nil
}

// readSnapshot writes a snapshot to a state file, and returns how many tokens are
// registered.
func readSnapshot(db *bolt.DB, from io.Reader) (tokens int, err error) {
	r := summedReader{bufio.NewReaderSize(from, 64<<10), sha256.New()}
	magic, err := r.field(uint64(len(snapshotMagic)), uint64(len(snapshotMagic)))
	if err != nil {
		return 0, err
	}
	count, ok := snapshotBuckets[string(magic)]
	if !ok {
		return 0, fmt.Errorf("%w: another format: %w", ErrSnapshot, ErrVersion)
	}
	for _, name := range buckets[:count] {
		for n := restoreTx; n == restoreTx; {
			err := db.Update(func(tx *bolt.Tx) error {
				n, err = readRecords(tx.Bucket(name), r)
				return err
			})
			if err != nil {
				return 0, err
			}
			if string(name) == string(bucketTokens) {
				tokens += n
			}
		}
	}
	want := r.sum.Sum(nil)
	got := make([]byte, sha256.Size)
	if _, err := io.ReadFull(r.Reader, got); err != nil || !bytes.Equal(got, want) {
		return 0, fmt.Errorf("%w: checksum", ErrSnapshot)
	}
	if _, err := r.Reader.ReadByte(); err != io.EOF {
		return 0, fmt.Errorf("%w: trailing bytes", ErrSnapshot)
	}
	return tokens, nil
}

// readRecords reads up to restoreTx records, or fewer where the bucket ends.
func readRecords(b *bolt.Bucket, r summedReader) (records int, err error) {
	b.FillPercent = fill
	for ; records < restoreTx; records++ {
		n, err := binary.ReadUvarint(r)
		if err != nil {
			return records, fmt.Errorf("%w: %w", ErrSnapshot, err)
		}
		if n == 0 {
			return records, nil
		}
		k, err := r.field(n-1, maxKey)
		if err != nil {
			return records, err
		}
		if n, err = binary.ReadUvarint(r); err != nil {
			return records, fmt.Errorf("%w: %w", ErrSnapshot, err)
		}
		v, err := r.field(n, maxValue)
		if err != nil {
			return records, err
		}
		if err := b.Put(k, v); err != nil {
			return records, fmt.Errorf("%w: %w", ErrSnapshot, err)
		}
	}
	return records, nil
}

// load builds the index over a state file, and checks its content against the
// hash that it carries.
func (m *memory) load(tx *bolt.Tx) error {
	b := tx.Bucket(bucketMeta).Get(keyMeta)
	if b == nil {
		return nil // a snapshot of nothing
	}
	if err := decodeStrict(b, &m.meta); err != nil {
		return fmt.Errorf("%w: meta: %w", ErrSnapshot, err)
	}
	if err := m.edge.UnmarshalBinary(m.meta.Edge); err != nil {
		return fmt.Errorf("%w: %w", ErrSnapshot, err)
	}
	defer wholeFile(tx)
	m.events.reset(m.meta.Applied)
	var content Digest
	read := 0
	for _, name := range buckets[1:] {
		err := tx.Bucket(name).ForEach(func(k, v []byte) error {
			if read += len(k) + len(v); read > restorePages {
				wholeFile(tx)
				read = 0
			}
			content.mix(name, k, v)
			if err := m.loadRecord(name, k, v); err != nil {
				return fmt.Errorf("%w: %s: %w", ErrSnapshot, name, err)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	// Only now, since ids of one millisecond are in no order: a child may have
	// come before its parent.
	for _, d := range m.derived {
		m.tokens.link(d[0], d[1])
	}
	m.derived = nil
	if content != m.meta.Content {
		return fmt.Errorf("%w: content hash", ErrSnapshot)
	}
	m.hashes.add(m.meta.Applied, m.stateHash())
	return nil
}

func (m *memory) loadRecord(bucket, k, v []byte) error {
	switch string(bucket) {
	case string(bucketTokens):
		var r TokenRecord
		if err := decodeStrict(v, &r); err != nil {
			return err
		}
		m.tokens.add(&r)
		if r.Parent != nil {
			m.derived = append(m.derived, [2]capability.TokenID{r.ID, r.Parent.Token})
		}
	case string(bucketBudgets):
		e := m.tokens.find(capability.TokenID(k[:16]))
		if len(k) != 32 || len(v) != budgetSize || e == nil {
			return errors.New("a budget of no token")
		}
		e.budgets++
		m.budgets++
	case string(bucketLeases):
		m.leases++
	case string(bucketRevocations):
		// The content's hash has said that these are the cluster's bytes, or will: to
		// encode a million records again, as decodeStrict does, shows nothing more.
		var r RevocationRecord
		if err := decoding.Unmarshal(v, &r); err != nil {
			return err
		}
		m.revoked.add(&r)
		addTo(m.set, &r)
	case string(bucketServices):
		r := new(ServiceRecord)
		if err := decodeStrict(v, r); err != nil {
			return err
		}
		m.services[r.Name] = r
	case string(bucketKeys):
		var r SealedKey
		if err := decodeStrict(v, &r); err != nil {
			return err
		}
		m.keys[keyName{r.Purpose, r.Epoch}] = r
	case string(bucketEpochs):
		var r EpochRecord
		if err := decodeStrict(v, &r); err != nil {
			return err
		}
		m.epochs = append(m.epochs, r) // big-endian keys: in order
	case string(bucketGenerations):
		var r []GenerationRecord
		if err := decodeStrict(v, &r); err != nil {
			return err
		}
		m.generations[string(k)] = r
	case string(bucketAttest):
		return loadAttest(k, v)
	case string(bucketMembers):
		return m.cluster.load(k, v)
	}
	return nil
}
