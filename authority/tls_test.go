package authority

import (
	"crypto/x509"
	"sync/atomic"
	"testing"
	"time"
)

// TestCertificateOfAClockThatWasAhead: what was signed in the future is signed
// again once the clock is right, and nobody has to wait for that future.
func TestCertificateOfAClockThatWasAhead(t *testing.T) {
	var ahead atomic.Int64
	ahead.Store(int64(time.Hour))
	cfg := testConfig(t)
	cfg.Clock = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	a, _ := openNode(t, cfg)
	begins := func() time.Time {
		t.Helper()
		c, err := a.TLSConfig().GetCertificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := x509.ParseCertificate(c.Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		return leaf.NotBefore
	}
	if at := begins(); !at.After(time.Now()) {
		t.Fatalf("a clock that is ahead has signed from %v on", at)
	}
	ahead.Store(0)
	if at := begins(); at.After(time.Now()) {
		t.Errorf("the clock is right again, and the certificate good from %v on", at)
	}
}
