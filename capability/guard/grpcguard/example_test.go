package grpcguard_test

import (
	"context"
	"fmt"
	"log"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/writ-dev/writ/capability/guard"
	"github.com/writ-dev/writ/capability/guard/grpcguard"
	"github.com/writ-dev/writ/capability/guard/internal/guardtest"
)

type service struct {
	healthpb.UnimplementedHealthServer
}

func (service) Check(ctx context.Context, r *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	fmt.Println(r.Service, "for", guard.FromContext(ctx).Subject())
	return &healthpb.HealthCheckResponse{Status: healthpb.HealthCheckResponse_SERVING}, nil
}

// A gRPC service on loopback whose methods are mapped, and a client.
func Example() {
	authority, err := guardtest.New() // stands for a replica of the authority
	if err != nil {
		log.Fatal(err)
	}
	g, err := grpcguard.New(authority.Verifier, grpcguard.Config{Methods: map[string]grpcguard.Method{
		"/grpc.health.v1.Health/Check": {Action: "read", Resource: "services/{service}"},
		"/grpc.health.v1.Health/Watch": {Action: "watch", Resource: "services/{service}"},
		"/grpc.health.v1.Health/List":  {Action: "list", Resource: "services"},
	}})
	if err != nil {
		log.Fatal(err)
	}
	server := grpc.NewServer(g.ServerOptions()...)
	healthpb.RegisterHealthServer(server, service{})
	if err := g.Check(server); err != nil {
		log.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	go func() { _ = server.Serve(listener) }()
	defer server.Stop()

	token, err := authority.Mint("action read", "resource services/billing")
	if err != nil {
		log.Fatal(err)
	}
	conn, err := grpc.NewClient(listener.Addr().String(),
		grpc.WithTransportCredentials(insecure.NewCredentials()), // loopback; TLS elsewhere
		grpc.WithPerRPCCredentials(grpcguard.UnsafePlaintextCredentials(grpcguard.Static(token))))
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	client := healthpb.NewHealthClient(conn)
	for _, name := range []string{"billing", "payroll"} {
		if _, err := client.Check(context.Background(), &healthpb.HealthCheckRequest{Service: name}); err != nil {
			fmt.Println(name, "refused:", grpcguard.CodeOf(err))
		}
	}
	// Output:
	// billing for agent-42
	// payroll refused: resource_denied
}
