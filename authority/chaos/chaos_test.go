package chaos

import (
	"encoding/json"
	"flag"
	"fmt"
	"testing"
	"testing/cryptotest"
	"testing/synctest"
	"time"

	"github.com/writ-dev/writ/authority/chaos/check"
)

var (
	firstSeed = flag.Uint64("chaos.seed", 1, "the first seed")
	seeds     = flag.Uint64("chaos.seeds", 1, "how many seeds")
	perRun    = flag.Int("chaos.faults", 2, "how many faults in each")
)

// result is what a run of one seed tells whoever started it, as a line of JSON
// behind resultMark.
type result struct {
	Seed   uint64
	Trace  string // SHA-256 of all that happened, and of every byte sent
	Report *check.Report
}

const resultMark = "chaos-result: "

// sleep lets time of the bubble pass. Nothing calls it outside one.
func sleep(d time.Duration) { time.Sleep(d) }

// simulate runs one seed in a bubble of its own.
func simulate(t *testing.T, seed uint64) {
	t.Helper()
	cryptotest.SetGlobalRandom(t, seed)
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t, seed, *perRun, dir)
		report, trace, err := s.run()
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if err := report.Err(); err != nil {
			t.Errorf("seed %d: %v", seed, err)
		}
		line, err := json.Marshal(result{seed, trace, report})
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("seed %d: %v", seed, report)
		fmt.Printf("%s%s\n", resultMark, line)
	})
}

// TestSim runs the campaign once for each seed, in this process.
func TestSim(t *testing.T) {
	for seed := *firstSeed; seed < *firstSeed+*seeds; seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { simulate(t, seed) })
	}
}
