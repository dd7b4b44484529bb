package capability_test

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/subtle"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"gopkg.in/macaroon.v2"

	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/capability/revocation"
	"github.com/writ-dev/writ/caveats"
)

// typed are five caveats of a usual token.
var typed = []string{
	"time-before 2026-11-24T08:04:00Z",
	"action read list",
	"resource files/reports/**",
	"argument limit <= 100",
	"client-ip 10.0.0.0/8",
}

func typedRequest() *capability.Request {
	return &capability.Request{
		Now: now, Action: "read", Resource: []string{"files", "reports", "q3"},
		Arguments: capability.Fields{{Name: "limit", Value: capability.NumberValue("25")}},
		Client:    netip.MustParseAddr("10.1.2.3"),
	}
}

// revoked has a million live revocations of other tokens for a benchmark, and
// fewer for a test, which does not care.
func revoked(t testing.TB) revocation.Static {
	if _, ok := t.(*testing.B); ok {
		return million()
	}
	return revocationsOfOthers(1000)
}

var million = sync.OnceValue(func() revocation.Static { return revocationsOfOthers(1_000_000) })

func revocationsOfOthers(n int) revocation.Static {
	s := revocation.New()
	for i := range n {
		s.RevokeToken(capability.NewTokenID(now.UnixMilli(), [10]byte{byte(i), byte(i >> 8), 0, byte(i >> 16), 1}), never)
	}
	return revocation.Static{Set: s}
}

func standard(t testing.TB) capability.Checker {
	t.Helper()
	c, err := caveats.Standard()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func typedVerifier(t testing.TB, opts ...capability.Option) *capability.Verifier {
	t.Helper()
	v, err := capability.NewVerifier(keyring{testKey()}, []string{"corp"}, standard(t),
		append(opts, capability.WithRevocations(revoked(t), 0))...)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// bareChain is the least that any macaroon costs: HMAC-SHA256 on the stack over
// the key, the identifier and the caveats.
type bareChain struct {
	msgs [][]byte
	sig  [32]byte
}

func newBareChain(t testing.TB, tok *capability.Token) *bareChain {
	t.Helper()
	var m macaroon.Macaroon
	if err := m.UnmarshalBinary(tok.Bytes()); err != nil {
		t.Fatal(err)
	}
	c := &bareChain{msgs: [][]byte{m.Id()}, sig: [32]byte(m.Signature())}
	for _, cav := range m.Caveats() {
		c.msgs = append(c.msgs, cav.Id)
	}
	return c
}

func (c *bareChain) verify(key *[32]byte) bool {
	var gen [32]byte
	copy(gen[:], "macaroons-key-generator")
	sig := bareHMAC(&gen, key[:])
	for _, m := range c.msgs {
		sig = bareHMAC(&sig, m)
	}
	return subtle.ConstantTimeCompare(sig[:], c.sig[:]) == 1
}

// pads are the inner and outer pad of HMAC for a key of zeros.
var pads = func() (p [2][64]byte) {
	for i := range 64 {
		p[0][i], p[1][i] = 0x36, 0x5c
	}
	return p
}()

func bareHMAC(key *[32]byte, msg []byte) [32]byte {
	var inner [64 + 256]byte
	var outer [64 + 32]byte
	copy(inner[:], pads[0][:])
	copy(outer[:], pads[1][:])
	subtle.XORBytes(inner[:32], inner[:32], key[:])
	subtle.XORBytes(outer[:32], outer[:32], key[:])
	n := copy(inner[64:], msg)
	sum := sha256.Sum256(inner[:64+n])
	copy(outer[64:], sum[:])
	return sha256.Sum256(outer[:])
}

func benchBare(b *testing.B, tok *capability.Token) {
	c, key := newBareChain(b, tok), [32]byte{1, 2, 3}
	b.ReportAllocs()
	for b.Loop() {
		if !c.verify(&key) {
			b.Fatal("refused")
		}
	}
}

func benchVerify(b *testing.B, v *capability.Verifier, tok *capability.Token, req *capability.Request) {
	set, g, ctx := tok.Bytes(), new(capability.Grant), context.Background()
	b.ReportAllocs()
	for b.Loop() {
		if err := v.Verify(ctx, g, set, req); err != nil {
			b.Fatal(err)
		}
	}
}

// benchMacaroon does with macaroon.v2 what a Verifier does: decode, verify,
// clear with the same checker, look up revocations.
func benchMacaroon(b *testing.B, tok *capability.Token, req *capability.Request) {
	set, checker, gone, key := tok.Bytes(), standard(b), million(), [32]byte{1, 2, 3}
	g := new(capability.Grant)
	b.ReportAllocs()
	for b.Loop() {
		var ms macaroon.Slice
		if err := ms.UnmarshalBinary(set); err != nil {
			b.Fatal(err)
		}
		id, err := capability.ParseIdentity(ms[0].Id())
		if err != nil {
			b.Fatal(err)
		}
		cl := capability.NewClearance(g, id, req, gone)
		err = ms[0].Verify(key[:], func(c string) error {
			if strings.HasPrefix(c, "bound ") {
				return nil
			}
			return checker.Check(cl, capability.Caveat{Condition: []byte(c)})
		}, ms[1:])
		if err != nil || gone.Token(&id) != capability.Live || id.NotAfter <= req.Now.UnixMilli() {
			b.Fatal("refused:", err)
		}
	}
}

func BenchmarkVerify(b *testing.B) {
	tok, req := mint(b, typed...), typedRequest()
	b.Run("bare", func(b *testing.B) { benchBare(b, tok) })
	b.Run("writ", func(b *testing.B) { benchVerify(b, typedVerifier(b), tok, req) })
	b.Run("writ-text", func(b *testing.B) {
		v, text, g, ctx := typedVerifier(b), tok.Text(), new(capability.Grant), context.Background()
		b.ReportAllocs()
		for b.Loop() {
			if err := v.VerifyText(ctx, g, text, req); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("macaroon.v2", func(b *testing.B) { benchMacaroon(b, tok, req) })
	claims := jwt.MapClaims{
		"iss": "corp", "sub": "agent-42", "aud": "corp", "jti": testIdentifier().ID.String(),
		"exp": now.Add(5 * time.Minute).Unix(), "action": []string{"read", "list"}, "resource": "files/reports/**",
		"limit": 100, "client": "10.0.0.0/8",
	}
	secret := make([]byte, 32)
	b.Run("jwt-hs256", func(b *testing.B) { benchJWT(b, jwt.SigningMethodHS256, secret, secret, claims) })
	private := ed25519.NewKeyFromSeed(secret)
	b.Run("jwt-eddsa", func(b *testing.B) { benchJWT(b, jwt.SigningMethodEdDSA, private, private.Public(), claims) })
}

// benchJWT parses and verifies only; what the claims mean would come on top.
func benchJWT(b *testing.B, m jwt.SigningMethod, signKey, verifyKey any, claims jwt.MapClaims) {
	text, err := jwt.NewWithClaims(m, claims).SignedString(signKey)
	if err != nil {
		b.Fatal(err)
	}
	p := jwt.NewParser(jwt.WithValidMethods([]string{m.Alg()}), jwt.WithTimeFunc(func() time.Time { return now }),
		jwt.WithAudience("corp"), jwt.WithExpirationRequired())
	b.ReportAllocs()
	for b.Loop() {
		if _, err := p.Parse(text, func(*jwt.Token) (any, error) { return verifyKey, nil }); err != nil {
			b.Fatal(err)
		}
	}
}

// The same token again, or narrowed by one caveat, against the bare chain of
// what is presented.
func BenchmarkCached(b *testing.B) {
	tok, req := mint(b, typed...), typedRequest()
	more := must[*capability.Token](b)(tok.AttenuateExact("action read"))
	warm := func(b *testing.B) *capability.Verifier {
		v := typedVerifier(b, capability.WithPrefixCache(1000))
		if err := v.Verify(context.Background(), new(capability.Grant), tok.Bytes(), req); err != nil {
			b.Fatal(err)
		}
		return v
	}
	b.Run("bare", func(b *testing.B) { benchBare(b, tok) })
	b.Run("same", func(b *testing.B) { benchVerify(b, warm(b), tok, req) })
	b.Run("bare-more", func(b *testing.B) { benchBare(b, more) })
	// One caveat more each time: a token that was never seen, every time.
	b.Run("more", func(b *testing.B) {
		v, g, ctx := warm(b), new(capability.Grant), context.Background()
		sets := make([][]byte, 1024)
		for i := range sets {
			sets[i] = must[*capability.Token](b)(tok.AttenuateExact("argument limit <= " + strconv.Itoa(100+i))).Bytes()
		}
		i := 0
		b.ReportAllocs()
		for b.Loop() {
			if err := v.Verify(ctx, g, sets[i&1023], req); err != nil {
				b.Fatal(err)
			}
			i++
		}
	})
}

func BenchmarkDischarge(b *testing.B) {
	k := discharger(b, 1)
	tok := must[*capability.Token](b)(mint(b, typed...).AddThirdParty(k.Public(), "https://d.example", approved("approved payments")))
	o := must[*capability.OpenedCaveat](b)(k.OpenCaveat(tok.Missing()[0].CaveatID))
	bound := with(b, tok, must[*capability.Token](b)(o.Discharge("time-before 2026-11-24T08:04:00Z")))
	signed := with(b, tok, must[*capability.Token](b)(must[*capability.Token](b)(
		rawDischarge(b, o).AttenuateExact("time-before 2026-11-24T08:04:00Z")).Bind(tok)))
	b.Run("writ", func(b *testing.B) { benchVerify(b, typedVerifier(b), bound, typedRequest()) })
	b.Run("writ-signature", func(b *testing.B) { benchVerify(b, typedVerifier(b), signed, typedRequest()) })
	b.Run("macaroon.v2", func(b *testing.B) { benchMacaroon(b, signed, typedRequest()) })
}

// BenchmarkCaveats reports what a caveat costs more, by how many there are.
func BenchmarkCaveats(b *testing.B) {
	v := typedVerifier(b)
	for _, n := range []int{8, 64} {
		conditions := make([]string, n)
		for i := range conditions {
			conditions[i] = "resource files/reports/**"
		}
		tok := mint(b, conditions...)
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			benchVerify(b, v, tok, typedRequest())
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/caveat")
		})
	}
}

func BenchmarkRefusal(b *testing.B) {
	v, tok, g, ctx, req := typedVerifier(b), mint(b, typed...), new(capability.Grant), context.Background(), typedRequest()
	forged := tok.Bytes()
	forged[len(forged)-1] ^= 1
	b.Run("good", func(b *testing.B) { benchVerify(b, v, tok, req) })
	for _, c := range []struct {
		name string
		set  []byte
	}{{"forged", forged}, {"oversized", make([]byte, 1<<20)}, {"garbage", make([]byte, capability.MaxTokenSize)}} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if v.Verify(ctx, g, c.set, req) == nil {
					b.Fatal("accepted")
				}
			}
		})
	}
}

// BenchmarkParallel is for -cpu 1,2: verifying is to scale as hashing does.
func BenchmarkParallel(b *testing.B) {
	tok := mint(b, typed...)
	b.Run("bare", func(b *testing.B) {
		b.RunParallel(func(pb *testing.PB) {
			c, key := newBareChain(b, tok), [32]byte{1, 2, 3}
			for pb.Next() {
				if !c.verify(&key) {
					b.Error("refused")
				}
			}
		})
	})
	for _, c := range []struct {
		name string
		v    *capability.Verifier
	}{{"writ", typedVerifier(b)}, {"writ-cached", typedVerifier(b, capability.WithPrefixCache(1000))}} {
		b.Run(c.name, func(b *testing.B) {
			b.RunParallel(func(pb *testing.PB) {
				set, g, ctx, req := tok.Bytes(), new(capability.Grant), context.Background(), typedRequest()
				for pb.Next() {
					if err := c.v.Verify(ctx, g, set, req); err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
}

// free is a Budgets that lets everything through: what is left is what the
// verifier itself does for a budget.
type free struct{}

func (free) Spend(context.Context, *capability.BudgetPath) (bool, error) { return false, nil }

// A budget costs its caveat's MAC and check, the hash that names its branch, and
// what Budgets does.
func BenchmarkBudget(b *testing.B) {
	v := typedVerifier(b, capability.WithBudgets(free{}))
	b.Run("hash", func(b *testing.B) {
		sig := make([]byte, 32)
		for b.Loop() {
			sum := sha256.Sum256(append([]byte("writ/v1/branch"), sig...))
			sig[0] = sum[0]
		}
	})
	b.Run("without", func(b *testing.B) { benchVerify(b, v, mint(b, append(typed, "resource **")...), typedRequest()) })
	b.Run("max-calls", func(b *testing.B) { benchVerify(b, v, mint(b, append(typed, "max-calls 3")...), typedRequest()) })
}
