package pop

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"time"
)

// DefaultNonceLifetime is how long a nonce is accepted unless NewNonces is told
// otherwise. It is at least half of it, at most all.
const DefaultNonceLifetime = 2 * time.Minute

// Nonces makes and checks the nonces of a server (RFC 9449 section 8) without
// remembering any: a nonce is a stretch of time and a MAC over it, so that
// every instance with the same key accepts what another one gave out. What a
// nonce is for: a proof cannot have been made before the server gave it out,
// whatever the holder's clock says. It is not a secret and not single-use; the
// jti is. It is safe for concurrent use.
type Nonces struct {
	key    [32]byte
	stride int64 // seconds
}

// NewNonces returns nonces under a key of at least 32 bytes that the instances
// of one service share. A nil key is one of this process alone, from
// crypto/rand: its callers are then asked for a new nonce when another instance
// serves them. Lifetime 0 is DefaultNonceLifetime; it is at least 10 s.
func NewNonces(key []byte, lifetime time.Duration) (*Nonces, error) {
	if lifetime == 0 {
		lifetime = DefaultNonceLifetime
	}
	if lifetime < 10*time.Second || lifetime > time.Hour {
		return nil, errors.New("pop: a nonce lives 10 s to 1 h")
	}
	n := &Nonces{stride: int64(lifetime / (2 * time.Second))}
	switch {
	case key == nil:
		rand.Read(n.key[:])
	case len(key) < 32:
		return nil, errors.New("pop: a nonce key has at least 32 bytes")
	default:
		n.key = sha256.Sum256(append([]byte("writ/v1/dpop-nonce-key\x00"), key...))
	}
	return n, nil
}

// String never shows the key.
func (n *Nonces) String() string { return "(nonces redacted)" }

// GoString never shows the key.
func (n *Nonces) GoString() string { return n.String() }

const nonceSize = 32 // characters: 8 bytes of time, 16 of MAC

// At is the nonce to give out at now.
func (n *Nonces) At(now time.Time) string {
	return string(n.append(nil, now.Unix()/n.stride))
}

func (n *Nonces) append(dst []byte, stretch int64) []byte {
	var b [8 + sha256.Size]byte
	binary.BigEndian.PutUint64(b[:8], uint64(stretch))
	h := hmac.New(sha256.New, n.key[:])
	h.Write([]byte("writ/v1/dpop-nonce\x00"))
	h.Write(b[:8])
	h.Sum(b[:8])
	return strict.AppendEncode(dst, b[:24])
}

// Check reports whether nonce was given out, for now or for the stretch of
// time before, and whether it is the newest.
func (n *Nonces) Check(nonce string, now time.Time) (ok, newest bool) {
	if len(nonce) != nonceSize {
		return false, false
	}
	var buf [nonceSize]byte
	stretch := now.Unix() / n.stride
	if hmac.Equal([]byte(nonce), n.append(buf[:0], stretch)) {
		return true, true
	}
	return hmac.Equal([]byte(nonce), n.append(buf[:0], stretch-1)), false
}
