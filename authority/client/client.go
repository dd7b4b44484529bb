// Package client calls the authority's API: typed methods, one for each
// endpoint, over TLS 1.3 pinned to the cluster's own CA.
//
// Call [New] or [FromEnv] first. A change carries a request id, made once for a
// call and kept over its retries, so that a retry is harmless; the client
// retries what is safe to retry, on the next address where there are several.
//
// # What authenticates the server
//
// The cluster has a CA of its own, which signs its nodes and nothing else. The
// server sends the CA's certificate in its chain; the client takes it only if
// its SHA-256 is the configured fingerprint, and then verifies the leaf against
// it, for server authentication. The host name is not compared: every
// certificate of this CA is a node of this cluster, any node may answer, and
// addresses may change. The check runs on resumed sessions too.
package client

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats/pop"
)

// Environment variables that FromEnv reads.
const (
	EnvAddr        = "WRIT_ADDR"           // addresses, separated by commas or spaces
	EnvFingerprint = "WRIT_CA_FINGERPRINT" // SHA-256 of the CA certificate, hex
	EnvTokenFile   = "WRIT_TOKEN_FILE"     // file that holds the credential
	EnvToken       = "WRIT_TOKEN"          // the credential itself
	EnvKeyFile     = "WRIT_KEY_FILE"       // file that holds the key which the credential names
)

// DefaultPort is the API's port, taken where an address names none.
const DefaultPort = "7480"

var (
	// ErrConfig is wrapped by every error of New and FromEnv.
	ErrConfig = errors.New("invalid client configuration")
	// ErrUnreachable says that no address could be talked to. It carries
	// capability.CodeUnavailable.
	ErrUnreachable = fmt.Errorf("no node of the authority answers: %w", capability.CodeUnavailable)
	// ErrFingerprint says that a server did not prove to be a node of the
	// pinned cluster.
	ErrFingerprint = errors.New("the server's certificate does not descend from the pinned CA")
	// ErrNoToken says that a call needs a credential and none is configured.
	ErrNoToken = errors.New("no credential is configured")
	// ErrResponse says that a node answered with something that is no answer.
	ErrResponse = errors.New("malformed answer")
)

// Config configures a Client. At most one of Token, TokenFile and TokenSource
// is set; with none, only calls that need no credential work.
type Config struct {
	// Addrs are the nodes, "host", "host:port" or "https://host:port", in order
	// of preference. Required, at most 16.
	Addrs []string
	// Shuffle has the client prefer the nodes in an order of its own, by chance. Many
	// clients with one list would all be at its first nodes, and where one of these
	// dies, all at the next.
	Shuffle bool
	// CAFingerprint is the SHA-256 of the cluster's CA certificate in DER: 64
	// hex digits, colons and a leading "sha256:" allowed. Required.
	CAFingerprint string

	// Token is the credential's text form.
	Token string
	// TokenFile holds the credential's text form; it is read again when it changes.
	TokenFile string
	// TokenSource returns the credential's text form. It is called for every call.
	TokenSource func(ctx context.Context) (string, error)

	// Prover proves possession of the key that the credential names, where it
	// has a holder caveat: a *pop.Key, or a *pop.Session of one. nil: none. KeyFile is
	// a file with the key instead (pop.WriteKeyFile), read once.
	Prover  pop.Signer
	KeyFile string

	// Timeout bounds one attempt at one node. 0: 10 s.
	Timeout time.Duration
	// Attempts is how often a call is tried over all nodes. 0: 6 for each of them,
	// which takes more than a second: longer than a failover.
	Attempts int
	// MaxResponse bounds the body of an answer, in bytes. 0: 16 MiB.
	MaxResponse int64

	// Logger gets retries and fail-overs, never a credential. nil: none.
	Logger *slog.Logger
	// TracerProvider gets a span for each call, over all its attempts; feeds
	// have none. The context's trace goes along (W3C traceparent) with or
	// without it. nil: none.
	TracerProvider trace.TracerProvider
	// Now and Rand make request ids. nil: time.Now, crypto/rand.Reader.
	Now  func() time.Time
	Rand io.Reader
	// DialContext opens connections. nil: a net.Dialer with a timeout of 5 s.
	DialContext func(ctx context.Context, network, addr string) (net.Conn, error)
}

// Client calls the authority. It is safe for concurrent use.
type Client struct {
	cfg   Config
	bases []string // "https://host:port"
	lanes [lanes]*http.Client
	log   *slog.Logger
	spans trace.Tracer
	first atomic.Uint32 // index into bases of the node that answered last

	typical atomic.Int64 // time that a call takes, in nanoseconds, smoothed

	mu   sync.Mutex // guards file
	file tokenFile
}

// Lanes are separate connections, so that a feed's two streams do not share
// the fate of one and a burst of calls delays neither.
const (
	laneCalls = iota
	laneFeed
	laneWarm
	lanes
)

// New returns a client. It talks to nobody yet. Errors wrap ErrConfig.
func New(cfg Config) (*Client, error) {
	if len(cfg.Addrs) == 0 || len(cfg.Addrs) > 16 {
		return nil, fmt.Errorf("%w: %d addresses, not 1 to 16", ErrConfig, len(cfg.Addrs))
	}
	set := 0
	for _, is := range []bool{cfg.Token != "", cfg.TokenFile != "", cfg.TokenSource != nil} {
		if is {
			set++
		}
	}
	if set > 1 {
		return nil, fmt.Errorf("%w: more than one of Token, TokenFile and TokenSource", ErrConfig)
	}
	if cfg.Token != "" {
		if err := checkToken(cfg.Token); err != nil {
			return nil, fmt.Errorf("%w: %v", ErrConfig, err)
		}
	}
	pin, err := ParseFingerprint(cfg.CAFingerprint)
	if err != nil {
		return nil, err
	}
	c := &Client{cfg: cfg, log: cfg.Logger, spans: tracer(cfg.TracerProvider)}
	for _, a := range cfg.Addrs {
		base, err := baseURL(a)
		if err != nil {
			return nil, err
		}
		c.bases = append(c.bases, base)
	}
	if cfg.Shuffle {
		mathrand.Shuffle(len(c.bases), func(i, k int) { c.bases[i], c.bases[k] = c.bases[k], c.bases[i] })
	}
	if c.cfg.Timeout <= 0 {
		c.cfg.Timeout = 10 * time.Second
	}
	if c.cfg.Attempts <= 0 {
		c.cfg.Attempts = 6 * len(cfg.Addrs)
	}
	if c.cfg.MaxResponse <= 0 {
		c.cfg.MaxResponse = 16 << 20
	}
	if c.cfg.Now == nil {
		c.cfg.Now = time.Now
	}
	if c.cfg.Rand == nil {
		c.cfg.Rand = rand.Reader
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	if cfg.KeyFile != "" {
		if cfg.Prover != nil {
			return nil, fmt.Errorf("%w: both Prover and KeyFile", ErrConfig)
		}
		if c.cfg.Prover, err = pop.ReadKeyFile(cfg.KeyFile); err != nil {
			return nil, fmt.Errorf("%w: key: %w", ErrConfig, err)
		}
	}
	for i := range c.lanes {
		var transport http.RoundTripper = newTransport(pin, c.cfg.Now, cfg.DialContext)
		if c.cfg.Prover != nil {
			transport = &pop.Transport{Signer: c.cfg.Prover, Base: transport}
		}
		c.lanes[i] = &http.Client{
			Transport:     transport,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
	}
	return c, nil
}

// FromEnv is New with what the environment says: WRIT_ADDR,
// WRIT_CA_FINGERPRINT, WRIT_TOKEN_FILE or WRIT_TOKEN, and WRIT_KEY_FILE.
func FromEnv() (*Client, error) {
	cfg, err := ConfigFromEnv(os.Getenv)
	if err != nil {
		return nil, err
	}
	return New(cfg)
}

// ConfigFromEnv reads the environment through getenv. WRIT_TOKEN_FILE wins over
// WRIT_TOKEN. Errors wrap ErrConfig.
func ConfigFromEnv(getenv func(string) string) (Config, error) {
	cfg := Config{CAFingerprint: getenv(EnvFingerprint), KeyFile: getenv(EnvKeyFile)}
	cfg.Addrs = strings.FieldsFunc(getenv(EnvAddr), func(r rune) bool { return r == ',' || r == ' ' })
	if len(cfg.Addrs) == 0 {
		return Config{}, fmt.Errorf("%w: %s is not set", ErrConfig, EnvAddr)
	}
	if cfg.CAFingerprint == "" {
		return Config{}, fmt.Errorf("%w: %s is not set", ErrConfig, EnvFingerprint)
	}
	if cfg.TokenFile = getenv(EnvTokenFile); cfg.TokenFile == "" {
		cfg.Token = strings.TrimSpace(getenv(EnvToken))
	}
	return cfg, nil
}

// Addrs are the nodes as URLs without a path.
func (c *Client) Addrs() []string { return append([]string(nil), c.bases...) }

// WithToken returns a client for the same nodes with another credential. They
// share connections.
func (c *Client) WithToken(text string) *Client {
	o := &Client{cfg: c.cfg, bases: c.bases, lanes: c.lanes, log: c.log, spans: c.spans}
	o.cfg.Token, o.cfg.TokenFile, o.cfg.TokenSource = text, "", nil
	o.first.Store(c.first.Load())
	return o
}

// Close closes connections that are idle.
func (c *Client) Close() {
	for _, l := range c.lanes {
		l.CloseIdleConnections()
	}
}

// String names the nodes and never the credential.
func (c *Client) String() string { return "(client of " + strings.Join(c.bases, ", ") + ")" }

// GoString is String, and Format writes it for every verb: the configuration
// holds a credential.
func (c *Client) GoString() string            { return c.String() }
func (c *Client) Format(f fmt.State, _ rune)  { _, _ = io.WriteString(f, c.String()) }
func (c *Client) LogValue() slog.Value        { return slog.StringValue(c.String()) }
func (c Config) String() string               { return fmt.Sprintf("(client configuration for %q)", c.Addrs) }
func (c Config) GoString() string             { return c.String() }
func (c Config) LogValue() slog.Value         { return slog.StringValue(c.String()) }
func (c Config) Format(f fmt.State, _ rune)   { _, _ = io.WriteString(f, c.String()) }
func (c Config) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

func baseURL(addr string) (string, error) {
	host := strings.TrimSuffix(strings.TrimPrefix(addr, "https://"), "/")
	if h, p, err := net.SplitHostPort(host); err == nil {
		host = net.JoinHostPort(h, p)
	} else {
		host = net.JoinHostPort(strings.Trim(host, "[]"), DefaultPort)
	}
	u, err := url.Parse("https://" + host)
	if err != nil || u.Hostname() == "" || u.Host != host || u.Path != "" || u.User != nil {
		return "", fmt.Errorf("%w: address %q is no host:port", ErrConfig, addr)
	}
	return "https://" + host, nil
}
