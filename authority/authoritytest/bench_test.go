package authoritytest_test

import (
	"sync"
	"sync/atomic"
	"testing"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/authoritytest"
)

// BenchmarkClusterIssue is 64 clients of the leader, each over a connection of its
// own, three nodes and all in one process: what to profile. make bench-cluster
// measures real nodes.
func BenchmarkClusterIssue(b *testing.B) {
	c := authoritytest.StartCluster(b, 3)
	leader, err := c.Leader(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	req := api.IssueRequest{
		Audience: "corp", Subject: "agent-42", Owner: "owner@corp.example", Purpose: "bench", TTLSeconds: 900,
		Caveats: []string{"action read", "resource files/**"},
	}
	var next atomic.Int64
	var wg sync.WaitGroup
	b.ReportAllocs()
	b.ResetTimer()
	for range 64 {
		wg.Go(func() {
			root := leader.Root()
			defer root.Close()
			for next.Add(1) <= int64(b.N) {
				if _, err := root.Issue(b.Context(), req); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "tokens/s")
	m := leader.Authority.Metrics()
	b.ReportMetric(float64(m.Proposals)/float64(m.ProposedEntries), "changes/entry")
}
