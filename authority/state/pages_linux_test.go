package state

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"strings"
	"testing"

	bolt "go.etcd.io/bbolt"
)

// residentFiles is how much of this process's memory is pages of files, in kB.
func residentFiles(t *testing.T) (kb int) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(status), "\nRssFile:")
	if _, err := fmt.Sscan(after, &kb); err != nil {
		t.Fatal(err)
	}
	return kb
}

// TestAPassLeavesNoPages: once all of the file was read, its pages are not this
// process's memory any more, and can still be read.
func TestAPassLeavesNoPages(t *testing.T) {
	m := openMachine(t, nil)
	const records, size = 8 << 10, 4 << 10 // 32 MiB
	err := m.db.Load().Update(func(tx *bolt.Tx) error {
		b := tx.Bucket(bucketRequests)
		for i := range records {
			if err := b.Put(binary.BigEndian.AppendUint32(nil, uint32(i)), make([]byte, size)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	before := residentFiles(t)
	err = m.view(func(tx *bolt.Tx) error {
		for range 2 {
			n := 0
			err := tx.Bucket(bucketRequests).ForEach(func(_, v []byte) error { n += len(v) + int(v[size-1]); return nil })
			if err != nil || n != records*size {
				t.Fatalf("%d bytes, %v", n, err)
			}
			if read := residentFiles(t) - before; read < 24<<10 {
				t.Fatalf("reading it all took %d kB: nothing is shown", read)
			}
			if wholeFile(tx); residentFiles(t)-before > 8<<10 {
				t.Errorf("%d kB are still there", residentFiles(t)-before)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestARestoreMapsLittle: a node that restores a snapshot holds the state in
// memory, but not the file as well while it reads that through.
func TestARestoreMapsLittle(t *testing.T) {
	r := formed(t)
	const records, size = 8 << 10, 4 << 10 // 32 MiB
	err := r.m.db.Load().Update(func(tx *bolt.Tx) error {
		w := writer{tx, &r.m.mem.meta.Content}
		for i := range records {
			w.put(bucketRequests, binary.BigEndian.AppendUint32(nil, uint32(i)), make([]byte, size))
		}
		return tx.Bucket(bucketMeta).Put(keyMeta, encoded(&r.m.mem.meta))
	})
	if err != nil {
		t.Fatal(err)
	}
	b := persist(t, r.m)
	m := openMachine(t, nil)
	before, most := residentFiles(t), 0
	done := make(chan error)
	go func() { done <- m.Restore(bytes.NewReader(b)) }()
	for {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			if most > 20<<10 {
				t.Errorf("up to %d kB of the file were mapped", most)
			}
			return
		default:
			most = max(most, residentFiles(t)-before)
		}
	}
}
