package server_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.opentelemetry.io/otel/attribute"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/authoritytest"
	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/authority/replica"
	"github.com/writ-dev/writ/authority/server"
	"github.com/writ-dev/writ/capability"
)

// traced serves n's authority a second time, with what cfg says, and returns
// where.
func traced(t *testing.T, n *authoritytest.Node, cfg server.Config) string {
	t.Helper()
	cfg.Authority = n.Authority
	s, err := server.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return ln.Addr().String()
}

func attributeOf(s tracetest.SpanStub, key string) string {
	for _, a := range s.Attributes {
		if a.Key == attribute.Key(key) {
			return a.Value.String()
		}
	}
	return ""
}

// A call is one trace: the caller's span, the client's beneath it, and the
// server's beneath that; a refusal names its code and reference.
func TestOneTrace(t *testing.T) {
	n := authoritytest.Start(t)
	spans := tracetest.NewInMemoryExporter()
	provider := sdk.NewTracerProvider(sdk.WithSyncer(spans))
	addr := traced(t, n, server.Config{TracerProvider: provider})
	dial := func(token string, p trace.TracerProvider) *client.Client {
		c, err := client.New(client.Config{Addrs: []string{addr}, CAFingerprint: n.CAFingerprint, Token: token, TracerProvider: p, Attempts: 1})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Close)
		return c
	}
	issue := func(c *client.Client, audience string) (tracetest.SpanStubs, trace.SpanContext, error) {
		spans.Reset()
		ctx, caller := provider.Tracer("test").Start(t.Context(), "caller")
		_, err := c.Issue(ctx, api.IssueRequest{Audience: audience, Subject: "a", Owner: "o", Purpose: "p"})
		caller.End()
		return spans.GetSpans(), caller.SpanContext(), err
	}
	find := func(all tracetest.SpanStubs, kind trace.SpanKind) tracetest.SpanStub {
		t.Helper()
		i := slices.IndexFunc(all, func(s tracetest.SpanStub) bool { return s.SpanKind == kind })
		if i < 0 {
			t.Fatalf("no span of kind %s among %d", kind, len(all))
		}
		return all[i]
	}

	all, caller, err := issue(dial(n.RootToken, provider), "corp")
	if err != nil || len(all) != 3 {
		t.Fatalf("%d spans, %v", len(all), err)
	}
	ours, theirs := find(all, trace.SpanKindClient), find(all, trace.SpanKindServer)
	if ours.Parent.SpanID() != caller.SpanID() || theirs.Parent.SpanID() != ours.SpanContext.SpanID() || theirs.SpanContext.TraceID() != caller.TraceID() {
		t.Errorf("not one trace: caller %v, client %+v, server %+v", caller, ours, theirs)
	}
	if ours.Name != "POST /v1/tokens" || theirs.Name != "POST /v1/tokens" || attributeOf(theirs, "http.response.status_code") != "200" ||
		attributeOf(theirs, "writ.caller") == "" {
		t.Errorf("client %s, server %s %v", ours.Name, theirs.Name, theirs.Attributes)
	}

	// without a provider of its own, a client hands on the trace that it is in
	all, caller, err = issue(dial(n.RootToken, nil), "corp")
	if err != nil || len(all) != 2 || find(all, trace.SpanKindServer).Parent.SpanID() != caller.SpanID() {
		t.Errorf("%d spans, %v", len(all), err)
	}

	// a refusal
	narrow, err := capability.Parse(n.RootToken)
	if err != nil {
		t.Fatal(err)
	}
	if narrow, err = narrow.Attenuate("resource audiences/other/**"); err != nil {
		t.Fatal(err)
	}
	all, _, err = issue(dial(narrow.Text(), provider), "corp")
	if capability.CodeOf(err) != capability.CodeResourceDenied {
		t.Fatal(err)
	}
	theirs = find(all, trace.SpanKindServer)
	if attributeOf(theirs, "writ.code") != "resource_denied" || len(attributeOf(theirs, "writ.reference")) != 16 || attributeOf(find(all, trace.SpanKindClient), "writ.code") != "resource_denied" {
		t.Errorf("server %v", theirs.Attributes)
	}

	// a stranger begins no span at the server, whatever his traceparent says
	forged, err := capability.Mint(capability.NewRootKey([32]byte{1}), capability.Identifier{
		ID: capability.NewTokenID(1, [10]byte{}), Epoch: 1, NotAfter: theirs.EndTime.Add(1e12), Audience: api.AdminAudience, Subject: "x"})
	if err != nil {
		t.Fatal(err)
	}
	all, _, err = issue(dial(forged.Text(), nil), "corp")
	if err == nil || len(all) != 1 {
		t.Errorf("%d spans, %v", len(all), err)
	}
}

// safeBuffer is written by many and read at the end.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// What all of it logs at its most talkative holds no token and no key, in any
// of the forms that one could be printed in; nor does any span.
func TestLogsHoldNoSecrets(t *testing.T) {
	var log safeBuffer
	logger := slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	n := authoritytest.Start(t, authoritytest.Options{Logger: logger})
	spans := tracetest.NewInMemoryExporter()
	provider := sdk.NewTracerProvider(sdk.WithSyncer(spans))
	addr := traced(t, n, server.Config{TracerProvider: provider, Logger: logger})
	secrets := map[string][]byte{}
	keep := func(name, text string) string {
		secrets[name] = []byte(strings.TrimSpace(text))
		if parsed, err := capability.Parse(text); err == nil {
			secrets[name+", binary"] = parsed.Bytes()[len(parsed.Bytes())-32:] // its signature
		}
		return text
	}
	dial := func(token string) *client.Client {
		c, err := client.New(client.Config{Addrs: []string{addr}, CAFingerprint: n.CAFingerprint, Token: token,
			TracerProvider: provider, Logger: logger, Attempts: 1})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Close)
		return c
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	root := dial(keep("the root token", n.RootToken))
	added, err := root.AddService(t.Context(), api.ServiceRequest{Name: "files", Audiences: []string{"corp"}})
	must(err)
	keep("the join secret", added.JoinSecret)
	joined, err := root.Join(t.Context(), api.JoinRequest{Name: "files", JoinSecret: added.JoinSecret})
	must(err)
	service := dial(keep("the service's credential", joined.Token))
	issued, err := root.Issue(t.Context(), api.IssueRequest{Audience: "corp", Subject: "a", Owner: "o", Purpose: "p", Caveats: []string{"max-calls 4"}})
	must(err)
	token, err := capability.Parse(keep("a token", issued.Token))
	must(err)
	keys, err := service.Keys(t.Context(), "corp")
	must(err)
	for _, k := range keys.Keys {
		secrets["an audience key"] = k.Secret
	}
	_, err = service.Lease(t.Context(), api.LeaseRequest{Macaroon: token.Bytes(), Want: 1})
	must(err)
	_, err = service.Verify(t.Context(), token.Bytes())
	must(err)
	authoritytest.Open(t, replica.Config{Client: service, Audiences: []string{"corp"}, Logger: logger})
	// what goes wrong is what is logged most
	for range 2 {
		_, err = root.Join(t.Context(), api.JoinRequest{Name: "files", JoinSecret: added.JoinSecret})
		if err == nil {
			t.Fatal("a join secret was good twice")
		}
	}
	if _, err = dial(issued.Token).Tokens(t.Context(), client.TokenQuery{}); err == nil {
		t.Fatal("a token of another audience was good")
	}
	_, err = root.RevokeSelf(t.Context(), api.SelfRevokeRequest{Token: issued.Token, Reason: "leaked"})
	must(err)
	if _, err = service.Lease(t.Context(), api.LeaseRequest{Macaroon: token.Bytes(), Want: 1}); err == nil {
		t.Fatal("a revoked token was leased from")
	}

	for _, s := range spans.GetSpans() {
		for _, a := range s.Attributes {
			logger.Info("span "+s.Name, string(a.Key), a.Value.String())
		}
		for _, e := range s.Events {
			for _, a := range e.Attributes {
				logger.Info("event "+e.Name, string(a.Key), a.Value.String())
			}
		}
	}
	all := log.String()
	if strings.Count(all, "\n") < 20 || !strings.Contains(all, `"msg":"answered"`) || !strings.Contains(all, `"msg":"refused"`) || !strings.Contains(all, `"trace":"`) {
		t.Errorf("too little was logged to say anything:\n%s", all)
	}
	if len(secrets) < 7 {
		t.Errorf("only %d secrets are looked for", len(secrets))
	}
	if i := strings.Index(all, capability.TextPrefix+"A"); i >= 0 {
		t.Errorf("a token: %.200s", all[max(0, i-100):])
	}
	for name, secret := range secrets {
		for _, form := range forms(secret) {
			if strings.Contains(all, form) {
				t.Errorf("%s is in the logs, as %.20s…", name, form)
			}
		}
	}
}

// forms are what a secret could be printed as: itself, hexadecimal, and base64,
// of it alone or of something longer that it lies within.
func forms(secret []byte) []string {
	out := []string{string(secret), hexOf(secret), strings.ToUpper(hexOf(secret))}
	for i := range 3 {
		part := secret[i : i+24]
		out = append(out, base64.StdEncoding.EncodeToString(part), base64.URLEncoding.EncodeToString(part))
	}
	return out
}

func hexOf(b []byte) string {
	const digits = "0123456789abcdef"
	var s strings.Builder
	for _, c := range b[:min(len(b), 16)] {
		s.WriteByte(digits[c>>4])
		s.WriteByte(digits[c&15])
	}
	return s.String()
}
