package verifier_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"math/big"
	"slices"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/writ-dev/writ/caveats/attest"
	"github.com/writ-dev/writ/caveats/attest/attesttest"
	"github.com/writ-dev/writ/caveats/attest/internal/ek"
	"github.com/writ-dev/writ/caveats/attest/verifier"
)

// ca certifies endorsement keys as a manufacturer does.
type ca struct {
	t           testing.TB
	key         *ecdsa.PrivateKey
	certificate *x509.Certificate
}

func newCA(t testing.TB) *ca {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "manufacturer"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, root, root, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	if root, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return &ca{t, key, root}
}

func (c *ca) roots() *verifier.Roots {
	c.t.Helper()
	r, err := verifier.ParseRoots(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.certificate.Raw}))
	if err != nil {
		c.t.Fatal(err)
	}
	return r
}

// certify makes a certificate as the EK Credential Profile has it, with a
// critical SAN of the TPM's model; change may spoil it.
func (c *ca) certify(public any, change func(*x509.Certificate)) []byte {
	c.t.Helper()
	model, err := asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 4, IsCompound: true, Bytes: []byte{0x30, 0x00}}})
	if err != nil {
		c.t.Fatal(err)
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: c.certificate.NotBefore, NotAfter: c.certificate.NotAfter, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageKeyAgreement, UnknownExtKeyUsage: []asn1.ObjectIdentifier{{2, 23, 133, 8, 1}},
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: true, Value: model}},
	}
	change(leaf)
	der, err := x509.CreateCertificate(rand.Reader, leaf, c.certificate, public, c.key)
	if err != nil {
		c.t.Fatal(err)
	}
	return der
}

// Hardware has P-256 endorsement keys (template L-2), swtpm has no certificate
// for one: it gets one here.
func TestECCP256(t *testing.T) {
	t.Parallel()
	tpm := attesttest.Start(t)
	a := newAttacker(t, tpm)
	endorsement := a.primary(tpm2.TPMRHEndorsement, *ek.Template(attest.ECCP256))
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](endorsement.raw)
	if err != nil {
		t.Fatal(err)
	}
	point, err := public.Unique.ECC()
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), slices.Concat([]byte{4}, point.X.Buffer, point.Y.Buffer))
	if err != nil {
		t.Fatal(err)
	}
	authority := newCA(t)
	certificate := authority.certify(key, func(*x509.Certificate) {})
	a.flush(endorsement.handle.Handle)
	a.writeNV(ek.CertificateIndex(attest.ECCP256), append(certificate, 0xff, 0xff, 0xff)) // as padded as some are

	r := rigFor(t, tpm, attest.ECCP256)
	r.roots = authority.roots()
	if result := r.good(t); result.Kind != attest.ECCP256 || !result.Activated {
		t.Errorf("enrolled as %+v", result)
	}
	if again := r.good(t); again.Activated {
		t.Errorf("renewed as %+v", again)
	}
}

// What a certificate says counts, not only who signed it.
func TestCertificates(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	authority := newCA(t)
	r.roots = authority.roots()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p521, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		want   attest.Reason
		public any
		change func(*x509.Certificate)
	}{
		"good":         {"", &key.PublicKey, func(*x509.Certificate) {}},
		"without uses": {"", &key.PublicKey, func(l *x509.Certificate) { l.UnknownExtKeyUsage = nil }},
		"for TLS": {attest.ReasonCertificate, &key.PublicKey, func(l *x509.Certificate) {
			l.UnknownExtKeyUsage, l.ExtKeyUsage = nil, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		}},
		"for an attestation key":  {attest.ReasonCertificate, &key.PublicKey, func(l *x509.Certificate) { l.UnknownExtKeyUsage = []asn1.ObjectIdentifier{{2, 23, 133, 8, 3}} }},
		"a CA's":                  {attest.ReasonCertificate, &key.PublicKey, func(l *x509.Certificate) { l.IsCA = true }},
		"of a key of no template": {attest.ReasonEKType, &p521.PublicKey, func(*x509.Certificate) {}},
		"expired":                 {attest.ReasonUntrusted, &key.PublicKey, func(l *x509.Certificate) { l.NotAfter = time.Now().Add(-time.Minute) }},
		"with another critical extension": {attest.ReasonUntrusted, &key.PublicKey, func(l *x509.Certificate) {
			l.ExtraExtensions = append(l.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true, Value: []byte{5, 0}})
		}},
	} {
		der := authority.certify(c.public, c.change)
		_, err := r.begin(t, func(b *attest.BeginRequest) { b.EKCertificate = der })
		if got := attest.ReasonOf(err); got != c.want {
			t.Errorf("%s: %q (%v), want %q", name, got, err, c.want)
		}
	}
}

func TestRoots(t *testing.T) {
	authority := newCA(t)
	good := authority.roots().PEM()
	leaf := authority.certify(&authority.key.PublicKey, func(*x509.Certificate) {})
	for name, bundle := range map[string][]byte{
		"empty": nil, "text": []byte("certificates"), "a key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte{1}}),
		"no certificate": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte{1}}),
		"no CA's":        pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf}),
		"too large":      make([]byte, verifier.MaxRootsBytes+1),
	} {
		if _, err := verifier.ParseRoots(bundle); !errors.Is(err, verifier.ErrRoots) {
			t.Errorf("%s: %v", name, err)
		}
	}
	r, err := verifier.ParseRoots(append([]byte("# comment\n"), append(good, good...)...))
	if err != nil || len(r.Certificates()) != 1 {
		t.Errorf("%v, %v", r, err)
	}
}
