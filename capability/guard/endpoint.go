package guard

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"

	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats"
)

// endpoint is a route as it is served.
type endpoint struct {
	settings *settings
	verifier Verifier
	route    Route
	pattern  string
	resource []segment
	maxBody  int64
	next     http.Handler
}

func newEndpoint(s *settings, pattern string, route Route, h http.Handler) (*endpoint, error) {
	segments, err := route.compile(pattern)
	if err != nil {
		return nil, err
	}
	e := &endpoint{settings: s, verifier: s.verifier, route: route, pattern: pattern,
		resource: segments, maxBody: s.http.maxBody, next: h}
	if route.Verifier != nil {
		e.verifier = route.Verifier
	}
	if route.MaxBody > 0 {
		e.maxBody = route.MaxBody
	}
	return e, nil
}

// call is what one call needs, in one allocation. It is not pooled: the Grant
// may be kept.
type call struct {
	grant    Grant
	request  capability.Request
	segments [8]string // room for the usual resource
}

func (e *endpoint) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if e.settings.spans != nil {
		r = r.WithContext(e.settings.CallersTrace(r.Context(), r.Header.Get))
	}
	c := new(call)
	req := &c.request
	req.Resource = c.segments[:0]
	if r.ContentLength > e.maxBody {
		e.settings.refuse(w, r, errBodyTooLarge, req, e.pattern)
		return
	}
	if len(r.Header["Content-Type"]) > 1 {
		e.settings.refuse(w, r, badRequest("two Content-Type headers"), req, e.pattern)
		return
	}
	cred, err := e.settings.credential(r)
	if err != nil {
		e.settings.refuse(w, r, err, req, e.pattern)
		return
	}
	if hasBody(r) {
		r.Body = http.MaxBytesReader(w, r.Body, e.maxBody)
	}
	if err := e.describe(r, req, cred); err != nil {
		e.settings.refuse(w, r, err, req, e.pattern)
		return
	}
	if err := e.settings.allow(r.Context(), e.verifier, &c.grant, cred, req, e.pattern); err != nil {
		e.settings.refuse(w, r, err, req, e.pattern)
		return
	}
	// The handler gets the Grant, not the credential: what it logs or proxies
	// of the request cannot give it away.
	delete(r.Header, "Authorization")
	delete(r.Header, DischargesHeader)
	delete(r.Header, proofHeader)
	if e.settings.http.reader != nil {
		e.settings.http.reader.Answer(w.Header(), http.StatusOK, req.Holder)
	}
	e.next.ServeHTTP(w, r.WithContext(NewContext(r.Context(), &c.grant)))
	c.grant.release()
}

// proofHeader carries a DPoP proof (RFC 9449 section 4.1). Canonical form.
const proofHeader = "Dpop"

// describe fills req with what the call means, and r with what of it the
// handler may see.
func (e *endpoint) describe(r *http.Request, req *capability.Request, cred Credential) (err error) {
	req.Client = clientAddr(r, e.settings.http.proxies)
	if req.Action = e.route.Action; e.route.ActionFunc != nil {
		if req.Action, err = e.route.ActionFunc(r); err != nil {
			return shape(err)
		}
	}
	if e.route.ResourceFunc != nil {
		if req.Resource, err = e.route.ResourceFunc(r); err == nil {
			err = checkResource(req.Resource)
		}
	} else {
		req.Resource, err = resource(req.Resource, e.resource, r)
	}
	if err != nil {
		return shape(err)
	}
	if err := e.arguments(r, req, cred); err != nil {
		return err
	}
	if e.route.Context != nil {
		if req.Context, err = e.route.Context(r); err != nil {
			return err // carries a code, or is unavailable
		}
	}
	if e.settings.http.holder != nil {
		req.Holder = e.settings.http.holder(r, cred.Token)
	}
	if e.route.RequireRequest && !names(cred, req.Message) {
		return e.requestMissing(r.Context(), req, cred)
	}
	return nil
}

// requestMissing refuses a token without the caveat that the route demands. What
// else is wrong with it comes first: of a token that is not genuine nothing
// can be said but that.
func (e *endpoint) requestMissing(ctx context.Context, req *capability.Request, cred Credential) error {
	whole, err := cred.whole()
	if err != nil {
		return err
	}
	again := *req
	again.Now, again.Service = e.settings.now(), e.settings.service
	if err := e.verifier.DryRun(ctx, new(capability.Grant), whole.Bytes(), &again); err != nil {
		return err
	}
	return &capability.Refusal{Code: capability.CodeRequestMismatch,
		Detail: "the route demands a request caveat for this call"}
}

// arguments reads the arguments and the message, both of which may need the body.
func (e *endpoint) arguments(r *http.Request, req *capability.Request, cred Credential) (err error) {
	mapped := e.route.JSON || e.route.Query != nil
	if mapped {
		if err := e.queryArguments(r, req); err != nil {
			return err
		}
	}
	digest := emptyDigest
	var body []byte
	switch {
	case e.route.JSON:
		if err := checkJSONType(r); err != nil {
			return err
		}
		if body, err = e.readBody(r, cred); err != nil {
			return err
		}
		digest = sha256.Sum256(body)
	case hasBody(r):
		if mapped && isForm(r) {
			// r.FormValue would prefer the form to the query that was judged.
			return errMediaType
		}
		if !mayNameRequest(cred) {
			return e.otherArguments(r, req)
		}
		if body, err = e.readBody(r, cred); err != nil {
			return err
		}
		digest = sha256.Sum256(body)
		replaceBody(r, body)
	}
	if req.Message, err = caveats.IncomingMessage(r, digest); err != nil {
		return shape(err)
	}
	if e.route.JSON {
		return e.jsonArguments(r, req, body)
	}
	return e.otherArguments(r, req)
}

func (e *endpoint) otherArguments(r *http.Request, req *capability.Request) (err error) {
	if e.route.ArgumentsFunc == nil {
		return nil
	}
	if req.Arguments, err = e.route.ArgumentsFunc(r); err != nil {
		return shape(err)
	}
	return nil
}

func (e *endpoint) queryArguments(r *http.Request, req *capability.Request) error {
	return queryPairs(r.URL.RawQuery, func(name, text string) error {
		kind, ok := e.route.Query[name]
		if !ok {
			return badRequest("a query parameter that the route does not map")
		}
		v, err := value(kind, text)
		if err != nil {
			return err
		}
		req.Arguments = append(req.Arguments, capability.Field{Name: name, Value: v})
		return nil
	})
}

func (e *endpoint) jsonArguments(r *http.Request, req *capability.Request, body []byte) error {
	fields, canonical, err := caveats.ParseArguments(body, caveats.Limits{MaxSize: int(e.maxBody)})
	if err != nil {
		return shape(err)
	}
	for _, q := range req.Arguments {
		for _, f := range fields {
			if strings.EqualFold(q.Name, f.Name) {
				return badRequest("an argument both in the query string and in the body")
			}
		}
	}
	req.Arguments = append(req.Arguments, fields...)
	replaceBody(r, canonical)
	return nil
}

// emptyDigest is the SHA-256 of no body.
var emptyDigest = sha256.Sum256(nil)

func hasBody(r *http.Request) bool {
	return r.Body != nil && r.Body != http.NoBody && r.ContentLength != 0
}

// smallBody is how many bytes are read for a caller of whom nothing is known.
const smallBody = 16 << 10

// authenticator is the part of a *capability.Verifier that looks at nothing but
// the token.
type authenticator interface {
	Authenticate(ctx context.Context, set []byte, branches []capability.BranchID) ([]capability.BranchID, error)
}

// readBody reads a body that MaxBytesReader bounds. A large one is read only
// for a genuine token, so that strangers cannot fill the memory.
func (e *endpoint) readBody(r *http.Request, cred Credential) ([]byte, error) {
	if !hasBody(r) {
		return nil, nil
	}
	if a, ok := e.verifier.(authenticator); ok && (r.ContentLength < 0 || r.ContentLength > smallBody) {
		whole, err := cred.whole()
		if err != nil {
			return nil, err
		}
		if _, err := a.Authenticate(r.Context(), whole.Bytes(), nil); err != nil {
			return nil, err
		}
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			return nil, errBodyTooLarge
		}
		return nil, badRequest("the body ended early")
	}
	return body, nil
}

func replaceBody(r *http.Request, body []byte) {
	r.Body = io.NopCloser(bytes.NewReader(body))
	r.ContentLength = int64(len(body))
	r.TransferEncoding, r.Trailer = nil, nil
	if r.Header["Content-Length"] != nil {
		r.Header.Set("Content-Length", strconv.Itoa(len(body)))
	}
}

// checkJSONType refuses a body that the handler could read as anything else
// than JSON in UTF-8.
func checkJSONType(r *http.Request) error {
	if values := r.Header["Content-Type"]; len(values) == 1 && values[0] == "application/json" {
		if r.Header["Content-Encoding"] == nil {
			return nil
		}
	}
	if len(r.Header["Content-Type"]) != 1 || len(r.Header["Content-Encoding"]) != 0 {
		return errMediaType
	}
	media, params, err := mime.ParseMediaType(r.Header["Content-Type"][0])
	if err != nil || media != "application/json" {
		return errMediaType
	}
	for k, v := range params {
		if k != "charset" || !strings.EqualFold(v, "utf-8") {
			return errMediaType
		}
	}
	return nil
}

// isForm reports whether r.ParseForm or r.ParseMultipartForm could read the
// body, or whether it cannot be told.
func isForm(r *http.Request) bool {
	for _, v := range r.Header["Content-Type"] {
		media, _, err := mime.ParseMediaType(v)
		if err != nil || media == "application/x-www-form-urlencoded" || strings.HasPrefix(media, "multipart/") {
			return true
		}
	}
	return false
}

// mayNameRequest reports whether the credential could hold a request caveat: if
// not, there is no need to buffer and hash the body. Nothing here is
// authenticated; a wrong yes only costs the buffering, which is bounded.
func mayNameRequest(cred Credential) bool {
	for _, text := range append([]string{cred.Token}, cred.Discharges...) {
		raw, err := base64.RawURLEncoding.DecodeString(strings.TrimPrefix(text, capability.TextPrefix))
		if err != nil || bytes.Contains(raw, []byte("request ")) {
			return true
		}
	}
	return false
}

// names reports whether the credential's root holds the request caveat for m.
// The verifier authenticates it afterwards.
func names(cred Credential, m *capability.Message) bool {
	if m == nil {
		return false
	}
	t, err := capability.Parse(cred.Token)
	if err != nil {
		return true // the verifier says what is wrong with it
	}
	in, err := t.Inspect()
	if err != nil {
		return true
	}
	want := caveats.Request(caveats.RequestHash(m))
	for _, c := range in.Caveats {
		if !c.ThirdParty && c.Condition == want {
			return true
		}
	}
	return false
}
