package server

import (
	"context"
	"crypto/tls"
	"runtime"
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

// enter waits for room once the client has said hello, so that who says nothing takes
// none. It is given up when this end has computed and sent its part, or the handshake
// has ended: what the client does then costs little, and may take it long.
func (h *handshakes) enter(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	ctx := hello.Context()
	select {
	case h.room <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	leave := context.AfterFunc(ctx, func() { <-h.room })
	cfg := h.cfg
	if cfg.GetConfigForClient != nil {
		own, err := cfg.GetConfigForClient(hello)
		if err != nil {
			return nil, err
		}
		if own != nil {
			cfg = own
		}
	}
	verify := cfg.VerifyConnection
	cfg = cfg.Clone()
	cfg.VerifyConnection = func(state tls.ConnectionState) error {
		if leave() {
			<-h.room
		}
		if verify != nil {
			return verify(state)
		}
		return nil
	}
	return cfg, nil
}
