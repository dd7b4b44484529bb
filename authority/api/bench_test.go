package api

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/writ-dev/writ/capability"
)

// BenchmarkDecode reads what a caller sends for a token and what it gets.
func BenchmarkDecode(b *testing.B) {
	b.Run("IssueRequest", func(b *testing.B) {
		benchmarkDecode(b, IssueRequest{
			Audience: "corp", Subject: "spiffe://corp.example/agents/build-7", Owner: "platform@corp.example", Purpose: "nightly build",
			Agent: &Agent{Name: "builder", Version: "1.4.2", Host: "build-7"}, TTLSeconds: 300,
			Caveats: []string{"action read", "resource files/reports/**", "max-calls 100"},
		})
	})
	b.Run("TokenResponse", func(b *testing.B) {
		benchmarkDecode(b, TokenResponse{
			Token: capability.TextPrefix + strings.Repeat("A", 400), ID: capability.TokenID{1, 2, 3}, Branch: capability.BranchID{4, 5, 6},
			NotAfter: time.Date(2026, 1, 2, 3, 4, 5, 678e6, time.UTC), Index: 123456,
		})
	})
}

func benchmarkDecode[T any](b *testing.B, v T) {
	data, err := json.Marshal(v)
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		var got T
		if err := Decode(data, &got); err != nil {
			b.Fatal(err)
		}
	}
}
