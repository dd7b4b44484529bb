package verifier

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"math/big"

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

	// The kind is pinned before a parser with many branches sees the rest.
	if len(raw) < 8 || len(raw) > attest.MaxPublic {
		return nil, attest.Refuse(attest.ReasonMalformed, "a %s of %d bytes", what, len(raw))
	}
	if binary.BigEndian.Uint16(raw) != uint16(tpm2.TPMAlgECC) || binary.BigEndian.Uint16(raw[2:]) != uint16(tpm2.TPMAlgSHA256) {
		return nil, refuse("is no ECC key with a SHA-256 name")
	}
	switch attributes := binary.BigEndian.Uint32(raw[4:]); {
	case attributes&keyAttributes != keyAttributes:
		return nil, refuse("may not be of a TPM: fixedTPM, fixedParent, sensitiveDataOrigin and sign are not all set")
	case ak != (attributes&restricted != 0):
		if ak {
			return nil, refuse("is not restricted: it could sign a forged quote")
		}
		return nil, refuse("is restricted")
	case attributes&^(keyAttributes|restricted|indifferent) != 0:
		return nil, refuse("has attributes that it must not have")
	}
	public, err := canonical[tpm2.TPMTPublic](raw, what)
	if err != nil {
		return nil, err
	}
	if n := len(public.AuthPolicy.Buffer); n != 0 && n != sha256.Size {
		return nil, refuse("has a policy of another size")
	}
	parameters, err := public.Parameters.ECCDetail()
	if err != nil {
		return nil, refuse("is no ECC key")
	}
	scheme, err := parameters.Scheme.Details.ECDSA()
	if err != nil || parameters.Scheme.Scheme != tpm2.TPMAlgECDSA || scheme.HashAlg != tpm2.TPMAlgSHA256 {
		return nil, refuse("does not sign with ECDSA and SHA-256")
	}
	if parameters.CurveID != tpm2.TPMECCNistP256 || parameters.Symmetric.Algorithm != tpm2.TPMAlgNull || parameters.KDF.Scheme != tpm2.TPMAlgNull {
		return nil, refuse("is not on P-256, or has parameters that it must not have")
	}
	point, err := public.Unique.ECC()
	if err != nil || len(point.X.Buffer) != 32 || len(point.Y.Buffer) != 32 {
		return nil, refuse("has coordinates that are not of 32 bytes")
	}
	k := &signingKey{x: point.X.Buffer, y: point.Y.Buffer}
	if k.public, err = ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append(append([]byte{4}, k.x...), k.y...)); err != nil {
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

// canonical reads a TPM structure and refuses every encoding but the one that
// it is written in again. go-tpm by itself ignores trailing bytes.
func canonical[T tpm2.Marshallable, P interface {
	*T
	tpm2.Unmarshallable
}](raw []byte, what string) (*T, error) {
	v, err := tpm2.Unmarshal[T, P](raw)
	if err != nil {
		return nil, attest.Refuse(attest.ReasonMalformed, "the %s is no TPM structure: %v", what, err)
	}
	if !bytes.Equal(tpm2.Marshal(*v), raw) {
		return nil, attest.Refuse(attest.ReasonMalformed, "the %s is not in its canonical encoding", what)
	}
	return v, nil
}

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
