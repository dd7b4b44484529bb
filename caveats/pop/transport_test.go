package pop_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats/pop"
)

// server answers requests in order, and keeps what it was sent.
type server struct {
	answers []http.Header // of 401, until they are used up; then 200
	seen    []*http.Request
	bodies  []string
}

func (s *server) RoundTrip(r *http.Request) (*http.Response, error) {
	s.seen = append(s.seen, r)
	body := ""
	if r.Body != nil {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		body = string(b)
	}
	s.bodies = append(s.bodies, body)
	resp := &http.Response{StatusCode: 200, Header: http.Header{}, Body: io.NopCloser(strings.NewReader("")), Request: r}
	if len(s.answers) > 0 {
		resp.StatusCode, resp.Header, s.answers = 401, s.answers[0], s.answers[1:]
	}
	return resp, nil
}

func demand(nonce string) http.Header {
	return http.Header{"Dpop-Nonce": {nonce}, "Www-Authenticate": {`Bearer realm="writ"`, `DPoP error="use_dpop_nonce", algs="ES256"`}}
}

func request(t *testing.T, url, body string) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), "POST", url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+testToken)
	return r
}

func TestTransport(t *testing.T) {
	k := key(t, pop.Ed25519)
	s := &server{answers: []http.Header{demand("n1")}}
	rt := &pop.Transport{Signer: k, Base: s}
	r := request(t, "https://a.example/x", "body")
	resp, err := rt.RoundTrip(r)
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("%v, %v", resp, err)
	}
	if len(s.seen) != 2 || s.bodies[0] != "body" || s.bodies[1] != "body" {
		t.Fatalf("sent %q", s.bodies)
	}
	if s.seen[1].Header.Get("Authorization") != "DPoP "+testToken || s.seen[0].Header.Get("DPoP") == s.seen[1].Header.Get("DPoP") {
		t.Errorf("second request %v", s.seen[1].Header)
	}
	if r.Header.Get("DPoP") != "" || r.Header.Get("Authorization") != "Bearer "+testToken {
		t.Error("the caller's request was changed")
	}

	// The nonce is known to this server's next call, and to no other server's.
	nonce := func(r *http.Request) string {
		t.Helper()
		_, rest, _ := strings.Cut(r.Header.Get("DPoP"), ".")
		payload, _, _ := strings.Cut(rest, ".")
		_, after, ok := strings.Cut(decoded(t, payload), `"nonce":"`)
		if !ok {
			return ""
		}
		n, _, _ := strings.Cut(after, `"`)
		return n
	}
	for url, want := range map[string]string{"https://a.example/y": "n1", "https://b.example/y": "", "http://a.example/y": ""} {
		s.seen = nil
		if _, err := rt.RoundTrip(request(t, url, "")); err != nil {
			t.Fatal(err)
		}
		if got := nonce(s.seen[0]); got != want {
			t.Errorf("%s: nonce %q, want %q", url, got, want)
		}
	}
}

// Tried again once, and only for want of a nonce.
func TestTransportTriesOnce(t *testing.T) {
	k := key(t, pop.Ed25519)
	for name, c := range map[string]struct {
		answers []http.Header
		sent    int
	}{
		"another nonce each time": {[]http.Header{demand("n1"), demand("n2"), demand("n3")}, 2},
		"no nonce in it":          {[]http.Header{demand("")}, 1},
		"refused for the proof":   {[]http.Header{{"Dpop-Nonce": {"n1"}, "Www-Authenticate": {`DPoP error="invalid_dpop_proof"`}}}, 1},
		"refused for the token":   {[]http.Header{{"Www-Authenticate": {`Bearer error="invalid_token"`}}}, 1},
		"a nonce of a megabyte":   {[]http.Header{demand(strings.Repeat("n", 1<<20))}, 1},
	} {
		s := &server{answers: c.answers}
		resp, err := (&pop.Transport{Signer: k, Base: s}).RoundTrip(request(t, "https://a.example/x", "body"))
		if len(s.seen) != c.sent || err != nil || resp.StatusCode != 401 {
			t.Errorf("%s: sent %d times, %v", name, len(s.seen), err)
		}
	}
	// A body that cannot be had again is sent once; the answer is the caller's.
	s := &server{answers: []http.Header{demand("n1")}}
	r := request(t, "https://a.example/x", "body")
	r.GetBody = nil
	resp, err := (&pop.Transport{Signer: k, Base: s}).RoundTrip(r)
	if err != nil || resp.StatusCode != 401 || len(s.seen) != 1 {
		t.Errorf("%v, %v, sent %d times", resp, err, len(s.seen))
	}
}

// Without a token there is nothing to prove.
func TestTransportWithoutToken(t *testing.T) {
	for _, authorization := range []string{"", "Basic eA==", "Bearer other", "Bearer"} {
		s := &server{}
		r := request(t, "https://a.example/x", "")
		r.Header.Set("Authorization", authorization)
		if _, err := (&pop.Transport{Signer: broken{}, Base: s}).RoundTrip(r); err != nil || s.seen[0].Header.Get("DPoP") != "" {
			t.Errorf("%q: %v", authorization, err)
		}
	}
}

var errBroken = errors.New("the device is gone")

// broken is a signer whose device is gone.
type broken struct{}

func (broken) HolderKey() capability.HolderKey                 { return capability.HolderKey{} }
func (broken) Prove(context.Context, pop.Call) (string, error) { return "", errBroken }

type closing struct {
	io.Reader
	closed bool
}

func (c *closing) Close() error { c.closed = true; return nil }

func TestTransportSignerFails(t *testing.T) {
	s, body := &server{}, &closing{Reader: strings.NewReader("body")}
	r := request(t, "https://a.example/x", "")
	r.Body = body
	_, err := (&pop.Transport{Signer: broken{}, Base: s}).RoundTrip(r)
	if !errors.Is(err, errBroken) || len(s.seen) != 0 || !body.closed {
		t.Errorf("%v, sent %d times, body closed: %v", err, len(s.seen), body.closed)
	}
}
