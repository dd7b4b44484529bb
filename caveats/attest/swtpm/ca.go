package swtpm

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"time"
)

// The files of a CA, of which swtpm_localca reads the issuer's. It would make a
// CA by itself, with two RSA-3072 keys, which takes seconds.
const (
	rootFile   = "root.pem"
	issuerFile = "issuercert.pem"
	keyFile    = "signkey.pem"
)

// caLifetime is that of a CA and its issuer. Endorsement keys get ten years.
const caLifetime = 20 * 365 * 24 * time.Hour

// makeCA makes a root, and an issuer that it certifies, unless there is one.
func makeCA(dir string) error {
	if _, err := os.Stat(filepath.Join(dir, keyFile)); err == nil || !errors.Is(err, os.ErrNotExist) {
		return err
	}
	rootKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	issuerKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	now := time.Now().Add(-time.Hour)
	template := func(name string, serial int64) *x509.Certificate {
		return &x509.Certificate{
			Subject: pkix.Name{CommonName: name}, SerialNumber: big.NewInt(serial),
			NotBefore: now, NotAfter: now.Add(caLifetime), IsCA: true, BasicConstraintsValid: true,
			KeyUsage: x509.KeyUsageCertSign,
		}
	}
	root := template("swtpm root", 1)
	rootDER, err := x509.CreateCertificate(rand.Reader, root, root, &rootKey.PublicKey, rootKey)
	if err != nil {
		return err
	}
	if root, err = x509.ParseCertificate(rootDER); err != nil {
		return err
	}
	issuerDER, err := x509.CreateCertificate(rand.Reader, template("swtpm issuer", 2), root, &issuerKey.PublicKey, rootKey)
	if err != nil {
		return err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(issuerKey)
	if err != nil {
		return err
	}
	for _, f := range []struct {
		name, kind string
		der        []byte
	}{{rootFile, "CERTIFICATE", rootDER}, {issuerFile, "CERTIFICATE", issuerDER}, {keyFile, "PRIVATE KEY", keyDER}} {
		text := pem.EncodeToMemory(&pem.Block{Type: f.kind, Bytes: f.der})
		if err := os.WriteFile(filepath.Join(dir, f.name), text, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// Roots returns the certificates of the CA that Manufacture made, in PEM: the
// root's and the issuer's.
func Roots(ca string) ([]byte, error) {
	root, err := os.ReadFile(filepath.Join(ca, rootFile))
	if err != nil {
		return nil, err
	}
	issuer, err := os.ReadFile(filepath.Join(ca, issuerFile))
	if err != nil {
		return nil, err
	}
	return append(root, issuer...), nil
}
