package main

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/protobuf/proto"
)

// What a node records arrives at the collector that is configured, and names
// the node.
func TestTracesAreExported(t *testing.T) {
	got := make(chan *collector.ExportTraceServiceRequest, 1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		message := new(collector.ExportTraceServiceRequest)
		if err != nil || r.URL.Path != "/v1/traces" || proto.Unmarshal(body, message) != nil {
			t.Errorf("%s: %v", r.URL.Path, err)
		}
		got <- message
	}))
	defer server.Close()
	c := defaultConfig()
	c.TraceEndpoint, c.TraceRatio, c.Node = server.URL, 1, "n7"
	if err := c.check(); err != nil {
		t.Fatal(err)
	}
	spans, flush, err := c.tracing(t.Context(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	_, span := spans.Tracer("test").Start(t.Context(), "POST /v1/tokens")
	span.End()
	flush()
	all := (<-got).ResourceSpans
	if len(all) != 1 || all[0].ScopeSpans[0].Spans[0].Name != "POST /v1/tokens" {
		t.Fatalf("%v", all)
	}
	attributes := map[string]string{}
	for _, a := range all[0].Resource.Attributes {
		attributes[a.Key] = a.Value.GetStringValue()
	}
	if attributes["service.name"] != "writ" || attributes["service.instance.id"] != "n7" || len(attributes) != 3 {
		t.Errorf("resource %v", attributes)
	}
}
