package pop

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"time"

	"github.com/writ-dev/writ/capability"
)

// CertificateKey is what a holder caveat names a TLS client by: "x5t:" and the
// SHA-256 of the certificate's DER (RFC 8705 section 3.1).
func CertificateKey(der []byte) capability.HolderKey {
	return capability.HolderKey{Method: capability.HolderMTLS, Thumbprint: sha256.Sum256(der)}
}

// ClientCertificate makes a self-signed certificate of key, for the
// Certificates of a tls.Config, which proves the key to every server that asks
// for one (RFC 8705 section 2.2: the thumbprint counts, not who signed). It
// begins an hour before now, for clocks that are behind, and ends lifetime
// after it. Its thumbprint is new each time.
func ClientCertificate(key *Key, now time.Time, lifetime time.Duration) (tls.Certificate, error) {
	if lifetime <= 0 {
		return tls.Certificate{}, errors.New("pop: a certificate without a lifetime")
	}
	var serial [16]byte
	rand.Read(serial[:])
	serial[0] &= 0x7f // positive, in 16 bytes
	template := &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(serial[:]),
		Subject:      pkix.Name{CommonName: "writ holder"},
		NotBefore:    now.Add(-time.Hour),
		NotAfter:     now.Add(lifetime),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key.signer)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("pop: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key.signer}, nil
}
