package verifier

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
)

// Bounds on a bundle of roots.
const (
	MaxRoots      = 256
	MaxRootsBytes = 1 << 20
)

// ErrRoots is wrapped by every error about a bundle.
var ErrRoots = errors.New("attestation roots")

// Roots is a bundle of trust anchors: certificates of those who certify
// endorsement keys. Each certificate in it is trusted by itself, an
// intermediate one too.
type Roots struct {
	pool         *x509.CertPool
	certificates []*x509.Certificate
}

// ParseRoots reads certificates in PEM. Anything else in it, a certificate that
// is no CA's, and a bundle that is empty or beyond the bounds is refused.
// Errors: ErrRoots.
func ParseRoots(bundle []byte) (*Roots, error) {
	if len(bundle) > MaxRootsBytes {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrRoots, len(bundle), MaxRootsBytes)
	}
	r := &Roots{pool: x509.NewCertPool()}
	seen := make(map[[sha256.Size]byte]bool)
	for rest := bundle; ; {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		if block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("%w: a block of type %q", ErrRoots, block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrRoots, err)
		}
		if !c.IsCA || !c.BasicConstraintsValid {
			return nil, fmt.Errorf("%w: %s is no certificate of a CA", ErrRoots, c.Subject)
		}
		if sum := sha256.Sum256(c.Raw); !seen[sum] {
			seen[sum] = true
			r.certificates = append(r.certificates, c)
			r.pool.AddCert(c)
		}
		if len(r.certificates) > MaxRoots {
			return nil, fmt.Errorf("%w: more than %d certificates", ErrRoots, MaxRoots)
		}
	}
	if len(r.certificates) == 0 {
		return nil, fmt.Errorf("%w: no certificate in PEM", ErrRoots)
	}
	return r, nil
}

// Certificates returns the anchors, in the order of the bundle.
func (r *Roots) Certificates() []*x509.Certificate { return r.certificates }

// PEM returns the bundle in its one spelling.
func (r *Roots) PEM() []byte {
	var b bytes.Buffer
	for _, c := range r.certificates {
		_ = pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}) // a Buffer takes everything
	}
	return b.Bytes()
}
