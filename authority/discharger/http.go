package discharger

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net/http"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats/attest"
)

// maxWaiting is how many calls a Handler has under way; beyond that it answers 429.
const maxWaiting = 256

// Handler serves a discharger on its own: the two calls of the authority's API
// that a holder needs, and /livez. Nobody enrolls here without a caveat.
func (s *Service) Handler() http.Handler {
	room := make(chan struct{}, maxWaiting)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") })
	mux.Handle("POST /v1/attest/begin", endpoint(s, room, attest.DecodeBegin,
		func(ctx context.Context, r *attest.BeginRequest) (*attest.Challenge, error) {
			return s.Begin(ctx, r, "")
		}))
	mux.Handle("POST /v1/attest/finish", endpoint(s, room, attest.DecodeFinish, s.Finish))
	return mux
}

func endpoint[Req, Resp any](s *Service, room chan struct{}, decode func([]byte) (*Req, error), serve func(context.Context, *Req) (*Resp, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		select {
		case room <- struct{}{}:
			defer func() { <-room }()
		default:
			s.problem(w, api.CodeOverloaded, http.StatusTooManyRequests, nil)
			return
		}
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, attest.MaxMessage))
		if err != nil {
			s.problem(w, api.CodeBodyTooLarge, http.StatusRequestEntityTooLarge, err)
			return
		}
		req, err := decode(body)
		var resp *Resp
		if err == nil {
			resp, err = serve(r.Context(), req)
		}
		if err != nil {
			code, status := publicCode(err)
			s.problem(w, code, status, err)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(resp)
	})
}

// publicCode is what a stranger is told.
func publicCode(err error) (api.Code, int) {
	r, ok := errors.AsType[*attest.Refusal](err)
	switch {
	case capability.CodeOf(err) == capability.CodeStaleRevocations:
		return capability.CodeStaleRevocations, http.StatusServiceUnavailable
	case !ok:
		return api.CodeInternal, http.StatusInternalServerError
	case r.Public() == string(attest.ReasonTooLarge):
		return capability.CodeTooLarge, http.StatusUnprocessableEntity
	case r.Public() == string(attest.ReasonMalformed):
		return api.CodeInvalid, http.StatusBadRequest
	case r.Public() == string(attest.ReasonChallenge):
		return api.CodeChallenge, http.StatusConflict
	}
	return api.CodeAttestation, http.StatusForbidden
}

func (s *Service) problem(w http.ResponseWriter, code api.Code, status int, err error) {
	var b [8]byte
	_, _ = rand.Read(b[:])
	p := api.Problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Code: code, Reference: hex.EncodeToString(b[:])}
	if err != nil {
		s.cfg.Logger.Warn("refused", "reference", p.Reference, "code", string(code), "error", err.Error())
	}
	if status == http.StatusTooManyRequests {
		w.Header().Set("Retry-After", "1")
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(p)
}
