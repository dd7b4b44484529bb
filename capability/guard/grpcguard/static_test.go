package grpcguard_test

import (
	"context"
	"errors"
	"io"
	"testing"

	"google.golang.org/grpc/codes"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/capability/guard/grpcguard"
	"github.com/writ-dev/writ/capability/guard/internal/guardtest"
)

// TestStaticStream: a stream whose meaning does not depend on its messages is judged
// before the handler runs, and again as they cross it.
func TestStaticStream(t *testing.T) {
	a := guardtest.For(t)
	c := config()
	c.Methods[duplex] = grpcguard.Method{Action: "talk", Resource: "streams"}
	e := &echo{}
	client := testpb.NewTestServiceClient(dial(t, newGuard(t, a.Verifier, c), &health{}, e))
	open := func(token *capability.Token) func() error {
		stream, err := client.FullDuplexCall(t.Context(), carrying(token))
		if err != nil {
			t.Fatal(err)
		}
		return func() error {
			// What a refused stream says of a Send is io.EOF: Recv has the reason.
			if err := stream.Send(&testpb.StreamingOutputCallRequest{Payload: &testpb.Payload{Body: []byte("a")}}); err != nil && !errors.Is(err, io.EOF) {
				return err
			}
			_, err := stream.Recv()
			return err
		}
	}
	if err := open(a.Token(t, "action read"))(); grpcguard.CodeOf(err) != capability.CodeActionDenied || len(e.seen) != 0 {
		t.Errorf("a token for another action: %v, and the handler saw %q", err, e.seen)
	}
	token := a.Token(t, "action talk", "resource streams", "max-calls 1")
	say := open(token)
	for range 2 {
		if err := say(); err != nil {
			t.Fatal(err)
		}
	}
	a.RevokeBranch(t, token)
	if err := say(); grpcguard.CodeOf(err) != capability.CodeRevoked || len(e.seen) != 2 {
		t.Errorf("after the revocation: %v, and the handler saw %q", err, e.seen)
	}
}

// TestOpenStream: a stream that anybody may have needs no credential.
func TestOpenStream(t *testing.T) {
	a := guardtest.For(t)
	c := config()
	delete(c.Methods, duplex)
	c.Open = append(c.Open, duplex)
	e := &echo{}
	stream, err := testpb.NewTestServiceClient(dial(t, newGuard(t, a.Verifier, c), &health{}, e)).FullDuplexCall(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&testpb.StreamingOutputCallRequest{Payload: &testpb.Payload{Body: []byte("a")}}); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil || len(e.seen) != 1 {
		t.Errorf("%v, and the handler saw %q", err, e.seen)
	}
}

// refusing is a Verifier that refuses everything.
type refusing struct{ code capability.Code }

func (r refusing) VerifyText(context.Context, *capability.Grant, string, *capability.Request, ...string) error {
	return r.code
}

func (r refusing) DryRun(context.Context, *capability.Grant, []byte, *capability.Request) error {
	return r.code
}

type proves struct{ key capability.HolderKey }

func (p proves) Prove(_ context.Context, k capability.HolderKey) error {
	if k != p.key {
		return capability.CodeHolderProof
	}
	return nil
}

// TestHolderAndVerifierOfAMethod: evidence by a function of the service's own, and a
// verifier that one method has for itself.
func TestHolderAndVerifierOfAMethod(t *testing.T) {
	a := guardtest.For(t)
	key := capability.HolderKey{Method: capability.HolderMTLS, Thumbprint: [32]byte{1}}
	c := config()
	var asked string
	c.Holder = func(_ context.Context, token string) capability.HolderProof { asked = token; return proves{key} }
	m := c.Methods[unary]
	m.Arguments = false
	c.Methods[unary] = m
	m.Verifier = refusing{capability.CodeStaleRevocations}
	c.Methods[stranger] = m
	client := testpb.NewTestServiceClient(dial(t, newGuard(t, a.Verifier, c), &health{}, &echo{}))
	token := a.Token(t, "holder "+key.String())
	if _, err := client.UnaryCall(t.Context(), &testpb.SimpleRequest{}, carrying(token)); err != nil || asked != token.Text() {
		t.Errorf("with the key: %v, asked for %.20q", err, asked)
	}
	other := capability.HolderKey{Method: capability.HolderMTLS, Thumbprint: [32]byte{2}}
	if _, err := client.UnaryCall(t.Context(), &testpb.SimpleRequest{}, carrying(a.Token(t, "holder "+other.String()))); grpcguard.CodeOf(err) != capability.CodeHolderProof {
		t.Errorf("with another key: %v", err)
	}
	if _, err := client.CacheableUnaryCall(t.Context(), &testpb.SimpleRequest{}, carrying(token)); status.Code(err) != codes.Unavailable {
		t.Errorf("a method with a verifier of its own: %v", err)
	}
}
