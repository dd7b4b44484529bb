//go:build chaos

package chaos

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// fixedRuntime are changes to the Go runtime, in copies that only this campaign is
// built with, that leave nothing to chance: what is random in it (the order of
// select and of maps, math/rand, addresses) comes from one sequence that always
// begins the same, and the thread that watches over the others takes no processor
// away because time has passed. With one processor and no garbage collection, a
// seed then reproduces a run to the last goroutine, most of the time: something that
// depends on how busy the machine is has not been found yet. The schedule of the
// faults and what each actor draws are the same in any case; from where a run parts
// from another, when they happen, and to whom, may differ.
var fixedRuntime = []struct{ file, old, fixed string }{
	{"runtime/rand.go", "func rand() uint64 {\n", "func rand() uint64 {\n\tif chaosOn { return chaosRand() }\n"},
	{"runtime/rand.go", "func cheaprand() uint32 {\n", "func cheaprand() uint32 {\n\tif chaosOn { return uint32(chaosRand()) }\n"},
	{"runtime/rand.go", "seed[i%len(seed)] ^= c", "seed[i%len(seed)] ^= c & 1 >> 1"},
	// Whether a mutex is handed over depends on how long somebody has waited.
	{"internal/sync/mutex.go", "runtime_nanotime()-waitStartTime > starvationThresholdNs", "runtime_nanotime()-waitStartTime > 1<<62"},
	{"runtime/proc.go", "func retake(now int64) uint32 {\n", "func retake(now int64) uint32 {\n\tif now != 0 { return 0 }\n"},
}

// fixedRandom goes into runtime/rand.go: wyrand, as there, but one for all.
var fixedRandom = [2]string{"// globalRand holds the global random state.\n", `const chaosOn = true

var chaosState uint64

//go:nosplit
func chaosRand() uint64 {
	chaosState += 0xa0761d6478bd642f
	hi, lo := math.Mul64(chaosState, chaosState^0xe7037ed1a0b428db)
	return hi ^ lo
}

// globalRand holds the global random state.
`}

// reproducible has a process leave the rest alone that would depend on real time.
var reproducible = []string{"GOGC=off", "GODEBUG=asyncpreemptoff=1"}

// fixed builds the campaign on the fixed runtime.
func fixed(t *testing.T) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	files := make(map[string]string)
	for _, p := range fixedRuntime {
		file := filepath.Join(strings.TrimSpace(string(out)), "src", filepath.FromSlash(p.file))
		if err := patch(files, file, fixedRandom, [2]string{p.old, p.fixed}); err != nil {
			t.Fatal(err)
		}
	}
	if err := plant(files); err != nil {
		t.Fatal(err)
	}
	path, err := build(t.Context(), t.TempDir(), files)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// repeatedSeeds is how many seeds are run once more, to see whether they go the same way.
const repeatedSeeds = 4

// TestCampaign runs the seeds that it was told, two at a time, and a few of them once
// more: a seed reproduces the whole run.
func TestCampaign(t *testing.T) {
	path := fixed(t)
	began := time.Now()
	var mu sync.Mutex
	met := make(map[string]int)
	var operations, accepted, late, budgets int
	traces := make(map[uint64]string)
	t.Run("seeds", func(t *testing.T) {
		for seed := *firstSeed; seed < *firstSeed+*seeds; seed++ {
			t.Run(fmt.Sprint(seed), func(t *testing.T) {
				t.Parallel()
				r, err := child(t.Context(), path, seed, faultsPerRun, reproducible...)
				if err != nil {
					t.Fatalf("%v: %v", err, r)
				}
				mu.Lock()
				defer mu.Unlock()
				for kind, n := range r.Report.Faults {
					met[kind] += n
				}
				operations += r.Report.Operations
				accepted += r.Report.Accepted
				late += r.Report.Late
				budgets += r.Report.Budgets
				traces[seed] = r.Trace
			})
		}
	})
	t.Logf("%d seeds in %v: %d operations; %d verdicts accepted, %d on the revoked past the bound; %d budgets; faults %v",
		*seeds, time.Since(began).Round(time.Second), operations, accepted, late, budgets, met)
	if *seeds*faultsPerRun >= uint64(len(faults)) {
		for _, f := range faults {
			if met[f.kind] == 0 {
				t.Errorf("vacuous: no fault of kind %q", f.kind)
			}
		}
	}
	same, tried := 0, min(*seeds, repeatedSeeds)
	for seed := *firstSeed; seed < *firstSeed+tried; seed++ {
		again, err := child(t.Context(), path, seed, faultsPerRun, reproducible...)
		if err != nil {
			t.Fatal(err)
		}
		if again.Trace == traces[seed] {
			same++
		}
	}
	t.Logf("%d of %d seeds reproduced their whole run", same, tried)
	if same == 0 {
		t.Error("no seed reproduced its run")
	}
}
