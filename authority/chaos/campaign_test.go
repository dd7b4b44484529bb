//go:build chaos

package chaos

import (
	"fmt"
	"sync"
	"testing"
	"time"
)

// repeatEvery is how many seeds there are to each that is run twice.
const repeatEvery = 4

// TestCampaign runs the seeds that it was told, as many at a time as there are
// processors, and every fourth once more: it has to be the same run.
func TestCampaign(t *testing.T) {
	path := campaignBinary(t)
	began := time.Now()
	var mu sync.Mutex
	met := make(map[string]int)
	var operations, accepted, late, budgets, repeated, same int
	t.Run("seeds", func(t *testing.T) {
		for seed := *firstSeed; seed < *firstSeed+*seeds; seed++ {
			t.Run(fmt.Sprint(seed), func(t *testing.T) {
				t.Parallel()
				r, err := child(t.Context(), path, seed, faultsPerRun)
				if err != nil {
					t.Fatalf("%v: %v", err, r)
				}
				repeat := (seed-*firstSeed)%repeatEvery == 0
				var again *result
				if repeat {
					if again, err = child(t.Context(), path, seed, faultsPerRun); err != nil {
						t.Fatalf("the second time: %v: %v", err, again)
					}
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
				if repeat {
					repeated++
					if again.Trace != r.Trace {
						t.Errorf("seed %d was two different runs", seed)
						return
					}
					same++
				}
			})
		}
	})
	t.Logf("%d seeds in %v: %d operations; %d verdicts accepted, %d on the revoked past the bound; %d budgets; faults %v",
		*seeds, time.Since(began).Round(time.Second), operations, accepted, late, budgets, met)
	t.Logf("%d seeds were run twice: %d were the same run again, to the last byte sent", repeated, same)
	if *seeds*faultsPerRun >= uint64(len(faults)) {
		for _, kind := range kinds() {
			if met[kind] == 0 {
				t.Errorf("vacuous: no fault of kind %q", kind)
			}
		}
	}
}
