package client

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/capability"
)

const secretToken = "writ_c2VjcmV0"

// pki is a CA and a way to make servers' certificates.
type pki struct {
	t    testing.TB
	cert *x509.Certificate
	der  []byte
	key  *ecdsa.PrivateKey
}

func newPKI(t testing.TB) *pki {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &pki{t, cert, der, key}
}

func (p *pki) pin() string {
	sum := sha256.Sum256(p.der)
	return fmt.Sprintf("%x", sum)
}

func (p *pki) leaf(change func(*x509.Certificate)) tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		p.t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "node"}, DNSNames: []string{"some-node"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if change != nil {
		change(tmpl)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, p.cert, &key.PublicKey, p.key)
	if err != nil {
		p.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der, p.der}, PrivateKey: key}
}

func (p *pki) server(h http.HandlerFunc, cert tls.Certificate, most uint16) *httptest.Server {
	s := httptest.NewUnstartedServer(h)
	s.EnableHTTP2 = true
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, MaxVersion: most}
	s.StartTLS()
	p.t.Cleanup(s.Close)
	return s
}

func testClient(t testing.TB, cfg Config) *Client {
	t.Helper()
	if cfg.Token == "" && cfg.TokenFile == "" && cfg.TokenSource == nil {
		cfg.Token = secretToken
	}
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func answerStatus(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(api.Status{Node: "n"})
}

func writeProblem(w http.ResponseWriter, status int, code api.Code, retry string) {
	w.Header().Set("Content-Type", "application/problem+json")
	if retry != "" {
		w.Header().Set("Retry-After", retry)
	}
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(api.Problem{Type: "about:blank", Title: "x", Status: status, Code: code, Reference: "abc"})
}

// TestPin holds the server's certificate to the pinned CA, on fresh and on
// resumed connections.
func TestPin(t *testing.T) {
	ca, other := newPKI(t), newPKI(t)
	cases := []struct {
		name string
		cert func() tls.Certificate
		most uint16
		ok   bool
	}{
		{"a node of the cluster", func() tls.Certificate { return ca.leaf(nil) }, 0, true},
		{"another cluster", func() tls.Certificate { return other.leaf(nil) }, 0, false},
		{"the pinned CA beside a stranger's leaf", func() tls.Certificate {
			c := other.leaf(nil)
			c.Certificate = [][]byte{c.Certificate[0], ca.der}
			return c
		}, 0, false},
		{"no CA in the chain", func() tls.Certificate {
			c := ca.leaf(nil)
			c.Certificate = c.Certificate[:1]
			return c
		}, 0, false},
		{"expired", func() tls.Certificate {
			return ca.leaf(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
		}, 0, false},
		{"a certificate for clients", func() tls.Certificate {
			return ca.leaf(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} })
		}, 0, false},
		{"TLS 1.2", func() tls.Certificate { return ca.leaf(nil) }, tls.VersionTLS12, false},
	}
	for _, k := range cases {
		t.Run(k.name, func(t *testing.T) {
			var seen atomic.Int32
			s := ca.server(func(w http.ResponseWriter, r *http.Request) {
				seen.Add(1)
				answerStatus(w, r)
			}, k.cert(), k.most)
			c := testClient(t, Config{Addrs: []string{s.Listener.Addr().String()}, CAFingerprint: ca.pin(), Attempts: 2})
			_, err := c.Status(t.Context())
			if k.ok != (err == nil) {
				t.Fatalf("error %v", err)
			}
			if !k.ok && seen.Load() != 0 {
				t.Error("a request, with its credential, went to a server that was not verified")
			}
			if !k.ok && k.most == 0 && !errors.Is(err, ErrFingerprint) {
				t.Errorf("error %v is not ErrFingerprint", err)
			}
			if !k.ok && capability.CodeOf(err) != capability.CodeUnavailable {
				t.Errorf("code %s, not unavailable", capability.CodeOf(err))
			}
		})
	}
}

// TestRetries: a change keeps its request id over nodes that are gone, that do
// not lead, and that cannot tell.
func TestRetries(t *testing.T) {
	ca := newPKI(t)
	var mu sync.Mutex
	var ids, bodies []string
	n := 0
	s := ca.server(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		b, _ := io.ReadAll(r.Body)
		ids, bodies = append(ids, r.Header.Get(api.HeaderRequestID)), append(bodies, string(b))
		if r.Header.Get("Authorization") != "Bearer "+secretToken {
			t.Error("no credential was sent")
		}
		switch n++; n {
		case 1:
			writeProblem(w, 503, api.CodeNotLeader, "")
		case 2:
			writeProblem(w, 503, api.CodeIndeterminate, "")
		case 3:
			writeProblem(w, 429, api.CodeOverloaded, "1")
		default:
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(api.TokenResponse{Token: "writ_x", Index: 7})
		}
	}, ca.leaf(nil), 0)
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead.Close()
	c := testClient(t, Config{Addrs: []string{dead.Addr().String(), s.Listener.Addr().String()}, CAFingerprint: ca.pin(), Attempts: 10})
	start := time.Now()
	got, err := c.Issue(t.Context(), api.IssueRequest{Audience: "corp"})
	if err != nil || got.Index != 7 {
		t.Fatalf("%+v, %v", got, err)
	}
	if time.Since(start) < time.Second {
		t.Error("Retry-After was not kept to")
	}
	for i := range ids {
		if id, err := capability.ParseTokenID(ids[i]); err != nil || ids[i] != ids[0] || bodies[i] != bodies[0] || time.Since(id.Time()) > time.Minute {
			t.Errorf("attempt %d: id %s, body %s", i, ids[i], bodies[i])
		}
	}
	if len(ids) != 4 {
		t.Errorf("%d attempts arrived, not 4", len(ids))
	}
	if _, err := c.Issue(t.Context(), api.IssueRequest{Audience: "corp"}); err != nil || ids[4] == ids[0] {
		t.Errorf("another call: %v, id %s", err, ids[4])
	}
	want := capability.NewTokenID(time.Now().UnixMilli(), [10]byte{1})
	if _, err := c.Issue(WithRequestID(t.Context(), want), api.IssueRequest{}); err != nil || ids[5] != want.String() {
		t.Errorf("a given request id: %v, id %s", err, ids[5])
	}
}

// TestRefusalsAreNotRetried, and their code is found by errors.Is.
func TestRefusalsAreNotRetried(t *testing.T) {
	ca := newPKI(t)
	var n atomic.Int32
	var status atomic.Int32
	var body atomic.Value
	body.Store("")
	s := ca.server(func(w http.ResponseWriter, r *http.Request) {
		n.Add(1)
		if b := body.Load().(string); b != "" {
			w.WriteHeader(int(status.Load()))
			io.WriteString(w, b)
			return
		}
		writeProblem(w, 403, capability.CodeActionDenied, "")
	}, ca.leaf(nil), 0)
	c := testClient(t, Config{Addrs: []string{s.Listener.Addr().String()}, CAFingerprint: ca.pin(), MaxResponse: 1 << 10})
	_, err := c.Revoke(t.Context(), api.RevokeRequest{})
	if e, ok := errors.AsType[*Error](err); !ok || !errors.Is(err, capability.CodeActionDenied) || e.Problem.Reference != "abc" || e.Problem.Status != 403 {
		t.Errorf("error %v", err)
	}
	if n.Load() != 1 {
		t.Errorf("%d attempts", n.Load())
	}
	for _, k := range []struct {
		status int
		body   string
		want   error
	}{
		{500, "<html>oops", capability.CodeUnavailable},
		{404, "nothing", api.CodeInternal},
		{302, "elsewhere", api.CodeInternal},
		{200, "{}{}", ErrResponse},
		{200, `{"node":"n","extra":1}`, ErrResponse},
		{200, `{"node":"` + strings.Repeat("x", 2<<10) + `"}`, ErrResponse},
	} {
		status.Store(int32(k.status))
		body.Store(k.body)
		if _, err := c.Status(t.Context()); !errors.Is(err, k.want) {
			t.Errorf("%d %.20s: %v, not %v", k.status, k.body, err, k.want)
		}
	}
}

func TestUnreachable(t *testing.T) {
	ca := newPKI(t)
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead.Close()
	c := testClient(t, Config{Addrs: []string{dead.Addr().String()}, CAFingerprint: ca.pin(), Attempts: 3})
	_, err = c.Status(t.Context())
	if !errors.Is(err, ErrUnreachable) || !errors.Is(err, capability.CodeUnavailable) || !strings.Contains(err.Error(), dead.Addr().String()) {
		t.Errorf("error %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Status(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("a canceled call: %v", err)
	}
}

// TestTokenFile is read again when it changes, and refused when it is no token.
func TestTokenFile(t *testing.T) {
	ca := newPKI(t)
	var got atomic.Value
	s := ca.server(func(w http.ResponseWriter, r *http.Request) {
		got.Store(r.Header.Get("Authorization"))
		answerStatus(w, r)
	}, ca.leaf(nil), 0)
	file := filepath.Join(t.TempDir(), "token")
	c := testClient(t, Config{Addrs: []string{s.Listener.Addr().String()}, CAFingerprint: ca.pin(), TokenFile: file})
	if _, err := c.Status(t.Context()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	for i, text := range []string{"writ_one", "writ_two2"} {
		if err := os.WriteFile(file, []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Status(t.Context()); err != nil || got.Load() != "Bearer "+text {
			t.Errorf("%d: sent %v, %v", i, got.Load(), err)
		}
	}
	for _, text := range []string{"hunter2 is no token", "writ_a\r\nX: y", strings.Repeat("writ_", 1<<20)} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Status(t.Context()); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%.20q: %v", text, err)
		}
	}
}

func TestNothingPrintsTheCredential(t *testing.T) {
	ca := newPKI(t)
	cfg := Config{Addrs: []string{"localhost"}, CAFingerprint: ca.pin(), Token: secretToken}
	c := testClient(t, cfg)
	var log strings.Builder
	l := slog.New(slog.NewTextHandler(&log, nil))
	l.Info("x", "client", c, "config", cfg, "c", *c.cfg.clone())
	j, _ := json.Marshal(cfg)
	for _, s := range []string{fmt.Sprintf("%v %+v %#v %s %q", c, c, c, c, c), fmt.Sprintf("%v %+v %#v %s %q", cfg, cfg, cfg, cfg, cfg), log.String(), string(j)} {
		if strings.Contains(s, secretToken) {
			t.Errorf("printed: %s", s)
		}
	}
}

func (c Config) clone() *Config { return &c }

func TestConfigErrors(t *testing.T) {
	pin := strings.Repeat("ab", 32)
	for name, cfg := range map[string]Config{
		"no address":        {CAFingerprint: pin},
		"no fingerprint":    {Addrs: []string{"h"}},
		"short fingerprint": {Addrs: []string{"h"}, CAFingerprint: "abcd"},
		"two credentials":   {Addrs: []string{"h"}, CAFingerprint: pin, Token: secretToken, TokenFile: "f"},
		"plain HTTP":        {Addrs: []string{"http://h"}, CAFingerprint: pin},
		"a path":            {Addrs: []string{"https://h/x"}, CAFingerprint: pin},
		"a user":            {Addrs: []string{"u@h"}, CAFingerprint: pin},
		"no token":          {Addrs: []string{"h"}, CAFingerprint: pin, Token: "eyJhbGciOi"},
	} {
		if _, err := New(cfg); !errors.Is(err, ErrConfig) || strings.Contains(err.Error(), "eyJ") {
			t.Errorf("%s: %v", name, err)
		}
	}
	env := map[string]string{EnvAddr: "a:1, b https://c:3", EnvFingerprint: "SHA256:" + strings.ToUpper(pin), EnvToken: secretToken}
	cfg, err := ConfigFromEnv(func(k string) string { return env[k] })
	if err != nil {
		t.Fatal(err)
	}
	c, err := New(cfg)
	if err != nil || fmt.Sprint(c.Addrs()) != "[https://a:1 https://b:7480 https://c:3]" {
		t.Errorf("%v, %v", c, err)
	}
}

// FuzzFeedLine: no line makes the reader panic, and what it accepts is one event.
func FuzzFeedLine(f *testing.F) {
	for _, s := range []string{
		`{"at":{"incarnation":1,"index":2},"hello":{"stream":"s","node":"n","bound_ms":5000}}`,
		`{"at":{"incarnation":1,"index":2},"snapshot":"begin"}`,
		`{"at":{"incarnation":1,"index":2},"revoke":{"kind":"token","token":"x","expires":1}}`,
		`{"at":{"incarnation":1,"index":2},"pong":{"nonce":18446744073709551615}}`,
		`{"at":{"incarnation":1,"index":2}}`, `{"at":{"index":-1},"keys":true}`, `{"keys":true,"snapshot":"end"}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		var e api.FeedEvent
		if DecodeEvent(line, &e) != nil {
			return
		}
		out, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		var again api.FeedEvent
		if err := DecodeEvent(out, &again); err != nil {
			t.Fatalf("%s: %v", out, err)
		}
	})
}
