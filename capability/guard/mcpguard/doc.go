// Package mcpguard puts capabilities in front of the tools of a Model Context
// Protocol server (github.com/modelcontextprotocol/go-sdk).
//
//	g, err := mcpguard.New(verifier, mcpguard.Config{})
//	server.AddReceivingMiddleware(g.Middleware())
//
// A call of a tool means, unless Config says otherwise, the action "call" on
// the resource that the tool's name is, with the call's arguments. The tool's
// handler gets the arguments in the canonical form of what was judged, since
// its own reading of JSON may differ from the guard's: duplicate keys, keys
// that differ in case, and numbers that do not survive are refused.
//
// # Methods
//
// The handshake is open to anybody, for no token can come before it:
// initialize, ping, server/discover, and the notifications initialized and
// cancelled. Lists (tools/list, prompts/list, resources/list,
// resources/templates/list) mean the action "list" on the resource "tools",
// "prompts" or "resources"; Config.OpenLists opens them. Every other method is
// refused unless Config.Methods maps it or Config.Open names it. What a client
// answers to a server's own request in the middle of a call (InputResponses)
// is no argument: a tool that asks back must not do more on an answer than its
// arguments allow.
//
// # Credentials
//
// Over HTTP the token comes in the Authorization header of the very request
// (scheme Bearer), its discharges with it or in Writ-Discharges. Where there
// is no HTTP it comes in the request's _meta under MetaKey; there, all in one
// text. Both at once are accepted only if they are the same. A session that
// was opened with a token gives nothing to its later calls, and no other
// header (Mcp-Name, Mcp-Method) is looked at. A request caveat names an HTTP
// request, which a call is not: such a token is refused with request_mismatch. The credential is taken out of
// both before the tool's handler runs; the Grant (guard.FromContext) is the
// way to pass it on.
//
// # Proof of possession
//
// With Config.Proofs a DPoP proof (RFC 9449) stands in the request's _meta under
// ProofKey, over whatever transport. It is made for Config.Endpoint: its htm is
// the JSON-RPC method, such as tools/call; its htu is the endpoint, and for
// tools/call a slash and the tool's name (percent-encoded) after it, such as
// mcp://tools.corp.example/pay. Over HTTP the proof may stand in the header
// DPoP instead, with the scheme DPoP, as pop.Transport has it: htm is then POST and
// htu the endpoint; every message of a batch would need one of its own, so a
// batch is refused. Arguments are in neither. A refusal for want of the
// server's nonce has it in its data as dpop_nonce. AttachProof is the client's
// side; it tries again with that nonce.
//
// A client certificate (RFC 8705) proves its key over HTTP, where the SDK's
// handler is wrapped in Guard.Handler and the server asks for one:
//
//	http.Server{Handler: g.Handler(handler), TLSConfig: &tls.Config{ClientAuth: tls.RequestClientCert, …}}
//
// A client has it in the tls.Config of the http.Client that it gives its
// transport (pop.ClientCertificate).
//
// # Refusals
//
// A refusal is a JSON-RPC error, not a result with IsError: the call never
// reached the tool, and what a tool says must not be able to pass for a
// refusal. Its code is CodeRefused, or -32602 (invalid params) where the call
// is ambiguous or malformed. Its data has the capability code and the
// reference under which the owner's log explains it:
//
//	{"code":"resource_denied","reference":"…"}
//
// No code means that there was no credential.
package mcpguard
