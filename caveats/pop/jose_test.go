package pop_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats/pop"
)

// The examples of RFC 9449: the key of sections 4.2 and 6.1, the proofs of
// figures 2 and 12.
const (
	rfcHeader     = "eyJ0eXAiOiJkcG9wK2p3dCIsImFsZyI6IkVTMjU2IiwiandrIjp7Imt0eSI6IkVDIiwieCI6Imw4dEZyaHgtMzR0VjNoUklDUkRZOXpDa0RscEJoRjQyVVFVZldWQVdCRnMiLCJ5IjoiOVZFNGpmX09rX282NHpiVFRsY3VOSmFqSG10NnY5VERWclUwQ2R2R1JEQSIsImNydiI6IlAtMjU2In19"
	rfcAuthServer = rfcHeader + ".eyJqdGkiOiItQndDM0VTYzZhY2MybFRjIiwiaHRtIjoiUE9TVCIsImh0dSI6Imh0dHBzOi8vc2VydmVyLmV4YW1wbGUuY29tL3Rva2VuIiwiaWF0IjoxNTYyMjYyNjE2fQ.2-GxA6T8lP4vfrg8v-FdWP0A0zdrj8igiMLvqRMUvwnQg4PtFLbdLXiOSsX0x7NVY-FNyJK70nfbV37xRZT3Lg"
	rfcResource   = rfcHeader + ".eyJqdGkiOiJlMWozVl9iS2ljOC1MQUVCIiwiaHRtIjoiR0VUIiwiaHR1IjoiaHR0cHM6Ly9yZXNvdXJjZS5leGFtcGxlLm9yZy9wcm90ZWN0ZWRyZXNvdXJjZSIsImlhdCI6MTU2MjI2MjYxOCwiYXRoIjoiZlVIeU8ycjJaM0RaNTNFc05yV0JiMHhXWG9hTnk1OUlpS0NBcWtzbVFFbyJ9.2oW9RP35yRqzhrtNP86L-Ey71EOptxRimPPToA1plemAgR6pxHF8y6-yqyVnmcw6Fy1dqd-jfxSYoMxhAJpLjA"
	rfcToken      = "Kz~8mXK1EalYznwH-LC-1fBAo.4Ljp~zsPE_NeO.gxU"
	rfcThumbprint = "jkt:0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"
)

func TestRFC9449(t *testing.T) {
	k, err := capability.ParseHolderKey(rfcThumbprint)
	if err != nil {
		t.Fatal(err)
	}
	v, at := verifier(t, pop.Config{Origins: []string{"https://resource.example.org"}})
	at.now = time.Unix(1562262618, 0)
	e := pop.Evidence{Proofs: []string{rfcResource}, Token: rfcToken, Method: "GET", Path: "/protectedresource"}
	if err := ask(v, e, k); err != nil {
		t.Fatal(err)
	}
	refused(t, ask(v, e, k), capability.CodeReplayed, "")

	// The one for the token endpoint has no ath: no resource takes it.
	v, at = verifier(t, pop.Config{Origins: []string{"https://server.example.com"}})
	at.now = time.Unix(1562262616, 0)
	e = pop.Evidence{Proofs: []string{rfcAuthServer}, Token: rfcToken, Method: "POST", Path: "/token"}
	refused(t, ask(v, e, k), capability.CodeHolderProof, "another token")
}

// RFC 7638 over OKP, from RFC 8037 appendix A.3.
func TestThumbprintOfRFC8037(t *testing.T) {
	x, err := base64.RawURLEncoding.DecodeString("nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A")
	if err != nil {
		t.Fatal(err)
	}
	k, err := pop.NewKey(ed25519.NewKeyFromSeed(x))
	if err != nil {
		t.Fatal(err)
	}
	if got := k.HolderKey().String(); got != "jkt:kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k" {
		t.Fatal(got)
	}
}

// A JOSE library makes what is accepted here.
func TestAcceptsWhatJOSEMakes(t *testing.T) {
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for alg, private := range map[jose.SignatureAlgorithm]crypto.Signer{jose.EdDSA: ed, jose.ES256: ec} {
		jwk := jose.JSONWebKey{Key: private.Public()}
		opts := (&jose.SignerOptions{EmbedJWK: true}).WithType("dpop+jwt")
		signer, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: private}, opts)
		if err != nil {
			t.Fatal(err)
		}
		signed, err := signer.Sign([]byte(claims(t, "")))
		if err != nil {
			t.Fatal(err)
		}
		proof, err := signed.CompactSerialize()
		if err != nil {
			t.Fatal(err)
		}
		print, err := jwk.Thumbprint(crypto.SHA256)
		if err != nil {
			t.Fatal(err)
		}
		v, _ := verifier(t, pop.Config{})
		if err := ask(v, evidence(proof), capability.HolderKey{Method: capability.HolderDPoP, Thumbprint: [32]byte(print)}); err != nil {
			t.Errorf("%s: %v", alg, err)
		}
	}
}

// A JOSE library accepts what is made here, and reads the same in it.
func TestJOSEAcceptsWhatIsMade(t *testing.T) {
	for _, a := range algorithms {
		k := key(t, a)
		signed, err := jose.ParseSignedCompact(prove(t, k, call()), []jose.SignatureAlgorithm{jose.EdDSA, jose.ES256})
		if err != nil {
			t.Fatal(err)
		}
		header := signed.Signatures[0].Protected
		if header.ExtraHeaders["typ"] != "dpop+jwt" || header.Algorithm != a.String() {
			t.Errorf("header %+v", header)
		}
		payload, err := signed.Verify(header.JSONWebKey)
		if err != nil {
			t.Fatal(err)
		}
		print, err := header.JSONWebKey.Thumbprint(crypto.SHA256)
		if err != nil || [32]byte(print) != k.HolderKey().Thumbprint {
			t.Errorf("thumbprint %x, %v", print, err)
		}
		var c map[string]any
		if err := json.Unmarshal(payload, &c); err != nil {
			t.Fatal(err)
		}
		ath := sha256.Sum256([]byte(testToken))
		if c["htm"] != "GET" || c["htu"] != testOrigin+"/files/q3" || c["iat"] != float64(epoch.Unix()) ||
			c["ath"] != base64.RawURLEncoding.EncodeToString(ath[:]) || len(c["jti"].(string)) != 22 || len(c) != 5 {
			t.Errorf("claims %v", c)
		}
	}
}

// handmade are keys whose private halves tests sign with.
func handmade(tb testing.TB) (ed ed25519.PrivateKey, ec *ecdsa.PrivateKey) {
	tb.Helper()
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	_, ed, err = ed25519.GenerateKey(rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return ed, ec
}

func asKey(tb testing.TB, s crypto.Signer) *pop.Key {
	tb.Helper()
	k, err := pop.NewKey(s)
	if err != nil {
		tb.Fatal(err)
	}
	return k
}

func signEC(tb testing.TB, k *ecdsa.PrivateKey, m []byte, high bool) []byte {
	tb.Helper()
	h := sha256.Sum256(m)
	r, s, err := ecdsa.Sign(rand.Reader, k, h[:])
	if err != nil {
		tb.Fatal(err)
	}
	n := k.Params().N
	if isHigh := s.Cmp(new(big.Int).Rsh(n, 1)) > 0; isHigh != high {
		s.Sub(n, s)
	}
	sig := make([]byte, 64)
	r.FillBytes(sig[:32])
	s.FillBytes(sig[32:])
	return sig
}

// Each row breaks the form of a proof whose signature is right.
func TestHeaderAndClaims(t *testing.T) {
	ed, ec := handmade(t)
	edKey, ecKey := asKey(t, ed), asKey(t, ec)
	private := base64.RawURLEncoding.EncodeToString(ed.Seed())
	x := base64.RawURLEncoding.EncodeToString(ed.Public().(ed25519.PublicKey))
	head := func(alg, jwk string) string { return `{"typ":"dpop+jwt","alg":"` + alg + `","jwk":` + jwk + `}` }
	edJWK, ecJWK := edKey.JWK(), ecKey.JWK()
	offCurve := strings.Replace(ecJWK, `"y":"`, `"y":"A`, 1)
	offCurve = offCurve[:len(offCurve)-3] + offCurve[len(offCurve)-2:]
	long := strings.Repeat(" ", pop.MaxProof)
	for _, c := range []struct {
		name            string
		header, payload string
		detail          string // "" is accepted
	}{
		{"as it should be", head("EdDSA", edJWK), "", ""},
		{"the algorithm's newer name", head("Ed25519", edJWK), "", ""},
		{"P-256", head("ES256", ecJWK), "", ""},
		{"white space", "{ \"typ\" :\t\"dpop+jwt\", \"alg\":\n\"EdDSA\" , \"jwk\": " + edJWK + " } ", "", ""},
		{"unknown members", strings.Replace(head("EdDSA", strings.Replace(edJWK, `{`, `{"use":"sig","key_ops":["verify"],`, 1)), `{`, `{"kid":"7","x":{"y":["}",{"z":null}]},`, 1), "", ""},
		{"a URI with escaped slashes", head("EdDSA", edJWK), strings.ReplaceAll(claims(t, ""), "/", `\/`), ""},
		{"exp ahead", head("EdDSA", edJWK), claims(t, `{"exp":1800000010,"nbf":1800000000}`), ""},

		{"alg none", head("none", edJWK), "", "alg"},
		{"no alg", `{"typ":"dpop+jwt","jwk":` + edJWK + `}`, "", "alg"},
		{"HS256", head("HS256", edJWK), "", "alg"},
		{"RS256", head("RS256", ecJWK), "", "alg"},
		{"the algorithm of another key", head("ES256", edJWK), "", "alg"},
		{"ES256 as EdDSA", head("EdDSA", ecJWK), "", "alg"},
		{"no typ", `{"alg":"EdDSA","jwk":` + edJWK + `}`, "", "typ"},
		{"typ JWT", strings.Replace(head("EdDSA", edJWK), "dpop+jwt", "JWT", 1), "", "typ"},
		{"the typ of a session", strings.Replace(head("EdDSA", edJWK), "dpop+jwt", "writ-session+jwt", 1), "", "typ"},
		{"no jwk", `{"typ":"dpop+jwt","alg":"EdDSA"}`, "", "jwk"},
		{"jwk with its private part", head("EdDSA", strings.Replace(edJWK, "}", `,"d":"`+private+`"}`, 1)), "", "private"},
		{"jwk with a symmetric key", head("EdDSA", strings.Replace(edJWK, "}", `,"k":"AA"}`, 1)), "", "private"},
		{"jwk twice", strings.Replace(head("EdDSA", edJWK), "}}", `},"jwk":`+ecJWK+`}`, 1), "", "twice"},
		{"x twice", head("EdDSA", strings.Replace(edJWK, "}", `,"x":"`+x+`"}`, 1)), "", "twice"},
		{"alg by an escape", strings.Replace(head("EdDSA", edJWK), `"alg"`, `"\u0061lg"`, 1), "", "escape"},
		{"jwk is a string", head("EdDSA", `"x"`), "", "jwk"},
		{"a symmetric jwk", head("HS256", `{"kty":"oct"}`), "", "neither"},
		{"P-384", head("ES384", strings.Replace(ecJWK, "P-256", "P-384", 1)), "", "neither"},
		{"x with padding", head("EdDSA", strings.Replace(edJWK, x, x+"=", 1)), "", "jwk"},
		{"x too short", head("EdDSA", strings.Replace(edJWK, x, x[:42], 1)), "", "jwk"},
		{"a point not on the curve", head("ES256", offCurve), "", ""},
		{"crit", strings.Replace(head("EdDSA", edJWK), "}}", `},"crit":["b64"],"b64":false}`, 1), "", "critical"},
		{"header is an array", `[]`, "", "object"},
		{"header is cut", head("EdDSA", edJWK)[:40], "", "JSON"},
		{"header with a second value", head("EdDSA", edJWK) + "{}", "", "JSON"},
		{"header of invalid UTF-8", strings.Replace(head("EdDSA", edJWK), `"alg"`, "\"\xff\":1,\"alg\"", 1), "", "JSON"},
		{"a large header", head("EdDSA", edJWK) + long, "", "8 KiB"},

		{"no htm", head("EdDSA", edJWK), claims(t, `{"htm":null}`), "method"},
		{"no htu", head("EdDSA", edJWK), claims(t, `{"htu":null}`), "htu"},
		{"no jti", head("EdDSA", edJWK), claims(t, `{"jti":null}`), "jti"},
		{"an empty jti", head("EdDSA", edJWK), claims(t, `{"jti":""}`), "jti"},
		{"no iat", head("EdDSA", edJWK), claims(t, `{"iat":null}`), "iat"},
		{"iat a string", head("EdDSA", edJWK), claims(t, `{"iat":"1800000000"}`), "claim"},
		{"iat with a fraction", head("EdDSA", edJWK), claims(t, `{"iat":1800000000.5}`), "claim"},
		{"a negative iat", head("EdDSA", edJWK), claims(t, `{"iat":-1}`), "claim"},
		{"iat of many digits", head("EdDSA", edJWK), strings.Replace(claims(t, ""), "1800000000", "18000000000000000000", 1), "claim"},
		{"iat twice", head("EdDSA", edJWK), strings.Replace(claims(t, ""), "{", `{"iat":1,`, 1), "twice"},
		{"exp past", head("EdDSA", edJWK), claims(t, `{"exp":1800000000}`), "exp"},
		{"nbf ahead", head("EdDSA", edJWK), claims(t, `{"nbf":1800000006}`), "nbf"},
		{"ath in hex", head("EdDSA", edJWK), claims(t, `{"ath":"aa"}`), "claim"},
		{"htu a number", head("EdDSA", edJWK), claims(t, `{"htu":1}`), "claim"},
		{"payload null", head("EdDSA", edJWK), "null", "object"},
	} {
		t.Run(c.name, func(t *testing.T) {
			k, sign := edKey, func(m []byte) []byte { return ed25519.Sign(ed, m) }
			if strings.Contains(c.header, `"EC"`) && !strings.Contains(c.header, `"OKP"`) {
				k, sign = ecKey, func(m []byte) []byte { return signEC(t, ec, m, false) }
			}
			payload := c.payload
			if payload == "" {
				payload = claims(t, "")
			}
			v, _ := verifier(t, pop.Config{})
			err := ask(v, evidence(jws(t, sign, c.header, payload)), k.HolderKey())
			if c.name == "a point not on the curve" {
				refused(t, err, capability.CodeHolderProof, "")
			} else if c.detail == "" {
				if err != nil {
					t.Fatal(err)
				}
			} else {
				refused(t, err, capability.CodeHolderProof, c.detail)
			}
		})
	}
}

// A point that is not on the curve is refused even for the thumbprint that it has.
func TestPointOffTheCurve(t *testing.T) {
	jwk := `{"crv":"P-256","kty":"EC","x":"` + base64.RawURLEncoding.EncodeToString(make([]byte, 32)) + `","y":"` +
		base64.RawURLEncoding.EncodeToString(make([]byte, 32)) + `"}`
	v, _ := verifier(t, pop.Config{})
	proof := jws(t, func([]byte) []byte { return make([]byte, 64) }, `{"typ":"dpop+jwt","alg":"ES256","jwk":`+jwk+`}`, claims(t, ""))
	k := capability.HolderKey{Method: capability.HolderDPoP, Thumbprint: sha256.Sum256([]byte(jwk))}
	refused(t, ask(v, evidence(proof), k), capability.CodeHolderProof, "signature")
}

// An HMAC under the public key is no signature, whatever alg says.
func TestPublicKeyAsSecret(t *testing.T) {
	ed, _ := handmade(t)
	k := asKey(t, ed)
	mac := func(m []byte) []byte {
		h := hmac.New(sha256.New, ed.Public().(ed25519.PublicKey))
		h.Write(m)
		return append(h.Sum(nil), make([]byte, 32)...)
	}
	for _, alg := range []string{"HS256", "EdDSA"} {
		v, _ := verifier(t, pop.Config{})
		proof := jws(t, mac, `{"typ":"dpop+jwt","alg":"`+alg+`","jwk":`+k.JWK()+`}`, claims(t, ""))
		refused(t, ask(v, evidence(proof), k.HolderKey()), capability.CodeHolderProof, "")
	}
}

// The twin of an ECDSA signature is a signature too: it must not be a second call.
func TestSignatureTwin(t *testing.T) {
	_, ec := handmade(t)
	k := asKey(t, ec)
	header := `{"typ":"dpop+jwt","alg":"ES256","jwk":` + k.JWK() + `}`
	for _, high := range []bool{false, true} {
		v, _ := verifier(t, pop.Config{})
		sign := func(high bool) string {
			return jws(t, func(m []byte) []byte { return signEC(t, ec, m, high) }, header, claims(t, ""))
		}
		if err := ask(v, evidence(sign(high)), k.HolderKey()); err != nil {
			t.Fatal(err)
		}
		refused(t, ask(v, evidence(sign(!high)), k.HolderKey()), capability.CodeReplayed, "")
	}
}

func TestSignatures(t *testing.T) {
	ed, ec := handmade(t)
	der := func(m []byte) []byte {
		h := sha256.Sum256(m)
		sig, err := ecdsa.SignASN1(rand.Reader, ec, h[:])
		if err != nil {
			t.Fatal(err)
		}
		return sig
	}
	for _, c := range []struct {
		name string
		key  *pop.Key
		sign func([]byte) []byte
	}{
		{"ASN.1", asKey(t, ec), der},
		{"r and s of nothing", asKey(t, ec), func([]byte) []byte { return make([]byte, 64) }},
		{"one byte short", asKey(t, ec), func(m []byte) []byte { return signEC(t, ec, m, false)[:63] }},
		{"one byte long", asKey(t, ed), func(m []byte) []byte { return append(ed25519.Sign(ed, m), 0) }},
		{"of another key", asKey(t, ed), func(m []byte) []byte { other, _ := handmade(t); return ed25519.Sign(other, m) }},
		{"of another message", asKey(t, ed), func(m []byte) []byte { return ed25519.Sign(ed, m[1:]) }},
		{"none", asKey(t, ed), func([]byte) []byte { return nil }},
		{"S plus the order", asKey(t, ed), func(m []byte) []byte {
			sig := ed25519.Sign(ed, m)
			order, _ := new(big.Int).SetString("7237005577332262213973186563042994240857116359379907606001950938285454250989", 10)
			s := make([]byte, 32)
			for i := range s {
				s[i] = sig[63-i]
			}
			sum := new(big.Int).Add(new(big.Int).SetBytes(s), order).FillBytes(s)
			for i := range sum {
				sig[63-i] = sum[i]
			}
			return sig
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			v, _ := verifier(t, pop.Config{})
			proof := jws(t, c.sign, `{"typ":"dpop+jwt","alg":"`+c.key.Algorithm().String()+`","jwk":`+c.key.JWK()+`}`, claims(t, ""))
			refused(t, ask(v, evidence(proof), c.key.HolderKey()), capability.CodeHolderProof, "signature")
		})
	}
}
