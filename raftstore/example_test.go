package raftstore_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"

	"github.com/writ-dev/writ/raftstore"
)

// counter adds up the lengths of the commands that it gets.
type counter struct {
	applied atomic.Uint64
	sum     uint64 // belongs to the goroutine that calls Apply
}

func (c *counter) Apply(batch []raftstore.Entry) []any {
	results := make([]any, len(batch))
	for i, e := range batch {
		c.sum += uint64(len(e.Command))
		results[i] = c.sum
	}
	c.applied.Store(batch[len(batch)-1].Index)
	return results
}

func (c *counter) AppliedIndex() uint64 { return c.applied.Load() }

func (c *counter) Snapshot() (raftstore.Snapshot, error) {
	return counterSnapshot{c.applied.Load(), c.sum}, nil
}

func (c *counter) Restore(r io.Reader) error {
	var s counterSnapshot
	if err := binary.Read(r, binary.BigEndian, &s); err != nil {
		return err
	}
	c.applied.Store(s.Applied)
	c.sum = s.Sum
	return nil
}

type counterSnapshot struct{ Applied, Sum uint64 }

func (s counterSnapshot) Persist(w io.Writer) error { return binary.Write(w, binary.BigEndian, s) }
func (s counterSnapshot) Release()                  {}

// Example runs a node twice; the second time it knows what the first has done.
func Example() {
	dir, err := os.MkdirTemp("", "raftstore")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	for range 2 {
		store, err := raftstore.Open(raftstore.Config{Dir: dir, NodeID: "one", Bootstrap: true}, &counter{})
		if err != nil {
			fmt.Println(err)
			return
		}
		if _, err := store.WaitLeader(ctx); err != nil {
			fmt.Println(err)
			return
		}
		result, err := store.Propose(ctx, []byte("hello"))
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(result.Value)
		if err := store.Close(); err != nil {
			fmt.Println(err)
			return
		}
	}
	// Output:
	// 5
	// 10
}
