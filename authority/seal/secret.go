package seal

import (
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
)

// KeySize is the length of every secret of this package, in bytes.
const KeySize = 32

var (
	// ErrRefused says that a sealed or wrapped value does not open: another key, another label, or altered bytes. Which of these is
	// not said, because AEAD cannot tell.
	ErrRefused = errors.New("sealed value does not open under this key and label")
	// ErrMalformed says that an input is not in a form of this package.
	ErrMalformed = errors.New("malformed")
	// ErrDestroyed says that the key was destroyed, or never set.
	ErrDestroyed = errors.New("key was destroyed")
	// ErrPassphrase says that an identity file does not open with the passphrase given.
	ErrPassphrase = errors.New("wrong passphrase, or the identity file was altered")
	// ErrPermissions says that an identity file can be reached by others than its owner.
	ErrPermissions = errors.New("identity file is accessible to others than its owner")
	// ErrKind says that an identity file is protected in a way for which no protector was given.
	ErrKind = errors.New("no protector for this kind of identity file")
)

const redactedText = "[redacted]"

// redacted makes what embeds it print as "[redacted]" and refuse ==.
type redacted struct{ _ [0]func() }

func (redacted) String() string               { return redactedText }
func (redacted) GoString() string             { return redactedText }
func (redacted) Format(f fmt.State, _ rune)   { io.WriteString(f, redactedText) }
func (redacted) LogValue() slog.Value         { return slog.StringValue(redactedText) }
func (redacted) MarshalJSON() ([]byte, error) { return []byte(`"` + redactedText + `"`), nil }
func (redacted) MarshalText() ([]byte, error) { return []byte(redactedText), nil }

// box holds key bytes behind a pointer, so that fmt, which cannot call methods on a field that is not exported, prints an address.
type box struct {
	mu  sync.RWMutex
	key *[KeySize]byte // guarded by mu; nil once destroyed
}

func newBox(b []byte) (*box, error) {
	if len(b) != KeySize {
		return nil, fmt.Errorf("%w: key of %d bytes, not %d", ErrMalformed, len(b), KeySize)
	}
	key := [KeySize]byte(b)
	return &box{key: &key}, nil
}

func randomBox(rand io.Reader) (*box, error) {
	var key [KeySize]byte
	if _, err := io.ReadFull(rand, key[:]); err != nil {
		return nil, fmt.Errorf("reading randomness: %w", err)
	}
	return &box{key: &key}, nil
}

// use calls f with the key, which f must not keep.
func (b *box) use(f func(key []byte) error) error {
	if b == nil {
		return ErrDestroyed
	}
	b.mu.RLock()
	defer b.mu.RUnlock()
	if b.key == nil {
		return ErrDestroyed
	}
	return f(b.key[:])
}

func (b *box) destroy() {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.key != nil {
		clear(b.key[:])
		b.key = nil
	}
}

// Secret is 32 bytes of key material. It is safe for concurrent use.
type Secret struct {
	redacted
	box *box
}

// NewSecret draws a secret from rand.
func NewSecret(rand io.Reader) (*Secret, error) {
	b, err := randomBox(rand)
	if err != nil {
		return nil, err
	}
	return &Secret{box: b}, nil
}

// SecretFromBytes copies a secret of [KeySize] bytes; any other length is [ErrMalformed].
func SecretFromBytes(b []byte) (*Secret, error) {
	box, err := newBox(b)
	if err != nil {
		return nil, err
	}
	return &Secret{box: box}, nil
}

// Expose returns a copy of the secret's bytes. It fails with [ErrDestroyed].
func (s *Secret) Expose() ([]byte, error) {
	var b []byte
	err := s.box.use(func(key []byte) error {
		b = append(b, key...)
		return nil
	})
	return b, err
}

// Destroy overwrites the secret. What was derived from it lives on.
func (s *Secret) Destroy() { s.box.destroy() }

// Derivation tags. They are permanent: a changed tag is another key.
const (
	tagAudience = "writ/v1/audience"
	tagPurpose  = "writ/v1/purpose"
)

// AudienceKey derives the key of an audience from the master of an epoch:
//
//	HKDF-SHA256(master, no salt, "writ/v1/audience" ‖ epoch ‖ generation ‖ len(audience) ‖ audience)
//
// with the three integers as 4 big-endian bytes (RFC 5869). It panics if the master was destroyed: no key is better than a
// known one.
func AudienceKey(master *Secret, epoch, generation uint32, audience string) [32]byte {
	info := append(make([]byte, 0, len(tagAudience)+12+len(audience)), tagAudience...)
	info = binary.BigEndian.AppendUint32(info, epoch)
	info = binary.BigEndian.AppendUint32(info, generation)
	info = binary.BigEndian.AppendUint32(info, uint32(len(audience)))
	return [32]byte(derive(master, append(info, audience...)))
}

// PurposeKey derives a secret for one purpose and epoch, such as a signing key's seed:
//
//	HKDF-SHA256(secret, no salt, "writ/v1/purpose" ‖ epoch ‖ len(purpose) ‖ purpose)
//
// with the integers as in [AudienceKey]. It panics if the secret was destroyed.
func PurposeKey(secret *Secret, epoch uint32, purpose string) *Secret {
	info := append(make([]byte, 0, len(tagPurpose)+8+len(purpose)), tagPurpose...)
	info = binary.BigEndian.AppendUint32(info, epoch)
	info = binary.BigEndian.AppendUint32(info, uint32(len(purpose)))
	key := [KeySize]byte(derive(secret, append(info, purpose...)))
	return &Secret{box: &box{key: &key}}
}

func derive(secret *Secret, info []byte) []byte {
	var key []byte
	err := secret.box.use(func(k []byte) (err error) {
		key, err = hkdf.Key(sha256.New, k, nil, string(info), KeySize)
		return err
	})
	if err != nil {
		panic("seal: deriving a key: " + err.Error())
	}
	return key
}
