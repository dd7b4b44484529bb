package discharger

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/writ-dev/writ/authority/atomicfile"
	"github.com/writ-dev/writ/capability"
)

// ErrKeys is wrapped by every error about a discharger's own keys.
var ErrKeys = errors.New("discharger: keys")

const (
	caLife   = 10 * 365 * 24 * time.Hour
	leafLife = 90 * 24 * time.Hour
)

// OpenKey reads the discharger's key of DIR/discharger.key, or makes it: one
// line of base64, mode 0600. Errors: ErrKeys.
func OpenKey(dir string) (*capability.DischargerKey, error) {
	path := filepath.Join(dir, "discharger.key")
	b, err := readPrivate(path)
	if errors.Is(err, fs.ErrNotExist) {
		key, err := capability.GenerateDischargerKey(rand.Reader)
		if err != nil {
			return nil, err
		}
		seed := key.Seed()
		return key, atomicfile.Replace(path, []byte(base64.StdEncoding.EncodeToString(seed[:])+"\n"))
	}
	if err != nil {
		return nil, err
	}
	seed, err := base64.StdEncoding.Strict().DecodeString(strings.TrimSpace(string(b)))
	if err != nil || len(seed) != 32 {
		return nil, fmt.Errorf("%w: %s is no key", ErrKeys, path)
	}
	return capability.NewDischargerKey([32]byte(seed))
}

// readPrivate reads a file that nobody else can read.
func readPrivate(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%w: %s can be read by others: chmod 600", ErrKeys, path)
	}
	return readBounded(path, 64<<10)
}

// Certificates are the discharger's TLS certificates: a CA of its own in
// DIR/tls.pem, whose fingerprint holders pin as they pin an authority's, and a
// leaf that is made anew when it is half over.
type Certificates struct {
	hosts []string
	now   func() time.Time
	ca    *x509.Certificate
	key   crypto.Signer

	mu   sync.Mutex
	leaf *tls.Certificate // guarded by mu
}

// OpenCertificates reads the CA of dir, or makes it. hosts are the names and
// addresses of the leaf, besides localhost and the loopback addresses. Errors:
// ErrKeys.
func OpenCertificates(dir string, hosts []string, now func() time.Time) (*Certificates, error) {
	path := filepath.Join(dir, "tls.pem")
	b, err := readPrivate(path)
	if errors.Is(err, fs.ErrNotExist) {
		if b, err = newCA(now()); err == nil {
			err = atomicfile.Replace(path, b)
		}
	}
	if err != nil {
		return nil, err
	}
	bad := func(err error) (*Certificates, error) { return nil, fmt.Errorf("%w: %s: %v", ErrKeys, path, err) }
	pair, err := tls.X509KeyPair(b, b)
	if err != nil {
		return bad(err)
	}
	key, ok := pair.PrivateKey.(crypto.Signer)
	if !ok || !pair.Leaf.IsCA {
		return bad(errors.New("no CA"))
	}
	return &Certificates{hosts: hosts, now: now, ca: pair.Leaf, key: key}, nil
}

// Fingerprint is the SHA-256 of the CA's certificate, in hexadecimal.
func (c *Certificates) Fingerprint() string {
	sum := sha256.Sum256(c.ca.Raw)
	return hex.EncodeToString(sum[:])
}

// TLSConfig serves TLS 1.3 with the leaf.
func (c *Certificates) TLSConfig() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, GetCertificate: c.get}
}

func (c *Certificates) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	if c.leaf != nil && now.Before(c.leaf.Leaf.NotAfter.Add(-leafLife/2)) {
		return c.leaf, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	t := template("writ discharger", now, leafLife)
	t.KeyUsage, t.ExtKeyUsage = x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	t.DNSNames, t.IPAddresses = []string{"localhost"}, []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
	for _, h := range c.hosts {
		if ip := net.ParseIP(h); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, c.ca, key.Public(), c.key)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	c.leaf = &tls.Certificate{Certificate: [][]byte{der, c.ca.Raw}, PrivateKey: key, Leaf: leaf}
	return c.leaf, nil
}

func template(name string, now time.Time, life time.Duration) *x509.Certificate {
	serial := make([]byte, 16)
	_, _ = rand.Read(serial) // never fails
	return &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(serial), Subject: pkix.Name{CommonName: name},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(life), BasicConstraintsValid: true,
	}
}

// newCA makes a CA: certificate and private key, in PEM.
func newCA(now time.Time) ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	t := template("writ discharger CA", now, caLife)
	t.IsCA, t.KeyUsage, t.MaxPathLenZero = true, x509.KeyUsageCertSign, true
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	b := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return append(b, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})...), nil
}
