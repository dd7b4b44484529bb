package guard

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"unicode/utf8"

	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats"
)

// Guard collects routes and what they mean, and builds the handler that serves
// them. Handle and Build are not for concurrent use; the handler is.
type Guard struct {
	settings *settings
	mux      *http.ServeMux
	errs     []error
	routes   int
	built    bool
}

// New returns a guard without routes. A *capability.Verifier is the usual v.
func New(v Verifier, opts ...Option) (*Guard, error) {
	s, err := configure(v, opts)
	if err != nil {
		return nil, err
	}
	return &Guard{settings: s, mux: http.NewServeMux()}, nil
}

// Handle registers h for a pattern of http.ServeMux, such as
// "GET /files/{path...}", with the meaning of the calls that match it. What is
// wrong with either is Build's error. After Build it panics.
func (g *Guard) Handle(pattern string, route Route, h http.Handler) {
	if g.built {
		panic("guard: Handle after Build")
	}
	g.routes++
	if err := g.handle(pattern, route, h); err != nil {
		g.errs = append(g.errs, fmt.Errorf("guard: route %q: %w", pattern, err))
	}
}

// HandleFunc is Handle for a function.
func (g *Guard) HandleFunc(pattern string, route Route, h http.HandlerFunc) {
	if h == nil {
		g.Handle(pattern, route, nil)
		return
	}
	g.Handle(pattern, route, h)
}

func (g *Guard) handle(pattern string, route Route, h http.Handler) (err error) {
	if h == nil {
		return errors.New("nil handler")
	}
	e, err := newEndpoint(g.settings, pattern, route, h)
	if err != nil {
		return err
	}
	defer func() {
		if p := recover(); p != nil { // ServeMux reports conflicts by panicking
			err = fmt.Errorf("%v", p)
		}
	}()
	g.mux.Handle(pattern, e)
	return nil
}

// Build returns the handler, or everything that is wrong with the routes: one
// without a mapping is an error here rather than a hole later.
func (g *Guard) Build() (http.Handler, error) {
	if g.routes == 0 {
		return nil, errors.New("guard: no routes")
	}
	if g.built {
		return nil, errors.New("guard: built already")
	}
	if err := errors.Join(g.errs...); err != nil {
		return nil, err
	}
	g.built = true
	return &router{settings: g.settings, mux: g.mux}, nil
}

// router refuses what the mux, a mapping and a handler could read differently,
// before any of them sees it.
type router struct {
	settings *settings
	mux      *http.ServeMux
}

func (h *router) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if err := checkTarget(r); err != nil {
		h.settings.refuse(w, r, err, nil, "")
		return
	}
	for _, name := range overrides {
		delete(r.Header, name)
	}
	h.mux.ServeHTTP(w, r)
}

// overrides are headers by which some frameworks let a caller replace what the
// request line says, which is what was judged. Canonical form.
var overrides = [...]string{
	"X-Http-Method-Override", "X-Http-Method", "X-Method-Override",
	"X-Original-Url", "X-Original-Uri", "X-Rewrite-Url",
}

// checkTarget refuses targets that could be read in two ways. Both what came
// over the wire and what an outer handler may have made of it are checked.
func checkTarget(r *http.Request) error {
	target := r.RequestURI
	if target == "" || target[0] != '/' {
		return badRequest("the target is not in origin form")
	}
	path, query, _ := strings.Cut(target, "?")
	if strings.Contains(query, tokenStart) || strings.Contains(query, "access_token=") {
		return badRequest("a token in the query string")
	}
	escaped := r.URL.EscapedPath()
	if err := checkPath(escaped); err != nil {
		return err
	}
	if path != escaped {
		return checkPath(path)
	}
	return nil
}

// tokenStart is how every token's text begins: the binary form's first byte is
// its version, 2, and its second a field type below 64.
const tokenStart = capability.TextPrefix + "Ag"

func checkPath(escaped string) error {
	if escaped == "/" {
		return nil
	}
	// One slash at the end is the mux's to judge: it is part of its patterns.
	if _, err := caveats.SplitURLPath(strings.TrimSuffix(escaped, "/")); err != nil {
		return badRequest("ambiguous path: " + err.Error())
	}
	return nil
}

// checkResource holds segments that a route's function made to the rules of a
// resource: what no resource caveat could name is not served to a token
// without one either.
func checkResource(segments []string) error {
	again, err := caveats.SplitResource(strings.Join(segments, "/"))
	if err != nil {
		return err
	}
	if len(again) != len(segments) {
		return errors.New("a resource segment that holds a slash")
	}
	return nil
}

// queryPairs calls f for each name and value of a query string, strictly: no
// semicolons, no empty pairs, no name twice, not even in another case.
func queryPairs(query string, f func(name, value string) error) error {
	if query == "" {
		return nil
	}
	if len(query) > maxQuery {
		return badRequest("the query string is too long")
	}
	var seen []string
	for pair := range strings.SplitSeq(query, "&") {
		if pair == "" || strings.Contains(pair, ";") {
			return badRequest("an empty pair or a semicolon in the query string")
		}
		k, v, _ := strings.Cut(pair, "=")
		name, err1 := url.QueryUnescape(k)
		value, err2 := url.QueryUnescape(v)
		if err1 != nil || err2 != nil || !utf8.ValidString(name) || !utf8.ValidString(value) {
			return badRequest("an unreadable query string")
		}
		for _, s := range seen {
			if strings.EqualFold(s, name) {
				return badRequest("a query parameter twice")
			}
		}
		if len(seen) == maxParameters {
			return badRequest("too many query parameters")
		}
		seen = append(seen, name)
		if err := f(name, value); err != nil {
			return err
		}
	}
	return nil
}

const (
	maxQuery      = 16 << 10 // bytes of a query string that is mapped
	maxParameters = 64       // parameters in it
)
