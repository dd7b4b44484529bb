package capability

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"log/slog"
)

// RootKey is the 32-byte secret that an audience's tokens are minted and
// verified with. It prints redacted and cannot be compared with ==.
type RootKey struct {
	_ [0]func() // not comparable

	secret  [32]byte
	derived [32]byte // HMAC(keyGen, secret): the first key of the chain, as macaroons have it
}

// NewRootKey takes a secret of 32 uniformly random bytes.
func NewRootKey(secret [32]byte) *RootKey {
	k := &RootKey{secret: secret}
	m := hmac.New(sha256.New, []byte("macaroons-key-generator"))
	m.Write(secret[:])
	m.Sum(k.derived[:0])
	return k
}

const redacted = "(root key redacted)"

// String, GoString, Format, LogValue and MarshalText never show the secret.
func (k RootKey) String() string               { return redacted }
func (k RootKey) GoString() string             { return redacted }
func (k RootKey) Format(f fmt.State, _ rune)   { _, _ = f.Write([]byte(redacted)) }
func (k RootKey) LogValue() slog.Value         { return slog.StringValue(redacted) }
func (k RootKey) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// Equal reports, in constant time, whether both are the same key.
func (k *RootKey) Equal(o *RootKey) bool {
	return subtle.ConstantTimeCompare(k.secret[:], o.secret[:]) == 1
}
