package mcpguard

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync/atomic"

	"github.com/modelcontextprotocol/go-sdk/jsonrpc"
	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/writ-dev/writ/caveats/pop"
)

// ProofKey is where a DPoP proof stands in a request's _meta.
const ProofKey = "dev.writ/proof"

// useNonce is the error of a refusal for want of the server's nonce.
const useNonce = "use_dpop_nonce"

// endpointPath checks the endpoint that proofs are made for.
func endpointPath(c Config) (string, error) {
	if c.Holder != nil {
		return "", errors.New("mcpguard: both Holder and Proofs")
	}
	u, err := url.Parse(c.Endpoint)
	if err != nil || u.Scheme == "" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return "", fmt.Errorf("mcpguard: endpoint %q: want an absolute URI without query", c.Endpoint)
	}
	return strings.TrimSuffix(u.EscapedPath(), "/"), nil
}

// proofPath is what a proof in _meta names below the endpoint.
func proofPath(method string, r mcp.Request) string {
	if method != methodCallTool {
		return ""
	}
	switch p := r.GetParams().(type) {
	case *mcp.CallToolParamsRaw: // as a server has it
		if p != nil {
			return "/" + url.PathEscape(p.Name)
		}
	case *mcp.CallToolParams: // as a client has it
		if p != nil {
			return "/" + url.PathEscape(p.Name)
		}
	}
	return ""
}

// evidence is what came with a request.
func (g *Guard) evidence(method string, r mcp.Request, token string, dpop bool) (pop.Evidence, error) {
	u, err := url.Parse(g.config.Endpoint)
	if err != nil {
		return pop.Evidence{}, err
	}
	e := pop.Evidence{Token: token, Method: "POST", Scheme: u.Scheme, Authority: u.Host, Path: u.EscapedPath()}
	if extra := r.GetExtra(); extra != nil {
		e.Certificate = g.certificate(extra.Header)
		if dpop {
			e.Proofs = extra.Header.Values(pop.Header)
		}
	}
	p := r.GetParams()
	if isNil(p) {
		return e, nil
	}
	v, ok := p.GetMeta()[ProofKey]
	if !ok {
		return e, nil
	}
	text, ok := v.(string)
	if !ok || len(e.Proofs) > 0 {
		return e, errors.New("a proof in _meta that is no text, or one beside another in the header")
	}
	e.Proofs, e.Method, e.Path = []string{text}, method, g.path+proofPath(method, r)
	return e, nil
}

// AttachProof is Attach for tokens that are bound to a key: it puts the token
// and a proof by signer in the _meta of every request that a guard judges, over
// any transport, and tries again, once, with the nonce that a server asks for.
// Endpoint is the server's Config.Endpoint.
func AttachProof(source Source, signer pop.Signer, endpoint string) mcp.Middleware {
	var nonce atomic.Pointer[string]
	endpoint = strings.TrimSuffix(endpoint, "/")
	prove := func(ctx context.Context, c outgoing) (mcp.Result, error) {
		call := pop.Call{Method: c.method, URI: endpoint + proofPath(c.method, c.request), Token: c.token}
		if n := nonce.Load(); n != nil {
			call.Nonce = *n
		}
		proof, err := signer.Prove(ctx, call)
		if err != nil {
			return nil, err
		}
		return c.next(ctx, c.method, withMeta(c.request, c.params, c.token, proof))
	}
	return attach(source, func(ctx context.Context, c outgoing) (mcp.Result, error) {
		result, err := prove(ctx, c)
		if err == nil {
			return result, nil
		}
		fresh, again := nonceOf(err)
		if fresh != "" {
			nonce.Store(&fresh)
		}
		if again {
			return prove(ctx, c)
		}
		return result, err
	})
}

// nonceOf is the nonce in a refusal, and whether it was refused for that alone.
func nonceOf(err error) (nonce string, wanted bool) {
	var wire *jsonrpc.Error
	var data refusalData
	if !errors.As(err, &wire) || wire.Code != CodeRefused || json.Unmarshal(wire.Data, &data) != nil || len(data.Nonce) > 512 {
		return "", false
	}
	return data.Nonce, data.Nonce != "" && data.Error == useNonce
}
