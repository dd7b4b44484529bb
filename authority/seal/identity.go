package seal

import (
	"crypto/ecdh"
	"crypto/hpke"
	"fmt"
	"io"
)

const (
	tagWrap     = "writ/v1/wrap"
	wrapVersion = 1
	// WrappedSize is the length of a wrapped cluster key, in bytes: version, encapsulated X25519 key, key, tag.
	WrappedSize = 1 + 32 + KeySize + tagSize
)

// Recipient is the public half of an [Identity]: the one for whom a cluster key is wrapped. Recipients are compared with ==; the
// zero Recipient is nobody.
type Recipient struct{ key [32]byte }

// Bytes returns the X25519 public key.
func (r Recipient) Bytes() []byte { return r.key[:] }

// RecipientFromBytes reads a recipient from an X25519 public key of 32 bytes.
func RecipientFromBytes(b []byte) (Recipient, error) {
	if len(b) != 32 || [32]byte(b) == [32]byte{} {
		return Recipient{}, fmt.Errorf("%w: recipient", ErrMalformed)
	}
	return Recipient{key: [32]byte(b)}, nil
}

// Identity is a private key that unwraps cluster keys: a node's, or the offline recovery identity.
type Identity struct {
	redacted
	box       *box
	recipient Recipient
}

// GenerateIdentity draws an identity from rand.
func GenerateIdentity(rand io.Reader) (*Identity, error) {
	b, err := randomBox(rand)
	if err != nil {
		return nil, err
	}
	return newIdentity(b)
}

func identityFromBytes(key []byte) (*Identity, error) {
	b, err := newBox(key)
	if err != nil {
		return nil, err
	}
	return newIdentity(b)
}

func newIdentity(b *box) (*Identity, error) {
	id := &Identity{box: b}
	err := b.use(func(key []byte) error {
		private, err := ecdh.X25519().NewPrivateKey(key)
		if err != nil {
			return err
		}
		id.recipient.key = [32]byte(private.PublicKey().Bytes())
		return nil
	})
	return id, err
}

// Recipient returns the identity's public half.
func (id *Identity) Recipient() Recipient { return id.recipient }

// Destroy overwrites the private key; Unwrap fails with [ErrDestroyed] after that.
func (id *Identity) Destroy() { id.box.destroy() }

// Wrap encrypts a cluster key to a recipient: version ‖ HPKE, single-shot, with the label (its epoch that of the cluster key) as
// info. Its randomness is the system's: crypto/hpke takes no other. The result has [WrappedSize] bytes.
func Wrap(to Recipient, l Label, k *ClusterKey) ([]byte, error) {
	info, err := l.append([]byte{wrapVersion}, tagWrap)
	if err != nil {
		return nil, err
	}
	public, err := hpke.DHKEM(ecdh.X25519()).NewPublicKey(to.key[:])
	if err != nil {
		return nil, fmt.Errorf("%w: recipient", ErrMalformed)
	}
	wrapped := []byte{wrapVersion}
	err = k.box.use(func(key []byte) error {
		sealed, err := hpke.Seal(public, hpke.HKDFSHA256(), hpke.AES256GCM(), info, key)
		if err != nil {
			return fmt.Errorf("%w: recipient: %v", ErrMalformed, err) // a public key of low order
		}
		wrapped = append(wrapped, sealed...)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return wrapped, nil
}

// Unwrap returns the cluster key that was wrapped for this identity under the same label. Errors: [ErrMalformed], [ErrRefused],
// [ErrDestroyed].
func (id *Identity) Unwrap(l Label, wrapped []byte) (*ClusterKey, error) {
	if len(wrapped) != WrappedSize || wrapped[0] != wrapVersion {
		return nil, fmt.Errorf("%w: wrapped key", ErrMalformed)
	}
	info, err := l.append([]byte{wrapVersion}, tagWrap)
	if err != nil {
		return nil, err
	}
	var unwrapped *ClusterKey
	err = id.box.use(func(key []byte) error {
		private, err := hpke.DHKEM(ecdh.X25519()).NewPrivateKey(key)
		if err != nil {
			return err
		}
		plaintext, err := hpke.Open(private, hpke.HKDFSHA256(), hpke.AES256GCM(), info, wrapped[1:])
		if err != nil {
			return ErrRefused
		}
		defer clear(plaintext)
		b, err := newBox(plaintext)
		unwrapped = &ClusterKey{box: b}
		return err
	})
	if err != nil {
		return nil, err
	}
	return unwrapped, nil
}
