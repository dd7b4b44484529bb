//go:build chaos

package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/writ-dev/writ/authority"
	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/capability"
)

const (
	audience = "corp"
	pace     = 5 * time.Millisecond // between two operations of one worker
	patience = 4 * time.Second      // of a client, for one change
	recent   = 64                   // how many of the newest tokens are at work
)

// token is one that was issued and acknowledged.
type token struct {
	subject string
	id      capability.TokenID
	set     []byte
	spared  bool         // never revoked
	asked   atomic.Bool  // a revocation of it has been sent
	acked   atomic.Int64 // when its revocation was acknowledged; 0: not yet
}

// budget is a token whose calls are counted.
type budget struct {
	*token
	limits            []uint64
	offered, accepted atomic.Uint64
}

func (b *budget) least() uint64 {
	least := b.limits[0]
	for _, l := range b.limits[1:] {
		least = min(least, l)
	}
	return least
}

// pool is what the workers work on.
type pool struct {
	mu       sync.Mutex
	subjects []string  // sent, acknowledged or not; guarded by mu
	tokens   []*token  // guarded by mu
	budgets  []*budget // guarded by mu
}

// pick returns one of the newest of all, and false if there is none.
func pick[T any](mu *sync.Mutex, all *[]T, r *rand.Rand) (one T, ok bool) {
	mu.Lock()
	defer mu.Unlock()
	if len(*all) == 0 {
		return one, false
	}
	from := max(0, len(*all)-recent)
	return (*all)[from+r.IntN(len(*all)-from)], true
}

func (r *campaign) mint(ctx context.Context, c *client.Client, subject string, caveats ...string) (*token, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	got, err := c.Issue(ctx, api.IssueRequest{
		Audience: audience, Subject: subject, Owner: "o@corp.example", Purpose: "campaign", TTLSeconds: 900, Caveats: caveats,
	})
	if err != nil {
		return nil, err
	}
	parsed, err := capability.Parse(got.Token)
	if err != nil {
		return nil, err
	}
	return &token{subject: subject, id: got.ID, set: parsed.Bytes()}, nil
}

// work issues and revokes, as worker n, until ctx ends.
func (r *campaign) work(ctx context.Context, n int, seed uint64) {
	random := rand.New(rand.NewPCG(seed, uint64(100+n)))
	root := r.c.Root()
	defer root.Close()
	for i := 0; pause(ctx, pace); i++ {
		if t, ok := pick(&r.pool.mu, &r.pool.tokens, random); ok && random.IntN(3) == 0 && !t.spared {
			t.asked.Store(true)
			begun := r.history.now()
			err := r.revoke(root, t)
			if err == nil {
				t.acked.CompareAndSwap(0, r.history.now())
			}
			if err != nil {
				r.t.Logf("revoking %s: %v", t.subject, err)
			}
			r.history.record(n, operation{revoke, t.subject}, 0, begun, err)
			continue
		}
		subject := fmt.Sprintf("agent-%d-%d", n, i)
		r.pool.mu.Lock()
		r.pool.subjects = append(r.pool.subjects, subject)
		r.pool.mu.Unlock()
		begun := r.history.now()
		// A call that has been sent is waited for even at the end.
		t, err := r.mint(context.WithoutCancel(ctx), root, subject)
		r.history.record(n, operation{issue, subject}, 0, begun, err)
		if err != nil {
			r.t.Logf("issuing %s: %v", subject, err)
			continue
		}
		t.spared = random.IntN(3) == 0
		r.pool.mu.Lock()
		r.pool.tokens = append(r.pool.tokens, t)
		r.pool.mu.Unlock()
	}
}

func (r *campaign) revoke(c *client.Client, t *token) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	_, err := c.Revoke(ctx, api.RevokeRequest{Kind: api.RevokeToken, Token: t.id.String(), Reason: "campaign"})
	return err
}

// look reads at any node, behind a barrier, as worker n, until ctx ends.
func (r *campaign) look(ctx context.Context, n int, seed uint64) {
	random := rand.New(rand.NewPCG(seed, uint64(200+n)))
	for pause(ctx, pace) {
		subject, ok := pick(&r.pool.mu, &r.pool.subjects, random)
		if !ok {
			continue
		}
		at := r.nodes[fmt.Sprintf("n%d", 1+random.IntN(len(r.nodes)))]
		var seen presence
		begun := r.history.now()
		err := at.with(ctx, func(ctx context.Context, a *authority.Authority) error {
			ctx, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			if err := a.Barrier(ctx); err != nil {
				return err
			}
			var err error
			seen, err = lookUp(ctx, a, subject)
			return err
		})
		r.history.record(n, operation{read, subject}, seen, begun, err)
	}
}

func lookUp(ctx context.Context, a *authority.Authority, subject string) (presence, error) {
	list, err := a.Tokens(ctx, authority.TokenQuery{Subject: subject})
	switch {
	case err != nil:
		return absent, err
	case len(list.Tokens) == 0:
		return absent, nil
	case len(list.Tokens) > 1:
		return twice, nil
	case list.Tokens[0].Revoked:
		return revoked, nil
	}
	return live, nil
}

// grantBudgets issues a budget now and then, every other one nested, until ctx ends.
func (r *campaign) grantBudgets(ctx context.Context) {
	root := r.c.Root()
	defer root.Close()
	for i := 0; ; i++ {
		limits := []uint64{uint64(20 + 7*i%30)}
		caveats := []string{fmt.Sprintf("max-calls %d", limits[0])}
		if i%2 == 1 {
			limits = append(limits, limits[0]+15)
			caveats = append(caveats, fmt.Sprintf("max-calls %d", limits[1]))
		}
		if t, err := r.mint(ctx, root, fmt.Sprintf("spender-%d", i), caveats...); err == nil {
			r.pool.mu.Lock()
			r.pool.budgets = append(r.pool.budgets, &budget{token: t, limits: limits})
			r.pool.mu.Unlock()
		}
		if !pause(ctx, time.Second) {
			return
		}
	}
}

// verdicts counts what guards have decided.
type verdicts struct {
	lateRefused   atomic.Int64 // revoked, past the bound
	beforeRevoked atomic.Int64 // accepted, and revoked later
	spared        atomic.Int64 // accepted, never to be revoked
	stale         atomic.Int64 // refused because nothing fresh was known
}

// present has guard g show a token, and judges what the guard says.
func (r *campaign) present(ctx context.Context, g *guard, t *token) {
	acked, begun := t.acked.Load(), r.history.now()
	late := acked != 0 && begun > acked+int64(r.bound)
	err := g.verify(ctx, t.set)
	switch code := capability.CodeOf(err); {
	case ctx.Err() != nil:
	case err == nil && late:
		r.violated("%s accepted %s %v after its revocation was acknowledged, and the bound is %v", g.name, t.subject,
			time.Duration(begun-acked), r.bound)
	case err == nil && t.spared:
		r.verdicts.spared.Add(1)
	case err == nil:
		r.verdicts.beforeRevoked.Add(1)
	case code == capability.CodeStaleRevocations || code == capability.CodeUnavailable:
		r.verdicts.stale.Add(1)
	case code == capability.CodeRevoked && t.asked.Load():
		if late {
			r.verdicts.lateRefused.Add(1)
		}
	default:
		r.violated("%s refused %s, which nobody revoked: %v", g.name, t.subject, err)
	}
}

// spend has guard g accept a counted call, and returns why it did not.
func (r *campaign) spend(ctx context.Context, g *guard, b *budget) capability.Code {
	b.offered.Add(1)
	err := g.verify(ctx, b.set)
	code := capability.CodeOf(err)
	switch {
	case err == nil:
		b.accepted.Add(1)
	case ctx.Err() != nil || errors.Is(err, context.DeadlineExceeded):
	case code == capability.CodeBudgetExhausted || code == capability.CodeUnavailable || code == capability.CodeStaleRevocations:
	default:
		r.violated("%s refused %s otherwise: %v", g.name, b.subject, err)
	}
	return code
}

// serve has guard g be shown tokens until ctx ends.
func (r *campaign) serve(ctx context.Context, g *guard, n int, seed uint64) {
	random := rand.New(rand.NewPCG(seed, uint64(300+n)))
	for pause(ctx, pace) {
		for range 4 {
			if t, ok := pick(&r.pool.mu, &r.pool.tokens, random); ok {
				r.present(ctx, g, t)
			}
		}
	}
}

// charge has guard g be shown counted tokens until ctx ends.
func (r *campaign) charge(ctx context.Context, g *guard, n int, seed uint64) {
	random := rand.New(rand.NewPCG(seed, uint64(400+n)))
	for pause(ctx, pace) {
		if b, ok := pick(&r.pool.mu, &r.pool.budgets, random); ok {
			r.spend(ctx, g, b)
		}
	}
}
