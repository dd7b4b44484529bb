package capability

import (
	"encoding/hex"
	"errors"
	"time"
)

// ErrBadID is returned by the Parse functions of identifiers.
var ErrBadID = errors.New("malformed id")

// TokenID is a token's identity: a UUIDv7 (RFC 9562 section 5.7), whose time
// is the authority's stamp of issue.
type TokenID [16]byte

// String returns the UUID in its canonical, lower-case form.
func (id TokenID) String() string {
	var b [36]byte
	hex.Encode(b[0:8], id[0:4])
	b[8] = '-'
	hex.Encode(b[9:13], id[4:6])
	b[13] = '-'
	hex.Encode(b[14:18], id[6:8])
	b[18] = '-'
	hex.Encode(b[19:23], id[8:10])
	b[23] = '-'
	hex.Encode(b[24:36], id[10:16])
	return string(b[:])
}

// MarshalText returns the canonical UUID.
func (id TokenID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText accepts the canonical form only. Errors: ErrBadID.
func (id *TokenID) UnmarshalText(b []byte) error {
	v, err := ParseTokenID(string(b))
	*id = v
	return err
}

// ParseTokenID accepts the canonical, lower-case UUID form only.
func ParseTokenID(s string) (TokenID, error) {
	var id TokenID
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return id, ErrBadID
	}
	h := s[0:8] + s[9:13] + s[14:18] + s[19:23] + s[24:36]
	if err := decodeLowerHex(id[:], h); err != nil {
		return TokenID{}, err
	}
	return id, nil
}

// Time is the moment of issue, in UTC, to the millisecond.
func (id TokenID) Time() time.Time { return time.UnixMilli(id.Millis()).UTC() }

// Millis is the moment of issue in Unix milliseconds.
func (id TokenID) Millis() int64 {
	return int64(id[0])<<40 | int64(id[1])<<32 | int64(id[2])<<24 | int64(id[3])<<16 | int64(id[4])<<8 | int64(id[5])
}

// NewTokenID builds the UUIDv7 for a moment (Unix milliseconds) and ten random
// bytes, of which the version and variant bits are overwritten.
func NewTokenID(millis int64, random [10]byte) TokenID {
	var id TokenID
	for i := range 6 {
		id[i] = byte(millis >> (40 - 8*i))
	}
	copy(id[6:], random[:])
	id[6] = id[6]&0x0f | 0x70
	id[8] = id[8]&0x3f | 0x80
	return id
}

// BranchID names a point of a delegation tree without disclosing the
// credential there: the first 16 bytes of SHA-256(domain tag ‖ signature of
// the chain at a caveat).
type BranchID [16]byte

// String returns 32 lower-case hexadecimal digits.
func (b BranchID) String() string { return hex.EncodeToString(b[:]) }

// MarshalText returns the hexadecimal form.
func (b BranchID) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// UnmarshalText accepts 32 lower-case hexadecimal digits. Errors: ErrBadID.
func (b *BranchID) UnmarshalText(t []byte) error { return decodeLowerHex(b[:], string(t)) }

// ParseBranchID accepts 32 lower-case hexadecimal digits.
func ParseBranchID(s string) (BranchID, error) {
	var b BranchID
	err := decodeLowerHex(b[:], s)
	return b, err
}

// DeviceID names a TPM: the SHA-256 of its endorsement key.
type DeviceID [32]byte

// String returns 64 lower-case hexadecimal digits.
func (d DeviceID) String() string { return hex.EncodeToString(d[:]) }

// MarshalText returns the hexadecimal form.
func (d DeviceID) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText accepts 64 lower-case hexadecimal digits. Errors: ErrBadID.
func (d *DeviceID) UnmarshalText(t []byte) error { return decodeLowerHex(d[:], string(t)) }

// ParseDeviceID accepts 64 lower-case hexadecimal digits.
func ParseDeviceID(s string) (DeviceID, error) {
	var d DeviceID
	err := decodeLowerHex(d[:], s)
	return d, err
}

// decodeLowerHex fills dst from exactly 2*len(dst) lower-case digits: one
// spelling for each id, so that text can be compared as text.
func decodeLowerHex(dst []byte, s string) error {
	if len(s) != 2*len(dst) {
		return ErrBadID
	}
	for i := range dst {
		hi, lo := unhex(s[2*i]), unhex(s[2*i+1])
		if hi > 15 || lo > 15 {
			return ErrBadID
		}
		dst[i] = hi<<4 | lo
	}
	return nil
}

func unhex(c byte) byte {
	switch {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10
	}
	return 0xff
}
