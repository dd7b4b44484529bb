package caveats

import (
	"crypto/sha256"
	"encoding/binary"

	"github.com/writ-dev/writ/capability"
)

// requestTag separates request hashes from every other use of SHA-256 here.
const requestTag = "writ/v1/request\x00"

// RequestHash is the hash that a request caveat names. Every field is taken
// as it is on the wire, before any decoding, and preceded by its length, so
// that no two calls share an encoding:
//
//	hash  = SHA-256( tag field(method) field(authority) field(target)
//	                 field(content-type) body-digest field(nonce) )
//	tag   = "writ/v1/request" %x00                  ; 16 bytes
//	field = length octets                           ; length: 4 bytes, big-endian
//	body-digest = SHA-256( body )                   ; 32 bytes, of nothing if there is none
//
// method is case-sensitive (RFC 9110 section 9.1); authority is the Host field
// or :authority; target is the request target in origin form, path and query;
// content-type is the field's value, empty if there is none; nonce is the
// value of the field that NonceHeader names, empty if there is none. The
// caveat holds the hash in unpadded base64url.
//
// It allocates only for a request whose fields take more than 900 bytes.
func RequestHash(m *capability.Message) [sha256.Size]byte {
	b := make([]byte, 0, 1024)
	b = append(b, requestTag...)
	b = appendField(b, m.Method)
	b = appendField(b, m.Authority)
	b = appendField(b, m.Target)
	b = appendField(b, m.ContentType)
	b = append(b, m.BodyDigest[:]...)
	b = appendField(b, m.Nonce)
	return sha256.Sum256(b)
}

func appendField(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...)
}
