package grpcguard

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/capability/guard"
	"github.com/writ-dev/writ/caveats/pop"
)

// proofKey is the metadata key of a proof, and what a refusal says of proofs in
// its ErrorInfo.
const (
	proofKey     = "dpop"
	infoNonce    = "dpop_nonce"
	infoUseNonce = "use_dpop_nonce"
	infoError    = "dpop_error"
)

// evidence is what came with a call of a method.
func evidence(ctx context.Context, method, token string, dpop bool) pop.Evidence {
	e := pop.Evidence{Token: token, Method: "POST", Scheme: "https", Path: method}
	if dpop {
		e.Proofs = metadata.ValueFromIncomingContext(ctx, proofKey)
	}
	if values := metadata.ValueFromIncomingContext(ctx, ":authority"); len(values) == 1 {
		e.Authority = values[0]
	}
	if p, ok := peer.FromContext(ctx); ok {
		if info, ok := p.AuthInfo.(credentials.TLSInfo); ok && len(info.State.PeerCertificates) > 0 {
			e.Certificate = info.State.PeerCertificates[0].Raw
		}
	}
	return e
}

// proofInfo is what a refused caller needs to prove the next time.
func proofInfo(v *pop.Verifier, p capability.HolderProof) (pairs []string) {
	if nonce := v.Nonce(p); nonce != "" {
		pairs = append(pairs, infoNonce, nonce)
	}
	if v.NonceWanted(p) {
		pairs = append(pairs, infoError, infoUseNonce)
	}
	return pairs
}

// Prover attaches tokens and proofs of possession to calls. It is
// credentials.PerRPCCredentials, and demands TLS. Where a server asks for
// nonces, its interceptor tries again with the one that it gave out:
//
//	p := grpcguard.Prove(grpcguard.Static(token), key)
//	conn, err := grpc.NewClient(target, grpc.WithPerRPCCredentials(p), grpc.WithUnaryInterceptor(p.Unary()), …)
//
// It is for the connections to one service, and safe for concurrent use.
type Prover struct {
	source Source
	signer pop.Signer
	secure bool
	nonce  atomic.Pointer[string]
}

// Prove returns a Prover of the tokens of source with this key, or session of one.
func Prove(source Source, signer pop.Signer) *Prover {
	return &Prover{source: source, signer: signer, secure: true}
}

// UnsafePlaintextProve is Prove without the demand for TLS.
func UnsafePlaintextProve(source Source, signer pop.Signer) *Prover {
	return &Prover{source: source, signer: signer}
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (p *Prover) RequireTransportSecurity() bool { return p.secure }

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (p *Prover) GetRequestMetadata(ctx context.Context, uri ...string) (map[string]string, error) {
	t, err := p.source(ctx)
	if err != nil {
		return nil, err
	}
	if t == nil {
		return nil, guard.ErrNoCredential
	}
	info, ok := credentials.RequestInfoFromContext(ctx)
	if !ok || len(uri) == 0 {
		return nil, errors.New("grpcguard: no call to prove")
	}
	// The URI is that of the service (grpc.io/docs, "audience"); the method is apart.
	scheme, rest, _ := strings.Cut(uri[0], "://")
	authority, _, _ := strings.Cut(rest, "/")
	call := pop.Call{Method: "POST", URI: scheme + "://" + authority + info.Method, Token: t.Text()}
	if nonce := p.nonce.Load(); nonce != nil {
		call.Nonce = *nonce
	}
	proof, err := p.signer.Prove(ctx, call)
	if err != nil {
		return nil, err
	}
	return map[string]string{authorizationKey: "DPoP " + call.Token, proofKey: proof}, nil
}

// Unary makes a call again, once, when it was refused for want of the server's
// nonce alone: nothing was done then. A stream's caller does that itself, and
// finds the nonce known.
func (p *Prover) Unary() grpc.UnaryClientInterceptor {
	return func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		err := invoke(ctx, method, req, reply, cc, opts...)
		if err == nil || !p.learn(err) {
			return err
		}
		return invoke(ctx, method, req, reply, cc, opts...)
	}
}

// Stream remembers the nonce that a refused stream was given, for the next.
func (p *Prover) Stream() grpc.StreamClientInterceptor {
	return func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
		s, err := open(ctx, desc, cc, method, opts...)
		if err != nil {
			p.learn(err)
			return nil, err
		}
		return learning{s, p}, nil
	}
}

type learning struct {
	grpc.ClientStream
	prover *Prover
}

func (s learning) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	if err != nil {
		s.prover.learn(err)
	}
	return err
}

// learn keeps the nonce of a refusal, and reports whether it was for the nonce alone.
func (p *Prover) learn(err error) bool {
	for _, d := range status.Convert(err).Details() {
		info, ok := d.(*errdetails.ErrorInfo)
		if !ok || info.Domain != Domain {
			continue
		}
		nonce := info.Metadata[infoNonce]
		if nonce == "" || len(nonce) > 512 {
			return false
		}
		p.nonce.Store(&nonce)
		return info.Metadata[infoError] == infoUseNonce
	}
	return false
}
