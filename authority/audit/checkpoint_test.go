package audit

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"
)

// The format is permanent: this text was made once (its root also in Python), and Ed25519 is deterministic.
const goldenCheckpoint = `writ/audit/test/1
3
eMsR9ZEUCWc8qCfIFIJVxJjeqEMHmEHjjpvu2y9p368=

— writ/audit/test/1 +ChG6C6kTEjqk79xmcU4vtH7dfxskwuqcROPoOWl8CoYoJNRNyCTalPphtFjJ4WMP53Ucr9He9/m4Ylf57G+lx6ULg4=
`

func TestCheckpointGolden(t *testing.T) {
	var e Edge
	for n := range 3 {
		e.Append(RecordHash(record(n)))
	}
	s := testSigner(t, testOrigin)
	msg := value(Checkpoint{testOrigin, 3, e.Root()}.Sign(s))(t)
	if string(msg) != goldenCheckpoint {
		t.Errorf("checkpoint is\n%s", msg)
	}
	c, err := VerifyCheckpoint([]byte(goldenCheckpoint), s.Verifier())
	if err != nil || c != (Checkpoint{testOrigin, 3, e.Root()}) {
		t.Errorf("%+v, %v", c, err)
	}
	if got := value(ReadUnverified(msg))(t); got != c {
		t.Errorf("unverified: %+v", got)
	}
}

// Our signer is the library's: same key id, same signature, and its verifier key reads back.
func TestSignerAgreesWithNote(t *testing.T) {
	seed := slices.Repeat([]byte{7}, SeedSize)
	s := testSigner(t, testOrigin)
	skey := fmt.Sprintf("PRIVATE+KEY+%s+%08x+%s", testOrigin, s.KeyHash(), base64.StdEncoding.EncodeToString(append([]byte{1}, seed...)))
	theirs := value(note.NewSigner(skey))(t)
	if theirs.Name() != s.Name() || theirs.KeyHash() != s.KeyHash() {
		t.Errorf("key %s+%08x, the library has %s+%08x", s.Name(), s.KeyHash(), theirs.Name(), theirs.KeyHash())
	}
	msg := []byte("any text\n")
	if a, b := value(s.Sign(msg))(t), value(theirs.Sign(msg))(t); !bytes.Equal(a, b) {
		t.Error("signatures differ")
	}
	v := value(ParseVerifier(s.VerifierKey()))(t)
	if !v.Verify(msg, value(s.Sign(msg))(t)) || v.Verify([]byte("another text\n"), value(s.Sign(msg))(t)) {
		t.Error("verifier key does not verify")
	}
	for _, bad := range []string{"", "x", s.VerifierKey() + "A", strings.Repeat("x", 1000), strings.Replace(s.VerifierKey(), "writ", "wri\u0101", 1)} {
		if _, err := ParseVerifier(bad); !errors.Is(err, ErrMalformed) {
			t.Errorf("verifier key %q: %v", bad, err)
		}
	}
	for _, seed := range [][]byte{nil, seed[1:], append(seed, 0)} {
		if _, err := NewSigner(testOrigin, seed); !errors.Is(err, ErrMalformed) {
			t.Errorf("seed of %d bytes: %v", len(seed), err)
		}
	}
}

func TestCheckpointRefuses(t *testing.T) {
	s := testSigner(t, testOrigin)
	sign := func(text string) []byte { return value(note.Sign(&note.Note{Text: text}, s))(t) }
	good := Checkpoint{testOrigin, 3, Hash{1}}
	root := base64.StdEncoding.EncodeToString(good.Root[:])
	if _, err := VerifyCheckpoint(sign(good.Text()), s.Verifier()); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"leading zero":  testOrigin + "\n03\n" + root + "\n",
		"plus":          testOrigin + "\n+3\n" + root + "\n",
		"negative":      testOrigin + "\n-3\n" + root + "\n",
		"huge":          testOrigin + "\n9223372036854775807\n" + root + "\n",
		"not a number":  testOrigin + "\nx\n" + root + "\n",
		"short root":    testOrigin + "\n3\nAAAA\n",
		"root tail":     testOrigin + "\n3\n" + strings.Replace(root, "AA=", "AB=", 1) + "\n",
		"extension":     testOrigin + "\n3\n" + root + "\nmore\n",
		"no root":       testOrigin + "\n3\n",
		"empty origin":  "\n3\n" + root + "\n",
		"spaced origin": "a b\n3\n" + root + "\n",
	} {
		if c, err := VerifyCheckpoint(sign(text), s.Verifier()); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %+v, %v", name, c, err)
		}
	}
	if _, err := VerifyCheckpoint(sign("other\n3\n"+root+"\n"), s.Verifier()); !errors.Is(err, ErrOrigin) {
		t.Errorf("another origin under this key: %v", err)
	}
	msg := sign(good.Text())
	for at := range msg {
		bad := slices.Clone(msg)
		bad[at] ^= 1
		if c, err := VerifyCheckpoint(bad, s.Verifier()); err == nil {
			t.Errorf("byte %d altered: %+v", at, c)
		}
	}
	other := value(NewSigner(testOrigin, slices.Repeat([]byte{8}, SeedSize)))(t)
	if _, err := VerifyCheckpoint(msg, other.Verifier()); !errors.Is(err, ErrSignature) {
		t.Errorf("another key: %v", err)
	}
	long := append(slices.Clone(msg), bytes.Repeat([]byte("\u2014 x AAAAAAAA\n"), MaxCheckpoint)...)
	if _, err := VerifyCheckpoint(long, s.Verifier()); !errors.Is(err, ErrMalformed) {
		t.Errorf("a checkpoint over the bound: %v", err)
	}
	if _, err := ReadUnverified(long); !errors.Is(err, ErrMalformed) {
		t.Errorf("a checkpoint over the bound, unverified: %v", err)
	}
	// A witness's signature beside ours does no harm.
	witness := testSigner(t, "witness.example")
	both := value(note.Sign(&note.Note{Text: good.Text()}, s, witness))(t)
	if _, err := VerifyCheckpoint(both, s.Verifier()); err != nil {
		t.Errorf("cosigned: %v", err)
	}
}

func TestSignerIsRedacted(t *testing.T) {
	seed := slices.Repeat([]byte{0xab}, SeedSize)
	s := value(NewSigner(testOrigin, seed))(t)
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
		fmt.Fprintf(&out, verb+" "+verb+"\n", s, struct{ S *Signer }{s})
	}
	slog.New(slog.NewTextHandler(&out, nil)).Info("x", "signer", s)
	slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "signer", s)
	out.Write(value(json.Marshal(s))(t))
	key := ed25519.NewKeyFromSeed(seed)
	for _, secret := range []string{string(seed[:4]), hex.EncodeToString(seed[:4]), strings.ToUpper(hex.EncodeToString(seed[:4])),
		"171 171 171", base64.StdEncoding.EncodeToString(key)[:8], base64.StdEncoding.EncodeToString(seed)[:8]} {
		if bytes.Contains(out.Bytes(), []byte(secret)) {
			t.Errorf("output holds %q:\n%s", secret, out.Bytes())
		}
	}
	if !bytes.Contains(out.Bytes(), []byte("[redacted]")) {
		t.Errorf("output does not say that it is redacted:\n%s", out.Bytes())
	}
}

func TestOrigin(t *testing.T) {
	if got := value(Origin("c-1.eu_A", 18446744073709551615))(t); got != "writ/audit/c-1.eu_A/18446744073709551615" || checkOrigin(got) != nil {
		t.Errorf("origin %q", got)
	}
	for _, bad := range []string{"", "a/b", "a b", "a+b", "ü", strings.Repeat("a", 129)} {
		if got, err := Origin(bad, 1); !errors.Is(err, ErrMalformed) {
			t.Errorf("cluster %q gives %q, %v", bad, got, err)
		}
	}
}

func FuzzCheckpoint(f *testing.F) {
	s := testSigner(f, testOrigin)
	f.Add([]byte(goldenCheckpoint))
	f.Add(value(Checkpoint{testOrigin, 0, Edge{}.Root()}.Sign(s))(f))
	f.Add([]byte("a\n1\n\n"))
	f.Fuzz(func(t *testing.T, msg []byte) {
		c, err := ReadUnverified(msg)
		verified, verifyErr := VerifyCheckpoint(msg, s.Verifier())
		if verifyErr == nil && (err != nil || verified != c) {
			t.Fatalf("verified as %+v, read as %+v, %v", verified, c, err)
		}
		if err == nil && !bytes.HasPrefix(msg, []byte(c.Text()+"\n")) {
			t.Fatalf("%q was read as %+v", msg, c)
		}
	})
}
