package caveats

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/writ-dev/writ/capability"
)

// NonceHeader is the field that carries the nonce of a request caveat.
const NonceHeader = "Writ-Nonce"

// Defaults of a Binder.
const (
	DefaultBinderMaxBody  = 1 << 20
	DefaultBinderLifetime = 30 * time.Second
)

// maxField is the most bytes of any one field of a message.
const maxField = 16 << 10

// OutgoingMessage is the message that a server will receive when r is sent by
// net/http. The body is read, digested and put back; it may be maxBody bytes
// long. r must not be changed afterwards, in what the message holds. Errors:
// ErrMessage for a request of which the server may receive something else, and
// what reading the body returns.
func OutgoingMessage(r *http.Request, maxBody int64) (*capability.Message, error) {
	if r.URL == nil {
		return nil, fmt.Errorf("%w: it has no URL", ErrMessage)
	}
	m := &capability.Message{Method: r.Method, Authority: r.Host, Target: r.URL.RequestURI()}
	if m.Method == "" {
		m.Method = http.MethodGet
	}
	if m.Authority == "" {
		m.Authority = r.URL.Host
	}
	if err := setHeaders(m, r.Header); err != nil {
		return nil, err
	}
	if err := checkMessage(m); err != nil {
		return nil, err
	}
	digest, err := digestBody(r, maxBody)
	m.BodyDigest = digest
	return m, err
}

// IncomingMessage is the call that a server received as r. bodyDigest is the
// SHA-256 of the whole body, which the caller has read. Errors: ErrMessage for
// a request that no caveat can name, such as one with two content types.
func IncomingMessage(r *http.Request, bodyDigest [sha256.Size]byte) (*capability.Message, error) {
	m := &capability.Message{Method: r.Method, Authority: r.Host, Target: r.RequestURI, BodyDigest: bodyDigest}
	if !strings.HasPrefix(m.Target, "/") && r.URL != nil && r.URL.Scheme != "" {
		// In absolute form, as from a proxy (RFC 9112 section 3.2.2): cut it to
		// origin form by hand, for url.URL may spell it otherwise.
		_, rest, _ := strings.Cut(m.Target, "://")
		if i := strings.IndexAny(rest, "/?"); i >= 0 && rest[i] == '/' {
			m.Target = rest[i:]
		}
	}
	if err := setHeaders(m, r.Header); err != nil {
		return nil, err
	}
	return m, checkMessage(m)
}

func setHeaders(m *capability.Message, h http.Header) (err error) {
	if m.ContentType, err = single(h, "Content-Type"); err != nil {
		return err
	}
	m.Nonce, err = single(h, NonceHeader)
	return err
}

func single(h http.Header, name string) (string, error) {
	switch v := h.Values(name); {
	case len(v) == 0:
		return "", nil
	case len(v) > 1:
		return "", fmt.Errorf("%w: %s stands there twice", ErrMessage, name)
	case v[0] != strings.Trim(v[0], " \t"):
		return "", fmt.Errorf("%w: %s has blanks around it", ErrMessage, name)
	default:
		return v[0], nil
	}
}

// checkMessage refuses what changes on its way, or can be read in two ways.
func checkMessage(m *capability.Message) error {
	for _, f := range [...]struct{ name, value string }{
		{"method", m.Method}, {"authority", m.Authority}, {"target", m.Target},
		{"content type", m.ContentType}, {"nonce", m.Nonce},
	} {
		if len(f.value) > maxField {
			return fmt.Errorf("%w: its %s is longer than %d bytes", ErrMessage, f.name, maxField)
		}
		for i := range len(f.value) {
			if c := f.value[i]; c > '~' || c < ' ' || c == ' ' && f.name != "content type" {
				return fmt.Errorf("%w: its %s is not visible ASCII", ErrMessage, f.name)
			}
		}
	}
	switch {
	case m.Method == "" || m.Method == http.MethodConnect:
		return fmt.Errorf("%w: its method is %s", ErrMessage, quoted(m.Method))
	case m.Authority == "" || strings.ContainsAny(m.Authority, "@/?#%"):
		return fmt.Errorf("%w: its authority is %s", ErrMessage, quoted(m.Authority))
	case !strings.HasPrefix(m.Target, "/"):
		return fmt.Errorf("%w: its target is not in origin form", ErrMessage)
	}
	return nil
}

// digestBody digests r's body and leaves r as it was, for sending.
func digestBody(r *http.Request, most int64) (digest [sha256.Size]byte, err error) {
	if r.Body == nil || r.Body == http.NoBody {
		return sha256.Sum256(nil), nil
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, most+1))
	err = errors.Join(err, r.Body.Close())
	switch {
	case err != nil:
		return digest, fmt.Errorf("reading the request's body: %w", err)
	case int64(len(body)) > most:
		return digest, fmt.Errorf("%w: its body is longer than %d bytes", ErrMessage, most)
	}
	r.ContentLength = int64(len(body))
	r.TransferEncoding = nil
	r.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
	r.Body, _ = r.GetBody()
	if len(body) == 0 {
		r.Body = http.NoBody
	}
	return sha256.Sum256(body), nil
}

// Binder narrows tokens to the one request that is about to be sent, so that
// what crosses a proxy or stands in a log is good for nothing else. Its zero
// value is ready for use.
type Binder struct {
	MaxBody  int64            // bytes of a body; 0 is DefaultBinderMaxBody
	Lifetime time.Duration    // of what is sent; 0 is DefaultBinderLifetime
	Now      func() time.Time // nil is time.Now
	Rand     io.Reader        // of nonces; nil is crypto/rand.Reader
}

// Bind gives r a fresh nonce, buffers its body, and returns t narrowed to r
// and to Lifetime, with t's discharges. Whoever calls it puts the result into
// r's Authorization and changes nothing else. To send r again, set its Body
// from GetBody and bind again. Errors: ErrMessage, what reading the body
// returns, and those of Token.AttenuateExact.
func (b *Binder) Bind(r *http.Request, t *capability.Token) (*capability.Token, error) {
	maxBody, lifetime, now, random := b.MaxBody, b.Lifetime, b.Now, b.Rand
	if maxBody == 0 {
		maxBody = DefaultBinderMaxBody
	}
	if lifetime == 0 {
		lifetime = DefaultBinderLifetime
	}
	if now == nil {
		now = time.Now
	}
	if random == nil {
		random = rand.Reader
	}
	var nonce [12]byte
	if _, err := io.ReadFull(random, nonce[:]); err != nil {
		return nil, err
	}
	if r.Header == nil {
		r.Header = make(http.Header)
	}
	r.Header.Set(NonceHeader, base64.RawURLEncoding.EncodeToString(nonce[:]))
	m, err := OutgoingMessage(r, maxBody)
	if err != nil {
		return nil, err
	}
	// The nonce keeps two of these apart, so they need no branch caveat.
	return t.AttenuateExact(Request(RequestHash(m)), TimeBefore(now().Add(lifetime).Truncate(time.Millisecond)))
}
