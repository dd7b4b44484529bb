package grpcguard_test

import (
	"context"
	"crypto/tls"
	"net"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/capability/guard/grpcguard"
	"github.com/writ-dev/writ/capability/guard/internal/guardtest"
	"github.com/writ-dev/writ/caveats"
	"github.com/writ-dev/writ/caveats/pop"
)

const origin = "https://memory" // passthrough:///memory

// bound is a server that reads proofs, and a token bound to a fresh key.
func bound(tb testing.TB, c pop.Config) (*grpcguard.Guard, *pop.Key, *capability.Token) {
	tb.Helper()
	c.Origins = []string{origin}
	v, err := pop.New(c)
	if err != nil {
		tb.Fatal(err)
	}
	k, err := pop.GenerateKey(pop.Ed25519)
	if err != nil {
		tb.Fatal(err)
	}
	holder, err := caveats.Holder(k.HolderKey())
	if err != nil {
		tb.Fatal(err)
	}
	a := guardtest.For(tb)
	cfg := config()
	cfg.Proofs = v
	return newGuard(tb, a.Verifier, cfg), k, a.Token(tb, holder)
}

func TestProof(t *testing.T) {
	nonces, err := pop.NewNonces(nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	for name, cfg := range map[string]pop.Config{"without nonces": {}, "with nonces": {Nonces: nonces}} {
		t.Run(name, func(t *testing.T) {
			g, k, token := bound(t, cfg)
			prover := grpcguard.UnsafePlaintextProve(grpcguard.Static(token), k)
			conn := dial(t, g, &health{}, &echo{}, grpc.WithPerRPCCredentials(prover),
				grpc.WithUnaryInterceptor(prover.Unary()), grpc.WithStreamInterceptor(prover.Stream()))
			client := healthpb.NewHealthClient(conn)
			for range 3 {
				if _, err := client.Check(t.Context(), &healthpb.HealthCheckRequest{Service: "db"}); err != nil {
					t.Fatal(err)
				}
			}
			// A stream, whose rechecks use the evidence that it came with.
			s, err := client.Watch(t.Context(), &healthpb.HealthCheckRequest{Service: "db"})
			if err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if _, err := s.Recv(); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// A stream that is refused for the nonce finds it known when it is opened again.
func TestStreamLearnsNonce(t *testing.T) {
	nonces, err := pop.NewNonces(nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	g, k, token := bound(t, pop.Config{Nonces: nonces})
	prover := grpcguard.UnsafePlaintextProve(grpcguard.Static(token), k)
	conn := dial(t, g, &health{}, &echo{}, grpc.WithPerRPCCredentials(prover), grpc.WithStreamInterceptor(prover.Stream()))
	client := healthpb.NewHealthClient(conn)
	open := func() error {
		s, err := client.Watch(t.Context(), &healthpb.HealthCheckRequest{Service: "db"})
		if err == nil {
			_, err = s.Recv()
		}
		return err
	}
	if err := open(); grpcguard.CodeOf(err) != capability.CodeHolderProof {
		t.Fatalf("without a nonce: %v", err)
	}
	if err := open(); err != nil {
		t.Fatalf("with the one it was given: %v", err)
	}
}

func TestProofRefusals(t *testing.T) {
	g, k, token := bound(t, pop.Config{})
	conn := dial(t, g, &health{}, &echo{})
	client := healthpb.NewHealthClient(conn)
	prove := func(c pop.Call) string {
		t.Helper()
		if c.Token == "" {
			c.Token = token.Text()
		}
		proof, err := k.Prove(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		return proof
	}
	good := pop.Call{Method: "POST", URI: origin + check}
	used := prove(good)
	for _, c := range []struct {
		name, scheme string
		proofs       []string
		code         capability.Code
	}{
		{"accepted", "DPoP", []string{used}, ""},
		{"seen before", "DPoP", []string{used}, capability.CodeReplayed},
		{"as a bearer token", "Bearer", []string{prove(good)}, capability.CodeHolderProof},
		{"no proof", "DPoP", nil, capability.CodeHolderProof},
		{"two proofs", "DPoP", []string{prove(good), prove(good)}, capability.CodeHolderProof},
		{"another method", "DPoP", []string{prove(pop.Call{Method: "POST", URI: origin + watch})}, capability.CodeHolderProof},
		{"another server", "DPoP", []string{prove(pop.Call{Method: "POST", URI: "https://evil.example" + check})}, capability.CodeHolderProof},
		{"for GET", "DPoP", []string{prove(pop.Call{Method: "GET", URI: origin + check})}, capability.CodeHolderProof},
		{"another token", "DPoP", []string{prove(pop.Call{Method: "POST", URI: origin + check, Token: "writ_x"})}, capability.CodeHolderProof},
	} {
		t.Run(c.name, func(t *testing.T) {
			md := metadata.Pairs("authorization", c.scheme+" "+token.Text())
			md.Append("dpop", c.proofs...)
			_, err := client.Check(metadata.NewOutgoingContext(t.Context(), md), &healthpb.HealthCheckRequest{Service: "db"})
			if grpcguard.CodeOf(err) != c.code || c.code != "" && status.Code(err) != codes.Unauthenticated {
				t.Fatalf("%v, want %q", err, c.code)
			}
		})
	}
}

// Evidence says how it proves over gRPC too: a token can forbid session keys.
func TestSessionsForbidden(t *testing.T) {
	g, k, token := bound(t, pop.Config{})
	direct, err := token.Attenuate("context pop is direct")
	if err != nil {
		t.Fatal(err)
	}
	session := pop.NewSession(k, 0, nil)
	for _, c := range []struct {
		name   string
		token  *capability.Token
		signer pop.Signer
		code   capability.Code
	}{
		{"a session", token, session, ""}, {"the key", direct, k, ""}, {"a session, forbidden", direct, session, capability.CodeContextDenied},
	} {
		prover := grpcguard.UnsafePlaintextProve(grpcguard.Static(c.token), c.signer)
		conn := dial(t, g, &health{}, &echo{}, grpc.WithPerRPCCredentials(prover))
		_, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{Service: "db"})
		if grpcguard.CodeOf(err) != c.code || (err == nil) != (c.code == "") {
			t.Errorf("%s: %v, want %q", c.name, err, c.code)
		}
	}
}

// A client certificate proves its key, and only that of the connection.
func TestClientCertificate(t *testing.T) {
	v, err := pop.New(pop.Config{Origins: []string{"https://example.com"}})
	if err != nil {
		t.Fatal(err)
	}
	k, err := pop.GenerateKey(pop.ES256)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := pop.ClientCertificate(k, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	holder, err := caveats.Holder(pop.CertificateKey(cert.Certificate[0]))
	if err != nil {
		t.Fatal(err)
	}
	a := guardtest.For(t)
	cfg := config()
	cfg.Proofs = v
	g := newGuard(t, a.Verifier, cfg)
	token := a.Token(t, holder)

	ts := httptest.NewUnstartedServer(nil) // for its certificate, which is for example.com
	ts.StartTLS()
	defer ts.Close()
	s := grpc.NewServer(append(g.ServerOptions(), grpc.Creds(credentials.NewTLS(&tls.Config{
		Certificates: ts.TLS.Certificates, ClientAuth: tls.RequestClientCert,
	})))...)
	healthpb.RegisterHealthServer(s, &health{})
	l := bufconn.Listen(1 << 16)
	go func() { _ = s.Serve(l) }()
	defer s.Stop()
	check := func(certificates ...tls.Certificate) error {
		conn, err := grpc.NewClient("passthrough:///example.com",
			grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{InsecureSkipVerify: true, Certificates: certificates})),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }),
			grpc.WithPerRPCCredentials(grpcguard.Credentials(grpcguard.Static(token))))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_, err = healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{Service: "db"})
		return err
	}
	if err := check(cert); err != nil {
		t.Fatal(err)
	}
	other, err := pop.ClientCertificate(k, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{"no certificate": check(), "another one": check(other)} {
		if grpcguard.CodeOf(err) != capability.CodeHolderProof || !strings.Contains(err.Error(), "holder_proof") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
