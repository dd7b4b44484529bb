package guard

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"

	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats"
)

// DischargesHeader carries discharges beside the Authorization header.
const DischargesHeader = "Writ-Discharges"

// Errors of Transport and Grant.Forward.
var (
	// ErrCredentialPresent is returned for a request that carries a credential already.
	ErrCredentialPresent = errors.New("guard: the request carries a credential already")
	// ErrPlaintext is returned for a request that would carry a credential
	// without TLS to another host.
	ErrPlaintext = errors.New("guard: a credential does not travel without TLS")
)

// Transport is an http.RoundTripper that attaches a credential to each
// request. It follows no redirect to another origin with it, and sends nothing
// without TLS except to this host.
type Transport struct {
	// Base sends the requests; nil is http.DefaultTransport.
	Base http.RoundTripper
	// Token is the credential. Source replaces it where it changes: it is
	// called for each request. One of the two is required.
	Token  *capability.Token
	Source func(context.Context) (*capability.Token, error)
	// Discharges travel in a header of their own, as those within Token do when
	// it is long.
	Discharges []*capability.Token
	// Binder, if set, narrows the token to each single request before it is
	// sent, so that what crosses a proxy or a log is good for nothing else.
	Binder *caveats.Binder
	// UnsafePlaintext sends the credential without TLS to any host.
	UnsafePlaintext bool
}

// RoundTrip implements http.RoundTripper. Beside those of Base, its errors are
// those of Source and Binder, ErrCredentialPresent and ErrPlaintext.
func (t *Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	base := t.Base
	if base == nil {
		base = http.DefaultTransport
	}
	out, err := t.prepare(r)
	if err != nil {
		if r.Body != nil {
			_ = r.Body.Close() // as RoundTripper demands, also on errors
		}
		return nil, err
	}
	return base.RoundTrip(out)
}

func (t *Transport) prepare(r *http.Request) (*http.Request, error) {
	if !sameOriginChain(r) {
		return r, nil
	}
	if err := mayCarry(r, t.UnsafePlaintext); err != nil {
		return nil, err
	}
	token := t.Token
	if t.Source != nil {
		var err error
		if token, err = t.Source(r.Context()); err != nil {
			return nil, fmt.Errorf("guard: credential: %w", err)
		}
	}
	if token == nil {
		return nil, ErrNoCredential
	}
	out := r.Clone(r.Context())
	if t.Binder != nil {
		var err error
		if token, err = t.Binder.Bind(out, token); err != nil {
			return nil, fmt.Errorf("guard: binding the request: %w", err)
		}
	}
	setCredential(out, token, t.Discharges)
	return out, nil
}

// sameOriginChain reports whether r goes where its caller meant it to go: it is
// no redirect, or one of a chain that never left the first origin.
func sameOriginChain(r *http.Request) bool {
	for at := r; at.Response != nil && at.Response.Request != nil; at = at.Response.Request {
		before := at.Response.Request.URL
		if before.Scheme != r.URL.Scheme || !strings.EqualFold(before.Host, r.URL.Host) {
			return false
		}
	}
	return true
}

func mayCarry(r *http.Request, plaintext bool) error {
	if len(r.Header.Values("Authorization")) > 0 || len(r.Header.Values(DischargesHeader)) > 0 {
		return ErrCredentialPresent
	}
	if r.URL.Scheme != "https" && !plaintext && !loopback(r.URL.Hostname()) {
		return fmt.Errorf("%w: %s://%s", ErrPlaintext, r.URL.Scheme, r.URL.Host)
	}
	return nil
}

// loopback is decided by the name alone: no look-up, which could be answered
// differently when the connection is made.
func loopback(host string) bool {
	a, err := netip.ParseAddr(host)
	return err == nil && a.Unmap().IsLoopback() || strings.EqualFold(host, "localhost")
}

// maxLine is the most characters of a token that travels in one line with its
// discharges: many servers and proxies cap a header line at 8 KiB.
const maxLine = 7 << 10

// setCredential puts the credential on a request: in one line, if it is short.
func setCredential(r *http.Request, root *capability.Token, discharges []*capability.Token) {
	text := root.Text()
	if len(text) > maxLine {
		var within []*capability.Token
		root, within = root.Root()
		text, discharges = root.Text(), append(within, discharges...)
	}
	r.Header.Set("Authorization", "Bearer "+text)
	for _, d := range discharges {
		r.Header.Add(DischargesHeader, d.Text())
	}
	handOnTrace(r)
}

// clientAddr is the caller's address: the connection's, or, when that is a
// trusted proxy, the last address in X-Forwarded-For that no trusted proxy
// has. What cannot be read is no address: client-ip caveats then deny.
func clientAddr(r *http.Request, proxies []netip.Prefix) netip.Addr {
	addr := parseAddr(r.RemoteAddr)
	if len(proxies) == 0 || !within(addr, proxies) {
		return addr
	}
	lines := r.Header["X-Forwarded-For"]
	for i := len(lines) - 1; i >= 0; i-- {
		for rest := lines[i]; ; {
			comma := strings.LastIndexByte(rest, ',')
			addr = parseAddr(strings.Trim(rest[comma+1:], " \t"))
			if !within(addr, proxies) {
				return addr
			}
			if comma < 0 {
				break
			}
			rest = rest[:comma]
		}
	}
	return addr
}

// parseAddr reads an address with or without a port.
func parseAddr(s string) netip.Addr {
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return ap.Addr().Unmap()
	}
	if host, _, err := net.SplitHostPort(s); err == nil {
		s = host
	}
	a, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(s, "["), "]"))
	if err != nil {
		return netip.Addr{}
	}
	return a.Unmap()
}

func within(a netip.Addr, prefixes []netip.Prefix) bool {
	for _, p := range prefixes {
		if p.Contains(a) {
			return true
		}
	}
	return false
}
