// Package server serves an authority over HTTPS: package api's endpoints, JSON
// on net/http, HTTP/2 over TLS 1.3.
//
// [New] a server on an [authority.Authority] and [Server.Serve] a listener. What
// happens to a request, in this order: its lane and its limits; the MAC of its
// credential; its body, bounded and read strictly; the credential again,
// against the action and the resource that the endpoint demands; and only
// then the authority's service. A refusal is a problem document (RFC 9457)
// with a stable code and a random reference; the log line with the same
// reference says why.
//
// A refusal of the caller's own credential is 401 or 403. One that is about a
// token in the body (to lease from, to derive from, to verify) is 422, so that
// a verifier can tell the two apart.
package server

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/net/netutil"

	"github.com/writ-dev/writ/authority"
	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats/pop"
)

// Config configures a Server.
type Config struct {
	// Authority is the node that is served. Required.
	Authority *authority.Authority
	// Logger gets refusals with their explanation, and failures. nil: none.
	Logger *slog.Logger
	// TLS replaces the authority's own configuration, for certificates from
	// elsewhere. TLS 1.3 is demanded whatever it says. nil: Authority.TLSConfig.
	TLS *tls.Config
	// Limits bounds what callers can take. Zero values are the defaults.
	Limits Limits
	// HideMetrics takes /metrics off this listener; Metrics serves it elsewhere.
	HideMetrics bool
	// TracerProvider gets a span for each call by a genuine credential, as a
	// child of the caller's (W3C traceparent); feeds and probes have none.
	// What a stranger sends begins no trace. nil: none.
	TracerProvider trace.TracerProvider

	// Now is the clock that credentials are judged by. nil: time.Now.
	Now func() time.Time
	// Rand makes references. nil: crypto/rand.Reader.
	Rand io.Reader
}

// Limits bounds what callers can take. Zero values are the defaults.
type Limits struct {
	Connections int           // open at a time; 0: 4096
	Issues      int           // issues and derivations under way, beyond which they are shed with 429; 0: 512
	Revocations int           // revocations under way; 0: 1024
	Leases      int           // lease requests and returns under way; 0: 1024
	Attest      int           // attestations under way, beyond which they are shed with 429; 0: 256
	Reads       int           // everything else under way; 0: 1024
	Streams     int           // feeds open; 0: 2048
	PerCaller   int           // feeds open of one caller; 0: 64
	Joins       int           // join attempts a second over all callers; 0: 20
	Timeout     time.Duration // of a call; 0: 15 s
	Grace       time.Duration // for calls under way when Serve's context ends; 0: 10 s
}

const (
	maxHeader         = 96 << 10 // a token of MaxTextSize, and discharges beside it
	readHeaderTimeout = 5 * time.Second
	idleTimeout       = 2 * time.Minute
	feedWriteTimeout  = 10 * time.Second // a consumer that takes nothing for as long is cut
	recheckEvery      = 2 * time.Second  // a feed's credential is verified again
	maxProofs         = 1 << 17          // of possession, remembered against replay at a time
)

func orInt(v *int, def int) {
	if *v <= 0 {
		*v = def
	}
}

func (l *Limits) complete() {
	orInt(&l.Connections, 4096)
	orInt(&l.Issues, 512)
	orInt(&l.Revocations, 1024)
	orInt(&l.Leases, 1024)
	orInt(&l.Attest, 256)
	orInt(&l.Reads, 1024)
	orInt(&l.Streams, 2048)
	orInt(&l.PerCaller, 64)
	orInt(&l.Joins, 20)
	if l.Timeout <= 0 {
		l.Timeout = 15 * time.Second
	}
	if l.Grace <= 0 {
		l.Grace = 10 * time.Second
	}
}

// Server serves one authority. It is safe for concurrent use.
type Server struct {
	cfg      Config
	a        *authority.Authority
	log      *slog.Logger
	verifier *capability.Verifier
	proofs   *pop.Verifier
	mux      *http.ServeMux
	lanes    [lanesCount]lane
	passing  [lanesCount]lane // calls that this node has passed on to the leader
	// strangers bounds the bodies of calls without a credential, of which one
	// connection can have hundreds under way.
	strangers lane
	joins     *limiter
	metrics   *metrics
	spans     trace.Tracer
	grants    sync.Pool

	underWay atomic.Int64 // requests whose handler runs
	backup   sync.Mutex   // held while a backup is written: one at a time

	told      atomic.Pointer[toldLine]
	feeds     context.Context // ends when streams are told to end
	endFeeds  context.CancelFunc
	streamsMu sync.Mutex
	callers   map[string]int // open streams by caller; guarded by streamsMu
	open      int            // guarded by streamsMu
}

// New returns a server. It listens to nothing yet.
func New(cfg Config) (*Server, error) {
	if cfg.Authority == nil {
		return nil, errors.New("server: no authority")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Rand == nil {
		cfg.Rand = rand.Reader
	}
	cfg.Limits.complete()
	s := &Server{
		cfg: cfg, a: cfg.Authority, log: cfg.Logger, verifier: cfg.Authority.AdminVerifier(),
		mux: http.NewServeMux(), callers: make(map[string]int),
		joins:  newLimiter(cfg.Limits.Joins, cfg.Now),
		spans:  tracer(cfg.TracerProvider),
		grants: sync.Pool{New: func() any { return new(capability.Grant) }},
	}
	if s.verifier == nil {
		return nil, errors.New("server: the authority has no verifier")
	}
	// A credential of the audience writ is sent to nodes of this cluster alone,
	// under any address that they have: Host says which.
	var err error
	if s.proofs, err = pop.New(pop.Config{UnsafeTrustHost: true, RefuseCertificates: true, MaxReplays: maxProofs, Now: cfg.Now}); err != nil {
		return nil, fmt.Errorf("server: %w", err)
	}
	s.feeds, s.endFeeds = context.WithCancel(context.Background())
	s.lanes, s.passing = newLanes(&cfg.Limits), newPassing()
	s.strangers = lane{room: make(chan struct{}, cfg.Limits.Connections), shed: true}
	s.metrics = newMetrics(s)
	for _, rt := range routes() {
		s.mux.Handle(rt.method+" "+rt.pattern, s.serve(rt))
	}
	s.mux.HandleFunc(missPattern, s.miss)
	// Last: from here on other nodes' calls come, and find all of the above.
	s.a.HandleForwarded(s.answerForwarded)
	return s, nil
}

// Handler is the API as an http.Handler. It must be served over TLS.
func (s *Server) Handler() http.Handler { return http.HandlerFunc(s.dispatch) }

// Metrics serves the metrics alone, for a listener of their own.
func (s *Server) Metrics() http.Handler { return s.metrics.handler() }

// Registry is where the server's metrics are registered.
func (s *Server) Registry() *prometheus.Registry { return s.metrics.registry }

// Serve serves ln until ctx ends, then tells the streams, lets the calls under
// way finish within the grace period, and returns nil. It closes ln.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	cfg := s.cfg.TLS
	if cfg == nil {
		cfg = s.a.TLSConfig()
	}
	if cfg == nil {
		ln.Close()
		return errors.New("server: no TLS configuration")
	}
	cfg = cfg.Clone()
	cfg.MinVersion = tls.VersionTLS13
	cfg = limitHandshakes(cfg, handshakesAtATime())
	srv := &http.Server{
		Handler:           s.Handler(),
		TLSConfig:         cfg,
		ReadHeaderTimeout: readHeaderTimeout,
		ReadTimeout:       s.cfg.Limits.Timeout,
		WriteTimeout:      s.cfg.Limits.Timeout + 5*time.Second,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: 256,
			SendPingTimeout:      15 * time.Second,
			PingTimeout:          10 * time.Second,
			WriteByteTimeout:     feedWriteTimeout,
		},
	}
	served := make(chan error, 1)
	go func() { served <- srv.ServeTLS(netutil.LimitListener(ln, s.cfg.Limits.Connections), "", "") }()
	select {
	case err := <-served:
		s.endFeeds()
		return fmt.Errorf("server: %w", err)
	case <-ctx.Done():
	}
	s.endFeeds()
	return s.shutDown(ctx, srv, served)
}

// goAway is how long a client has to take note that a connection without calls
// is being closed. http.Server.Shutdown alone would wait out the whole grace for
// a connection that came to be while it began.
const goAway = 1500 * time.Millisecond

// shutDown lets the calls under way finish within the grace period.
func (s *Server) shutDown(ctx context.Context, srv *http.Server, served <-chan error) error {
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.Limits.Grace)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- srv.Shutdown(grace) }()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	begun := time.Now()
	for {
		select {
		case err := <-done:
			if err != nil {
				srv.Close()
			}
			if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
				err = nil // the grace is over, or nobody needs it any longer
			}
			if end := <-served; err == nil && !errors.Is(end, http.ErrServerClosed) {
				err = end
			}
			if err != nil {
				return fmt.Errorf("server: %w", err)
			}
			return nil
		case <-tick.C:
			if s.underWay.Load() == 0 && time.Since(begun) > goAway {
				cancel() // Shutdown returns, and Close closes what is left
				srv.Close()
			}
		}
	}
}
