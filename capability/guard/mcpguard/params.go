package mcpguard

import (
	"context"
	"errors"
	"maps"
	"reflect"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/capability/guard"
)

// The SDK's requests are a generic family without a common way to copy one, so
// these few lines do it by reflection: what callers hold is never changed.

func isNil(p mcp.Params) bool {
	return p == nil || reflect.ValueOf(p).IsNil()
}

// copyParams returns a shallow copy, whose _meta may be replaced.
func copyParams(p mcp.Params) mcp.Params {
	v := reflect.ValueOf(p)
	out := reflect.New(v.Type().Elem())
	if !v.IsNil() {
		out.Elem().Set(v.Elem())
	}
	return out.Interface().(mcp.Params)
}

// copyRequest returns a shallow copy of the request with other parameters, and
// its extra with the credential taken out if there is one.
func copyRequest(r mcp.Request, p mcp.Params) mcp.Request {
	out := reflect.New(reflect.TypeOf(r).Elem())
	out.Elem().Set(reflect.ValueOf(r).Elem())
	out.Elem().FieldByName("Params").Set(reflect.ValueOf(p))
	if extra := out.Elem().FieldByName("Extra"); extra.IsValid() {
		extra.Set(reflect.ValueOf(extraWithout(r.GetExtra())))
	}
	return out.Interface().(mcp.Request)
}

// withoutCredential returns the request as the handler may see it.
func withoutCredential(r mcp.Request) (mcp.Request, error) {
	p := r.GetParams()
	if p == nil {
		return nil, errors.New("no parameters")
	}
	q := copyParams(p)
	q.SetMeta(withoutKey(q.GetMeta()))
	return copyRequest(r, q), nil
}

func withoutKey(meta map[string]any) map[string]any {
	_, token := meta[MetaKey]
	_, proof := meta[ProofKey]
	if !token && !proof {
		return meta
	}
	out := maps.Clone(meta)
	delete(out, MetaKey)
	delete(out, ProofKey)
	return out
}

// Source returns the token for a request, given the request's context.
type Source func(ctx context.Context) (*capability.Token, error)

// Static is a Source of always the same token.
func Static(t *capability.Token) Source {
	return func(context.Context) (*capability.Token, error) { return t, nil }
}

// Forward is a Source that narrows the token of the call that is being served,
// which the context must come from: its Grant (guard.FromContext).
func Forward(conditions ...string) Source {
	return func(ctx context.Context) (*capability.Token, error) {
		return guard.FromContext(ctx).Narrow(conditions...)
	}
}

// Attach is for Client.AddSendingMiddleware: it puts a token in the _meta of
// every request that a guard judges, for transports that are not HTTP. Over
// HTTP, give the transport an http.Client with a guard.Transport instead.
func Attach(source Source) mcp.Middleware {
	return attach(source, func(ctx context.Context, c outgoing) (mcp.Result, error) {
		return c.next(ctx, c.method, withMeta(c.request, c.params, c.token, ""))
	})
}

// outgoing is a request that a guard will judge, and the token for it.
type outgoing struct {
	next    mcp.MethodHandler
	method  string
	request mcp.Request
	params  mcp.Params
	token   string
}

// attach has send send every request that a guard judges.
func attach(source Source, send func(context.Context, outgoing) (mcp.Result, error)) mcp.Middleware {
	return func(next mcp.MethodHandler) mcp.MethodHandler {
		return func(ctx context.Context, method string, r mcp.Request) (mcp.Result, error) {
			p := r.GetParams()
			if handshake(method) || p == nil {
				return next(ctx, method, r)
			}
			t, err := source(ctx)
			if err != nil {
				return nil, err
			}
			if t == nil {
				return nil, guard.ErrNoCredential
			}
			return send(ctx, outgoing{next, method, r, p, t.Text()})
		}
	}
}

// withMeta returns the request with a token, and a proof if there is one, in its _meta.
func withMeta(r mcp.Request, p mcp.Params, token, proof string) mcp.Request {
	q := copyParams(p)
	meta := maps.Clone(q.GetMeta())
	if meta == nil {
		meta = make(map[string]any)
	}
	meta[MetaKey] = token
	if proof != "" {
		meta[ProofKey] = proof
	}
	q.SetMeta(meta)
	return copyRequest(r, q)
}

// handshake reports whether the method is one that no guard judges.
func handshake(method string) bool {
	switch method {
	case "initialize", "ping", "server/discover", "notifications/initialized", "notifications/cancelled":
		return true
	}
	return false
}
