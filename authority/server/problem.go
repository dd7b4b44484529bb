package server

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strconv"

	"github.com/writ-dev/writ/authority"
	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/capability"
)

// refusal is a refusal on its way out.
type refusal struct {
	status int
	code   api.Code
	detail string // for the caller
	hint   string // for the caller
	err    error  // for the log
	retry  int    // Retry-After, seconds; 0: none
	// challenge is the error of WWW-Authenticate (RFC 6750 section 3.1); "-" is
	// a challenge without one.
	challenge string
}

func (r *refusal) Error() string {
	s := string(r.code)
	if r.detail != "" {
		s += ": " + r.detail
	}
	if r.err != nil {
		s += ": " + r.err.Error()
	}
	return s
}

func (r *refusal) Unwrap() error { return r.code }

func invalid(detail string) error {
	return &refusal{status: http.StatusBadRequest, code: api.CodeInvalid, detail: detail}
}

var (
	errNoCredential = &refusal{status: http.StatusUnauthorized, code: api.CodeUnauthorized, challenge: "-",
		detail: "this endpoint needs a capability of the audience writ",
		hint:   "send it as Authorization: Bearer writ_…"}
	errTwoCredentials = &refusal{status: http.StatusBadRequest, code: api.CodeInvalid, challenge: "invalid_request",
		detail: "more than one Authorization field"}
	errOverloaded = &refusal{status: http.StatusTooManyRequests, code: api.CodeOverloaded, retry: 1,
		detail: "too many such calls are under way; nothing was done"}
	errNotFound = &refusal{status: http.StatusNotFound, code: api.CodeNotFound, detail: "no such endpoint",
		hint: "GET /v1/openapi.json lists them"}
)

// credentialRefusal is a refusal of the caller's own credential. What a stranger
// may be told is the code; the caveat that denied is named to the log alone.
func credentialRefusal(err error) *refusal {
	r := &refusal{code: capability.CodeOf(err), err: err}
	switch r.code {
	case capability.CodeStaleRevocations, capability.CodeUnavailable:
		r.status, r.retry = http.StatusServiceUnavailable, 1
		r.detail = "the node cannot decide about credentials now"
	case capability.CodeRateLimited:
		r.status, r.retry = http.StatusTooManyRequests, 1
	case capability.CodeMalformed, capability.CodeTooLarge, capability.CodeUnknownKey, capability.CodeBadSignature,
		capability.CodeRevoked, capability.CodeUnregistered, capability.CodeExpired, capability.CodeNotYetValid,
		capability.CodeHolderProof, capability.CodeReplayed, capability.CodeDischargeRequired, capability.CodeDischargeInvalid:
		r.status, r.challenge = http.StatusUnauthorized, "invalid_token"
		r.detail = "the credential is not accepted"
		if r.code == capability.CodeHolderProof {
			r.hint = "it names a key that the call must prove: --key-file, WRIT_KEY_FILE or --tpm-key"
		}
		if r.code == capability.CodeUnknownKey || r.code == capability.CodeBadSignature {
			r.hint = "it must be a capability of this authority's audience writ"
		}
	default:
		r.status, r.challenge = http.StatusForbidden, "insufficient_scope"
		r.detail = "the credential does not allow this"
	}
	return r
}

// statusOf maps the codes of package api to HTTP.
var statusOf = map[api.Code]int{
	api.CodeInvalid:        http.StatusBadRequest,
	api.CodeNotFound:       http.StatusNotFound,
	api.CodeConflict:       http.StatusConflict,
	api.CodeRequestExpired: http.StatusGone,
	api.CodeOverloaded:     http.StatusTooManyRequests,
	api.CodeNotLeader:      http.StatusServiceUnavailable,
	api.CodeIndeterminate:  http.StatusServiceUnavailable,
	api.CodeTooOld:         http.StatusGone,
	api.CodeInternal:       http.StatusInternalServerError,
	api.CodeAuditCorrupt:   http.StatusInternalServerError,
	api.CodeDiskFull:       http.StatusServiceUnavailable,
	api.CodeUnauthorized:   http.StatusUnauthorized,
	api.CodeBodyTooLarge:   http.StatusRequestEntityTooLarge,
	api.CodeAttestation:    http.StatusForbidden,
	api.CodeChallenge:      http.StatusConflict,

	capability.CodeUnavailable:      http.StatusServiceUnavailable,
	capability.CodeStaleRevocations: http.StatusServiceUnavailable,
	capability.CodeActionDenied:     http.StatusForbidden,
	capability.CodeServiceDenied:    http.StatusForbidden,
	capability.CodeResourceDenied:   http.StatusForbidden,
}

// refuse makes a refusal of any error. One without a code is internal: its text
// goes to the log alone.
func refuse(err error) *refusal {
	if r, ok := errors.AsType[*refusal](err); ok {
		return r
	}
	r := &refusal{err: err}
	if e, ok := errors.AsType[*authority.Error](err); ok {
		r.code, r.detail, r.hint = e.Code, e.Detail, e.Hint
	} else if c, ok := errors.AsType[capability.Code](err); ok {
		r.code = c
	} else if e, ok := errors.AsType[*capability.Refusal](err); ok {
		r.code = e.Code
	} else {
		r.code = api.CodeInternal
	}
	if status, ok := statusOf[r.code]; ok {
		r.status = status
	} else {
		r.status = http.StatusUnprocessableEntity // about a token that the caller has shown
	}
	switch r.status {
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		r.retry = 1
	case http.StatusForbidden:
		r.challenge = "insufficient_scope"
	case http.StatusUnauthorized:
		r.challenge = "-"
	}
	return r
}

// reference is a random name for a refusal, 16 hex digits.
func (s *Server) reference() string {
	var b [8]byte
	if _, err := io.ReadFull(s.cfg.Rand, b[:]); err != nil {
		return "unavailable"
	}
	return hex.EncodeToString(b[:])
}

// writeProblem answers with a problem document and logs why. It returns the
// code and the reference that the caller was told.
func (s *Server) writeProblem(w http.ResponseWriter, req *http.Request, route, caller string, err error) (api.Code, string) {
	r := refuse(err)
	p := api.Problem{
		Type: "about:blank", Title: http.StatusText(r.status), Status: r.status, Code: r.code,
		Detail: r.detail, Hint: r.hint, Reference: s.reference(),
	}
	level := slog.LevelInfo
	if r.status >= 500 {
		level = slog.LevelWarn
	}
	if r.status == http.StatusInternalServerError {
		level = slog.LevelError
	}
	attrs := []slog.Attr{
		slog.String("reference", p.Reference), slog.String("route", route), slog.Int("status", r.status),
		slog.String("code", string(r.code)), slog.String("remote", req.RemoteAddr),
	}
	if caller != "" {
		attrs = append(attrs, slog.String("caller", caller))
	}
	if r.err != nil {
		attrs = append(attrs, slog.String("why", strconv.QuoteToASCII(r.err.Error())))
	}
	s.log.LogAttrs(req.Context(), level, "refused", appendTrace(req.Context(), attrs)...)

	h := w.Header()
	switch r.challenge {
	case "":
	case "-":
		h.Add("WWW-Authenticate", `Bearer realm="writ"`)
	default:
		h.Add("WWW-Authenticate", `Bearer realm="writ", error="`+r.challenge+`"`)
	}
	if r.retry > 0 {
		h.Set("Retry-After", strconv.Itoa(r.retry))
	}
	body, err := json.Marshal(p)
	if err != nil {
		body = []byte(`{"code":"internal"}`)
	}
	h.Set("Content-Type", "application/problem+json")
	w.WriteHeader(r.status)
	_, _ = w.Write(append(body, '\n'))
	return p.Code, p.Reference
}
