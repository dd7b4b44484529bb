package pop

import (
	"fmt"
	"strings"
)

// target is a URI without query and fragment, taken apart, not normalized.
type target struct {
	scheme, authority, path string
}

// splitURI takes an absolute URI apart. Query and fragment are ignored (RFC
// 9449 section 4.3). It reports false for what no call is made to: user
// information, dot segments, characters that do not belong in a URI.
func splitURI(s string) (t target, ok bool) {
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c > '~' || c == '"' || c == '<' || c == '>' || c == '\\' || c == '^' || c == '`' || c == '{' || c == '|' || c == '}' {
			return t, false
		}
	}
	scheme, rest, found := strings.Cut(s, "://")
	if !found || scheme == "" || strings.ContainsAny(scheme, "/?#%@[]") {
		return t, false
	}
	if i := strings.IndexAny(rest, "?#"); i >= 0 {
		rest = rest[:i]
	}
	t.scheme, t.authority, t.path = scheme, rest, ""
	if i := strings.IndexByte(rest, '/'); i >= 0 {
		t.authority, t.path = rest[:i], rest[i:]
	}
	if t.authority == "" || strings.ContainsAny(t.authority, "@%") {
		return t, false
	}
	return t, !dotted(t.path)
}

// dotted reports whether a path has dot segments: a guard serves none, so there
// is nothing to remove them for.
func dotted(path string) bool {
	if !strings.Contains(path, ".") && !strings.Contains(path, "%2") {
		return false
	}
	for segment := range strings.SplitSeq(path, "/") {
		if n := len(segment); n > 0 && n <= 6 {
			switch strings.ReplaceAll(strings.ToLower(segment), "%2e", ".") {
			case ".", "..":
				return true
			}
		}
	}
	return false
}

// sameOrigin compares scheme and authority after normalization (RFC 3986
// sections 6.2.2.1 and 6.2.3): case is ignored, and the scheme's own port is
// the same as none.
func (t target) sameOrigin(u target) bool {
	return strings.EqualFold(t.scheme, u.scheme) && strings.EqualFold(t.host(), u.host())
}

// host is the authority without a port that the scheme implies.
func (t target) host() string {
	a := strings.TrimSuffix(t.authority, ":")
	switch {
	case strings.EqualFold(t.scheme, "https"):
		a = strings.TrimSuffix(a, ":443")
	case strings.EqualFold(t.scheme, "http"):
		a = strings.TrimSuffix(a, ":80")
	}
	return a
}

// samePath compares paths after normalization (RFC 3986 sections 6.2.2.1,
// 6.2.2.2 and 6.2.3): an escape of an unreserved character is that character,
// the case of an escape's digits is ignored, and no path is "/".
func samePath(a, b string) bool {
	if a == "" {
		a = "/"
	}
	if b == "" {
		b = "/"
	}
	if a == b {
		return true
	}
	for a != "" && b != "" {
		var x, y int
		x, a = unit(a)
		y, b = unit(b)
		if x != y || x < 0 {
			return false
		}
	}
	return a == b
}

// unit takes one character off a path: itself, 256 more for one that is
// escaped and stays so, or -1 for a broken escape.
func unit(s string) (u int, rest string) {
	if s[0] != '%' {
		return int(s[0]), s[1:]
	}
	if len(s) < 3 {
		return -1, ""
	}
	hi, lo := unhex(s[1]), unhex(s[2])
	if hi < 0 || lo < 0 {
		return -1, ""
	}
	c := hi<<4 | lo
	if 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '.' || c == '_' || c == '~' {
		return c, s[3:]
	}
	return 256 + c, s[3:]
}

func unhex(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c && c <= 'f':
		return int(c-'a') + 10
	case 'A' <= c && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

// parseOrigin reads an origin: a scheme and an authority, nothing else.
func parseOrigin(s string) (target, error) {
	t, ok := splitURI(s)
	if !ok || t.path != "" || strings.ContainsAny(s, "?#") {
		return target{}, fmt.Errorf("pop: origin %q: want scheme://host or scheme://host:port", s)
	}
	return t, nil
}
