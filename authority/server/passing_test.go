package server

import (
	"testing"

	"github.com/writ-dev/writ/raftstore"
)

// FillPassing has a node look as if it had passed on as many issues as it may.
func (s *Server) FillPassing() (release func()) {
	way := &s.passing[laneIssues]
	for range cap(way.room) {
		way.room <- struct{}{}
	}
	return func() {
		for range cap(way.room) {
			way.leave()
		}
	}
}

// TestRoomAtTheLeader: what a node passes on at a time, of all lanes together, is less
// than the leader takes of it, and no lane is without bound.
func TestRoomAtTheLeader(t *testing.T) {
	sum := 0
	for _, n := range passingAtATime {
		sum += n
	}
	if sum >= raftstore.MaxCalls {
		t.Errorf("%d calls are passed on at a time, of %d that a peer takes", sum, raftstore.MaxCalls)
	}
	passing := newPassing()
	for _, rt := range routes() {
		if rt.handle != nil && !rt.local() && cap(passing[rt.lane].room) == 0 {
			t.Errorf("%s is passed on without bound", rt.id)
		}
	}
}
