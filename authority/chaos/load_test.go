package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/writ-dev/writ/authority"
	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/chaos/check"
	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats"
)

const (
	audience = "corp"
	patience = 4 * time.Second // of a client, for one change
	recent   = 24              // how many of the newest are at work
)

// credential is one that somebody holds: a token that was issued and acknowledged,
// or a branch of one.
type credential struct {
	name   string
	id     capability.TokenID
	token  *capability.Token
	limits []uint64
	spared bool // nobody revokes it, nor anything that it was derived from
	leased bool // in single calls by a lessee, who knows of each: no guard may lease of it
}

// pool is what the load works on.
type pool struct {
	mu      sync.Mutex
	sent    []string      // names of tokens, acknowledged or not; guarded by mu
	plain   []*credential // guarded by mu
	gone    []*credential // of plain, those whose revocation was asked for; guarded by mu
	limited []*credential // guarded by mu
}

func (p *pool) ask(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sent = append(p.sent, name)
}

func (p *pool) add(list *[]*credential, c ...*credential) {
	p.mu.Lock()
	defer p.mu.Unlock()
	*list = append(*list, c...)
}

// pick returns one of the newest of all, and false if there is none.
func pick[T any](p *pool, all *[]T, r *rand.Rand) (one T, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(*all) == 0 {
		return one, false
	}
	from := max(0, len(*all)-recent)
	return (*all)[from+r.IntN(len(*all)-from)], true
}

// pause waits, and reports false when ctx has ended.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// between is a time from d to twice that.
func between(r *rand.Rand, d time.Duration) time.Duration {
	return d + time.Duration(r.Int64N(int64(d)))
}

// record adds to the history what who was told.
func (s *sim) record(who string, begun int64, r check.Record) {
	r.Client, r.Begun, r.Ended = who, begun, s.now()
	s.add1(r)
}

// issue asks for a token. A call that was sent is waited for even at the end.
func (s *sim) issue(c *client.Client, who, name string, limits ...uint64) (*credential, error) {
	var conditions []string
	for _, l := range limits {
		conditions = append(conditions, fmt.Sprintf("max-calls %d", l))
	}
	s.pool.ask(name)
	request := s.requestID()
	body := api.IssueRequest{
		Audience: audience, Subject: name, Owner: "o@corp.example", Purpose: "campaign", TTLSeconds: 900, Caveats: conditions,
	}
	call := func() (*api.TokenResponse, error) {
		ctx, cancel := context.WithTimeout(client.WithRequestID(context.Background(), request), patience)
		defer cancel()
		return c.Issue(ctx, body)
	}
	begun := s.now()
	got, err := call()
	s.record(who, begun, check.Record{Op: check.OpIssue, Name: name, Limits: limits, Unknown: err != nil})
	if err != nil {
		s.event("%s: issuing %s: %v", who, name, err)
		return nil, err
	}
	s.again(func() error {
		twin, err := call()
		if err == nil && twin.ID != got.ID {
			s.violated("%s was issued twice under one request id", name)
		}
		return err
	})
	token, err := capability.Parse(got.Token)
	if err != nil {
		return nil, err
	}
	return &credential{name: name, id: got.ID, token: token, limits: limits}, nil
}

// again repeats some calls, at once or late, as networks and clients do.
func (s *sim) again(call func() error) {
	s.mu.Lock()
	late := time.Duration(s.rng.Int64N(int64(3 * time.Second)))
	repeat := s.rng.IntN(4) == 0
	s.mu.Unlock()
	if !repeat {
		return
	}
	s.late.Go(func() {
		sleep(late)
		if begun := s.now(); call() == nil {
			s.record("repeater", begun, check.Record{Op: check.OpRepeat})
		}
	})
}

func (s *sim) requestID() capability.TokenID {
	s.mu.Lock()
	defer s.mu.Unlock()
	var random [10]byte
	for i := range random {
		random[i] = byte(s.rng.Uint32())
	}
	return capability.NewTokenID(time.Now().UnixMilli(), random)
}

// narrow derives a branch.
func (s *sim) narrow(c *credential, label string, limits ...uint64) (*credential, error) {
	conditions := []string{"branch " + label}
	for _, l := range limits {
		conditions = append(conditions, fmt.Sprintf("max-calls %d", l))
	}
	token, err := c.token.Attenuate(conditions...)
	if err != nil {
		return nil, err
	}
	name := c.name + "/" + label
	s.add1(check.Record{Op: check.OpNarrow, Name: name, Limits: limits})
	return &credential{name: name, id: c.id, token: token, limits: limits}, nil
}

// named names what an actor makes: a name is of one thing alone.
func (s *sim) named(what string, actor, turn int) string {
	return fmt.Sprintf("%s-%d-%d-%d", what, s.phase, actor, turn)
}

// work issues, narrows and revokes until ctx ends.
func (s *sim) work(ctx context.Context, n int) error {
	who, random := fmt.Sprintf("worker-%d", n), s.random(1000*s.phase+100+n)
	root := s.client(who, s.root)
	defer root.Close()
	for i := 0; pause(ctx, between(random, 60*time.Millisecond)); i++ {
		if c, ok := pick(&s.pool, &s.pool.plain, random); ok && random.IntN(5) < 2 && !c.spared {
			s.revoke(root, who, c)
			continue
		}
		c, err := s.issue(root, who, s.named("agent", n, i))
		if err != nil {
			continue
		}
		c.spared = random.IntN(3) == 0
		x, err := s.narrow(c, "x")
		if err != nil {
			return err
		}
		y, err := s.narrow(c, "y")
		if err != nil {
			return err
		}
		y.spared = true // unless the token itself goes
		c.spared = c.spared || random.IntN(2) == 0
		s.pool.add(&s.pool.plain, c, x, y)
	}
	return nil
}

func (s *sim) revoke(root *client.Client, who string, c *credential) {
	body := api.RevokeRequest{Kind: api.RevokeToken, Token: c.id.String(), Reason: "campaign"}
	if c.name != tokenName(c.name) {
		body.Kind, body.Branch = api.RevokeBranch, c.token.Branch().String()
	}
	if !c.leased {
		s.pool.add(&s.pool.gone, c) // guards see it meanwhile
	}
	request := s.requestID()
	call := func() error {
		ctx, cancel := context.WithTimeout(client.WithRequestID(context.Background(), request), patience)
		defer cancel()
		_, err := root.Revoke(ctx, body)
		return err
	}
	begun := s.now()
	err := call()
	s.record(who, begun, check.Record{Op: check.OpRevoke, Name: c.name, Unknown: err != nil})
	if err != nil {
		s.event("%s: revoking %s: %v", who, c.name, err)
		return
	}
	if c.leased {
		s.pool.add(&s.pool.gone, c)
	}
	s.again(call)
}

// look reads at any node, behind a barrier, until ctx ends.
func (s *sim) look(ctx context.Context, n int) error {
	who, random := fmt.Sprintf("reader-%d", n), s.random(1000*s.phase+200+n)
	for pause(ctx, between(random, 25*time.Millisecond)) {
		name, ok := pick(&s.pool, &s.pool.sent, random)
		if !ok {
			continue
		}
		nodes := s.members()
		at := nodes[random.IntN(len(nodes))]
		var seen check.Presence
		var left uint64
		begun := s.now()
		err := at.with(ctx, func(ctx context.Context, a *authority.Authority) error {
			ctx, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			if err := a.Barrier(ctx); err != nil {
				return err
			}
			var err error
			seen, left, err = s.lookUp(ctx, a, name)
			return err
		})
		s.record(who, begun, check.Record{Op: check.OpRead, Name: name, Seen: seen, Left: left, Unknown: err != nil})
	}
	return nil
}

// lookUp is what a node has of a token, by its name alone.
func (s *sim) lookUp(ctx context.Context, a *authority.Authority, name string) (check.Presence, uint64, error) {
	list, err := a.Tokens(ctx, authority.TokenQuery{Subject: name})
	switch {
	case err != nil:
		return "", 0, err
	case len(list.Tokens) == 0:
		return check.Absent, 0, nil
	case len(list.Tokens) > 1:
		return check.Twice, 0, nil
	}
	t := list.Tokens[0]
	var left uint64
	if limits := limitsOf(t.Caveats); len(limits) == 1 {
		info, err := a.Token(ctx, t.ID)
		if err != nil {
			return "", 0, err
		}
		left = limits[0] // until somebody leases
		if len(info.Budgets) == 1 {
			left = info.Budgets[0].Remaining
		}
	}
	if t.Revoked {
		return check.Revoked, left, nil
	}
	return check.Live, left, nil
}

func limitsOf(conditions []string) (limits []uint64) {
	for _, c := range conditions {
		var n uint64
		if _, err := fmt.Sscanf(c, "max-calls %d", &n); err == nil {
			limits = append(limits, n)
		}
	}
	return limits
}

// lessee leases single calls and gives them back, each on tokens of its own, until
// ctx ends.
func (s *sim) lessee(ctx context.Context, n int, token string) error {
	who, random := fmt.Sprintf("lessee-%d", n), s.random(1000*s.phase+300+n)
	root, own := s.client(who, s.root), s.client(who, token)
	defer root.Close()
	defer own.Close()
	var c *credential
	var held, back []string
	for i := 0; pause(ctx, between(random, 50*time.Millisecond)); i++ {
		if c == nil || i%25 == 0 {
			got, err := s.issue(root, who, s.named("leased", n, i), 4)
			if err != nil {
				continue
			}
			c, held, back = got, nil, nil
			c.leased = true
		}
		switch at := random.IntN(10); {
		case at < 5 || len(held) == 0 && len(back) == 0:
			if lease := s.lease(own, who, c); lease != "" {
				held = append(held, lease)
			}
		case at == 5 && len(back) > 0: // a second time, which credits nothing
			s.giveBack(own, who, c, back[random.IntN(len(back))])
		case len(held) > 0:
			lease := held[0]
			held = held[1:]
			back = append(back, lease)
			s.giveBack(own, who, c, lease)
		}
		if i%25 == 20 && random.IntN(2) == 0 {
			s.revoke(root, who, c)
		}
	}
	return nil
}

func (s *sim) lease(own *client.Client, who string, c *credential) string {
	request := s.requestID()
	call := func() (*api.LeaseResponse, error) {
		ctx, cancel := context.WithTimeout(client.WithRequestID(context.Background(), request), patience)
		defer cancel()
		return own.Lease(ctx, api.LeaseRequest{Macaroon: c.token.Bytes(), Want: 1})
	}
	begun := s.now()
	got, err := call()
	r := check.Record{Op: check.OpLease, Name: c.name}
	switch code := capability.CodeOf(refusal(err)); {
	case err == nil:
		r.Lease = got.Lease
	case code == capability.CodeBudgetExhausted || code == capability.CodeRevoked || code == capability.CodeUnregistered:
		r.Code = string(code)
	default:
		r.Unknown = true
	}
	s.record(who, begun, r)
	if err == nil {
		s.again(func() error {
			twin, err := call()
			if err == nil && twin.Lease != got.Lease {
				s.violated("one lease request on %s got two leases", c.name)
			}
			return err
		})
	}
	return r.Lease
}

func (s *sim) giveBack(own *client.Client, who string, c *credential, lease string) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	begun := s.now()
	got, err := own.Return(ctx, lease, api.ReturnRequest{Unspent: 1})
	r := check.Record{Op: check.OpReturn, Name: c.name, Lease: lease, Unknown: err != nil}
	if err == nil {
		r.Calls = got.Credited
	}
	s.record(who, begun, r)
}

// refusal is what the authority refused with, if it did.
func refusal(err error) error {
	if e, ok := errors.AsType[*client.Error](err); ok {
		return e.Problem.Code
	}
	return nil
}

// grant issues budgets until ctx ends: plain, nested, and with branches that have
// budgets of their own.
func (s *sim) grant(ctx context.Context) error {
	const who = "granter"
	root := s.client(who, s.root)
	defer root.Close()
	for i := 0; ; i++ {
		name, n := s.named("spender", 0, i), uint64(8+5*i%13)
		limits := []uint64{n}
		if i%3 == 1 {
			limits = append(limits, n+6)
		}
		if c, err := s.issue(root, who, name, limits...); err == nil {
			held := []*credential{c}
			if i%3 == 2 {
				for _, label := range []string{"x", "y"} {
					b, err := s.narrow(c, label, n/2+1)
					if err != nil {
						return err
					}
					held = append(held, b)
				}
			}
			s.pool.add(&s.pool.limited, held...)
		}
		if !pause(ctx, 1500*time.Millisecond) {
			return nil
		}
	}
}

// guard is a service's verifier on a replica of its own.
type guard struct {
	s     *sim
	name  string
	token string // its credential
	first int    // the node that it asks first

	mu   sync.Mutex
	life *guardLife // nil: it has crashed; guarded by mu
}

// serve has the guard be shown credentials until ctx ends.
func (g *guard) serve(ctx context.Context, n int) error {
	random := g.s.random(1000*g.s.phase + 400 + n)
	for pause(ctx, between(random, 20*time.Millisecond)) {
		list := &g.s.pool.plain
		switch random.IntN(6) {
		case 0, 1:
			list = &g.s.pool.gone
		case 2:
			list = &g.s.pool.limited
		}
		if c, ok := pick(&g.s.pool, list, random); ok {
			g.present(ctx, c)
		}
	}
	return nil
}

// present shows the guard a credential, and records its verdict before anybody
// else hears of it.
func (g *guard) present(ctx context.Context, c *credential) capability.Code {
	g.mu.Lock()
	life := g.life
	g.mu.Unlock()
	if life == nil {
		return capability.CodeUnavailable
	}
	begun := g.s.now()
	err := life.verifier.Verify(ctx, new(capability.Grant), c.token.Bytes(), &capability.Request{Now: time.Now(), Service: "corp"})
	code := capability.CodeOf(err)
	if err != nil && (ctx.Err() != nil || life.ctx.Err() != nil) {
		return capability.CodeUnavailable // nobody is there to hear it
	}
	g.s.record(g.name, begun, check.Record{Op: check.OpVerdict, Name: c.name, Code: string(code)})
	return code
}

// tokenName is the name of the token that a credential was derived from.
func tokenName(name string) string {
	for i := range len(name) {
		if name[i] == '/' {
			return name[:i]
		}
	}
	return name
}

// drain offers each budget at least twice its limit, and every other one until
// every guard refuses.
func (s *sim) drain(ctx context.Context) {
	offered := make(map[string]uint64) // and either accepted, or refused for want of calls
	for _, r := range s.log.Records() {
		if r.Op == check.OpVerdict && (r.Code == "" || r.Code == string(capability.CodeBudgetExhausted)) {
			offered[r.Name]++
		}
	}
	for n, c := range s.pool.limited {
		exhausted := 0 // times in a row
		for i := 0; ctx.Err() == nil && i < 400 && (offered[c.name] < 2*slices.Max(c.limits) || n%2 == 0 && exhausted < 2*len(s.guards)); i++ {
			switch s.guards[i%len(s.guards)].present(ctx, c) {
			case "":
				exhausted = 0
				offered[c.name]++
			case capability.CodeBudgetExhausted:
				exhausted++
				offered[c.name]++
			}
		}
	}
}

// checker is the standard vocabulary.
func checker() (*caveats.Checker, error) { return caveats.Standard() }
