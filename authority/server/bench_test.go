package server_test

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/authoritytest"
)

// BenchmarkIssue issues tokens over HTTPS: one client, and 64 at a time sharing
// entries of the log and its syncs.
func BenchmarkIssue(b *testing.B) {
	for _, clients := range []int{1, 64} {
		b.Run(map[int]string{1: "clients=1", 64: "clients=64"}[clients], func(b *testing.B) {
			n := authoritytest.Start(b)
			root := n.Root()
			defer root.Close()
			req := api.IssueRequest{Audience: "corp", Subject: "agent", Owner: "o", Purpose: "bench", Caveats: []string{"action read", "resource files/**"}}
			if _, err := root.Issue(b.Context(), req); err != nil {
				b.Fatal(err)
			}
			b.ResetTimer()
			var next atomic.Int64
			var wg sync.WaitGroup
			start := time.Now()
			for range clients {
				wg.Go(func() {
					for next.Add(1) <= int64(b.N) {
						if _, err := root.Issue(b.Context(), req); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			b.ReportMetric(float64(b.N)/time.Since(start).Seconds(), "tokens/s")
		})
	}
}

// BenchmarkHandler is what a call costs between net/http and the authority: of an
// endpoint that writes nothing, without a network.
func BenchmarkHandler(b *testing.B) {
	n := authoritytest.Start(b)
	body, err := json.Marshal(api.RegisteredRequest{Audience: "corp", Token: n.Mint(b, "corp", "agent").ID})
	if err != nil {
		b.Fatal(err)
	}
	h := n.Server.Handler()
	req := httptest.NewRequestWithContext(b.Context(), http.MethodPost, "https://"+n.Addr+"/v1/registered", nil)
	req.Header.Set("Authorization", "Bearer "+n.RootToken)
	req.Header.Set("Content-Type", "application/json")
	req.ContentLength = int64(len(body))
	b.ReportAllocs()
	for b.Loop() {
		r, w := req.Clone(b.Context()), httptest.NewRecorder()
		r.Body = io.NopCloser(bytes.NewReader(body))
		if h.ServeHTTP(w, r); w.Code != http.StatusOK {
			b.Fatalf("%d %s", w.Code, w.Body)
		}
	}
}
