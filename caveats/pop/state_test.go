package pop_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats/pop"
)

func signer(k ed25519.PrivateKey) func([]byte) []byte {
	return func(m []byte) []byte { return ed25519.Sign(k, m) }
}

func quote(tb testing.TB, s string) string {
	tb.Helper()
	b, err := json.Marshal(s)
	if err != nil {
		tb.Fatal(err)
	}
	return string(b)
}

func TestNonces(t *testing.T) {
	shared := []byte(strings.Repeat("k", 32))
	a, err := pop.NewNonces(shared, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	b, err := pop.NewNonces(shared, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	alone, err := pop.NewNonces(nil, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	nonce := a.At(epoch)
	if ok, newest := b.Check(nonce, epoch); !ok || !newest {
		t.Error("another instance with the key refuses it")
	}
	if ok, _ := alone.Check(nonce, epoch); ok {
		t.Error("accepted without the key")
	}
	if ok, newest := a.Check(nonce, epoch.Add(30*time.Second)); !ok || newest {
		t.Error("half a life later: want it good, and no longer the newest")
	}
	if ok, _ := a.Check(nonce, epoch.Add(time.Minute)); ok {
		t.Error("accepted a life later")
	}
	if ok, _ := a.Check(nonce, epoch.Add(-30*time.Second)); ok {
		t.Error("accepted before it was given out")
	}
	for i := range nonce {
		forged := []byte(nonce)
		forged[i] ^= 1
		if ok, _ := a.Check(string(forged), epoch); ok {
			t.Errorf("forged at %d", i)
		}
	}
	if strings.Contains(fmt.Sprintf("%v %+v %#v %s", a, a, a, a), "107") {
		t.Error("it prints its key")
	}
	for _, c := range []struct {
		key      []byte
		lifetime time.Duration
	}{{shared[:31], 0}, {nil, time.Second}, {nil, 2 * time.Hour}, {[]byte{}, 0}} {
		if _, err := pop.NewNonces(c.key, c.lifetime); err == nil {
			t.Errorf("%d bytes for %v are accepted", len(c.key), c.lifetime)
		}
	}
}

func TestNonceDemanded(t *testing.T) {
	nonces, err := pop.NewNonces(nil, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	for name, s := range signers(t) {
		v, at := verifier(t, pop.Config{Nonces: nonces})
		for _, c := range []struct {
			nonce string
			ok    bool
			again bool // there is a newer one
		}{{"", false, true}, {"x", false, true}, {nonces.At(epoch), true, false},
			{nonces.At(epoch.Add(-30 * time.Second)), true, true}, {nonces.At(epoch.Add(-time.Minute)), false, true}} {
			made := call()
			made.Nonce = c.nonce
			h := v.Holder(evidence(prove(t, s, made)))
			err := h.Prove(t.Context(), s.HolderKey())
			if (err == nil) != c.ok || v.NonceWanted(h) == c.ok {
				t.Errorf("%s: nonce %q: %v, wanted %v", name, c.nonce, err, v.NonceWanted(h))
			}
			if fresh := v.Nonce(h); (fresh != "") != c.again || fresh != "" && fresh != nonces.At(at.now) {
				t.Errorf("%s: nonce %q: given %q", name, c.nonce, fresh)
			}
		}
		if v.Nonce(nil) != nonces.At(at.now) {
			t.Error("a caller without a proof is given no nonce")
		}
	}
	v, _ := verifier(t, pop.Config{})
	if v.Nonce(nil) != "" || v.NonceWanted(v.Holder(evidence())) {
		t.Error("a nonce where none is demanded")
	}
}

// A session ends, renews itself before that, and can be refused.
func TestSession(t *testing.T) {
	for _, a := range algorithms {
		k := key(t, a)
		v, at := verifier(t, pop.Config{})
		s := pop.NewSession(k, time.Minute, at.Now)
		at.now = epoch
		made := pop.Call{Method: "GET", URI: testOrigin + "/files/q3", Token: testToken}
		keyOf := func(proof string) string {
			header, _, _ := strings.Cut(proof, ".")
			b, err := base64.RawURLEncoding.DecodeString(header)
			if err != nil {
				t.Fatal(err)
			}
			var h struct {
				JWK json.RawMessage `json:"jwk"`
			}
			if err := json.Unmarshal(b, &h); err != nil {
				t.Fatal(err)
			}
			return string(h.JWK)
		}
		first := prove(t, s, made)
		if keyOf(first) == k.JWK() {
			t.Fatal("the key signs itself")
		}
		if err := ask(v, evidence(first), k.HolderKey()); err != nil {
			t.Fatal(err)
		}
		at.now = epoch.Add(40 * time.Second)
		second := prove(t, s, made)
		if keyOf(second) != keyOf(first) {
			t.Error("a new session key for each call")
		}
		at.now = epoch.Add(50 * time.Second)
		third := prove(t, s, made)
		if keyOf(third) == keyOf(first) {
			t.Error("not renewed before it ends")
		}
		if err := ask(v, evidence(third), k.HolderKey()); err != nil {
			t.Fatal(err)
		}
		// The second proof is young, and its session has ended.
		at.now = epoch.Add(61 * time.Second)
		refused(t, ask(v, evidence(second), k.HolderKey()), capability.CodeHolderProof, "session has ended")

		strict, later := verifier(t, pop.Config{RefuseSessions: true})
		later.now = at.now
		refused(t, ask(strict, evidence(prove(t, s, made)), k.HolderKey()), capability.CodeHolderProof, "refuses")

		facts := pop.Facts(v.Holder(evidence(third)))
		if value, ok := facts.Get([]byte(pop.FactKey)); !ok || value.Text() != pop.FactSession {
			t.Errorf("facts %v", facts)
		}
		facts = pop.Facts(v.Holder(evidence(prove(t, k, made))))
		if value, ok := facts.Get([]byte(pop.FactKey)); !ok || value.Text() != pop.FactDirect {
			t.Errorf("facts %v", facts)
		}
	}
	v, _ := verifier(t, pop.Config{})
	if pop.Facts(v.Holder(evidence())) != nil || pop.Facts(v.Holder(evidence("x"))) != nil || pop.Facts(nil) != nil {
		t.Error("facts of nothing")
	}
}

// Each row is a statement by the holder's key that is not what it should be.
func TestSessionStatements(t *testing.T) {
	holder, _ := handmade(t)
	session, _ := handmade(t)
	hk, sk := asKey(t, holder), asKey(t, session)
	jkt := base64.RawURLEncoding.EncodeToString(thumb(sk))
	statement := func(typ, payload string) string {
		return jws(t, signer(holder), `{"typ":"`+typ+`","alg":"EdDSA","jwk":`+hk.JWK()+`}`, payload)
	}
	good := fmt.Sprintf(`{"iat":%d,"exp":%d,"cnf":{"jkt":"%s"}}`, epoch.Unix(), epoch.Unix()+300, jkt)
	bySession := func(s string) string {
		return jws(t, signer(session), `{"typ":"dpop+jwt","alg":"EdDSA","jwk":`+sk.JWK()+`,"dev.writ/session":"`+s+`"}`, claims(t, ""))
	}
	for _, c := range []struct{ name, statement, detail string }{
		{"good", statement("writ-session+jwt", good), ""},
		{"an unknown claim", statement("writ-session+jwt", strings.Replace(good, "{", `{"sub":"x",`, 1)), ""},
		{"a DPoP proof", statement("dpop+jwt", good), "typ"},
		{"a plain JWT", statement("JWT", good), "typ"},
		{"longer than 5 minutes", statement("writ-session+jwt", fmt.Sprintf(`{"iat":%d,"exp":%d,"cnf":{"jkt":"%s"}}`, epoch.Unix(), epoch.Unix()+301, jkt)), "5 minutes"},
		{"backwards", statement("writ-session+jwt", fmt.Sprintf(`{"iat":%d,"exp":%d,"cnf":{"jkt":"%s"}}`, epoch.Unix(), epoch.Unix()-1, jkt)), "5 minutes"},
		{"no exp", statement("writ-session+jwt", fmt.Sprintf(`{"iat":%d,"cnf":{"jkt":"%s"}}`, epoch.Unix(), jkt)), "5 minutes"},
		{"no iat", statement("writ-session+jwt", fmt.Sprintf(`{"exp":%d,"cnf":{"jkt":"%s"}}`, epoch.Unix()+10, jkt)), "5 minutes"},
		{"ended", statement("writ-session+jwt", fmt.Sprintf(`{"iat":%d,"exp":%d,"cnf":{"jkt":"%s"}}`, epoch.Unix()-300, epoch.Unix(), jkt)), "ended"},
		{"from the future", statement("writ-session+jwt", fmt.Sprintf(`{"iat":%d,"exp":%d,"cnf":{"jkt":"%s"}}`, epoch.Unix()+60, epoch.Unix()+90, jkt)), "future"},
		{"of another session key", statement("writ-session+jwt", strings.Replace(good, jkt, base64.RawURLEncoding.EncodeToString(thumb(hk)), 1)), "another key"},
		{"of no key", statement("writ-session+jwt", fmt.Sprintf(`{"iat":%d,"exp":%d}`, epoch.Unix(), epoch.Unix()+300)), "names no key"},
		{"of a key in a string", statement("writ-session+jwt", strings.Replace(good, `{"jkt":"`+jkt+`"}`, `"`+jkt+`"`, 1)), "claim"},
		{"signed by the session key", jws(t, signer(session), `{"typ":"writ-session+jwt","alg":"EdDSA","jwk":`+hk.JWK()+`}`, good), "signature"},
		{"within another one", jws(t, signer(holder), `{"typ":"writ-session+jwt","alg":"EdDSA","jwk":`+hk.JWK()+`,"dev.writ/session":"x"}`, good), "session of a session"},
		{"garbage", "x.y.z", ""},
		{"empty", "", "three parts"},
	} {
		t.Run(c.name, func(t *testing.T) {
			v, _ := verifier(t, pop.Config{})
			err := ask(v, evidence(bySession(c.statement)), hk.HolderKey())
			if c.detail == "" && c.name != "garbage" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			refused(t, err, capability.CodeHolderProof, c.detail)
		})
	}

	// The holder of the session key proves its own key only for what names it,
	// and a good statement does not make a bad proof good.
	v, _ := verifier(t, pop.Config{})
	proof := bySession(statement("writ-session+jwt", good))
	refused(t, ask(v, evidence(proof), sk.HolderKey()), capability.CodeHolderProof, "")
	if err := ask(v, evidence(proof), hk.HolderKey()); err != nil {
		t.Fatal(err)
	}
	stranger, _ := handmade(t)
	forged := jws(t, signer(stranger), `{"typ":"dpop+jwt","alg":"EdDSA","jwk":`+sk.JWK()+`,"dev.writ/session":"`+statement("writ-session+jwt", good)+`"}`,
		claims(t, `{"jti":"another"}`))
	refused(t, ask(v, evidence(forged), hk.HolderKey()), capability.CodeHolderProof, "signature")
	// Nor does it do for a key of his own, known as the statement is by now.
	own := jws(t, signer(stranger), `{"typ":"dpop+jwt","alg":"EdDSA","jwk":`+asKey(t, stranger).JWK()+`,"dev.writ/session":"`+statement("writ-session+jwt", good)+`"}`,
		claims(t, `{"jti":"a third"}`))
	refused(t, ask(v, evidence(own), hk.HolderKey()), capability.CodeHolderProof, "session is of another key")
}

func thumb(k *pop.Key) []byte { p := k.HolderKey().Thumbprint; return p[:] }

func TestKeyFile(t *testing.T) {
	dir := t.TempDir()
	for _, a := range algorithms {
		k := key(t, a)
		path := filepath.Join(dir, a.String())
		if err := pop.WriteKeyFile(path, k); err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Fatalf("mode %v, %v", info.Mode(), err)
		}
		if err := pop.WriteKeyFile(path, k); !errors.Is(err, fs.ErrExist) {
			t.Fatalf("over another key: %v", err)
		}
		again, err := pop.ReadKeyFile(path)
		if err != nil || again.HolderKey() != k.HolderKey() || again.Algorithm() != a {
			t.Fatalf("%v, %v", again, err)
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for name, bad := range map[string]string{
			"nothing": "", "a blank before it": " " + string(text), "text after it": string(text) + "x", "twice": string(text) + string(text),
			"a header": strings.Replace(string(text), "\n", "\nX: y\n\n", 1), "cut": string(text[:len(text)/2]),
			"another type": strings.ReplaceAll(string(text), "PRIVATE KEY", "EC PRIVATE KEY"), "too long": string(text) + strings.Repeat("\n", 5000),
		} {
			if _, err := pop.ParseKey([]byte(bad)); !errors.Is(err, pop.ErrKeyFile) {
				t.Errorf("%s: %v", name, err)
			} else if strings.Contains(err.Error(), string(text[40:60])) {
				t.Errorf("%s: the error shows the key", name)
			}
		}
		for _, mode := range []fs.FileMode{0o640, 0o604, 0o660, 0o610} {
			if err := os.Chmod(path, mode); err != nil {
				t.Fatal(err)
			}
			if _, err := pop.ReadKeyFile(path); !errors.Is(err, pop.ErrKeyFile) {
				t.Errorf("mode %o: %v", mode, err)
			}
		}
		if out := fmt.Sprintf("%v %+v %#v %s %q", k, k, k, k, k); !strings.HasPrefix(out, "(key jkt:") || strings.Contains(out, "signer") {
			t.Errorf("it prints as %s", out)
		}
	}
	if _, err := pop.ReadKeyFile(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	if _, err := pop.ReadKeyFile(dir); !errors.Is(err, pop.ErrKeyFile) {
		t.Errorf("a directory: %v", err)
	}
}

func TestKeysOfOtherKinds(t *testing.T) {
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(rsaKey)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pop.ParseKey(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})); !errors.Is(err, pop.ErrKey) {
		t.Errorf("RSA: %v", err)
	}
	if _, err := pop.NewKey(p384); !errors.Is(err, pop.ErrKey) {
		t.Errorf("P-384: %v", err)
	}
	if _, err := pop.NewKey(nil); !errors.Is(err, pop.ErrKey) {
		t.Errorf("nil: %v", err)
	}
	if _, err := pop.GenerateKey(0); !errors.Is(err, pop.ErrKey) {
		t.Errorf("no algorithm: %v", err)
	}
}

func decoded(tb testing.TB, part string) string {
	tb.Helper()
	b, err := base64.RawURLEncoding.DecodeString(part)
	if err != nil {
		tb.Fatal(err)
	}
	return string(b)
}
