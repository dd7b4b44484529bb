package state

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/raftstore"
)

// BenchmarkApply applies entries of 64 issues each, as a loaded proposer makes
// them, and reports what one issue costs in time and in the index's memory. It
// is also what a start costs for each change that it replays.
func BenchmarkApply(b *testing.B) {
	r := formed(b)
	const size = 64
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	issued := 0
	for b.Loop() {
		b.StopTimer()
		r.stamp++
		commands := make([][]byte, size)
		for i := range commands {
			rec := r.record(fmt.Sprint(r.stamp, i), "corp", "alice")
			rec.ID = tokenID(r.stamp, fmt.Sprint(i))
			rec.NotAfter = r.stamp + 300_000
			rec.Unsigned = make([]byte, 200)
			h := Header{Kind: KindIssue, Stamp: r.stamp, Actor: system, Request: tokenID(r.stamp, fmt.Sprint("request", i))}
			commands[i] = encode(b, h, &Issue{Record: rec, Caveats: []string{"action read", "resource files/**"}})
		}
		e, err := EncodeEntry(commands...)
		if err != nil {
			b.Fatal(err)
		}
		r.index++
		r.trail.records = nil
		b.StartTimer()
		for _, res := range r.m.Apply([]raftstore.Entry{{Index: r.index, Term: 1, Command: e}})[0].([]Result) {
			if res.Err != nil {
				b.Fatal(res.Err)
			}
		}
		issued += size
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(issued), "ns/issue")
	b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/float64(issued), "B/token")
}

// BenchmarkLookup is what the feed's recheck and a registered-token question cost.
func BenchmarkLookup(b *testing.B) {
	r := formed(b)
	id := r.issue("a", "corp", "alice")
	branches := []capability.BranchID{bits("x"), bits("y")}
	for b.Loop() {
		if r.m.IsRevoked(id, branches) {
			b.Fatal("revoked")
		}
	}
}
