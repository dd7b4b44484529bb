package authority

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/writ-dev/writ/authority/api"
)

// TestLanes: revocations, then leases, go before issues, however long these have
// waited; and only issues are shed where there is no room.
func TestLanes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &proposer{stop: make(chan struct{})}
		for i := range p.queues {
			p.queues[i] = make(chan *change, 3)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer synctest.Wait()
		defer cancel()
		ask := func(l lane) {
			go func() { _, _, _ = p.propose(ctx, l, new(change)) }()
			synctest.Wait()
		}
		for range 3 {
			for _, l := range []lane{laneIssue, laneLease, laneRevoke} {
				ask(l)
			}
		}
		want := []lane{laneRevoke, laneRevoke, laneRevoke, laneLease, laneLease, laneLease, laneIssue, laneIssue, laneIssue}
		for i, l := range want {
			take := p.waiting
			if i%2 == 0 {
				take = p.next
			}
			if c := take(); c == nil || c.lane != l {
				t.Fatalf("the %d-th is %+v, not of lane %d", i+1, c, l)
			}
		}
		if c := p.waiting(); c != nil {
			t.Fatalf("one more: %+v", c)
		}

		for range 3 {
			for _, l := range []lane{laneIssue, laneLease, laneRevoke} {
				ask(l)
			}
		}
		_, _, err := p.propose(ctx, laneIssue, new(change))
		wantCode(t, err, api.CodeOverloaded)
		for _, l := range []lane{laneLease, laneRevoke} {
			one := new(change)
			ended := make(chan error, 1)
			go func() {
				_, _, err := p.propose(ctx, l, one)
				ended <- err
			}()
			synctest.Wait()
			select {
			case err := <-ended:
				t.Fatalf("lane %d is full, and one more did not wait: %v", l, err)
			default:
			}
			for range 3 { // what was ahead of it
				(<-p.queues[l]).finish(outcome{})
				synctest.Wait()
			}
			if c := <-p.queues[l]; c != one {
				t.Errorf("lane %d: what waited for room is not next", l)
			}
			one.finish(outcome{})
			if err := <-ended; err != nil {
				t.Errorf("lane %d: %v", l, err)
			}
		}
	})
}

// TestIssuesHoldUpNothingElse: with as many issues waiting as there is room for, a
// lease, a return and a revocation find room of their own, and are made first.
func TestIssuesHoldUpNothingElse(t *testing.T) {
	a, root := openNode(t, testConfig(t))
	svc := joined(t, a, root, &api.ServiceRequest{Name: "files", Audiences: []string{"corp"}})
	issued, err := a.Issue(t.Context(), Call{Caller: root}, issueRequest("max-calls 9"))
	if err != nil {
		t.Fatal(err)
	}
	held, err := a.Lease(t.Context(), Call{Caller: svc}, leaseRequest(parse(t, issued.Token), 1))
	if err != nil {
		t.Fatal(err)
	}
	// Nothing is proposed before there is somebody in every lane.
	free := make(chan struct{})
	open := sync.OnceFunc(func() { close(free) })
	t.Cleanup(open)
	a.proposer.may = func(time.Time) error { <-free; return nil }
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	shed, done := make(chan struct{}), make(chan error, 3)
	for range laneSize + maxBatch {
		go func() {
			if _, err := a.Issue(ctx, Call{Caller: root}, issueRequest()); errors.Is(err, api.CodeOverloaded) {
				select {
				case shed <- struct{}{}:
				case <-ctx.Done():
				}
			}
		}()
	}
	<-shed
	go func() {
		_, err := a.Lease(ctx, Call{Caller: svc}, leaseRequest(parse(t, issued.Token), 1))
		done <- err
	}()
	go func() {
		_, err := a.Return(ctx, Call{Caller: svc}, held.Lease, &api.ReturnRequest{Unspent: 1})
		done <- err
	}()
	go func() {
		_, err := a.Revoke(ctx, Call{Caller: root}, &api.RevokeRequest{Kind: api.RevokeSubject, Subject: "bob", Reason: "left"})
		done <- err
	}()
	for m := a.Metrics(); m.QueueLease != 2 || m.QueueRevoke != 1; m = a.Metrics() {
		select {
		case err := <-done:
			t.Fatalf("refused while issues wait: %v", err)
		case <-time.After(time.Millisecond):
		}
	}
	open()
	for range 3 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}
