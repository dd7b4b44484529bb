package authority

import (
	"testing"
	"time"

	"github.com/writ-dev/writ/authority/state"
)

// TestWhoDoesNotGiveBack: a lease is asked back once in two seconds, and waited for
// no longer than the first who asks does: a guard that is gone costs one caller 100 ms,
// and not every one.
func TestWhoDoesNotGiveBack(t *testing.T) {
	now := int64(time.Hour)
	r := newRecalls(func() int64 { return now })
	one, two := state.OpenLease{Lease: state.LeaseID{1}}, state.OpenLease{Lease: state.LeaseID{2}}
	for i, step := range []struct {
		after  time.Duration
		open   []state.OpenLease
		ask    int
		coming bool
	}{
		{0, nil, 0, false},
		{0, []state.OpenLease{one}, 1, true},
		{0, []state.OpenLease{one}, 0, true}, // another who asks meanwhile
		{recallWait, []state.OpenLease{one}, 0, true},
		{1, []state.OpenLease{one}, 0, false},
		{0, []state.OpenLease{one, two}, 1, true},
		{recallWait + 1, []state.OpenLease{one, two}, 0, false},
		{recallAgain - 2*recallWait - 2, []state.OpenLease{one}, 0, false},
		{1, []state.OpenLease{one, two}, 1, true},
	} {
		now += int64(step.after)
		ask, coming := r.due(step.open)
		if len(ask) != step.ask || coming != step.coming {
			t.Errorf("step %d: asks for %v, coming %v", i, ask, coming)
		}
	}
	many := make([]state.OpenLease, maxRecalled+10)
	for i := range many {
		many[i].Lease = state.LeaseID{3, byte(i), byte(i >> 8), byte(i >> 16)}
	}
	r.due(many)
	if r.due(many[:1]); len(r.last) > maxRecalled {
		t.Errorf("%d leases are remembered", len(r.last))
	}
}
