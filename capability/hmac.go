package capability

import (
	"crypto/sha256"
	"encoding/binary"
)

const (
	ipad64 = 0x3636363636363636
	opad64 = 0x5c5c5c5c5c5c5c5c

	// macInline is the longest message that is hashed in one call on the
	// stack; the longest identifier and nearly every caveat are below.
	macInline = 384
)

// hasher computes HMAC-SHA256 (RFC 2104) for 32-byte keys without allocation:
// key pad and message are laid out one after the other and hashed in one call,
// which is quicker than streaming them. It is used from the stack of one
// goroutine; init must have been called.
type hasher struct {
	inner [sha256.BlockSize + macInline]byte
	outer [sha256.BlockSize + sha256.Size]byte
}

// init writes the halves of the pads that no 32-byte key ever reaches.
func (h *hasher) init() {
	for i := sha256.Size; i < sha256.BlockSize; i++ {
		h.inner[i] = 0x36
		h.outer[i] = 0x5c
	}
}

// sum sets out to HMAC(key, msg). out may be key.
func (h *hasher) sum(out, key *[32]byte, msg []byte) {
	for i := 0; i < 32; i += 8 {
		w := binary.NativeEndian.Uint64(key[i:])
		binary.NativeEndian.PutUint64(h.inner[i:], w^ipad64)
		binary.NativeEndian.PutUint64(h.outer[i:], w^opad64)
	}
	if len(msg) <= macInline {
		n := copy(h.inner[sha256.BlockSize:], msg)
		*(*[32]byte)(h.outer[sha256.BlockSize:]) = sha256.Sum256(h.inner[:sha256.BlockSize+n])
	} else {
		d := sha256.New()
		d.Write(h.inner[:sha256.BlockSize])
		d.Write(msg)
		d.Sum(h.outer[:sha256.BlockSize])
	}
	*out = sha256.Sum256(h.outer[:])
}

// sum2 sets out to HMAC(key, HMAC(key, a) ‖ HMAC(key, b)), which is how
// macaroons sign two fields. out may be key.
func (h *hasher) sum2(out, key *[32]byte, a, b []byte) {
	var both [64]byte
	h.sum((*[32]byte)(both[:32]), key, a)
	h.sum((*[32]byte)(both[32:]), key, b)
	h.sum(out, key, both[:])
}

const branchTag = "writ/v1/branch"

// branchOf names the point of a chain that has this signature.
func branchOf(sig *[32]byte) BranchID {
	var b [len(branchTag) + 32]byte
	copy(b[:], branchTag)
	copy(b[len(branchTag):], sig[:])
	sum := sha256.Sum256(b[:])
	return BranchID(sum[:16])
}
