package guard

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats"
)

// Route is what the calls that match a pattern mean. Action (or ActionFunc) and
// Resource (or ResourceFunc) are required.
type Route struct {
	// Action is what the calls do: one word, such as "read". Its pattern then
	// names a method; ("GET" also matches HEAD, as in http.ServeMux).
	Action string
	// ActionFunc replaces Action where it depends on the request.
	ActionFunc func(*http.Request) (string, error)

	// Resource is what they do it to: segments separated by slashes, each
	// literal, "{name}" or, last, "{name...}" with a wildcard of the pattern.
	// Every wildcard of the pattern stands in it: what the handler can read
	// from the path has been judged.
	Resource string
	// ResourceFunc replaces Resource: it returns decoded segments.
	ResourceFunc func(*http.Request) ([]string, error)

	// Query names the query parameters that are arguments, with their types
	// (capability.KindString, KindNumber or KindBool). Other parameters, form
	// bodies, and values that are not of the type are then refused.
	Query map[string]capability.Kind
	// JSON has the members of the body, a JSON object, as arguments. Other
	// bodies, and any query parameter that is not in Query, are then refused;
	// the handler gets the body in canonical form.
	JSON bool
	// ArgumentsFunc replaces Query and JSON. It must not consume the body.
	ArgumentsFunc func(*http.Request) (capability.Fields, error)

	// Context supplies facts for context caveats. Its error is unavailable.
	Context func(*http.Request) (capability.Fields, error)

	// RequireRequest demands a request caveat for this very call, so that a
	// token seen in transit is good for nothing else. Calls whose method is not
	// idempotent are then accepted once, if the verifier's checker has
	// caveats.WithReplays.
	RequireRequest bool

	// MaxBody bounds the body in bytes; 0 is the guard's bound.
	MaxBody int64
	// Verifier replaces the guard's, such as one with a tighter bound on the
	// age of revocations.
	Verifier Verifier
}

// segment is one part of a compiled Resource: literal, or the wildcard's name.
type segment struct {
	text  string
	wild  bool
	multi bool
}

// compile checks the route against its pattern.
func (rt *Route) compile(pattern string) ([]segment, error) {
	method, wildcards, subtree := readPattern(pattern)
	switch {
	case rt.Action == "" && rt.ActionFunc == nil:
		return nil, errors.New("no action")
	case rt.Action != "" && rt.ActionFunc != nil:
		return nil, errors.New("both Action and ActionFunc")
	case rt.Action != "" && !capability.ValidName(rt.Action, 64):
		return nil, fmt.Errorf("action %q: want one word", rt.Action)
	case rt.Action != "" && method == "":
		return nil, errors.New("one action for every method: name the method in the pattern, or use ActionFunc")
	case rt.Resource == "" && rt.ResourceFunc == nil:
		return nil, errors.New("no resource")
	case rt.Resource != "" && rt.ResourceFunc != nil:
		return nil, errors.New("both Resource and ResourceFunc")
	case rt.ArgumentsFunc != nil && (rt.Query != nil || rt.JSON):
		return nil, errors.New("ArgumentsFunc beside Query or JSON")
	case rt.MaxBody < 0:
		return nil, errors.New("negative MaxBody")
	}
	for name, kind := range rt.Query {
		if name == "" || kind == capability.KindOther || kind > capability.KindBool {
			return nil, fmt.Errorf("query parameter %q: want a name and a type", name)
		}
	}
	if rt.ResourceFunc != nil {
		return nil, nil
	}
	if subtree {
		return nil, errors.New(`the pattern matches paths that Resource does not name: end it in "{name...}" or "{$}"`)
	}
	segments, err := compileResource(rt.Resource)
	if err != nil {
		return nil, err
	}
	for _, s := range segments {
		if s.wild && !slices.Contains(wildcards, s) {
			return nil, fmt.Errorf("wildcard %q of the resource is not in the pattern", s.text)
		}
	}
	for _, w := range wildcards {
		if !slices.Contains(segments, w) {
			return nil, fmt.Errorf("wildcard %q is not in the resource: the handler would read what nobody judged", w.text)
		}
	}
	return segments, nil
}

func compileResource(resource string) ([]segment, error) {
	var segments []segment
	for part := range strings.SplitSeq(resource, "/") {
		if len(segments) > 0 && segments[len(segments)-1].multi {
			return nil, errors.New("a {name...} that is not last in the resource")
		}
		s, ok := readWildcard(part)
		if !ok {
			if strings.ContainsAny(part, "{}*") {
				return nil, fmt.Errorf("segment %q of the resource: a wildcard is a whole segment", part)
			}
			if _, err := caveats.SplitResource(part); err != nil {
				return nil, err
			}
			s = segment{text: part}
		}
		segments = append(segments, s)
	}
	return segments, nil
}

// readPattern reads what matters of a ServeMux pattern: its method, its
// wildcards, and whether it matches a whole subtree anonymously. What is wrong
// with the pattern otherwise, ServeMux says.
func readPattern(pattern string) (method string, wildcards []segment, subtree bool) {
	rest := pattern
	if m, after, ok := strings.Cut(pattern, " "); ok {
		method, rest = m, after
	}
	for part := range strings.SplitSeq(rest, "/") {
		if s, ok := readWildcard(part); ok {
			wildcards = append(wildcards, s)
		}
	}
	return method, wildcards, strings.HasSuffix(rest, "/")
}

func readWildcard(part string) (segment, bool) {
	if len(part) < 3 || part[0] != '{' || part[len(part)-1] != '}' || part == "{$}" {
		return segment{}, false
	}
	name, multi := strings.CutSuffix(part[1:len(part)-1], "...")
	return segment{text: name, wild: true, multi: multi}, name != "" && !strings.ContainsAny(name, "{}")
}

// resource appends the segments that the request names. The router has checked
// each segment of the path; what is left is a trailing slash.
func resource(out []string, compiled []segment, r *http.Request) ([]string, error) {
	for _, s := range compiled {
		switch {
		case !s.wild:
			out = append(out, s.text)
		case s.multi:
			for part := range strings.SplitSeq(r.PathValue(s.text), "/") {
				out = append(out, part)
			}
		default:
			out = append(out, r.PathValue(s.text))
		}
	}
	if slices.Contains(out, "") {
		return nil, badRequest("an empty segment")
	}
	return out, nil
}

// value reads a query parameter as its declared type.
func value(kind capability.Kind, text string) (capability.Value, error) {
	switch kind {
	case capability.KindNumber:
		if v := capability.NumberValue(text); v.Kind() == capability.KindNumber {
			return v, nil
		}
		return capability.Value{}, badRequest("a query parameter that is not a number")
	case capability.KindBool:
		if text == "true" || text == "false" {
			return capability.BoolValue(text == "true"), nil
		}
		return capability.Value{}, badRequest("a query parameter that is neither true nor false")
	}
	return capability.StringValue(text), nil
}
