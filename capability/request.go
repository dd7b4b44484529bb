package capability

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"net/netip"
	"strings"
	"time"
)

// Request is what a call means, as the service that is about to serve it sees
// it. A verifier judges a token against nothing else: a field that the service
// leaves empty is a fact that no caveat can match.
type Request struct {
	// Now is the moment of the decision by the verifier's clock. Required.
	Now time.Time
	// Service is the name of the service, for service caveats.
	Service string
	// Action is what the call does: one word, such as "read".
	Action string
	// Resource is what it does it to, as decoded path segments. A segment that
	// is empty, "." or "..", or holds a slash, a backslash, a percent sign or a
	// control character matches no resource caveat.
	Resource []string
	// Arguments are the call's arguments. A name that is not there denies every
	// argument caveat on it; names are compared exactly.
	Arguments Fields
	// Client is the caller's address, with forwarded addresses already judged.
	Client netip.Addr
	// Context holds facts that the service vouches for, such as its environment.
	Context Fields
	// Holder is the evidence of key possession that came with the call; nil is none.
	Holder HolderProof
	// Message is the call as it was received, for request caveats; nil matches none.
	Message *Message
}

// Fields is a small set of named values. Look-up is linear; names are unique.
type Fields []Field

// Field is one named value.
type Field struct {
	Name  string
	Value Value
}

// Get returns the value of name, and whether there is exactly one.
func (f Fields) Get(name []byte) (v Value, ok bool) {
	for i := range f {
		if f[i].Name == string(name) {
			if ok {
				return Value{}, false // ambiguous: as good as missing
			}
			v, ok = f[i].Value, true
		}
	}
	return v, ok
}

// Kind is the type of a Value.
type Kind uint8

// The kinds of value that a caveat can compare. KindOther is present but
// satisfies no comparison: null, an object, an array.
const (
	KindOther Kind = iota
	KindString
	KindNumber
	KindBool
)

// Value is a typed value of an argument or of the context. The zero Value is
// of KindOther.
type Value struct {
	kind Kind
	text string
}

// StringValue is a string.
func StringValue(s string) Value { return Value{KindString, s} }

// BoolValue is a truth value.
func BoolValue(b bool) Value {
	if b {
		return Value{KindBool, "true"}
	}
	return Value{KindBool, "false"}
}

// NumberValue is a number by its JSON literal (RFC 8259 section 6), kept
// exactly. Text that is no such literal gives a value of KindOther.
func NumberValue(literal string) Value {
	if !isJSONNumber(literal) {
		return Value{}
	}
	return Value{KindNumber, literal}
}

// Kind returns the value's type.
func (v Value) Kind() Kind { return v.kind }

// Text returns the string, the number's literal, or "true" or "false".
func (v Value) Text() string { return v.text }

func isJSONNumber(s string) bool {
	s = strings.TrimPrefix(s, "-")
	digits := func() bool {
		n := 0
		for n < len(s) && '0' <= s[n] && s[n] <= '9' {
			n++
		}
		s = s[n:]
		return n > 0
	}
	if strings.HasPrefix(s, "0") {
		s = s[1:]
	} else if !digits() {
		return false
	}
	if strings.HasPrefix(s, ".") {
		s = s[1:]
		if !digits() {
			return false
		}
	}
	if s != "" && (s[0] == 'e' || s[0] == 'E') {
		s = s[1:]
		if s != "" && (s[0] == '+' || s[0] == '-') {
			s = s[1:]
		}
		if !digits() {
			return false
		}
	}
	return s == ""
}

// Message is an HTTP-shaped call as it was received, for request caveats.
// Every field is the exact bytes of the wire, before any decoding.
type Message struct {
	Method      string            // as in the request line
	Authority   string            // Host or :authority
	Target      string            // origin-form request target, with its query
	ContentType string            // the Content-Type field's value, or empty
	BodyDigest  [sha256.Size]byte // SHA-256 of the body; of nothing if there is none
	Nonce       string            // the nonce that the caller named for this call, or empty
}

// HolderMethod tells how a holder proves its key.
type HolderMethod uint8

// The methods of a holder caveat.
const (
	HolderDPoP HolderMethod = 1 + iota // "jkt": SHA-256 JWK thumbprint (RFC 7638, RFC 9449)
	HolderMTLS                         // "x5t": SHA-256 of the client certificate's DER (RFC 8705)
)

// HolderKey names a key by how it is proved and its SHA-256 thumbprint.
type HolderKey struct {
	Method     HolderMethod
	Thumbprint [32]byte
}

// String returns "jkt:" or "x5t:" and the thumbprint in unpadded base64url, as
// it stands in a holder caveat.
func (k HolderKey) String() string {
	prefix := "jkt:"
	if k.Method == HolderMTLS {
		prefix = "x5t:"
	}
	return prefix + base64.RawURLEncoding.EncodeToString(k.Thumbprint[:])
}

// ParseHolderKey is the inverse of HolderKey.String. Errors: ErrBadID.
func ParseHolderKey(s string) (HolderKey, error) {
	var k HolderKey
	switch {
	case strings.HasPrefix(s, "jkt:"):
		k.Method = HolderDPoP
	case strings.HasPrefix(s, "x5t:"):
		k.Method = HolderMTLS
	default:
		return HolderKey{}, ErrBadID
	}
	if len(s) != 4+43 {
		return HolderKey{}, ErrBadID
	}
	n, err := base64.RawURLEncoding.Strict().Decode(k.Thumbprint[:], []byte(s[4:]))
	if err != nil || n != len(k.Thumbprint) {
		return HolderKey{}, ErrBadID
	}
	return k, nil
}

// HolderProof is the evidence of possession that came with a call. An
// implementation compares the thumbprint before it does anything expensive,
// checks a signature at most once, and is used by one verification at a time.
type HolderProof interface {
	// Prove returns nil if the call proves possession of key. Otherwise its
	// error carries CodeHolderProof or CodeReplayed.
	Prove(ctx context.Context, key HolderKey) error
}
