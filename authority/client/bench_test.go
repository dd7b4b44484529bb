package client

import (
	"net/http"
	"strconv"
	"testing"

	"github.com/writ-dev/writ/authority/api"
)

// BenchmarkCall is a change over HTTPS to a node that does nothing, one at a time.
func BenchmarkCall(b *testing.B) {
	ca := newPKI(b)
	node := ca.server(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(`{"audience":"corp","generation":2}`))
	}, ca.leaf(nil), 0)
	for _, nodes := range []int{1, 3} {
		b.Run("nodes="+strconv.Itoa(nodes), func(b *testing.B) {
			cfg := Config{CAFingerprint: ca.pin()}
			for range nodes {
				cfg.Addrs = append(cfg.Addrs, node.Listener.Addr().String())
			}
			c := testClient(b, cfg)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := c.Rekey(b.Context(), api.RekeyRequest{Audience: "corp", Reason: "bench"}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
