package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

func (c *config) checkTracing() error {
	if c.TraceRatio < 0 || c.TraceRatio > 1 || c.TraceRatio != c.TraceRatio {
		return configError("trace_ratio %v is not from 0 to 1", c.TraceRatio)
	}
	if c.TraceEndpoint == "" {
		return nil
	}
	u, err := url.Parse(c.TraceEndpoint)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" {
		return configError("trace_endpoint %q is no http or https URL", c.TraceEndpoint)
	}
	return nil
}

// tracing is where spans go, or nil, and what sends the last of them. Spans wait
// in a bounded queue: a collector that is slow or away costs spans and nothing
// else, and each failure a line of the log.
func (c *config) tracing(ctx context.Context, log *slog.Logger) (trace.TracerProvider, func(), error) {
	if c.TraceEndpoint == "" {
		return nil, func() {}, nil
	}
	endpoint, err := url.JoinPath(c.TraceEndpoint, "v1/traces")
	if err != nil {
		return nil, nil, configError("trace_endpoint %q is no URL", c.TraceEndpoint)
	}
	exporter, err := otlptrace.New(ctx, spanCollector(endpoint))
	if err != nil {
		return nil, nil, configError("trace_endpoint: %v", err)
	}
	// The exporter has no other way to say that it failed.
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { log.Warn("exporting traces", "err", err) }))
	provider := sdk.NewTracerProvider(
		sdk.WithBatcher(exporter),
		sdk.WithSampler(sdk.ParentBased(sdk.TraceIDRatioBased(c.TraceRatio))),
		sdk.WithResource(resource.NewSchemaless(
			attribute.String("service.name", "writ"),
			attribute.String("service.version", version().Version),
			attribute.String("service.instance.id", c.Node))))
	return provider, func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		_ = provider.Shutdown(ctx)
	}, nil
}

// spanCollector takes spans at a URL, in OTLP over HTTP with protobuf. The module's
// own client for this would link all of gRPC into writ.
type spanCollector string

// Start implements otlptrace.Client.
func (spanCollector) Start(context.Context) error { return nil }

// Stop implements otlptrace.Client.
func (spanCollector) Stop(context.Context) error { return nil }

// UploadTraces implements otlptrace.Client. A batch that fails is not sent again.
func (c spanCollector) UploadTraces(ctx context.Context, spans []*otlp.ResourceSpans) error {
	// The message of the request, ExportTraceServiceRequest, has this one's
	// encoding; it is generated together with a gRPC service.
	body, err := proto.Marshal(&otlp.TracesData{ResourceSpans: spans})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, string(c), bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/x-protobuf")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10)) // so that the connection can be used again
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("the collector answers HTTP %d", resp.StatusCode)
	}
	return nil
}
