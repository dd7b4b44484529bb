package guard_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/capability/guard"
	"github.com/writ-dev/writ/capability/guard/internal/guardtest"
)

// TestRouteFunctions: what a route's own functions say is judged, held to the same
// rules as a path, and refused where it could be read in two ways, whatever the
// token says.
func TestRouteFunctions(t *testing.T) {
	a := guardtest.For(t)
	narrow, broad := a.Token(t, "action read", "resource files/**", "context env is test"), a.Token(t)
	segments := map[string][]string{
		"/q3": {"files", "q3"}, "/other": {"mail", "q3"}, "/none": nil, "/empty": {}, "/blank": {"files", ""},
		"/dots": {"files", ".."}, "/slash": {"files/../mail", "q3"}, "/backslash": {"files", `..\mail`}, "/percent": {"files", "%2e"},
	}
	served := 0
	g := newGuard(t, a)
	g.HandleFunc("/", guard.Route{
		ActionFunc: func(r *http.Request) (string, error) {
			switch r.Method {
			case "GET":
				return "read", nil
			case "PUT":
				return "", &capability.Refusal{Code: capability.CodeActionDenied, Detail: "not at this hour"}
			}
			return "", errors.New("no such method")
		},
		ResourceFunc: func(r *http.Request) ([]string, error) {
			if r.URL.Path == "/missing" {
				return nil, errors.New("no such file")
			}
			return segments[r.URL.Path], nil
		},
		Context: func(r *http.Request) (capability.Fields, error) {
			if r.Header.Get("Broken") != "" {
				return nil, errors.New("the inventory does not answer: secret")
			}
			return capability.Fields{{Name: "env", Value: capability.StringValue("test")}}, nil
		},
	}, func(_ http.ResponseWriter, r *http.Request) {
		served++
		if got := strings.Join(guard.FromContext(r.Context()).Request().Resource, "/"); got != strings.Join(segments[r.URL.Path], "/") {
			t.Errorf("judged %q for %s", got, r.URL.Path)
		}
	})
	h := build(t, g)
	for _, c := range []struct {
		name, method, path string
		token              *capability.Token
		status             int
		code               string
		broken             string
	}{
		{"allowed", "GET", "/q3", narrow, 200, "", ""},
		{"another resource", "GET", "/other", narrow, 403, "resource_denied", ""},
		{"another resource, by a token without caveats", "GET", "/other", broad, 200, "", ""},
		{"no resource", "GET", "/none", broad, 400, "bad_request", ""},
		{"an empty resource", "GET", "/empty", broad, 400, "bad_request", ""},
		{"an empty segment", "GET", "/blank", broad, 400, "bad_request", ""},
		{"a segment of dots", "GET", "/dots", broad, 400, "bad_request", ""},
		{"a segment with slashes", "GET", "/slash", broad, 400, "bad_request", ""},
		{"a segment with a backslash", "GET", "/backslash", broad, 400, "bad_request", ""},
		{"an encoded segment", "GET", "/percent", broad, 400, "bad_request", ""},
		{"a resource that fails", "GET", "/missing", broad, 400, "bad_request", ""},
		{"an action with a code of its own", "PUT", "/q3", broad, 403, "action_denied", ""},
		{"an action that fails", "DELETE", "/q3", broad, 400, "bad_request", ""},
		{"facts that cannot be had", "GET", "/q3", broad, 503, "unavailable", "yes"},
	} {
		r := httptest.NewRequest(c.method, c.path, nil)
		r.Header.Set("Authorization", "Bearer "+c.token.Text())
		if c.broken != "" {
			r.Header.Set("Broken", c.broken)
		}
		w := httptest.NewRecorder()
		before := served
		h.ServeHTTP(w, r)
		if w.Code != c.status || c.code != "" && !strings.Contains(w.Body.String(), `"code":"`+c.code+`"`) {
			t.Errorf("%s: %d %s, want %d %s", c.name, w.Code, w.Body, c.status, c.code)
		}
		if (served > before) != (c.status == 200) || strings.Contains(w.Body.String(), "secret") {
			t.Errorf("%s: served %v, and the caller learns %s", c.name, served > before, w.Body)
		}
	}
}

// TestDischargesOfAForwardedToken: a discharge that is bound to another hop's key
// keeps the token from being forwarded, as a caveat of the token does.
func TestDischargesOfAForwardedToken(t *testing.T) {
	a := guardtest.For(t)
	theirs := capability.HolderKey{Method: capability.HolderMTLS, Thumbprint: [32]byte{2}}
	token, discharge := approval(t, a)
	bound, err := discharge.AttenuateExact("holder " + theirs.String())
	if err != nil {
		t.Fatal(err)
	}
	proof := guard.Holder(func(*http.Request, string) capability.HolderProof { return anyKey{} })
	for _, beside := range []bool{false, true} {
		cred := guard.Credential{Token: token.Text(), Discharges: []string{bound.Text()}}
		if !beside {
			whole, err := token.WithDischarges(bound)
			if err != nil {
				t.Fatal(err)
			}
			cred = guard.Credential{Token: whole.Text()}
		}
		grant := grantOf(t, a, cred, proof)
		_, err := grant.Narrow("action read")
		code(t, err, capability.CodeNotForwardable)
		if err := grant.Recheck(context.Background()); err != nil {
			t.Errorf("the call itself, judged again: %v", err)
		}
	}
}
