package client

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/capability"
)

// TestSilentNode: a node that takes a call and says nothing costs a moment, once.
func TestSilentNode(t *testing.T) {
	ca := newPKI(t)
	release := make(chan struct{})
	var asked, ids atomic.Int64
	var first atomic.Value
	silent := ca.server(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		first.Store(r.Header.Get(api.HeaderRequestID))
		select {
		case <-release:
		case <-r.Context().Done():
		}
		writeProblem(w, 503, api.CodeNotLeader, "")
	}, ca.leaf(nil), 0)
	defer close(release)
	well := ca.server(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get(api.HeaderRequestID) == first.Load() {
			ids.Add(1)
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(`{"audience":"corp","generation":2}`))
	}, ca.leaf(nil), 0)
	c := testClient(t, Config{
		Addrs: []string{silent.Listener.Addr().String(), well.Listener.Addr().String()}, CAFingerprint: ca.pin(), Timeout: time.Minute,
	})
	began := time.Now()
	for range 3 {
		if _, err := c.Rekey(t.Context(), api.RekeyRequest{Audience: "corp"}); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(began); took < silence || took > 20*silence {
		t.Errorf("three calls took %v", took)
	}
	if asked.Load() != 1 {
		t.Errorf("the silent node was asked %d times", asked.Load())
	}
	if ids.Load() != 1 {
		t.Error("the two nodes were asked with two request ids")
	}
}

// TestTwoSilentNodes: each costs a moment, whether it is the first that is asked or not.
func TestTwoSilentNodes(t *testing.T) {
	ca := newPKI(t)
	release := make(chan struct{})
	var addrs []string
	for range 2 {
		silent := ca.server(func(w http.ResponseWriter, r *http.Request) {
			select {
			case <-release:
			case <-r.Context().Done():
			}
		}, ca.leaf(nil), 0)
		addrs = append(addrs, silent.Listener.Addr().String())
	}
	defer close(release)
	well := ca.server(answerStatus, ca.leaf(nil), 0)
	c := testClient(t, Config{
		Addrs: append(addrs, well.Listener.Addr().String()), CAFingerprint: ca.pin(), Timeout: time.Minute,
	})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second) // half of what a node may take
	defer cancel()
	if _, err := c.Status(ctx); err != nil {
		t.Errorf("a third node is well: %v", err)
	}
}

// TestSlowNode: where the others cannot answer, the one that was slow still counts.
func TestSlowNode(t *testing.T) {
	ca := newPKI(t)
	var refusals atomic.Int64
	slow := make(chan struct{})
	answer := sync.OnceFunc(func() { close(slow) })
	first := ca.server(func(w http.ResponseWriter, r *http.Request) {
		<-slow
		answerStatus(w, r)
	}, ca.leaf(nil), 0)
	other := ca.server(func(w http.ResponseWriter, r *http.Request) {
		if refusals.Add(1) == 3 {
			answer()
		}
		writeProblem(w, 503, api.CodeNotLeader, "")
	}, ca.leaf(nil), 0)
	defer answer() // a call that fails is an error; the server would wait for ever
	c := testClient(t, Config{
		Addrs: []string{first.Listener.Addr().String(), other.Listener.Addr().String()}, CAFingerprint: ca.pin(), Attempts: 50,
	})
	if _, err := c.Status(t.Context()); err != nil {
		t.Error(err)
	}
	if refusals.Load() < 3 {
		t.Errorf("the other node was asked %d times", refusals.Load())
	}
}

// TestDecisiveAnswerElsewhere: a refusal that no node would take back is not
// waited with for the silent one.
func TestDecisiveAnswerElsewhere(t *testing.T) {
	ca := newPKI(t)
	release := make(chan struct{})
	silent := ca.server(func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-release:
		case <-r.Context().Done():
		}
	}, ca.leaf(nil), 0)
	defer close(release)
	other := ca.server(func(w http.ResponseWriter, _ *http.Request) {
		writeProblem(w, 403, capability.CodeActionDenied, "")
	}, ca.leaf(nil), 0)
	c := testClient(t, Config{
		Addrs: []string{silent.Listener.Addr().String(), other.Listener.Addr().String()}, CAFingerprint: ca.pin(), Timeout: time.Minute,
	})
	if _, err := c.Status(t.Context()); !errors.Is(err, capability.CodeActionDenied) {
		t.Errorf("error %v", err)
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// TestNobodyIsLeftBehind: nodes that are silent are asked again where no other is
// left, and every one of these attempts ends. A bubble does not end before.
func TestNobodyIsLeftBehind(t *testing.T) {
	pin := newPKI(t).pin()
	synctest.Test(t, func(t *testing.T) {
		c := testClient(t, Config{Addrs: []string{"127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"}, CAFingerprint: pin, Timeout: time.Hour})
		var asked [2]atomic.Int64
		transport := roundTripper(func(r *http.Request) (*http.Response, error) {
			if r.URL.Port() == "3" {
				asked[0].Add(1)
				return nil, errors.New("refused")
			}
			asked[1].Add(1)
			<-r.Context().Done()
			return nil, r.Context().Err()
		})
		for i := range c.lanes {
			c.lanes[i].Transport = transport
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := c.Status(ctx); err == nil {
			t.Error("answered by nobody")
		}
		if asked[0].Load() == 0 || asked[1].Load() < 3 {
			t.Errorf("asked %d and %d times", asked[0].Load(), asked[1].Load())
		}
	})
}

// TestMayHaveBeenDone: whoever took a change and did not answer may have made it,
// whatever the nodes that were asked next say; who could not be connected to, or
// was asked to read, has not.
func TestMayHaveBeenDone(t *testing.T) {
	ca := newPKI(t)
	followers := ca.server(func(w http.ResponseWriter, _ *http.Request) {
		writeProblem(w, 503, api.CodeNotLeader, "")
	}, ca.leaf(nil), 0).Listener.Addr().String()
	spent := ca.server(func(w http.ResponseWriter, _ *http.Request) {
		writeProblem(w, 422, capability.CodeBudgetExhausted, "") // which is not tried again
	}, ca.leaf(nil), 0).Listener.Addr().String()
	mute := ca.server(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		panic(http.ErrAbortHandler)
	}, ca.leaf(nil), 0).Listener.Addr().String()
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()
	for name, k := range map[string]struct {
		first, then string
		read        bool
		want        api.Code
	}{
		"took it":                  {mute, followers, false, api.CodeIndeterminate},
		"took it, another refuses": {mute, spent, false, api.CodeIndeterminate},
		"was to read":              {mute, followers, true, api.CodeNotLeader},
		"is not there":             {gone.Addr().String(), spent, false, capability.CodeBudgetExhausted},
		"refuses as well":          {followers, spent, false, capability.CodeBudgetExhausted},
	} {
		t.Run(name, func(t *testing.T) {
			c := testClient(t, Config{Addrs: []string{k.first, k.then}, CAFingerprint: ca.pin(), Attempts: 2})
			c.typical.Store(int64(time.Minute)) // a machine that is busy makes no node silent
			var err error
			if k.read {
				_, err = c.Status(t.Context())
			} else {
				_, err = c.Issue(t.Context(), api.IssueRequest{})
			}
			if !errors.Is(err, k.want) {
				t.Errorf("%v, not %s", err, k.want)
			}
		})
	}
}
