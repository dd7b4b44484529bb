package guard_test

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"go.opentelemetry.io/otel/attribute"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/writ-dev/writ/capability/guard"
	"github.com/writ-dev/writ/capability/guard/internal/guardtest"
)

const (
	callersID   = "4bf92f3577b34da6a3ce929d0e0e4736"
	traceparent = "00-" + callersID + "-00f067aa0ba902b7-01"
)

// The caller's trace goes through the decision and the handler to the next
// service; a refusal is a span with the code and the reference that were told.
func TestTraceCrossesTheGuard(t *testing.T) {
	spans := tracetest.NewInMemoryExporter()
	provider := sdk.NewTracerProvider(sdk.WithSyncer(spans))
	a := guardtest.For(t)
	next := make(chan string, 1)
	downstream := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { next <- r.Header.Get("Traceparent") }))
	defer downstream.Close()
	g, err := guard.New(a.Verifier, guard.Tracing(provider))
	if err != nil {
		t.Fatal(err)
	}
	g.HandleFunc("GET /files/{path...}", guard.Route{Action: "read", Resource: "files/{path...}"}, func(w http.ResponseWriter, r *http.Request) {
		client, err := guard.FromContext(r.Context()).Client(nil)
		if err != nil {
			t.Error(err)
			return
		}
		req, err := http.NewRequestWithContext(r.Context(), "GET", downstream.URL, nil)
		if err != nil {
			t.Error(err)
			return
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Error(err)
			return
		}
		resp.Body.Close()
	})
	h, err := g.Build()
	if err != nil {
		t.Fatal(err)
	}
	call := func(path, text string) (int, tracetest.SpanStub) {
		t.Helper()
		spans.Reset()
		r := httptest.NewRequest("GET", path, nil)
		r.Header.Set("Authorization", "Bearer "+text)
		r.Header.Set("Traceparent", traceparent)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		all := spans.GetSpans()
		if len(all) != 1 || all[0].Name != "writ.guard" || all[0].Parent.TraceID().String() != callersID {
			t.Fatalf("spans %+v", all)
		}
		return w.Code, all[0]
	}
	token := a.Token(t, "resource files/q3")
	code, span := call("/files/q3", token.Text())
	if code != 200 || value(span, "writ.token") == "" || value(span, "writ.code") != "" || value(span, "writ.action") != "read" {
		t.Errorf("%d %v", code, span.Attributes)
	}
	if got := <-next; got != traceparent {
		t.Errorf("the next service was called with traceparent %q", got)
	}
	code, span = call("/files/q4", token.Text())
	if code != 403 || value(span, "writ.code") != "resource_denied" || len(value(span, "writ.reference")) != 16 || value(span, "writ.token") != "" {
		t.Errorf("%d %v", code, span.Attributes)
	}
}

// A service's own span stays the parent, and a transport hands on what the
// context holds; what something outer has set stays.
func TestOwnTraceFirst(t *testing.T) {
	provider := sdk.NewTracerProvider(sdk.WithSyncer(tracetest.NewInMemoryExporter()))
	j, err := guard.NewJudge(guardtest.For(t).Verifier, guard.Tracing(provider))
	if err != nil {
		t.Fatal(err)
	}
	ctx, own := provider.Tracer("service").Start(t.Context(), "handler")
	defer own.End()
	named := func(string) string { return traceparent }
	if got := trace.SpanContextFromContext(j.CallersTrace(ctx, named)); got.TraceID() != own.SpanContext().TraceID() {
		t.Error("the caller's trace took the place of the service's")
	}
	if got := trace.SpanContextFromContext(j.CallersTrace(t.Context(), named)); got.TraceID().String() != callersID || !got.IsRemote() {
		t.Errorf("the caller's trace is lost: %v", got)
	}
	quiet, err := guard.NewJudge(guardtest.For(t).Verifier)
	if err != nil {
		t.Fatal(err)
	}
	if quiet.CallersTrace(t.Context(), named) != t.Context() {
		t.Error("a judge that does not trace reads the caller's trace")
	}
	var sent http.Header
	transport := &guard.Transport{Token: guardtest.For(t).Token(t), Base: roundTrip(func(r *http.Request) (*http.Response, error) {
		sent = r.Header
		return &http.Response{StatusCode: 204, Body: http.NoBody, Request: r}, nil
	})}
	req := httptest.NewRequest("GET", "https://next.example/", nil).WithContext(ctx)
	if _, err := transport.RoundTrip(req); err != nil {
		t.Fatal(err)
	}
	if want := "00-" + own.SpanContext().TraceID().String() + "-" + own.SpanContext().SpanID().String() + "-01"; sent.Get("Traceparent") != want {
		t.Errorf("traceparent %q, not %q", sent.Get("Traceparent"), want)
	}
	req.Header.Set("Traceparent", traceparent)
	if _, err := transport.RoundTrip(req); err != nil || sent.Get("Traceparent") != traceparent {
		t.Errorf("traceparent %q, %v", sent.Get("Traceparent"), err)
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func value(s tracetest.SpanStub, key string) string {
	for _, a := range s.Attributes {
		if a.Key == attribute.Key(key) {
			return a.Value.String()
		}
	}
	return ""
}
