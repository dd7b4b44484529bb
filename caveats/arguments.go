package caveats

import (
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/writ-dev/writ/capability"
)

// Limits bounds what ParseArguments reads. Its zero value is the defaults.
type Limits struct {
	MaxSize    int // bytes of the document; 0 is 64 KiB
	MaxDepth   int // of objects and arrays within each other; 0 is 32
	MaxMembers int // members and elements, over the whole document; 0 is 1024
	// ExactNumbers says that the handler reads numbers exactly, such as with
	// json.Number. Without it numbers are refused that a float64 cannot hold
	// faithfully (RFC 7493 section 2.2): integers beyond ±(2^53-1), and others of
	// more than 15 significant digits or outside ±1e±300. A caveat compares
	// exactly, so 99.99999999999999999999 passes "< 100", and such a handler
	// would then read 100.
	ExactNumbers bool
}

// ParseArguments reads the arguments of a call, one JSON object (RFC 8259), so
// that no other reader can take them for something else. It refuses names that
// appear twice in one object, or that differ only in case, at any depth;
// strings that are not valid Unicode; numbers as Limits says; and a second
// document behind the first.
//
// args holds the members of the object, in the order of canonical; null,
// arrays and objects are of capability.KindOther. canonical is the same
// document in one deterministic spelling: no blanks, members sorted by the
// bytes of their names, strings with the fewest escapes, numbers as they were.
// Hand that to the handler, for its own reader of the original may differ.
//
// Errors: ErrArguments, with an offset and never a value.
func ParseArguments(document []byte, limits Limits) (args capability.Fields, canonical []byte, err error) {
	r := argumentReader{in: document, limits: limits}
	if r.limits.MaxSize == 0 {
		r.limits.MaxSize = 64 << 10
	}
	if r.limits.MaxDepth == 0 {
		r.limits.MaxDepth = 32
	}
	if r.limits.MaxMembers == 0 {
		r.limits.MaxMembers = 1024
	}
	if len(document) > r.limits.MaxSize {
		return nil, nil, fmt.Errorf("%w: %d bytes are more than %d", ErrArguments, len(document), r.limits.MaxSize)
	}
	r.blanks()
	if r.peek() != '{' {
		return nil, nil, r.fault("not an object")
	}
	r.out = make([]byte, 0, len(document))
	members, err := r.object(1)
	if err != nil {
		return nil, nil, err
	}
	if r.blanks(); r.at != len(r.in) {
		return nil, nil, r.fault("something behind the object")
	}
	args = make(capability.Fields, len(members))
	for i, m := range members {
		args[i] = capability.Field{Name: m.name, Value: m.value}
	}
	return args, r.out, nil
}

type argumentReader struct {
	in      []byte
	at      int
	out     []byte
	limits  Limits
	members int
}

// member is one member of an object; its canonical form is out[from:to].
type member struct {
	name     string
	value    capability.Value
	from, to int
}

func (r *argumentReader) fault(why string) error {
	return fmt.Errorf("%w: %s at byte %d", ErrArguments, why, r.at)
}

// peek returns the next byte, 0 at the end.
func (r *argumentReader) peek() byte {
	if r.at < len(r.in) {
		return r.in[r.at]
	}
	return 0
}

func (r *argumentReader) blanks() {
	for r.at < len(r.in) && strings.IndexByte(" \t\r\n", r.in[r.at]) >= 0 {
		r.at++
	}
}

// take passes c, and blanks around it.
func (r *argumentReader) take(c byte) bool {
	r.blanks()
	if r.peek() != c {
		return false
	}
	r.at++
	r.blanks()
	return true
}

func (r *argumentReader) value(depth int) (capability.Value, error) {
	switch c := r.peek(); {
	case c == '{':
		_, err := r.object(depth)
		return capability.Value{}, err
	case c == '[':
		return capability.Value{}, r.array(depth)
	case c == '"':
		s, err := r.text()
		return capability.StringValue(s), err
	case c == '-' || '0' <= c && c <= '9':
		return r.number()
	case r.literal("true"):
		return capability.BoolValue(true), nil
	case r.literal("false"):
		return capability.BoolValue(false), nil
	case r.literal("null"):
		return capability.Value{}, nil
	}
	return capability.Value{}, r.fault("no value")
}

func (r *argumentReader) literal(s string) bool {
	if !strings.HasPrefix(view(r.in[r.at:]), s) {
		return false
	}
	r.at += len(s)
	r.out = append(r.out, s...)
	return true
}

// count counts a member or an element.
func (r *argumentReader) count() error {
	if r.members++; r.members > r.limits.MaxMembers {
		return r.fault("too many members")
	}
	return nil
}

func (r *argumentReader) array(depth int) error {
	if depth > r.limits.MaxDepth {
		return r.fault("too deep")
	}
	r.take('[')
	r.out = append(r.out, '[')
	for first := true; !r.take(']'); first = false {
		if !first {
			if !r.take(',') {
				return r.fault("no comma or bracket")
			}
			r.out = append(r.out, ',')
		}
		if err := r.count(); err != nil {
			return err
		}
		if _, err := r.value(depth + 1); err != nil {
			return err
		}
	}
	r.out = append(r.out, ']')
	return nil
}

// object reads an object and returns its members, sorted.
func (r *argumentReader) object(depth int) ([]member, error) {
	if depth > r.limits.MaxDepth {
		return nil, r.fault("too deep")
	}
	r.take('{')
	start := len(r.out)
	var members []member
	seen := make(map[string]struct{})
	for first := true; !r.take('}'); first = false {
		if !first && !r.take(',') {
			return nil, r.fault("no comma or brace")
		}
		if err := r.count(); err != nil {
			return nil, err
		}
		if r.peek() != '"' {
			return nil, r.fault("no name")
		}
		m := member{from: len(r.out)}
		var err error
		if m.name, err = r.text(); err != nil {
			return nil, err
		}
		folded := fold(m.name)
		if _, twice := seen[folded]; twice {
			return nil, r.fault("a name for the second time, perhaps in another case")
		}
		seen[folded] = struct{}{}
		if !r.take(':') {
			return nil, r.fault("no colon")
		}
		r.out = append(r.out, ':')
		if m.value, err = r.value(depth + 1); err != nil {
			return nil, err
		}
		m.to = len(r.out)
		members = append(members, m)
	}
	slices.SortFunc(members, func(a, b member) int { return strings.Compare(a.name, b.name) })
	unsorted := slices.Clone(r.out[start:])
	r.out = append(r.out[:start], '{')
	for i, m := range members {
		if i > 0 {
			r.out = append(r.out, ',')
		}
		r.out = append(r.out, unsorted[m.from-start:m.to-start]...)
	}
	r.out = append(r.out, '}')
	return members, nil
}

// number reads a number, keeping its literal.
func (r *argumentReader) number() (capability.Value, error) {
	end := r.at
	for end < len(r.in) && strings.IndexByte("+-.eE0123456789", r.in[end]) >= 0 {
		end++
	}
	literal := string(r.in[r.at:end])
	d, ok := parseDecimal(literal)
	if !ok {
		return capability.Value{}, r.fault("a number that is none, or too large")
	}
	if !r.limits.ExactNumbers && !isFaithful(literal, d) {
		return capability.Value{}, r.fault("a number that a float64 does not hold")
	}
	r.at = end
	r.out = append(r.out, literal...)
	return capability.NumberValue(literal), nil
}

var maxSafeInteger, _ = parseDecimal("9007199254740991")

// isFaithful reports whether a float64 holds the number so well that it
// compares with every other such number as the decimal does.
func isFaithful(literal string, d decimal) bool {
	if !strings.ContainsAny(literal, ".eE") {
		return d.compareMagnitude(maxSafeInteger) <= 0
	}
	significant := len(d.text) - strings.Count(d.text, ".")
	return significant <= 15 && d.exp >= -300 && d.exp <= 300
}

// text reads a string, appends its canonical form, and returns what it says.
func (r *argumentReader) text() (string, error) {
	start := len(r.out)
	r.out = append(r.out, '"')
	var said []byte
	for r.at++; r.at < len(r.in); {
		c := r.in[r.at]
		switch {
		case c == '"':
			r.at++
			r.out = append(r.out[:start], '"')
			r.out = appendEscaped(r.out, said)
			r.out = append(r.out, '"')
			return string(said), nil
		case c < ' ':
			return "", r.fault("a control character in a string")
		case c == '\\':
			ch, n := unescapeJSON(r.in[r.at:])
			if n == 0 {
				return "", r.fault("a bad escape or half a surrogate pair")
			}
			said = utf8.AppendRune(said, ch)
			r.at += n
		case c < utf8.RuneSelf:
			said = append(said, c)
			r.at++
		default:
			ch, n := utf8.DecodeRune(r.in[r.at:])
			if ch == utf8.RuneError && n < 2 {
				return "", r.fault("a string that is not valid UTF-8")
			}
			said = append(said, r.in[r.at:r.at+n]...)
			r.at += n
		}
	}
	return "", r.fault("a string without an end")
}

// unescapeJSON reads the escape that b begins with, and returns its length, 0
// for a bad one. Surrogates count only in pairs.
func unescapeJSON(b []byte) (rune, int) {
	if len(b) < 2 {
		return 0, 0
	}
	switch b[1] {
	case '"', '\\', '/':
		return rune(b[1]), 2
	case 'b':
		return '\b', 2
	case 'f':
		return '\f', 2
	case 'n':
		return '\n', 2
	case 'r':
		return '\r', 2
	case 't':
		return '\t', 2
	}
	hi, ok := hex4(b)
	switch {
	case !ok || 0xdc00 <= hi && hi < 0xe000:
		return 0, 0
	case 0xd800 <= hi && hi < 0xdc00:
		lo, ok := hex4(b[6:])
		if !ok || lo < 0xdc00 || lo >= 0xe000 {
			return 0, 0
		}
		return 0x10000 + (hi-0xd800)<<10 + (lo - 0xdc00), 12
	}
	return hi, 6
}

// hex4 reads \uXXXX.
func hex4(b []byte) (r rune, ok bool) {
	if len(b) < 6 || b[0] != '\\' || b[1] != 'u' {
		return 0, false
	}
	for _, c := range b[2:6] {
		h := unhex(c)
		if h > 15 {
			return 0, false
		}
		r = r<<4 | rune(h)
	}
	return r, true
}

// appendEscaped escapes what JSON requires, and the line separators that
// JavaScript once did not allow in strings.
func appendEscaped(out, s []byte) []byte {
	const digits = "0123456789abcdef"
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			out = append(out, '\\', c)
		case c < ' ':
			out = append(out, '\\', 'u', '0', '0', digits[c>>4], digits[c&15])
		case c == 0xe2 && (strings.HasPrefix(view(s[i:]), "\u2028") || strings.HasPrefix(view(s[i:]), "\u2029")):
			out = append(out, '\\', 'u', '2', '0', '2', digits[s[i+2]&15])
			i += 2
		default:
			out = append(out, c)
		}
	}
	return out
}

// fold maps names that differ only in case to one: each character to the least
// of those that Unicode's simple folding makes equal, as encoding/json does.
func fold(s string) string {
	return strings.Map(func(r rune) rune {
		if r < utf8.RuneSelf {
			if 'a' <= r && r <= 'z' {
				r -= 'a' - 'A'
			}
			return r
		}
		least := r
		for f := unicode.SimpleFold(r); f != r; f = unicode.SimpleFold(f) {
			least = min(least, f)
		}
		return least
	}, s)
}
