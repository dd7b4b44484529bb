// Package guard puts capabilities in front of a service's handlers.
//
// A Guard is a router: every pattern is registered together with what a call
// to it means (its action, its resource, its arguments), and a pattern without
// that meaning fails Build, rather than being served open:
//
//	g, err := guard.New(verifier, guard.Service("files"))
//	g.Handle("GET /files/{path...}", guard.Route{Action: "read", Resource: "files/{path...}"}, files)
//	h, err := g.Build()
//
// A handler behind it asks FromContext for the Grant: who calls, and the
// credential, for passing on:
//
//	grant := guard.FromContext(r.Context())
//	client, err := grant.Client(nil, "action read", "resource files/q3")
//
// # What is judged is what is served
//
// Whatever could make the handler see another call than the one that was
// judged is refused, with 400 and before the token is looked at: targets that
// are not in origin form; encoded slashes, dot segments, empty segments and
// doubly encoded paths; a token in a query string; two Authorization, Content-Type or
// Writ-Nonce headers. Where a route maps arguments, what it does not map is refused
// too, a parameter that comes twice is, and a JSON body reaches the handler in
// the canonical form of what was judged. Headers that override the method or
// the target, and the credential itself, are taken out of the request: the
// way to pass a credential on is the Grant.
//
// # Credentials
//
// The token comes in one Authorization header (scheme Bearer, RFC 6750; scheme
// DPoP, RFC 9449, where Possession is given: package pop). Its discharges may come with it in
// one text, or in Writ-Discharges headers, each holding texts separated by
// single spaces, so that no line passes a proxy's limit.
//
// # Refusals
//
// The caller gets a problem document (RFC 9457) with the refusal's code, and a
// random reference under which the owner's log has the explanation:
//
//	401  no token (no code); malformed too_large unknown_key bad_signature
//	     revoked unregistered expired not_yet_valid holder_proof replayed
//	     discharge_required discharge_invalid
//	403  every other caveat, unknown_caveat, obligation, not_forwardable,
//	     budget_exhausted
//	429  rate_limited
//	503  stale_revocations unavailable
//	400  bad_request             the call is ambiguous or malformed
//	413  request_too_large       the body is over its bound
//	415  unsupported_media_type  the body is not what the route reads
//
// What the next service says of a token that was forwarded, CodeOf reads. Its
// revoked is a hint, and Grant.ConfirmRevoked holds it against this service's own
// revocations:
//
//	resp, err := client.Do(r)
//	if guard.CodeOf(resp) == capability.CodeRevoked && grant.ConfirmRevoked(ctx, bound) {
//		// drop the token
//	}
//
// # Log caveats
//
// The guard keeps the obligation of log caveats: it writes an access record to
// its Logger before the handler runs. So a checker behind it may be given
// caveats.Honor(caveats.LogLevels()...).
//
// # What it does not do
//
// It decides before the handler runs. A revocation that arrives later does not
// interrupt a handler: a long one calls Grant.Recheck, or derives its context
// from Grant.Watch.
package guard
