//go:build linux

package process

import (
	"context"
	crand "crypto/rand"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/chaos/check"
	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/capability"
)

const (
	pace   = 50 * time.Millisecond // between two things that one worker does
	giveUp = 5 * time.Second       // of a client, for one change
	recent = 48                    // how many of the newest are at work
)

// credential is what a client holds.
type credential struct {
	name   string
	id     capability.TokenID
	token  *capability.Token
	limits []uint64    // of the budgets that it adds to its parent's
	spared bool        // never revoked
	asked  bool        // its revocation has been asked for; guarded by load.mu
	twin   *credential // that was derived beside it and is spared; nil: none
}

// load is what one client process does.
type load struct {
	cfg    workerConfig
	log    *check.Log
	any    *client.Client   // of all nodes
	at     []*client.Client // of one node each
	lessee *client.Client
	web    *http.Client

	stop context.CancelFunc
	work sync.WaitGroup

	mu      sync.Mutex
	names   []string      // asked for, acknowledged or not, without a budget; guarded by mu
	leases  []*credential // with a budget that is leased by hand; guarded by mu
	living  []*credential // to be shown; guarded by mu
	dead    []*credential // whose revocation has been asked for; guarded by mu
	twins   []*credential // of those; guarded by mu
	budgets []*credential // whose calls are counted; guarded by mu
}

func startLoad(cfg workerConfig, log *check.Log) (*load, error) {
	l := &load{cfg: cfg, log: log, web: &http.Client{Timeout: 10 * time.Second}}
	open := func(token string, attempts int, addrs ...string) (*client.Client, error) {
		return client.New(client.Config{Addrs: addrs, CAFingerprint: cfg.Fingerprint, Token: token, Timeout: 2 * time.Second, Attempts: attempts})
	}
	var err error
	if l.any, err = open(cfg.Token, 12, cfg.Addrs...); err != nil {
		return nil, err
	}
	if l.lessee, err = open(cfg.Lessee, 12, cfg.Addrs...); err != nil {
		return nil, err
	}
	for _, addr := range cfg.Addrs {
		c, err := open(cfg.Token, 1, addr)
		if err != nil {
			return nil, err
		}
		l.at = append(l.at, c)
	}
	ctx, cancel := context.WithCancel(context.Background())
	l.stop = cancel
	for i, do := range []func(context.Context, *job){
		l.issueAndRevoke, l.issueAndRevoke, l.read, l.read, l.read, l.read, l.read, l.read, l.read, l.read, l.call, l.call, l.spend, l.leaseAndReturn, l.repeat,
	} {
		j := &job{name: fmt.Sprintf("%s.%d", cfg.Name, i), random: rand.New(rand.NewPCG(cfg.Seed, uint64(i)))}
		l.work.Go(func() {
			for pause(ctx, pace) {
				j.turn++
				do(ctx, j)
			}
		})
	}
	return l, nil
}

// job is one of a client's workers: it does one thing at a time.
type job struct {
	name   string
	random *rand.Rand
	turn   int
	own    *credential // leaseAndReturn: what it leases from
	taken  int         // … and how often
}

func (j *job) next(what string) string { return fmt.Sprintf("%s-%s-%d", what, j.name, j.turn) }

func pick[T any](all []T, r *rand.Rand) (one T, ok bool) {
	if len(all) == 0 {
		return one, false
	}
	from := max(0, len(all)-recent)
	return all[from+r.IntN(len(all)-from)], true
}

// add records. A worker that cannot is of no use.
func (l *load) add(r check.Record) {
	if err := l.log.Add(r); err != nil {
		panic(err)
	}
}

func requestID(at time.Time) capability.TokenID {
	var random [10]byte
	_, _ = crand.Read(random[:]) // never fails
	return capability.NewTokenID(at.UnixMilli(), random)
}

// change makes a change with a request id of its own. Now and then the same
// request is made a second time: at once, by way of another node, or seconds late.
// What came of that must be what came of the first.
func change[T any](ctx context.Context, l *load, j *job, c *client.Client, do func(context.Context, *client.Client) (T, error), same func(a, b T) bool, twice func()) (T, error) {
	ctx = client.WithRequestID(context.WithoutCancel(ctx), requestID(time.Now()))
	again := func(wait time.Duration, first <-chan T) {
		l.work.Go(func() {
			pause(context.Background(), wait)
			limited, cancel := context.WithTimeout(ctx, giveUp)
			defer cancel()
			begun := now()
			second, err := do(limited, c)
			one, ok := <-first
			if !ok || err != nil {
				return
			}
			l.add(check.Record{Op: check.OpRepeat, Client: j.name + "'", Begun: begun, Ended: now()})
			if !same(one, second) {
				twice()
			}
		})
	}
	first := make(chan T, 1)
	defer close(first)
	switch j.random.IntN(16) {
	case 0, 1:
		again(0, first)
	case 2:
		again(time.Duration(1+j.random.IntN(3))*time.Second, first)
	}
	limited, cancel := context.WithTimeout(ctx, giveUp)
	defer cancel()
	got, err := do(limited, c)
	if err == nil {
		first <- got
	}
	return got, err
}

func (l *load) issue(ctx context.Context, j *job, name string, limits ...uint64) (*credential, error) {
	r := api.IssueRequest{Audience: audience, Subject: name, Owner: "o@corp.example", Purpose: "campaign", TTLSeconds: 900}
	for _, limit := range limits {
		r.Caveats = append(r.Caveats, fmt.Sprintf("max-calls %d", limit))
	}
	done := check.Record{Op: check.OpIssue, Client: j.name, Name: name, Limits: limits, Begun: now()}
	got, err := change(ctx, l, j, l.any, func(ctx context.Context, c *client.Client) (*api.TokenResponse, error) { return c.Issue(ctx, r) },
		func(a, b *api.TokenResponse) bool { return a.Token == b.Token }, func() { l.madeTwice(j, name) })
	done.Ended, done.Unknown = now(), err != nil
	l.add(done)
	if err != nil {
		return nil, err
	}
	token, err := capability.Parse(got.Token)
	if err != nil {
		return nil, err
	}
	return &credential{name: name, id: got.ID, token: token, limits: limits}, nil
}

// madeTwice records that a request had two outcomes.
func (l *load) madeTwice(j *job, name string) {
	at := now()
	l.add(check.Record{Op: check.OpRead, Client: j.name + "'", Name: name, Seen: check.Twice, Begun: at, Ended: at})
}

// narrow derives a credential offline.
func (l *load) narrow(from *credential, label string, limits ...uint64) (*credential, error) {
	conditions := []string{"action call"}
	for _, limit := range limits {
		conditions = append(conditions, fmt.Sprintf("max-calls %d", limit))
	}
	token, err := from.token.Attenuate(conditions...)
	if err != nil {
		return nil, err
	}
	c := &credential{name: from.name + "/" + label, id: from.id, token: token, limits: limits}
	l.add(check.Record{Op: check.OpNarrow, Name: c.name, Limits: limits})
	return c, nil
}

func (l *load) issueAndRevoke(ctx context.Context, j *job) {
	if j.random.IntN(3) == 0 {
		l.revokeOne(ctx, j)
		return
	}
	name := j.next("agent")
	l.mu.Lock()
	l.names = append(l.names, name)
	l.mu.Unlock()
	c, err := l.issue(ctx, j, name)
	if err != nil {
		return
	}
	made := []*credential{c}
	c.spared = j.random.IntN(3) == 0
	if j.random.IntN(2) == 0 { // two siblings, one of which may be revoked
		for i, label := range []string{"y", "x"} {
			sibling, err := l.narrow(c, label)
			if err != nil {
				panic(err)
			}
			sibling.spared = i == 0
			made = append(made, sibling)
		}
		made[2].twin = made[1]
		c.spared = true
	}
	l.mu.Lock()
	l.living = append(l.living, made...)
	l.mu.Unlock()
}

// revokeOne revokes one of the newest that are not spared: a token by its id, and a
// branch by what its holder holds.
func (l *load) revokeOne(ctx context.Context, j *job) {
	l.mu.Lock()
	c, ok := pick(l.living, j.random)
	if ok && (c.spared || c.asked) {
		ok = false
	}
	if ok {
		c.asked = true
		l.dead = append(l.dead, c)
		if c.twin != nil {
			l.twins = append(l.twins, c.twin)
		}
	}
	l.mu.Unlock()
	if !ok {
		return
	}
	do := func(ctx context.Context, a *client.Client) (*api.RevokeResponse, error) {
		return a.Revoke(ctx, api.RevokeRequest{Kind: api.RevokeToken, Token: c.id.String(), Reason: "campaign"})
	}
	if parentOf(c.name) != "" {
		do = func(ctx context.Context, a *client.Client) (*api.RevokeResponse, error) {
			return a.RevokeSelf(ctx, api.SelfRevokeRequest{Token: c.token.Text(), Reason: "campaign"})
		}
	}
	done := check.Record{Op: check.OpRevoke, Client: j.name, Name: c.name, Begun: now()}
	_, err := change(ctx, l, j, l.any, do, func(*api.RevokeResponse, *api.RevokeResponse) bool { return true }, func() {})
	done.Ended, done.Unknown = now(), err != nil
	l.add(done)
}

func parentOf(name string) string {
	for i := len(name) - 1; i >= 0; i-- {
		if name[i] == '/' {
			return name[:i]
		}
	}
	return ""
}

// read makes a linearizable read at any node.
func (l *load) read(ctx context.Context, j *job) {
	at := l.at[j.random.IntN(len(l.at))]
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	l.mu.Lock()
	name, ok := pick(l.names, j.random)
	leased, some := pick(l.leases, j.random)
	l.mu.Unlock()
	if some && j.random.IntN(3) == 0 {
		l.readLeased(ctx, j, at, leased)
	} else if ok {
		l.readPresence(ctx, j, at, name)
	}
}

func (l *load) readPresence(ctx context.Context, j *job, at *client.Client, name string) {
	done := check.Record{Op: check.OpRead, Client: j.name, Name: name, Seen: check.Absent, Begun: now()}
	list, err := at.Tokens(ctx, client.TokenQuery{Subject: name, Linearizable: true})
	done.Ended = now()
	if err != nil {
		return
	}
	for _, t := range list.Tokens {
		switch {
		case len(list.Tokens) > 1:
			done.Seen = check.Twice
		case t.Revoked:
			done.Seen = check.Revoked
		default:
			done.Seen = check.Live
		}
	}
	l.add(done)
}

func (l *load) readLeased(ctx context.Context, j *job, at *client.Client, c *credential) {
	done := check.Record{Op: check.OpRead, Client: j.name, Name: c.name, Seen: check.Live, Left: leaseCalls, Begun: now()}
	t, err := at.TokenLinearizable(ctx, c.id)
	done.Ended = now()
	if err != nil {
		return
	}
	for _, b := range t.Budgets { // none before the first lease
		done.Left = b.Remaining
	}
	l.add(done)
}

// call shows guards what is good, what has been revoked and what was derived beside
// that, again and again.
func (l *load) call(ctx context.Context, j *job) {
	for range 2 {
		l.mu.Lock()
		from := l.living
		switch j.random.IntN(6) {
		case 0, 1:
			from = l.dead
		case 2:
			from = l.twins
		}
		c, ok := pick(from, j.random)
		l.mu.Unlock()
		if ok {
			l.show(ctx, c, l.cfg.Guards[j.random.IntN(len(l.cfg.Guards))])
		}
	}
}

// show calls a service, and returns what its guard said.
func (l *load) show(ctx context.Context, c *credential, service string) (verdict string, err error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, service+calls+c.name, nil)
	if err != nil {
		return "", err
	}
	r.Header.Set("Authorization", "Bearer "+c.token.Text())
	answer, err := l.web.Do(r)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	return answer.Header.Get("Verdict"), nil
}

// spend makes budgets, nested ones too, and has guards spend them.
func (l *load) spend(ctx context.Context, j *job) {
	if j.turn%40 == 1 {
		limits := []uint64{uint64(20 + 7*j.turn/40%30)}
		if j.turn/40%2 == 1 {
			limits = append(limits, limits[0]+15)
		}
		c, err := l.issue(ctx, j, j.next("spender"), limits...)
		if err != nil {
			return
		}
		made := []*credential{c}
		if j.turn/40%3 == 2 { // its holder lends a part of it
			c, err := l.narrow(c, "x", limits[0]/2)
			if err != nil {
				panic(err)
			}
			made = append(made, c)
		}
		l.mu.Lock()
		l.budgets = append(l.budgets, made...)
		l.mu.Unlock()
		return
	}
	l.mu.Lock()
	c, ok := pick(l.budgets, j.random)
	l.mu.Unlock()
	if ok {
		l.show(ctx, c, l.cfg.Guards[j.random.IntN(len(l.cfg.Guards))])
	}
}

// byHand begins the name of a token whose calls are leased one by one, leaseCalls of them.
const (
	byHand     = "lease"
	leaseCalls = 6
)

// leaseAndReturn leases one call after the other, and gives some back, all by hand.
func (l *load) leaseAndReturn(ctx context.Context, j *job) {
	if j.own == nil || j.taken == 3*leaseCalls {
		c, err := l.issue(ctx, j, j.next(byHand), leaseCalls)
		if err == nil {
			j.own, j.taken = c, 0
			l.mu.Lock()
			l.leases = append(l.leases, c)
			l.mu.Unlock()
		}
		return
	}
	j.taken++
	taken := check.Record{Op: check.OpLease, Client: j.name, Name: j.own.name, Begun: now()}
	root, _ := j.own.token.Root()
	got, err := change(ctx, l, j, l.lessee, func(ctx context.Context, c *client.Client) (*api.LeaseResponse, error) {
		return c.Lease(ctx, api.LeaseRequest{Macaroon: root.Bytes(), Want: 1})
	}, func(a, b *api.LeaseResponse) bool { return a.Lease == b.Lease }, func() { l.madeTwice(j, j.own.name) })
	taken.Ended = now()
	if err == nil {
		taken.Lease = got.Lease
	} else if code := capability.CodeOf(err); code == capability.CodeBudgetExhausted || code == capability.CodeRevoked {
		taken.Code = string(code)
	} else {
		taken.Unknown = true
	}
	l.add(taken)
	if taken.Lease == "" || j.random.IntN(2) == 0 {
		return
	}
	for range 1 + j.random.IntN(2) { // the second time, it credits nothing
		back := check.Record{Op: check.OpReturn, Client: j.name, Name: j.own.name, Lease: taken.Lease, Begun: now()}
		credited, err := change(ctx, l, j, l.lessee, func(ctx context.Context, c *client.Client) (*api.ReturnResponse, error) {
			return c.Return(ctx, back.Lease, api.ReturnRequest{Unspent: 1})
		}, func(a, b *api.ReturnResponse) bool { return true }, func() {})
		back.Ended, back.Unknown = now(), err != nil
		if err == nil {
			back.Calls = credited.Credited
		}
		l.add(back)
	}
}

// repeat asks for a token under a request id that is older than any retry may be:
// never executed.
func (l *load) repeat(ctx context.Context, j *job) {
	if j.turn%20 != 0 {
		return
	}
	name := j.next("late")
	ctx, cancel := context.WithTimeout(client.WithRequestID(ctx, requestID(time.Now().Add(-11*time.Minute))), giveUp)
	defer cancel()
	l.mu.Lock()
	l.names = append(l.names, name)
	l.mu.Unlock()
	if _, err := l.any.Issue(ctx, api.IssueRequest{Audience: audience, Subject: name, Owner: "o@corp.example", Purpose: "campaign"}); err == nil {
		l.madeTwice(j, name)
	}
}

// do does what the rig asks of a client: finish, to end the load and show guards
// everything once more.
func (l *load) do(command string) error {
	if command != "finish" {
		return errUnknown
	}
	l.stop()
	l.work.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	pause(ctx, l.cfg.Bound+100*time.Millisecond)
	for _, service := range l.cfg.Guards {
		for _, all := range [][]*credential{l.living, l.dead, l.twins} {
			for _, c := range all[max(0, len(all)-recent):] {
				if _, err := l.show(ctx, c, service); err != nil {
					return err
				}
			}
		}
	}
	return l.exhaust(ctx)
}

// exhaust offers each budget at least twice its limit, and until every guard
// refuses; not for ever, since one that can be overspent never ends.
func (l *load) exhaust(ctx context.Context) error {
	for _, c := range l.budgets {
		least, refused, offered := slices.Max(c.limits), 0, uint64(0)
		for turn := range 4*least + 50 {
			if offered >= 2*least && refused >= 2*len(l.cfg.Guards) {
				break
			}
			verdict, err := l.show(ctx, c, l.cfg.Guards[turn%uint64(len(l.cfg.Guards))])
			if err != nil {
				return err
			}
			switch verdict {
			case "":
				offered, refused = offered+1, 0
			case string(capability.CodeBudgetExhausted):
				offered, refused = offered+1, refused+1
			default:
				refused = 0
			}
		}
	}
	return nil
}
