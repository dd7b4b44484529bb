//go:build linux && chaos

package process

import (
	"flag"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"testing"
	"time"

	"github.com/writ-dev/writ/authority/chaos/check"
)

var (
	seeds = flag.Uint64("process.seeds", 1, "how many seeds")
	only  = flag.String("process.only", "", "faults of kinds that match this `regexp` alone")
	lasts = flag.Duration("process.time", time.Minute, "how long there are faults for each seed, at the least: all kinds come once")
)

// TestCampaign is the whole campaign, once for each seed: make chaos.
func TestCampaign(t *testing.T) {
	wanted, err := regexp.Compile(*only)
	if err != nil {
		t.Fatal(err)
	}
	kinds := slices.DeleteFunc(slices.Sorted(maps.Keys(faults)), func(kind string) bool { return !wanted.MatchString(kind) })
	for seed := *firstSeed; seed < *firstSeed+*seeds; seed++ {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			run(t, 2*time.Second, seed, kinds, *lasts, check.Least{
				Operations: 2000, Leases: 50, Repeated: 200, Late: 500, Siblings: 200, Accepted: 2000, Budgets: 8, Nested: 4, Troubled: 1000, Nodes: 3,
			})
		})
	}
}
