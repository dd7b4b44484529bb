package guard_test

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/capability/guard"
	"github.com/writ-dev/writ/capability/guard/internal/guardtest"
	"github.com/writ-dev/writ/capability/revocation"
	"github.com/writ-dev/writ/caveats"
)

// TestBuild: whatever is not fully mapped is an error before anything is served.
func TestBuild(t *testing.T) {
	a := guardtest.For(t)
	segments := func(*http.Request) ([]string, error) { return []string{"x"}, nil }
	for _, c := range []struct {
		name    string
		pattern string
		route   guard.Route
		want    string // in the error; "" is none
	}{
		{"whole", "GET /files/{path...}", guard.Route{Action: "read", Resource: "files/{path...}"}, ""},
		{"two wildcards", "PUT /t/{tenant}/f/{file}", guard.Route{Action: "write", Resource: "{tenant}/files/{file}"}, ""},
		{"root", "GET /{$}", guard.Route{Action: "read", Resource: "index"}, ""},
		{"functions", "/sub/", guard.Route{ActionFunc: func(*http.Request) (string, error) { return "x", nil }, ResourceFunc: segments}, ""},
		{"no mapping", "GET /x", guard.Route{}, "no action"},
		{"no action", "GET /x", guard.Route{Resource: "x"}, "no action"},
		{"no resource", "GET /x", guard.Route{Action: "read"}, "no resource"},
		{"two actions", "GET /x", guard.Route{Action: "read", ActionFunc: func(*http.Request) (string, error) { return "", nil }, Resource: "x"}, "both Action"},
		{"two resources", "GET /x", guard.Route{Action: "read", Resource: "x", ResourceFunc: segments}, "both Resource"},
		{"action of two words", "GET /x", guard.Route{Action: "read write", Resource: "x"}, "one word"},
		{"one action for all methods", "/x", guard.Route{Action: "read", Resource: "x"}, "name the method"},
		{"wildcard that nobody judges", "GET /f/{file}/v/{version}", guard.Route{Action: "read", Resource: "f/{file}"}, "version"},
		{"wildcard from nowhere", "GET /f/{file}", guard.Route{Action: "read", Resource: "f/{file}/{other}"}, "other"},
		{"rest taken for one segment", "GET /f/{path...}", guard.Route{Action: "read", Resource: "f/{path}"}, "path"},
		{"rest that is not last", "GET /f/{path...}", guard.Route{Action: "read", Resource: "{path...}/f"}, "last"},
		{"anonymous subtree", "GET /f/", guard.Route{Action: "read", Resource: "f"}, "paths that Resource does not name"},
		{"part of a segment", "GET /f/{id}", guard.Route{Action: "read", Resource: "f/x-{id}"}, "whole segment"},
		{"star", "GET /f", guard.Route{Action: "read", Resource: "f/*"}, "whole segment"},
		{"dots", "GET /f", guard.Route{Action: "read", Resource: "f/../g"}, "segment"},
		{"trailing slash", "GET /f", guard.Route{Action: "read", Resource: "f/"}, "empty segment"},
		{"untyped parameter", "GET /f", guard.Route{Action: "read", Resource: "f", Query: map[string]capability.Kind{"q": capability.KindOther}}, "type"},
		{"arguments twice", "GET /f", guard.Route{Action: "read", Resource: "f", JSON: true, ArgumentsFunc: func(*http.Request) (capability.Fields, error) { return nil, nil }}, "ArgumentsFunc"},
		{"negative bound", "GET /f", guard.Route{Action: "read", Resource: "f", MaxBody: -1}, "MaxBody"},
		{"bad pattern", "GET x", guard.Route{Action: "read", Resource: "f"}, "missing /"},
	} {
		g := newGuard(t, a)
		g.Handle(c.pattern, c.route, http.NotFoundHandler())
		h, err := g.Build()
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", c.name, err)
		case c.want != "" && (err == nil || h != nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: error %v, want one with %q", c.name, err, c.want)
		}
	}

	g := newGuard(t, a)
	if _, err := g.Build(); err == nil {
		t.Error("a guard without routes was built")
	}
	g.Handle("GET /x", guard.Route{Action: "read", Resource: "x"}, nil)
	if _, err := g.Build(); err == nil {
		t.Error("a nil handler was built")
	}
	g = newGuard(t, a)
	g.Handle("GET /x", guard.Route{Action: "read", Resource: "x"}, http.NotFoundHandler())
	g.Handle("GET /x", guard.Route{Action: "write", Resource: "y"}, http.NotFoundHandler())
	if _, err := g.Build(); err == nil || !strings.Contains(err.Error(), "conflicts") {
		t.Errorf("a conflict of patterns: %v", err)
	}
	g = newGuard(t, a)
	g.Handle("GET /x", guard.Route{Action: "read", Resource: "x"}, http.NotFoundHandler())
	build(t, g)
	func() {
		defer func() {
			if recover() == nil {
				t.Error("a route was added to a guard that serves")
			}
		}()
		g.Handle("GET /y", guard.Route{}, http.NotFoundHandler())
	}()
	if _, err := guard.New(nil); err == nil {
		t.Error("a guard without a verifier")
	}
	if _, err := guard.NewJudge(a.Verifier, guard.MaxBody(1)); err == nil {
		t.Error("a judge took an option that only HTTP has")
	}
}

// TestArguments: the handler gets what was judged, or nothing.
func TestArguments(t *testing.T) {
	a := guardtest.For(t)
	token := a.Token(t, "argument amount <= 100").Text()
	free := a.Token(t).Text()
	var seen string
	g := newGuard(t, a, guard.MaxBody(4096))
	record := func(_ http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		if r.ContentLength >= 0 && int64(len(body)) != r.ContentLength {
			t.Errorf("Content-Length %d for %d bytes", r.ContentLength, len(body))
		}
		seen = r.URL.RawQuery + "|" + string(body)
	}
	numbers := map[string]capability.Kind{"amount": capability.KindNumber, "dry": capability.KindBool, "to": capability.KindString}
	g.HandleFunc("POST /json", guard.Route{Action: "pay", Resource: "json", JSON: true}, record)
	g.HandleFunc("POST /both", guard.Route{Action: "pay", Resource: "both", JSON: true, Query: numbers}, record)
	g.HandleFunc("POST /query", guard.Route{Action: "pay", Resource: "query", Query: numbers}, record)
	g.HandleFunc("POST /none", guard.Route{Action: "pay", Resource: "none"}, record)
	g.HandleFunc("POST /func", guard.Route{Action: "pay", Resource: "func", ArgumentsFunc: func(r *http.Request) (capability.Fields, error) {
		if r.Header.Get("X-Amount") == "" {
			return nil, errors.New("no amount")
		}
		return capability.Fields{{Name: "amount", Value: capability.NumberValue(r.Header.Get("X-Amount"))}}, nil
	}}, record)
	h := build(t, g)

	const form = "application/x-www-form-urlencoded"
	for _, c := range []struct {
		name, target, contentType, body string
		token                           string
		status                          int
		seen                            string
	}{
		{"canonical", "/json", "application/json", "{ \"to\": \"b\\u0062\", \"amount\" : 1e2 }", token, 200, `|{"amount":1e2,"to":"bb"}`},
		{"charset", "/json", "application/json; charset=UTF-8", `{"amount":1}`, token, 200, `|{"amount":1}`},
		{"over the limit", "/json", "application/json", `{"amount":100.01}`, token, 403, ""},
		{"missing", "/json", "application/json", `{}`, token, 403, ""},
		{"of another type", "/json", "application/json", `{"amount":"1"}`, token, 403, ""},
		{"twice", "/json", "application/json", `{"amount":1,"amount":1000}`, token, 400, ""},
		{"twice, for a token that does not care", "/json", "application/json", `{"amount":1,"amount":1000}`, free, 400, ""},
		{"in another case", "/json", "application/json", `{"amount":1,"Amount":1000}`, token, 400, ""},
		{"two documents", "/json", "application/json", `{"amount":1}{"amount":1000}`, token, 400, ""},
		{"array", "/json", "application/json", `[{"amount":1}]`, token, 400, ""},
		{"no body", "/json", "application/json", ``, token, 400, ""},
		{"no type", "/json", "", `{"amount":1}`, token, 415, ""},
		{"form for JSON", "/json", form, `amount=1`, token, 415, ""},
		{"UTF-16", "/json", "application/json; charset=utf-16", `{"amount":1}`, token, 415, ""},
		{"a query beside JSON", "/json?amount=1000", "application/json", `{"amount":1}`, token, 400, ""},
		{"over the bound", "/json", "application/json", `{"amount":1,"to":"` + strings.Repeat("x", 4096) + `"}`, token, 413, ""},

		{"query", "/query?amount=99.5&to=b%20b&dry=true", "", "", token, 200, "amount=99.5&to=b%20b&dry=true|"},
		{"query over the limit", "/query?amount=1000", "", "", token, 403, ""},
		{"query without it", "/query?to=b", "", "", token, 403, ""},
		{"parameter twice", "/query?amount=1&amount=1000", "", "", token, 400, ""},
		{"parameter in another case", "/query?amount=1&AMOUNT=1000", "", "", token, 400, ""},
		{"parameter encoded", "/query?amount=1&%61mount=1000", "", "", token, 400, ""},
		{"semicolon", "/query?amount=1;amount=1000", "", "", token, 400, ""},
		{"unmapped parameter", "/query?amount=1&x=1", "", "", token, 400, ""},
		{"no number", "/query?amount=0x10", "", "", token, 400, ""},
		{"no truth", "/query?amount=1&dry=1", "", "", token, 400, ""},
		{"empty pair", "/query?amount=1&", "", "", token, 400, ""},
		{"a form beside the query", "/query?amount=1", form, "amount=1000", token, 415, ""},
		{"a form with parameters", "/query?amount=1", form + "; x=y", "amount=1000", token, 415, ""},
		{"multipart beside the query", "/query?amount=1", "multipart/form-data; boundary=x", "--x--", token, 415, ""},
		{"an unreadable type", "/query?amount=1", "application/x-www-form-urlencoded;;", "amount=1000", token, 415, ""},
		{"an upload beside the query", "/query?amount=1", "application/octet-stream", "data", token, 200, "amount=1|data"},

		{"both", "/both?dry=true", "application/json", `{"amount":1}`, token, 200, `dry=true|{"amount":1}`},
		{"one name in both", "/both?amount=1", "application/json", `{"amount":1000}`, token, 400, ""},
		{"one name in both, in another case", "/both?amount=1", "application/json", `{"AMOUNT":1000}`, token, 400, ""},

		{"nothing mapped denies every argument caveat", "/none?amount=1", "application/json", `{"amount":1}`, token, 403, ""},
		{"nothing mapped passes as it is", "/none?a=1&a=2", form, `a=3`, free, 200, "a=1&a=2|a=3"},
		{"function", "/func", "", "", token, 400, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			seen = ""
			r := httptest.NewRequest("POST", c.target, strings.NewReader(c.body))
			r.Header.Set("Authorization", "Bearer "+c.token)
			if c.contentType != "" {
				r.Header.Set("Content-Type", c.contentType)
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			if w.Code != c.status || seen != c.seen {
				t.Errorf("%d %q, want %d %q: %s", w.Code, seen, c.status, c.seen, w.Body)
			}
		})
	}

	for _, encoding := range []string{"gzip", "identity"} {
		r := httptest.NewRequest("POST", "/json", strings.NewReader(`{"amount":1}`))
		r.Header.Set("Authorization", "Bearer "+token)
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Content-Encoding", encoding)
		w := httptest.NewRecorder()
		if h.ServeHTTP(w, r); w.Code != http.StatusUnsupportedMediaType {
			t.Errorf("content encoding %s: %d", encoding, w.Code)
		}
	}
}

// TestChunkedBodyOverItsBound: a body whose length nobody declared is cut off.
func TestChunkedBodyOverItsBound(t *testing.T) {
	a := guardtest.For(t)
	token := a.Token(t).Text()
	g := newGuard(t, a, guard.MaxBody(1<<20))
	var failed error
	g.HandleFunc("PUT /up", guard.Route{Action: "write", Resource: "up", MaxBody: 1024}, func(w http.ResponseWriter, r *http.Request) {
		_, failed = io.Copy(io.Discard, r.Body)
	})
	g.HandleFunc("PUT /json", guard.Route{Action: "write", Resource: "json", JSON: true, MaxBody: 1024}, func(http.ResponseWriter, *http.Request) {
		t.Error("served")
	})
	s := serve(t, build(t, g))
	put := func(path string) int {
		r, err := http.NewRequest("PUT", s.URL+path, io.LimitReader(zeros{}, 1<<20))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+token)
		r.Header.Set("Content-Type", "application/json")
		resp, err := s.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	put("/up")
	if _, ok := errors.AsType[*http.MaxBytesError](failed); !ok {
		t.Errorf("the handler read on: %v", failed)
	}
	if status := put("/json"); status != http.StatusRequestEntityTooLarge {
		t.Errorf("status %d", status)
	}
}

// TestStrangersFillNoMemory: a large body that would have to be kept is not read
// for a token that is not genuine.
func TestStrangersFillNoMemory(t *testing.T) {
	a := guardtest.For(t)
	good := a.Token(t).Text()
	forged := good[:len(good)-4] + "AAAA"
	g := newGuard(t, a)
	g.HandleFunc("POST /json", guard.Route{Action: "write", Resource: "json", JSON: true}, func(http.ResponseWriter, *http.Request) {})
	h := build(t, g)
	for _, c := range []struct {
		token  string
		length int64
		read   bool
	}{{good, 1 << 19, true}, {forged, 1 << 19, false}, {forged, -1, false}, {"writ_", -1, false}, {forged, 64, true}} {
		body := &counter{Reader: io.LimitReader(zeros{}, 1<<19)}
		r := httptest.NewRequest("POST", "/json", body)
		r.ContentLength = c.length
		r.Header.Set("Authorization", "Bearer "+c.token)
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if read := body.n > 0; read != c.read || w.Code == http.StatusOK {
			t.Errorf("%s of %d bytes: read %d, %d %s", c.token[:8], c.length, body.n, w.Code, w.Body)
		}
	}
}

type counter struct {
	io.Reader
	n int
}

func (c *counter) Read(b []byte) (int, error) {
	n, err := c.Reader.Read(b)
	c.n += n
	return n, err
}

// TestMounted: behind a prefix that an outer mux strips, the handler's path is
// what counts, and what came over the wire is no less strict.
func TestMounted(t *testing.T) {
	a := guardtest.For(t)
	token := a.Token(t, "resource files/**").Text()
	g := newGuard(t, a)
	g.Handle("GET /files/{path...}", readFiles, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	outer := http.StripPrefix("/api", build(t, g))
	for target, want := range map[string]int{
		"/api/files/q3": 200, "/api/files/a%2Fb": 400, "/api/files/../q3": 400, "/files/q3": 404, "/api/other": 404,
	} {
		r := httptest.NewRequest("GET", target, nil)
		r.Header.Set("Authorization", "Bearer "+token)
		w := httptest.NewRecorder()
		if outer.ServeHTTP(w, r); w.Code != want {
			t.Errorf("%s: %d, want %d", target, w.Code, want)
		}
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// aged are revocations of an age; 5 s is their own bound.
type aged struct {
	revocation.Static
	age *atomic.Int64
}

func (r aged) Within(_ int64, bound time.Duration) bool {
	if bound == 0 {
		bound = 5 * time.Second
	}
	return time.Duration(r.age.Load()) <= bound
}

// TestRouteVerifier: a route with a tighter bound refuses where the others still
// serve, and a long call that looks again goes by the bound of its route.
func TestRouteVerifier(t *testing.T) {
	a := guardtest.For(t)
	checker, err := caveats.Standard()
	if err != nil {
		t.Fatal(err)
	}
	revoked := aged{revocation.Static{Set: a.Revoked}, new(atomic.Int64)}
	bounded := func(bound time.Duration) *capability.Verifier {
		v, err := capability.NewVerifier(a, []string{guardtest.Audience}, checker, capability.WithRevocations(revoked, bound))
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	g, err := guard.New(bounded(0), quiet())
	if err != nil {
		t.Fatal(err)
	}
	long := func(_ http.ResponseWriter, r *http.Request) {
		revoked.age.Store(int64(3 * time.Second))
		err := guard.FromContext(r.Context()).Recheck(r.Context())
		if stale := errors.Is(err, capability.CodeStaleRevocations); stale != (r.URL.Path == "/payments") {
			t.Errorf("%s, 3 s later: %v", r.URL.Path, err)
		}
	}
	g.HandleFunc("GET /notes", guard.Route{Action: "read", Resource: "notes"}, long)
	g.HandleFunc("POST /payments", guard.Route{Action: "pay", Resource: "payments", Verifier: bounded(time.Second)}, long)
	h := build(t, g)
	token := a.Token(t).Text()
	for _, c := range []struct {
		age             time.Duration
		notes, payments int
	}{{time.Second, 200, 200}, {2 * time.Second, 200, 503}, {6 * time.Second, 503, 503}} {
		for target, want := range map[string]int{"GET /notes": c.notes, "POST /payments": c.payments} {
			revoked.age.Store(int64(c.age))
			method, path, _ := strings.Cut(target, " ")
			r := httptest.NewRequest(method, path, nil)
			r.Header.Set("Authorization", "Bearer "+token)
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			if w.Code != want || want == 503 && !strings.Contains(w.Body.String(), string(capability.CodeStaleRevocations)) {
				t.Errorf("%s with revocations %v old: %d %s, want %d", target, c.age, w.Code, w.Body, want)
			}
		}
	}
}
