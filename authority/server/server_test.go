package server_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/authoritytest"
	"github.com/writ-dev/writ/authority/server"
	"github.com/writ-dev/writ/authority/state"
	"github.com/writ-dev/writ/capability"
)

// rig is a node and a plain HTTP client, to say things that the typed client
// never would.
type rig struct {
	*authoritytest.Node
	t  testing.TB
	hc *http.Client
}

func start(t testing.TB, limits server.Limits) *rig {
	n := authoritytest.Start(t, authoritytest.Options{Bound: time.Second, Limits: limits})
	hc := &http.Client{
		Transport: &http.Transport{
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true, MaxIdleConnsPerHost: 100,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	t.Cleanup(hc.CloseIdleConnections)
	return &rig{n, t, hc}
}

type answer struct {
	status  int
	header  http.Header
	body    []byte
	problem api.Problem
}

func (r *rig) do(method, path, token, body string, headers ...string) answer {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.t.Context(), method, "https://"+r.Addr+path, strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	switch {
	case body == "":
		req.Body, req.ContentLength = nil, 0
	case !slices.Contains(headers, "Content-Type"):
		req.Header.Set("Content-Type", "application/json")
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Add(headers[i], headers[i+1])
	}
	resp, err := r.hc.Do(req)
	if err != nil {
		r.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	a := answer{status: resp.StatusCode, header: resp.Header}
	if a.body, err = io.ReadAll(resp.Body); err != nil {
		r.t.Fatal(err)
	}
	if resp.Header.Get("Content-Type") == "application/problem+json" {
		if err := api.Decode(a.body, &a.problem); err != nil {
			r.t.Errorf("%s %s: %v in %s", method, path, err, a.body)
		}
	}
	return a
}

// refused checks a refusal and its form.
func (r *rig) refused(a answer, status int, code api.Code) {
	r.t.Helper()
	p := a.problem
	if a.status != status || p.Code != code {
		r.t.Errorf("%d %s, not %d %s: %s", a.status, p.Code, status, code, a.body)
		return
	}
	if p.Status != status || p.Type != "about:blank" || p.Title != http.StatusText(status) || len(p.Reference) != 16 {
		r.t.Errorf("problem %+v", p)
	}
	if a.header.Get("Cache-Control") != "no-store" {
		r.t.Error("a refusal that may be stored")
	}
	if status == 401 != (a.header.Get("WWW-Authenticate") != "") && status != 403 && status != 400 {
		r.t.Errorf("%d with WWW-Authenticate %q", status, a.header.Get("WWW-Authenticate"))
	}
	if (status == 429 || status == 503) && a.header.Get("Retry-After") == "" {
		r.t.Errorf("%d without Retry-After", status)
	}
}

// endpoints are all that need a credential, with a request that is right in
// form, read out of the OpenAPI document.
func (r *rig) endpoints() (out []struct{ method, path, body string }) {
	var doc struct {
		Paths map[string]map[string]struct {
			Security    *[]any
			RequestBody *struct {
				Required bool
				Content  map[string]any
			}
			Parameters []struct {
				Name, In string
				Required bool
			}
		}
	}
	if err := json.Unmarshal(r.do("GET", "/v1/openapi.json", "", "").body, &doc); err != nil {
		r.t.Fatal(err)
	}
	for path, methods := range doc.Paths {
		for method, op := range methods {
			body := op.RequestBody != nil && op.RequestBody.Required
			if op.Security != nil || body && op.RequestBody.Content["application/json"] == nil {
				continue // open to anyone, or OAuth's, which have a test of their own
			}
			p, query := path, ""
			for _, param := range op.Parameters {
				switch {
				case param.In == "path":
					p = strings.ReplaceAll(p, "{"+param.Name+"}", "019234567-x")
				case param.Required:
					query += "&" + param.Name + "=1"
				}
			}
			if query != "" {
				p += "?" + query[1:]
			}
			e := struct{ method, path, body string }{method: strings.ToUpper(method), path: p}
			if body {
				e.body = "{}"
			}
			out = append(out, e)
		}
	}
	if len(out) < 25 {
		r.t.Fatalf("only %d endpoints need a credential", len(out))
	}
	return out
}

// TestEveryEndpointWantsACredential: none, garbage, another audience's, one of
// this audience that was signed with another key, and one that allows nothing.
func TestEveryEndpointWantsACredential(t *testing.T) {
	r := start(t, server.Limits{})
	corp := r.Mint(t, "corp", "agent-42").Token
	forged, err := capability.Mint(capability.NewRootKey([32]byte{1}), capability.Identifier{
		Epoch: state.AdminEpoch, ID: capability.NewTokenID(time.Now().UnixMilli(), [10]byte{}), NotAfter: time.Now().Add(time.Hour),
		Audience: "writ", Subject: "root",
	})
	if err != nil {
		t.Fatal(err)
	}
	root, err := capability.Parse(r.RootToken)
	if err != nil {
		t.Fatal(err)
	}
	narrow, err := root.Attenuate("action nothing")
	if err != nil {
		t.Fatal(err)
	}
	ended, err := root.Attenuate("time-before 2020-01-01T00:00:00Z")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range r.endpoints() {
		r.refused(r.do(e.method, e.path, "", e.body), 401, api.CodeUnauthorized)
		r.refused(r.do(e.method, e.path, "", e.body, "Authorization", "Basic cm9vdDpyb290"), 401, api.CodeUnauthorized)
		r.refused(r.do(e.method, e.path, "not a token", e.body), 401, capability.CodeMalformed)
		r.refused(r.do(e.method, e.path, corp[:len(corp)-2], e.body), 401, capability.CodeMalformed)
		r.refused(r.do(e.method, e.path, corp, e.body), 401, capability.CodeUnknownKey)
		r.refused(r.do(e.method, e.path, forged.Text(), e.body), 401, capability.CodeBadSignature)
		r.refused(r.do(e.method, e.path, r.RootToken, e.body, "Authorization", "Bearer "+r.RootToken), 400, api.CodeInvalid)
		// A stranger's body is not even read: the credential comes first.
		if e.body != "" {
			r.refused(r.do(e.method, e.path, corp, strings.Repeat("x", 1<<20)), 401, capability.CodeUnknownKey)
			r.refused(r.do(e.method, e.path, r.RootToken, strings.Repeat("x", 1<<20)), 413, api.CodeBodyTooLarge)
			r.refused(r.do(e.method, e.path, r.RootToken, `{"surprise":1}`), 400, api.CodeInvalid)
			r.refused(r.do(e.method, e.path, r.RootToken, `{} {}`), 400, api.CodeInvalid)
		} else if !strings.HasPrefix(e.path, "/v1/feed?") {
			r.refused(r.do(e.method, e.path, r.RootToken, `{}`), 400, api.CodeInvalid)
		}
		for _, a := range []answer{r.do(e.method, e.path, narrow.Text(), e.body), r.do(e.method, e.path, ended.Text(), e.body)} {
			// Before the resource is known the request itself may be wrong.
			if a.status != 403 && a.status != 400 && a.status != 401 && a.status != 404 && a.status != 422 {
				t.Errorf("%s %s with a credential that allows nothing: %d %s", e.method, e.path, a.status, a.body)
			}
		}
	}
}

// TestScope: a credential does what its caveats say and no more.
func TestScope(t *testing.T) {
	r := start(t, server.Limits{})
	root, err := capability.Parse(r.RootToken)
	if err != nil {
		t.Fatal(err)
	}
	issuer, err := root.Attenuate("action issue", "resource audiences/corp/tokens")
	if err != nil {
		t.Fatal(err)
	}
	issue := func(aud string) string {
		return fmt.Sprintf(`{"audience":%q,"subject":"a","owner":"o","purpose":"p"}`, aud)
	}
	if a := r.do("POST", "/v1/tokens", issuer.Text(), issue("corp")); a.status != 200 {
		t.Errorf("issue for corp: %d %s", a.status, a.body)
	}
	r.refused(r.do("POST", "/v1/tokens", issuer.Text(), issue("other")), 403, capability.CodeResourceDenied)
	r.refused(r.do("POST", "/v1/tokens", issuer.Text(), issue("writ")), 403, capability.CodeResourceDenied)
	r.refused(r.do("GET", "/v1/keys?audience=corp", issuer.Text(), ""), 403, capability.CodeActionDenied)
	r.refused(r.do("GET", "/v1/tokens", issuer.Text(), ""), 403, capability.CodeActionDenied)

	reader, err := root.Attenuate("action keys feed", "resource audiences/corp")
	if err != nil {
		t.Fatal(err)
	}
	if a := r.do("GET", "/v1/keys?audience=corp", reader.Text(), ""); a.status != 200 {
		t.Errorf("keys of corp: %d %s", a.status, a.body)
	}
	for _, call := range []string{"GET /v1/keys?audience=corp&audience=other", "GET /v1/keys?audience=other&audience=corp", "POST /v1/feed?audience=corp&audience=other"} {
		method, path, _ := strings.Cut(call, " ")
		r.refused(r.do(method, path, reader.Text(), ""), 403, capability.CodeResourceDenied)
	}

	// A service has its own audience, and not another's; two audiences at once
	// need both.
	files, err := r.Join(t.Context(), api.ServiceRequest{Name: "files", Audiences: []string{"corp"}})
	if err != nil {
		t.Fatal(err)
	}
	if a := r.do("GET", "/v1/keys?audience=corp", files, ""); a.status != 200 || !bytes.Contains(a.body, []byte(`"secret":"`)) {
		t.Errorf("own keys: %d", a.status)
	}
	for _, call := range []string{"GET /v1/keys?audience=other", "GET /v1/keys?audience=corp&audience=other", "GET /v1/keys?audience=writ",
		"POST /v1/feed?audience=other", "POST /v1/feed?audience=corp&audience=other"} {
		method, path, _ := strings.Cut(call, " ")
		r.refused(r.do(method, path, files, ""), 403, capability.CodeResourceDenied)
	}
	r.refused(r.do("POST", "/v1/tokens", files, issue("corp")), 403, capability.CodeActionDenied)
	r.refused(r.do("POST", "/v1/services", files, `{"name":"evil","audiences":["corp"]}`), 403, capability.CodeActionDenied)
	other := r.Mint(t, "other", "b", "max-calls 3")
	tok, err := capability.Parse(other.Token)
	if err != nil {
		t.Fatal(err)
	}
	lease, _ := json.Marshal(api.LeaseRequest{Macaroon: tok.Bytes(), Want: 1})
	r.refused(r.do("POST", "/v1/leases", files, string(lease)), 403, capability.CodeResourceDenied)
	set, _ := json.Marshal(api.VerifyRequest{Set: tok.Bytes()})
	r.refused(r.do("POST", "/v1/verify", files, string(set)), 403, capability.CodeResourceDenied)

	// Renewal: by the service, as issued; not by a narrowed credential and not
	// by somebody else's.
	if a := r.do("POST", "/v1/services/renew", files, "{}"); a.status != 200 {
		t.Errorf("renew: %d %s", a.status, a.body)
	}
	whole, err := capability.Parse(files)
	if err != nil {
		t.Fatal(err)
	}
	sidecar, err := whole.Attenuate("client-ip 127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	r.refused(r.do("POST", "/v1/services/renew", sidecar.Text(), "{}"), 403, capability.CodeActionDenied)
	r.refused(r.do("POST", "/v1/services/renew", r.RootToken, "{}"), 403, capability.CodeActionDenied)

	// A revoked credential is refused at once on this node.
	if err := r.Root().RemoveService(t.Context(), "files"); err != nil {
		t.Fatal(err)
	}
	r.refused(r.do("GET", "/v1/keys?audience=corp", files, ""), 401, capability.CodeRevoked)
}

// TestBadRequests: what is wrong with the form of a request is said before
// anything is done.
func TestBadRequests(t *testing.T) {
	r := start(t, server.Limits{})
	good := `{"audience":"corp","subject":"a","owner":"o","purpose":"p"}`
	post := func(body string, headers ...string) answer {
		return r.do("POST", "/v1/tokens", r.RootToken, body, headers...)
	}
	for name, body := range map[string]string{
		"twice":        `{"audience":"corp","audience":"other","subject":"a","owner":"o","purpose":"p"}`,
		"case":         `{"Audience":"corp","subject":"a","owner":"o","purpose":"p"}`,
		"trailing":     good + "x",
		"array":        "[" + good + "]",
		"no owner":     `{"audience":"corp","subject":"a","purpose":"p"}`,
		"bad audience": `{"audience":"a b","subject":"a","owner":"o","purpose":"p"}`,
		"bad caveat":   `{"audience":"corp","subject":"a","owner":"o","purpose":"p","caveats":["frobnicate"]}`,
		"too long":     `{"audience":"corp","subject":"a","owner":"o","purpose":"p","ttl_seconds":901}`,
	} {
		if a := post(body); a.status != 400 || a.problem.Code != api.CodeInvalid || a.problem.Detail == "" {
			t.Errorf("%s: %d %s", name, a.status, a.body)
		}
	}
	r.refused(r.do("POST", "/v1/tokens", r.RootToken, "", "Content-Type", "application/json"), 400, api.CodeInvalid)
	for _, ct := range []string{"text/plain", "application/json; charset=latin-1", "application/x-www-form-urlencoded", "application/jsonx"} {
		req, _ := http.NewRequestWithContext(t.Context(), "POST", "https://"+r.Addr+"/v1/tokens", strings.NewReader(good))
		req.Header.Set("Content-Type", ct)
		req.Header.Set("Authorization", "Bearer "+r.RootToken)
		resp, err := r.hc.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 415 {
			t.Errorf("Content-Type %s: %d", ct, resp.StatusCode)
		}
	}
	r.refused(post(good, "Content-Encoding", "gzip"), 415, api.CodeInvalid)
	for _, id := range []string{"x", "6ba7b810-9dad-11d1-80b4-00c04fd430c8", "0192F4A1-0000-7000-8000-000000000000"} {
		r.refused(post(good, api.HeaderRequestID, id), 400, api.CodeInvalid)
	}
	for _, path := range []string{"/v1/tokens?surprise=1", "/v1/tokens?limit=1&limit=2", "/v1/tokens?limit=-1", "/v1/tokens?limit=01",
		"/v1/tokens?limit=1001", "/v1/tokens?a=%zz", "/v1/keys", "/v1/keys?audience=", "/v1/tokens/not-a-uuid",
		"/v1/keys?audience=1&audience=2&audience=3&audience=4&audience=5&audience=6&audience=7&audience=8&audience=9&audience=10&audience=11&audience=12&audience=13&audience=14&audience=15&audience=16&audience=17"} {
		r.refused(r.do("GET", path, r.RootToken, ""), 400, api.CodeInvalid)
	}
	for _, path := range []string{"/", "/v2/tokens", "/v1/tokens/", "/v1//tokens", "/v1/../v1/tokens", "/v1/./tokens", "/v1/tokens/a/b", "/V1/tokens", "/v1/tokens%2fx"} {
		r.refused(r.do("GET", path, r.RootToken, ""), 404, api.CodeNotFound)
	}
	star := httptest.NewRecorder()
	r.Server.Handler().ServeHTTP(star, httptest.NewRequestWithContext(t.Context(), "GET", "*", nil))
	if star.Code != 404 || star.Header().Get("Content-Type") != "application/problem+json" {
		t.Errorf("GET *: %d %s", star.Code, star.Body)
	}
	a := r.do("DELETE", "/v1/tokens", r.RootToken, "")
	r.refused(a, 405, api.CodeInvalid)
	if a.header.Get("Allow") != "GET, POST" {
		t.Errorf("Allow: %q", a.header.Get("Allow"))
	}
	// Over HTTP/2 a client knows the limit; over HTTP/1.1 it is told.
	h1 := &rig{r.Node, t, &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}}
	defer h1.hc.CloseIdleConnections()
	if a := h1.do("GET", "/livez", "", "", "X-Long", strings.Repeat("x", 200<<10)); a.status != 431 {
		t.Errorf("200 KiB of header: %d", a.status)
	}
}

// TestRequestIDs: a retry is harmless and returns the same token, another body
// is refused, and so is an id from long ago.
func TestRequestIDs(t *testing.T) {
	r := start(t, server.Limits{})
	body := `{"audience":"corp","subject":"a","owner":"o","purpose":"p"}`
	id := capability.NewTokenID(time.Now().UnixMilli(), [10]byte{1, 2, 3}).String()
	var first, again api.TokenResponse
	for _, into := range []*api.TokenResponse{&first, &again} {
		a := r.do("POST", "/v1/tokens", r.RootToken, body, api.HeaderRequestID, id)
		if a.status != 200 || json.Unmarshal(a.body, into) != nil {
			t.Fatalf("%d %s", a.status, a.body)
		}
	}
	if first != again || first.Token == "" {
		t.Errorf("%v and %v", first, again)
	}
	r.refused(r.do("POST", "/v1/tokens", r.RootToken, body+" ", api.HeaderRequestID, id), 409, api.CodeConflict)
	old := capability.NewTokenID(time.Now().Add(-48*time.Hour).UnixMilli(), [10]byte{1, 2, 3}).String()
	r.refused(r.do("POST", "/v1/tokens", r.RootToken, body, api.HeaderRequestID, old), 410, api.CodeRequestExpired)
}

// TestProbes say what they should without a credential.
func TestProbes(t *testing.T) {
	r := start(t, server.Limits{})
	r.Mint(t, "corp", "a")
	for _, p := range []string{"/livez", "/readyz"} {
		if a := r.do("GET", p, "", ""); a.status != 200 || string(a.body) != "ok\n" {
			t.Errorf("%s: %d %s", p, a.status, a.body)
		}
	}
	a := r.do("GET", "/metrics", "", "")
	for _, want := range []string{
		`writ_http_requests_total{route="POST /v1/tokens",status="200"} 1`, `writ_http_request_seconds_bucket{route="POST /v1/tokens",le="+Inf"} 1`,
		"writ_raft_applied_index ", "writ_raft_leader 1", "writ_tokens ", "writ_revocations 0", `writ_queue{lane="issue"} 0`, "writ_feed_streams 0",
		"writ_raft_disk_full 0", "writ_feed_pings_total 0", "go_goroutines ", "process_open_fds ",
	} {
		if !bytes.Contains(a.body, []byte(want)) {
			t.Errorf("metrics lack %s", want)
		}
	}
	if bytes.Contains(a.body, []byte("writ_A")) || bytes.Contains(a.body, []byte(r.RootToken)) {
		t.Error("metrics hold a credential")
	}
}

// TestTLS: nothing but TLS 1.3 is spoken, over either HTTP.
func TestTLS(t *testing.T) {
	r := start(t, server.Limits{})
	if _, err := tls.Dial("tcp", r.Addr, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}); err == nil {
		t.Error("TLS 1.2 was spoken")
	}
	for _, proto := range []string{"h2", "http/1.1"} {
		c, err := tls.Dial("tcp", r.Addr, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{proto}})
		if err != nil {
			t.Fatal(err)
		}
		if s := c.ConnectionState(); s.Version != tls.VersionTLS13 || s.NegotiatedProtocol != proto || len(s.PeerCertificates) != 2 {
			t.Errorf("%x %q, %d certificates", s.Version, s.NegotiatedProtocol, len(s.PeerCertificates))
		}
		c.Close()
	}
	c, err := net.Dial("tcp", r.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
	b, _ := io.ReadAll(c)
	if bytes.Contains(b, []byte("ok")) {
		t.Errorf("plain text was answered: %s", b)
	}
}

// TestJoinIsLimited: a join secret works once, and guessing is slow.
func TestJoinIsLimited(t *testing.T) {
	r := start(t, server.Limits{Joins: 3})
	added, err := r.Root().AddService(t.Context(), api.ServiceRequest{Name: "files", Audiences: []string{"corp"}})
	if err != nil {
		t.Fatal(err)
	}
	join := func(name, secret string) answer {
		b, _ := json.Marshal(api.JoinRequest{Name: name, JoinSecret: secret})
		return r.do("POST", "/v1/services/join", "", string(b))
	}
	wrong, none := join("files", "writ_join_x"), join("nobody", "writ_join_x")
	r.refused(wrong, 401, api.CodeUnauthorized)
	if wrong.problem.Detail != none.problem.Detail || wrong.status != none.status {
		t.Errorf("a service's name can be probed: %s, %s", wrong.body, none.body)
	}
	if a := join("files", added.JoinSecret); a.status != 200 {
		t.Errorf("join: %d %s", a.status, a.body)
	}
	limited := false
	for range 10 {
		if a := join("files", added.JoinSecret); a.status == 429 {
			r.refused(a, 429, api.CodeOverloaded)
			limited = true
		} else {
			r.refused(a, 401, api.CodeUnauthorized)
		}
	}
	if !limited {
		t.Error("ten guesses in a row went through")
	}
}

// TestFeedEnds: with its credential, and with the node, whose Serve returns.
func TestFeedEnds(t *testing.T) {
	dir := t.TempDir()
	n, stop, err := authoritytest.Run(t.Context(), dir, authoritytest.Options{Bound: time.Second, Limits: server.Limits{PerCaller: 2}})
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{Node: n, t: t, hc: &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}}}
	open := func(token string) (io.ReadCloser, int) {
		req, _ := http.NewRequestWithContext(t.Context(), "POST", "https://"+n.Addr+"/v1/feed?audience=corp", nil)
		req.Header.Set("Authorization", "Bearer "+token)
		resp, err := r.hc.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		return resp.Body, resp.StatusCode
	}
	token, err := n.Join(t.Context(), api.ServiceRequest{Name: "files", Audiences: []string{"corp"}})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 2 {
		body, status := open(token)
		if status != 200 {
			t.Fatalf("feed: %d", status)
		}
		wg.Go(func() {
			b, _ := io.ReadAll(body)
			if !bytes.HasPrefix(b, []byte(`{"at":`)) || !bytes.Contains(b, []byte(`"hello":`)) {
				t.Errorf("the feed began with %.100s", b)
			}
		})
	}
	if _, status := open(token); status != 429 {
		t.Errorf("a third feed of one caller: %d", status)
	}
	if err := n.Root().RemoveService(t.Context(), "files"); err != nil {
		t.Fatal(err)
	}
	wg.Wait() // the streams end by themselves

	// So does that of a credential which a caveat ends.
	root, err := capability.Parse(n.RootToken)
	if err != nil {
		t.Fatal(err)
	}
	brief, err := root.Attenuate("time-before " + time.Now().Add(2*time.Second).UTC().Format(time.RFC3339Nano))
	if err != nil {
		t.Fatal(err)
	}
	body, status := open(brief.Text())
	if status != 200 {
		t.Fatalf("feed: %d", status)
	}
	io.Copy(io.Discard, body)

	body, status = open(n.RootToken)
	if status != 200 {
		t.Fatalf("feed: %d", status)
	}
	stopped := make(chan error, 1)
	go func() { stopped <- stop() }()
	io.Copy(io.Discard, body)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	select {
	case err := <-stopped:
		if err != nil {
			t.Errorf("stop: %v", err)
		}
	case <-ctx.Done():
		t.Error("Serve does not return")
	}
}

// TestShutdownFinishesCalls: a call whose body is still arriving when the node
// is told to stop is answered.
func TestShutdownFinishesCalls(t *testing.T) {
	n, stop, err := authoritytest.Run(t.Context(), t.TempDir(), authoritytest.Options{Bound: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	hc := &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true, ExpectContinueTimeout: time.Minute}}
	defer hc.CloseIdleConnections()
	body, feed := io.Pipe()
	reading := make(chan struct{}) // the handler has begun to read the body
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got100Continue: func() { close(reading) }})
	req, _ := http.NewRequestWithContext(ctx, "POST", "https://"+n.Addr+"/v1/tokens", body)
	req.Header.Set("Expect", "100-continue")
	req.Header.Set("Authorization", "Bearer "+n.RootToken)
	req.Header.Set("Content-Type", "application/json")
	answered := make(chan error, 1)
	go func() {
		resp, err := hc.Do(req)
		if err == nil {
			b, _ := io.ReadAll(resp.Body)
			if resp.StatusCode != 200 {
				err = fmt.Errorf("%d %s", resp.StatusCode, b)
			}
		}
		answered <- err
	}()
	<-reading
	io.WriteString(feed, `{"audience":"corp","subject":"a",`)
	stopped := make(chan error, 1)
	go func() { stopped <- stop() }()
	// The listener is gone once the node stops; the call is still under way.
	for {
		c, err := net.Dial("tcp", n.Addr)
		if err != nil {
			break
		}
		c.Close()
	}
	io.WriteString(feed, `"owner":"o","purpose":"p"}`)
	feed.Close()
	if err := <-answered; err != nil {
		t.Errorf("the call: %v", err)
	}
	if err := <-stopped; err != nil {
		t.Errorf("stop: %v", err)
	}
}

// TestOAuth: its endpoints are faces of the others, and "active" is said of a
// token for a call, not of one whose caveats nobody has looked at.
func TestOAuth(t *testing.T) {
	r := start(t, server.Limits{})
	post := func(path, token string, form url.Values) answer {
		return r.do("POST", path, token, form.Encode(), "Content-Type", "application/x-www-form-urlencoded")
	}
	var meta api.OAuthMetadata
	if err := api.Decode(r.do("GET", "/.well-known/oauth-authorization-server", "", "").body, &meta); err != nil || meta.TokenEndpoint != "https://"+r.Addr+"/oauth/token" {
		t.Errorf("%+v, %v", meta, err)
	}
	gate, err := r.Join(t.Context(), api.ServiceRequest{Name: "gate", Audiences: []string{"corp"}, Derive: []string{"files"}})
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := r.Join(t.Context(), api.ServiceRequest{Name: "stranger", Audiences: []string{"elsewhere"}})
	if err != nil {
		t.Fatal(err)
	}
	plain := r.Mint(t, "corp", "agent-42")
	narrow := r.Mint(t, "corp", "agent-42", "action read", "resource files/**").Token
	counted := r.Mint(t, "corp", "agent-42", "max-calls 5").Token
	introspect := func(token string, more ...string) api.IntrospectResponse {
		t.Helper()
		form := url.Values{"token": {token}, "token_type_hint": {"access_token"}}
		for i := 0; i+1 < len(more); i += 2 {
			form.Set(more[i], more[i+1])
		}
		a := post("/oauth/introspect", gate, form)
		var out api.IntrospectResponse
		if err := api.Decode(a.body, &out); a.status != 200 || err != nil {
			t.Fatalf("%d %s", a.status, a.body)
		}
		return out
	}
	if got := introspect(plain.Token); !got.Active || got.Subject != "agent-42" || got.Audience != "corp" || got.ID != plain.ID.String() || got.Expires != plain.NotAfter.Unix() {
		t.Errorf("a token without caveats: %+v", got)
	}
	for name, c := range map[string]struct {
		got  api.IntrospectResponse
		want bool
	}{
		"narrow, of no call":       {introspect(narrow), false},
		"narrow, allowed":          {introspect(narrow, "action", "read", "resource", "files/q3"), true},
		"narrow, another action":   {introspect(narrow, "action", "write", "resource", "files/q3"), false},
		"a budget nobody spends":   {introspect(counted), false},
		"nonsense":                 {introspect("nonsense"), false},
		"a token that was changed": {introspect(plain.Token[:len(plain.Token)-4] + "AAAA"), false},
	} {
		if c.got.Active != c.want || !c.want && c.got != (api.IntrospectResponse{}) {
			t.Errorf("%s: %+v", name, c.got)
		}
	}
	r.refused(post("/oauth/introspect", "", url.Values{"token": {narrow}}), 401, api.CodeUnauthorized)
	r.refused(post("/oauth/introspect", stranger, url.Values{"token": {narrow}}), 403, capability.CodeResourceDenied)
	r.refused(post("/oauth/introspect", gate, url.Values{"token": {narrow, narrow}}), 400, api.CodeInvalid)
	r.refused(r.do("POST", "/oauth/introspect", gate, `{}`), 415, api.CodeInvalid)

	form := url.Values{"grant_type": {api.GrantTokenExchange}, "subject_token_type": {api.TokenTypeAccessToken}, "audience": {"files"}, "subject_token": {narrow}}
	var got api.ExchangeResponse
	if a := post("/oauth/token", gate, form); a.status != 200 || api.Decode(a.body, &got) != nil {
		t.Fatalf("%d %s", a.status, a.body)
	}
	derived, err := capability.Parse(got.AccessToken)
	if err != nil {
		t.Fatal(err)
	}
	if in, err := derived.Inspect(); err != nil || in.Identifier.Audience != "files" || in.Caveats[0].Condition != "action read" || got.ExpiresIn <= 0 {
		t.Errorf("derived %+v, %v", in, err)
	}
	r.refused(post("/oauth/token", stranger, form), 403, capability.CodeActionDenied)
	form.Set("grant_type", "client_credentials")
	r.refused(post("/oauth/token", gate, form), 400, api.CodeInvalid)

	for _, token := range []string{narrow, narrow, "nonsense"} {
		if a := post("/oauth/revoke", "", url.Values{"token": {token}}); a.status != 200 {
			t.Errorf("revoke: %d %s", a.status, a.body)
		}
	}
	if introspect(narrow, "action", "read", "resource", "files/q3").Active || !introspect(plain.Token).Active {
		t.Error("what was revoked is active, or what was not is not")
	}
}
