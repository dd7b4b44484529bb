package guard

import (
	"errors"
	"net/http"
	"strconv"
	"strings"

	"github.com/writ-dev/writ/capability"
)

// Status is the HTTP status of a refusal with this code; "" is no credential.
func Status(code capability.Code) int {
	switch code {
	case "",
		capability.CodeMalformed, capability.CodeTooLarge, capability.CodeUnknownKey, capability.CodeBadSignature,
		capability.CodeRevoked, capability.CodeUnregistered, capability.CodeExpired, capability.CodeNotYetValid,
		capability.CodeHolderProof, capability.CodeReplayed,
		capability.CodeDischargeRequired, capability.CodeDischargeInvalid:
		return http.StatusUnauthorized
	case capability.CodeRateLimited:
		return http.StatusTooManyRequests
	case capability.CodeStaleRevocations, capability.CodeUnavailable:
		return http.StatusServiceUnavailable
	}
	return http.StatusForbidden
}

// shapeError is a refusal of the call's form, before any token was looked at.
type shapeError struct {
	status int
	code   string
	detail string
}

func (e *shapeError) Error() string { return e.detail }

func badRequest(detail string) error {
	return &shapeError{http.StatusBadRequest, "bad_request", detail}
}

var (
	errBodyTooLarge = &shapeError{http.StatusRequestEntityTooLarge, "request_too_large", "the body is over its bound"}
	errMediaType    = &shapeError{http.StatusUnsupportedMediaType, "unsupported_media_type", "the body is not what the route reads"}
)

// shape makes err a refusal of the call's form unless it carries a code.
func shape(err error) error {
	if _, ok := errors.AsType[*shapeError](err); ok {
		return err
	}
	if _, ok := errors.AsType[capability.Code](err); ok {
		return err
	}
	if _, ok := errors.AsType[*capability.Refusal](err); ok {
		return err
	}
	return badRequest(err.Error())
}

// refuse logs err, unless it is a Denial, which has been, and answers with
// what a stranger may know.
func (s *settings) refuse(w http.ResponseWriter, r *http.Request, err error, req *capability.Request, where string) {
	var p problem
	if e, ok := errors.AsType[*shapeError](err); ok {
		p = problem{status: e.status, code: e.code, reference: s.badShape(r.Context(), e.code, err, req, where)}
	} else {
		d, ok := errors.AsType[*Denial](err)
		if !ok {
			d = s.Deny(r.Context(), err, req, where)
		}
		p = problem{status: Status(d.Code), code: string(d.Code), reference: d.Reference}
	}
	if p.status == http.StatusUnauthorized {
		for _, c := range s.http.also {
			w.Header().Add("WWW-Authenticate", c)
		}
	}
	if s.http.reader != nil {
		var holder capability.HolderProof
		if req != nil {
			holder = req.Holder
		}
		s.http.reader.Answer(w.Header(), p.status, holder)
	}
	p.write(w, s.challenge(p))
}

// challenge is the value of WWW-Authenticate (RFC 6750 section 3), or "".
func (s *settings) challenge(p problem) string {
	c := `Bearer realm="` + s.http.realm + `"`
	switch {
	case p.status == http.StatusUnauthorized && p.code == "":
		return c
	case p.status == http.StatusUnauthorized:
		return c + `, error="invalid_token", error_description="` + p.code + `"`
	case p.status == http.StatusForbidden:
		return c + `, error="insufficient_scope", error_description="` + p.code + `"`
	case p.status == http.StatusBadRequest:
		return c + `, error="invalid_request", error_description="` + p.code + `"`
	}
	return ""
}

// problem is a problem document (RFC 9457) of type about:blank, whose title is
// the status's, with two members of its own: code and reference. All of it is
// the guard's own text: nothing that the caller sent comes back.
type problem struct {
	status    int
	code      string
	reference string
}

func (p *problem) write(w http.ResponseWriter, challenge string) {
	var b strings.Builder
	b.WriteString(`{"title":` + strconv.Quote(http.StatusText(p.status)) + `,"status":` + strconv.Itoa(p.status))
	if p.code != "" {
		b.WriteString(`,"code":` + strconv.Quote(p.code))
	}
	b.WriteString(`,"reference":` + strconv.Quote(p.reference) + "}\n")
	h := w.Header()
	h.Set("Content-Type", "application/problem+json")
	h.Set("Content-Length", strconv.Itoa(b.Len()))
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	if challenge != "" {
		h.Add("WWW-Authenticate", challenge)
	}
	if p.status == http.StatusTooManyRequests || p.status == http.StatusServiceUnavailable {
		h.Set("Retry-After", "1")
	}
	w.WriteHeader(p.status)
	_, _ = w.Write([]byte(b.String()))
}
