package guard_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/capability/guard"
	"github.com/writ-dev/writ/capability/guard/internal/guardtest"
	"github.com/writ-dev/writ/caveats"
	"github.com/writ-dev/writ/caveats/pop"
)

// BenchmarkProofs is the cost of each kind of proof in the guard. Each is
// measured in turns with what it is held to, so that a busy machine slows both:
// DPoP beside one check of a signature of the same length and kind (×signature:
// at most 1.3), the others beside the same call with a bearer token
// (ns-over-bearer: of a request caveat at most 1000).
func BenchmarkProofs(b *testing.B) {
	a := guardtest.For(b)
	// A second passes between turns, so that as many proofs are forgotten as come.
	clock := time.Now()
	now := func() time.Time { return clock }
	v, err := pop.New(pop.Config{Origins: []string{"https://example.com"}, Now: now})
	if err != nil {
		b.Fatal(err)
	}
	g, err := guard.New(a.Verifier, guard.Possession(v), guard.Logger(slog.New(slog.DiscardHandler)))
	if err != nil {
		b.Fatal(err)
	}
	g.Handle("GET /files/{path...}", readFiles, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) }))
	h := build(b, g)
	token := func(also ...string) *capability.Token {
		return a.Token(b, append([]string{"action read write", "resource files/**", "time-before 2099-01-01T00:00:00Z"}, also...)...)
	}
	request := func(t *capability.Token) *http.Request {
		r := httptest.NewRequest("GET", "https://example.com/files/reports/q3", nil)
		r.RequestURI = "/files/reports/q3"
		r.Header = http.Header{"Authorization": {"Bearer " + t.Text()}}
		return r
	}

	// Every call is one of its own, made beforehand, since a proof is good for one.
	var calls, bare [turn]*http.Request
	w := &nowhere{header: make(http.Header)}
	serve := func(r *http.Request) {
		if h.ServeHTTP(w, r); w.status != 204 {
			b.Fatal(w.status, w.header)
		}
	}
	plain := token()
	beside := func(name string, make func() *http.Request) {
		b.Run(name, func(b *testing.B) {
			cost, bearer := turns(b, func(i int) { calls[i], bare[i] = make(), request(plain) },
				func(i int) { serve(calls[i]) }, func(i int) { serve(bare[i]) })
			b.ReportMetric(float64(cost-bearer), "ns-over-bearer")
		})
	}
	cert, err := pop.ClientCertificate(newKey(b, pop.ES256), time.Now(), time.Hour)
	if err != nil {
		b.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		b.Fatal(err)
	}
	certified := token("context pop is direct", holderOf(b, pop.CertificateKey(parsed.Raw)))
	beside("MutualTLS", func() *http.Request {
		r := request(certified)
		r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{parsed}}
		return r
	})
	// The caveat alone, and with the time that a Binder adds to it.
	beside("RequestCaveat", func() *http.Request {
		r := request(plain)
		m, err := caveats.OutgoingMessage(r, 0)
		if err != nil {
			b.Fatal(err)
		}
		bound, err := plain.AttenuateExact(caveats.Request(caveats.RequestHash(m)))
		if err != nil {
			b.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+bound.Text())
		return r
	})
	beside("Binder", func() *http.Request {
		r := request(plain)
		bound, err := new(caveats.Binder).Bind(r, plain)
		if err != nil {
			b.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+bound.Text())
		return r
	})

	prove := func(name, how string, s pop.Signer, sign func(message []byte) []byte, verify func(message, sig []byte) bool) {
		bound := token("context pop is "+how, holderOf(b, s.HolderKey()))
		text := bound.Text()
		var messages, sigs [turn][]byte
		b.Run(name, func(b *testing.B) {
			cost, check := turns(b, func(i int) {
				if i == 0 {
					clock = clock.Add(time.Second)
				}
				c := pop.Call{Method: "GET", URI: "https://example.com/files/reports/q3", Token: text, Issued: clock}
				proof, err := s.Prove(b.Context(), c)
				if err != nil {
					b.Fatal(err)
				}
				calls[i] = request(bound)
				calls[i].Header = http.Header{"Authorization": {"DPoP " + text}, "Dpop": {proof}}
				messages[i] = []byte(proof[:strings.LastIndexByte(proof, '.')])
				sigs[i] = sign(messages[i])
			}, func(i int) { serve(calls[i]) }, func(i int) {
				if !verify(messages[i], sigs[i]) {
					b.Fatal("the floor's own signature")
				}
			})
			b.ReportMetric(float64(check), "signature-ns")
			b.ReportMetric(float64(cost)/float64(check), "×signature")
		})
	}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	signEd := func(m []byte) []byte { return ed25519.Sign(private, m) }
	verifyEd := func(m, sig []byte) bool { return ed25519.Verify(public, m, sig) }
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	signEC := func(m []byte) []byte {
		sum := sha256.Sum256(m)
		sig, err := ecdsa.SignASN1(rand.Reader, ec, sum[:])
		if err != nil {
			b.Fatal(err)
		}
		return sig
	}
	verifyEC := func(m, sig []byte) bool {
		sum := sha256.Sum256(m)
		return ecdsa.VerifyASN1(&ec.PublicKey, sum[:], sig)
	}
	k, p := newKey(b, pop.Ed25519), newKey(b, pop.ES256)
	prove("DPoPEdDSA", "direct", k, signEd, verifyEd)
	prove("DPoPES256", "direct", p, signEC, verifyEC)
	prove("DPoPSession", "session", pop.NewSession(p, 0, now), signEd, verifyEd) // a session's own key is Ed25519
}

// turn is how many calls are timed at a time: few enough that each finds what it
// was given where a server that has just read it does.
const turn = 64

// turns prepares calls, times first and second by turns, and returns the CPU
// time that one call of each took, which is what counts where a machine has
// other things to do.
func turns(b *testing.B, prepare, first, second func(i int)) (one, other time.Duration) {
	used := func() time.Duration {
		var r syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
			b.Fatal(err)
		}
		return time.Duration(r.Utime.Nano() + r.Stime.Nano())
	}
	var took [2]time.Duration
	n := max(1, b.N/turn)
	for round := range n {
		for i := range turn {
			prepare(i)
		}
		for which := range took {
			which ^= round % 2 // nobody is always the second
			call := []func(int){first, second}[which]
			begin := used()
			for i := range turn {
				call(i)
			}
			took[which] += used() - begin
		}
	}
	one, other = took[0]/time.Duration(n*turn), took[1]/time.Duration(n*turn)
	b.ReportMetric(float64(one), "ns/op")
	return one, other
}
