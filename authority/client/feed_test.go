package client

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/writ-dev/writ/caveats/pop"
)

// TestFeedIsSentAgain: with the nonce that a node demands of its proof; its
// pings go the second way.
func TestFeedIsSentAgain(t *testing.T) {
	ca := newPKI(t)
	var asked atomic.Int32
	s := ca.server(func(w http.ResponseWriter, r *http.Request) {
		c := http.NewResponseController(w)
		if err := c.EnableFullDuplex(); err != nil {
			t.Error(err)
		}
		defer func() { _ = c.SetReadDeadline(time.Unix(1, 0)) }()
		w.Header().Set("Connection", "close")
		if asked.Add(1) == 1 {
			w.Header().Set(pop.NonceHeader, "n-1")
			w.Header().Set("WWW-Authenticate", `DPoP error="use_dpop_nonce"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		w.WriteHeader(http.StatusOK)
		_ = c.Flush()
		lines := bufio.NewReader(r.Body)
		for {
			line, err := lines.ReadString('\n')
			if err != nil {
				return
			}
			fmt.Fprintf(w, "{\"at\":{\"incarnation\":1,\"index\":1},\"pong\":%s}\n", line[:len(line)-1])
			_ = c.Flush()
		}
	}, ca.leaf(nil), 0)
	key, err := pop.GenerateKey(pop.Ed25519)
	if err != nil {
		t.Fatal(err)
	}
	c := testClient(t, Config{Addrs: []string{s.Listener.Addr().String()}, CAFingerprint: ca.pin(), Prover: key})
	f, err := c.Feed(t.Context(), FeedRequest{Audiences: []string{"corp"}})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, nonce := range []uint64{42, 1<<64 - 1} {
		if err := f.Ping(nonce); err != nil {
			t.Fatal(err)
		}
		if e, err := f.Next(); err != nil || e.Pong == nil || e.Pong.Nonce != nonce {
			t.Fatalf("%+v, %v", e, err)
		}
	}
	if n := asked.Load(); n != 2 {
		t.Errorf("asked %d times", n)
	}
}

// TestPingEndsWithItsFeed: one that waits for a node that takes nothing.
func TestPingEndsWithItsFeed(t *testing.T) {
	ca := newPKI(t)
	over := make(chan struct{})
	s := ca.server(func(w http.ResponseWriter, _ *http.Request) {
		c := http.NewResponseController(w)
		_ = c.EnableFullDuplex()
		defer func() { _ = c.SetReadDeadline(time.Unix(1, 0)) }()
		w.WriteHeader(http.StatusOK)
		_ = c.Flush()
		<-over
	}, ca.leaf(nil), 0)
	t.Cleanup(func() { close(over) })
	for name, end := range map[string]func(*Feed, context.CancelFunc){
		"Close":   func(f *Feed, _ context.CancelFunc) { f.Close() },
		"context": func(_ *Feed, cancel context.CancelFunc) { cancel() },
	} {
		t.Run(name, func(t *testing.T) {
			c := testClient(t, Config{Addrs: []string{s.Listener.Addr().String()}, CAFingerprint: ca.pin()})
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			f, err := c.Feed(ctx, FeedRequest{Audiences: []string{"corp"}})
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				for f.Ping(1) == nil {
				}
			}()
			end(f, cancel)
			<-ended
		})
	}
}
