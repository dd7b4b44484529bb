package server

import (
	"context"
	"net/http"
	"net/url"
	"reflect"
	"strings"
	"time"

	"github.com/writ-dev/writ/authority"
	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats"
)

const formType = "application/x-www-form-urlencoded"

// decodeForm fills a struct of strings from the body's form. Members that are not
// known are ignored, those given twice are refused (RFC 6749 section 3.2).
func (x *exchange) decodeForm(into any) error {
	form, err := url.ParseQuery(string(x.body))
	if err != nil {
		return invalid("the form cannot be read")
	}
	v := reflect.ValueOf(into).Elem()
	for i := range v.NumField() {
		name, options, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
		switch values := form[name]; {
		case len(values) > 1:
			return invalid(name + " is given twice")
		case len(values) == 1:
			v.Field(i).SetString(values[0])
		case options == "":
			return invalid(name + " is missing")
		}
	}
	return nil
}

// introspect answers for one call: active means that the token allows it. What
// it says of a token that is no good is the same for every reason.
func introspect(x *exchange, r *api.IntrospectRequest) (*api.IntrospectResponse, error) {
	inactive := new(api.IntrospectResponse)
	token, err := capability.Parse(r.Token)
	if err != nil {
		return inactive, nil
	}
	in, err := token.Inspect()
	if err != nil {
		return inactive, nil
	}
	id := &in.Identifier
	if err := x.clear("verify", []string{"audiences", id.Audience}); err != nil {
		return nil, err
	}
	req := capability.Request{Now: x.s.cfg.Now(), Service: r.Service, Action: r.Action}
	if r.Resource != "" {
		if req.Resource, err = caveats.SplitResource(r.Resource); err != nil {
			return nil, invalid("resource: segments with a slash between")
		}
	}
	for _, c := range in.Caveats {
		// Asking spends nothing, so what must be counted is not answered for here.
		if strings.HasPrefix(c.Condition, "max-calls ") || strings.HasPrefix(c.Condition, "max-rate ") {
			return inactive, nil
		}
	}
	checker, err := caveats.Standard()
	if err != nil {
		return nil, err
	}
	// Revocation and registration are looked up by the authority's own answer.
	v, err := capability.NewKeylessVerifier(asker{x.s.a, x.call.Caller}, []string{id.Audience}, checker, capability.UnsafeWithoutRevocations())
	if err != nil {
		return nil, err
	}
	g := new(capability.Grant)
	switch err := v.DryRun(x.ctx(), g, token.Bytes(), &req); {
	case err == nil:
	case capability.CodeOf(err) == capability.CodeUnavailable, capability.CodeOf(err) == capability.CodeStaleRevocations:
		return nil, err
	default:
		return inactive, nil
	}
	return &api.IntrospectResponse{
		Active: true, TokenType: "Bearer", Subject: g.Subject(), Audience: g.Audience(), ID: g.ID().String(),
		Issued: g.ID().Time().Unix(), Expires: g.Ends().Unix(),
	}, nil
}

// asker is the authority as a keyless service sees it.
type asker struct {
	a      *authority.Authority
	caller authority.Caller
}

// Authenticate implements capability.Authenticator.
func (k asker) Authenticate(ctx context.Context, set []byte, branches []capability.BranchID) ([]capability.BranchID, error) {
	answer, err := k.a.Verify(ctx, k.caller, &api.VerifyRequest{Set: set})
	if err != nil {
		return branches, err
	}
	return append(branches, answer.Branches...), nil
}

// oauthRevoke revokes the branch of a token. RFC 7009 section 2.2: a token that
// is no good is revoked enough.
func oauthRevoke(x *exchange, r *api.OAuthRevokeRequest) (*struct{}, error) {
	_, err := x.s.a.RevokeSelf(x.ctx(), x.call, &api.SelfRevokeRequest{Token: r.Token, Reason: "revoked over OAuth"})
	if err != nil && refuse(err).status != http.StatusUnprocessableEntity {
		return nil, err
	}
	return new(struct{}), nil
}

func exchangeAccess(_ *exchange, r *api.ExchangeRequest) (resources, error) {
	if r.GrantType != api.GrantTokenExchange || r.SubjectTokenType != api.TokenTypeAccessToken {
		return nil, invalid("grant_type is " + api.GrantTokenExchange + ", subject_token_type " + api.TokenTypeAccessToken)
	}
	return deriveAccess(nil, &api.DeriveRequest{Audience: r.Audience})
}

func exchangeToken(x *exchange, r *api.ExchangeRequest) (*api.ExchangeResponse, error) {
	t, err := x.s.a.Derive(x.ctx(), x.call, &api.DeriveRequest{Token: r.SubjectToken, Audience: r.Audience})
	if err != nil {
		return nil, err
	}
	return &api.ExchangeResponse{
		AccessToken: t.Token, IssuedTokenType: api.TokenTypeAccessToken, TokenType: "Bearer",
		ExpiresIn: max(int64(t.NotAfter.Sub(x.s.cfg.Now())/time.Second), 0),
	}, nil
}

// oauthMetadata names the endpoints under the address that they were asked at.
func oauthMetadata(x *exchange) error {
	host := x.r.Host
	if u, err := url.Parse("https://" + host); err != nil || u.Host != host || u.Path != "" || u.User != nil || host == "" {
		return invalid("Host is no host:port")
	}
	base := "https://" + host
	return x.write(&api.OAuthMetadata{
		Issuer: base, TokenEndpoint: base + "/oauth/token", IntrospectionEndpoint: base + "/oauth/introspect",
		RevocationEndpoint: base + "/oauth/revoke", GrantTypes: []string{api.GrantTokenExchange}, ResponseTypes: []string{},
	})
}
