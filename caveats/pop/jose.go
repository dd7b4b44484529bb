package pop

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/base64"

	"github.com/writ-dev/writ/capability"
)

// MaxProof is the most characters of a proof.
const MaxProof = 8 << 10

// Algorithm is a kind of key, and what it signs with.
type Algorithm uint8

// The algorithms of proofs. There is no other: no RSA, no symmetric one, no "none".
const (
	Ed25519 Algorithm = 1 + iota // "EdDSA" (RFC 8037), or "Ed25519" (RFC 9864), with crv Ed25519
	ES256                        // ECDSA with P-256 and SHA-256 (RFC 7518 section 3.4)
)

// String is the algorithm as a proof's alg names it.
func (a Algorithm) String() string {
	switch a {
	case Ed25519:
		return "EdDSA"
	case ES256:
		return "ES256"
	}
	return "none"
}

// Algorithms are the values of alg that a Verifier accepts, as they stand in a
// challenge.
const Algorithms = "ES256 EdDSA Ed25519"

func malformed(detail string) error {
	return &capability.Refusal{Code: capability.CodeHolderProof, Detail: "proof: " + detail}
}

// publicKey is a JWK (RFC 7517) of one of the two kinds.
type publicKey struct {
	alg  Algorithm
	x, y [32]byte // y of P-256 only
}

// readKey reads a JWK. One with any private part is refused: whoever sends
// that has shown it to everybody on the way.
func readKey(value []byte) (k publicKey, err error) {
	if value[0] != '{' {
		return k, malformed("jwk is no object")
	}
	var kty, crv []byte
	var hasX, hasY bool
	for m := nested(value); ; {
		name, value, err := m.next()
		if err != nil {
			return k, err
		}
		if name == nil {
			break
		}
		ok := true
		switch string(name) {
		case "kty":
			kty, ok = text(value)
		case "crv":
			crv, ok = text(value)
		case "x":
			k.x, ok = decode32(value)
			hasX = ok
		case "y":
			k.y, ok = decode32(value)
			hasY = ok
		case "d", "k", "p", "q", "dp", "dq", "qi", "oth":
			return k, malformed("jwk holds a private key")
		}
		if !ok {
			return k, malformed("jwk cannot be read")
		}
	}
	switch {
	case string(kty) == "OKP" && string(crv) == "Ed25519" && hasX && !hasY:
		k.alg = Ed25519
	case string(kty) == "EC" && string(crv) == "P-256" && hasX && hasY:
		k.alg = ES256
	default:
		return k, malformed("jwk is neither an Ed25519 nor a P-256 key")
	}
	return k, nil
}

// appendJWK appends the JWK with its required members in lexicographic order
// and nothing else, which is also what a thumbprint is taken of (RFC 7638
// section 3, RFC 8037 section 2).
func (k *publicKey) appendJWK(b []byte) []byte {
	if k.alg == ES256 {
		b = append(b, `{"crv":"P-256","kty":"EC","x":"`...)
		b = base64.RawURLEncoding.AppendEncode(b, k.x[:])
		b = append(b, `","y":"`...)
		b = base64.RawURLEncoding.AppendEncode(b, k.y[:])
	} else {
		b = append(b, `{"crv":"Ed25519","kty":"OKP","x":"`...)
		b = base64.RawURLEncoding.AppendEncode(b, k.x[:])
	}
	return append(b, `"}`...)
}

// thumbprint is the SHA-256 JWK thumbprint (RFC 7638).
func (k *publicKey) thumbprint() [32]byte {
	var buf [160]byte
	return sha256.Sum256(k.appendJWK(buf[:0]))
}

// verify reports whether sig signs message.
func (k *publicKey) verify(message []byte, sig *[64]byte) bool {
	if k.alg == Ed25519 {
		return ed25519.Verify(k.x[:], message, sig[:])
	}
	var point [65]byte
	point[0] = 4
	copy(point[1:], k.x[:])
	copy(point[33:], k.y[:])
	pub, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), point[:])
	if err != nil {
		return false // not on the curve
	}
	hash := sha256.Sum256(message)
	// In ASN.1 (SEQUENCE of two INTEGERs), as the package takes it: by way of
	// big.Int it would cost thirty allocations.
	var der [72]byte
	b := appendInteger(appendInteger(der[:2], sig[:32]), sig[32:])
	b[0], b[1] = 0x30, byte(len(b)-2)
	return ecdsa.VerifyASN1(pub, hash[:], b)
}

// appendInteger appends a big-endian number as an ASN.1 INTEGER in DER.
func appendInteger(b, n []byte) []byte {
	for len(n) > 1 && n[0] == 0 {
		n = n[1:]
	}
	if n[0]&0x80 != 0 { // not a negative one
		return append(append(b, 0x02, byte(len(n)+1), 0), n...)
	}
	return append(append(b, 0x02, byte(len(n))), n...)
}

// signed is a JWS in compact form (RFC 7515 section 7.1), read and not verified.
type signed struct {
	message []byte    // what is signed
	payload []byte    // decoded
	key     publicKey // of the header's jwk
	sig     [64]byte
	session []byte // the header's session member, or nil
}

// sessionMember is where a proof by a session key carries the statement of the
// key that a holder caveat names.
const sessionMember = "dev.writ/session"

// parse reads a compact JWS of this type. It keeps compact, and buf for what it
// decodes, which is less.
func parse(compact, buf []byte, typ string) (s signed, err error) {
	if len(compact) > MaxProof {
		return s, malformed("longer than 8 KiB")
	}
	first := bytes.IndexByte(compact, '.')
	last := bytes.LastIndexByte(compact, '.')
	if first < 0 || first == last || bytes.IndexByte(compact[first+1:last], '.') >= 0 {
		return s, malformed("not three parts")
	}
	s.message = compact[:last]
	if !decodeExactly(s.sig[:], compact[last+1:]) {
		return s, malformed("its signature is not 64 bytes in base64url")
	}
	header, ok := decode(buf, compact[:first])
	if !ok {
		return s, malformed("its header is not base64url")
	}
	if s.payload, ok = decode(header[len(header):], compact[first+1:last]); !ok {
		return s, malformed("its payload is not base64url")
	}
	return s, s.readHeader(header, typ)
}

func (s *signed) readHeader(header []byte, typ string) error {
	m, err := object(header)
	if err != nil {
		return err
	}
	var gotType, alg []byte
	for {
		name, value, err := m.next()
		if err != nil {
			return err
		}
		if name == nil {
			break
		}
		ok := true
		switch string(name) {
		case "typ":
			gotType, ok = text(value)
		case "alg":
			alg, ok = text(value)
		case "jwk":
			if s.key, err = readKey(value); err != nil {
				return err
			}
		case "crit":
			return malformed("a critical extension that nobody here knows")
		case sessionMember:
			s.session, ok = text(value)
		}
		if !ok {
			return malformed("its header cannot be read")
		}
	}
	switch {
	case string(gotType) != typ:
		return malformed("its typ is not " + typ)
	case s.key.alg == 0:
		return malformed("no jwk")
	case s.key.alg == ES256 && string(alg) == "ES256":
	case s.key.alg == Ed25519 && (string(alg) == "EdDSA" || string(alg) == "Ed25519"):
	default:
		return malformed("its alg is not one that its key signs with")
	}
	return nil
}

// verify reports whether the signature is that of the header's key.
func (s *signed) verify() bool { return s.key.verify(s.message, &s.sig) }
