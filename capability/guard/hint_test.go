package guard_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/capability/guard"
	"github.com/writ-dev/writ/capability/guard/internal/guardtest"
)

// TestRevokedIsAHint: what the next service says of a token is believed when
// this service's own revocations agree, and not before.
func TestRevokedIsAHint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, behind := guardtest.For(t), guardtest.For(t) // the same keys, each with revocations of its own
		token := a.Token(t, "resource files/**")
		grant := grantOf(t, behind, guard.Credential{Token: token.Text()})
		next := newGuard(t, a)
		next.HandleFunc("GET /files/{path...}", readFiles, func(http.ResponseWriter, *http.Request) {})
		handler := build(t, next)
		c, err := grant.Client(roundTripper(func(r *http.Request) (*http.Response, error) {
			w := httptest.NewRecorder()
			in := r.Clone(r.Context())
			in.RequestURI = r.URL.RequestURI()
			handler.ServeHTTP(w, in)
			return w.Result(), nil
		}), "action read")
		if err != nil {
			t.Fatal(err)
		}
		ask := func() capability.Code {
			t.Helper()
			resp, err := c.Get("https://next.example/files/q3")
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			code := guard.CodeOf(resp)
			if again := guard.CodeOf(resp); again != code {
				t.Errorf("the code is %q, and then %q", code, again)
			}
			body, err := io.ReadAll(resp.Body)
			if err != nil || code != "" && !strings.Contains(string(body), `"code":"`+string(code)+`"`) {
				t.Errorf("the body after CodeOf: %q, %v", body, err)
			}
			return code
		}
		if code := ask(); code != "" {
			t.Fatalf("refused: %s", code)
		}
		const bound = 2 * time.Second
		a.RevokeBranch(t, token)
		if code := ask(); code != capability.CodeRevoked {
			t.Fatalf("the next service says %q", code)
		}
		start := time.Now()
		if grant.ConfirmRevoked(t.Context(), bound) || time.Since(start) != bound {
			t.Errorf("after %v, a hint that nothing confirms is believed, or given up early", time.Since(start))
		}
		time.AfterFunc(time.Second, func() { behind.RevokeBranch(t, token) })
		start = time.Now()
		if !grant.ConfirmRevoked(t.Context(), bound) || time.Since(start) > time.Second+50*time.Millisecond {
			t.Errorf("after %v, a revocation that arrived after 1 s is not confirmed", time.Since(start))
		}
		if grant := guard.FromContext(t.Context()); grant.ConfirmRevoked(t.Context(), 0) {
			t.Error("confirmed without a grant")
		}
	})
}

// TestCodeOf reads nothing into answers that are no refusals of a guard's.
func TestCodeOf(t *testing.T) {
	const problem = "application/problem+json"
	for _, c := range []struct {
		name, media, body string
		status            int
		want              capability.Code
	}{
		{"a refusal", problem, `{"code":"revoked"}`, 401, capability.CodeRevoked},
		{"with a charset", problem + "; charset=utf-8", `{"title":"x","code":"rate_limited","more":{}}`, 429, capability.CodeRateLimited},
		{"no problem document", "application/json", `{"code":"revoked"}`, 401, ""},
		{"no refusal", problem, `{"code":"revoked"}`, 200, ""},
		{"no code", problem, `{"title":"Unauthorized"}`, 401, ""},
		{"no JSON", problem, `code: revoked`, 401, ""},
		{"a code of several lines", problem, `{"code":"revoked\nok"}`, 401, ""},
		{"too long", problem, `{"title":"` + strings.Repeat("x", 8<<10) + `","code":"revoked"}`, 401, ""},
	} {
		resp := &http.Response{StatusCode: c.status, Header: http.Header{"Content-Type": {c.media}}, Body: io.NopCloser(strings.NewReader(c.body))}
		if got := guard.CodeOf(resp); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
		if b, err := io.ReadAll(resp.Body); string(b) != c.body || err != nil {
			t.Errorf("%s: %d bytes are left of %d, %v", c.name, len(b), len(c.body), err)
		}
	}
	if guard.CodeOf(nil) != "" {
		t.Error("a code in no answer")
	}
}
