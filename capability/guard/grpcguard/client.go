package grpcguard

import (
	"context"

	"google.golang.org/grpc/credentials"

	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/capability/guard"
)

// Source returns the token for a call, given the call's context.
type Source func(ctx context.Context) (*capability.Token, error)

// Static is a Source of always the same token.
func Static(t *capability.Token) Source {
	return func(context.Context) (*capability.Token, error) { return t, nil }
}

// Forward is a Source that narrows the token of the call that is being served,
// which the context must come from: its Grant (guard.FromContext).
func Forward(conditions ...string) Source {
	return func(ctx context.Context) (*capability.Token, error) {
		return guard.FromContext(ctx).Narrow(conditions...)
	}
}

// Credentials attaches tokens to calls: give it to grpc.WithPerRPCCredentials
// for a connection, or to grpc.PerRPCCredentials for a call. It demands TLS.
func Credentials(source Source) credentials.PerRPCCredentials { return perRPC{source, true} }

// UnsafePlaintextCredentials is Credentials without the demand for TLS, for
// networks that encrypt beneath and for loopback.
func UnsafePlaintextCredentials(source Source) credentials.PerRPCCredentials {
	return perRPC{source, false}
}

type perRPC struct {
	source Source
	secure bool
}

func (c perRPC) RequireTransportSecurity() bool { return c.secure }

func (c perRPC) GetRequestMetadata(ctx context.Context, _ ...string) (map[string]string, error) {
	t, err := c.source(ctx)
	if err != nil {
		return nil, err
	}
	if t == nil {
		return nil, guard.ErrNoCredential
	}
	return map[string]string{authorizationKey: "Bearer " + t.Text()}, nil
}
