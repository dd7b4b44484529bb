package verifier

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"math/big"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats/attest"
)

// The numbers of TPM 2.0 Library, Part 2, that evidence is held against.
const (
	tpmGenerated  = 0xff544347 // section 6.2
	attestCertify = 0x8017     // section 6.9
	attestQuote   = 0x8018

	handleEndorsement = 0x4000000b // section 7.4

	// Object attributes, section 8.3.
	fixedTPM            = 1 << 1
	fixedParent         = 1 << 4
	sensitiveDataOrigin = 1 << 5
	userWithAuth        = 1 << 6
	adminWithPolicy     = 1 << 7
	noDA                = 1 << 10
	restricted          = 1 << 16
	sign                = 1 << 18

	// A key that its TPM made and keeps, and that can do nothing but sign.
	keyAttributes = fixedTPM | fixedParent | sensitiveDataOrigin | sign
	// These say who may use the key and how often he may err. tpm2_createak, for
	// one, leaves out noDA. Every other attribute is refused.
	indifferent = userWithAuth | adminWithPolicy | noDA
)

// signingKey is a P-256 key whose public area has passed every check.
type signingKey struct {
	public *ecdsa.PublicKey
	x, y   []byte // 32 bytes each
	name   attest.Name
}

// parseKey reads a TPMT_PUBLIC: an ECC P-256 key with nameAlg SHA-256 and scheme
// ECDSA with SHA-256, that the TPM made and never lets out. An AK is restricted,
// so that it signs only what the TPM itself has made; a holder key is not.
//
// These attributes are all that tells a TPM's key from a software key: a
// credential is activated for any key that is loaded, even by
// TPM2_LoadExternal. The Name binds them.
func parseKey(raw []byte, ak bool) (*signingKey, error) {
	reason, what := attest.ReasonHolderKey, "holder key"
	if ak {
		reason, what = attest.ReasonAK, "attestation key"
	}
	refuse := func(detail string) error { return attest.Refuse(reason, "the %s %s", what, detail) }

	r := reader{raw: raw}
	if r.u16() != uint16(tpm2.TPMAlgECC) || r.u16() != uint16(tpm2.TPMAlgSHA256) {
		return nil, refuse("is no ECC key with a SHA-256 name")
	}
	switch attributes := r.u32(); {
	case attributes&keyAttributes != keyAttributes:
		return nil, refuse("may not be of a TPM: fixedTPM, fixedParent, sensitiveDataOrigin and sign are not all set")
	case ak && attributes&restricted == 0:
		return nil, refuse("is not restricted: it could sign a forged quote")
	case !ak && attributes&restricted != 0:
		return nil, refuse("is restricted")
	case attributes&^(keyAttributes|restricted|indifferent) != 0:
		return nil, refuse("has attributes that it must not have")
	}
	if n := len(r.sized()); n != 0 && n != sha256.Size {
		return nil, refuse("has an authorization policy of another size")
	}
	if r.u16() != uint16(tpm2.TPMAlgNull) { // symmetric: of storage keys
		return nil, refuse("encrypts")
	}
	if r.u16() != uint16(tpm2.TPMAlgECDSA) || r.u16() != uint16(tpm2.TPMAlgSHA256) {
		return nil, refuse("does not sign with ECDSA and SHA-256")
	}
	if r.u16() != uint16(tpm2.TPMECCNistP256) || r.u16() != uint16(tpm2.TPMAlgNull) { // KDF
		return nil, refuse("is not on P-256")
	}
	k := &signingKey{x: r.sized(), y: r.sized()}
	if !r.done() || len(k.x) != 32 || len(k.y) != 32 {
		return nil, attest.Refuse(attest.ReasonMalformed, "the %s is not in its one encoding", what)
	}
	var err error
	if k.public, err = ecdsa.ParseUncompressedPublicKey(elliptic.P256(), slices.Concat([]byte{4}, k.x, k.y)); err != nil {
		return nil, refuse("is no point of the curve")
	}
	digest := sha256.Sum256(raw)
	k.name = append(binary.BigEndian.AppendUint16(nil, uint16(tpm2.TPMAlgSHA256)), digest[:]...)
	return k, nil
}

// holderKey is the key's JWK thumbprint (RFC 7638), as a holder caveat names it.
func (k *signingKey) holderKey() capability.HolderKey {
	b64 := base64.RawURLEncoding.EncodeToString
	jwk := `{"crv":"P-256","kty":"EC","x":"` + b64(k.x) + `","y":"` + b64(k.y) + `"}`
	return capability.HolderKey{Method: capability.HolderDPoP, Thumbprint: sha256.Sum256([]byte(jwk))}
}

// signatureSize is that of a TPMT_SIGNATURE of ECDSA, SHA-256 and P-256:
// 0018 000b 0020 r 0020 s. A TPM pads r and s (Part 1, annex C.8).
const signatureSize = 2 + 2 + 2 + 32 + 2 + 32

var signaturePrefix = []byte{0x00, 0x18, 0x00, 0x0b, 0x00, 0x20}

// verify checks a TPMT_SIGNATURE over message.
func (k *signingKey) verify(message, signature []byte) bool {
	digest := sha256.Sum256(message)
	return k.verifyDigest(digest, signature)
}

func (k *signingKey) verifyDigest(digest [sha256.Size]byte, signature []byte) bool {
	if len(signature) != signatureSize || !bytes.HasPrefix(signature, signaturePrefix) || signature[38] != 0 || signature[39] != 0x20 {
		return false
	}
	r, s := new(big.Int).SetBytes(signature[6:38]), new(big.Int).SetBytes(signature[40:])
	return ecdsa.Verify(k.public, digest[:], r, s)
}

// attestation is a TPMS_ATTEST (Part 2, section 10.12.12), a quote or a
// certification.
type attestation struct {
	signer   []byte // qualified name
	extra    []byte
	counters attest.Counters
	firmware attest.Firmware

	selections []selection // of a quote
	digest     []byte
	certified  []byte // of a certification: the object's name
}

// selection is a TPMS_PCR_SELECTION.
type selection struct {
	bank   uint16
	bitmap []byte
}

// maxBanks bounds the selections of a quote: more than there are hashes.
const maxBanks = 16

// parseAttest reads what follows magic and type. It takes exactly one encoding.
func parseAttest(raw []byte, kind uint16) (*attestation, bool) {
	r := reader{raw: raw[6:]}
	a := &attestation{signer: r.sized(), extra: r.sized()}
	a.counters = attest.Counters{Clock: r.u64(), Reset: r.u32(), Restart: r.u32()}
	safe := r.u8()
	a.counters.Safe = safe == 1
	a.firmware = attest.Firmware(r.u64())
	switch kind {
	case attestQuote:
		n := r.u32()
		if n > maxBanks {
			return nil, false
		}
		for range n {
			a.selections = append(a.selections, selection{r.u16(), r.take(int(r.u8()))})
		}
		a.digest = r.sized()
	case attestCertify:
		a.certified = r.sized()
		r.sized() // its qualified name, which its Name does not need
	}
	return a, r.done() && safe <= 1
}

// reader reads a TPM's big-endian structures. Beyond the end it reads zeros, and
// is never done.
type reader struct {
	raw    []byte
	beyond bool
}

func (r *reader) take(n int) []byte {
	if n > len(r.raw) {
		r.raw, r.beyond = nil, true
		return nil
	}
	b := r.raw[:n:n]
	r.raw = r.raw[n:]
	return b
}

func (r *reader) number(n int) (v uint64) {
	for _, b := range r.take(n) {
		v = v<<8 | uint64(b)
	}
	return v
}

func (r *reader) u8() uint8   { return uint8(r.number(1)) }
func (r *reader) u16() uint16 { return uint16(r.number(2)) }
func (r *reader) u32() uint32 { return uint32(r.number(4)) }
func (r *reader) u64() uint64 { return r.number(8) }

// sized reads a TPM2B: two bytes of size, and as many bytes.
func (r *reader) sized() []byte { return r.take(int(r.u16())) }

// done says that all was read, and no more.
func (r *reader) done() bool { return !r.beyond && len(r.raw) == 0 }

// qualifiedNames are those that an AK of the endorsement hierarchy can have
// (Part 1, section 16): a primary key's, and that of a child of the endorsement
// key. Those of the owner's hierarchy see false counters and firmware versions.
func qualifiedNames(ek, ak attest.Name) [2][]byte {
	root := binary.BigEndian.AppendUint32(nil, handleEndorsement)
	return [2][]byte{
		qualify(root, ak),
		qualify(qualify(root, ek), ak),
	}
}

// qualify is the qualified name of an object with this name below parent.
func qualify(parent []byte, name attest.Name) []byte {
	algorithm := tpm2.TPMAlgID(binary.BigEndian.Uint16(name))
	hash, err := algorithm.Hash()
	if err != nil {
		return nil // of no TPM: equal to nothing that is compared
	}
	h := hash.New()
	h.Write(parent)
	h.Write(name)
	return h.Sum(name[:2:2])
}
