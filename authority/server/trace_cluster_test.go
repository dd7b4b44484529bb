package server_test

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/authoritytest"
	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/authority/replica"
	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/capability/guard"
	"github.com/writ-dev/writ/caveats"
)

// A caller's call of a service is one trace down to the leader: the caller's span,
// the guard's decision, the request of its replica for a lease, the follower that
// takes it, and the leader that the follower passes it on to.
func TestOneTraceThroughTheCluster(t *testing.T) {
	spans := tracetest.NewInMemoryExporter()
	provider := sdk.NewTracerProvider(sdk.WithSyncer(spans))
	c := authoritytest.StartCluster(t, 3, authoritytest.Options{Tracing: provider})
	followers, err := c.Followers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	credential, err := c.Join(t.Context(), api.ServiceRequest{Name: "files", Audiences: []string{"corp"}})
	if err != nil {
		t.Fatal(err)
	}
	cfg := c.Config(credential)
	cfg.Addrs, cfg.TracerProvider = []string{followers[0].Addr}, provider
	own, err := client.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	checker, err := caveats.Standard()
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := authoritytest.Open(t, replica.Config{Client: own, Audiences: []string{"corp"}}).Verifier(checker)
	if err != nil {
		t.Fatal(err)
	}
	g, err := guard.New(verifier, guard.Tracing(provider))
	if err != nil {
		t.Fatal(err)
	}
	g.HandleFunc("GET /files/{path...}", guard.Route{Action: "read", Resource: "files/{path...}"}, func(http.ResponseWriter, *http.Request) {})
	h, err := g.Build()
	if err != nil {
		t.Fatal(err)
	}
	service := httptest.NewServer(h)
	defer service.Close()
	token, err := capability.Parse(c.Mint(t, "corp", "agent", "max-calls 1").Token)
	if err != nil {
		t.Fatal(err)
	}

	spans.Reset()
	ctx, caller := provider.Tracer("test").Start(t.Context(), "caller", trace.WithSpanKind(trace.SpanKindClient))
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, service.URL+"/files/q3", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := (&http.Client{Transport: &guard.Transport{Token: token}}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	caller.End()
	if resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status)
	}
	// From the caller down, each the only child of the one before.
	at := caller.SpanContext()
	for _, want := range []struct {
		name string
		kind trace.SpanKind
	}{
		{"writ.guard", trace.SpanKindInternal}, {"POST /v1/leases", trace.SpanKindClient},
		{"POST /v1/leases", trace.SpanKindServer}, {"POST /v1/leases", trace.SpanKindServer},
	} {
		beneath := func() (all []tracetest.SpanStub) {
			for _, s := range spans.GetSpans() {
				if s.Parent.SpanID() == at.SpanID() && s.SpanContext.TraceID() == caller.SpanContext().TraceID() {
					all = append(all, s)
				}
			}
			return all
		}
		// A server's span ends when its answer is out.
		ended := time.NewTimer(10 * time.Second)
		for tick := time.Tick(time.Millisecond); len(beneath()) == 0; {
			select {
			case <-tick:
			case <-ended.C:
				t.Fatalf("nothing is beneath %v, where %s %s belongs", at, want.kind, want.name)
			}
		}
		ended.Stop()
		all := beneath()
		if len(all) != 1 || all[0].Name != want.name || all[0].SpanKind != want.kind {
			t.Fatalf("%s %s: beneath the span before there are %+v", want.kind, want.name, all)
		}
		at = all[0].SpanContext
	}
}
