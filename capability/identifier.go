package capability

import (
	"encoding/binary"
	"errors"
	"time"
)

// Identifier is what the minter sets and the MAC covers: identity and the hard
// expiry are read here only, never from a caveat, since anyone can append one.
type Identifier struct {
	Epoch      uint32    // of the audience's master key
	Generation uint32    // of the audience's key within the epoch
	ID         TokenID   // UUIDv7
	NotAfter   time.Time // hard expiry; kept to the millisecond
	Issued     int       // caveats at issue: the issued prefix
	Audience   string    // 1 to MaxAudience bytes of visible ASCII
	Subject    string    // 1 to MaxSubject bytes of visible ASCII
}

// Identity is an Identifier as a verifier holds it: without allocation. The
// byte slices alias the token; do not keep them.
type Identity struct {
	Epoch      uint32
	Generation uint32
	ID         TokenID
	NotAfter   int64 // Unix milliseconds
	Issued     uint8
	Audience   []byte
	Subject    []byte
}

// ErrBadIdentifier is returned for bytes, or fields, that are no identifier of
// a known format version.
var ErrBadIdentifier = errors.New("malformed token identifier")

// identifierVersion history: 1 is the first.
const identifierVersion = 1

// Identifier layout, big-endian: version 1, epoch 4, generation 4, id 16,
// not-after 8 (Unix milliseconds), issued 1, audience length 1, audience,
// subject length 1, subject; nothing after.
const identifierFixed = 1 + 4 + 4 + 16 + 8 + 1

// AppendBinary appends the wire form. Errors: ErrBadIdentifier for a field out
// of bounds.
func (id *Identifier) AppendBinary(b []byte) ([]byte, error) {
	ms := id.NotAfter.UnixMilli()
	if ms <= 0 || ms >= 1<<48 || id.Issued < 0 || id.Issued > MaxCaveats ||
		!ValidName(id.Audience, MaxAudience) || !ValidName(id.Subject, MaxSubject) {
		return b, ErrBadIdentifier
	}
	b = append(b, identifierVersion)
	b = binary.BigEndian.AppendUint32(b, id.Epoch)
	b = binary.BigEndian.AppendUint32(b, id.Generation)
	b = append(b, id.ID[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(ms))
	b = append(b, byte(id.Issued), byte(len(id.Audience)))
	b = append(b, id.Audience...)
	b = append(b, byte(len(id.Subject)))
	return append(b, id.Subject...), nil
}

// ParseIdentity reads the wire form without allocation; the result aliases b.
// Errors: ErrBadIdentifier.
func ParseIdentity(b []byte) (Identity, error) {
	var id Identity
	if len(b) < identifierFixed+2 || b[0] != identifierVersion {
		return Identity{}, ErrBadIdentifier
	}
	id.Epoch = binary.BigEndian.Uint32(b[1:])
	id.Generation = binary.BigEndian.Uint32(b[5:])
	copy(id.ID[:], b[9:25])
	ms := binary.BigEndian.Uint64(b[25:])
	if ms == 0 || ms >= 1<<48 || b[33] > MaxCaveats {
		return Identity{}, ErrBadIdentifier
	}
	id.NotAfter = int64(ms)
	id.Issued = b[33]
	rest, ok := b[identifierFixed:], false
	if id.Audience, rest, ok = cutName(rest, MaxAudience); !ok {
		return Identity{}, ErrBadIdentifier
	}
	if id.Subject, rest, ok = cutName(rest, MaxSubject); !ok || len(rest) != 0 {
		return Identity{}, ErrBadIdentifier
	}
	return id, nil
}

// Identifier copies the identity out of the token.
func (id *Identity) Identifier() Identifier {
	return Identifier{
		Epoch: id.Epoch, Generation: id.Generation, ID: id.ID,
		NotAfter: time.UnixMilli(id.NotAfter).UTC(), Issued: int(id.Issued),
		Audience: string(id.Audience), Subject: string(id.Subject),
	}
}

func cutName(b []byte, most int) (name, rest []byte, ok bool) {
	if len(b) == 0 || len(b) < 1+int(b[0]) {
		return nil, nil, false
	}
	name, rest = b[1:1+int(b[0])], b[1+int(b[0]):]
	return name, rest, ValidName(name, most)
}

// ValidName reports whether s can be an audience or a subject: 1 to most
// bytes of visible ASCII, so that it prints, compares and logs as itself.
func ValidName[S string | []byte](s S, most int) bool {
	if len(s) == 0 || len(s) > most {
		return false
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}
