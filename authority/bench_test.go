package authority

import (
	"context"
	"sync/atomic"
	"testing"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/capability"
)

// The benchmarks run 64 callers at once: on a node the fsync is shared.
const callers = 64

func BenchmarkIssue(b *testing.B) {
	a, root := openNode(b, testConfig(b))
	b.SetParallelism(callers)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := a.Issue(context.Background(), Call{Caller: root}, issueRequest("action read", "resource files/**", "max-calls 3")); err != nil {
				b.Error(err)
				return
			}
		}
	})
	m := a.Metrics()
	b.ReportMetric(float64(m.Proposals)/float64(m.ProposedEntries), "changes/entry")
}

// BenchmarkIssueAlone is one caller, who waits for his own fsync.
func BenchmarkIssueAlone(b *testing.B) {
	a, root := openNode(b, testConfig(b))
	for b.Loop() {
		if _, err := a.Issue(context.Background(), Call{Caller: root}, issueRequest("action read")); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRevoke(b *testing.B) {
	a, root := openNode(b, testConfig(b))
	var n atomic.Int64
	b.SetParallelism(callers)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			var r [10]byte
			for i, v := 0, n.Add(1); i < 8; i++ {
				r[2+i] = byte(v >> (8 * i))
			}
			id := capability.NewTokenID(a.now(), r)
			if _, err := a.Revoke(context.Background(), Call{Caller: root}, &api.RevokeRequest{Kind: api.RevokeToken, Token: id.String(), Reason: "bench"}); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

func BenchmarkLease(b *testing.B) {
	a, root := openNode(b, testConfig(b))
	issued, err := a.Issue(context.Background(), Call{Caller: root}, issueRequest("max-calls 1000000000000"))
	if err != nil {
		b.Fatal(err)
	}
	macaroon := parse(b, issued.Token).Bytes()
	b.SetParallelism(callers)
	b.RunParallel(func(pb *testing.PB) {
		req := &api.LeaseRequest{Macaroon: macaroon, Want: 8}
		for pb.Next() {
			l, err := a.Lease(context.Background(), Call{Caller: root}, req)
			if err != nil {
				b.Error(err)
				return
			}
			req.Lease, req.Unspent = l.Lease, 0
		}
	})
}
