package pop_test

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/writ-dev/writ/caveats/pop"
)

// fixed is a key that stays the same, so that a corpus stays meaningful.
func fixed(tb testing.TB) *pop.Key {
	tb.Helper()
	k, err := pop.ParseKey([]byte("-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n-----END PRIVATE KEY-----\n"))
	if err != nil {
		tb.Fatal(err)
	}
	return k
}

// edKey is its private half, the example of RFC 8037 appendix A.
func edKey(tb testing.TB) ed25519.PrivateKey {
	tb.Helper()
	seed, err := base64.RawURLEncoding.DecodeString("nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A")
	if err != nil {
		tb.Fatal(err)
	}
	return ed25519.NewKeyFromSeed(seed)
}

// FuzzProof: whatever is accepted is one JWS whose signature a JOSE library
// accepts too, and no other text of it is.
func FuzzProof(f *testing.F) {
	k := fixed(f)
	c := call()
	c.ID = "fixed"
	f.Add(prove(f, k, c))
	f.Add(prove(f, pop.NewSession(k, 0, func() time.Time { return epoch }), c))
	f.Add(rfcResource)
	f.Add("a.b.c")
	f.Add("")
	f.Fuzz(func(t *testing.T, proof string) {
		v, _ := verifier(t, pop.Config{})
		h := v.Holder(evidence(proof))
		_ = pop.Facts(h)
		if h.Prove(t.Context(), k.HolderKey()) != nil {
			return
		}
		signed, err := jose.ParseSignedCompact(proof, []jose.SignatureAlgorithm{jose.EdDSA, jose.ES256})
		if err != nil {
			t.Fatalf("accepted, and no JWS: %v", err)
		}
		if _, err := signed.Verify(signed.Signatures[0].Protected.JSONWebKey); err != nil {
			t.Fatalf("accepted, and its signature does not match: %v", err)
		}
		for part := range strings.SplitSeq(proof, ".") {
			b, err := base64.RawURLEncoding.DecodeString(part)
			if err != nil || base64.RawURLEncoding.EncodeToString(b) != part {
				t.Fatalf("accepted in another text than its own: %q, %v", part, err)
			}
		}
	})
}

// FuzzHeaderAndClaims signs whatever it is given, so that what is behind the
// signature is reached: nothing panics, and what is accepted says what it must.
func FuzzHeaderAndClaims(f *testing.F) {
	k := fixed(f)
	ed := edKey(f)
	f.Add(`{"typ":"dpop+jwt","alg":"EdDSA","jwk":`+k.JWK()+`}`, claims(f, ""))
	f.Add(`{"alg":"EdDSA","x":[{"}":"]"}],"typ":"dpop+jwt","jwk":{"x":"AA","kty":"OKP"}}`, `{"jti":"\u0061","iat":1}`)
	f.Add(`{"typ":"dpop+jwt","dev.writ/session":"a.b.c","alg":"ES256","jwk":{}}`, `{"cnf":{"jkt":1}}`)
	f.Fuzz(func(t *testing.T, header, payload string) {
		v, _ := verifier(t, pop.Config{})
		proof := jws(t, signer(ed), header, payload)
		if ask(v, evidence(proof), k.HolderKey()) != nil {
			return
		}
		var h, c map[string]any
		if err := errors.Join(json.Unmarshal([]byte(header), &h), json.Unmarshal([]byte(payload), &c)); err != nil {
			t.Fatalf("accepted: %v: %s %s", err, header, payload)
		}
		jwk, _ := h["jwk"].(map[string]any)
		_, private := jwk["d"]
		if h["typ"] != "dpop+jwt" || h["alg"] != "EdDSA" && h["alg"] != "Ed25519" || jwk["crv"] != "Ed25519" || private || h["crit"] != nil ||
			c["htm"] != "GET" || c["iat"] == nil || c["jti"] == nil || c["ath"] == nil {
			t.Fatalf("accepted: %s %s", header, payload)
		}
	})
}

// FuzzURI: comparing is symmetric, and a URI is the same as itself if it is one.
func FuzzURI(f *testing.F) {
	k := fixed(f)
	ed := edKey(f)
	f.Add("https://a.example/x?y#z", "/x")
	f.Add("HTTPS://a.example:443/%7e%zz/..", "/~%ZZ/..")
	f.Fuzz(func(t *testing.T, htu, path string) {
		v, _ := verifier(t, pop.Config{Origins: []string{"https://a.example"}})
		e := evidence(jws(t, signer(ed), `{"typ":"dpop+jwt","alg":"EdDSA","jwk":`+k.JWK()+`}`, claims(t, `{"htu":`+quote(t, htu)+`}`)))
		e.Path = path
		if ask(v, e, k.HolderKey()) != nil {
			return
		}
		// The call's own URI is then one for which a proof can be made, and holds.
		v, _ = verifier(t, pop.Config{Origins: []string{"https://a.example"}})
		c := call()
		c.URI = "https://a.example" + path
		proof, err := k.Prove(t.Context(), c)
		if err != nil {
			t.Fatalf("htu %q holds for a path %q that is none: %v", htu, path, err)
		}
		e.Proofs = []string{proof}
		if err := ask(v, e, k.HolderKey()); err != nil {
			t.Fatalf("%q: %v", c.URI, err)
		}
	})
}

// FuzzKeyFile: nothing panics, and what is read is a key that proves.
func FuzzKeyFile(f *testing.F) {
	f.Add("-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n-----END PRIVATE KEY-----\n")
	f.Add("-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n")
	f.Fuzz(func(t *testing.T, text string) {
		k, err := pop.ParseKey([]byte(text))
		if err != nil {
			return
		}
		v, _ := verifier(t, pop.Config{})
		if err := ask(v, evidence(prove(t, k, call())), k.HolderKey()); err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzNonce: none is accepted but the two that are current.
func FuzzNonce(f *testing.F) {
	n, err := pop.NewNonces([]byte("0123456789abcdef0123456789abcdef"), time.Minute)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(n.At(epoch))
	f.Add(base64.RawURLEncoding.EncodeToString(make([]byte, 24)))
	f.Fuzz(func(t *testing.T, nonce string) {
		ok, _ := n.Check(nonce, epoch)
		if ok != (nonce == n.At(epoch) || nonce == n.At(epoch.Add(-30*time.Second))) {
			t.Fatalf("nonce %q: %v", nonce, ok)
		}
	})
}
