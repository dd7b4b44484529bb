package guard

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/writ-dev/writ/capability"
)

// DefaultMaxBody is the most bytes of a request's body unless MaxBody or the
// route says otherwise: 1 MiB.
const DefaultMaxBody = 1 << 20

// Option configures a Guard or a Judge.
type Option func(*settings) error

// HolderFunc reads the evidence of key possession that came with a request for
// the token with this text; nil is none.
type HolderFunc func(r *http.Request, token string) capability.HolderProof

// httpSettings is what only HTTP needs.
type httpSettings struct {
	proxies []netip.Prefix
	maxBody int64
	realm   string
	also    []string
	holder  HolderFunc
	reader  ProofReader
}

// Service names the service, for service caveats.
func Service(name string) Option {
	return func(s *settings) error {
		if !capability.ValidName(name, capability.MaxAudience) {
			return fmt.Errorf("service name %q: want 1 to %d visible ASCII characters", name, capability.MaxAudience)
		}
		s.service = name
		return nil
	}
}

// Logger is where refusals are explained and access records are written. The
// default is slog.Default as it is when the guard is made.
func Logger(l *slog.Logger) Option {
	return func(s *settings) error {
		if l == nil {
			return errors.New("nil logger")
		}
		s.logger = l
		return nil
	}
}

// Tracing has each decision recorded as a span, beneath the service's own span
// or, where it has none, beneath the caller's (W3C traceparent). The handler's
// context is then within the caller's trace too, and Transport, Grant.Forward and
// Grant.Client hand it on. They hand on what the context holds without this
// option as well.
func Tracing(p trace.TracerProvider) Option {
	return func(s *settings) error {
		if p == nil {
			return errors.New("nil tracer provider")
		}
		s.spans = p.Tracer("github.com/writ-dev/writ/capability/guard")
		return nil
	}
}

// Clock is where the moment of a decision comes from; the default is time.Now.
func Clock(now func() time.Time) Option {
	return func(s *settings) error {
		if now == nil {
			return errors.New("nil clock")
		}
		s.now = now
		return nil
	}
}

// ForwardAs names the service's own keys: a token that is bound to one of them
// can be forwarded by this service, which can prove it to the next.
func ForwardAs(keys ...capability.HolderKey) Option {
	return func(s *settings) error {
		s.ours = append(s.ours, keys...)
		return nil
	}
}

// UnsafePlaintext lets Grant.Forward and Grant.Client send credentials without
// TLS to hosts other than this one. It is for networks that encrypt beneath.
func UnsafePlaintext() Option {
	return func(s *settings) error {
		s.plaintext = true
		return nil
	}
}

// TrustedProxies are the addresses whose X-Forwarded-For is believed. From any
// other, the header is ignored.
func TrustedProxies(prefixes ...netip.Prefix) Option {
	return func(s *settings) error {
		for _, p := range prefixes {
			if !p.IsValid() {
				return errors.New("invalid proxy prefix")
			}
			s.http.proxies = append(s.http.proxies, p.Masked())
		}
		s.httpOnly = append(s.httpOnly, "TrustedProxies")
		return nil
	}
}

// MaxBody bounds the body of every request whose route has no bound of its own.
func MaxBody(bytes int64) Option {
	return func(s *settings) error {
		if bytes <= 0 {
			return errors.New("MaxBody must be positive")
		}
		s.http.maxBody = bytes
		s.httpOnly = append(s.httpOnly, "MaxBody")
		return nil
	}
}

// Realm is the realm of WWW-Authenticate; the default is "writ".
func Realm(realm string) Option {
	return func(s *settings) error {
		for i := range len(realm) {
			if c := realm[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
				return fmt.Errorf("realm %q: want printable ASCII without quotes", realm)
			}
		}
		s.http.realm = realm
		s.httpOnly = append(s.httpOnly, "Realm")
		return nil
	}
}

// Challenge adds a WWW-Authenticate line to every 401, such as
// `DPoP algs="ES256"` (RFC 9449 section 7.1) beside a Holder that reads proofs.
func Challenge(value string) Option {
	return func(s *settings) error {
		if value == "" || printable(value) != value {
			return fmt.Errorf("challenge %q: want printable ASCII", value)
		}
		s.http.also = append(s.http.also, value)
		s.httpOnly = append(s.httpOnly, "Challenge")
		return nil
	}
}

// ProofReader reads the evidence of key possession from requests and asks for
// it in answers; a *pop.Verifier is one.
type ProofReader interface {
	// HTTP is a HolderFunc.
	HTTP(r *http.Request, token string) capability.HolderProof
	// Answer adds to the header of an answer with this status what the caller
	// needs to prove, now or the next time: a challenge on 401, a nonce. p is
	// what HTTP returned for the request, or nil.
	Answer(h http.Header, status int, p capability.HolderProof)
}

// Possession has p read the evidence of key possession (DPoP, mTLS) and
// challenge for it, and the scheme DPoP accepted beside Bearer. It stands for
// Holder and Challenge.
func Possession(p ProofReader) Option {
	return func(s *settings) error {
		if p == nil {
			return errors.New("nil proof reader")
		}
		s.http.holder, s.http.reader = p.HTTP, p
		s.httpOnly = append(s.httpOnly, "Possession")
		return nil
	}
}

// Holder has f read the evidence of key possession (DPoP, mTLS) from a
// request, and the scheme DPoP accepted beside Bearer.
func Holder(f HolderFunc) Option {
	return func(s *settings) error {
		if f == nil {
			return errors.New("nil holder function")
		}
		s.http.holder = f
		s.httpOnly = append(s.httpOnly, "Holder")
		return nil
	}
}
