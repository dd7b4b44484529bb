package state

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	bolt "go.etcd.io/bbolt"
)

// The buckets of the state file. Everything that is replicated is in them; the
// memory of a Machine is an index over them that load builds.
var (
	bucketMeta        = []byte("meta")        // see meta
	bucketTokens      = []byte("tokens")      // token id → TokenRecord
	bucketRevocations = []byte("revocations") // kind, what is named → RevocationRecord
	bucketBudgets     = []byte("budgets")     // token id, branch → budget
	bucketLeases      = []byte("leases")      // token id, lease id → leaseRecord
	bucketLeaseTokens = []byte("leasetokens") // lease id → token id
	bucketLessees     = []byte("lessees")     // token id, branch, hash of the lessee → open leases
	bucketRequests    = []byte("requests")    // hash of actor and request id → requestRecord
	bucketServices    = []byte("services")    // name → ServiceRecord
	bucketKeys        = []byte("keys")        // purpose, 0, epoch → SealedKey
	bucketEpochs      = []byte("epochs")      // epoch → EpochRecord
	bucketGenerations = []byte("generations") // audience → []GenerationRecord

	buckets = [][]byte{bucketMeta, bucketTokens, bucketRevocations, bucketBudgets, bucketLeases, bucketLeaseTokens,
		bucketLessees, bucketRequests, bucketServices, bucketKeys, bucketEpochs, bucketGenerations, bucketAttest, bucketMembers}
)

var keyMeta = []byte("meta")

// meta is the state's one record of its own.
type meta struct {
	Applied     uint64 `cbor:"1,keyasint"` // Raft index of the last entry
	MinStamp    int64  `cbor:"2,keyasint"` // the least stamp that the next command may have
	Cluster     string `cbor:"3,keyasint"`
	Incarnation uint64 `cbor:"4,keyasint"`
	BoundMillis int64  `cbor:"5,keyasint"`
	Origin      string `cbor:"6,keyasint"`
	Edge        []byte `cbor:"7,keyasint"` // audit.Edge
	Content     Digest `cbor:"8,keyasint"`
	ClusterKey  uint32 `cbor:"9,keyasint,omitempty"`  // number of the cluster key in force
	Revived     int64  `cbor:"10,keyasint,omitempty"` // stamp of the last Revive: tokens from before have no calls left
}

// mmapSize is how much address space a state file takes at once, in bytes.
// bbolt cannot move its map while a read transaction is open, so a file that
// outgrows it would have applying wait for a snapshot to be written. No memory
// is used for it.
const mmapSize = 16 << 30

// openFile makes an empty state file. It is never synced: what it holds can be
// rebuilt from the newest snapshot and the log, which are.
func openFile(path string) (*bolt.DB, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	db, err := bolt.Open(path, 0o600, &bolt.Options{
		NoSync: true, NoGrowSync: true, NoFreelistSync: true, FreelistType: bolt.FreelistMapType,
		InitialMmapSize: mmapSize,
	})
	if err != nil {
		return nil, fmt.Errorf("state file: %w", err)
	}
	err = db.Update(func(tx *bolt.Tx) error {
		for _, name := range buckets {
			if _, err := tx.CreateBucket(name); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		db.Close()
		return nil, fmt.Errorf("state file: %w", err)
	}
	return db, nil
}

// wholeFile is called once all, or much, of a state file was read. Its pages,
// count as this process's resident memory from then on, hundreds of megabytes of
// what is only a cache.
func wholeFile(tx *bolt.Tx) {
	unmapPages(tx.DB().Info().Data, uintptr(tx.Size()))
}

// writer is the transaction of one batch. It keeps content, the exclusive-or of
// the hashes of everything that the buckets hold (but meta), up to date with
// every write, so that the hash of the whole state is at hand at any entry.
type writer struct {
	tx      *bolt.Tx
	content *Digest
}

// check ends the node when the state file fails: nothing else is right once it
// is behind the log.
func check(err error) {
	if err != nil {
		panic("state file: " + err.Error())
	}
}

func (w writer) get(bucket, key []byte) []byte { return w.tx.Bucket(bucket).Get(key) }

// fill is how full a page is left when it is split. Nearly every key begins with a
// time, so that what comes next goes behind it and the half that bbolt would leave
// free stays so.
const fill = 0.9

func (w writer) put(bucket, key, value []byte) {
	if old := w.get(bucket, key); old != nil {
		w.content.mix(bucket, key, old)
	}
	w.add(bucket, key, value)
}

// add is put for a key that is known to be new.
func (w writer) add(bucket, key, value []byte) {
	b := w.tx.Bucket(bucket)
	b.FillPercent = fill
	w.content.mix(bucket, key, value)
	check(b.Put(key, value))
}

func (w writer) delete(bucket, key []byte) {
	b := w.tx.Bucket(bucket)
	if old := b.Get(key); old != nil {
		w.content.mix(bucket, key, old)
		check(b.Delete(key))
	}
}

// mix adds a record to the exclusive-or of all, or takes it away again. No two
// records have one key, so none cancels another by accident.
func (d *Digest) mix(bucket, key, value []byte) {
	var space [1024]byte
	b := append(space[:0], byte(len(bucket)))
	b = append(b, bucket...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(key)))
	b = append(b, key...)
	b = append(b, value...)
	sum := sha256.Sum256(b)
	for i := range d {
		d[i] ^= sum[i]
	}
}

// prefixed calls f for every key of the bucket that begins with prefix. f must
// not change the bucket.
func prefixed(tx *bolt.Tx, bucket, prefix []byte, f func(key, value []byte)) {
	c := tx.Bucket(bucket).Cursor()
	for k, v := c.Seek(prefix); k != nil && len(k) >= len(prefix) && string(k[:len(prefix)]) == string(prefix); k, v = c.Next() {
		f(k, v)
	}
}

// deletePrefixed deletes every key of the bucket that begins with prefix and
// returns how many there were; first sees each value.
func (w writer) deletePrefixed(bucket, prefix []byte, first func(key, value []byte)) int {
	var keys [][]byte
	prefixed(w.tx, bucket, prefix, func(k, v []byte) {
		keys = append(keys, append([]byte(nil), k...))
		if first != nil {
			first(k, v)
		}
	})
	for _, k := range keys {
		w.delete(bucket, k)
	}
	return len(keys)
}

func join(parts ...[]byte) []byte {
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	b := make([]byte, 0, n)
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}
