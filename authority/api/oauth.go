package api

// The OAuth faces of the API. Requests are forms (application/x-www-form-urlencoded);
// members that are not known are ignored, as RFC 6749 section 3.2 demands.

// IntrospectRequest is RFC 7662's request, and what the call at hand is: Writ
// says "active" of a token for a call, never of a token at large, since a
// resource server that knows OAuth alone would not look at its caveats. A token
// whose calls are counted is never active here: asking spends nothing.
type IntrospectRequest struct {
	Token    string `json:"token"`
	Action   string `json:"action,omitempty"`   // of the call; caveats on it deny without
	Resource string `json:"resource,omitempty"` // of the call, segments with slashes between
	Service  string `json:"service,omitempty"`  // that asks, for service caveats
}

// IntrospectResponse is RFC 7662's. Of a token that is not active it says no more.
type IntrospectResponse struct {
	Active    bool   `json:"active"`
	TokenType string `json:"token_type,omitempty"`
	Subject   string `json:"sub,omitempty"`
	Audience  string `json:"aud,omitempty"`
	ID        string `json:"jti,omitempty"`
	Issued    int64  `json:"iat,omitempty"` // Unix seconds
	Expires   int64  `json:"exp,omitempty"` // Unix seconds
}

// OAuthRevokeRequest is RFC 7009's. It revokes the token's own branch, or the
// token if it is as it was issued.
type OAuthRevokeRequest struct {
	Token string `json:"token"`
}

// ExchangeRequest is RFC 8693's: derivation under another name. The caller's own
// credential is the actor, so there is no actor_token.
type ExchangeRequest struct {
	GrantType        string `json:"grant_type"`         // urn:ietf:params:oauth:grant-type:token-exchange
	SubjectToken     string `json:"subject_token"`      // the presentation
	SubjectTokenType string `json:"subject_token_type"` // urn:ietf:params:oauth:token-type:access_token
	Audience         string `json:"audience"`
}

// ExchangeResponse is RFC 8693's.
type ExchangeResponse struct {
	AccessToken     string `json:"access_token"` // text form: a credential
	IssuedTokenType string `json:"issued_token_type"`
	TokenType       string `json:"token_type"`
	ExpiresIn       int64  `json:"expires_in"` // seconds
}

// OAuthMetadata is RFC 8414's document.
type OAuthMetadata struct {
	Issuer                string   `json:"issuer"`
	TokenEndpoint         string   `json:"token_endpoint"`
	IntrospectionEndpoint string   `json:"introspection_endpoint"`
	RevocationEndpoint    string   `json:"revocation_endpoint"`
	GrantTypes            []string `json:"grant_types_supported"`
	ResponseTypes         []string `json:"response_types_supported"`
}

// The names that OAuth gives to things.
const (
	GrantTokenExchange   = "urn:ietf:params:oauth:grant-type:token-exchange"
	TokenTypeAccessToken = "urn:ietf:params:oauth:token-type:access_token"
)
