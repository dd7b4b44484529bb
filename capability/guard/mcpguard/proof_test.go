package mcpguard_test

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/capability/guard"
	"github.com/writ-dev/writ/capability/guard/internal/guardtest"
	"github.com/writ-dev/writ/capability/guard/mcpguard"
	"github.com/writ-dev/writ/caveats"
	"github.com/writ-dev/writ/caveats/pop"
)

const endpoint = "mcp://tools.corp.example"

func proofs(tb testing.TB, c pop.Config) *pop.Verifier {
	tb.Helper()
	if len(c.Origins) == 0 {
		c.Origins = []string{endpoint}
	}
	v, err := pop.New(c)
	if err != nil {
		tb.Fatal(err)
	}
	return v
}

// bound is a token that is bound to a fresh key.
func bound(tb testing.TB, a *guardtest.Authority) (*pop.Key, *capability.Token) {
	tb.Helper()
	k, err := pop.GenerateKey(pop.Ed25519)
	if err != nil {
		tb.Fatal(err)
	}
	holder, err := caveats.Holder(k.HolderKey())
	if err != nil {
		tb.Fatal(err)
	}
	return k, a.Token(tb, holder)
}

func pay(tb testing.TB, cs *mcp.ClientSession) error {
	tb.Helper()
	_, err := cs.CallTool(tb.Context(), &mcp.CallToolParams{Name: "pay", Arguments: json.RawMessage(`{"amount":1}`)})
	return err
}

func TestProof(t *testing.T) {
	nonces, err := pop.NewNonces(nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	for name, cfg := range map[string]pop.Config{"without nonces": {}, "with nonces": {Nonces: nonces}} {
		t.Run(name, func(t *testing.T) {
			a := guardtest.For(t)
			server, got := newServer(t, newGuard(t, a, mcpguard.Config{Proofs: proofs(t, cfg), Endpoint: endpoint}))
			k, token := bound(t, a)
			cs := connect(t, server, mcpguard.AttachProof(mcpguard.Static(token), k, endpoint))
			for range 2 {
				if err := pay(t, cs); err != nil {
					t.Fatal(err)
				}
			}
			if _, ok := got.meta[mcpguard.ProofKey]; ok || got.arguments != `{"amount":1}` {
				t.Errorf("the tool sees the proof, or not its arguments: %+v", got)
			}
			if _, err := cs.ListTools(t.Context(), nil); err != nil {
				t.Errorf("tools/list: %v", err)
			}
		})
	}
}

// TestHolderSeesTheEvidence: a Holder of the service's own gets the request as it
// came, with what the handler is not to see.
func TestHolderSeesTheEvidence(t *testing.T) {
	a := guardtest.For(t)
	v := proofs(t, pop.Config{})
	server, got := newServer(t, newGuard(t, a, mcpguard.Config{
		Holder: func(_ context.Context, r mcp.Request, token string) capability.HolderProof {
			proof, _ := r.GetParams().GetMeta()[mcpguard.ProofKey].(string)
			return v.Holder(pop.Evidence{Token: token, Proofs: []string{proof}, Method: "tools/call",
				Scheme: "mcp", Authority: "tools.corp.example", Path: "/pay"})
		},
	}))
	k, token := bound(t, a)
	cs := connect(t, server, mcpguard.AttachProof(mcpguard.Static(token), k, endpoint))
	if err := pay(t, cs); err != nil {
		t.Error(err)
	}
	if _, ok := got.meta[mcpguard.ProofKey]; ok {
		t.Error("the tool sees the proof")
	}
}

func TestProofRefusals(t *testing.T) {
	a := guardtest.For(t)
	server, got := newServer(t, newGuard(t, a, mcpguard.Config{Proofs: proofs(t, pop.Config{}), Endpoint: endpoint}))
	k, token := bound(t, a)
	good := pop.Call{Method: "tools/call", URI: endpoint + "/pay", Token: token.Text()}
	prove := func(change func(*pop.Call)) string {
		t.Helper()
		c := good
		if change != nil {
			change(&c)
		}
		proof, err := k.Prove(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		return proof
	}
	used := prove(nil)
	for _, c := range []struct {
		name  string
		proof any
		code  capability.Code
		bad   bool // malformed, whatever the token
	}{
		{"accepted", used, "", false},
		{"seen before", used, capability.CodeReplayed, false},
		{"none", nil, capability.CodeHolderProof, false},
		{"another tool", prove(func(c *pop.Call) { c.URI = endpoint + "/files%2Fread" }), capability.CodeHolderProof, false},
		{"another method", prove(func(c *pop.Call) { c.Method = "tools/list" }), capability.CodeHolderProof, false},
		{"another server", prove(func(c *pop.Call) { c.URI = "mcp://evil.example/pay" }), capability.CodeHolderProof, false},
		{"another token", prove(func(c *pop.Call) { c.Token += "A" }), capability.CodeHolderProof, false},
		{"no text", 7, "", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			*got = seen{}
			cs := connect(t, server, func(next mcp.MethodHandler) mcp.MethodHandler {
				return func(ctx context.Context, method string, r mcp.Request) (mcp.Result, error) {
					if ct, ok := r.(*mcp.CallToolRequest); ok {
						ct.Params.Meta = mcp.Meta{mcpguard.MetaKey: token.Text()}
						if c.proof != nil {
							ct.Params.Meta[mcpguard.ProofKey] = c.proof
						}
					}
					if p, ok := r.GetParams().(*mcp.CallToolParams); ok {
						p.Meta = mcp.Meta{mcpguard.MetaKey: token.Text()}
						if c.proof != nil {
							p.Meta[mcpguard.ProofKey] = c.proof
						}
					}
					return next(ctx, method, r)
				}
			})
			err := pay(t, cs)
			if mcpguard.CodeOf(err) != c.code || (err == nil) != (c.code == "" && !c.bad) {
				t.Fatalf("%v, want %q", err, c.code)
			}
			if (got.arguments != "") != (err == nil) {
				t.Errorf("the tool ran, or not: %+v", got)
			}
		})
	}
}

// Over HTTP the proof may stand in the header, as one line of client has it.
func TestProofInHeader(t *testing.T) {
	a := guardtest.For(t)
	var server *mcp.Server
	ts := httptest.NewServer(mcp.NewStreamableHTTPHandler(func(*http.Request) *mcp.Server { return server }, nil))
	t.Cleanup(ts.Close) // after the sessions have ended
	server, got := newServer(t, newGuard(t, a, mcpguard.Config{
		Proofs: proofs(t, pop.Config{Origins: []string{ts.URL}}), Endpoint: ts.URL + "/mcp",
	}))
	k, token := bound(t, a)
	hc := &http.Client{Transport: &guard.Transport{Token: token, Base: &pop.Transport{Signer: k}}}
	cs := session(t, &mcp.StreamableClientTransport{Endpoint: ts.URL + "/mcp", HTTPClient: hc}, func() {})
	if err := pay(t, cs); err != nil {
		t.Fatal(err)
	}
	for name := range got.header {
		if strings.EqualFold(name, "DPoP") || name == "Authorization" {
			t.Errorf("the tool sees %s", name)
		}
	}
	// One beside another in _meta is none: which of them counts would be a guess.
	cs = session(t, &mcp.StreamableClientTransport{Endpoint: ts.URL + "/mcp", HTTPClient: hc}, func() {},
		mcpguard.AttachProof(mcpguard.Static(token), k, ts.URL+"/mcp"))
	if err := pay(t, cs); err == nil || !strings.Contains(err.Error(), "bad_request") {
		t.Errorf("two proofs: %v", err)
	}
	bare := &http.Client{Transport: &guard.Transport{Token: token}}
	cs = session(t, &mcp.StreamableClientTransport{Endpoint: ts.URL + "/mcp", HTTPClient: bare}, func() {})
	if err := pay(t, cs); mcpguard.CodeOf(err) != capability.CodeHolderProof {
		t.Errorf("without a proof: %v", err)
	}
}

// A client certificate proves its key for the requests of its own connections,
// and nothing that a client says of certificates does.
func TestClientCertificate(t *testing.T) {
	a := guardtest.For(t)
	k, err := pop.GenerateKey(pop.ES256)
	if err != nil {
		t.Fatal(err)
	}
	certificate := func() tls.Certificate {
		cert, err := pop.ClientCertificate(k, time.Now(), time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		return cert
	}
	cert := certificate()
	holder, err := caveats.Holder(pop.CertificateKey(cert.Certificate[0]))
	if err != nil {
		t.Fatal(err)
	}
	token := a.Token(t, holder, "context pop is direct")

	var server *mcp.Server
	var between http.Header // of the last request that the SDK saw
	sdk := mcp.NewStreamableHTTPHandler(func(*http.Request) *mcp.Server { return server }, nil)
	ts := httptest.NewUnstartedServer(nil)
	endpoint := "https://" + ts.Listener.Addr().String() + "/mcp"
	g := newGuard(t, a, mcpguard.Config{Proofs: proofs(t, pop.Config{Origins: []string{"https://" + ts.Listener.Addr().String()}}), Endpoint: endpoint})
	wrapped := g.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		between = r.Header.Clone()
		sdk.ServeHTTP(w, r)
	}))
	ts.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/bare" {
			sdk.ServeHTTP(w, r)
			return
		}
		wrapped.ServeHTTP(w, r)
	})
	ts.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	ts.StartTLS()
	t.Cleanup(ts.Close) // after the sessions have ended
	server, got := newServer(t, g)
	call := func(at string, says http.Header, with ...tls.Certificate) error {
		*got = seen{}
		base := ts.Client().Transport.(*http.Transport).Clone()
		base.TLSClientConfig.Certificates = with
		hc := &http.Client{Transport: &guard.Transport{Token: token, Base: saying{base, says}}}
		return pay(t, session(t, &mcp.StreamableClientTransport{Endpoint: at, HTTPClient: hc, DisableStandaloneSSE: true}, base.CloseIdleConnections))
	}

	if err := call(endpoint, nil, cert); err != nil {
		t.Fatal(err)
	}
	const header = "Writ-Client-Certificate"
	if between.Get(header) == "" || got.header == nil || got.header.Get(header) != "" {
		t.Errorf("between %v, the tool sees %v", between, got.header)
	}
	used := http.Header{header: between.Values(header)}
	made := http.Header{header: {base64.StdEncoding.EncodeToString(append(make([]byte, 32), cert.Certificate[0]...))}}
	for name, c := range map[string]struct {
		at   string
		says http.Header
		with []tls.Certificate
	}{
		"another one of the same key":       {endpoint, nil, []tls.Certificate{certificate()}},
		"what the guard once told itself":   {endpoint, used, nil},
		"that, beside another certificate":  {endpoint, used, []tls.Certificate{certificate()}},
		"made up, where nobody looks at it": {ts.URL + "/bare", made, nil},
		"a certificate where nobody looks":  {ts.URL + "/bare", nil, []tls.Certificate{cert}},
	} {
		if err := call(c.at, c.says, c.with...); mcpguard.CodeOf(err) != capability.CodeHolderProof || got.arguments != "" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// saying adds headers to every request.
type saying struct {
	base   http.RoundTripper
	header http.Header
}

func (s saying) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	maps.Copy(r.Header, s.header)
	return s.base.RoundTrip(r)
}

// Evidence says how it proves over MCP too: a token can forbid session keys.
func TestSessionsForbidden(t *testing.T) {
	a := guardtest.For(t)
	server, _ := newServer(t, newGuard(t, a, mcpguard.Config{Proofs: proofs(t, pop.Config{}), Endpoint: endpoint}))
	k, token := bound(t, a)
	direct, err := token.Attenuate("context pop is direct")
	if err != nil {
		t.Fatal(err)
	}
	session := pop.NewSession(k, 0, nil)
	for _, c := range []struct {
		name   string
		token  *capability.Token
		signer pop.Signer
		code   capability.Code
	}{
		{"a session", token, session, ""}, {"the key", direct, k, ""}, {"a session, forbidden", direct, session, capability.CodeContextDenied},
	} {
		if err := pay(t, connect(t, server, mcpguard.AttachProof(mcpguard.Static(c.token), c.signer, endpoint))); mcpguard.CodeOf(err) != c.code || (err == nil) != (c.code == "") {
			t.Errorf("%s: %v, want %q", c.name, err, c.code)
		}
	}
}

func TestProofConfig(t *testing.T) {
	a := guardtest.For(t)
	for _, bad := range []string{"", "tools", "/mcp", "mcp://u@tools", "https://tools/mcp?x=1"} {
		if _, err := mcpguard.New(a.Verifier, mcpguard.Config{Proofs: proofs(t, pop.Config{}), Endpoint: bad}); err == nil {
			t.Errorf("endpoint %q is accepted", bad)
		}
	}
}
