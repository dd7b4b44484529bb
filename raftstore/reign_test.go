package raftstore

import (
	"context"
	"errors"
	"testing"
	"time"
)

// TestCallToALeaderThatIsNoMore: a call that waits for a leader is given up once
// this node follows it no longer, and not when its own time is over.
func TestCallToALeaderThatIsNoMore(t *testing.T) {
	m := newMesh(t, 3, nil)
	leader := m.leader()
	var follower *meshNode
	for _, n := range m.nodes {
		if n != leader {
			follower = n
		}
	}
	const method = FirstMethod + 7
	asked := make(chan struct{})
	leader.trans.Handle(method, func(ctx context.Context, _ string, _ []byte) ([]byte, error) {
		close(asked)
		<-ctx.Done() // as silent as a node in the dark
		return nil, ctx.Err()
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	answered := make(chan error, 1)
	go func() {
		_, err := follower.store.CallLeader(ctx, method, nil)
		answered <- err
	}()
	<-asked
	if err := leader.store.TransferLeadership(testContext(t), ""); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-answered:
		if !errors.Is(err, ErrIndeterminate) || !errors.Is(err, errDeposed) {
			t.Errorf("error %v", err)
		}
	case <-testContext(t).Done():
		t.Error("still waiting for a leader that is no more")
	}
}
