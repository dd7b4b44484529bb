package seal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"golang.org/x/crypto/argon2"
)

// Argon2id's cost for new files: the second recommendation of RFC 9106, section 4.
const (
	argonTime    = 3
	argonMemory  = 64 << 10 // KiB
	argonThreads = 4
)

// Bounds of the cost that a file may ask for, so that opening a hostile one does not exhaust the machine.
const (
	maxArgonTime    = 16
	maxArgonMemory  = 1 << 20 // KiB: 1 GiB
	maxArgonThreads = 16
)

const (
	saltSize         = 16
	argonHeader      = 1 + 4 + 4 + 1 + saltSize // version, time, memory, threads, salt
	passphraseSize   = argonHeader + nonceSize + KeySize + tagSize
	maxPassphrase    = 1 << 10
	tagPassphrase    = "writ/v1/identity"
	passphraseFormat = 1
)

// PassphraseProtector encrypts an identity with AES-256-GCM under Argon2id (RFC 9106) of a passphrase. The cost is stored with it.
type PassphraseProtector struct {
	rand       io.Reader
	passphrase func() ([]byte, error)
	cost       argonCost
}

type argonCost struct {
	time, memory uint32
	threads      uint8
}

// NewPassphraseProtector returns a protector that draws salt and nonce from rand, and asks for the passphrase when it needs it:
// 1 to 1,024 bytes.
func NewPassphraseProtector(rand io.Reader, passphrase func() ([]byte, error)) *PassphraseProtector {
	return &PassphraseProtector{rand, passphrase, argonCost{argonTime, argonMemory, argonThreads}}
}

// Kind returns [KindPassphrase].
func (*PassphraseProtector) Kind() string { return KindPassphrase }

// Protect encrypts the private key: format ‖ time ‖ memory ‖ threads ‖ salt ‖ nonce ‖ ciphertext. All but the ciphertext, and the
// recipient, are associated data.
func (p *PassphraseProtector) Protect(recipient Recipient, private []byte) ([]byte, error) {
	if len(private) != KeySize {
		return nil, fmt.Errorf("%w: private key of %d bytes", ErrMalformed, len(private))
	}
	b := make([]byte, 0, passphraseSize)
	b = append(b, passphraseFormat)
	b = binary.BigEndian.AppendUint32(b, p.cost.time)
	b = binary.BigEndian.AppendUint32(b, p.cost.memory)
	b = append(b, p.cost.threads)
	b = b[:argonHeader+nonceSize]
	if _, err := io.ReadFull(p.rand, b[argonHeader-saltSize:]); err != nil {
		return nil, fmt.Errorf("reading randomness: %w", err)
	}
	key, err := p.key(p.cost, b[argonHeader-saltSize:argonHeader])
	if err != nil {
		return nil, err
	}
	defer clear(key)
	aead, err := newGCM(key)
	if err != nil {
		return nil, err
	}
	return aead.Seal(b, b[argonHeader:], private, passphraseAD(recipient, b)), nil
}

// Unprotect decrypts what Protect made. Errors: [ErrPassphrase], [ErrMalformed], or the passphrase function's own.
func (p *PassphraseProtector) Unprotect(recipient Recipient, b []byte) ([]byte, error) {
	if len(b) != passphraseSize || b[0] != passphraseFormat {
		return nil, fmt.Errorf("%w: protected identity", ErrMalformed)
	}
	cost := argonCost{binary.BigEndian.Uint32(b[1:]), binary.BigEndian.Uint32(b[5:]), b[9]}
	if cost.time < 1 || cost.time > maxArgonTime || cost.threads < 1 || cost.threads > maxArgonThreads ||
		cost.memory < 8*uint32(cost.threads) || cost.memory > maxArgonMemory {
		return nil, fmt.Errorf("%w: protected identity asks for Argon2id of time %d, %d KiB, %d threads", ErrMalformed,
			cost.time, cost.memory, cost.threads)
	}
	header := b[:argonHeader+nonceSize]
	key, err := p.key(cost, b[argonHeader-saltSize:argonHeader])
	if err != nil {
		return nil, err
	}
	defer clear(key)
	aead, err := newGCM(key)
	if err != nil {
		return nil, err
	}
	private, err := aead.Open(nil, b[argonHeader:argonHeader+nonceSize], b[len(header):], passphraseAD(recipient, header))
	if err != nil {
		return nil, ErrPassphrase
	}
	return private, nil
}

func (p *PassphraseProtector) key(cost argonCost, salt []byte) ([]byte, error) {
	passphrase, err := p.passphrase()
	if err != nil {
		return nil, fmt.Errorf("reading the passphrase: %w", err)
	}
	if len(passphrase) == 0 {
		return nil, errors.New("the passphrase is empty")
	}
	if len(passphrase) > maxPassphrase {
		return nil, fmt.Errorf("the passphrase is longer than %d bytes", maxPassphrase)
	}
	return argon2.IDKey(passphrase, salt, cost.time, cost.memory, cost.threads, KeySize), nil
}

func passphraseAD(recipient Recipient, header []byte) []byte {
	ad := append([]byte(tagPassphrase), recipient.key[:]...)
	return append(ad, header...)
}
