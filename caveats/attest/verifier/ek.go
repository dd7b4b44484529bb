package verifier

import (
	"crypto/x509"
	"encoding/asn1"
	"slices"
	"time"

	"github.com/writ-dev/writ/caveats/attest"
	"github.com/writ-dev/writ/caveats/attest/internal/ek"
)

var (
	// oidSAN is critical in the certificate of an endorsement key, and holds names
	// that crypto/x509 does not know (EK Credential Profile 2.5, section 3.2.9).
	oidSAN = asn1.ObjectIdentifier{2, 5, 29, 17}
	// oidEKCertificate is tcg-kp-EKCertificate.
	oidEKCertificate = asn1.ObjectIdentifier{2, 23, 133, 8, 1}
)

// endorse checks the certificate of an endorsement key, and rebuilds the key.
func endorse(policy *attest.Policy, roots func(string) (*Roots, bool), request *attest.BeginRequest, now time.Time) (*ek.Key, error) {
	bad := func(format string, args ...any) error {
		return attest.Refuse(attest.ReasonCertificate, format, args...)
	}
	leaf, err := ek.ParseCertificate(request.EKCertificate)
	if err != nil {
		return nil, bad("it cannot be read: %v", err)
	}
	if leaf.IsCA {
		return nil, bad("it is a CA's")
	}
	named := func(o asn1.ObjectIdentifier) bool { return o.Equal(oidEKCertificate) }
	if len(leaf.ExtKeyUsage)+len(leaf.UnknownExtKeyUsage) > 0 && !slices.ContainsFunc(leaf.UnknownExtKeyUsage, named) {
		return nil, bad("its key is for other uses")
	}
	leaf.UnhandledCriticalExtensions = slices.DeleteFunc(leaf.UnhandledCriticalExtensions, oidSAN.Equal)
	pool := x509.NewCertPool()
	for _, der := range request.Intermediates {
		c, err := ek.ParseCertificate(der)
		if err != nil {
			return nil, bad("an intermediate one cannot be read: %v", err)
		}
		pool.AddCert(c)
	}
	if err := chain(policy, roots, leaf, pool, now); err != nil {
		return nil, err
	}
	// What the holder says of its endorsement key is never used.
	key, err := ek.Rebuild(leaf)
	if err != nil {
		return nil, attest.Refuse(attest.ReasonEKType, "%v", err)
	}
	return key, policy.JudgeKey(key.Kind, attest.Digest(key.Device))
}

// chain finds a chain to one of the policy's bundles. One that is not there is
// an operator's mistake, and trusts nobody.
func chain(policy *attest.Policy, roots func(string) (*Roots, bool), leaf *x509.Certificate, intermediates *x509.CertPool, now time.Time) error {
	last := attest.Refuse(attest.ReasonUntrusted, "the policy has no roots")
	for _, name := range policy.EKRoots {
		bundle, ok := roots(name)
		if !ok {
			last = attest.Refuse(attest.ReasonPolicy, "there is no bundle of roots %q", name)
			continue
		}
		_, err := leaf.Verify(x509.VerifyOptions{
			Roots: bundle.pool, Intermediates: intermediates, CurrentTime: now,
			KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
		})
		if err == nil {
			return nil
		}
		last = attest.Refuse(attest.ReasonUntrusted, "of %s: %v", leaf.Issuer, err)
	}
	return last
}
