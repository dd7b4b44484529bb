package caveats_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats"
	"pgregory.net/rapid"
)

// The bytes are permanent: another language computes the same. The values
// come from Python's hashlib and struct, written from the grammar of RequestHash.
func TestRequestHashGolden(t *testing.T) {
	empty := sha256.Sum256(nil)
	for _, c := range []struct {
		m    capability.Message
		want string
	}{
		{capability.Message{}, "NV0yGzQIMHxoVq2Mfk-U0KBXrAfn9XfdKIhWcRbGcuw"},
		{capability.Message{Method: "GET", Authority: "files.corp.example", Target: "/files/q3?version=2", BodyDigest: empty}, "0sa-6ZgURuicOT4dED9EvEkk566zODUgAQDLxdPZ2bs"},
		{capability.Message{Method: "POST", Authority: "files.corp.example:8443", Target: "/files", ContentType: "application/json",
			BodyDigest: sha256.Sum256([]byte(`{"name":"q3"}`)), Nonce: "AAECAwQFBgcICQoL"}, "jZxv8gcSOUQgPABcVCAT4QCu5fjcc21KdjgVDUYbhlU"},
	} {
		h := caveats.RequestHash(&c.m)
		if got := base64.RawURLEncoding.EncodeToString(h[:]); got != c.want {
			t.Errorf("%+v: %s, want %s", c.m, got, c.want)
		}
	}
}

// The oracle builds the bytes piece by piece; and no two messages that differ
// have one hash, wherever a boundary between fields is moved.
func TestRequestHashAgainstGrammar(t *testing.T) {
	field := rapid.StringMatching(`[a-c]{0,3}`)
	message := rapid.Custom(func(t *rapid.T) capability.Message {
		m := capability.Message{Method: field.Draw(t, "method"), Authority: field.Draw(t, "authority"), Target: field.Draw(t, "target"),
			ContentType: field.Draw(t, "type"), Nonce: field.Draw(t, "nonce")}
		m.BodyDigest[0] = rapid.ByteRange(0, 1).Draw(t, "digest")
		if rapid.IntRange(0, 9).Draw(t, "long") == 0 {
			m.Target = strings.Repeat("x", rapid.IntRange(900, 1200).Draw(t, "length"))
		}
		return m
	})
	rapid.Check(t, func(t *rapid.T) {
		a, b := message.Draw(t, "a"), message.Draw(t, "b")
		h := sha256.New()
		h.Write([]byte("writ/v1/request\x00"))
		put := func(s string) {
			binary.Write(h, binary.BigEndian, uint32(len(s)))
			io.WriteString(h, s)
		}
		put(a.Method)
		put(a.Authority)
		put(a.Target)
		put(a.ContentType)
		h.Write(a.BodyDigest[:])
		put(a.Nonce)
		got := caveats.RequestHash(&a)
		if !bytes.Equal(h.Sum(nil), got[:]) {
			t.Fatalf("%+v: %x", a, got)
		}
		if (got == caveats.RequestHash(&b)) != (a == b) {
			t.Fatalf("%+v and %+v", a, b)
		}
	})
}

// serve runs a server that clears the token of each call against the call as
// it arrived.
func serve(t *testing.T, http2 bool) (*httptest.Server, *harness) {
	cache, err := caveats.NewReplayCache(100)
	if err != nil {
		t.Fatal(err)
	}
	h := newHarness(t, blocklist{}, caveats.WithReplays(cache, nil))
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		m, err := caveats.IncomingMessage(r, sha256.Sum256(body))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		err = h.verifier.VerifyText(r.Context(), &h.grant, r.Header.Get("Authorization"), &capability.Request{Now: now, Message: m})
		if err != nil {
			w.WriteHeader(http.StatusForbidden)
			io.WriteString(w, string(capability.CodeOf(err)))
			return
		}
		if !h.grant.RequestBound() {
			t.Error("granted, and not bound")
		}
		w.Write(body)
	}))
	s.EnableHTTP2 = http2
	if http2 {
		s.StartTLS()
	} else {
		s.Start()
	}
	t.Cleanup(s.Close)
	return s, h
}

// What is bound here is what net/http sends, in both of its protocols.
func TestBindOverHTTP(t *testing.T) {
	binder := caveats.Binder{Now: func() time.Time { return now }, Rand: nil}
	for _, proto := range []string{"HTTP/1.1", "HTTP/2.0"} {
		server, _ := serve(t, proto == "HTTP/2.0")
		send := func(r *http.Request) (status int, body string) {
			t.Helper()
			resp, err := server.Client().Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			b, err := io.ReadAll(resp.Body)
			if err != nil || resp.Proto != proto {
				t.Fatal(err, resp.Proto)
			}
			return resp.StatusCode, string(b)
		}
		bind := func(r *http.Request) {
			t.Helper()
			tok, err := binder.Bind(r, mint(t, "branch 000102030405060708090a0b"))
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Authorization", tok.Text())
		}
		for _, c := range []struct {
			method, target, body, contentType, host string
		}{
			{"GET", "", "", "", ""},
			{"GET", "/", "", "", ""},
			{"GET", "/files/q3?version=2&x=%20+y", "", "", ""},
			{"GET", "/files/caf%C3%A9/%7e;v=1/a%2fb", "", "", ""},
			{"GET", "/files/../x//y", "", "", ""},
			{"GET", "/?", "", "", ""},
			{"GET", "/x#fragment", "", "", ""},
			{"POST", "/files", `{"name":"q3"}`, "application/json", ""},
			{"POST", "/files", "", "", ""},
			{"PATCH", "/files", "x", `text/plain; charset="utf-8"`, ""},
			{"PURGE", "/files", "", "", ""},
			{"GET", "/", "", "", "Other.Example:8443"},
		} {
			var body io.Reader
			if c.body != "" {
				body = io.MultiReader(strings.NewReader(c.body)) // of no known length, without GetBody
			}
			r, err := http.NewRequest(c.method, server.URL+c.target, body)
			if err != nil {
				t.Fatal(err)
			}
			if c.contentType != "" {
				r.Header.Set("Content-Type", c.contentType)
			}
			r.Host = c.host
			bind(r)
			if status, got := send(r); status != 200 || got != c.body {
				t.Errorf("%s %+v: %d %s", proto, c, status, got)
			}
		}

		// Whatever else the credential is used for is refused.
		for name, change := range map[string]func(r *http.Request){
			"method":       func(r *http.Request) { r.Method = "PUT" },
			"path":         func(r *http.Request) { r.URL.Path = "/files/q4" },
			"query":        func(r *http.Request) { r.URL.RawQuery = "all=1" },
			"host":         func(r *http.Request) { r.Host = "other.example" },
			"content type": func(r *http.Request) { r.Header.Set("Content-Type", "text/plain") },
			"no type":      func(r *http.Request) { r.Header.Del("Content-Type") },
			"nonce":        func(r *http.Request) { r.Header.Set(caveats.NonceHeader, "AAAAAAAAAAAAAAAA") },
			"body": func(r *http.Request) {
				r.Body, r.ContentLength = io.NopCloser(strings.NewReader("[]")), 2
			},
		} {
			r, err := http.NewRequest("POST", server.URL+"/files", strings.NewReader("{}"))
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Content-Type", "application/json")
			bind(r)
			change(r)
			if status, got := send(r); status != 403 || got != string(capability.CodeRequestMismatch) {
				t.Errorf("%s, another %s: %d %s", proto, name, status, got)
			}
		}
		r, err := http.NewRequest("POST", server.URL+"/files", strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		bind(r)
		again := r.Clone(context.Background())
		again.Body, _ = r.GetBody()
		if status, got := send(r); status != 200 {
			t.Errorf("%s, first: %d %s", proto, status, got)
		}
		if status, got := send(again); status != 403 || got != string(capability.CodeReplayed) {
			t.Errorf("%s, replayed: %d %s", proto, status, got)
		}
		again.Body, _ = r.GetBody()
		bind(again)
		if status, got := send(again); status != 200 {
			t.Errorf("%s, bound again: %d %s", proto, status, got)
		}
	}
}

func TestBoundTokenEnds(t *testing.T) {
	r, err := http.NewRequest("GET", "https://files.corp.example/", nil)
	if err != nil {
		t.Fatal(err)
	}
	binder := caveats.Binder{Now: func() time.Time { return now }, Lifetime: 10 * time.Second}
	tok, err := binder.Bind(r, mint(t))
	if err != nil {
		t.Fatal(err)
	}
	m, err := caveats.OutgoingMessage(r, 0)
	if err != nil {
		t.Fatal(err)
	}
	h := newHarness(t, blocklist{})
	if err := h.verify(tok, &capability.Request{Now: now.Add(9 * time.Second), Message: m}); err != nil || !h.grant.Ends().Equal(now.Add(10*time.Second)) {
		t.Errorf("%v, ends %v", err, h.grant.Ends())
	}
	if err := h.verify(tok, &capability.Request{Now: now.Add(10 * time.Second), Message: m}); !errors.Is(err, capability.CodeExpired) {
		t.Error(err)
	}
	if err := h.verify(tok, &capability.Request{Now: now}); !errors.Is(err, capability.CodeRequestMismatch) {
		t.Errorf("without a message: %v", err)
	}
}

func TestMessagesThatCannotBeBound(t *testing.T) {
	good := func() *http.Request {
		r, err := http.NewRequest("POST", "https://files.corp.example/files", io.MultiReader(strings.NewReader("12345")))
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	if _, err := caveats.OutgoingMessage(good(), 5); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(r *http.Request){
		"long body":          func(r *http.Request) { r.Body = io.NopCloser(strings.NewReader("123456")) },
		"two content types":  func(r *http.Request) { r.Header["Content-Type"] = []string{"a/b", "c/d"} },
		"two nonces":         func(r *http.Request) { r.Header[caveats.NonceHeader] = []string{"a", "b"} },
		"blank around":       func(r *http.Request) { r.Header.Set("Content-Type", "a/b ") },
		"line feed":          func(r *http.Request) { r.Header.Set("Content-Type", "a/b\nX: y") },
		"CONNECT":            func(r *http.Request) { r.Method = "CONNECT" },
		"method with blank":  func(r *http.Request) { r.Method = "GET /" },
		"zone":               func(r *http.Request) { r.URL.Host = "[fe80::1%25eth0]"; r.Host = "[fe80::1%eth0]" },
		"no host":            func(r *http.Request) { r.Host, r.URL.Host = "", "" },
		"international host": func(r *http.Request) { r.Host = "bücher.example" },
		"opaque":             func(r *http.Request) { r.URL.Opaque = "files" },
		"no URL":             func(r *http.Request) { r.URL = nil },
		"long target":        func(r *http.Request) { r.URL.Path = "/" + strings.Repeat("x", 17<<10) },
	} {
		r := good()
		spoil(r)
		if _, err := caveats.OutgoingMessage(r, 5); !errors.Is(err, caveats.ErrMessage) {
			t.Errorf("%s: %v", name, err)
		}
	}
	broken := good()
	broken.Body = io.NopCloser(io.MultiReader(strings.NewReader("1"), brokenReader{}))
	if _, err := caveats.OutgoingMessage(broken, 5); !errors.Is(err, errBroken) {
		t.Errorf("a body that breaks off: %v", err)
	}
	// As a proxy sends it.
	r := &http.Request{Method: "GET", Host: "h", RequestURI: "http://h/a%2fb?c", URL: &url.URL{Scheme: "http", Host: "h", Path: "/a/b"}, Header: http.Header{}}
	if m, err := caveats.IncomingMessage(r, [32]byte{}); err != nil || m.Target != "/a%2fb?c" {
		t.Errorf("absolute form: %+v %v", m, err)
	}
	for _, target := range []string{"*", "h:443", "http://h", "http://h?x=/y", ""} {
		r.RequestURI = target
		if m, err := caveats.IncomingMessage(r, [32]byte{}); !errors.Is(err, caveats.ErrMessage) {
			t.Errorf("%q: %+v %v", target, m, err)
		}
	}
}

var errBroken = errors.New("broken")

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, errBroken }

func BenchmarkRequestHash(b *testing.B) {
	_, req := fiveCaveats(b)
	b.ReportAllocs()
	for b.Loop() {
		if caveats.RequestHash(req.Message) == [32]byte{} {
			b.Fatal("no hash")
		}
	}
}
