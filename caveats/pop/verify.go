package pop

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats"
)

// Header is the field that carries a DPoP proof (RFC 9449 section 4.1), and
// NonceHeader the one in which a server gives out nonces (section 8).
const (
	Header      = "DPoP"
	NonceHeader = "DPoP-Nonce"
)

// Defaults of a Config.
const (
	DefaultMaxAge     = 30 * time.Second
	DefaultSkew       = 5 * time.Second
	DefaultMaxReplays = 1 << 18
)

// MaxAge and Skew are at most this.
const maxWindow = 5 * time.Minute

// Config configures a Verifier.
type Config struct {
	// Origins are the schemes and authorities that callers reach the service
	// under, such as "https://files.corp.example" or "https://10.0.0.7:8443": a
	// proof for any other is refused, whatever the request's Host says. At least
	// one is required, unless UnsafeTrustHost is set.
	Origins []string
	// UnsafeTrustHost takes the scheme from the connection and the authority from
	// the request's Host, which the caller chooses: whoever is sent a proof for
	// another host, such as another service of the audience, can use it here. It
	// is for services behind something that lets only the right Host pass, and
	// for those whose credentials are sent to nobody else.
	UnsafeTrustHost bool

	// MaxAge is how old a proof may be by its iat; 0 is DefaultMaxAge. At most 5 minutes.
	MaxAge time.Duration
	// Skew is how far ahead of the clock iat may be; 0 is DefaultSkew. At most 5 minutes.
	Skew time.Duration
	// Nonces, if set, has every proof carry a nonce of the server.
	Nonces *Nonces
	// MaxReplays is how many proofs are remembered at a time, about 100 bytes
	// each; 0 is DefaultMaxReplays. Each is, until 6 s after it is too old to be
	// accepted. Where that is not enough, calls are refused with unavailable;
	// one key can fill a sixteenth of it.
	MaxReplays int
	// RefuseSessions refuses proofs by session keys: the key that the holder
	// caveat names must sign each call itself.
	RefuseSessions bool
	// RefuseCertificates has TLS client certificates not looked at.
	RefuseCertificates bool

	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// Verifier reads the evidence of possession that comes with calls. It is safe
// for concurrent use.
type Verifier struct {
	cfg      Config
	origins  []target
	replays  [replayShards]*caveats.ReplayCache
	sessions sessionCache
}

// replayShards bounds what one key can fill.
const replayShards = 16

// New returns a verifier, for guard.Possession or the Config of the guards for
// gRPC and MCP.
func New(cfg Config) (*Verifier, error) {
	v := &Verifier{cfg: cfg}
	c := &v.cfg
	if c.MaxAge == 0 {
		c.MaxAge = DefaultMaxAge
	}
	if c.Skew == 0 {
		c.Skew = DefaultSkew
	}
	if c.MaxReplays == 0 {
		c.MaxReplays = DefaultMaxReplays
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	switch {
	case c.MaxAge < time.Second || c.MaxAge > maxWindow || c.Skew < 0 || c.Skew > maxWindow:
		return nil, fmt.Errorf("pop: MaxAge is 1 s to %v, Skew at most %v", maxWindow, maxWindow)
	case c.UnsafeTrustHost && len(c.Origins) > 0:
		return nil, errors.New("pop: both Origins and UnsafeTrustHost")
	case !c.UnsafeTrustHost && len(c.Origins) == 0:
		return nil, errors.New("pop: no Origins: a proof for any host would be accepted")
	}
	for _, o := range c.Origins {
		t, err := parseOrigin(o)
		if err != nil {
			return nil, err
		}
		v.origins = append(v.origins, t)
	}
	for i := range v.replays {
		r, err := caveats.NewReplayCache((c.MaxReplays + replayShards - 1) / replayShards)
		if err != nil {
			return nil, fmt.Errorf("pop: MaxReplays: %w", err)
		}
		v.replays[i] = r
	}
	return v, nil
}

// Remembered is how many proofs are remembered, for metrics.
func (v *Verifier) Remembered() int {
	n := 0
	for _, r := range v.replays {
		n += r.Len()
	}
	return n
}

// Evidence is what came with a call, as its protocol's adapter found it.
type Evidence struct {
	// Proofs are the values of the field that carries DPoP proofs: one counts, more
	// than one are refused.
	Proofs []string
	// Token is the text of the token exactly as it was presented.
	Token string
	// Method is the call's htm.
	Method string
	// Scheme, Authority and Path make the call's htu. Scheme and Authority matter
	// under UnsafeTrustHost only.
	Scheme, Authority, Path string
	// Certificate is the DER of the TLS client's certificate, whose key the
	// handshake has proved; nil is none.
	Certificate []byte
}

// Holder returns the evidence as the verifier of tokens asks about it. Nothing
// is computed before it does, but for reading the proof, which is bounded.
func (v *Verifier) Holder(e Evidence) capability.HolderProof {
	if v.cfg.RefuseCertificates {
		e.Certificate = nil
	}
	p := &proof{v: v, e: e}
	p.read()
	return p
}

// HTTP reads the evidence of an HTTP request whose token is text: it is a
// guard.HolderFunc. A proof counts with the scheme DPoP alone (RFC 9449 section
// 7.1), a client certificate with either. Only the TLS connection that the
// request itself came over is looked at: a certificate that a proxy puts in a
// header proves nothing here.
func (v *Verifier) HTTP(r *http.Request, text string) capability.HolderProof {
	e := Evidence{Token: text, Method: r.Method, Scheme: "http", Authority: r.Host, Path: r.RequestURI}
	if i := strings.IndexByte(e.Path, '?'); i >= 0 {
		e.Path = e.Path[:i]
	}
	if scheme, _, _ := strings.Cut(r.Header.Get("Authorization"), " "); strings.EqualFold(scheme, Header) {
		e.Proofs = r.Header.Values(Header)
	}
	if r.TLS != nil {
		e.Scheme = "https"
		if len(r.TLS.PeerCertificates) > 0 {
			e.Certificate = r.TLS.PeerCertificates[0].Raw
		}
	}
	return v.Holder(e)
}

// Nonce is the nonce that a caller whose evidence is p should use from now on,
// or "" if there is nothing new to tell.
func (v *Verifier) Nonce(p capability.HolderProof) string {
	if v.cfg.Nonces == nil {
		return ""
	}
	if own, ok := p.(*proof); ok && own.hasNewestNonce() {
		return ""
	}
	return v.cfg.Nonces.At(v.cfg.Now())
}

// NonceWanted reports whether p was refused for its nonce alone: the caller
// tries again with the one that Nonce returns.
func (v *Verifier) NonceWanted(p capability.HolderProof) bool {
	own, ok := p.(*proof)
	return ok && own.wantsNonce()
}

// Answer adds to the header of an answer with this status what the caller needs
// for the next call: on 401 a challenge (RFC 9449 section 7.1) with
// invalid_dpop_proof or use_dpop_nonce where the proof was at fault, and a nonce
// where one is demanded and the caller has not the newest. p is what HTTP
// returned, or nil.
func (v *Verifier) Answer(h http.Header, status int, p capability.HolderProof) {
	if nonce := v.Nonce(p); nonce != "" {
		h.Set(NonceHeader, nonce)
	}
	if status != http.StatusUnauthorized {
		return
	}
	challenge := `DPoP algs="` + Algorithms + `"`
	if own, ok := p.(*proof); ok {
		if reason := own.reason(); reason != "" {
			challenge = `DPoP error="` + reason + `", algs="` + Algorithms + `"`
		}
	}
	h.Add("WWW-Authenticate", challenge)
}
