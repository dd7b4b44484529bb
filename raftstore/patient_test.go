package raftstore

import (
	"errors"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/hashicorp/raft"
)

// fullPipeline is a pipeline whose reader has gone: an append waits until it is
// closed, as raft.NetworkTransport's does.
type fullPipeline struct {
	once   sync.Once
	closed chan struct{}
}

func (f *fullPipeline) AppendEntries(*raft.AppendEntriesRequest, *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	<-f.closed
	return nil, raft.ErrPipelineShutdown
}
func (f *fullPipeline) Consumer() <-chan raft.AppendFuture { return nil }
func (f *fullPipeline) Close() error {
	f.once.Do(func() { close(f.closed) })
	return nil
}

// TestFullPipelineLetsGo: the library's replication never waits for ever in a
// pipeline that nobody reads any more.
func TestFullPipelineLetsGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		full := &fullPipeline{closed: make(chan struct{})}
		if _, err := (pipeline{full, &patient{}}).AppendEntries(nil, nil); !errors.Is(err, raft.ErrPipelineShutdown) {
			t.Fatalf("got %v, want the pipeline closed", err)
		}
	})
}
