package authority

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestGather: a batch waits for those who are likely to come, and for nobody else.
func TestGather(t *testing.T) {
	const took = 8 * time.Millisecond
	for name, k := range map[string]struct {
		took     time.Duration
		expected int
		first    lane
		come     time.Duration // when others come, one each; 0: nobody does
		others   int
		urgent   lane          // of one that waits already; laneIssue: none
		want     time.Duration // at least, and at most one look more
	}{
		"alone":                 {took, 1, laneIssue, 0, 0, laneIssue, 0},
		"all are here":          {took, 4, laneIssue, 1, 3, laneIssue, 0},
		"they come":             {took, 4, laneIssue, time.Millisecond, 3, laneIssue, 3 * time.Millisecond},
		"nobody comes":          {took, 4, laneIssue, 0, 0, laneIssue, took / 2},
		"some come":             {took, 4, laneIssue, time.Millisecond, 2, laneIssue, 2*time.Millisecond + took/2},
		"they come for ever":    {took, 200, laneIssue, time.Millisecond, 100, laneIssue, took},
		"the disk was stuck":    {time.Minute, 4, laneIssue, 0, 0, laneIssue, maxGather / 2},
		"a revocation":          {took, 4, laneRevoke, 0, 0, laneIssue, 0},
		"a lease":               {took, 4, laneLease, 0, 0, laneIssue, 0},
		"a revocation waits":    {took, 4, laneIssue, 0, 0, laneRevoke, 0},
		"a lease waits":         {took, 4, laneIssue, 0, 0, laneLease, 0},
		"more than a batch has": {took, 2 * maxBatch, laneIssue, 1, maxBatch, laneIssue, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := &proposer{took: k.took, expected: k.expected}
				for i := range p.queues {
					p.queues[i] = make(chan *change, laneSize)
				}
				if k.urgent != laneIssue {
					p.queues[k.urgent] <- new(change)
				}
				began := time.Now()
				go func() {
					for range k.others {
						time.Sleep(k.come)
						p.queues[laneIssue] <- new(change)
					}
				}()
				if k.come == 1 { // at once, that is
					time.Sleep(time.Microsecond)
				}
				p.gather(&change{lane: k.first})
				look := min(k.took, maxGather) / gatherLooks
				if took := time.Since(began); took < k.want || took > k.want+look+time.Microsecond {
					t.Errorf("waited %v, not %v", took, k.want)
				}
				time.Sleep(time.Second) // who comes later
			})
		})
	}
}
