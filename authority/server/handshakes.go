package server

import (
	"context"
	"crypto/tls"
	"runtime"
	"sync"
	"time"
)

// handshakes lets a few TLS handshakes be computed at a time. Each takes a processor
// half a millisecond: when another node dies, thousands of feeds come at once, and
// without a bound whoever is connected already would wait behind all of them for its
// pong, and go stale.
type handshakes struct {
	cfg  *tls.Config
	room chan struct{}
}

// handshakesAtATime leaves no processor idle while a client reads.
func handshakesAtATime() int { return 2 * runtime.GOMAXPROCS(0) }

// limitHandshakes has n of a configuration's computed at a time.
func limitHandshakes(cfg *tls.Config, n int) *tls.Config {
	if len(cfg.NextProtos) == 0 { // net/http adds to what it is given, and not to what a connection gets
		cfg.NextProtos = []string{"h2", "http/1.1"}
	}
	h := &handshakes{cfg: cfg.Clone(), room: make(chan struct{}, n)}
	cfg.GetConfigForClient = h.enter
	return cfg
}

// handshakeMost is how long one handshake keeps its room. A client that is asked to
// say hello again (RFC 8446 section 4.1.4) can keep this end waiting in the middle of
// its part: a few of these would otherwise keep everybody else out.
const handshakeMost = 20 * time.Millisecond

// enter waits for room once the client has said hello, so that who says nothing takes
// none. It is given up when this end has computed and sent its part, or the handshake
// has ended, or has taken too long: what the client does then costs little.
func (h *handshakes) enter(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	ctx := hello.Context()
	select {
	case h.room <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	leave := sync.OnceFunc(func() { <-h.room })
	context.AfterFunc(ctx, leave)
	time.AfterFunc(handshakeMost, leave)
	cfg := h.cfg
	if cfg.GetConfigForClient != nil {
		own, err := cfg.GetConfigForClient(hello)
		if err != nil {
			leave()
			return nil, err
		}
		if own != nil {
			cfg = own
		}
	}
	verify := cfg.VerifyConnection
	cfg = cfg.Clone()
	cfg.VerifyConnection = func(state tls.ConnectionState) error {
		leave()
		if verify != nil {
			return verify(state)
		}
		return nil
	}
	return cfg, nil
}
