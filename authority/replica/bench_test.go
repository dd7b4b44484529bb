package replica_test

import (
	"errors"
	"testing"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/authoritytest"
	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/capability"
)

// BenchmarkRevocation measures from asking for a revocation to its refusal at a
// replica, and from its acknowledgement.
func BenchmarkRevocation(b *testing.B) {
	n := authoritytest.Start(b)
	r := n.Replica(b, "files", "corp")
	v := verifier(b, r)
	root := n.Root()
	defer root.Close()
	var after time.Duration
	for b.Loop() {
		b.StopTimer()
		text := mint(b, root)
		if err := allow(b.Context(), v, text, "read"); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		if _, err := root.RevokeSelf(b.Context(), api.SelfRevokeRequest{Token: text, Reason: "bench"}); err != nil {
			b.Fatal(err)
		}
		acknowledged := time.Now()
		for !errors.Is(allow(b.Context(), v, text, "read"), capability.CodeRevoked) {
			// spin: the wait is what is measured
		}
		after += time.Since(acknowledged)
	}
	b.ReportMetric(float64(after.Microseconds())/float64(b.N), "µs-after-ack")
}

func mint(b *testing.B, c *client.Client) string {
	got, err := c.Issue(b.Context(), api.IssueRequest{Audience: "corp", Subject: "agent", Owner: "o", Purpose: "bench"})
	if err != nil {
		b.Fatal(err)
	}
	return got.Token
}
