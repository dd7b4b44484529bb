package replica

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/capability"
)

// lessor is the part of the client that leases need.
type lessor interface {
	Lease(ctx context.Context, r api.LeaseRequest) (*api.LeaseResponse, error)
	Return(ctx context.Context, lease string, r api.ReturnRequest) (*api.ReturnResponse, error)
}

const (
	leaseTimeout  = 5 * time.Second        // one lease request, over its retries
	returnTimeout = 5 * time.Second        // one return
	deniedFor     = 100 * time.Millisecond // how long a refusal is believed: calls may be given back
	maxReturning  = 64                     // returns under way, beyond which no new path is opened

	leaseFor    = time.Second // what a busy path asks for: the calls that it spends in as long
	leaseGrowth = 16          // but no more than so many times what it asked for last
)

// blocks are the leases of a replica.
type blocks struct {
	cfg    LeaseConfig
	from   lessor
	clock  func() int64
	now    func() time.Time
	rand   io.Reader
	log    *slog.Logger
	hint   *stripeHint
	table  *table
	giving chan struct{} // a place for each return under way
	ctx    context.Context

	mu     sync.Mutex
	closed bool           // guarded by mu; nothing is started after
	wg     sync.WaitGroup // requests and returns under way; from zero under mu
}

func newBlocks(ctx context.Context, cfg LeaseConfig, from lessor, clock func() int64, now func() time.Time, rand io.Reader, log *slog.Logger) *blocks {
	return &blocks{
		cfg: cfg, from: from, clock: clock, now: now, rand: rand, log: log, ctx: ctx,
		hint: newStripeHint(), table: newTable(cfg.Paths), giving: make(chan struct{}, maxReturning),
	}
}

func (l *blocks) len() int { return l.table.len() }

// within runs f unless the replica is closing. Close waits for f, and for all
// that f starts.
func (l *blocks) within(f func()) bool {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return false
	}
	l.wg.Add(1)
	l.mu.Unlock()
	defer l.wg.Done()
	f()
	return true
}

var (
	errLeaseTimeout = &capability.Refusal{Code: capability.CodeUnavailable, Detail: "no lease on the call budget in time"}
	errTooManyPaths = &capability.Refusal{Code: capability.CodeUnavailable, Detail: "too many call budgets are in use at once"}
)

// spendSlow spends where the stripe is empty: from the rest of the block, or
// else from a lease that it waits for.
func (l *blocks) spendSlow(ctx context.Context, p *capability.BudgetPath, at uint32) (blocked bool, err error) {
	var timeout <-chan time.Time
	for {
		k, err := l.block(p)
		if err != nil {
			return blocked, err
		}
		k.mu.Lock()
		if k.closed {
			k.mu.Unlock()
			continue
		}
		if k.takeLocked(at, l.hint.count) {
			if low := k.lowWater(); low > 0 && k.flight == nil && k.held() <= low && !k.isDenied(l.clock()) {
				l.request(ctx, k)
			}
			k.mu.Unlock()
			return blocked, nil
		}
		if k.isDenied(l.clock()) {
			err := k.denied
			k.mu.Unlock()
			return blocked, err
		}
		f := k.flight
		if f == nil {
			if f = l.request(ctx, k); f == nil {
				k.mu.Unlock()
				return blocked, ErrClosed
			}
		}
		f.waiting++
		k.mu.Unlock()
		if timeout == nil {
			t := time.NewTimer(l.cfg.Timeout)
			defer t.Stop()
			timeout = t.C
		}
		blocked = true
		select {
		case <-f.done:
		case <-timeout:
			return true, errLeaseTimeout
		case <-ctx.Done():
			return true, &capability.Refusal{Code: capability.CodeUnavailable, Detail: ctx.Err().Error()}
		}
	}
}

// isDenied reports whether the last refusal is still believed. mu is held.
func (k *block) isDenied(now int64) bool { return k.denied != nil && now < k.until }

// block finds or makes the block of a path.
func (l *blocks) block(p *capability.BudgetPath) (*block, error) {
	if k := l.table.find(&p.Branch); k != nil {
		if k.token != p.Token {
			return nil, capability.CodeUnavailable // 128 bits of SHA-256 do not collide
		}
		return k, nil
	}
	if l.table.len() >= l.cfg.Paths && !l.evict() {
		return nil, errTooManyPaths
	}
	if len(l.giving) == cap(l.giving) {
		return nil, errTooManyPaths
	}
	return l.table.insert(&block{
		branch: p.Branch, token: p.Token, audience: string(p.Audience), notAfter: p.NotAfter,
		macaroon: p.AppendMacaroon(nil), idle: l.clock(),
	}), nil
}

// request starts a lease request for k, whose mu is held. It returns nil if the
// replica is closing. The request outlives the call with ctx, for which it is made
// and to whose trace it belongs.
func (l *blocks) request(ctx context.Context, k *block) *flight {
	f := &flight{done: make(chan struct{})}
	ctx = trace.ContextWithSpanContext(l.ctx, trace.SpanContextFromContext(ctx))
	if !l.within(func() { l.wg.Go(func() { l.perform(ctx, k, f) }) }) {
		return nil
	}
	k.flight = f
	return f
}

// perform asks for a lease, or once more for one that may have been granted
// without the answer having come: the same request id gets the same lease, and no
// call is lost.
func (l *blocks) perform(ctx context.Context, k *block, f *flight) {
	defer close(f.done)
	ask, err := l.ask(k)
	if err != nil {
		l.landed(k, nil, nil, err)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, leaseTimeout)
	defer cancel()
	got, err := l.from.Lease(client.WithRequestID(ctx, ask.id), ask.req)
	if err == nil && (got.Token != k.token || got.Branch != k.branch || got.Granted == 0 || got.Granted > ask.req.Want || got.Lease == "") {
		err = errors.New("a lease that was not asked for")
	}
	if l.landed(k, ask, got, err) {
		return
	}
	// The block was taken out meanwhile, and nobody will spend these.
	l.giveNow(l.ctx, k, got.Lease, got.Granted)
}

// askAgain is how long a request is repeated whose fate is not known; well within
// the authority's window for request ids.
const askAgain = time.Minute

// ask is the request to make for k. The first of the leases that are spent is
// closed by the same request.
func (l *blocks) ask(k *block) (*asked, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := l.now().UnixMilli()
	if ask := k.unknown; ask != nil && now-ask.id.Millis() < askAgain.Milliseconds() {
		return ask, nil
	}
	k.unknown = nil
	var random [10]byte
	if _, err := io.ReadFull(l.rand, random[:]); err != nil {
		return nil, fmt.Errorf("request id: %w", err)
	}
	k.want = k.nextWant(l.cfg.Want, l.clock()) // before the leases that tell are dropped
	ask := &asked{capability.NewTokenID(now, random), api.LeaseRequest{Macaroon: k.macaroon, Want: k.want}}
	for i, s := range k.exhausted() {
		l.table.unlist(s.id)
		if i == 0 {
			ask.req.Lease = s.id
		} else {
			l.give(k, s.id, 0)
		}
	}
	return ask, nil
}

// nextWant is how many calls to ask for: as many as are spent in leaseFor at the
// pace at which the newest lease was spent, so that the authority is asked about
// as often however busy the path, and a process that dies takes little more than
// that along. mu is held.
func (k *block) nextWant(least uint64, now int64) uint64 {
	if len(k.open) == 0 || k.want == 0 {
		return least
	}
	newest := k.open[len(k.open)-1].granted
	pace := float64(newest) * float64(leaseFor) / float64(max(1, now-k.landed))
	return max(least, min(uint64(min(pace, maxWant)), leaseGrowth*k.want))
}

// landed takes the answer to a lease request. It reports false for a lease that
// came too late.
func (l *blocks) landed(k *block, ask *asked, got *api.LeaseResponse, err error) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.flight, k.unknown = nil, nil
	if err != nil {
		k.denied, k.until = leaseRefusal(err), l.clock()+int64(deniedFor)
		if errors.Is(k.denied, capability.CodeUnavailable) {
			k.unknown = ask
		}
		l.log.Debug("no lease", "token", k.token, "branch", k.branch, "error", err)
		return true
	}
	k.denied = nil
	if k.closed {
		return false
	}
	k.landed = l.clock()
	k.open = append(k.open, lease{got.Lease, int64(got.Granted)})
	k.pool += int64(got.Granted)
	l.table.list(got.Lease, k)
	return true
}

// leaseRefusal passes on what Budgets may say, and makes the rest unavailable.
func leaseRefusal(err error) error {
	err = decisive(err)
	switch capability.CodeOf(err) {
	case capability.CodeBudgetExhausted, capability.CodeUnregistered, capability.CodeRevoked:
		return err
	}
	return &capability.Refusal{Code: capability.CodeUnavailable, Detail: fmt.Sprintf("lease on the call budget: %v", err)}
}

// list and unlist keep track of which block a lease id belongs to.
func (t *table) list(id string, k *block) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.leases[id] = k
}

func (t *table) unlist(id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.leases, id)
}

func (t *table) lessee(id string) *block {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.leases[id]
}

// give closes a lease in the background. What cannot be given back counts as
// spent. It is called within.
func (l *blocks) give(k *block, id string, unspent uint64) {
	l.wg.Go(func() { l.giveNow(l.ctx, k, id, unspent) })
}

func (l *blocks) giveNow(ctx context.Context, k *block, id string, unspent uint64) {
	select {
	case l.giving <- struct{}{}:
	case <-ctx.Done():
		return
	}
	defer func() { <-l.giving }()
	ctx, cancel := context.WithTimeout(ctx, returnTimeout)
	defer cancel()
	if _, err := l.from.Return(ctx, id, api.ReturnRequest{Unspent: unspent}); err != nil {
		l.log.Warn("giving calls back", "token", k.token, "branch", k.branch, "calls", unspent, "error", err)
	}
}

// returned is what each open lease of an emptied block gives back.
type returned struct {
	id      string
	unspent uint64
}

// drain first empties the block and then closes its leases: what is at hand is
// of the newest ones. mu is held.
func (k *block) drain() []returned {
	left := k.empty()
	var out []returned
	for i := len(k.open) - 1; i >= 0; i-- {
		n := min(left, k.open[i].granted)
		left -= n
		out = append(out, returned{k.open[i].id, uint64(n)})
	}
	k.open = nil
	return out
}

// recall gives back what the authority asks for.
func (l *blocks) recall(id string) {
	k := l.table.lessee(id)
	if k == nil {
		return // closed already, or another replica's
	}
	l.within(func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		for _, r := range k.drain() {
			l.table.unlist(r.id)
			l.give(k, r.id, r.unspent)
		}
	})
}

// retire takes a block out and gives back what it holds, unless its token has
// ended. It calls give with each lease.
func (l *blocks) retire(k *block, give func(k *block, id string, unspent uint64)) {
	k.mu.Lock()
	k.closed = true
	back := k.drain()
	ended := k.notAfter <= l.now().UnixMilli()
	k.mu.Unlock()
	l.table.remove(k)
	for _, r := range back {
		l.table.unlist(r.id)
	}
	if ended {
		return
	}
	for _, r := range back {
		give(k, r.id, r.unspent)
	}
}

// evict makes room for one path: of a few blocks, the one that has been idle
// longest, and one that holds nothing first.
func (l *blocks) evict() bool {
	var best *block
	var bestIdle time.Duration
	now, looked := l.clock(), 0
	start := int(now % int64(len(l.table.buckets)))
	if start < 0 {
		start = 0
	}
	for i := range l.table.buckets {
		for k := l.table.buckets[(start+i)%len(l.table.buckets)].Load(); k != nil; k = k.next.Load() {
			k.mu.Lock()
			idle := k.sweep(now)
			if k.flight != nil {
				idle = -1
			} else if len(k.open) == 0 {
				idle += time.Hour
			}
			k.mu.Unlock()
			looked++
			if idle >= 0 && (best == nil || idle > bestIdle) {
				best, bestIdle = k, idle
			}
		}
		if looked >= 16 && best != nil {
			break
		}
	}
	if best == nil {
		return false
	}
	return l.within(func() { l.retire(best, l.give) })
}

// sweep retires blocks that are idle or whose token has ended.
func (l *blocks) sweep() {
	now, ms := l.clock(), l.now().UnixMilli()
	for _, k := range l.table.all() {
		k.mu.Lock()
		idle := k.sweep(now)
		out := idle >= l.cfg.Idle || k.notAfter <= ms
		k.mu.Unlock()
		if out {
			l.within(func() { l.retire(k, l.give) })
		}
	}
}

// forget drops every block without giving anything back: a new incarnation
// knows none of its leases.
func (l *blocks) forget() {
	for _, k := range l.table.all() {
		l.retire(k, func(*block, string, uint64) {})
	}
}

// close gives everything back and waits for what is under way, until ctx ends.
func (l *blocks) close(ctx context.Context) error {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	var wg sync.WaitGroup
	for _, k := range l.table.all() {
		l.retire(k, func(k *block, id string, unspent uint64) {
			wg.Go(func() { l.giveNow(ctx, k, id, unspent) })
		})
	}
	done := make(chan struct{})
	go func() {
		wg.Wait()
		l.wg.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("giving leases back: %w", ctx.Err())
	}
}
