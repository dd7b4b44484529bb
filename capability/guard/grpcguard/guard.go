package grpcguard

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/proto"

	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/capability/guard"
	"github.com/writ-dev/writ/caveats/pop"
)

// DefaultRecheck is how long a stream runs before what crosses it is judged
// again, unless Config says otherwise.
const DefaultRecheck = time.Second

// Config says what a server's methods mean.
type Config struct {
	// Methods maps full method names, "/package.Service/Method".
	Methods map[string]Method
	// Open lists full method names that anybody may call, such as
	// "/grpc.health.v1.Health/Check".
	Open []string
	// Recheck is how old a decision on a stream may be when a message crosses
	// it; 0 is DefaultRecheck.
	Recheck time.Duration
	// Holder reads the evidence of key possession that came with a call, such
	// as the TLS client certificate in the context's peer; nil is none.
	Holder func(ctx context.Context, token string) capability.HolderProof
	// Proofs, if set, replaces Holder: it judges DPoP proofs in the metadata and
	// the TLS client's certificate, and the scheme DPoP is accepted.
	Proofs *pop.Verifier
}

// Method is what the calls of a method mean. Action and Resource (or
// ResourceFunc) are required.
type Method struct {
	// Action is what the calls do: one word, such as "read".
	Action string
	// Resource is what they do it to: segments separated by slashes, each
	// literal, "{field}" or, last, "{field...}" (which may be several
	// segments), with a string field of the request message.
	Resource string
	// ResourceFunc replaces Resource: it returns the segments that a message names.
	ResourceFunc func(ctx context.Context, message proto.Message) ([]string, error)
	// Arguments has the message's top-level fields as arguments, by their names
	// in the .proto file: strings, numbers, booleans, and enumerations by name.
	// A field with presence that is not set is no argument.
	Arguments bool
	// Verifier replaces the guard's, such as one with a tighter bound on the
	// age of revocations.
	Verifier guard.Verifier
}

// Guard is the server side: interceptors that judge every call. It is safe for
// concurrent use.
type Guard struct {
	judge   *guard.Judge
	methods map[string]*mapping
	open    map[string]bool
	recheck time.Duration
	holder  func(context.Context, string) capability.HolderProof
	proofs  *pop.Verifier
}

// New returns a guard. The options are those that are not for HTTP only.
func New(v guard.Verifier, c Config, opts ...guard.Option) (*Guard, error) {
	judge, err := guard.NewJudge(v, opts...)
	if err != nil {
		return nil, err
	}
	if c.Recheck < 0 {
		return nil, errors.New("grpcguard: negative Recheck")
	}
	g := &Guard{judge: judge, methods: make(map[string]*mapping), open: make(map[string]bool),
		recheck: c.Recheck, holder: c.Holder, proofs: c.Proofs}
	if c.Holder != nil && c.Proofs != nil {
		return nil, errors.New("grpcguard: both Holder and Proofs")
	}
	if g.recheck == 0 {
		g.recheck = DefaultRecheck
	}
	for _, name := range c.Open {
		if _, ok := c.Methods[name]; ok {
			return nil, fmt.Errorf("grpcguard: %s is both open and mapped", name)
		}
		g.open[name] = true
	}
	for name, m := range c.Methods {
		compiled, err := compile(name, m)
		if err != nil {
			return nil, fmt.Errorf("grpcguard: method %q: %w", name, err)
		}
		if compiled.judge = judge; m.Verifier != nil {
			if compiled.judge, err = guard.NewJudge(m.Verifier, opts...); err != nil {
				return nil, err
			}
		}
		g.methods[name] = compiled
	}
	return g, nil
}

// Check returns an error that names every method of the server's services that
// is neither mapped nor open, and every mapping that no service has: call it
// when the services are registered, before Serve.
func (g *Guard) Check(s interface {
	GetServiceInfo() map[string]grpc.ServiceInfo
}) error {
	var errs []error
	served := make(map[string]bool)
	for service, info := range s.GetServiceInfo() {
		for _, m := range info.Methods {
			full := "/" + service + "/" + m.Name
			served[full] = true
			if g.methods[full] == nil && !g.open[full] {
				errs = append(errs, fmt.Errorf("grpcguard: method %q has no mapping", full))
			}
		}
	}
	for full := range g.methods {
		if !served[full] {
			errs = append(errs, fmt.Errorf("grpcguard: method %q is mapped but not served", full))
		}
	}
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errors.Join(errs...)
}

// ServerOptions chains both interceptors, ahead of those that are given later.
func (g *Guard) ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{grpc.ChainUnaryInterceptor(g.Unary()), grpc.ChainStreamInterceptor(g.Stream())}
}

// Unary is the interceptor of unary calls.
func (g *Guard) Unary() grpc.UnaryServerInterceptor {
	return func(ctx context.Context, message any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		if g.open[info.FullMethod] {
			return next(ctx, message)
		}
		m, err := g.mapped(ctx, info.FullMethod)
		if err != nil {
			return nil, err
		}
		ctx = g.callersTrace(ctx)
		grant, err := g.allow(ctx, m, message)
		if err != nil {
			return nil, err
		}
		return next(guard.NewContext(withoutCredential(ctx), grant), message)
	}
}

// callersTrace puts ctx into the trace that the metadata names, if the judge traces.
func (g *Guard) callersTrace(ctx context.Context) context.Context {
	return g.judge.CallersTrace(ctx, func(key string) string {
		if values := metadata.ValueFromIncomingContext(ctx, key); len(values) == 1 {
			return values[0]
		}
		return ""
	})
}

func (g *Guard) mapped(ctx context.Context, method string) (*mapping, error) {
	if m := g.methods[method]; m != nil {
		return m, nil
	}
	err := &capability.Refusal{Code: capability.CodeActionDenied, Detail: "the method has no mapping"}
	return nil, statusOf(g.judge.Deny(ctx, err, nil, method))
}

// allow judges a call by its message; nil for a mapping that needs none.
func (g *Guard) allow(ctx context.Context, m *mapping, message any) (*guard.Grant, error) {
	cred, dpop, err := g.credential(ctx)
	if err != nil {
		return nil, g.refuse(ctx, m, err)
	}
	if cred.Token == "" {
		return nil, g.refuse(ctx, m, guard.ErrNoCredential)
	}
	req, err := m.request(ctx, message)
	if err != nil {
		return nil, g.refuse(ctx, m, err)
	}
	switch {
	case g.holder != nil:
		req.Holder = g.holder(ctx, cred.Token)
	case g.proofs != nil:
		req.Holder = g.proofs.Holder(evidence(ctx, m.name, cred.Token, dpop))
	}
	grant, err := m.judge.Allow(ctx, cred, &req, m.name)
	if err != nil {
		return nil, g.refuseProof(ctx, m, err, req.Holder)
	}
	return grant, nil
}

func (g *Guard) refuse(ctx context.Context, m *mapping, err error) error {
	return g.refuseProof(ctx, m, err, nil)
}

func (g *Guard) refuseProof(ctx context.Context, m *mapping, err error, holder capability.HolderProof) error {
	if shape, ok := errors.AsType[*shapeError](err); ok {
		return badRequest(m.judge.BadRequest(ctx, shape, nil, m.name))
	}
	d, ok := errors.AsType[*guard.Denial](err)
	if !ok {
		d = m.judge.Deny(ctx, err, nil, m.name)
	}
	if g.proofs != nil {
		return statusOf(d, proofInfo(g.proofs, holder)...)
	}
	return statusOf(d)
}

// The metadata keys of a credential.
const (
	authorizationKey = "authorization"
	dischargesKey    = "writ-discharges"
)

// credential reads the credential from the incoming metadata, and whether its
// scheme was DPoP.
func (g *Guard) credential(ctx context.Context) (cred guard.Credential, dpop bool, err error) {
	values := metadata.ValueFromIncomingContext(ctx, authorizationKey)
	if len(values) > 1 {
		return cred, false, &shapeError{"two authorization values"}
	}
	if len(values) == 0 {
		return cred, false, nil
	}
	if g.proofs != nil {
		cred.Token, dpop, err = guard.ParseToken(values[0])
	} else {
		cred.Token, err = guard.ParseBearer(values[0])
	}
	if err != nil || cred.Token == "" {
		return guard.Credential{}, false, err
	}
	cred.Discharges, err = guard.ParseDischarges(metadata.ValueFromIncomingContext(ctx, dischargesKey))
	return cred, dpop, err
}

// withoutCredential keeps the credential from a handler that copies incoming
// metadata to its own calls: the Grant is the way to pass it on.
func withoutCredential(ctx context.Context) context.Context {
	md, ok := metadata.FromIncomingContext(ctx) // a copy
	if !ok {
		return ctx
	}
	md.Delete(authorizationKey)
	md.Delete(dischargesKey)
	md.Delete(proofKey)
	return metadata.NewIncomingContext(ctx, md)
}

func clientAddr(ctx context.Context) netip.Addr {
	p, ok := peer.FromContext(ctx)
	if !ok || p.Addr == nil {
		return netip.Addr{}
	}
	ap, err := netip.ParseAddrPort(p.Addr.String())
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap()
}
