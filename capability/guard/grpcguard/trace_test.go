package grpcguard_test

import (
	"context"
	"testing"

	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"

	"github.com/writ-dev/writ/capability/guard"
	"github.com/writ-dev/writ/capability/guard/grpcguard"
	"github.com/writ-dev/writ/capability/guard/internal/guardtest"
)

// A call continues the trace that its metadata names, in the guard and in the handler.
func TestTrace(t *testing.T) {
	const id = "4bf92f3577b34da6a3ce929d0e0e4736"
	spans := tracetest.NewInMemoryExporter()
	a := guardtest.For(t)
	g, err := grpcguard.New(a.Verifier, grpcguard.Config{Methods: map[string]grpcguard.Method{check: {Action: "read", Resource: "services/{service}"}}},
		guard.Tracing(sdk.NewTracerProvider(sdk.WithSyncer(spans))))
	if err != nil {
		t.Fatal(err)
	}
	ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs(
		"authorization", "Bearer "+a.Token(t).Text(), "traceparent", "00-"+id+"-00f067aa0ba902b7-01"))
	_, err = g.Unary()(ctx, &healthpb.HealthCheckRequest{Service: "a"}, &grpc.UnaryServerInfo{FullMethod: check}, func(ctx context.Context, _ any) (any, error) {
		if got := trace.SpanContextFromContext(ctx).TraceID().String(); got != id {
			t.Errorf("the handler is in trace %s", got)
		}
		return nil, nil
	})
	if all := spans.GetSpans(); err != nil || len(all) != 1 || all[0].Parent.TraceID().String() != id {
		t.Errorf("%v, spans %+v", err, all)
	}
}
