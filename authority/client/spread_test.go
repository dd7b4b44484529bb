package client

import (
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/writ-dev/writ/authority/api"
)

// TestShuffle: clients with one list prefer its nodes in that order, or, shuffled,
// each in an order of its own, without losing one.
func TestShuffle(t *testing.T) {
	addrs := []string{"a:1", "b:1", "c:1", "d:1"}
	want := []string{"https://a:1", "https://b:1", "https://c:1", "https://d:1"}
	first := make(map[string]int)
	for range 200 {
		plain := testClient(t, Config{Addrs: addrs, CAFingerprint: newPin(1)})
		if got := plain.Addrs(); !slices.Equal(got, want) {
			t.Fatalf("not shuffled: %v", got)
		}
		got := testClient(t, Config{Addrs: addrs, CAFingerprint: newPin(1), Shuffle: true}).Addrs()
		first[got[0]]++
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Fatalf("shuffled: %v", got)
		}
	}
	for _, base := range want { // 50 of 200; fewer than 10 come once in 10^15 runs
		if first[base] < 10 {
			t.Errorf("%s is the first of %d in 200", base, first[base])
		}
	}
}

func newPin(b byte) string { return Fingerprint{b}.String() }

// TestResumption: a feed that is opened again costs its node no signature, and a
// call no more than that.
func TestResumption(t *testing.T) {
	p := newPKI(t)
	var mu sync.Mutex
	resumed := make(map[string][]bool) // by path
	s := p.server(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		resumed[r.URL.Path] = append(resumed[r.URL.Path], r.TLS.DidResume)
		mu.Unlock()
		if r.URL.Path == "/v1/feed" {
			_ = http.NewResponseController(w).EnableFullDuplex()
			w.Header().Set("Content-Type", feedType)
			w.Header().Set("Connection", "close")
			_ = http.NewResponseController(w).Flush()
			_ = http.NewResponseController(w).SetReadDeadline(time.Unix(1, 0))
			return
		}
		answerStatus(w, r)
	}, p.leaf(nil), 0)
	c := testClient(t, Config{Addrs: []string{s.Listener.Addr().String()}, CAFingerprint: p.pin()})
	for range 2 {
		f, err := c.Feed(t.Context(), FeedRequest{Audiences: []string{"corp"}, From: api.Cursor{Incarnation: 1, Index: 1}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Next(); err == nil {
			t.Fatal("the feed goes on")
		}
		f.Close()
		if _, err := c.Status(t.Context()); err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	for _, path := range []string{"/v1/feed", "/v1/status"} {
		if got := resumed[path]; !slices.Equal(got, []bool{false, true}) {
			t.Errorf("%s: resumed %v", path, got)
		}
	}
}
