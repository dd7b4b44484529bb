package guard_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/capability/guard"
	"github.com/writ-dev/writ/capability/guard/internal/guardtest"
)

// journal is a logger whose lines can be read back.
type journal struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (j *journal) Write(b []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.buf.Write(b)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.buf.String()
}

func (j *journal) logger() *slog.Logger { return slog.New(slog.NewJSONHandler(j, nil)) }

func quiet() guard.Option { return guard.Logger(slog.New(slog.DiscardHandler)) }

func build(tb testing.TB, g *guard.Guard) http.Handler {
	tb.Helper()
	h, err := g.Build()
	if err != nil {
		tb.Fatal(err)
	}
	return h
}

func newGuard(tb testing.TB, a *guardtest.Authority, opts ...guard.Option) *guard.Guard {
	tb.Helper()
	g, err := guard.New(a.Verifier, append([]guard.Option{quiet()}, opts...)...)
	if err != nil {
		tb.Fatal(err)
	}
	return g
}

func serve(tb testing.TB, h http.Handler) *httptest.Server {
	tb.Helper()
	s := httptest.NewServer(h)
	tb.Cleanup(s.Close)
	return s
}

// TestRawRequests sends bytes over a socket: what any client could write, not
// only what Go's would. Whatever reaches the handler must be what was judged.
func TestRawRequests(t *testing.T) {
	a := guardtest.For(t)
	token := a.Token(t, "action read", "resource files/**").Text()
	anything := a.Token(t).Text() // no caveats at all: only the guard stands in the way
	auth := "Authorization: Bearer " + token + "\r\n"

	var reached []string // of one connection at a time
	g := newGuard(t, a)
	g.HandleFunc("GET /files/{path...}", guard.Route{Action: "read", Resource: "files/{path...}"},
		func(w http.ResponseWriter, r *http.Request) {
			reached = append(reached, r.URL.Path)
			judged := "/" + strings.Join(guard.FromContext(r.Context()).Request().Resource, "/")
			if r.URL.Path != judged || "/files/"+r.PathValue("path") != judged {
				t.Errorf("the handler sees %q, judged was %q", r.URL.Path, judged)
			}
			for _, name := range []string{"Authorization", "Writ-Discharges", "X-Http-Method-Override", "X-Original-Url"} {
				if v := r.Header.Values(name); len(v) > 0 {
					t.Errorf("the handler sees %s", name)
				}
			}
		})
	g.HandleFunc("DELETE /files/{path...}", guard.Route{Action: "delete", Resource: "files/{path...}"},
		func(http.ResponseWriter, *http.Request) { reached = append(reached, "DELETED") })
	addr := serve(t, build(t, g)).Listener.Addr().String()

	get := func(target string, headers ...string) string {
		return "GET " + target + " HTTP/1.1\r\nHost: files.example\r\n" + strings.Join(headers, "") + "\r\n"
	}
	for _, c := range []struct {
		name    string
		raw     string
		status  int
		reached string
	}{
		{"plain", get("/files/q3", auth), 200, "/files/q3"},
		{"deep", get("/files/a/b/c", auth), 200, "/files/a/b/c"},
		{"escaped space", get("/files/q%203", auth), 200, "/files/q 3"},
		{"escaped UTF-8", get("/files/caf%C3%A9", auth), 200, "/files/café"},
		{"unmapped query passes, unjudged", get("/files/q3?x=1&x=2", auth), 200, "/files/q3"},
		{"scheme in another case", get("/files/q3", "authorization: bEARER "+token+"\r\n"), 200, "/files/q3"},

		{"a query that only looks like a token", get("/files/q3?name=writ_notes", auth), 200, "/files/q3"},

		{"no credential", get("/files/q3"), 401, ""},
		{"another scheme", get("/files/q3", "Authorization: Basic "+token+"\r\n"), 401, ""},
		{"DPoP without a holder function", get("/files/q3", "Authorization: DPoP "+token+"\r\n"), 401, ""},
		{"scheme alone", get("/files/q3", "Authorization: Bearer\r\n"), 401, ""},
		{"another token", get("/files/q3", "Authorization: Bearer eyJhbGciOiJIUzI1NiJ9\r\n"), 401, ""},
		{"token twice in one header", get("/files/q3", "Authorization: Bearer "+token+" "+token+"\r\n"), 401, ""},
		{"token and comma", get("/files/q3", "Authorization: Bearer "+token+", Bearer "+token+"\r\n"), 401, ""},
		{"two headers", get("/files/q3", auth, auth), 400, ""},
		{"two headers, one of another scheme", get("/files/q3", auth, "Authorization: Basic eA==\r\n"), 400, ""},
		{"header folded over two lines", get("/files/q3", "Authorization: Bearer\r\n "+token+"\r\n"), 200, "/files/q3"},
		{"discharge that is none", get("/files/q3", auth, "Writ-Discharges: x\r\n"), 401, ""},
		{"discharge of nothing", get("/files/q3", auth, "Writ-Discharges: "+token+"\r\n"), 401, ""},
		{"token in the query", get("/files/q3?access_token=" + token), 400, ""},
		{"token in the query beside the header", get("/files/q3?t="+token, auth), 400, ""},

		{"encoded slash", get("/files/a%2Fb", auth), 400, ""},
		{"encoded slash, lower case", get("/files/a%2fb", auth), 400, ""},
		{"encoded slash and dots", get("/files/..%2f..%2fetc", auth), 400, ""},
		{"doubly encoded slash", get("/files/a%252Fb", auth), 400, ""},
		{"encoded backslash", get("/files/a%5Cb", auth), 400, ""},
		{"backslash", get(`/files/a\b`, auth), 400, ""},
		{"dot segment", get("/files/./q3", auth), 400, ""},
		{"dot-dot segment", get("/files/../secret", auth), 400, ""},
		{"encoded dot-dot segment", get("/files/%2e%2e/secret", auth), 400, ""},
		{"half encoded dot-dot segment", get("/files/.%2e/secret", auth), 400, ""},
		{"dot-dot before the route", get("/x/../files/q3", auth), 400, ""},
		{"empty segment", get("/files//q3", auth), 400, ""},
		{"leading double slash", get("//files/q3", auth), 400, ""},
		{"trailing slash", get("/files/q3/", auth), 400, ""},
		{"the prefix with a slash", get("/files/", auth), 400, ""},
		{"encoded NUL", get("/files/a%00b", auth), 400, ""},
		{"needless encoding", get("/files/%71%33", auth), 400, ""},
		{"broken encoding", get("/files/%zz", auth), 400, ""},
		{"not UTF-8", get("/files/%ff", auth), 400, ""},
		{"full-width slash", get("/files/a%EF%BC%8Fb", auth), 400, ""},
		{"fragment", get("/files/q3#x", auth), 400, ""},
		{"raw non-ASCII", get("/files/caf\xc3\xa9", auth), 400, ""},
		{"very long path", get("/files/"+strings.Repeat("a", 64<<10), auth), 400, ""},
		{"the same without any caveat", get("/files/a%2Fb", "Authorization: Bearer "+anything+"\r\n"), 400, ""},

		{"absolute form", get("http://files.example/files/q3", auth), 400, ""},
		{"absolute form of another host", get("http://evil.example/files/q3", auth), 400, ""},
		{"asterisk form", "OPTIONS * HTTP/1.1\r\nHost: files.example\r\n" + auth + "\r\n", 200, ""},
		{"authority form", "CONNECT files.example:443 HTTP/1.1\r\nHost: files.example\r\n" + auth + "\r\n", 400, ""},
		{"connect with a path", "CONNECT /files/q3 HTTP/1.1\r\nHost: files.example\r\n" + auth + "\r\n", 405, ""},

		{"method in another case", "get /files/q3 HTTP/1.1\r\nHost: files.example\r\n" + auth + "\r\n", 405, ""},
		{"an unmapped method", "PATCH /files/q3 HTTP/1.1\r\nHost: files.example\r\n" + auth + "\r\n", 405, ""},
		{"an action the token lacks", "DELETE /files/q3 HTTP/1.1\r\nHost: files.example\r\n" + auth + "\r\n", 403, ""},
		{"method override", get("/files/q3", auth, "X-HTTP-Method-Override: DELETE\r\nX-Original-URL: /admin\r\n"), 200, "/files/q3"},
		{"unknown path", get("/elsewhere", auth), 404, ""},

		{"declared body over the bound", "DELETE /files/q3 HTTP/1.1\r\nHost: files.example\r\nContent-Length: 1048577\r\n\r\n", 413, ""},
		{"negative length", "DELETE /files/q3 HTTP/1.1\r\nHost: files.example\r\nContent-Length: -1\r\n\r\n", 400, ""},
		{"two lengths", "DELETE /files/q3 HTTP/1.1\r\nHost: files.example\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400, ""},
		{"no host", "GET /files/q3 HTTP/1.1\r\n" + auth + "\r\n", 400, ""},
		{"header of 2 MiB", get("/files/q3", "Authorization: Bearer writ_"+strings.Repeat("A", 2<<20)+"\r\n"), 431, ""},
		{"token over its bound", get("/files/q3", "Authorization: Bearer writ_"+strings.Repeat("A", 30<<10)+"\r\n"), 401, ""},
		{"discharges over their bound", get("/files/q3", auth, "Writ-Discharges: "+strings.Repeat("writ_AAAA ", 8<<10)+"writ_\r\n"), 401, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			reached = nil
			resp, body := exchange(t, addr, c.raw)
			if resp.StatusCode != c.status {
				t.Errorf("status %d, want %d: %s", resp.StatusCode, c.status, body)
			}
			if got := strings.Join(reached, " "); got != c.reached {
				t.Errorf("the handler was reached with %q, want %q", got, c.reached)
			}
			if strings.Contains(body, token) || strings.Contains(fmt.Sprint(resp.Header), token) {
				t.Error("the answer holds the token")
			}
		})
	}
}

// exchange sends raw bytes on a connection of their own and reads one answer.
func exchange(t *testing.T, addr, raw string) (*http.Response, string) {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil { // a wrong guard waits for a body
		t.Fatal(err)
	}
	// The server may answer and close before it has read everything.
	go func() { _, _ = io.WriteString(conn, raw) }()
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
	return resp, string(body)
}

// problem is the document of a refusal.
type problem struct {
	Title     string `json:"title"`
	Status    int    `json:"status"`
	Code      string `json:"code"`
	Reference string `json:"reference"`
}

// verdict is a Verifier that always says the same.
type verdict struct{ err error }

func (v verdict) VerifyText(context.Context, *capability.Grant, string, *capability.Request, ...string) error {
	return v.err
}
func (v verdict) DryRun(context.Context, *capability.Grant, []byte, *capability.Request) error {
	return v.err
}

// TestRefusals holds every code to its status and headers, and the answer to
// telling a stranger nothing but code and reference.
func TestRefusals(t *testing.T) {
	const secret = "resource the-owners-secret\n2026/01/01 forged line"
	statuses := map[int][]capability.Code{
		401: {capability.CodeMalformed, capability.CodeTooLarge, capability.CodeUnknownKey, capability.CodeBadSignature,
			capability.CodeRevoked, capability.CodeUnregistered, capability.CodeExpired, capability.CodeNotYetValid,
			capability.CodeHolderProof, capability.CodeReplayed, capability.CodeDischargeRequired, capability.CodeDischargeInvalid},
		403: {capability.CodeActionDenied, capability.CodeResourceDenied, capability.CodeArgumentDenied,
			capability.CodeServiceDenied, capability.CodeClientDenied, capability.CodeContextDenied,
			capability.CodeRequestMismatch, capability.CodeBudgetExhausted, capability.CodeUnknownCaveat,
			capability.CodeObligation, capability.CodeNotForwardable},
		429: {capability.CodeRateLimited},
		503: {capability.CodeStaleRevocations, capability.CodeUnavailable},
	}
	n := 0
	references := make(map[string]bool)
	for status, codes := range statuses {
		for _, code := range codes {
			n++
			if got := guard.Status(code); got != status {
				t.Errorf("Status(%s) = %d, want %d", code, got, status)
			}
			var logged journal
			g, err := guard.New(verdict{&capability.Refusal{Code: code, Caveat: secret, Detail: "detail"}},
				guard.Logger(logged.logger()), guard.Realm("corp"))
			if err != nil {
				t.Fatal(err)
			}
			g.HandleFunc("GET /x", guard.Route{Action: "read", Resource: "x"}, func(http.ResponseWriter, *http.Request) {
				t.Errorf("%s: served", code)
			})
			r := httptest.NewRequest("GET", "/x", nil)
			r.Header.Set("Authorization", "Bearer writ_AAAA")
			w := httptest.NewRecorder()
			build(t, g).ServeHTTP(w, r)

			var p problem
			if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil {
				t.Fatalf("%s: %v in %s", code, err, w.Body)
			}
			if w.Code != status || p.Status != status || p.Code != string(code) || p.Title != http.StatusText(status) || len(p.Reference) != 16 {
				t.Errorf("%s: %d %+v", code, w.Code, p)
			}
			if references[p.Reference] {
				t.Errorf("%s: a reference twice", code)
			}
			references[p.Reference] = true
			h := w.Header()
			if h.Get("Content-Type") != "application/problem+json" || h.Get("Cache-Control") != "no-store" {
				t.Errorf("%s: headers %v", code, h)
			}
			wantChallenge := map[int]string{
				401: `Bearer realm="corp", error="invalid_token", error_description="` + string(code) + `"`,
				403: `Bearer realm="corp", error="insufficient_scope", error_description="` + string(code) + `"`,
			}[status]
			if got := h.Get("WWW-Authenticate"); got != wantChallenge {
				t.Errorf("%s: challenge %q, want %q", code, got, wantChallenge)
			}
			if retry := h.Get("Retry-After"); (retry != "") != (status == 429 || status == 503) {
				t.Errorf("%s: Retry-After %q", code, retry)
			}
			if all := w.Body.String() + fmt.Sprint(h); strings.Contains(all, "secret") || strings.Contains(all, "detail") {
				t.Errorf("%s: the stranger is told the explanation: %s", code, all)
			}

			var line struct{ Msg, Code, Reference, Explanation, Route string }
			if err := json.Unmarshal([]byte(logged.String()), &line); err != nil {
				t.Fatalf("%s: one line of log expected: %v: %q", code, err, logged.String())
			}
			if line.Code != string(code) || line.Reference != p.Reference || line.Route != "GET /x" ||
				!strings.Contains(line.Explanation, "the-owners-secret") || strings.ContainsAny(line.Explanation, "\n\r\x1b") {
				t.Errorf("%s: logged %+v", code, line)
			}
		}
	}
	if n != 26 {
		t.Errorf("%d codes tested, want all 26", n)
	}
}

func TestNoCredential(t *testing.T) {
	var logged journal
	g, err := guard.New(guardtest.For(t).Verifier, guard.Logger(logged.logger()), guard.Challenge(`DPoP algs="ES256"`))
	if err != nil {
		t.Fatal(err)
	}
	g.HandleFunc("GET /x", guard.Route{Action: "read", Resource: "x"}, func(http.ResponseWriter, *http.Request) { t.Error("served") })
	w := httptest.NewRecorder()
	build(t, g).ServeHTTP(w, httptest.NewRequest("GET", "/x", nil))
	if got := w.Header().Values("WWW-Authenticate"); w.Code != 401 || !slices.Equal(got, []string{`DPoP algs="ES256"`, `Bearer realm="writ"`}) {
		t.Errorf("%d %v", w.Code, w.Header())
	}
	if strings.Contains(w.Body.String(), `"code"`) || !strings.Contains(w.Body.String(), `"reference"`) {
		t.Errorf("body %s: want a reference and no code", w.Body)
	}
	if !strings.Contains(logged.String(), "no credential") {
		t.Errorf("log %q", logged.String())
	}
}
