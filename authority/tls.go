package authority

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"sync"
	"time"

	"github.com/writ-dev/writ/authority/state"
)

const (
	caLife   = 20 * 365 * 24 * time.Hour
	nodeLife = 90 * 24 * time.Hour
	backdate = 10 * time.Minute // for clocks that are behind
)

// newCA makes a CA for the cluster: the DER of its certificate, and its private
// key (P-256, so that browsers take it too) as 32 bytes for sealing. before is the
// CA whose place it takes; nil: it is the first.
func newCA(cluster string, before *x509.Certificate, now time.Time) (der, private []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	template := caTemplate(cluster, 1, now)
	if before != nil {
		template = caTemplate(cluster, before.SerialNumber.Int64()+1, now)
	}
	if der, err = x509.CreateCertificate(rand.Reader, template, template, key.Public(), key); err != nil {
		return nil, nil, err
	}
	private, err = key.Bytes()
	return der, private, err
}

// caTemplate is the certificate of the cluster's CA with this number. Beneath it
// there may be one other: the CA that takes its place.
func caTemplate(cluster string, number int64, now time.Time) *x509.Certificate {
	name := "Writ cluster " + cluster
	if number > 1 {
		name = fmt.Sprintf("%s, CA %d", name, number)
	}
	return &x509.Certificate{
		SerialNumber:          big.NewInt(number),
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(caLife),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLen:            1,
		KeyUsage:              x509.KeyUsageCertSign,
	}
}

// issuer is a CA of the cluster, open: it signs nodes.
type issuer struct {
	public []byte              // as the state has it
	chain  []*x509.Certificate // the CA's certificate; then, while older pins are good, what leads to these
	key    *ecdsa.PrivateKey
}

func newIssuer(public, private []byte) (*issuer, error) {
	chain, err := x509.ParseCertificates(public)
	if err != nil || len(chain) == 0 {
		return nil, fmt.Errorf("the cluster's CA certificate: %w", err)
	}
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), private)
	if err != nil {
		return nil, fmt.Errorf("the cluster's CA key: %w", err)
	}
	if !key.PublicKey.Equal(chain[0].PublicKey) {
		return nil, errors.New("the cluster's CA key is not its certificate's")
	}
	return &issuer{public: public, chain: chain, key: key}, nil
}

// sign signs a node's certificate, in front of the CA's and of those by which
// clients know that.
func (i *issuer) sign(node string, hosts []string, key crypto.PublicKey, now time.Time) ([][]byte, error) {
	der, err := signNode(i.chain[0], i.key, node, hosts, key, now)
	if err != nil {
		return nil, err
	}
	certificates := [][]byte{der}
	for _, c := range i.chain {
		certificates = append(certificates, c.Raw)
	}
	return certificates, nil
}

// certificates makes this node's TLS certificates. Their keys are never on
// disk: each start, and each renewal, draws a new one.
type certificates struct {
	issuer func() (*issuer, error) // the CA that there is now
	node   string
	hosts  []string
	clock  func() time.Time

	mu      sync.Mutex
	current *tls.Certificate // guarded by mu
	by      *issuer          // of current; guarded by mu
	signed  time.Time        // when current was; guarded by mu
	renew   time.Time        // guarded by mu
}

// get returns the certificate in use, renewed after two thirds of its life, when
// the cluster has another CA, and when the clock is behind where it was when it
// signed: whoever was ahead has signed what is not good yet.
func (c *certificates) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.clock()
	ca, err := c.issuer()
	if c.current != nil && (err != nil || ca == c.by && now.Before(c.renew) && !now.Before(c.signed.Add(-backdate))) {
		return c.current, nil // better an older one than none, while the seal cannot be opened
	}
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	hosts := append([]string{"localhost", c.node, "127.0.0.1", "::1"}, c.hosts...)
	chain, err := ca.sign(c.node, hosts, key.Public(), now)
	if err != nil {
		return nil, err
	}
	c.current, c.by, c.signed, c.renew = &tls.Certificate{Certificate: chain, PrivateKey: key}, ca, now, now.Add(nodeLife*2/3)
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
func (a *Authority) CAFingerprint() [32]byte {
	k := a.machine.SealedKey(state.PurposeCA, 1)
	if k == nil {
		return [32]byte{}
	}
	return caFingerprint(k.Public)
}

// caFingerprint is the fingerprint of the CA whose certificate, and others behind
// it, the state has.
func caFingerprint(public []byte) [32]byte {
	chain, err := x509.ParseCertificates(public)
	if err != nil || len(chain) == 0 {
		return [32]byte{}
	}
	return sha256.Sum256(chain[0].Raw)
}
