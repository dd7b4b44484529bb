package replica

import (
	"context"
	"math/bits"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/capability"
)

// maxStripes bounds the counters of one block. Each is a cache line of its own,
// so that cores spending the same budget do not pass one line to and fro.
const maxStripes = 8

// stripe is a share of a block's calls. It is taken from by compare-and-swap,
// so that it never goes below zero, and put into only under the block's mu.
type stripe struct {
	calls atomic.Int64
	_     [56]byte
}

// block is the calls that are leased for one path. It is found by the branch id
// at the path's deepest max-calls.
type block struct {
	branch  capability.BranchID
	token   capability.TokenID
	next    atomic.Pointer[block] // in its bucket; written under the table's mu
	_       [24]byte              // what every core reads shares no line with what one writes
	stripes [maxStripes]stripe

	mu       sync.Mutex
	pool     int64   // calls not yet in a stripe
	open     []lease // oldest first, at most 3
	macaroon []byte  // what a lease request shows; a credential
	audience string  // of the token
	notAfter int64   // Unix ms
	flight   *flight // a lease request under way, or nil
	want     uint64  // calls asked for last
	landed   int64   // when they came, on the replica's clock
	unknown  *asked  // a lease request whose fate is not known, or nil
	denied   error   // what the authority last refused with …
	until    int64   // … and until when that is believed, on the replica's clock
	closed   bool    // taken out of the table
	lastSum  int64   // calls held at the last sweep
	idle     int64   // since when lastSum has not changed, on the replica's clock
	_        [24]byte
}

// lease is one that the authority has granted and that is not closed.
type lease struct {
	id      string
	granted int64
}

// asked is a lease request and its request id.
type asked struct {
	id  capability.TokenID
	req api.LeaseRequest
}

// flight is a lease request that callers wait for.
type flight struct {
	done    chan struct{}
	waiting uint64 // callers; guarded by the block's mu
}

// table finds blocks by branch id without a lock: buckets are linked lists that
// are changed under mu and read by anyone. A reader that holds on to a block
// that has been taken out finds it closed.
type table struct {
	seed, odd uint64 // a multiply-shift hash: branch ids can be ground, the seed is not known
	shift     uint
	buckets   []atomic.Pointer[block]

	mu     sync.Mutex
	n      int               // guarded by mu
	leases map[string]*block // by lease id; guarded by mu
}

func newTable(paths int) *table {
	size := 1 << bits.Len(uint(2*paths-1))
	return &table{
		seed: rand.Uint64(), odd: rand.Uint64() | 1, shift: uint(64 - bits.Len(uint(size-1))),
		buckets: make([]atomic.Pointer[block], size), leases: make(map[string]*block),
	}
}

func (t *table) bucket(b *capability.BranchID) *atomic.Pointer[block] {
	lo := uint64(b[0]) | uint64(b[1])<<8 | uint64(b[2])<<16 | uint64(b[3])<<24 | uint64(b[4])<<32 | uint64(b[5])<<40 | uint64(b[6])<<48 | uint64(b[7])<<56
	return &t.buckets[(lo^t.seed)*t.odd>>t.shift]
}

func (t *table) find(b *capability.BranchID) *block {
	for k := t.bucket(b).Load(); k != nil; k = k.next.Load() {
		if k.branch == *b {
			return k
		}
	}
	return nil
}

// insert returns the block for k.branch, k unless there is one already.
func (t *table) insert(k *block) *block {
	t.mu.Lock()
	defer t.mu.Unlock()
	if old := t.find(&k.branch); old != nil {
		return old
	}
	at := t.bucket(&k.branch)
	k.next.Store(at.Load())
	at.Store(k)
	t.n++
	return k
}

// remove takes k out. Its next stays, for readers that are at it.
func (t *table) remove(k *block) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for at := t.bucket(&k.branch); at.Load() != nil; at = &at.Load().next {
		if at.Load() == k {
			at.Store(k.next.Load())
			t.n--
			return
		}
	}
}

func (t *table) len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.n
}

// all returns the blocks as they are now.
func (t *table) all() []*block {
	out := make([]*block, 0, t.len())
	for i := range t.buckets {
		for k := t.buckets[i].Load(); k != nil; k = k.next.Load() {
			out = append(out, k)
		}
	}
	return out
}

// stripeHint gives each processor a stripe of its own, most of the time: what a
// sync.Pool hands out was last used on the same processor. Which stripe a call
// is taken from does not matter for anything but speed.
type stripeHint struct {
	pool  sync.Pool
	count uint32
}

func newStripeHint() *stripeHint {
	// More stripes than processors: hints are made anew now and then, and two
	// processors seldom come to the same one.
	n := uint32(1)
	for n < 4*uint32(runtime.GOMAXPROCS(0)) && n < maxStripes {
		n *= 2
	}
	h := &stripeHint{count: n}
	var next atomic.Uint32
	h.pool.New = func() any {
		i := (next.Add(1) - 1) % n
		return &i
	}
	return h
}

// take takes one call from the stripe, if it has any.
func (s *stripe) take() bool {
	for {
		n := s.calls.Load()
		if n <= 0 {
			return false
		}
		if s.calls.CompareAndSwap(n, n-1) {
			return true
		}
	}
}

// Spend implements capability.Budgets.
func (r *Replica) Spend(ctx context.Context, p *capability.BudgetPath) (blocked bool, err error) {
	l := r.leases
	hint := l.hint.pool.Get().(*uint32)
	at := *hint
	l.hint.pool.Put(hint)
	if k := l.table.find(&p.Branch); k != nil && k.token == p.Token && k.stripes[at].take() {
		return false, nil
	}
	return l.spendSlow(ctx, p, at)
}

// held is how many calls are at hand. mu is held.
func (k *block) held() int64 {
	n := k.pool
	for i := range k.stripes {
		n += k.stripes[i].calls.Load()
	}
	return n
}

// takeLocked takes one call from wherever there is one, and gives the stripe a
// share to go on with. mu is held.
func (k *block) takeLocked(at uint32, stripes uint32) bool {
	if k.stripes[at].take() {
		return true
	}
	if k.pool > 0 {
		share := min(max(k.pool/int64(2*stripes), 1), 64)
		k.pool -= share
		if share > 1 {
			k.stripes[at].calls.Add(share - 1)
		}
		return true
	}
	for i := range k.stripes {
		if k.stripes[i].take() {
			return true
		}
	}
	return false
}

// empty takes everything out of the block. mu is held, so that nothing is on its
// way from the pool to a stripe; a call is either spent before or counted here.
func (k *block) empty() int64 {
	n := k.pool
	k.pool = 0
	for i := range k.stripes {
		n += k.stripes[i].calls.Swap(0)
	}
	return n
}

// lowWater is where a block is filled again before it is empty: a quarter of
// the newest lease.
func (k *block) lowWater() int64 {
	if len(k.open) == 0 {
		return 0
	}
	return k.open[len(k.open)-1].granted / 4
}

// exhausted drops, and returns, the leases of which everything is spent: what is
// at hand is taken to be of the newest leases. mu is held.
func (k *block) exhausted() (spent []lease) {
	held := k.held()
	for i := len(k.open) - 1; i >= 0; i-- {
		if held <= 0 {
			spent = append(spent, k.open[:i+1]...)
			k.open = append([]lease(nil), k.open[i+1:]...)
			return spent
		}
		held -= k.open[i].granted
	}
	return nil
}

// sweep notes whether the block has been used since the last sweep, and returns
// for how long it has not. mu is held.
func (k *block) sweep(now int64) time.Duration {
	if sum := k.held(); sum != k.lastSum || k.flight != nil {
		k.lastSum, k.idle = sum, now
	}
	return time.Duration(now - k.idle)
}
