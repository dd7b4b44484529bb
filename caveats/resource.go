package caveats

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// Bounds on a resource in text form.
const (
	// MaxResource is the most bytes of a resource, escaped or not.
	MaxResource = 4096
	// MaxSegments is the most segments of a resource.
	MaxSegments = 64
)

// checkResource judges "PATTERN…" by a request's segments.
func checkResource(w *words, segments []string) verdict {
	result, n := denied, 0
	for {
		x, ok := w.next()
		if !ok {
			break
		}
		n++
		switch r := matchPattern(x, segments); r {
		case unreadable:
			return unreadable
		case held:
			result = held
		}
	}
	if n == 0 || !w.done() {
		return unreadable
	}
	return result
}

// What a byte does to a pattern's segment.
const (
	isName  = 1 << iota // the segment is not made of dots alone
	isStar              // a star, which must be alone
	isSlow              // an escape or a longer character: look again
	isFatal             // never in a segment
	isSlash             // ends it
)

var patternBytes = func() (t [256]uint8) {
	for c := range t {
		switch {
		case c == '/':
			t[c] = isSlash
		case c == '*':
			t[c] = isStar | isName
		case c == '\\' || c >= utf8.RuneSelf:
			t[c] = isSlow | isName
		case c == '%' || c < ' ' || c == 0x7f:
			t[c] = isFatal
		case c != '.':
			t[c] = isName
		}
	}
	return t
}()

// matchPattern matches one pattern. The whole pattern is read in any case.
func matchPattern(x word, segments []string) verdict {
	matches, at := true, 0
	for rest := x.text; ; at++ {
		end, seen := 0, uint8(0)
		for end < len(rest) && seen < isSlash {
			seen |= patternBytes[rest[end]]
			end++
		}
		more := seen >= isSlash
		if more {
			end--
		}
		p := word{text: rest[:end], escaped: x.escaped}
		switch {
		case seen&isStar != 0:
			switch string(p.text) {
			case "**":
				if more {
					return unreadable // only at the end
				}
				return verdictOf(matches && at < len(segments) && allValid(segments[at:]))
			case "*":
				matches = matches && at < len(segments) && validSegment(segments[at])
			default:
				return unreadable
			}
		case seen&isFatal != 0, seen&isName == 0 && end <= 2, seen&isSlow != 0 && !validPattern(p):
			return unreadable
		default:
			matches = matches && at < len(segments) && p.is(segments[at])
		}
		if !more {
			return verdictOf(matches && at+1 == len(segments))
		}
		rest = rest[end+1:]
	}
}

// validPattern reports whether a pattern's segment with escapes or longer
// characters names one segment that can exist. An escaped quote may; an
// escaped backslash is a backslash.
func validPattern(p word) bool {
	if p.escaped {
		return validSegment(string(p.value()))
	}
	return validSegment(view(p.text))
}

func allValid(segments []string) bool {
	for _, s := range segments {
		if !validSegment(s) {
			return false
		}
	}
	return true
}

// validSegment reports whether s can be a segment at all: it is not empty, not
// made of dots that lead elsewhere, valid UTF-8, and holds nothing that a
// reader further on would take for a separator, an encoding or a terminator.
// That includes the characters whose NFKC form does (Unicode Standard Annex
// #15), for the sake of readers that normalize.
func validSegment(s string) bool {
	if s == "" {
		return false
	}
	dots := 0 // of the segment's start; -1 once it is not made of dots alone
	for i := 0; i < len(s); {
		c := s[i]
		if c >= utf8.RuneSelf {
			r, n := utf8.DecodeRuneInString(s[i:])
			if n < 2 || r <= 0x9f {
				return false
			}
			switch r {
			case '\uff0f', '\uff3c', '\ufe68', '\uff05', '\ufe6a', // full-width and small / \ \ % %
				'\u2100', '\u2101', '\u2105', '\u2106': // a/c a/s c/o c/u
				return false
			case '\u2024', '\ufe52', '\uff0e', '\u2025', '\ufe30': // . . . .. ..
			default:
				dots = -1
			}
			i += n
		} else {
			switch {
			case c < ' ' || c == 0x7f || c == '/' || c == '\\' || c == '%':
				return false
			case c != '.':
				dots = -1
			}
			i++
		}
		if dots >= 0 {
			dots++
		}
	}
	// Three ASCII dots and more are a name like any other; dots in disguise are not.
	return dots < 0 || dots > 2 && strings.Trim(s, ".") == ""
}

// SplitResource splits a resource in text form, such as "files/q3", into its
// segments. It refuses what no caveat could match: a leading, doubled or
// trailing slash, and every segment that is not valid (see the package
// documentation). Errors: ErrResource.
func SplitResource(path string) ([]string, error) {
	return splitSegments(path, func(s string) (string, bool) { return s, true })
}

// SplitURLPath splits the escaped path of a URL, such as "/files/q%20three",
// as in the request line or from url.URL.EscapedPath, into decoded segments.
// It splits first and decodes each segment once, so %2F never separates. It
// refuses what SplitResource refuses after decoding, and an escape that no
// client needs (%66 for f): what two readers could take for two paths is none.
// The root, "/", has no segments and is refused. Errors: ErrResource.
func SplitURLPath(escaped string) ([]string, error) {
	path, ok := strings.CutPrefix(escaped, "/")
	if !ok {
		return nil, badResource("the path does not begin with a slash", escaped)
	}
	return splitSegments(path, unescape)
}

func splitSegments(path string, decode func(string) (string, bool)) ([]string, error) {
	if len(path) > MaxResource {
		return nil, fmt.Errorf("%w: %d bytes are more than %d", ErrResource, len(path), MaxResource)
	}
	n := 1 + strings.Count(path, "/")
	if n > MaxSegments {
		return nil, fmt.Errorf("%w: %d segments are more than %d", ErrResource, n, MaxSegments)
	}
	segments := make([]string, 0, n)
	for raw := range strings.SplitSeq(path, "/") {
		s, ok := decode(raw)
		switch {
		case !ok:
			return nil, badResource("bad or needless percent-encoding", raw)
		case s == "":
			return nil, badResource("empty segment: a leading, doubled or trailing slash", path)
		case !validSegment(s):
			return nil, badResource("segment that nothing may match", raw)
		}
		segments = append(segments, s)
	}
	return segments, nil
}

func badResource(why, what string) error {
	return fmt.Errorf("%w: %s: %s", ErrResource, why, quoted(what))
}

// unescape decodes the percent-encoding (RFC 3986 section 2.1) of a segment.
// It refuses characters that may not stand in a path and escapes of unreserved
// ones.
func unescape(s string) (string, bool) {
	if strings.IndexByte(s, '%') < 0 {
		return s, isPath(s)
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] != '%' {
			b = append(b, s[i])
			continue
		}
		if i+2 >= len(s) {
			return "", false
		}
		hi, lo := unhex(s[i+1]), unhex(s[i+2])
		if hi > 15 || lo > 15 || isUnreserved(hi<<4|lo) {
			return "", false
		}
		b = append(b, hi<<4|lo)
		i += 2
	}
	return string(b), isPath(s)
}

// isPath reports whether s is visible ASCII without the characters that end a path.
func isPath(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' || s[i] == '?' || s[i] == '#' {
			return false
		}
	}
	return true
}

func isUnreserved(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' ||
		c == '-' || c == '.' || c == '_' || c == '~'
}

func unhex(c byte) byte {
	switch {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10
	}
	return 0xff
}
