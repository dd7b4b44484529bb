package attest

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
)

// Transcript is everything that a piece of evidence is for.
type Transcript struct {
	Audience      string
	ChallengeID   []byte
	Nonce         []byte
	CaveatHash    [sha256.Size]byte // SHA-256 of the caveat id, which is empty for an enrolment
	EKName        []byte            // a TPM Name: algorithm and digest (Part 1, section 16)
	AKName        []byte
	HolderName    []byte
	Policy        string
	PolicyVersion uint64
	PostureHash   [sha256.Size]byte // SHA-256 of the posture statement as sent
}

// transcriptTag opens the preimage and is its version: 14 bytes.
const transcriptTag = "writ/v1/attest"

// Hash returns T:
//
//	T     = SHA-256( tag field(audience) field(challenge id) field(nonce) field(caveat hash)
//	                 field(EK name) field(AK name) field(holder key name)
//	                 field(policy) version field(posture hash) )
//	tag     = "writ/v1/attest"
//	field   = length octets        ; length: 4 bytes, big-endian
//	version = 8 bytes, big-endian
func (t *Transcript) Hash() [sha256.Size]byte {
	b := make([]byte, 0, 512)
	b = append(b, transcriptTag...)
	b = appendField(b, []byte(t.Audience))
	for _, f := range [][]byte{t.ChallengeID, t.Nonce, t.CaveatHash[:], t.EKName, t.AKName, t.HolderName, []byte(t.Policy)} {
		b = appendField(b, f)
	}
	b = binary.BigEndian.AppendUint64(b, t.PolicyVersion)
	b = appendField(b, t.PostureHash[:])
	return sha256.Sum256(b)
}

func appendField(b, f []byte) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(f))), f...)
}

// QuoteData is the qualifying data of the quote: SHA-256("quote" ‖ T).
func QuoteData(t [sha256.Size]byte) [sha256.Size]byte {
	return sha256.Sum256(append([]byte("quote"), t[:]...))
}

// CertifyData is the qualifying data of the certification: SHA-256("certify" ‖ T).
func CertifyData(t [sha256.Size]byte) [sha256.Size]byte {
	return sha256.Sum256(append([]byte("certify"), t[:]...))
}

// Activation is HMAC-SHA-256(secret, T): that the holder's TPM gave up the
// challenge's secret.
func Activation(secret []byte, t [sha256.Size]byte) []byte {
	mac := hmac.New(sha256.New, secret)
	mac.Write(t[:])
	return mac.Sum(nil)
}
