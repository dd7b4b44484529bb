package grpcguard

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/capability/guard"
)

// Stream is the interceptor of streams.
func (g *Guard) Stream() grpc.StreamServerInterceptor {
	return func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
		if g.open[info.FullMethod] {
			return next(srv, ss)
		}
		ctx := ss.Context()
		m, err := g.mapped(ctx, info.FullMethod)
		if err != nil {
			return err
		}
		s := &stream{ServerStream: ss, guard: g, mapping: m}
		if m.static() {
			if err := s.open(nil); err != nil {
				return err
			}
		} else if err := s.plausible(); err != nil {
			return err
		}
		if err := next(srv, s); err != nil {
			return err
		}
		return s.refused()
	}
}

// stream judges what crosses it. A refusal is final: the handler cannot turn
// it into an answer.
type stream struct {
	grpc.ServerStream
	guard   *Guard
	mapping *mapping

	mu      sync.Mutex // guards what follows: a handler may send and receive at once
	ctx     context.Context
	grant   *guard.Grant
	judged  time.Time // on the monotonic clock
	failure error
}

// Context carries the Grant once the stream has been judged.
func (s *stream) Context() context.Context {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx != nil {
		return s.ctx
	}
	return withoutCredential(s.ServerStream.Context())
}

func (s *stream) refused() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failure
}

// plausible refuses a stream without a credential before any message is read.
func (s *stream) plausible() error {
	ctx := s.ServerStream.Context()
	cred, _, err := s.guard.credential(ctx)
	if err == nil && cred.Token == "" {
		err = guard.ErrNoCredential
	}
	if err != nil {
		return s.guard.refuse(ctx, s.mapping, err)
	}
	return nil
}

// open judges the stream by its first message, or by none.
func (s *stream) open(message any) error {
	ctx := s.guard.callersTrace(s.ServerStream.Context())
	grant, err := s.guard.allow(ctx, s.mapping, message)
	if err != nil {
		s.failure = err
		return err
	}
	s.grant, s.judged = grant, time.Now()
	s.ctx = guard.NewContext(withoutCredential(ctx), grant)
	return nil
}

// RecvMsg judges each message before the handler sees it.
func (s *stream) RecvMsg(message any) error {
	if err := s.refused(); err != nil {
		return err
	}
	if err := s.ServerStream.RecvMsg(message); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.failure != nil:
		return s.failure
	case s.grant == nil:
		return s.open(message)
	case s.mapping.static():
		return s.recheck(*s.grant.Request(), s.guard.recheck)
	}
	ctx := s.ServerStream.Context()
	req, err := s.mapping.request(ctx, message)
	if err != nil {
		s.failure = s.guard.refuse(ctx, s.mapping, err)
		return s.failure
	}
	req.Holder = s.grant.Request().Holder
	return s.recheck(req, 0)
}

// SendMsg sends nothing before the stream has been judged.
func (s *stream) SendMsg(message any) error {
	s.mu.Lock()
	err := s.failure
	switch {
	case err != nil:
	case s.grant == nil:
		refusal := &capability.Refusal{Code: capability.CodeUnavailable, Detail: "the handler sends before it has received what the stream is judged by"}
		s.failure = s.guard.refuse(s.ServerStream.Context(), s.mapping, refusal)
		err = s.failure
	default:
		err = s.recheck(*s.grant.Request(), s.guard.recheck)
	}
	s.mu.Unlock()
	if err != nil {
		return err
	}
	return s.ServerStream.SendMsg(message)
}

// recheck judges req unless the stream has been judged within age.
func (s *stream) recheck(req capability.Request, age time.Duration) error {
	if age > 0 && time.Since(s.judged) < age {
		return nil
	}
	ctx := s.ServerStream.Context()
	start := time.Now()
	if err := s.grant.RecheckFor(ctx, req); err != nil {
		s.failure = s.guard.refuse(ctx, s.mapping, err)
		return s.failure
	}
	s.judged = start
	return nil
}
