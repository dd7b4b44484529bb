package caveats

import (
	"context"
	"encoding/binary"
	"errors"
	"math/big"
	"sync"
	"testing"
	"time"

	"github.com/writ-dev/writ/capability"
	"pgregory.net/rapid"
)

// A table forgets only what is dead, holds no more than it may, and finds room
// whenever enough of it is dead.
func TestTable(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		most := rapid.IntRange(1, 40).Draw(t, "most")
		table, err := newTable[int, int](most)
		if err != nil {
			t.Fatal(err)
		}
		live := map[int]int64{} // the oracle: when each key that was added dies
		now := int64(0)
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			now += int64(rapid.IntRange(0, 3).Draw(t, "wait"))
			alive := 0
			for k, until := range live {
				if until > now {
					alive++
				} else if table.get(k) == nil {
					delete(live, k)
				}
			}
			key := rapid.IntRange(0, 60).Draw(t, "key")
			e := table.get(key)
			if until, ok := live[key]; ok && until > now && (e == nil || e.value != key || e.until != until) {
				t.Fatalf("key %d, live until %d, is %+v at %d", key, until, e, now)
			}
			if e != nil {
				continue
			}
			until := now + int64(rapid.IntRange(1, 20).Draw(t, "life"))
			if e = table.add(key, tokenID(key), until, now); e != nil {
				e.value = key
				live[key] = until
			} else if alive < most-len(table.entries) || len(table.entries) < most {
				t.Fatalf("no room among %d of %d", len(table.entries), most)
			}
			if len(table.entries) > most || len(table.index) != len(table.entries) {
				t.Fatalf("%d entries, %d in the index, at most %d", len(table.entries), len(table.index), most)
			}
		}
		// All is dead: a few tries sweep the whole table.
		now += 100
		for i := range most/sweep + 1 {
			table.add(1000+i, tokenID(1), now+1, now)
		}
		if !table.room(1, tokenID(2), now+1) {
			t.Fatalf("a table of the dead has no room: %d of %d", len(table.entries), most)
		}
	})
	for _, most := range []int{0, -1, 1 << 32} {
		if _, err := newTable[int, int](most); err == nil {
			t.Errorf("a table of %d entries", most)
		}
	}
}

func tokenID(n int) (id capability.TokenID) {
	binary.BigEndian.PutUint64(id[:], uint64(n))
	return id
}

func branchID(n int) (b capability.BranchID) {
	binary.BigEndian.PutUint64(b[:], uint64(n))
	return b
}

// The oracle is a token bucket in exact arithmetic. Time is drawn in steps that
// the emission interval divides, so that rounding plays no part.
func TestRateAgainstBucket(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		table, err := NewRateTable(4)
		if err != nil {
			t.Fatal(err)
		}
		n := uint64(rapid.SampledFrom([]int{1, 2, 3, 5, 10}).Draw(t, "n"))
		per := time.Duration(n) * time.Duration(rapid.IntRange(1, 50).Draw(t, "each")) * time.Millisecond
		now := time.Date(2026, 11, 24, 8, 0, 0, 0, time.UTC)
		tokens, full := new(big.Rat).SetUint64(n), new(big.Rat).SetUint64(n)
		for range 100 {
			wait := time.Duration(rapid.IntRange(0, 60).Draw(t, "wait")) * time.Millisecond
			now = now.Add(wait)
			tokens.Add(tokens, new(big.Rat).Mul(full, big.NewRat(int64(wait), int64(per))))
			if tokens.Cmp(full) > 0 {
				tokens.Set(full)
			}
			want := tokens.Cmp(big.NewRat(1, 1)) >= 0
			if got := table.take(tokenID(1), branchID(1), n, per, now); got != want {
				t.Fatalf("with %s tokens: %v", tokens.FloatString(6), got)
			}
			if want {
				tokens.Sub(tokens, big.NewRat(1, 1))
			}
		}
	})
}

// Rounding never gives more than N at once and N in each D after.
func TestRateNeverExceeds(t *testing.T) {
	for _, c := range []struct {
		n   uint64
		per time.Duration
	}{{3, time.Second}, {7, time.Minute}, {99_999, time.Second}, {MaxCount, time.Second}, {1, 24 * time.Hour}} {
		table, err := NewRateTable(1)
		if err != nil {
			t.Fatal(err)
		}
		now := time.Date(2026, 11, 24, 8, 0, 0, 0, time.UTC)
		taken := uint64(0)
		for taken <= min(c.n, 200_000) && table.take(tokenID(1), branchID(1), c.n, c.per, now) {
			taken++
		}
		if taken != min(c.n, 200_001) {
			t.Errorf("%d/%v: %d at once", c.n, c.per, taken)
		}
		if c.n > 100 {
			continue
		}
		for range 1000 {
			now = now.Add(c.per / 1000)
			if table.take(tokenID(1), branchID(1), c.n, c.per, now) {
				taken++
			}
		}
		if taken < 2*c.n-1 || taken > 2*c.n {
			t.Errorf("%d/%v: %d in one period after the burst", c.n, c.per, taken-c.n)
		}
	}
}

// The interval of a token is rounded up: in the long run there are never more.
func TestRateInTheLongRun(t *testing.T) {
	const n = 999_999
	table, err := NewRateTable(1)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Date(2026, 11, 24, 8, 0, 0, 0, time.UTC)
	drain := func() (taken int) {
		for table.take(tokenID(1), branchID(1), n, time.Second, now) {
			taken++
		}
		return taken
	}
	drain()
	total := 0
	for range 10 {
		now = now.Add(time.Second / 10)
		total += drain()
	}
	if total > n || total < n*99/100 {
		t.Errorf("%d in a second of at most %d", total, n)
	}
}

func TestRateTableFull(t *testing.T) {
	table, err := NewRateTable(2)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Date(2026, 11, 24, 8, 0, 0, 0, time.UTC)
	take := func(branch int, wait time.Duration, want bool) {
		t.Helper()
		now = now.Add(wait)
		if got := table.take(tokenID(1), branchID(branch), 1, time.Second, now); got != want {
			t.Errorf("branch %d: %v", branch, got)
		}
	}
	take(1, 0, true)
	take(2, 0, true)
	take(3, 0, false) // full
	take(1, 0, false) // empty bucket
	take(3, time.Second, true)
	take(1, 0, true)
	if table.Len() != 2 {
		t.Errorf("%d buckets", table.Len())
	}
	// The clock steps back an hour: one refill later all is well again.
	take(1, -time.Hour, false)
	take(1, time.Second, true)
	for _, when := range []time.Time{{}, time.Unix(-1, 0), time.Date(2300, 1, 1, 0, 0, 0, 0, time.UTC)} {
		if table.take(tokenID(1), branchID(9), 1, time.Second, when) {
			t.Errorf("taken at %v", when)
		}
	}
}

func TestLocalBudgets(t *testing.T) {
	now := time.Date(2026, 11, 24, 8, 0, 0, 0, time.UTC)
	if _, err := NewLocalBudgets(3, nil); err == nil {
		t.Error("a table that one token overflows")
	}
	l, err := NewLocalBudgets(4, func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	path := func(life time.Duration, limits ...uint64) *capability.BudgetPath {
		p := &capability.BudgetPath{NotAfter: now.Add(life).UnixMilli(), N: len(limits) / 2}
		for i := range p.N {
			p.At[i], p.Limits[i] = branchID(int(limits[2*i])), limits[2*i+1]
		}
		return p
	}
	spend := func(want error, p *capability.BudgetPath) {
		t.Helper()
		if blocked, err := l.Spend(context.Background(), p); !errors.Is(err, want) || blocked || want == nil && err != nil {
			t.Errorf("%v %v, want %v", blocked, err, want)
		}
	}
	long := time.Minute
	spend(nil, path(long, 1, 3, 2, 1))
	spend(capability.CodeBudgetExhausted, path(long, 1, 3, 2, 1)) // takes nothing from 1
	spend(nil, path(long, 1, 3, 3, 5))
	spend(nil, path(long, 1, 3, 3, 5))
	spend(capability.CodeBudgetExhausted, path(long, 1, 3, 3, 5))
	spend(capability.CodeBudgetExhausted, path(long, 1, 3))
	spend(capability.CodeBudgetExhausted, path(long, 9, 0))
	spend(capability.CodeBudgetExhausted, path(-stepBack, 8, 5)) // ended: its counters may be gone
	spend(capability.CodeUnavailable, path(long, 4, 1, 5, 1))    // room for one only, and takes neither
	spend(nil, path(time.Second, 4, 1))
	spend(capability.CodeUnavailable, path(long, 5, 1))
	if l.Len() != 4 {
		t.Errorf("%d budgets", l.Len())
	}
	now = now.Add(time.Second + stepBack)
	spend(nil, path(long, 5, 1)) // 4 has ended
	spend(capability.CodeBudgetExhausted, path(long, 1, 3))
}

// One token, narrowed in as many ways as its holder likes, does not fill the table
// for the others.
func TestOneTokensShare(t *testing.T) {
	const most = 16 * 1000
	now := time.Date(2026, 11, 24, 8, 0, 0, 0, time.UTC)
	rates, err := NewRateTable(most)
	if err != nil {
		t.Fatal(err)
	}
	budgets, err := NewLocalBudgets(most, func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	replays, err := NewReplayCache(most)
	if err != nil {
		t.Fatal(err)
	}
	spend := func(token, branch int) error {
		p := &capability.BudgetPath{Token: tokenID(token), NotAfter: now.Add(time.Minute).UnixMilli(), N: 1}
		p.At[0], p.Limits[0] = branchID(branch), 1
		_, err := budgets.Spend(t.Context(), p)
		return err
	}
	use := func(token, branch int) error {
		h := [32]byte{}
		binary.BigEndian.PutUint64(h[:], uint64(branch))
		return replays.use(tokenID(token), h, now, now.Add(time.Minute))
	}
	taken, spent, used := 0, 0, 0
	for branch := range most {
		if rates.take(tokenID(1), branchID(branch), 1, 24*time.Hour, now) {
			taken++
		}
		if spend(1, branch) == nil {
			spent++
		}
		if use(1, branch) == nil {
			used++
		}
	}
	if taken != most/16 || spent != most/16 || used != most/16 {
		t.Errorf("one token has %d rates, %d budgets, %d requests, of %d", taken, spent, used, most)
	}
	if !rates.take(tokenID(2), branchID(most), 1, 24*time.Hour, now) || spend(2, most) != nil || use(2, most) != nil {
		t.Error("another token finds no room")
	}
	// What has ended makes room in the share again.
	later := now.Add(25 * time.Hour)
	for branch := range most / 16 {
		if !rates.take(tokenID(1), branchID(2*most+branch), 1, 24*time.Hour, later) {
			t.Fatalf("rate %d, where %d of before have ended: no room", branch, most/16)
		}
	}
	if rates.take(tokenID(1), branchID(3*most), 1, 24*time.Hour, later) || int(rates.buckets.tokens[tokenID(1)]) != most/16 {
		t.Errorf("%d entries are counted for the token, want %d", rates.buckets.tokens[tokenID(1)], most/16)
	}
}

// A clock that was ahead, and so had counters forgotten, spends nothing twice and
// accepts no request twice once it is put back.
func TestClockAheadForAWhile(t *testing.T) {
	start := time.Date(2026, 11, 24, 8, 0, 0, 0, time.UTC)
	now := start
	budgets, err := NewLocalBudgets(4, func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	replays, err := NewReplayCache(4)
	if err != nil {
		t.Fatal(err)
	}
	spend := func(branch int, life time.Duration) error {
		p := &capability.BudgetPath{NotAfter: start.Add(life).UnixMilli(), N: 1}
		p.At[0], p.Limits[0] = branchID(branch), 1
		_, err := budgets.Spend(t.Context(), p)
		return err
	}
	if spend(1, time.Minute) != nil || replays.Use([32]byte{1}, now, start.Add(time.Minute)) != nil {
		t.Fatal("refused at first")
	}
	now = start.Add(24 * time.Hour)
	if spend(2, 25*time.Hour) != nil || replays.Use([32]byte{2}, now, now.Add(time.Minute)) != nil {
		t.Fatal("refused by the clock that is ahead")
	}
	now = start.Add(time.Second)
	if err := spend(1, time.Minute); !errors.Is(err, capability.CodeBudgetExhausted) {
		t.Errorf("a budget of one call, for the second time: %v", err)
	}
	if err := replays.Use([32]byte{1}, now, start.Add(time.Minute)); err == nil {
		t.Error("a request is accepted twice")
	}
	if spend(3, time.Hour) != nil || replays.Use([32]byte{3}, now, start.Add(time.Hour)) != nil {
		t.Error("what ends later than all that was forgotten is refused")
	}
}

// However calls race, exactly N pass.
func TestCountersUnderConcurrency(t *testing.T) {
	now := time.Date(2026, 11, 24, 8, 0, 0, 0, time.UTC)
	l, err := NewLocalBudgets(10, func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	rates, err := NewRateTable(10)
	if err != nil {
		t.Fatal(err)
	}
	replays, err := NewReplayCache(1000)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	spent, taken, used := 0, 0, 0
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range 100 {
				p := &capability.BudgetPath{NotAfter: now.Add(time.Minute).UnixMilli(), N: 2, Limits: [4]uint64{300, 500}}
				p.At[0], p.At[1] = branchID(1), branchID(2+i%2)
				_, err := l.Spend(context.Background(), p)
				ok := rates.take(tokenID(1), branchID(1), 200, time.Hour, now)
				seen := replays.Use([32]byte{byte(i)}, now, now.Add(time.Minute))
				mu.Lock()
				if err == nil {
					spent++
				}
				if ok {
					taken++
				}
				if seen == nil {
					used++
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if spent != 300 || taken != 200 || used != 100 {
		t.Errorf("%d calls spent of 300, %d taken of 200, %d requests of 100", spent, taken, used)
	}
}

func TestReplayCacheEntriesEnd(t *testing.T) {
	c, err := NewReplayCache(1)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Date(2026, 11, 24, 8, 0, 0, 0, time.UTC)
	use := func(want error, hash byte, at time.Duration) {
		t.Helper()
		if err := c.Use([32]byte{hash}, now.Add(at), now.Add(at+time.Second)); !errors.Is(err, want) || want == nil && err != nil {
			t.Errorf("%d after %v: %v, want %v", hash, at, err, want)
		}
	}
	use(nil, 1, 0)
	use(capability.CodeReplayed, 1, 0)
	use(capability.CodeReplayed, 1, time.Second+stepBack) // to the last moment
	use(capability.CodeUnavailable, 2, time.Second)       // full, and forgets nothing
	use(capability.CodeReplayed, 1, time.Second)
	use(nil, 2, time.Second+stepBack+time.Millisecond)
	if c.Len() != 1 {
		t.Errorf("%d requests", c.Len())
	}
}

func BenchmarkRate(b *testing.B) {
	t, err := NewRateTable(1 << 10)
	if err != nil {
		b.Fatal(err)
	}
	now := time.Date(2026, 11, 24, 8, 0, 0, 0, time.UTC)
	b.ReportAllocs()
	for b.Loop() {
		now = now.Add(time.Millisecond)
		if !t.take(tokenID(1), branchID(1), 1000, time.Second, now) {
			b.Fatal("refused")
		}
	}
}

func BenchmarkLocalBudgets(b *testing.B) {
	now := time.Date(2026, 11, 24, 8, 0, 0, 0, time.UTC)
	l, err := NewLocalBudgets(1<<10, func() time.Time { return now })
	if err != nil {
		b.Fatal(err)
	}
	p := &capability.BudgetPath{NotAfter: now.Add(time.Minute).UnixMilli(), N: 1, Limits: [4]uint64{MaxCount}}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := l.Spend(context.Background(), p); err != nil {
			b.Fatal(err)
		}
	}
}
