package server

import (
	"net/http"
	"reflect"
	"slices"

	"github.com/writ-dev/writ/authority/api"
)

// route is one endpoint: what the mux, the handlers and the OpenAPI document
// are made from.
type route struct {
	method, pattern string
	id              string // operationId
	summary         string
	action          string // that the credential must allow; empty: see access
	access          string // the resource it must allow it on, or who may call, in words
	lane            laneKind
	anonymous       bool  // may be called without a credential
	limit           int64 // of the body, bytes; 0: smallBody
	contentType     string
	status          int // of success; 0: 200
	params          []param
	endpoint

	stream func(x *exchange) error // instead of handle: what has no end set, nor its request where there is one
	raw    func(x *exchange) error // instead of everything: probes
}

// endpoint is the typed part of a route.
type endpoint struct {
	request, response reflect.Type // nil: none
	handle            func(x *exchange) (any, error)
}

// param is one parameter of the query or of the path.
type param struct {
	name, doc string
	many      bool
	required  bool
	number    bool
	path      bool
}

func (rt *route) name() string { return rt.method + " " + rt.pattern }

// duplex reports that the request's body goes on beside the answer.
func (rt *route) duplex() bool { return rt.stream != nil && rt.request != nil }

func (rt *route) param(name string) *param {
	for i := range rt.params {
		if rt.params[i].name == name && !rt.params[i].path {
			return &rt.params[i]
		}
	}
	return nil
}

type resources = [][]string

// withBody is an endpoint that takes a Req. Every path to serve leads through
// clear with what access demands.
func withBody[Req, Resp any](action string, access func(*exchange, *Req) (resources, error), serve func(*exchange, *Req) (*Resp, error)) endpoint {
	return endpoint{
		request: reflect.TypeFor[Req](), response: reflect.TypeFor[Resp](),
		handle: func(x *exchange) (any, error) {
			req := new(Req)
			decode := x.decode
			if x.route.contentType == formType {
				decode = x.decodeForm
			}
			if err := decode(req); err != nil {
				return nil, err
			}
			if access != nil {
				res, err := access(x, req)
				if err != nil {
					return nil, err
				}
				if err := x.clear(action, res...); err != nil {
					return nil, err
				}
			}
			return some(serve(x, req))
		},
	}
}

// withoutBody is an endpoint that takes none.
func withoutBody[Resp any](action string, access func(*exchange) (resources, error), serve func(*exchange) (*Resp, error)) endpoint {
	return endpoint{
		response: reflect.TypeFor[Resp](),
		handle: func(x *exchange) (any, error) {
			res, err := access(x)
			if err != nil {
				return nil, err
			}
			if err := x.clear(action, res...); err != nil {
				return nil, err
			}
			return some(serve(x))
		},
	}
}

// some keeps a nil *T from becoming an any that is not nil.
func some[T any](v *T, err error) (any, error) {
	if err != nil || v == nil {
		return nil, err
	}
	return v, nil
}

// on is the access to a resource that does not depend on the call.
func on(segments ...string) func(*exchange) (resources, error) {
	return func(*exchange) (resources, error) { return resources{segments}, nil }
}

var (
	paramLimit  = param{name: "limit", doc: "most items of a page", number: true}
	paramCursor = param{name: "cursor", doc: "next of the page before"}
	paramLinear = param{name: "linearizable", doc: "true: no older than the call; asks a quorum first"}
)

// routes is the API. package api documents the same table.
func routes() []*route {
	post, get := http.MethodPost, http.MethodGet
	return append(slices.Concat(attestRoutes(), clusterRoutes(), custodyRoutes()), []*route{
		{method: post, pattern: "/v1/tokens", id: "issueToken", summary: "Issue a token",
			action: "issue", access: "audiences/AUD/tokens", lane: laneIssues,
			endpoint: withBody("issue", issueAccess, issue)},
		{method: post, pattern: "/v1/tokens/derive", id: "deriveToken", summary: "Derive a token for another audience that dies with the one presented",
			action: "derive", access: "audiences/AUD/tokens", lane: laneIssues, limit: setBody,
			endpoint: withBody("derive", deriveAccess, derive)},
		{method: get, pattern: "/v1/tokens", id: "listTokens", summary: "List tokens, newest first",
			action: "read", access: "tokens",
			params: []param{{name: "audience", doc: "of this audience only"}, {name: "subject", doc: "of this subject only"},
				{name: "owner", doc: "of this owner only"}, paramLinear, paramCursor, paramLimit},
			endpoint: withoutBody("read", on("tokens"), listTokens)},
		{method: get, pattern: "/v1/tokens/{id}", id: "getToken", summary: "Show what the registry knows of a token",
			action: "read", access: "tokens/ID", params: []param{{name: "id", doc: "token id", path: true, required: true}, paramLinear},
			endpoint: withoutBody("read", tokenAccess, getToken)},

		{method: post, pattern: "/v1/revocations", id: "revoke", summary: "Revoke",
			action: "revoke", access: "audiences/AUD/tokens, subjects/S, holders/K, devices/D, audiences/AUD or epochs/N", lane: laneRevocations,
			endpoint: withBody("revoke", revokeAccess, revoke)},
		{method: post, pattern: "/v1/revocations/self", id: "revokeSelf", summary: "Revoke the branch of the token in the body",
			access: "the token in the body is the authorization; a whole token that was narrowed needs revoke on audiences/AUD/tokens",
			lane:   laneRevocations, anonymous: true,
			endpoint: withBody[api.SelfRevokeRequest]("", nil, revokeSelf)},
		{method: get, pattern: "/v1/revocations", id: "listRevocations", summary: "List the revocations in force",
			action: "read", access: "revocations",
			params:   []param{{name: "kind", doc: "of this kind only"}, paramCursor, paramLimit},
			endpoint: withoutBody("read", on("revocations"), listRevocations)},

		{method: post, pattern: "/v1/feed", id: "feed", summary: "Stream revocations in log order, one FeedEvent a line, and answer the pings of the body, one FeedPing a line, while it goes on",
			action: "feed", access: "audiences/AUD for each", contentType: "application/x-ndjson", lane: laneFree,
			params: []param{{name: "audience", doc: "audience to follow", many: true, required: true},
				{name: "registered", doc: "true: registered tokens too"},
				{name: "warm", doc: "true: beside another feed of the same, which it stands in for: what both tell may come here with the next pong, and after the bound at the latest"},
				{name: "incarnation", doc: "of the cursor to resume after", number: true},
				{name: "index", doc: "of the cursor to resume after", number: true}},
			endpoint: endpoint{request: reflect.TypeFor[api.FeedPing](), response: reflect.TypeFor[api.FeedEvent]()}, stream: feed},

		{method: post, pattern: "/v1/leases", id: "lease", summary: "Lease calls of a call budget",
			action: "lease", access: "audiences/AUD/budgets", lane: laneLeases, limit: setBody,
			endpoint: withBody("lease", leaseAccess, lease)},
		{method: post, pattern: "/v1/leases/{id}/return", id: "returnLease", summary: "Give unspent calls back and close the lease",
			action: "lease", access: "audiences/AUD/budgets", lane: laneLeases,
			params:   []param{{name: "id", doc: "lease id", path: true, required: true}},
			endpoint: withBody("lease", returnAccess, returnLease)},
		{method: post, pattern: "/v1/registered", id: "registered", summary: "Ask whether a token is registered",
			action: "feed", access: "audiences/AUD", lane: laneLeases,
			endpoint: withBody("feed", registeredAccess, registered)},

		{method: get, pattern: "/v1/keys", id: "getKeys", summary: "Fetch the root keys of audiences: secrets",
			action: "keys", access: "audiences/AUD for each",
			params:   []param{{name: "audience", doc: "audience whose keys to fetch", many: true, required: true}},
			endpoint: withoutBody("keys", audiencesAccess, getKeys)},
		{method: get, pattern: "/v1/keys/epochs", id: "listEpochs", summary: "List the epochs of the master key",
			action: "read", access: "keys", endpoint: withoutBody("read", on("keys"), listEpochs)},
		{method: post, pattern: "/v1/keys/rotate", id: "rotateKeys", summary: "Publish the next master key",
			action: "rotate", access: "keys", lane: laneRevocations,
			endpoint: withBody("rotate", func(*exchange, *struct{}) (resources, error) { return resources{{"keys"}}, nil }, rotate)},
		{method: post, pattern: "/v1/keys/rekey", id: "rekeyAudience", summary: "Move one audience to its next generation",
			action: "rotate", access: "audiences/AUD", lane: laneRevocations,
			endpoint: withBody("rotate", rekeyAccess, rekey)},
		{method: post, pattern: "/v1/verify", id: "verify", summary: "Ask whether exactly this token set is genuine",
			action: "verify", access: "audiences/AUD", lane: laneLeases, limit: setBody,
			endpoint: withBody("verify", verifyAccess, verify)},

		{method: post, pattern: "/v1/services", id: "addService", summary: "Add a service; the answer carries its join secret, once",
			action: "services", access: "services/NAME",
			endpoint: withBody("services", serviceAccess, addService)},
		{method: get, pattern: "/v1/services", id: "listServices", summary: "List services",
			action: "read", access: "services", endpoint: withoutBody("read", on("services"), listServices)},
		{method: http.MethodDelete, pattern: "/v1/services/{name}", id: "removeService", summary: "Remove a service and revoke its credentials",
			action: "services", access: "services/NAME", lane: laneRevocations, status: http.StatusNoContent,
			params:   []param{{name: "name", doc: "the service's name", path: true, required: true}},
			endpoint: noResponse(withoutBody("services", serviceNameAccess, removeService))},
		{method: post, pattern: "/v1/services/join", id: "joinService", summary: "Exchange a join secret for a service's credential, once",
			access: "the single-use join secret in the body is the authorization", anonymous: true, limit: 4 << 10,
			endpoint: withBody[api.JoinRequest]("", nil, join)},
		{method: post, pattern: "/v1/services/renew", id: "renewService", summary: "Exchange a service's credential for one that lasts longer",
			action: "renew", access: "services/self, by the service's own credential as it was issued",
			endpoint: withBody("renew", renewAccess, renew)},
		{method: get, pattern: "/v1/dischargers", id: "listDischargers", summary: "List the dischargers that third-party caveats can name",
			action: "read", access: "dischargers", endpoint: withoutBody("read", on("dischargers"), listDischargers)},

		{method: get, pattern: "/v1/audit/checkpoint", id: "auditCheckpoint", summary: "Show the audit log's signed checkpoint",
			action: "read", access: "audit", endpoint: withoutBody("read", on("audit"), auditCheckpoint)},
		{method: get, pattern: "/v1/audit/records", id: "auditRecords", summary: "Read audit records",
			action: "read", access: "audit",
			params:   []param{{name: "from", doc: "number of the first record", number: true}, paramLimit},
			endpoint: withoutBody("read", on("audit"), auditRecords)},
		{method: get, pattern: "/v1/audit/inclusion", id: "auditInclusion", summary: "Prove that a record is in the log",
			action: "read", access: "audit/proofs",
			params: []param{{name: "size", doc: "of the log", number: true, required: true},
				{name: "record", doc: "number of the record", number: true, required: true}},
			endpoint: withoutBody("read", on("audit", "proofs"), auditInclusion)},
		{method: get, pattern: "/v1/audit/consistency", id: "auditConsistency", summary: "Prove that a log continues an older one",
			action: "read", access: "audit/proofs",
			params: []param{{name: "old", doc: "size of the older log", number: true, required: true},
				{name: "new", doc: "size of the newer log", number: true, required: true}},
			endpoint: withoutBody("read", on("audit", "proofs"), auditConsistency)},
		{method: get, pattern: "/v1/status", id: "status", summary: "Show what this node says of itself",
			action: "read", access: "status", endpoint: withoutBody("read", on("status"), status)},

		{method: get, pattern: "/.well-known/oauth-authorization-server", id: "oauthMetadata", summary: "OAuth's endpoints (RFC 8414)",
			access: "anyone", lane: laneFree, anonymous: true, endpoint: endpoint{response: reflect.TypeFor[api.OAuthMetadata]()}, raw: oauthMetadata},
		{method: post, pattern: "/oauth/token", id: "oauthToken", summary: "Exchange a token for one of another audience (RFC 8693): derivation",
			action: "derive", access: "audiences/AUD/tokens", lane: laneIssues, contentType: formType,
			endpoint: withBody("derive", exchangeAccess, exchangeToken)},
		{method: post, pattern: "/oauth/introspect", id: "oauthIntrospect", summary: "Ask whether a token allows a call (RFC 7662)",
			action: "verify", access: "audiences/AUD", lane: laneLeases, contentType: formType,
			endpoint: withBody[api.IntrospectRequest]("", nil, introspect)},
		{method: post, pattern: "/oauth/revoke", id: "oauthRevoke", summary: "Revoke the branch of the token in the form (RFC 7009)",
			access: "the token in the form is the authorization", lane: laneRevocations, anonymous: true, contentType: formType,
			endpoint: withBody[api.OAuthRevokeRequest]("", nil, oauthRevoke)},

		{method: get, pattern: "/v1/openapi.json", id: "openapi", summary: "This document", access: "anyone", lane: laneFree, anonymous: true, raw: openapi},
		{method: get, pattern: "/livez", id: "livez", summary: "Say that the process runs", access: "anyone", lane: laneFree, anonymous: true, raw: livez},
		{method: get, pattern: "/readyz", id: "readyz", summary: "Say whether the node can serve, and why not", access: "anyone", lane: laneFree, anonymous: true, raw: readyz},
		{method: get, pattern: "/metrics", id: "metrics", summary: "Metrics in Prometheus' text format", access: "anyone, unless it is served elsewhere", lane: laneFree, anonymous: true, raw: metricsPage},
	}...)
}

func noResponse(e endpoint) endpoint {
	e.response = nil
	return e
}
