package raftstore

import "github.com/hashicorp/raft"

// Faults stands between a node and its disk, so that a fault campaign can make
// the disk slow, hang, fail or fill up. raftstoretest has one.
type Faults interface {
	// Write makes one durable write, by calling write, or does not, and says
	// what came of it. It is called concurrently.
	Write(write func() error) error
}

// unreliableLogs is a log whose writes go through Faults.
type unreliableLogs struct {
	logStore
	faults Faults
}

func (f unreliableLogs) write(fn func() error) error { return diskFull(f.faults.Write(fn)) }

func (f unreliableLogs) StoreLogs(logs []*raft.Log) error {
	return f.write(func() error { return f.logStore.StoreLogs(logs) })
}

func (f unreliableLogs) DeleteRange(lo, hi uint64) error {
	return f.write(func() error { return f.logStore.DeleteRange(lo, hi) })
}

// unreliableStable is a stable store whose writes go through Faults.
type unreliableStable struct {
	stableStore
	faults Faults
}

func (f unreliableStable) Set(key, val []byte) error {
	return diskFull(f.faults.Write(func() error { return f.stableStore.Set(key, val) }))
}

func (f unreliableStable) SetUint64(key []byte, val uint64) error {
	return diskFull(f.faults.Write(func() error { return f.stableStore.SetUint64(key, val) }))
}
