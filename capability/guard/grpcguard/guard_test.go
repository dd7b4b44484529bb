package grpcguard_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/capability/guard"
	"github.com/writ-dev/writ/capability/guard/grpcguard"
	"github.com/writ-dev/writ/capability/guard/internal/guardtest"
)

const (
	check    = "/grpc.health.v1.Health/Check"
	watch    = "/grpc.health.v1.Health/Watch"
	list     = "/grpc.health.v1.Health/List"
	unary    = "/grpc.testing.TestService/UnaryCall"
	empty    = "/grpc.testing.TestService/EmptyCall"
	duplex   = "/grpc.testing.TestService/FullDuplexCall"
	half     = "/grpc.testing.TestService/HalfDuplexCall"
	stranger = "/grpc.testing.TestService/CacheableUnaryCall"
)

// health is a service whose request names a resource.
type health struct {
	healthpb.UnimplementedHealthServer
	next func(ctx context.Context) error // what Watch does between its two messages
}

func (h *health) Check(ctx context.Context, r *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	if md, _ := metadata.FromIncomingContext(ctx); len(md.Get("authorization")) > 0 {
		return nil, status.Error(codes.Internal, "the handler sees the credential")
	}
	grant := guard.FromContext(ctx)
	if want := "services/" + r.Service; strings.Join(grant.Request().Resource, "/") != want {
		return nil, status.Errorf(codes.Internal, "judged %q, want %q", grant.Request().Resource, want)
	}
	return &healthpb.HealthCheckResponse{Status: healthpb.HealthCheckResponse_SERVING}, nil
}

func (h *health) Watch(_ *healthpb.HealthCheckRequest, s grpc.ServerStreamingServer[healthpb.HealthCheckResponse]) error {
	if guard.FromContext(s.Context()) == nil {
		return status.Error(codes.Internal, "no grant")
	}
	if err := s.Send(&healthpb.HealthCheckResponse{}); err != nil {
		return err
	}
	if h.next != nil {
		if err := h.next(s.Context()); err != nil {
			return err
		}
	}
	_ = s.Send(&healthpb.HealthCheckResponse{}) // a handler that ignores errors
	return nil
}

// echo is a service of streams, and of calls with arguments.
type echo struct {
	testpb.UnimplementedTestServiceServer
	seen []string
}

func (e *echo) UnaryCall(context.Context, *testpb.SimpleRequest) (*testpb.SimpleResponse, error) {
	return &testpb.SimpleResponse{}, nil
}

func (e *echo) CacheableUnaryCall(context.Context, *testpb.SimpleRequest) (*testpb.SimpleResponse, error) {
	return nil, status.Error(codes.Internal, "served")
}

func (e *echo) EmptyCall(context.Context, *testpb.Empty) (*testpb.Empty, error) {
	return &testpb.Empty{}, nil
}

func (e *echo) FullDuplexCall(s testpb.TestService_FullDuplexCallServer) error {
	for {
		m, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return nil // a handler that takes a refusal for the end
		}
		e.seen = append(e.seen, string(m.GetPayload().GetBody()))
		if err := s.Send(&testpb.StreamingOutputCallResponse{Payload: m.GetPayload()}); err != nil {
			return err
		}
	}
}

// HalfDuplexCall sends before it has received anything.
func (e *echo) HalfDuplexCall(s testpb.TestService_HalfDuplexCallServer) error {
	return s.Send(&testpb.StreamingOutputCallResponse{})
}

func byPayload(_ context.Context, m proto.Message) ([]string, error) {
	body := string(m.(*testpb.StreamingOutputCallRequest).GetPayload().GetBody())
	if body == "" {
		return nil, errors.New("no payload")
	}
	return []string{"streams", body}, nil
}

func config() grpcguard.Config {
	return grpcguard.Config{
		Methods: map[string]grpcguard.Method{
			check:  {Action: "read", Resource: "services/{service}"},
			watch:  {Action: "watch", Resource: "services/{service...}"},
			unary:  {Action: "call", Resource: "unary", Arguments: true},
			duplex: {Action: "talk", ResourceFunc: byPayload},
			half:   {Action: "talk", ResourceFunc: byPayload},
		},
		Open:    []string{empty},
		Recheck: time.Nanosecond,
	}
}

// dial serves both services behind g, without TLS, in memory.
func dial(tb testing.TB, g *grpcguard.Guard, h *health, e *echo, opts ...grpc.DialOption) *grpc.ClientConn {
	tb.Helper()
	s := grpc.NewServer(g.ServerOptions()...)
	healthpb.RegisterHealthServer(s, h)
	testpb.RegisterTestServiceServer(s, e)
	l := bufconn.Listen(1 << 16)
	go func() { _ = s.Serve(l) }()
	conn, err := grpc.NewClient("passthrough:///memory", append([]grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }),
	}, opts...)...)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { conn.Close(); s.Stop() })
	return conn
}

func newGuard(tb testing.TB, v guard.Verifier, c grpcguard.Config) *grpcguard.Guard {
	tb.Helper()
	g, err := grpcguard.New(v, c, guard.Logger(slog.New(slog.DiscardHandler)))
	if err != nil {
		tb.Fatal(err)
	}
	return g
}

func carrying(t *capability.Token) grpc.CallOption {
	return grpc.PerRPCCredentials(grpcguard.UnsafePlaintextCredentials(grpcguard.Static(t)))
}

func TestUnary(t *testing.T) {
	a := guardtest.For(t)
	conn := dial(t, newGuard(t, a.Verifier, config()), &health{}, &echo{})
	client, calls := healthpb.NewHealthClient(conn), testpb.NewTestServiceClient(conn)
	token := a.Token(t, "action read call", "resource services/db unary").Text()

	for _, c := range []struct {
		name    string
		md      []string
		service string
		code    codes.Code
		reason  capability.Code
	}{
		{"allowed", []string{"authorization", "Bearer " + token}, "db", codes.OK, ""},
		{"another resource", []string{"authorization", "Bearer " + token}, "web", codes.PermissionDenied, capability.CodeResourceDenied},
		{"no credential", nil, "db", codes.Unauthenticated, ""},
		{"another scheme", []string{"authorization", "Basic " + token}, "db", codes.Unauthenticated, ""},
		{"no token", []string{"authorization", "Bearer x"}, "db", codes.Unauthenticated, capability.CodeMalformed},
		{"a forged token", []string{"authorization", "Bearer " + token[:len(token)-2] + "AA"}, "db", codes.Unauthenticated, capability.CodeBadSignature},
		{"two tokens", []string{"authorization", "Bearer " + token, "authorization", "Bearer " + token}, "db", codes.InvalidArgument, "bad_request"},
		{"two segments for one", []string{"authorization", "Bearer " + token}, "db/x", codes.InvalidArgument, "bad_request"},
		{"dots", []string{"authorization", "Bearer " + token}, "..", codes.InvalidArgument, "bad_request"},
		{"empty", []string{"authorization", "Bearer " + token}, "", codes.InvalidArgument, "bad_request"},
		{"a percent sign", []string{"authorization", "Bearer " + token}, "d%62", codes.InvalidArgument, "bad_request"},
	} {
		ctx := metadata.AppendToOutgoingContext(t.Context(), c.md...)
		_, err := client.Check(ctx, &healthpb.HealthCheckRequest{Service: c.service})
		if status.Code(err) != c.code || grpcguard.CodeOf(err) != c.reason {
			t.Errorf("%s: %v with %q, want %s with %q", c.name, err, grpcguard.CodeOf(err), c.code, c.reason)
		}
		if err != nil && strings.Contains(err.Error(), "caveat") {
			t.Errorf("%s: the stranger is told why: %v", c.name, err)
		}
	}

	if _, err := calls.EmptyCall(t.Context(), &testpb.Empty{}); err != nil {
		t.Errorf("an open method: %v", err)
	}
	_, err := calls.CacheableUnaryCall(t.Context(), &testpb.SimpleRequest{}, carrying(a.Token(t)))
	if status.Code(err) != codes.PermissionDenied {
		t.Errorf("an unmapped method: %v", err)
	}
}

// TestArguments: fields of the message, by their names in the .proto file.
func TestArguments(t *testing.T) {
	a := guardtest.For(t)
	conn := dial(t, newGuard(t, a.Verifier, config()), &health{}, &echo{})
	calls := testpb.NewTestServiceClient(conn)
	for _, c := range []struct {
		condition string
		message   *testpb.SimpleRequest
		allowed   bool
	}{
		{"argument response_size <= 100", &testpb.SimpleRequest{ResponseSize: 100}, true},
		{"argument response_size <= 100", &testpb.SimpleRequest{ResponseSize: 101}, false},
		{"argument response_size >= -5", &testpb.SimpleRequest{ResponseSize: -5}, true},
		{"argument response_size <= 100", &testpb.SimpleRequest{}, true}, // no presence: it is 0
		{"argument responseSize <= 100", &testpb.SimpleRequest{ResponseSize: 1}, false},
		{"argument fill_username is true", &testpb.SimpleRequest{FillUsername: true}, true},
		{"argument fill_username is true", &testpb.SimpleRequest{}, false},
		{"argument response_type is UNCOMPRESSABLE", &testpb.SimpleRequest{ResponseType: 1}, false},
		{"argument response_type is COMPRESSABLE", &testpb.SimpleRequest{ResponseType: 0}, true},
		{"argument response_type is COMPRESSABLE", &testpb.SimpleRequest{ResponseType: 99}, false},
		{"argument payload is x", &testpb.SimpleRequest{Payload: &testpb.Payload{Body: []byte("x")}}, false},
		{"argument expect_compressed is true", &testpb.SimpleRequest{}, false},
	} {
		_, err := calls.UnaryCall(t.Context(), c.message, carrying(a.Token(t, c.condition)))
		if allowed := err == nil; allowed != c.allowed || !allowed && grpcguard.CodeOf(err) != capability.CodeArgumentDenied {
			t.Errorf("%s for %v: %v", c.condition, c.message, err)
		}
	}
}

// TestRevokedStream: a server stream ends with the refusal, whatever its
// handler makes of the error.
func TestRevokedStream(t *testing.T) {
	a := guardtest.For(t)
	token := a.Token(t, "action watch", "max-calls 2")
	h := &health{}
	conn := dial(t, newGuard(t, a.Verifier, config()), h, &echo{})
	receive := func() (n int, err error) {
		stream, err := healthpb.NewHealthClient(conn).Watch(t.Context(), &healthpb.HealthCheckRequest{Service: "a/b"}, carrying(token))
		for err == nil {
			if _, err = stream.Recv(); err == nil {
				n++
			}
		}
		return n, err
	}
	if n, err := receive(); n != 2 || !errors.Is(err, io.EOF) {
		t.Errorf("%d messages, %v: want 2, for one call of the budget", n, err)
	}
	h.next = func(context.Context) error { a.RevokeBranch(t, token); return nil }
	n, err := receive()
	if n != 1 || status.Code(err) != codes.Unauthenticated || grpcguard.CodeOf(err) != capability.CodeRevoked {
		t.Errorf("%d messages, %v: want 1, then revoked", n, err)
	}
}

// TestForward: a service calls the next with the caller's token, narrowed.
func TestForward(t *testing.T) {
	a := guardtest.For(t)
	token := a.Token(t, "action watch read", "resource services/**")
	next := healthpb.NewHealthClient(dial(t, newGuard(t, a.Verifier, config()), &health{}, &echo{}))
	forward := grpc.PerRPCCredentials(grpcguard.UnsafePlaintextCredentials(grpcguard.Forward("action read", "resource services/db")))
	h := &health{}
	asked := make(map[string]error)
	h.next = func(ctx context.Context) error {
		for _, name := range []string{"db", "web"} {
			_, asked[name] = next.Check(ctx, &healthpb.HealthCheckRequest{Service: name}, forward)
		}
		return nil
	}
	stream, err := healthpb.NewHealthClient(dial(t, newGuard(t, a.Verifier, config()), h, &echo{})).
		Watch(t.Context(), &healthpb.HealthCheckRequest{Service: "front"}, carrying(token))
	for err == nil {
		_, err = stream.Recv()
	}
	if !errors.Is(err, io.EOF) || len(asked) != 2 || asked["db"] != nil || grpcguard.CodeOf(asked["web"]) != capability.CodeResourceDenied {
		t.Errorf("%v: asked %v", err, asked)
	}
	_, err = next.Check(t.Context(), &healthpb.HealthCheckRequest{Service: "db"}, forward)
	if err == nil || !strings.Contains(err.Error(), guard.ErrNoGrant.Error()) {
		t.Errorf("forwarded what nobody gave: %v", err)
	}
}

// TestBidirectionalStream: every message is judged by its own fields.
func TestBidirectionalStream(t *testing.T) {
	a := guardtest.For(t)
	token := a.Token(t, "action talk", "resource streams/a streams/b", "max-calls 1")
	e := &echo{}
	conn := dial(t, newGuard(t, a.Verifier, config()), &health{}, e)
	stream, err := testpb.NewTestServiceClient(conn).FullDuplexCall(t.Context(), carrying(token))
	if err != nil {
		t.Fatal(err)
	}
	send := func(body string) error {
		if err := stream.Send(&testpb.StreamingOutputCallRequest{Payload: &testpb.Payload{Body: []byte(body)}}); err != nil {
			return err
		}
		_, err := stream.Recv()
		return err
	}
	for _, body := range []string{"a", "b", "a"} {
		if err := send(body); err != nil {
			t.Fatalf("%s: %v", body, err)
		}
	}
	if err := send("c"); grpcguard.CodeOf(err) != capability.CodeResourceDenied {
		t.Errorf("a message that the token does not cover: %v", err)
	}
	if !slices.Equal(e.seen, []string{"a", "b", "a"}) {
		t.Errorf("the handler saw %q", e.seen)
	}

	stream, err = testpb.NewTestServiceClient(conn).FullDuplexCall(t.Context(), carrying(token))
	if err != nil {
		t.Fatal(err)
	}
	if err := send("a"); grpcguard.CodeOf(err) != capability.CodeBudgetExhausted {
		t.Errorf("a second stream: %v", err)
	}

	stream, err = testpb.NewTestServiceClient(conn).FullDuplexCall(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.Unauthenticated {
		t.Errorf("without a credential, before any message: %v", err)
	}
}

// TestNothingIsSentUnjudged: a handler that speaks first says nothing.
func TestNothingIsSentUnjudged(t *testing.T) {
	a := guardtest.For(t)
	conn := dial(t, newGuard(t, a.Verifier, config()), &health{}, &echo{})
	stream, err := testpb.NewTestServiceClient(conn).HalfDuplexCall(t.Context(), carrying(a.Token(t)))
	if err != nil {
		t.Fatal(err)
	}
	if m, err := stream.Recv(); m != nil || status.Code(err) != codes.Unavailable {
		t.Errorf("%v, %v", m, err)
	}
}

func TestCheck(t *testing.T) {
	a := guardtest.For(t)
	s := grpc.NewServer()
	healthpb.RegisterHealthServer(s, &health{})
	c := config()
	err := newGuard(t, a.Verifier, c).Check(s)
	for _, want := range []string{list, unary, duplex} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: does not name %s", err, want)
		}
	}
	c = grpcguard.Config{Methods: map[string]grpcguard.Method{check: c.Methods[check], watch: c.Methods[watch]}, Open: []string{list}}
	if err := newGuard(t, a.Verifier, c).Check(s); err != nil {
		t.Error(err)
	}

	for name, m := range map[string]grpcguard.Method{
		"Check":  {Action: "read", Resource: "x"},
		"/a/b/c": {Action: "read", Resource: "x"},
		check:    {Action: "read", Resource: "services/{name}"},     // no such field
		unary:    {Action: "read", Resource: "x/{response_size}"},   // no string
		watch:    {Action: "read", Resource: "{service...}/status"}, // not last
		list:     {Resource: "x"},
		duplex:   {Action: "talk"},
		half:     {Action: "talk", Resource: "x", ResourceFunc: byPayload},
		empty:    {Action: "read", Resource: "x-{service}"},
		stranger: {Action: "two words", Resource: "x"},
	} {
		if _, err := grpcguard.New(a.Verifier, grpcguard.Config{Methods: map[string]grpcguard.Method{name: m}}); err == nil {
			t.Errorf("%s %+v: no error", name, m)
		}
	}
	if _, err := grpcguard.New(a.Verifier, grpcguard.Config{Methods: c.Methods, Open: []string{check}}); err == nil {
		t.Error("a method both open and mapped")
	}
	if _, err := grpcguard.New(a.Verifier, c, guard.Realm("x")); err == nil {
		t.Error("an option that only HTTP has")
	}
}

func TestCodes(t *testing.T) {
	for code, want := range map[capability.Code]codes.Code{
		"":                              codes.Unauthenticated,
		capability.CodeRevoked:          codes.Unauthenticated,
		capability.CodeHolderProof:      codes.Unauthenticated,
		capability.CodeActionDenied:     codes.PermissionDenied,
		capability.CodeBudgetExhausted:  codes.PermissionDenied,
		capability.CodeRateLimited:      codes.ResourceExhausted,
		capability.CodeStaleRevocations: codes.Unavailable,
		capability.CodeUnavailable:      codes.Unavailable,
	} {
		if got := grpcguard.Code(code); got != want {
			t.Errorf("%s: %s, want %s", code, got, want)
		}
	}
	if got := grpcguard.CodeOf(fmt.Errorf("plain")); got != "" {
		t.Errorf("a plain error has the code %q", got)
	}
}

// TestPlaintext: without TLS the credential stays where it is.
func TestPlaintext(t *testing.T) {
	a := guardtest.For(t)
	conn := dial(t, newGuard(t, a.Verifier, config()), &health{}, &echo{})
	secure := grpc.PerRPCCredentials(grpcguard.Credentials(grpcguard.Static(a.Token(t))))
	_, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{Service: "db"}, secure)
	if err == nil || grpcguard.CodeOf(err) != "" {
		t.Errorf("sent in the clear: %v", err)
	}
}
