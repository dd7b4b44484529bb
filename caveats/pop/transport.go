package pop

import (
	"io"
	"net/http"
	"strings"
	"sync"
)

// Transport is an http.RoundTripper that adds a DPoP proof to every request that
// carries a token, and tries again, once, with the nonce that a server asks
// for. It goes below whatever puts the token on the request:
//
//	client := &http.Client{Transport: &guard.Transport{Token: t, Base: &pop.Transport{Signer: key}}}
//
// It is safe for concurrent use.
type Transport struct {
	// Signer makes the proofs. Required.
	Signer Signer
	// Base sends the requests; nil is http.DefaultTransport.
	Base http.RoundTripper

	nonces nonceJar
}

// RoundTrip implements http.RoundTripper. Beside those of Base, its errors are
// those of the Signer. A request without a token in text form is sent as it is.
func (t *Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	base := t.Base
	if base == nil {
		base = http.DefaultTransport
	}
	token, ok := tokenOf(r)
	if !ok {
		return base.RoundTrip(r)
	}
	at := r.URL.Scheme + "://" + hostOf(r)
	nonce := t.nonces.get(at)
	resp, err := t.send(base, r, r.Body, token, nonce)
	if err != nil {
		return nil, err
	}
	fresh := resp.Header.Get(NonceHeader)
	if len(fresh) > maxNonceSize {
		fresh = ""
	}
	t.nonces.put(at, fresh)
	if fresh == "" || fresh == nonce || !nonceDemanded(resp) {
		return resp, nil
	}
	body := r.Body
	if body != nil && body != http.NoBody {
		if r.GetBody == nil {
			return resp, nil // the next call has the nonce
		}
		if body, err = r.GetBody(); err != nil {
			return resp, nil
		}
	}
	_, _ = io.CopyN(io.Discard, resp.Body, 64<<10) // so that the connection can be used again
	_ = resp.Body.Close()
	return t.send(base, r, body, token, fresh)
}

// send sends r once, with a fresh proof.
func (t *Transport) send(base http.RoundTripper, r *http.Request, body io.ReadCloser, token, nonce string) (*http.Response, error) {
	uri := r.URL.Scheme + "://" + hostOf(r) + r.URL.EscapedPath()
	method := r.Method
	if method == "" {
		method = http.MethodGet
	}
	proof, err := t.Signer.Prove(r.Context(), Call{Method: method, URI: uri, Token: token, Nonce: nonce})
	if err != nil {
		if body != nil {
			_ = body.Close() // as RoundTripper demands, also on errors
		}
		return nil, err
	}
	out := r.Clone(r.Context())
	out.Body = body
	out.Header.Set("Authorization", Header+" "+token)
	out.Header.Set(Header, proof)
	return base.RoundTrip(out)
}

// tokenOf is the token that r carries with the scheme Bearer or DPoP.
func tokenOf(r *http.Request) (string, bool) {
	scheme, token, ok := strings.Cut(r.Header.Get("Authorization"), " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") && !strings.EqualFold(scheme, Header) {
		return "", false
	}
	return token, strings.HasPrefix(token, "writ_")
}

func hostOf(r *http.Request) string {
	if r.Host != "" {
		return r.Host
	}
	return r.URL.Host
}

// nonceDemanded reports whether a server refused for the nonce alone.
func nonceDemanded(resp *http.Response) bool {
	if resp.StatusCode != http.StatusUnauthorized {
		return false
	}
	for _, c := range resp.Header.Values("WWW-Authenticate") {
		if strings.HasPrefix(c, Header+" ") && strings.Contains(c, `error="use_dpop_nonce"`) {
			return true
		}
	}
	return false
}

// nonceJar remembers the newest nonce of each server.
type nonceJar struct {
	mu     sync.Mutex
	nonces map[string]string // by origin; guarded by mu
}

// maxNonces is of how many servers, and maxNonceSize how long a nonce may be
// that a server asks to be repeated.
const (
	maxNonces    = 256
	maxNonceSize = 512
)

func (j *nonceJar) get(at string) string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.nonces[at]
}

func (j *nonceJar) put(at, nonce string) {
	if nonce == "" {
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.nonces == nil || len(j.nonces) >= maxNonces {
		j.nonces = make(map[string]string)
	}
	j.nonces[at] = nonce
}

// CloseIdleConnections closes those of Base, for http.Client.CloseIdleConnections.
func (t *Transport) CloseIdleConnections() {
	if c, ok := t.Base.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}
