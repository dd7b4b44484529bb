package authority

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"sync"
	"time"
)

const (
	caLife   = 20 * 365 * 24 * time.Hour
	nodeLife = 90 * 24 * time.Hour
	backdate = 10 * time.Minute // for clocks that are behind
)

// newCA makes the cluster's CA: the DER of its certificate, and its private
// key (P-256, so that browsers take it too) as 32 bytes for sealing.
func newCA(cluster string, now time.Time) (der, private []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "Writ cluster " + cluster},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(caLife),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	if der, err = x509.CreateCertificate(rand.Reader, template, template, key.Public(), key); err != nil {
		return nil, nil, err
	}
	private, err = key.Bytes()
	return der, private, err
}

// certificates makes this node's TLS certificates. Their keys are never on
// disk: each start, and each renewal, draws a new one.
type certificates struct {
	ca    *x509.Certificate
	key   *ecdsa.PrivateKey
	node  string
	hosts []string
	clock func() time.Time

	mu      sync.Mutex
	current *tls.Certificate // guarded by mu
	renew   time.Time        // guarded by mu
}

func newCertificates(der, private []byte, node string, hosts []string, clock func() time.Time) (*certificates, error) {
	ca, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("the cluster's CA certificate: %w", err)
	}
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), private)
	if err != nil {
		return nil, fmt.Errorf("the cluster's CA key: %w", err)
	}
	if !key.PublicKey.Equal(ca.PublicKey) {
		return nil, fmt.Errorf("the cluster's CA key is not its certificate's")
	}
	return &certificates{ca: ca, key: key, node: node, hosts: hosts, clock: clock}, nil
}

func (c *certificates) fingerprint() [32]byte { return sha256.Sum256(c.ca.Raw) }

// get returns the certificate in use, renewed after two thirds of its life.
func (c *certificates) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.clock()
	if c.current != nil && now.Before(c.renew) {
		return c.current, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	hosts := append([]string{"localhost", c.node, "127.0.0.1", "::1"}, c.hosts...)
	der, err := signNode(c.ca, c.key, c.node, hosts, key.Public(), now)
	if err != nil {
		return nil, err
	}
	// The CA's certificate goes along, for clients that pin its fingerprint.
	c.current = &tls.Certificate{Certificate: [][]byte{der, c.ca.Raw}, PrivateKey: key}
	c.renew = now.Add(nodeLife * 2 / 3)
	return c.current, nil
}

// TLSConfig is the server side of TLS 1.3: the node's certificate with the
// cluster CA's behind it.
func (a *Authority) TLSConfig() *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS13,
		GetCertificate: a.certs.get,
		NextProtos:     []string{"h2", "http/1.1"},
	}
}

// CAFingerprint is the SHA-256 of the cluster CA's certificate (DER).
func (a *Authority) CAFingerprint() [32]byte { return a.certs.fingerprint() }
