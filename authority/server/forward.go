package server

import (
	"bytes"
	"context"
	"crypto/tls"
	"net/http"
	"net/url"
	"slices"

	"go.opentelemetry.io/otel/propagation"

	"github.com/writ-dev/writ/authority"
	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/caveats/pop"
)

// Calls that change something are the leader's to answer. A follower that gets
// one passes it on, whole and with its credential, and once: the leader runs it
// as if it had come there, and verifies everything again.

// forwardedHeaders are what the leader needs of a request's header.
var forwardedHeaders = []string{"Authorization", "Content-Type", "Content-Encoding", "Traceparent", "Tracestate",
	pop.Header, api.HeaderRequestID, api.HeaderDischarges}

// answeredHeaders are what the client gets of the leader's answer's.
var answeredHeaders = []string{"Content-Type", "Retry-After", "Www-Authenticate", "Dpop-Nonce"}

type forwardedKey struct{}

// local reports that a call is answered by whichever node it comes to.
func (rt *route) local() bool {
	return rt.method == http.MethodGet || slices.Contains([]string{"registered", "verify", "oauthIntrospect"}, rt.id)
}

// forward has the leader answer, if that is another node. It reports false when
// the call is this node's to answer.
func (x *exchange) forward() (bool, error) {
	if x.route.local() || x.s.a.Leads() || x.ctx().Value(forwardedKey{}) != nil {
		return false, nil
	}
	f := &authority.Forwarded{
		Method: x.r.Method, URI: x.r.URL.RequestURI(), Host: x.r.Host, Remote: x.r.RemoteAddr,
		Header: make(map[string][]string), Body: x.body,
	}
	for _, name := range forwardedHeaders {
		if v := x.r.Header.Values(name); len(v) > 0 {
			f.Header[http.CanonicalHeaderKey(name)] = v // DPoP is Dpop in a Header
		}
	}
	propagation.TraceContext{}.Inject(x.ctx(), propagation.HeaderCarrier(f.Header)) // the leader's span belongs beneath this node's
	way := &x.s.passing[x.route.lane]
	if !way.enter(x.ctx()) {
		return true, errOverloaded
	}
	answer, err := x.s.a.Forward(x.ctx(), f)
	way.leave()
	if answer == nil || err != nil {
		return err != nil, err
	}
	h := x.w.Header()
	for _, name := range answeredHeaders {
		if v := answer.Header[name]; len(v) > 0 {
			h[name] = v
		}
	}
	h.Set(api.HeaderLeader, answer.Node)
	x.status = answer.Status
	x.w.WriteHeader(answer.Status)
	_, _ = x.w.Write(answer.Body)
	return true, nil
}

// answerForwarded runs a call that another node has passed on.
func (s *Server) answerForwarded(ctx context.Context, f *authority.Forwarded) *authority.Answer {
	w := &recorder{header: make(http.Header), status: http.StatusOK}
	u, err := url.ParseRequestURI(f.URI)
	if err != nil {
		return &authority.Answer{Status: http.StatusBadRequest}
	}
	r := &http.Request{
		Method: f.Method, URL: u, RequestURI: f.URI, Host: f.Host, RemoteAddr: f.Remote, Header: f.Header,
		Proto: "HTTP/2.0", ProtoMajor: 2, TLS: &tls.ConnectionState{HandshakeComplete: true},
		Body: http.NoBody, ContentLength: int64(len(f.Body)),
	}
	if len(f.Body) > 0 {
		r.Body = readCloser{bytes.NewReader(f.Body)}
	}
	s.dispatch(w, r.WithContext(context.WithValue(ctx, forwardedKey{}, true)))
	return &authority.Answer{Status: w.status, Header: w.header, Body: w.body.Bytes()}
}

type readCloser struct{ *bytes.Reader }

func (readCloser) Close() error { return nil }

// recorder keeps an answer to be passed back.
type recorder struct {
	header http.Header
	status int
	wrote  bool
	body   bytes.Buffer
}

// Header implements http.ResponseWriter.
func (w *recorder) Header() http.Header { return w.header }

// WriteHeader implements http.ResponseWriter.
func (w *recorder) WriteHeader(status int) {
	if !w.wrote {
		w.status, w.wrote = status, true
	}
}

// Write implements http.ResponseWriter.
func (w *recorder) Write(b []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	return w.body.Write(b)
}
