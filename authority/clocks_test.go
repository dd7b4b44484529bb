package authority

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/writ-dev/writ/authority/api"
)

// fiveClocks is a leader's knowledge of four others, who are off by what the test says.
type fiveClocks struct {
	*clocks
	wallNow time.Time
	bootNow int64
	off     map[string]time.Duration // of those that answer
	rounds  int
}

func newFiveClocks() *fiveClocks {
	f := &fiveClocks{
		wallNow: time.Unix(1_800_000_000, 0), bootNow: int64(time.Hour),
		off: map[string]time.Duration{"n2": 0, "n3": 0, "n4": 0, "n5": 0},
	}
	f.clocks = newClocks(func() time.Time { return f.wallNow }, func() int64 { return f.bootNow }, "n1")
	f.voters = func() []string { return []string{"n1", "n2", "n3", "n4", "n5"} }
	truth := f.wallNow
	f.ask = func(_ context.Context, each func(string, hello, int64, int64)) {
		f.rounds++
		elapsed := time.Duration(f.bootNow - int64(time.Hour))
		for node, off := range f.off {
			each(node, hello{Now: truth.Add(elapsed + off).UnixNano()}, f.bootNow, f.bootNow)
		}
	}
	return f
}

// pass has time go by, for every clock.
func (f *fiveClocks) pass(d time.Duration) {
	f.wallNow, f.bootNow = f.wallNow.Add(d), f.bootNow+int64(d)
}

func (f *fiveClocks) may(t *testing.T, term uint64) bool {
	t.Helper()
	err := f.check(t.Context(), term, f.wallNow)
	if err != nil {
		wantCode(t, err, api.CodeNotLeader)
	}
	return err == nil
}

// TestClockIsHeldToTheMedian: nothing is stamped in a term before a majority was
// asked in it, nor by a clock that is more than a second off their median.
func TestClockIsHeldToTheMedian(t *testing.T) {
	f := newFiveClocks()
	for i, step := range []struct {
		term   uint64
		rounds int
	}{{1, 1}, {1, 1}, {2, 2}, {2, 2}, {3, 3}} {
		if !f.may(t, step.term) || f.rounds != step.rounds {
			t.Errorf("step %d: asked %d times by then", i, f.rounds)
		}
	}
	// By the time since boot its own clock is known to jump, with nobody asked.
	for _, jump := range []struct {
		by time.Duration
		ok bool
	}{{time.Second, true}, {time.Second + 1, false}, {-time.Second, true}, {-time.Second - 1, false}, {1000 * time.Hour, false}} {
		f.pass(30 * time.Second)
		f.wallNow = f.wallNow.Add(jump.by)
		if f.may(t, 3) != jump.ok || f.rounds != 3 {
			t.Errorf("after a jump by %v: not %v, or asked anew", jump.by, jump.ok)
		}
		f.wallNow = f.wallNow.Add(-jump.by)
	}
	// Three of five are a majority, and their median counts, not their mean.
	f.off = map[string]time.Duration{"n2": 0, "n3": 1000 * time.Hour}
	if !f.may(t, 4) {
		t.Error("the clock of one of three is off, and this one's is not trusted")
	}
	f.off = map[string]time.Duration{"n2": 5 * time.Second, "n3": 5 * time.Second}
	if f.may(t, 5) {
		t.Error("this one is five seconds behind two others, and stamps")
	}
	f.off = map[string]time.Duration{"n2": 0, "no voter": 0, "nor this": 0}
	if f.may(t, 6) {
		t.Error("stamps after two of five voters were asked")
	}
}

// TestWhomToHandOverTo: a voter whose clock is right, if there is one.
func TestWhomToHandOverTo(t *testing.T) {
	f := newFiveClocks()
	f.wallNow = f.wallNow.Add(time.Minute) // this one's is wrong
	f.off = map[string]time.Duration{"n2": -2 * time.Second, "n3": 700 * time.Millisecond, "n4": 100 * time.Millisecond, "n5": 0, "replica": 0}
	if f.may(t, 1) {
		t.Fatal("a clock that is a minute off stamps")
	}
	if to := f.inTime(); !slices.Contains([]string{"n4", "n5"}, to) {
		t.Errorf("hands over to %q", to)
	}
	f.off = map[string]time.Duration{"n2": -2 * time.Second, "n3": 2 * time.Second}
	f.samples = make(map[string]sample)
	f.wallNow = f.wallNow.Add(-time.Minute)
	f.may(t, 2)
	f.wallNow = f.wallNow.Add(time.Minute)
	if to := f.inTime(); to != "" {
		t.Errorf("hands over to %q, whose clock is wrong as well", to)
	}
}

// TestExpiryStaysBehind: what has ended is dropped once it is the bound and the
// margin ago by the quorum's median, whatever this node's own clock says.
func TestExpiryStaysBehind(t *testing.T) {
	clock := new(movedClock)
	cfg := testConfig(t)
	cfg.Clock, cfg.Bound = clock.now, 7*time.Second
	a, root := openNode(t, cfg)
	req := issueRequest()
	req.TTLSeconds = 900
	issued, err := a.Issue(t.Context(), Call{Caller: root}, req)
	if err != nil {
		t.Fatal(err)
	}
	before := a.Metrics().Tokens
	clock.move(2 * time.Hour)
	for _, k := range []struct {
		median time.Time
		gone   bool
	}{
		{issued.NotAfter.Add(cfg.Bound + expireMargin - 3*time.Second), false},
		{issued.NotAfter.Add(cfg.Bound + expireMargin + 3*time.Second), true},
	} {
		a.clocks.mu.Lock()
		a.clocks.median, a.clocks.at = k.median, a.cfg.Boot()
		a.clocks.mu.Unlock()
		if err := a.expire(t.Context()); err != nil {
			t.Fatal(err)
		}
		if gone := a.Metrics().Tokens < before; gone != k.gone {
			t.Errorf("%v after it ended by the median: dropped: %v", k.median.Sub(issued.NotAfter), gone)
		}
	}
}
