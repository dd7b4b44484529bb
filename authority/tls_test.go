package authority

import (
	"crypto/tls"
	"crypto/x509"
	"net"
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

// TestCertificatesRenew: a node that runs for longer than its certificates live has
// others before they end, for clients and for peers. Peers know its key, which stays.
func TestCertificatesRenew(t *testing.T) {
	var later atomic.Int64
	cfg := testConfig(t)
	cfg.Clock = func() time.Time { return time.Now().Add(time.Duration(later.Load())) }
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg.Peers = &PeerConfig{Listener: ln}
	a, _, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeNode(t, a) })
	shown := func(get func() (*tls.Certificate, error)) *x509.Certificate {
		t.Helper()
		c, err := get()
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := x509.ParseCertificate(c.Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		ca, err := x509.ParseCertificate(c.Certificate[1])
		if err != nil || leaf.CheckSignatureFrom(ca) != nil {
			t.Fatalf("it is not signed by the cluster's CA: %v", err)
		}
		return leaf
	}
	for what, get := range map[string]func() (*tls.Certificate, error){
		"clients": func() (*tls.Certificate, error) { return a.TLSConfig().GetCertificate(nil) },
		"peers":   a.peers.certificate,
	} {
		later.Store(0)
		first := shown(get)
		life := first.NotAfter.Sub(cfg.Clock())
		later.Store(int64(life / 2))
		if half := shown(get); !half.Equal(first) {
			t.Errorf("for %s: renewed after half its life", what)
		}
		later.Store(int64(life * 3 / 4))
		next := shown(get)
		if left := next.NotAfter.Sub(cfg.Clock()); next.Equal(first) || left < life*9/10 {
			t.Errorf("for %s: %v left after three quarters of %v", what, left, life)
		}
		same := string(next.RawSubjectPublicKeyInfo) == string(first.RawSubjectPublicKeyInfo)
		if same != (what == "peers") {
			t.Errorf("for %s: the same key: %v", what, same)
		}
	}
}
