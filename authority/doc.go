// Package authority is Writ's authority: the services over the replicated
// state machine of authority/state. It issues and derives tokens, revokes,
// leases calls of budgets, hands out keys, streams revocations, and keeps the
// audit trail. It speaks no HTTP; authority/server does.
//
// [Open] a node, serve its methods, [Authority.Close] it. The first Open with
// Config.Bootstrap forms a cluster of one and returns, once and never again,
// the root admin token.
//
// # Who may call
//
// Methods trust their [Caller]: it is what the server's verifier
// ([Authority.AdminVerifier]) has said about the credential that came with
// the call, after it was cleared for the action and the resource of the
// endpoint. What a credential cannot express (that a service is not keyless,
// that it may derive for an audience) is checked here, against the registry of
// services. And applying a change checks again that the credential behind it
// has not been revoked meanwhile.
//
// # Errors
//
// Every error carries a code of package api or capability ([capability.CodeOf]).
// An [*Error]'s Detail and Hint may be shown to the caller.
// [api.CodeIndeterminate] means what it says: the change may have been made, and a
// retry with the same request id is harmless.
//
// # What it does not promise
//
// With HMAC, who can verify can mint: a service that holds the keys of an
// audience can forge tokens for that audience, and for nothing else. The
// registry on disk is readable; the keys in it are sealed. And the random
// numbers that seal and wrap keys come from the system, whatever Config.Rand is.
package authority
