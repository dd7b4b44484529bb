package client

import (
	"context"
	"net/http"
	"net/url"
	"strconv"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/capability"
)

// answer performs a call whose answer is a T.
func answer[T any](ctx context.Context, c *Client, k call) (*T, error) {
	out := new(T)
	if err := c.do(ctx, k, out); err != nil {
		return nil, err
	}
	return out, nil
}

func get(path string, query url.Values) call {
	return call{method: http.MethodGet, path: path, query: query}
}

// ask is a POST that changes nothing.
func ask(path string, body any) call { return call{method: http.MethodPost, path: path, body: body} }

func change(path string, body any) call {
	return call{method: http.MethodPost, path: path, body: body, change: true}
}

// Issue asks for a token.
func (c *Client) Issue(ctx context.Context, r api.IssueRequest) (*api.TokenResponse, error) {
	return answer[api.TokenResponse](ctx, c, change("/v1/tokens", r))
}

// Derive asks for a token for another audience that dies with the one presented.
func (c *Client) Derive(ctx context.Context, r api.DeriveRequest) (*api.TokenResponse, error) {
	return answer[api.TokenResponse](ctx, c, change("/v1/tokens/derive", r))
}

// TokenQuery selects tokens; zero fields select all.
type TokenQuery struct {
	Audience string
	Subject  string
	Owner    string
	Cursor   string // Next of the page before
	Limit    int    // of a page; 0: the node's default

	// Linearizable has the node ask a quorum first: the answer is no older than
	// the call, and holds all that was acknowledged before it, by any node.
	Linearizable bool
}

// Tokens lists one page of tokens.
func (c *Client) Tokens(ctx context.Context, q TokenQuery) (*api.TokenList, error) {
	v := url.Values{}
	setIf(v, "audience", q.Audience)
	setIf(v, "subject", q.Subject)
	setIf(v, "owner", q.Owner)
	setIf(v, "cursor", q.Cursor)
	setLimit(v, q.Limit)
	if q.Linearizable {
		v.Set("linearizable", "true")
	}
	return answer[api.TokenList](ctx, c, get("/v1/tokens", v))
}

// Token returns what the registry knows of a token.
func (c *Client) Token(ctx context.Context, id capability.TokenID) (*api.TokenInfo, error) {
	return answer[api.TokenInfo](ctx, c, get("/v1/tokens/"+id.String(), nil))
}

// TokenLinearizable is Token after the node has asked a quorum: the answer is no
// older than the call.
func (c *Client) TokenLinearizable(ctx context.Context, id capability.TokenID) (*api.TokenInfo, error) {
	return answer[api.TokenInfo](ctx, c, get("/v1/tokens/"+id.String(), url.Values{"linearizable": {"true"}}))
}

// Revoke revokes. When it returns without an error, no verifier accepts later
// than its bound from now.
func (c *Client) Revoke(ctx context.Context, r api.RevokeRequest) (*api.RevokeResponse, error) {
	return answer[api.RevokeResponse](ctx, c, change("/v1/revocations", r))
}

// RevokeSelf revokes the branch of the token that r carries, which is also what
// authorizes it; the client's own credential is sent only for r.Whole.
func (c *Client) RevokeSelf(ctx context.Context, r api.SelfRevokeRequest) (*api.RevokeResponse, error) {
	k := change("/v1/revocations/self", r)
	k.anonymous = !r.Whole
	return answer[api.RevokeResponse](ctx, c, k)
}

// RevocationQuery selects revocations; zero fields select all.
type RevocationQuery struct {
	Kind   api.RevocationKind
	Cursor string // Next of the page before
	Limit  int    // of a page; 0: the node's default
}

// Revocations lists one page of the revocations in force.
func (c *Client) Revocations(ctx context.Context, q RevocationQuery) (*api.RevocationList, error) {
	v := url.Values{}
	setIf(v, "kind", string(q.Kind))
	setIf(v, "cursor", q.Cursor)
	setLimit(v, q.Limit)
	return answer[api.RevocationList](ctx, c, get("/v1/revocations", v))
}

// Lease asks for calls.
func (c *Client) Lease(ctx context.Context, r api.LeaseRequest) (*api.LeaseResponse, error) {
	return answer[api.LeaseResponse](ctx, c, change("/v1/leases", r))
}

// Return gives unspent calls back and closes the lease.
func (c *Client) Return(ctx context.Context, lease string, r api.ReturnRequest) (*api.ReturnResponse, error) {
	return answer[api.ReturnResponse](ctx, c, change("/v1/leases/"+url.PathEscape(lease)+"/return", r))
}

// Registered asks whether a token is registered.
func (c *Client) Registered(ctx context.Context, r api.RegisteredRequest) (*api.RegisteredResponse, error) {
	return answer[api.RegisteredResponse](ctx, c, ask("/v1/registered", r))
}

// Keys fetches the root keys of audiences: secrets.
func (c *Client) Keys(ctx context.Context, audiences ...string) (*api.KeySet, error) {
	return answer[api.KeySet](ctx, c, get("/v1/keys", url.Values{"audience": audiences}))
}

// Epochs lists the epochs of the master key. It returns no key.
func (c *Client) Epochs(ctx context.Context) (*api.EpochList, error) {
	return answer[api.EpochList](ctx, c, get("/v1/keys/epochs", nil))
}

// Rotate publishes the next master key.
func (c *Client) Rotate(ctx context.Context) (*api.EpochInfo, error) {
	return answer[api.EpochInfo](ctx, c, change("/v1/keys/rotate", struct{}{}))
}

// Rekey moves one audience to its next generation.
func (c *Client) Rekey(ctx context.Context, r api.RekeyRequest) (*api.RekeyResponse, error) {
	return answer[api.RekeyResponse](ctx, c, change("/v1/keys/rekey", r))
}

// Verify asks whether exactly this token set (binary form) is genuine.
func (c *Client) Verify(ctx context.Context, set []byte) (*api.VerifyResponse, error) {
	return answer[api.VerifyResponse](ctx, c, ask("/v1/verify", api.VerifyRequest{Set: set}))
}

// AddService adds a service. The answer carries its join secret, shown once.
func (c *Client) AddService(ctx context.Context, r api.ServiceRequest) (*api.ServiceResponse, error) {
	return answer[api.ServiceResponse](ctx, c, change("/v1/services", r))
}

// Services lists services.
func (c *Client) Services(ctx context.Context) (*api.ServiceList, error) {
	return answer[api.ServiceList](ctx, c, get("/v1/services", nil))
}

// RemoveService removes a service and revokes its credentials.
func (c *Client) RemoveService(ctx context.Context, name string) error {
	return c.do(ctx, call{method: http.MethodDelete, path: "/v1/services/" + url.PathEscape(name), change: true}, nil)
}

// Join exchanges a join secret for the service's credential, once. It needs no
// credential.
func (c *Client) Join(ctx context.Context, r api.JoinRequest) (*api.CredentialResponse, error) {
	k := change("/v1/services/join", r)
	k.anonymous = true
	return answer[api.CredentialResponse](ctx, c, k)
}

// Renew exchanges the service's credential, which is the client's own, for one
// that lasts longer.
func (c *Client) Renew(ctx context.Context) (*api.CredentialResponse, error) {
	return answer[api.CredentialResponse](ctx, c, change("/v1/services/renew", struct{}{}))
}

// Dischargers lists the dischargers that third-party caveats can name.
func (c *Client) Dischargers(ctx context.Context) (*api.DischargerList, error) {
	return answer[api.DischargerList](ctx, c, get("/v1/dischargers", nil))
}

// Checkpoint returns the audit log's signed checkpoint.
func (c *Client) Checkpoint(ctx context.Context) (*api.CheckpointResponse, error) {
	return answer[api.CheckpointResponse](ctx, c, get("/v1/audit/checkpoint", nil))
}

// AuditRecords returns up to limit audit records from number from on; limit 0 is
// the node's default.
func (c *Client) AuditRecords(ctx context.Context, from int64, limit int) (*api.AuditRecords, error) {
	v := url.Values{"from": {strconv.FormatInt(from, 10)}}
	setLimit(v, limit)
	return answer[api.AuditRecords](ctx, c, get("/v1/audit/records", v))
}

// Inclusion returns the proof that record n is in the log of this size.
func (c *Client) Inclusion(ctx context.Context, size, n int64) (*api.Proof, error) {
	return answer[api.Proof](ctx, c, get("/v1/audit/inclusion",
		url.Values{"size": {strconv.FormatInt(size, 10)}, "record": {strconv.FormatInt(n, 10)}}))
}

// Consistency returns the proof that the log of size newer contains that of
// size older.
func (c *Client) Consistency(ctx context.Context, older, newer int64) (*api.Proof, error) {
	return answer[api.Proof](ctx, c, get("/v1/audit/consistency",
		url.Values{"old": {strconv.FormatInt(older, 10)}, "new": {strconv.FormatInt(newer, 10)}}))
}

// Status returns what the node that answers says of itself.
func (c *Client) Status(ctx context.Context) (*api.Status, error) {
	return answer[api.Status](ctx, c, get("/v1/status", nil))
}

// OpenAPI returns the OpenAPI document of the node that answers, JSON.
func (c *Client) OpenAPI(ctx context.Context) ([]byte, error) {
	k := get("/v1/openapi.json", nil)
	k.anonymous = true
	return c.raw(ctx, k)
}

// Ready asks whether the node that answers can serve; the error says why not.
func (c *Client) Ready(ctx context.Context) error {
	k := get("/readyz", nil)
	k.anonymous, k.accept = true, "text/plain"
	_, err := c.raw(ctx, k)
	return err
}

func setIf(v url.Values, key, value string) {
	if value != "" {
		v.Set(key, value)
	}
}

func setLimit(v url.Values, n int) {
	if n > 0 {
		v.Set("limit", strconv.Itoa(n))
	}
}
