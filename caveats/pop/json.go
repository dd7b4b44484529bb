package pop

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"unicode/utf8"
)

// maxMembers is the most members of one object of a proof.
const maxMembers = 24

// members walks over one JSON object. Its syntax has been checked, by
// encoding/json, before anything is taken from it; what is left to do here is
// to find where values end, and to refuse a name that comes twice: two readers
// would differ on which of them counts.
type members struct {
	rest  []byte
	names [maxMembers][]byte
	n     int
}

// object begins a walk over b. Errors: b is no JSON object in UTF-8.
func object(b []byte) (members, error) {
	if !utf8.Valid(b) || !json.Valid(b) {
		return members{}, malformed("not JSON")
	}
	b = bytes.Trim(b, " \t\r\n")
	if b[0] != '{' {
		return members{}, malformed("not a JSON object")
	}
	return members{rest: b[1:]}, nil
}

// next returns the next member, its value as it stands there; at the end, a nil
// name. Names with escapes are refused: nobody writes the names that we read so.
func (m *members) next() (name, value []byte, err error) {
	m.space(',')
	if m.rest[0] == '}' {
		return nil, nil, nil
	}
	name = m.rest[1 : skipString(m.rest)-1]
	m.rest = m.rest[len(name)+2:]
	m.space(':')
	end := skipValue(m.rest)
	value, m.rest = m.rest[:end], m.rest[end:]
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

// space skips white space and one separator.
func (m *members) space(separator byte) {
	for {
		switch m.rest[0] {
		case ' ', '\t', '\r', '\n', separator:
			m.rest = m.rest[1:]
		default:
			return
		}
	}
}

// skipString returns the length of the string that valid JSON begins with.
func skipString(b []byte) int {
	for i := 1; ; i++ {
		switch b[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
}

// skipValue returns the length of the value that valid JSON begins with.
func skipValue(b []byte) int {
	depth := 0
	for i := 0; ; {
		switch b[i] {
		case '"':
			i += skipString(b[i:])
		case '{', '[':
			depth++
			i++
		case '}', ']':
			if depth == 0 {
				return i // of the object that the value stands in
			}
			depth--
			i++
		case ',', ' ', '\t', '\r', '\n':
			if depth == 0 {
				return i
			}
			i++
			continue
		default:
			i++
			continue
		}
		if depth == 0 {
			return i
		}
	}
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

// strict is unpadded base64url whose unused bits are zero.
var strict = base64.RawURLEncoding.Strict()

// alphabet reports whether b is base64url by its characters alone: Go's decoder
// would skip line breaks.
func alphabet(b []byte) bool {
	for _, c := range b {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_') {
			return false
		}
	}
	return true
}

// decode appends the bytes that b stands for.
func decode(dst, b []byte) ([]byte, bool) {
	if !alphabet(b) {
		return nil, false
	}
	out, err := strict.AppendDecode(dst, b)
	return out, err == nil
}

// decode32 reads exactly 32 bytes.
func decode32(value []byte) (out [32]byte, ok bool) {
	b, ok := text(value)
	if !ok || len(b) != 43 || !alphabet(b) {
		return out, false
	}
	n, err := strict.Decode(out[:], b)
	return out, err == nil && n == 32
}
