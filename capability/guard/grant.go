package guard

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/writ-dev/writ/capability"
)

// ErrNoGrant is returned for a context that no guard has put a Grant into.
var ErrNoGrant = errors.New("guard: no grant in the context")

// Grant is what a guard has established about a call. It may be kept after the
// handler has returned, and used by several goroutines. It prints redacted.
type Grant struct {
	judge      *Judge
	verifier   Verifier
	identifier capability.Identifier
	logLevel   string
	credential Credential
	request    *capability.Request

	mu       sync.Mutex
	verified *capability.Grant // guarded by mu; nil once it has gone back to the pool
}

// pool holds what verifications fill, which is several kilobytes. A Grant
// copies from it what it may be asked for later, so that whoever keeps a Grant
// never sees another call's.
var pool = sync.Pool{New: func() any { return new(capability.Grant) }}

// release ends the use of what the verification filled. The HTTP guard calls it
// when the handler has returned; the others leave it to the garbage collector.
func (g *Grant) release() {
	g.mu.Lock()
	v := g.verified
	g.verified = nil
	g.mu.Unlock()
	if v != nil {
		pool.Put(v)
	}
}

type contextKey struct{}

// FromContext returns the call's Grant, or nil if no guard stands before the
// handler. On nil, the methods that return an error return ErrNoGrant, and the
// others panic: a handler that was to be guarded must not run open.
func FromContext(ctx context.Context) *Grant {
	g, _ := ctx.Value(contextKey{}).(*Grant)
	return g
}

// NewContext returns a context that carries g: the adapters of other protocols
// use it.
func NewContext(ctx context.Context, g *Grant) context.Context {
	return context.WithValue(ctx, contextKey{}, g)
}

// ID is the token's id.
func (g *Grant) ID() capability.TokenID { return g.identifier.ID }

// Audience is the audience that the token was minted for.
func (g *Grant) Audience() string { return g.identifier.Audience }

// Subject is who the token was minted for.
func (g *Grant) Subject() string { return g.identifier.Subject }

// NotAfter is the token's hard expiry; a time-before caveat may end it earlier.
func (g *Grant) NotAfter() time.Time { return g.identifier.NotAfter }

// LogLevel is the strictest level of the token's log caveats, or empty. The
// guard has written the access record.
func (g *Grant) LogLevel() string { return g.logLevel }

// Branch is the branch id of the token as presented: what to revoke.
func (g *Grant) Branch() capability.BranchID {
	t, err := capability.Parse(g.credential.Token)
	if err != nil {
		return capability.BranchID{} // cannot be: it has been verified
	}
	return t.Branch()
}

// Declared is a fact declared by a discharge that the minter asked for. Over
// HTTP it is known until the handler returns.
func (g *Grant) Declared(key string) (string, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.verified == nil {
		return "", false
	}
	return g.verified.Declared(key)
}

// Request is what the token was judged against. Do not change it.
func (g *Grant) Request() *capability.Request { return g.request }

// String never shows the credential.
func (g *Grant) String() string { return "(grant redacted)" }

// GoString never shows the credential.
func (g *Grant) GoString() string { return "(grant redacted)" }

// LogValue never shows the credential.
func (g *Grant) LogValue() slog.Value { return slog.StringValue("(grant redacted)") }

// Narrow returns the call's token with conditions appended, for the next hop.
// Errors: CodeNotForwardable for a token bound to a key that is not this
// service's (ForwardAs), or to one request; CodeTooLarge; CodeMalformed;
// ErrNoGrant.
func (g *Grant) Narrow(conditions ...string) (*capability.Token, error) {
	root, discharges, err := g.narrow(conditions)
	if err != nil {
		return nil, err
	}
	return root.WithDischarges(discharges...)
}

// narrow keeps root and discharges apart, as they came.
func (g *Grant) narrow(conditions []string) (root *capability.Token, discharges []*capability.Token, err error) {
	if g == nil {
		return nil, nil, ErrNoGrant
	}
	if root, discharges, err = g.credential.parse(); err != nil {
		return nil, nil, err
	}
	for _, t := range append(discharges, root) {
		if err := g.judge.forwardable(t); err != nil {
			return nil, nil, err
		}
	}
	root, err = root.Attenuate(conditions...)
	return root, discharges, err
}

// forwardable fails early where the next hop would refuse: holder and request
// caveats bind a token to this hop.
func (j *Judge) forwardable(t *capability.Token) error {
	in, err := t.Inspect()
	if err != nil {
		return err
	}
	for _, c := range in.Caveats {
		if err := j.forwardableCaveat(c); err != nil {
			return err
		}
	}
	for _, d := range in.Discharges {
		for _, c := range d.Caveats {
			if err := j.forwardableCaveat(c); err != nil {
				return err
			}
		}
	}
	return nil
}

func (j *Judge) forwardableCaveat(c capability.InspectedCaveat) error {
	if c.ThirdParty {
		return nil
	}
	name, words, _ := strings.Cut(c.Condition, " ")
	switch name {
	case "request":
	case "holder":
		for word := range strings.SplitSeq(words, " ") {
			for _, k := range j.ours {
				if word == k.String() {
					return nil
				}
			}
		}
	default:
		return nil
	}
	return &capability.Refusal{Code: capability.CodeNotForwardable, Caveat: c.Condition,
		Detail: "derive a token for the next audience, or have the holder prepare one"}
}

// Forward narrows the call's token and puts it on a request to the next
// service. Errors: those of Narrow; a request that has a credential already,
// or would send it without TLS to another host (UnsafePlaintext).
func (g *Grant) Forward(r *http.Request, conditions ...string) error {
	root, discharges, err := g.narrow(conditions)
	if err != nil {
		return err
	}
	if err := mayCarry(r, g.judge.plaintext); err != nil {
		return err
	}
	setCredential(r, root, discharges)
	return nil
}

// Client returns a client whose requests carry the call's token, narrowed once,
// here. A nil base is http.DefaultTransport. It does not follow the token to
// another origin on redirects. Errors: those of Narrow.
func (g *Grant) Client(base http.RoundTripper, conditions ...string) (*http.Client, error) {
	root, discharges, err := g.narrow(conditions)
	if err != nil {
		return nil, err
	}
	return &http.Client{Transport: &Transport{
		Base: base, Token: root, Discharges: discharges, UnsafePlaintext: g.judge.plaintext,
	}}, nil
}

// Recheck decides again, now, whether the token allows the call, and spends
// nothing. The evidence of key possession is the one that came with the call.
// Errors: those of the verifier (capability.CodeOf), ErrNoGrant.
func (g *Grant) Recheck(ctx context.Context) error {
	if g == nil {
		return ErrNoGrant
	}
	return g.RecheckFor(ctx, *g.request)
}

// RecheckFor decides whether the token allows another request of the same call,
// such as the next message of a stream, and spends nothing. It sets the
// request's Now and Service. Errors: those of Recheck.
func (g *Grant) RecheckFor(ctx context.Context, req capability.Request) error {
	if g == nil {
		return ErrNoGrant
	}
	whole, err := g.credential.whole()
	if err != nil {
		return err
	}
	req.Now, req.Service = g.judge.now(), g.judge.service
	again := pool.Get().(*capability.Grant)
	defer pool.Put(again)
	return g.verifier.DryRun(ctx, again, whole.Bytes(), withFacts(&req))
}

// Watch returns a context that ends as soon as a recheck, made this often,
// refuses; context.Cause then tells why. A stream whose handler works under it
// ends at most that long, and the verifier's bound, after a revocation.
// The caller cancels it when done.
func (g *Grant) Watch(ctx context.Context, every time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	if g == nil || every <= 0 {
		cancel(ErrNoGrant)
		return ctx, func() {}
	}
	go func() {
		t := time.NewTicker(every)
		defer t.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-t.C:
				if err := g.Recheck(ctx); err != nil {
					cancel(err)
					return
				}
			}
		}
	}()
	return ctx, func() { cancel(context.Canceled) }
}
