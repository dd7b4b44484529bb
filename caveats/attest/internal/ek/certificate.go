package ek

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"errors"

	"github.com/google/go-tpm/tpm2"

	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats/attest"
)

// ErrKind is returned for a certificate of a key that no template is known for.
var ErrKind = errors.New("an endorsement key of a kind that no template is known for")

// Key is an endorsement key as its certificate and its template tell it.
type Key struct {
	Kind   attest.Kind
	Device capability.DeviceID // SHA-256 of the SPKI
	Public *tpm2.TPMTPublic
	Name   attest.Name
}

// ParseCertificate reads the first ASN.1 element of der: what a TPM keeps in its
// NV memory may be padded.
func ParseCertificate(der []byte) (*x509.Certificate, error) {
	var first asn1.RawValue
	if _, err := asn1.Unmarshal(der, &first); err != nil {
		return nil, err
	}
	return x509.ParseCertificate(first.FullBytes)
}

// Rebuild makes the public area that a TPM must have for the certified key.
// Errors: ErrKind.
func Rebuild(certificate *x509.Certificate) (*Key, error) {
	k := &Key{Device: sha256.Sum256(certificate.RawSubjectPublicKeyInfo)}
	switch key := certificate.PublicKey.(type) {
	case *rsa.PublicKey:
		if key.N.BitLen() != 2048 || key.E != 65537 {
			return nil, ErrKind
		}
		k.Kind, k.Public = attest.RSA2048, RSA(key.N.FillBytes(make([]byte, 256)))
	case *ecdsa.PublicKey:
		point, err := key.Bytes()
		if err != nil {
			return nil, ErrKind
		}
		x, y := point[1:1+len(point)/2], point[1+len(point)/2:]
		switch key.Curve {
		case elliptic.P256():
			k.Kind, k.Public = attest.ECCP256, ECC256(x, y)
		case elliptic.P384():
			k.Kind, k.Public = attest.ECCP384, ECC384(x, y)
		default:
			return nil, ErrKind
		}
	default:
		return nil, ErrKind
	}
	name, err := tpm2.ObjectName(k.Public)
	if err != nil {
		return nil, err
	}
	k.Name = name.Buffer
	return k, nil
}

// Template is what TPM2_CreatePrimary makes the key of this kind from.
func Template(kind attest.Kind) *tpm2.TPMTPublic {
	switch kind {
	case attest.RSA2048:
		return RSA(make([]byte, 256))
	case attest.ECCP256:
		return ECC256(make([]byte, 32), make([]byte, 32))
	case attest.ECCP384:
		return ECC384(nil, nil)
	}
	return nil
}

// CertificateIndex is where a TPM keeps the certificate of a key of this kind
// (section 2.2.1.4), or 0.
func CertificateIndex(kind attest.Kind) tpm2.TPMHandle {
	switch kind {
	case attest.RSA2048:
		return 0x01c00002
	case attest.ECCP256:
		return 0x01c0000a
	case attest.ECCP384:
		return 0x01c00016
	}
	return 0
}
