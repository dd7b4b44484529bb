// Package ek has the templates of endorsement keys (TCG EK Credential Profile
// for TPM 2.0, version 2.5, annex B), which the holder makes its key from and the
// verifier rebuilds it with.
package ek

import (
	"github.com/google/go-tpm/tpm2"
)

// RSA is template L-1 with this modulus of 256 bytes; zeros make the template.
func RSA(modulus []byte) *tpm2.TPMTPublic {
	p := tpm2.RSAEKTemplate
	p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: modulus})
	return &p
}

// ECC256 is template L-2 with this point of 32 bytes each.
func ECC256(x, y []byte) *tpm2.TPMTPublic {
	p := tpm2.ECCEKTemplate
	p.Unique = point(x, y)
	return &p
}

// policyB is the policy of the H templates with SHA-384: PolicySecret of the
// endorsement hierarchy, or what an NV index authorizes (annex B.6).
var policyB = [48]byte{
	0xb2, 0x6e, 0x7d, 0x28, 0xd1, 0x1a, 0x50, 0xbc, 0x53, 0xd8, 0x82, 0xbc, 0xf5, 0xfd, 0x3a, 0x1a,
	0x07, 0x41, 0x48, 0xbb, 0x35, 0xd3, 0xb4, 0xe4, 0xcb, 0x1c, 0x0a, 0xd9, 0xbd, 0xe4, 0x19, 0xca,
	0xcb, 0x47, 0xba, 0x09, 0x69, 0x96, 0x46, 0x15, 0x0f, 0x9f, 0xc0, 0x00, 0xf3, 0xf8, 0x0e, 0x12,
}

// ECC384 is template H-3 with this point of 48 bytes each, or of none for the
// template: an H template leaves unique empty.
func ECC384(x, y []byte) *tpm2.TPMTPublic {
	return &tpm2.TPMTPublic{
		Type:    tpm2.TPMAlgECC,
		NameAlg: tpm2.TPMAlgSHA384,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true,
			UserWithAuth: true, AdminWithPolicy: true, Restricted: true, Decrypt: true,
		},
		AuthPolicy: tpm2.TPM2BDigest{Buffer: policyB[:]},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			Symmetric: tpm2.TPMTSymDefObject{
				Algorithm: tpm2.TPMAlgAES,
				KeyBits:   tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, tpm2.TPMKeyBits(256)),
				Mode:      tpm2.NewTPMUSymMode(tpm2.TPMAlgAES, tpm2.TPMAlgCFB),
			},
			CurveID: tpm2.TPMECCNistP384,
		}),
		Unique: point(x, y),
	}
}

func point(x, y []byte) tpm2.TPMUPublicID {
	return tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: x}, Y: tpm2.TPM2BECCParameter{Buffer: y},
	})
}
