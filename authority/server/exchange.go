package server

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"net/netip"
	"net/url"
	"path"
	"strconv"
	"strings"
	"time"

	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/writ-dev/writ/authority"
	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats/pop"
)

const (
	smallBody = 64 << 10 // what every request of package api fits in but those below
	setBody   = 128 << 10
)

// exchange is one call under way.
type exchange struct {
	s     *Server
	w     http.ResponseWriter
	r     *http.Request
	route *route
	query url.Values
	set   []byte // the credential's token set, its MAC verified; nil: none came
	token *capability.Token
	proof capability.HolderProof // what came of key possession
	body  []byte
	call  authority.Call // Caller once the credential was cleared

	status int // that the leader has answered with; 0: the call was not passed on
	start  time.Time
	span   trace.Span // of no effect before the credential was authenticated
}

// ctx is the call's context.
func (x *exchange) ctx() context.Context { return x.r.Context() }

// dispatch is what every request comes through.
func (s *Server) dispatch(w http.ResponseWriter, r *http.Request) {
	s.underWay.Add(1)
	defer s.underWay.Add(-1)
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	if !canonical(r.URL) {
		s.miss(w, r)
		return
	}
	s.mux.ServeHTTP(w, r) // which sends to miss what has no route
}

// canonical reports whether ServeMux takes a path as it is. Others it would
// answer with a redirect, or take an escaped slash for part of a name.
func canonical(u *url.URL) bool {
	return path.Clean("/"+u.Path) == u.Path && !strings.Contains(strings.ToLower(u.EscapedPath()), "%2f")
}

// missPattern is ServeMux's for what no route is for: a path that it does not
// know, or a method. By itself it would answer either with plain text.
const missPattern = "/"

// miss answers for what is no endpoint.
func (s *Server) miss(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	var allow []string
	methods := []string{http.MethodGet, http.MethodPost, http.MethodDelete}
	if !canonical(r.URL) {
		methods = nil
	}
	for _, m := range methods {
		probe := &http.Request{Method: m, URL: r.URL, Host: r.Host}
		if _, pattern := s.mux.Handler(probe); pattern != missPattern && m != r.Method {
			allow = append(allow, m)
		}
	}
	err := errNotFound
	if len(allow) != 0 {
		w.Header().Set("Allow", strings.Join(allow, ", "))
		err = &refusal{status: http.StatusMethodNotAllowed, code: api.CodeInvalid, detail: "this endpoint knows " + strings.Join(allow, ", ")}
	}
	s.writeProblem(w, r, "none", "", err)
	s.metrics.observe("none", err.status, time.Since(start))
}

// serve is the one way that an endpoint is reached.
func (s *Server) serve(rt *route) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		if rt.stream == nil {
			ctx, cancel := context.WithTimeout(r.Context(), s.cfg.Limits.Timeout)
			defer cancel()
			r = r.WithContext(ctx)
		}
		x := &exchange{s: s, w: w, r: r, route: rt, start: start, span: noop.Span{}}
		if rt.duplex() {
			defer x.duplex()()
		}
		status, code, reference := http.StatusOK, api.Code(""), ""
		if err := x.run(); err != nil {
			if status = refuse(err).status; status == http.StatusUnauthorized {
				s.proofs.Answer(w.Header(), status, x.proof)
			}
			code, reference = s.writeProblem(w, x.r, rt.name(), x.call.Name, err)
		} else {
			if rt.status != 0 {
				status = rt.status
			}
			if x.status != 0 {
				status = x.status
			}
			x.logAnswer(status)
		}
		x.endSpan(status, code, reference)
		if rt.stream == nil {
			s.metrics.observe(rt.name(), status, time.Since(start))
		} else {
			s.metrics.count(rt.name(), status)
		}
	})
}

func (x *exchange) run() error {
	if x.route.raw != nil { // probes, and what anyone may know
		return x.route.raw(x)
	}
	if err := x.authenticate(); err != nil {
		return err
	}
	if err := x.readQuery(); err != nil {
		return err
	}
	if x.set == nil && x.route.request != nil {
		// Who shows no credential costs no more than one body a connection.
		if !x.s.strangers.enter(x.ctx()) {
			return errOverloaded
		}
		defer x.s.strangers.leave()
	}
	if err := x.readBody(); err != nil {
		return err
	}
	if err := x.readRequestID(); err != nil {
		return err
	}
	x.w.Header().Set(api.HeaderNode, x.s.a.NodeID())
	if x.route.method == http.MethodGet {
		x.w.Header().Set(api.HeaderAge, strconv.FormatInt(x.s.a.Age().Milliseconds(), 10))
	}
	if x.route.stream != nil {
		return x.route.stream(x)
	}
	// Not before: who is slow in asking takes nobody's room.
	lane := &x.s.lanes[x.route.lane]
	if !lane.enter(x.ctx()) {
		return errOverloaded
	}
	defer lane.leave()
	if passed, err := x.forward(); passed {
		return err
	}
	out, err := x.route.handle(x)
	if err != nil {
		return err
	}
	return x.write(out)
}

func (x *exchange) write(out any) error {
	status := x.route.status
	if out == nil {
		x.w.WriteHeader(http.StatusNoContent)
		return nil
	}
	body, err := json.Marshal(out)
	if err != nil {
		return err
	}
	if status == 0 {
		status = http.StatusOK
	}
	x.w.Header().Set("Content-Type", "application/json")
	x.w.WriteHeader(status)
	_, _ = x.w.Write(append(body, '\n'))
	return nil
}

// authenticate reads the credential and verifies its MAC, before anything is
// read of the body: a stranger costs a few microseconds. What the credential
// allows is for clear.
func (x *exchange) authenticate() error {
	values := x.r.Header.Values("Authorization")
	if len(values) == 0 {
		if x.route.anonymous {
			return nil
		}
		return errNoCredential
	}
	if len(values) > 1 {
		return errTwoCredentials
	}
	scheme, text, ok := strings.Cut(values[0], " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") && !strings.EqualFold(scheme, pop.Header) {
		return errNoCredential
	}
	token, err := capability.Parse(text)
	if err != nil {
		return credentialRefusal(err)
	}
	var discharges []*capability.Token
	for _, v := range x.r.Header.Values(api.HeaderDischarges) {
		for _, f := range strings.Fields(v) {
			if len(discharges) == capability.MaxDischarges {
				return credentialRefusal(capability.CodeTooLarge)
			}
			d, err := capability.Parse(f)
			if err != nil {
				return credentialRefusal(err)
			}
			discharges = append(discharges, d)
		}
	}
	if len(discharges) != 0 {
		if token, err = token.WithDischarges(discharges...); err != nil {
			return credentialRefusal(err)
		}
	}
	set := token.Bytes()
	if _, err := x.s.verifier.Authenticate(x.ctx(), set, nil); err != nil {
		return credentialRefusal(err)
	}
	x.set, x.token, x.proof = set, token, x.s.proofs.HTTP(x.r, text)
	x.startSpan()
	return nil
}

// request is what the credential is judged against.
func (x *exchange) request(action string, resource []string) *capability.Request {
	return &capability.Request{
		Now: x.s.cfg.Now(), Service: api.AdminAudience, Action: action, Resource: resource,
		Client: remote(x.r), Holder: x.proof, Context: pop.Facts(x.proof),
	}
}

// clear verifies the credential against an action on every one of the
// resources, and says who the caller is. Nothing is spent but by the first.
func (x *exchange) clear(action string, resources ...[]string) error {
	if x.set == nil {
		return errNoCredential
	}
	g := x.s.grants.Get().(*capability.Grant)
	defer x.s.grants.Put(g)
	for i, res := range resources {
		verify := x.s.verifier.Verify
		if i > 0 {
			verify = x.s.verifier.DryRun
		}
		err := verify(x.ctx(), g, x.set, x.request(action, res))
		if errors.Is(err, capability.CodeUnregistered) {
			// It may have been issued a moment ago, through another node.
			if x.s.a.CatchUp(x.ctx()) {
				err = verify(x.ctx(), g, x.set, x.request(action, res))
			} else if !x.s.a.Leads() {
				err = errCannotTell
			}
		}
		if err != nil {
			return credentialRefusal(err)
		}
	}
	if len(resources) == 0 {
		return errors.New("an endpoint without a resource")
	}
	x.call.Caller = authority.Caller{Name: g.Subject(), Token: g.ID(), Branches: g.AppendBranches(nil), Audience: g.Audience(), Credential: x.token}
	return nil
}

// errCannotTell is what a node says of a credential that it does not know while it
// does not know either what was acknowledged elsewhere: another node may.
var errCannotTell = &capability.Refusal{Code: capability.CodeUnavailable, Detail: "the credential is not known here, and the node cannot catch up"}

func remote(r *http.Request) netip.Addr {
	ap, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap()
}

// readQuery holds the query to the parameters of the route.
func (x *exchange) readQuery() error {
	q, err := url.ParseQuery(x.r.URL.RawQuery)
	if err != nil || len(x.r.URL.RawQuery) > 8<<10 {
		return invalid("the query cannot be read")
	}
	for name, values := range q {
		p := x.route.param(name)
		if p == nil {
			return invalid("query parameter " + strconv.QuoteToASCII(clip(name)) + " is unknown")
		}
		if len(values) > 1 && !p.many {
			return invalid("query parameter " + name + " is given twice")
		}
	}
	for _, p := range x.route.params {
		if p.required && !p.path && len(q[p.name]) == 0 {
			return invalid("query parameter " + p.name + " is missing")
		}
	}
	x.query = q
	return nil
}

func clip(s string) string { return s[:min(len(s), 64)] }

// number reads a query parameter that is a decimal, canonical, not negative.
func (x *exchange) number(name string, def uint64) (uint64, error) {
	v := x.query.Get(name)
	if v == "" {
		return def, nil
	}
	n, err := strconv.ParseUint(v, 10, 63)
	if err != nil || strconv.FormatUint(n, 10) != v {
		return 0, invalid("query parameter " + name + " is no number")
	}
	return n, nil
}

// duplex lets the answer begin before the body has ended, a refusal too: net/http
// would read the body to its end first, which may never come. What it returns is
// for the end of the call, when nobody may read the body any more.
func (x *exchange) duplex() (end func()) {
	c := http.NewResponseController(x.w)
	_ = c.EnableFullDuplex() // HTTP/2 always is
	if x.r.ProtoMajor == 1 {
		x.w.Header().Set("Connection", "close") // the rest of the body is no next request
	}
	return func() { _ = c.SetReadDeadline(time.Unix(1, 0)) }
}

// flag reads a query parameter that is true or false.
func (x *exchange) flag(name string) (bool, error) {
	switch x.query.Get(name) {
	case "true":
		return true, nil
	case "", "false":
		return false, nil
	}
	return false, invalid(name + " is true or false")
}

// readBody reads the body within the route's bound, but for one that goes on.
func (x *exchange) readBody() error {
	if x.route.request == nil {
		// A body where none belongs is refused rather than ignored.
		if x.r.ContentLength > 0 || x.r.ContentLength < 0 && !empty(x.r.Body) {
			return invalid("this endpoint takes no body")
		}
		return nil
	}
	if x.route.duplex() && x.r.ContentLength == 0 {
		return nil
	}
	want := x.route.contentType
	if want == "" {
		want = "application/json"
	}
	if t, params, err := mime.ParseMediaType(x.r.Header.Get("Content-Type")); err != nil || t != want ||
		len(params) > 1 || len(params) == 1 && !strings.EqualFold(params["charset"], "utf-8") {
		return &refusal{status: http.StatusUnsupportedMediaType, code: api.CodeInvalid, detail: "Content-Type must be " + want}
	}
	if x.r.Header.Get("Content-Encoding") != "" {
		return &refusal{status: http.StatusUnsupportedMediaType, code: api.CodeInvalid, detail: "the body must not be encoded"}
	}
	if x.route.duplex() {
		return nil
	}
	limit := x.route.limit
	if limit == 0 {
		limit = smallBody
	}
	if x.r.ContentLength > limit {
		return bodyTooLarge(limit)
	}
	body, err := io.ReadAll(http.MaxBytesReader(x.w, x.r.Body, limit))
	if err != nil {
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			return bodyTooLarge(limit)
		}
		return &refusal{status: http.StatusBadRequest, code: api.CodeInvalid, detail: "the body cannot be read", err: err}
	}
	x.body = body
	return nil
}

func bodyTooLarge(limit int64) error {
	return &refusal{status: http.StatusRequestEntityTooLarge, code: api.CodeBodyTooLarge,
		detail: "the body is over " + strconv.FormatInt(limit, 10) + " bytes"}
}

func empty(r io.Reader) bool {
	var b [1]byte
	n, _ := io.ReadFull(r, b[:])
	return n == 0
}

// decode reads the body as JSON, strictly.
func (x *exchange) decode(into any) error {
	if err := api.Decode(x.body, into); err != nil {
		return &refusal{status: http.StatusBadRequest, code: api.CodeInvalid, detail: err.Error()}
	}
	return nil
}

// readRequestID reads the caller's id for a change, and hashes what was asked: a
// retry has the same hash.
func (x *exchange) readRequestID() error {
	values := x.r.Header.Values(api.HeaderRequestID)
	if len(values) == 0 {
		return nil
	}
	id, err := capability.ParseTokenID(values[0])
	if err != nil || len(values) > 1 || id[6]>>4 != 7 || id[8]>>6 != 2 {
		return invalid(api.HeaderRequestID + " is not one UUIDv7")
	}
	x.call.Request = id
	h := sha256.New()
	io.WriteString(h, x.r.Method+"\n"+x.r.URL.RequestURI()+"\n")
	h.Write(x.body)
	h.Sum(x.call.Body[:0])
	return nil
}
