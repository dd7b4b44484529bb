package guard_test

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/capability/guard"
	"github.com/writ-dev/writ/capability/guard/internal/guardtest"
	"github.com/writ-dev/writ/caveats"
	"github.com/writ-dev/writ/caveats/pop"
)

// possessed is a service that reads proofs, over TLS, which asks for client
// certificates.
func possessed(t *testing.T, c pop.Config, opts ...guard.Option) (*guardtest.Authority, *httptest.Server, *pop.Verifier) {
	t.Helper()
	a := guardtest.For(t)
	ts := httptest.NewUnstartedServer(nil)
	c.Origins = []string{"https://" + ts.Listener.Addr().String()}
	v, err := pop.New(c)
	if err != nil {
		t.Fatal(err)
	}
	g, err := guard.New(a.Verifier, append(opts, guard.Possession(v))...)
	if err != nil {
		t.Fatal(err)
	}
	g.HandleFunc("POST /files/{path...}", guard.Route{Action: "write", Resource: "files/{path...}"}, func(w http.ResponseWriter, r *http.Request) {
		if r.Header["Authorization"] != nil || r.Header["Dpop"] != nil {
			t.Error("the handler sees the credential or the proof")
		}
		if err := guard.FromContext(r.Context()).Recheck(r.Context()); err != nil {
			t.Errorf("recheck: %v", err)
		}
		_, _ = io.Copy(w, r.Body)
	})
	ts.Config.Handler = build(t, g)
	ts.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	ts.StartTLS()
	t.Cleanup(ts.Close)
	return a, ts, v
}

func newKey(tb testing.TB, a pop.Algorithm) *pop.Key {
	tb.Helper()
	k, err := pop.GenerateKey(a)
	if err != nil {
		tb.Fatal(err)
	}
	return k
}

func holderOf(tb testing.TB, keys ...capability.HolderKey) string {
	tb.Helper()
	c, err := caveats.Holder(keys...)
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

// post sends a body, so that a retry must send it twice.
func post(t *testing.T, ts *httptest.Server, rt http.RoundTripper) *http.Response {
	t.Helper()
	resp, err := (&http.Client{Transport: rt}).Post(ts.URL+"/files/q3?draft=1", "text/plain", strings.NewReader("the body"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode == 200 && string(body) != "the body" {
		t.Fatalf("body %q", body)
	}
	return resp
}

// One line on each side, with each kind of key, with and without nonces.
func TestPossession(t *testing.T) {
	nonces, err := pop.NewNonces(nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, alg := range []pop.Algorithm{pop.Ed25519, pop.ES256} {
		k := newKey(t, alg)
		for name, signer := range map[string]pop.Signer{"direct": k, "session": pop.NewSession(k, 0, nil)} {
			for nonce, cfg := range map[string]pop.Config{"": {}, " with nonces": {Nonces: nonces}} {
				t.Run(alg.String()+" "+name+nonce, func(t *testing.T) {
					a, ts, v := possessed(t, cfg)
					token := a.Token(t, holderOf(t, k.HolderKey()), "context pop is "+name)
					rt := &guard.Transport{Token: token, Base: &pop.Transport{Signer: signer, Base: ts.Client().Transport}}
					for range 3 {
						if resp := post(t, ts, rt); resp.StatusCode != 200 {
							t.Fatalf("%d %v", resp.StatusCode, resp.Header)
						}
					}
					if n := v.Remembered(); n != 3 {
						t.Errorf("%d proofs remembered: one a call, and none for a nonce that was missing", n)
					}
				})
			}
		}
	}
}

// refusals is the owner's journal, read on with each answer.
type refusals struct {
	journal
	read int
}

// want demands a 401, and that the owner is told this of it.
func (r *refusals) want(t *testing.T, name string, resp *http.Response, explained string) {
	t.Helper()
	if resp.StatusCode != 401 {
		t.Errorf("%s: %d", name, resp.StatusCode)
	}
	got := r.String()
	if !strings.Contains(got[r.read:], explained) {
		t.Errorf("%s: the owner reads %s, not %q", name, got[r.read:], explained)
	}
	r.read = len(got)
}

// noProof is what the owner reads where nothing proves a key that counts.
const noProof = "no proof of a key that it names"

// What a thief of the token, or of everything that was sent, can do with it.
func TestPossessionRefusals(t *testing.T) {
	var told refusals
	a, ts, _ := possessed(t, pop.Config{}, guard.Logger(told.logger()))
	k := newKey(t, pop.Ed25519)
	token := a.Token(t, holderOf(t, k.HolderKey()))
	base := ts.Client().Transport
	refused := func(name string, resp *http.Response, explained string) {
		t.Helper()
		told.want(t, name, resp, explained)
	}

	resp := post(t, ts, &guard.Transport{Token: token, Base: base})
	refused("a bearer token", resp, noProof)
	challenges := strings.Join(resp.Header.Values("WWW-Authenticate"), "\n")
	if !strings.Contains(challenges, `DPoP algs="ES256 EdDSA Ed25519"`) || !strings.Contains(challenges, "Bearer ") {
		t.Errorf("challenges %q", challenges)
	}
	resp = post(t, ts, &guard.Transport{Token: token, Base: &pop.Transport{Signer: newKey(t, pop.Ed25519), Base: base}})
	refused("another key", resp, noProof)
	if challenges := strings.Join(resp.Header.Values("WWW-Authenticate"), "\n"); !strings.Contains(challenges, `DPoP error="invalid_dpop_proof"`) {
		t.Errorf("challenges %q", challenges)
	}

	// A whole request, seen and sent again, as it was and to another path.
	seen := &recorder{base: base}
	if resp := post(t, ts, &guard.Transport{Token: token, Base: &pop.Transport{Signer: k, Base: seen}}); resp.StatusCode != 200 {
		t.Fatal(resp.StatusCode)
	}
	for path, explained := range map[string]string{"/files/q3": "replayed", "/files/q4": "for another path"} {
		r, err := http.NewRequest("POST", ts.URL+path, strings.NewReader("other"))
		if err != nil {
			t.Fatal(err)
		}
		r.Header = seen.header
		resp, err := base.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		refused(path, resp, explained)
	}

	// A narrowed token needs a proof of its own: ath is over the exact text.
	narrowed, err := token.Attenuate("action write")
	if err != nil {
		t.Fatal(err)
	}
	r, err := http.NewRequest("POST", ts.URL+"/files/q3", nil)
	if err != nil {
		t.Fatal(err)
	}
	proof, err := k.Prove(t.Context(), pop.Call{Method: "POST", URI: r.URL.String(), Token: token.Text()})
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "DPoP "+narrowed.Text())
	r.Header.Set("DPoP", proof)
	if resp, err = base.RoundTrip(r); err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	refused("the proof of the wider token", resp, "for another token")

	// A proof counts beside the scheme DPoP alone (RFC 9449 section 7.1), and alone.
	for _, c := range []struct {
		name, scheme string
		proofs       int
		explained    string
	}{{"a proof beside the scheme Bearer", "Bearer", 1, noProof}, {"two proofs", "DPoP", 2, "more than one"}} {
		r.Header = http.Header{"Authorization": {c.scheme + " " + token.Text()}}
		for range c.proofs {
			proof, err := k.Prove(t.Context(), pop.Call{Method: "POST", URI: r.URL.String(), Token: token.Text()})
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Add("DPoP", proof)
		}
		if resp, err = base.RoundTrip(r); err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		refused(c.name, resp, c.explained)
	}
}

type recorder struct {
	base   http.RoundTripper
	header http.Header
}

func (r *recorder) RoundTrip(req *http.Request) (*http.Response, error) {
	r.header = req.Header.Clone()
	return r.base.RoundTrip(req)
}

// A token can forbid session keys, whatever the service allows; and a service
// can, whatever the token does.
func TestSessionsForbidden(t *testing.T) {
	k := newKey(t, pop.ES256)
	session := pop.NewSession(k, 0, nil)
	a, ts, _ := possessed(t, pop.Config{})
	token := a.Token(t, holderOf(t, k.HolderKey()), "context pop is direct")
	rt := func(s pop.Signer) http.RoundTripper {
		return &guard.Transport{Token: token, Base: &pop.Transport{Signer: s, Base: ts.Client().Transport}}
	}
	if resp := post(t, ts, rt(session)); resp.StatusCode != 403 {
		t.Errorf("by a session key: %d", resp.StatusCode)
	}
	if resp := post(t, ts, rt(k)); resp.StatusCode != 200 {
		t.Errorf("directly: %d", resp.StatusCode)
	}
	a, ts, _ = possessed(t, pop.Config{RefuseSessions: true})
	token = a.Token(t, holderOf(t, k.HolderKey()))
	if resp := post(t, ts, rt(session)); resp.StatusCode != 401 {
		t.Errorf("by a session key where the service refuses them: %d", resp.StatusCode)
	}
	if resp := post(t, ts, rt(k)); resp.StatusCode != 200 {
		t.Errorf("directly: %d", resp.StatusCode)
	}
}

// overTLS is a client of the server with these certificates.
func overTLS(t *testing.T, ts *httptest.Server, c ...tls.Certificate) http.RoundTripper {
	t.Helper()
	base := ts.Client().Transport.(*http.Transport).Clone()
	base.TLSClientConfig.Certificates = c
	t.Cleanup(base.CloseIdleConnections)
	return base
}

func clientCertificate(t *testing.T, k *pop.Key) tls.Certificate {
	t.Helper()
	cert, err := pop.ClientCertificate(k, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func TestClientCertificate(t *testing.T) {
	var told refusals
	a, ts, _ := possessed(t, pop.Config{}, guard.Logger(told.logger()))
	k := newKey(t, pop.ES256)
	cert := clientCertificate(t, k)
	with := func(c ...tls.Certificate) http.RoundTripper { return overTLS(t, ts, c...) }
	holder := holderOf(t, pop.CertificateKey(cert.Certificate[0]))
	direct := a.Token(t, holder, "context pop is direct")
	if resp := post(t, ts, &guard.Transport{Token: direct, Base: with(cert)}); resp.StatusCode != 200 {
		t.Errorf("with the certificate: %d", resp.StatusCode)
	}
	token := a.Token(t, holder)
	for name, rt := range map[string]http.RoundTripper{
		"none": with(), "another one of the same key": with(clientCertificate(t, k)), "a DPoP proof by the same key": &pop.Transport{Signer: k, Base: with()},
	} {
		told.want(t, name, post(t, ts, &guard.Transport{Token: token, Base: rt}), noProof)
	}
	// What a proxy, or a thief, says of certificates in a header is nothing.
	r, err := http.NewRequest("POST", ts.URL+"/files/q3", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+token.Text())
	r.Header.Set("X-Forwarded-Client-Cert", "Hash="+pop.CertificateKey(cert.Certificate[0]).String())
	r.Header.Set("Client-Cert", ":"+base64.StdEncoding.EncodeToString(cert.Certificate[0])+":") // RFC 9440
	resp, err := with().RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	told.want(t, "a certificate in a header", resp, noProof)
	// A key that is named twice: either proof will do.
	both := a.Token(t, holderOf(t, k.HolderKey(), pop.CertificateKey(cert.Certificate[0])))
	for name, rt := range map[string]http.RoundTripper{"mTLS": with(cert), "DPoP": &pop.Transport{Signer: k, Base: with()}} {
		if resp := post(t, ts, &guard.Transport{Token: both, Base: rt}); resp.StatusCode != 200 {
			t.Errorf("either, by %s: %d", name, resp.StatusCode)
		}
	}
}

// A service can have client certificates count for nothing, such as one whose
// connections are a proxy's.
func TestCertificatesRefused(t *testing.T) {
	var told refusals
	a, ts, _ := possessed(t, pop.Config{RefuseCertificates: true}, guard.Logger(told.logger()))
	k := newKey(t, pop.ES256)
	cert := clientCertificate(t, k)
	token := a.Token(t, holderOf(t, k.HolderKey(), pop.CertificateKey(cert.Certificate[0])))
	base := overTLS(t, ts, cert)
	told.want(t, "mTLS", post(t, ts, &guard.Transport{Token: token, Base: base}), noProof)
	if resp := post(t, ts, &guard.Transport{Token: token, Base: &pop.Transport{Signer: k, Base: base}}); resp.StatusCode != 200 {
		t.Errorf("DPoP: %d", resp.StatusCode)
	}
}

// A token that is bound to its holder stops at the service that it was sent to,
// unless the service is among the holders and proves that itself.
func TestForwardingBoundToken(t *testing.T) {
	next, ts, _ := possessed(t, pop.Config{})
	holder, service := newKey(t, pop.Ed25519), newKey(t, pop.ES256)
	alone := next.Token(t, holderOf(t, holder.HolderKey()))
	both := next.Token(t, holderOf(t, holder.HolderKey(), service.HolderKey()))

	judge, err := guard.NewJudge(next.Verifier, guard.ForwardAs(service.HolderKey()), guard.Logger(slog.New(slog.DiscardHandler)))
	if err != nil {
		t.Fatal(err)
	}
	forward := func(token *capability.Token) (*http.Client, error) {
		grant, err := judge.Allow(t.Context(), guard.Credential{Token: token.Text()},
			&capability.Request{Action: "write", Resource: []string{"a"}, Holder: proves(holder.HolderKey())}, "test")
		if err != nil {
			t.Fatal(err)
		}
		return grant.Client(&pop.Transport{Signer: service, Base: ts.Client().Transport}, "action write")
	}
	if _, err := forward(alone); !errors.Is(err, capability.CodeNotForwardable) {
		t.Errorf("forwarding what only the holder can prove: %v", err)
	}
	client, err := forward(both)
	if err != nil {
		t.Fatal(err)
	}
	if resp := post(t, ts, client.Transport); resp.StatusCode != 200 {
		t.Errorf("forwarding with the service's own proof: %d", resp.StatusCode)
	}
}

// proves is a proof of one key.
type proves capability.HolderKey

func (p proves) Prove(_ context.Context, k capability.HolderKey) error {
	if k != capability.HolderKey(p) {
		return capability.CodeHolderProof
	}
	return nil
}
