package authoritytest_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/writ-dev/writ/authority"
	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/authoritytest"
	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/capability"
)

// record is what one worker has been told.
type record struct {
	mu     sync.Mutex
	issued map[string]capability.TokenID // by subject, one for each request
	gaps   []time.Duration               // between two acknowledgements
	failed []error
}

// load issues tokens from several workers until ctx ends, each subject once.
func load(ctx context.Context, c *authoritytest.Cluster, workers int) (*record, func()) {
	r := &record{issued: make(map[string]capability.TokenID)}
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			root := c.Root()
			defer root.Close()
			last := time.Now()
			for i := 0; ctx.Err() == nil; i++ {
				subject := fmt.Sprintf("agent-%d-%d", w, i)
				got, err := root.Issue(ctx, api.IssueRequest{Audience: "corp", Subject: subject, Owner: "o", Purpose: "p"})
				r.mu.Lock()
				switch {
				case err == nil:
					r.issued[subject] = got.ID
					r.gaps = append(r.gaps, time.Since(last))
				case ctx.Err() == nil:
					r.failed = append(r.failed, err)
				}
				r.mu.Unlock()
				last = time.Now()
			}
		})
	}
	return r, wg.Wait
}

// count waits until n more have been acknowledged.
func (r *record) more(ctx context.Context, n int) {
	r.mu.Lock()
	at := len(r.issued)
	r.mu.Unlock()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		r.mu.Lock()
		now := len(r.issued)
		r.mu.Unlock()
		if now >= at+n {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// check holds what was acknowledged against what every node has: nothing lost,
// nothing made twice.
func (r *record) check(t *testing.T, c *authoritytest.Cluster) {
	t.Helper()
	for _, n := range c.Running() {
		root := n.Root()
		defer root.Close()
		found := make(map[string][]capability.TokenID)
		for cursor := ""; ; {
			page, err := root.Tokens(t.Context(), client.TokenQuery{Audience: "corp", Cursor: cursor, Limit: 500})
			if err != nil {
				t.Fatal(err)
			}
			for _, info := range page.Tokens {
				found[info.Subject] = append(found[info.Subject], info.ID)
			}
			if cursor = page.Next; cursor == "" {
				break
			}
		}
		lost, doubled := 0, 0
		for subject, id := range r.issued {
			if !slices.Contains(found[subject], id) {
				lost++
			}
		}
		for _, ids := range found {
			if len(ids) > 1 {
				doubled++
			}
		}
		if lost > 0 || doubled > 0 {
			t.Errorf("at %s %d of %d were lost, and %d made twice", n.Name, lost, len(r.issued), doubled)
		}
	}
}

func (r *record) longest() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.gaps) == 0 {
		return 0
	}
	return slices.Max(r.gaps)
}

// TestFailoverUnderLoad takes leaders away under load, in every way that one
// process can: nothing acknowledged is lost, nothing is made twice, and no call
// fails, since the client goes on to another node with the same request id.
func TestFailoverUnderLoad(t *testing.T) {
	c := authoritytest.StartCluster(t, 3)
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	r, wait := load(ctx, c, 4)
	for _, how := range []string{"kill", "isolate", "transfer"} {
		r.more(ctx, 50)
		leader, err := c.Leader(ctx)
		if err != nil {
			t.Fatal(err)
		}
		switch how {
		case "kill":
			err = leader.Kill()
			r.more(ctx, 50)
			if err == nil {
				err = leader.Start(ctx)
			}
		case "isolate":
			c.Isolate(leader.Name)
			r.more(ctx, 50)
			c.Heal()
		case "transfer":
			root := c.Root()
			defer root.Close()
			followers, ferr := c.Followers(ctx)
			if ferr != nil {
				t.Fatal(ferr)
			}
			_, err = root.LeadNode(ctx, followers[0].Name)
		}
		if err != nil {
			t.Fatalf("%s: %v", how, err)
		}
		if err := c.WaitReady(ctx); err != nil {
			t.Fatalf("after %s: %v", how, err)
		}
	}
	r.more(ctx, 50)
	stop()
	wait()
	for _, err := range r.failed {
		t.Errorf("a call failed: %v", err)
	}
	if err := c.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	// A follower hears a moment later that what it has was committed.
	if err := c.WaitApplied(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.check(t, c)
	t.Logf("%d tokens, longest wait of a client %v", len(r.issued), r.longest())
}

// TestCallOutlivesItsLeader kills the leader while it works on a call that a follower
// passed on to it. With a request id the next leader is asked, which is harmless;
// without one nobody is, since the change may have been made.
func TestCallOutlivesItsLeader(t *testing.T) {
	for _, id := range []string{"a request id", ""} {
		c := authoritytest.StartCluster(t, 3, authoritytest.Options{Bound: 20 * time.Second})
		leader, err := c.Leader(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		followers, err := c.Followers(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		begun := make(chan struct{})
		leader.Authority.HandleForwarded(func(ctx context.Context, _ *authority.Forwarded) *authority.Answer {
			close(begun)
			<-ctx.Done()
			return new(authority.Answer)
		})
		var again atomic.Int64
		followers[1].Authority.HandleForwarded(func(context.Context, *authority.Forwarded) *authority.Answer {
			again.Add(1)
			return new(authority.Answer)
		})
		call := &authority.Forwarded{Header: make(map[string][]string)}
		if id != "" {
			call.Header[http.CanonicalHeaderKey(api.HeaderRequestID)] = []string{id}
		}
		asked := followers[0].Authority
		type outcome struct {
			answer *authority.Answer
			err    error
		}
		done := make(chan outcome, 1)
		go func() {
			answer, err := asked.Forward(t.Context(), call)
			done <- outcome{answer, err}
		}()
		<-begun
		if err := leader.Kill(); err != nil {
			t.Fatal(err)
		}
		got := <-done
		switch {
		case id == "":
			if !errors.Is(got.err, api.CodeIndeterminate) || again.Load() != 0 {
				t.Errorf("without a request id: %v, and asked again %d times", got.err, again.Load())
			}
		case got.err != nil:
			t.Errorf("with a request id: %v", got.err)
		case got.answer == nil != asked.Leads(), got.answer != nil && again.Load() != 1:
			t.Errorf("with a request id: %+v, asked again %d times; it leads itself: %v", got.answer, again.Load(), asked.Leads())
		}
	}
}
