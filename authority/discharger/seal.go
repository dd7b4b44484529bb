package discharger

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"io"

	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats/attest"
)

// sealInfo separates the key of sealed challenges from every other use of the
// discharger's seed.
const sealInfo = "writ/v1/challenge"

// sealVersion history: 1 is the first.
const sealVersion = 1

// sealer seals what a challenge has to be remembered by: AES-256-GCM with a
// random nonce, under a key that follows from the discharger's own, so that
// any node that has it can take the answer.
type sealer struct {
	aead cipher.AEAD
	rand io.Reader
}

func newSealer(key *capability.DischargerKey, rand io.Reader) (*sealer, error) {
	seed := key.Seed()
	defer clear(seed[:])
	k, err := hkdf.Key(sha256.New, seed[:], nil, sealInfo, 32)
	if err != nil {
		return nil, err
	}
	defer clear(k)
	block, err := aes.NewCipher(k)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	return &sealer{aead, rand}, nil
}

// begun is a challenge under way.
type begun struct {
	caveat  []byte // empty for an enrolment
	by      string // who asked for an enrolment
	pending *attest.Pending
}

// seal returns version ‖ nonce ‖ ciphertext. The plaintext is, each with a
// length of two bytes before it, the caveat id, by, and the encoded pending.
func (s *sealer) seal(b *begun) ([]byte, error) {
	pending, err := b.pending.Encode()
	if err != nil {
		return nil, err
	}
	var plain []byte
	for _, field := range [][]byte{b.caveat, []byte(b.by), pending} {
		plain = binary.BigEndian.AppendUint16(plain, uint16(len(field)))
		plain = append(plain, field...)
	}
	out := make([]byte, 1+s.aead.NonceSize(), 1+s.aead.NonceSize()+len(plain)+s.aead.Overhead())
	out[0] = sealVersion
	if _, err := io.ReadFull(s.rand, out[1:]); err != nil {
		return nil, err
	}
	out = s.aead.Seal(out, out[1:], plain, out[:1])
	if len(out) > attest.MaxState {
		return nil, attest.Refuse(attest.ReasonTooLarge, "the challenge would be %d bytes, at most %d", len(out), attest.MaxState)
	}
	return out, nil
}

// open is the inverse of seal. Errors: *attest.Refusal with ReasonChallenge.
func (s *sealer) open(state []byte) (*begun, error) {
	refused := func() (*begun, error) {
		return nil, attest.Refuse(attest.ReasonChallenge, "it is not one of this discharger's")
	}
	n := 1 + s.aead.NonceSize()
	if len(state) < n || len(state) > attest.MaxState || state[0] != sealVersion {
		return refused()
	}
	plain, err := s.aead.Open(nil, state[1:n], state[n:], state[:1])
	if err != nil {
		return refused()
	}
	var fields [3][]byte
	for i := range fields {
		if len(plain) < 2 || len(plain)-2 < int(binary.BigEndian.Uint16(plain)) {
			return refused()
		}
		size := 2 + int(binary.BigEndian.Uint16(plain))
		fields[i], plain = plain[2:size], plain[size:]
	}
	if len(plain) > 0 {
		return refused()
	}
	p, err := attest.DecodePending(fields[2])
	if err != nil {
		return nil, err
	}
	return &begun{caveat: fields[0], by: string(fields[1]), pending: p}, nil
}
