package guard

import (
	"context"
	"errors"
	"net/http"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/writ-dev/writ/capability"
)

// getter is a carrier that is only read.
type getter func(string) string

func (g getter) Get(key string) string { return g(key) }
func (getter) Set(string, string)      {}
func (getter) Keys() []string          { return nil }

// CallersTrace returns ctx within the trace that the caller named (W3C Trace
// Context), read by get from the call's headers. Where ctx is in a trace already,
// as beneath a service's own instrumentation, and where the judge does not trace,
// it is ctx. The adapters use it; nothing that the caller says here is
// authenticated.
func (j *Judge) CallersTrace(ctx context.Context, get func(header string) string) context.Context {
	if j.spans == nil || trace.SpanContextFromContext(ctx).IsValid() {
		return ctx
	}
	return propagation.TraceContext{}.Extract(ctx, getter(get))
}

// startSpan begins a decision's span; end tells it the outcome. Of the call it
// says the route and the action, of the token its id, of a refusal the code and
// the reference of the log line: never the resource, the arguments or an
// explanation, which may quote what only the owner's log may hold.
func (j *Judge) startSpan(ctx context.Context, where string) (context.Context, func(*Grant, *capability.Request, error)) {
	ctx, span := j.spans.Start(ctx, "writ.guard", trace.WithAttributes(attribute.String("writ.route", where)))
	return ctx, func(g *Grant, req *capability.Request, err error) {
		span.SetAttributes(attribute.String("writ.action", printable(req.Action)))
		if d, ok := errors.AsType[*Denial](err); ok {
			span.SetAttributes(attribute.String("writ.code", string(d.Code)), attribute.String("writ.reference", d.Reference))
		} else {
			span.SetAttributes(attribute.String("writ.token", g.ID().String()))
		}
		span.End()
	}
}

// handOnTrace puts the trace of r's context on r, unless something outer has.
func handOnTrace(r *http.Request) {
	if r.Header.Get("Traceparent") == "" {
		propagation.TraceContext{}.Inject(r.Context(), propagation.HeaderCarrier(r.Header))
	}
}
