package client

import (
	"strings"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/writ-dev/writ/capability"
)

// tracer is the client's, which without a provider records nothing but hands on
// the context's trace.
func tracer(p trace.TracerProvider) trace.Tracer {
	if p == nil {
		p = noop.NewTracerProvider()
	}
	return p.Tracer("github.com/writ-dev/writ/authority/client")
}

// spanName is the method and the collection: what follows may be an id, of
// which there is no end.
func spanName(k call) string {
	parts := strings.SplitN(k.path, "/", 4)
	return k.method + " " + strings.Join(parts[:min(len(parts), 3)], "/")
}

// codeAttr says why a call failed, by its stable code.
func codeAttr(err error) attribute.KeyValue {
	return attribute.String("writ.code", string(capability.CodeOf(err)))
}

// endSpan ends a call's span. The error's text stays out of it: it may quote
// what the caller sent.
func endSpan(span trace.Span, err error) {
	if err != nil {
		span.SetStatus(codes.Error, "")
		span.SetAttributes(codeAttr(err))
	}
	span.End()
}
