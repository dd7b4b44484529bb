package guard_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/capability/guard"
	"github.com/writ-dev/writ/capability/guard/internal/guardtest"
	"github.com/writ-dev/writ/caveats"
)

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// TestRequestCaveat: a token that is bound to one request is good for that
// request alone, once where the method is not idempotent.
func TestRequestCaveat(t *testing.T) {
	replays, err := caveats.NewReplayCache(16)
	if err != nil {
		t.Fatal(err)
	}
	a := guardtest.For(t, caveats.WithReplays(replays, nil))
	token := a.Token(t, "action read write pay")
	g := newGuard(t, a)
	var body string
	read := func(_ http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		body = string(b)
	}
	g.HandleFunc("GET /files/{path...}", guard.Route{Action: "read", Resource: "files/{path...}", RequireRequest: true}, read)
	g.HandleFunc("PUT /files/{path...}", guard.Route{Action: "write", Resource: "files/{path...}"}, read)
	g.HandleFunc("POST /pay", guard.Route{Action: "pay", Resource: "pay", JSON: true, RequireRequest: true}, read)
	s := serve(t, build(t, g))

	// tamper sees each request after it was bound and before it is sent.
	do := func(method, target, contentType, content string, tamper func(*http.Request)) (int, string) {
		t.Helper()
		client := &http.Client{Transport: &guard.Transport{Token: token, Binder: &caveats.Binder{},
			Base: roundTripper(func(r *http.Request) (*http.Response, error) {
				if tamper != nil {
					tamper(r)
				}
				return http.DefaultTransport.RoundTrip(r)
			})}}
		r, err := http.NewRequest(method, s.URL+target, strings.NewReader(content))
		if err != nil {
			t.Fatal(err)
		}
		if contentType != "" {
			r.Header.Set("Content-Type", contentType)
		}
		resp, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(b)
	}

	for _, c := range []struct {
		name, method, target, contentType, content string
		tamper                                     func(*http.Request)
		status                                     int
		code                                       string
	}{
		{"as it was bound", "GET", "/files/q3?v=1", "", "", nil, 200, ""},
		{"another target", "GET", "/files/q3?v=1", "", "", func(r *http.Request) { r.URL.RawQuery = "v=2" }, 403, "request_mismatch"},
		{"another nonce", "GET", "/files/q3", "", "", func(r *http.Request) { r.Header.Set(caveats.NonceHeader, "x") }, 403, "request_mismatch"},
		{"two nonces", "GET", "/files/q3", "", "", func(r *http.Request) { r.Header.Add(caveats.NonceHeader, "x") }, 400, "bad_request"},
		{"another host", "GET", "/files/q3", "", "", func(r *http.Request) { r.Host = "evil.example" }, 403, "request_mismatch"},
		{"without the caveat", "GET", "/files/q3", "", "", func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+token.Text()) }, 403, "request_mismatch"},
		{"without the caveat, forged", "GET", "/files/q3", "", "", func(r *http.Request) {
			r.Header.Set("Authorization", "Bearer "+token.Text()[:len(token.Text())-2]+"AA")
		}, 401, "bad_signature"},
		{"two content types", "PUT", "/files/q3", "text/plain", "content", func(r *http.Request) { r.Header.Add("Content-Type", "text/html") }, 400, "bad_request"},
		{"an upload", "PUT", "/files/q3", "text/plain", "content", nil, 200, ""},
		{"another method", "PUT", "/files/q3", "text/plain", "content", func(r *http.Request) { r.Method = "GET" }, 403, "request_mismatch"},
		{"another upload", "PUT", "/files/q3", "text/plain", "content", func(r *http.Request) {
			r.Body = io.NopCloser(strings.NewReader("CONTENT"))
		}, 403, "request_mismatch"},
		{"another content type", "PUT", "/files/q3", "text/plain", "content", func(r *http.Request) { r.Header.Set("Content-Type", "text/html") }, 403, "request_mismatch"},
		{"JSON", "POST", "/pay", "application/json", `{"b":1, "a":2}`, nil, 200, ""},
	} {
		body = ""
		status, answer := do(c.method, c.target, c.contentType, c.content, c.tamper)
		if status != c.status || !strings.Contains(answer, c.code) {
			t.Errorf("%s: %d %s, want %d %s", c.name, status, answer, c.status, c.code)
		}
		if want := map[string]string{"an upload": "content", "JSON": `{"a":2,"b":1}`}[c.name]; body != want {
			t.Errorf("%s: the handler read %q, want %q", c.name, body, want)
		}
	}

	// What was seen on its way is replayed.
	var seen http.Header
	do("POST", "/pay", "application/json", `{"a":1}`, func(r *http.Request) { seen = r.Header.Clone() })
	r, err := http.NewRequest("POST", s.URL+"/pay", strings.NewReader(`{"a":1}`))
	if err != nil {
		t.Fatal(err)
	}
	r.Header = seen
	resp, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, _ := io.ReadAll(resp.Body); resp.StatusCode != 401 || !strings.Contains(string(b), "replayed") {
		t.Errorf("replay: %d %s", resp.StatusCode, b)
	}
}

// TestHTTP2: the same over HTTP/2, bound to the request.
func TestHTTP2(t *testing.T) {
	a := guardtest.For(t)
	g := newGuard(t, a)
	g.HandleFunc("PUT /files/{path...}", guard.Route{Action: "write", Resource: "files/{path...}", RequireRequest: true},
		func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			if err != nil || r.ProtoMajor != 2 || string(body) != "content" {
				t.Errorf("%s %q %v", r.Proto, body, err)
			}
		})
	s := httptest.NewUnstartedServer(build(t, g))
	s.EnableHTTP2 = true
	s.StartTLS()
	t.Cleanup(s.Close)
	client := &http.Client{Transport: &guard.Transport{Base: s.Client().Transport, Token: a.Token(t, "action write"), Binder: &caveats.Binder{}}}
	for target, want := range map[string]int{"/files/q3?x=%20": 200, "/files/a%2Fb": 400, "/files/%252e": 400} {
		r, err := http.NewRequest("PUT", s.URL+target, strings.NewReader("content"))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s: %d %s", target, resp.StatusCode, b)
		}
	}
}

// TestTransportKeepsTheToken: no redirect to another origin, no plaintext to
// another host, no second credential.
func TestTransportKeepsTheToken(t *testing.T) {
	token := guardtest.For(t).Token(t)
	got := make(map[string]bool)
	var evil *httptest.Server
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		got[r.Host+r.URL.Path] = r.Header.Get("Authorization") != ""
		switch r.URL.Path {
		case "/here":
			http.Redirect(w, r, "/stay", http.StatusTemporaryRedirect)
		case "/away":
			http.Redirect(w, r, evil.URL+"/bounce", http.StatusTemporaryRedirect)
		case "/bounce":
			http.Redirect(w, r, "/again", http.StatusTemporaryRedirect)
		}
	})
	home, evil := serve(t, mux), serve(t, mux)
	host := func(s *httptest.Server) string { return strings.TrimPrefix(s.URL, "http://") }

	client := &http.Client{Transport: &guard.Transport{Token: token}}
	for _, path := range []string{"/here", "/away"} {
		resp, err := client.Get(home.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	for at, want := range map[string]bool{
		host(home) + "/here": true, host(home) + "/stay": true, host(home) + "/away": true,
		host(evil) + "/bounce": false, host(evil) + "/again": false,
	} {
		if sent, ok := got[at]; !ok || sent != want {
			t.Errorf("%s: credential sent: %v (visited: %v), want %v", at, sent, ok, want)
		}
	}

	sent := 0
	count := roundTripper(func(r *http.Request) (*http.Response, error) {
		sent++
		return &http.Response{StatusCode: 200, Body: http.NoBody, Request: r}, nil
	})
	for _, c := range []struct {
		url       string
		transport guard.Transport
		header    string
		want      error
	}{
		{"https://next.example/", guard.Transport{Token: token}, "", nil},
		{"http://127.0.0.1:1/", guard.Transport{Token: token}, "", nil},
		{"http://[::1]:1/", guard.Transport{Token: token}, "", nil},
		{"http://next.example/", guard.Transport{Token: token, UnsafePlaintext: true}, "", nil},
		{"http://next.example/", guard.Transport{Token: token}, "", guard.ErrPlaintext},
		{"http://127.0.0.1.evil.example/", guard.Transport{Token: token}, "", guard.ErrPlaintext},
		{"https://next.example/", guard.Transport{Token: token}, "Basic eA==", guard.ErrCredentialPresent},
		{"https://next.example/", guard.Transport{}, "", guard.ErrNoCredential},
		{"https://next.example/", guard.Transport{Source: func(context.Context) (*capability.Token, error) { return nil, capability.CodeExpired }}, "", capability.CodeExpired},
	} {
		body := &closed{Reader: strings.NewReader("x")}
		r, err := http.NewRequest("POST", c.url, body)
		if err != nil {
			t.Fatal(err)
		}
		if c.header != "" {
			r.Header.Set("Authorization", c.header)
		}
		before := sent
		c.transport.Base = count
		resp, err := c.transport.RoundTrip(r)
		if resp != nil {
			resp.Body.Close()
		}
		if !errors.Is(err, c.want) || (sent > before) != (c.want == nil) {
			t.Errorf("%s: %v, sent %v, want %v", c.url, err, sent > before, c.want)
		}
		if c.want != nil && !body.closed {
			t.Errorf("%s: the body was not closed", c.url)
		}
		if r.Header.Get("Authorization") != c.header {
			t.Errorf("%s: the caller's request was changed", c.url)
		}
	}
}

type closed struct {
	io.Reader
	closed bool
}

func (c *closed) Close() error { c.closed = true; return nil }

// TestLongCredential: one line stays below what proxies cap, and the guard
// reads what the transport sends.
func TestLongCredential(t *testing.T) {
	a := guardtest.For(t)
	key, err := capability.NewDischargerKey([32]byte{7})
	if err != nil {
		t.Fatal(err)
	}
	token := a.Token(t, "action read")
	for range 10 {
		if token, err = token.AddThirdParty(key.Public(), "", capability.ThirdParty{Condition: "approved payments"}); err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range token.Missing() {
		opened, err := key.OpenCaveat(m.CaveatID)
		if err != nil {
			t.Fatal(err)
		}
		d, err := opened.Discharge("time-before " + time.Now().Add(time.Minute).UTC().Format(time.RFC3339))
		if err != nil {
			t.Fatal(err)
		}
		if token, err = token.WithDischarges(d); err != nil {
			t.Fatal(err)
		}
	}
	if len(token.Text()) < 7<<10 {
		t.Fatalf("%d characters are not long", len(token.Text()))
	}
	g := newGuard(t, a)
	served := false
	g.HandleFunc("GET /files/{path...}", readFiles, func(http.ResponseWriter, *http.Request) { served = true })
	s := serve(t, build(t, g))
	longest := 0
	client := &http.Client{Transport: &guard.Transport{Token: token, Base: roundTripper(func(r *http.Request) (*http.Response, error) {
		for _, lines := range r.Header {
			for _, l := range lines {
				longest = max(longest, len(l))
			}
		}
		return http.DefaultTransport.RoundTrip(r)
	})}}
	resp, err := client.Get(s.URL + "/files/q3")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, _ := io.ReadAll(resp.Body); !served {
		t.Errorf("refused: %s", b)
	}
	if longest > 8<<10 {
		t.Errorf("a line of %d characters", longest)
	}
}
