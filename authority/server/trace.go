package server

import (
	"context"
	"log/slog"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/capability"
)

func tracer(p trace.TracerProvider) trace.Tracer {
	if p == nil {
		p = noop.NewTracerProvider()
	}
	return p.Tracer("github.com/writ-dev/writ/authority/server")
}

// startSpan begins the call's span under the caller's trace. It comes after the
// credential's MAC has verified: a stranger could otherwise fill the collector.
// What needs no room in a lane, feeds, comes too often to be traced.
func (x *exchange) startSpan() {
	if x.route.lane == laneFree {
		return
	}
	ctx := propagation.TraceContext{}.Extract(x.r.Context(), propagation.HeaderCarrier(x.r.Header))
	ctx, x.span = x.s.spans.Start(ctx, x.route.name(), trace.WithSpanKind(trace.SpanKindServer), trace.WithTimestamp(x.start),
		trace.WithAttributes(attribute.String("http.route", x.route.pattern), attribute.String("http.request.method", x.route.method)))
	x.r = x.r.WithContext(ctx)
}

// endSpan ends it with what the caller was told.
func (x *exchange) endSpan(status int, code api.Code, reference string) {
	if !x.span.IsRecording() {
		return
	}
	x.span.SetAttributes(attribute.Int("http.response.status_code", status))
	if x.call.Name != "" {
		x.span.SetAttributes(attribute.String("writ.caller", x.call.Name))
	}
	if code != "" {
		x.span.SetAttributes(attribute.String("writ.code", string(code)), attribute.String("writ.reference", reference))
	}
	if status >= 500 { // a refusal is an answer; so says OpenTelemetry of servers
		x.span.SetStatus(codes.Error, "")
	}
	x.span.End()
}

// logAnswer logs a call that was not refused. Probes come by the second and say
// nothing; of every change the audit log keeps more.
func (x *exchange) logAnswer(status int) {
	ctx := x.r.Context()
	if x.route.raw != nil || !x.s.log.Enabled(ctx, slog.LevelDebug) {
		return
	}
	attrs := []slog.Attr{
		slog.String("route", x.route.name()), slog.Int("status", status), slog.Duration("took", time.Since(x.start)),
		slog.String("remote", x.r.RemoteAddr),
	}
	if x.call.Name != "" {
		attrs = append(attrs, slog.String("caller", x.call.Name))
	}
	if x.call.Request != (capability.TokenID{}) {
		attrs = append(attrs, slog.String("request", x.call.Request.String()))
	}
	x.s.log.LogAttrs(ctx, slog.LevelDebug, "answered", appendTrace(ctx, attrs)...)
}

// appendTrace adds the id of the context's trace, where there is one.
func appendTrace(ctx context.Context, attrs []slog.Attr) []slog.Attr {
	if id := trace.SpanContextFromContext(ctx).TraceID(); id.IsValid() {
		attrs = append(attrs, slog.String("trace", id.String()))
	}
	return attrs
}
