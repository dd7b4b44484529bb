// Package grpcguard puts capabilities in front of a gRPC server's methods,
// unary and streaming.
//
// Every method has a mapping: Check, called before Serve, fails for one that
// has none, and the interceptors refuse it.
//
//	g, err := grpcguard.New(verifier, grpcguard.Config{Methods: map[string]grpcguard.Method{
//		"/files.v1.Files/Get": {Action: "read", Resource: "files/{name...}", Arguments: true},
//	}})
//	s := grpc.NewServer(g.ServerOptions()...)
//	pb.RegisterFilesServer(s, files)
//	err = g.Check(s)
//
// The handler finds the caller with guard.FromContext, and calls the next
// service with the call option grpc.PerRPCCredentials(grpcguard.Forward(…)).
//
// # Credentials
//
// One authorization metadata value, "Bearer writ_…", and any number of
// writ-discharges. A request caveat names an HTTP request, which a gRPC call
// is not: such a token is refused with request_mismatch.
//
// # Proof of possession
//
// With Config.Proofs the scheme is DPoP and the proof (RFC 9449) stands in the
// metadata dpop, one value. A gRPC call is an HTTP request, so a proof says what
// HTTP says: htm is POST, htu is "https://" with the authority that the client
// dialed, and the full method name, such as
// https://files.corp.example/files.v1.Files/Get. The scheme is https even
// without TLS. The message is not in the proof. A refusal for want of the
// server's nonce has it in its ErrorInfo, as dpop_nonce. Holder-bound tokens
// are also proved by a TLS client certificate, with either scheme. A client
// gives a Prover of Prove to grpc.WithPerRPCCredentials.
//
// # Streams
//
// A stream is judged when it opens if the method's resource does not depend on
// a message, and at its first message otherwise; until then nothing can be
// sent. Every further message is judged by its own fields, and the token is
// looked at again (without spending) on whatever crosses the stream after
// Config.Recheck. A stream costs one call of a budget.
//
// # Refusals
//
//	Unauthenticated    what is 401 over HTTP: no credential, token, key,
//	                   proof, expiry, revocation, discharges
//	PermissionDenied   every other caveat, an exhausted budget, an unmapped method
//	ResourceExhausted  rate_limited, with RetryInfo of a second
//	Unavailable        stale_revocations, unavailable, with RetryInfo of a second
//	InvalidArgument    a message or metadata that is ambiguous or malformed
//
// Each carries an ErrorInfo of the domain "writ" with the code as its reason
// and, in its metadata, the reference under which the owner's log explains it.
package grpcguard
