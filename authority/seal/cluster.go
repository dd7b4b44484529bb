package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"fmt"
	"io"
)

const (
	// MaxPlaintext bounds what is sealed at once, in bytes.
	MaxPlaintext = 64 << 10
	// Overhead is how much longer a sealed value is than its plaintext, in bytes.
	Overhead = 1 + nonceSize + tagSize

	maxCluster = 255 // bytes of Label.Cluster
	maxPurpose = 64  // bytes of Label.Purpose

	nonceSize   = 12
	tagSize     = 16
	sealVersion = 1
	tagSeal     = "writ/v1/seal"
)

// Label says what a sealed value is. All of it must be known to open the value, and none of it is stored in the value.
type Label struct {
	Cluster     string // cluster id, 1 to 255 bytes
	Incarnation uint64 // rises when a snapshot is restored
	Purpose     string // such as "master" or "audit", 1 to 64 bytes
	Epoch       uint32 // of the key that is sealed
}

// append encodes the label under a domain tag: lengths as 2, incarnation as 8, epoch as 4 big-endian bytes. Two labels never
// have one encoding, because every field is fixed or carries its length.
func (l Label) append(b []byte, tag string) ([]byte, error) {
	if l.Cluster == "" || len(l.Cluster) > maxCluster || l.Purpose == "" || len(l.Purpose) > maxPurpose {
		return nil, fmt.Errorf("%w: label: cluster id of %d bytes, purpose of %d", ErrMalformed, len(l.Cluster), len(l.Purpose))
	}
	b = append(b, tag...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(l.Cluster)))
	b = append(b, l.Cluster...)
	b = binary.BigEndian.AppendUint64(b, l.Incarnation)
	b = binary.BigEndian.AppendUint16(b, uint16(len(l.Purpose)))
	b = append(b, l.Purpose...)
	return binary.BigEndian.AppendUint32(b, l.Epoch), nil
}

// ClusterKey seals the cluster's key material. It is safe for concurrent use. Nonces are random: rotate the key long before
// 2^32 values are sealed under it (NIST SP 800-38D, section 8.3).
type ClusterKey struct {
	redacted
	box *box
}

// NewClusterKey draws a cluster key from rand.
func NewClusterKey(rand io.Reader) (*ClusterKey, error) {
	b, err := randomBox(rand)
	if err != nil {
		return nil, err
	}
	return &ClusterKey{box: b}, nil
}

// Destroy overwrites the key; every use of it after that fails with [ErrDestroyed].
func (k *ClusterKey) Destroy() { k.box.destroy() }

// Seal encrypts at most [MaxPlaintext] bytes under the label, with a nonce from rand: version ‖ nonce ‖ AES-256-GCM.
func (k *ClusterKey) Seal(rand io.Reader, l Label, plaintext []byte) ([]byte, error) {
	if len(plaintext) > MaxPlaintext {
		return nil, fmt.Errorf("%w: %d bytes to seal", ErrMalformed, len(plaintext))
	}
	ad, err := l.append([]byte{sealVersion}, tagSeal)
	if err != nil {
		return nil, err
	}
	sealed := make([]byte, 1+nonceSize, len(plaintext)+Overhead)
	sealed[0] = sealVersion
	if _, err := io.ReadFull(rand, sealed[1:]); err != nil {
		return nil, fmt.Errorf("reading randomness: %w", err)
	}
	err = k.box.use(func(key []byte) error {
		aead, err := newGCM(key)
		if err != nil {
			return err
		}
		sealed = aead.Seal(sealed, sealed[1:1+nonceSize], plaintext, ad)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return sealed, nil
}

// Open returns what Seal was given under the same label. Errors: [ErrMalformed], [ErrRefused], [ErrDestroyed].
func (k *ClusterKey) Open(l Label, sealed []byte) ([]byte, error) {
	if len(sealed) < Overhead || len(sealed) > MaxPlaintext+Overhead || sealed[0] != sealVersion {
		return nil, fmt.Errorf("%w: sealed value", ErrMalformed)
	}
	ad, err := l.append([]byte{sealVersion}, tagSeal)
	if err != nil {
		return nil, err
	}
	var plaintext []byte
	err = k.box.use(func(key []byte) error {
		aead, err := newGCM(key)
		if err != nil {
			return err
		}
		if plaintext, err = aead.Open(nil, sealed[1:1+nonceSize], sealed[1+nonceSize:], ad); err != nil {
			return ErrRefused
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return plaintext, nil
}

// SealSecret seals a secret as [ClusterKey.Seal] does.
func (k *ClusterKey) SealSecret(rand io.Reader, l Label, s *Secret) (sealed []byte, err error) {
	err = s.box.use(func(key []byte) error {
		sealed, err = k.Seal(rand, l, key)
		return err
	})
	return sealed, err
}

// OpenSecret opens a sealed secret. A sealed value of another length is [ErrMalformed].
func (k *ClusterKey) OpenSecret(l Label, sealed []byte) (*Secret, error) {
	plaintext, err := k.Open(l, sealed)
	if err != nil {
		return nil, err
	}
	defer clear(plaintext)
	return SecretFromBytes(plaintext)
}

func newGCM(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}
