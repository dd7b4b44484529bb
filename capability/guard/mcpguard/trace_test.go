package mcpguard_test

import (
	"context"
	"net/http"
	"testing"

	"github.com/modelcontextprotocol/go-sdk/mcp"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/writ-dev/writ/capability/guard"
	"github.com/writ-dev/writ/capability/guard/internal/guardtest"
	"github.com/writ-dev/writ/capability/guard/mcpguard"
)

// A call continues the trace that its HTTP header names, or its _meta where
// there is no HTTP, in the guard and in the tool.
func TestTrace(t *testing.T) {
	const id = "4bf92f3577b34da6a3ce929d0e0e4736"
	const traceparent = "00-" + id + "-00f067aa0ba902b7-01"
	spans := tracetest.NewInMemoryExporter()
	a := guardtest.For(t)
	g, err := mcpguard.New(a.Verifier, mcpguard.Config{}, guard.Tracing(sdk.NewTracerProvider(sdk.WithSyncer(spans))))
	if err != nil {
		t.Fatal(err)
	}
	token := a.Token(t).Text()
	for name, r := range map[string]*mcp.CallToolRequest{
		"meta": {Params: &mcp.CallToolParamsRaw{Name: "pay", Meta: mcp.Meta{mcpguard.MetaKey: token, "traceparent": traceparent}}},
		"header": {Params: &mcp.CallToolParamsRaw{Name: "pay"}, Extra: &mcp.RequestExtra{Header: http.Header{
			"Authorization": {"Bearer " + token}, "Traceparent": {traceparent}}}},
	} {
		spans.Reset()
		handle := g.Middleware()(func(ctx context.Context, _ string, _ mcp.Request) (mcp.Result, error) {
			if got := trace.SpanContextFromContext(ctx).TraceID().String(); got != id {
				t.Errorf("%s: the tool is in trace %s", name, got)
			}
			return &mcp.CallToolResult{}, nil
		})
		_, err := handle(t.Context(), "tools/call", r)
		if all := spans.GetSpans(); err != nil || len(all) != 1 || all[0].Parent.TraceID().String() != id {
			t.Errorf("%s: %v, spans %+v", name, err, all)
		}
	}
}
