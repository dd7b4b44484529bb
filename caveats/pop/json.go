package pop

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"unicode/utf8"
)

// Bounds of the JSON of a proof.
const (
	maxMembers = 24 // of one object
	maxDepth   = 16 // of values in values
)

// members walks over one JSON object, once: it checks the syntax (RFC 8259) of
// what it passes, so that nothing may be taken for true before the walk has
// come to its end. encoding/json would read everything once more only to say
// that it is JSON. A name that comes twice is refused: two readers would differ
// on which of them counts.
type members struct {
	rest  []byte
	names [maxMembers][]byte
	n     int
}

var errJSON = malformed("not JSON")

// object begins a walk over b. Errors: b does not begin as a JSON object, or is
// not UTF-8.
func object(b []byte) (members, error) {
	b = skipSpace(b)
	if len(b) == 0 || b[0] != '{' || !utf8.Valid(b) {
		return members{}, malformed("not a JSON object")
	}
	return nested(b), nil
}

// nested begins a walk over the value of a member that begins with a brace.
func nested(b []byte) members { return members{rest: b[1:]} }

// next returns the next member, its value as it stands there; at the end, a nil
// name. Names with escapes are refused: nobody writes the names that we read so.
func (m *members) next() (name, value []byte, err error) {
	b := skipSpace(m.rest)
	switch {
	case len(b) > 0 && b[0] == '}':
		if len(skipSpace(b[1:])) > 0 {
			return nil, nil, malformed("more than one JSON value")
		}
		return nil, nil, nil
	case m.n == 0:
	case len(b) > 0 && b[0] == ',':
		b = skipSpace(b[1:])
	default:
		return nil, nil, errJSON
	}
	rest, ok := skipString(b)
	if !ok {
		return nil, nil, errJSON
	}
	name = b[1 : len(b)-len(rest)-1]
	if b = skipSpace(rest); len(b) == 0 || b[0] != ':' {
		return nil, nil, errJSON
	}
	b = skipSpace(b[1:])
	if m.rest, ok = skipValue(b, maxDepth); !ok {
		return nil, nil, errJSON
	}
	value = b[:len(b)-len(m.rest)]
	if bytes.IndexByte(name, '\\') >= 0 {
		return nil, nil, malformed("a name with an escape")
	}
	for _, seen := range m.names[:m.n] {
		if bytes.Equal(seen, name) {
			return nil, nil, malformed("a name twice")
		}
	}
	if m.n == maxMembers {
		return nil, nil, malformed("too many members")
	}
	m.names[m.n] = name
	m.n++
	return name, value, nil
}

// The skip functions return what follows what b begins with; ok is false if b
// does not begin with that.

func skipSpace(b []byte) []byte {
	for len(b) > 0 && (b[0] == ' ' || b[0] == '\t' || b[0] == '\n' || b[0] == '\r') {
		b = b[1:]
	}
	return b
}

func skipString(b []byte) (rest []byte, ok bool) {
	if len(b) == 0 || b[0] != '"' {
		return nil, false
	}
	for i := 1; i < len(b); i++ {
		switch c := b[i]; {
		case c == '"':
			return b[i+1:], true
		case c < ' ':
			return nil, false
		case c != '\\':
		case i+1 < len(b) && bytes.IndexByte([]byte(`"\/bfnrt`), b[i+1]) >= 0:
			i++
		case i+5 < len(b) && b[i+1] == 'u' && unhex(b[i+2]) >= 0 && unhex(b[i+3]) >= 0 && unhex(b[i+4]) >= 0 && unhex(b[i+5]) >= 0:
			i += 5
		default:
			return nil, false
		}
	}
	return nil, false
}

func skipValue(b []byte, depth int) (rest []byte, ok bool) {
	if len(b) == 0 {
		return nil, false
	}
	switch b[0] {
	case '"':
		return skipString(b)
	case '{', '[':
		return skipMany(b, depth)
	case 't':
		return bytes.CutPrefix(b, []byte("true"))
	case 'f':
		return bytes.CutPrefix(b, []byte("false"))
	case 'n':
		return bytes.CutPrefix(b, []byte("null"))
	}
	return skipNumber(b)
}

// skipMany is for an object or an array of at most so many levels.
func skipMany(b []byte, depth int) (rest []byte, ok bool) {
	if depth == 0 {
		return nil, false
	}
	named, end := b[0] == '{', b[0]+2 // the closing one is the next but one in ASCII
	b = skipSpace(b[1:])
	if len(b) > 0 && b[0] == end {
		return b[1:], true
	}
	for {
		if named {
			if b, ok = skipString(b); !ok {
				return nil, false
			}
			if b = skipSpace(b); len(b) == 0 || b[0] != ':' {
				return nil, false
			}
			b = skipSpace(b[1:])
		}
		if b, ok = skipValue(b, depth-1); !ok {
			return nil, false
		}
		b = skipSpace(b)
		switch {
		case len(b) == 0:
			return nil, false
		case b[0] == end:
			return b[1:], true
		case b[0] != ',':
			return nil, false
		}
		b = skipSpace(b[1:])
	}
}

func skipNumber(b []byte) (rest []byte, ok bool) {
	b = bytes.TrimPrefix(b, []byte("-"))
	if rest, ok = bytes.CutPrefix(b, []byte("0")); !ok {
		if rest, ok = skipDigits(b); !ok {
			return nil, false
		}
	}
	if fraction, found := bytes.CutPrefix(rest, []byte(".")); found {
		if rest, ok = skipDigits(fraction); !ok {
			return nil, false
		}
	}
	if len(rest) > 0 && rest[0]|0x20 == 'e' {
		rest = rest[1:]
		if len(rest) > 0 && (rest[0] == '+' || rest[0] == '-') {
			rest = rest[1:]
		}
		return skipDigits(rest)
	}
	return rest, true
}

func skipDigits(b []byte) (rest []byte, ok bool) {
	i := 0
	for i < len(b) && '0' <= b[i] && b[i] <= '9' {
		i++
	}
	return b[i:], i > 0
}

// text reads a string.
func text(value []byte) ([]byte, bool) {
	if value[0] != '"' {
		return nil, false
	}
	if inner := value[1 : len(value)-1]; bytes.IndexByte(inner, '\\') < 0 {
		return inner, true
	}
	var s string // as libraries that escape slashes write URIs
	if json.Unmarshal(value, &s) != nil {
		return nil, false
	}
	return []byte(s), true
}

// seconds reads a NumericDate (RFC 7519 section 2) that is whole seconds.
func seconds(value []byte) (n int64, ok bool) {
	if len(value) > 12 {
		return 0, false
	}
	for _, c := range value {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	return n, true
}

// strict is unpadded base64url whose unused bits are zero. Line breaks it skips,
// as Go's decoders do: see decode and decodeExactly.
var strict = base64.RawURLEncoding.Strict()

// decode appends the bytes that b stands for.
func decode(dst, b []byte) ([]byte, bool) {
	if bytes.IndexByte(b, '\n') >= 0 || bytes.IndexByte(b, '\r') >= 0 {
		return nil, false
	}
	out, err := strict.AppendDecode(dst, b)
	return out, err == nil
}

// decodeExactly fills dst with what b stands for. b has as many characters as
// that takes: had one been skipped, dst would not be full.
func decodeExactly(dst, b []byte) bool {
	if len(b) != strict.EncodedLen(len(dst)) {
		return false
	}
	n, err := strict.Decode(dst, b)
	return err == nil && n == len(dst)
}

// decode32 reads exactly 32 bytes.
func decode32(value []byte) (out [32]byte, ok bool) {
	b, ok := text(value)
	return out, ok && decodeExactly(out[:], b)
}
