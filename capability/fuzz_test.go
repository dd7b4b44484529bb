package capability_test

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"math/rand/v2"
	"testing"

	"github.com/writ-dev/writ/capability"
)

func stdHMAC(key [32]byte, msg []byte) (out [32]byte) {
	m := hmac.New(sha256.New, key[:])
	m.Write(msg)
	m.Sum(out[:0])
	return out
}

// Every length around the block sizes and the limit of the inline buffer.
func TestHMAC(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	msg := make([]byte, 2000)
	var key [32]byte
	for n := range len(msg) {
		for i := range key {
			key[i] = byte(rng.Uint32())
		}
		msg[n] = byte(rng.Uint32())
		if capability.HMAC(key, msg[:n]) != stdHMAC(key, msg[:n]) {
			t.Fatalf("differs from crypto/hmac at %d bytes", n)
		}
	}
}

func FuzzHMAC(f *testing.F) {
	f.Add(make([]byte, 32), []byte("message"))
	f.Add(bytes.Repeat([]byte{0xff}, 32), bytes.Repeat([]byte{1}, 385))
	f.Fuzz(func(t *testing.T, key, msg []byte) {
		var k [32]byte
		copy(k[:], key)
		if capability.HMAC(k, msg) != stdHMAC(k, msg) {
			t.Fatal("differs from crypto/hmac")
		}
	})
}

// FuzzParse: no input makes a reader panic, and all readers agree on it.
func FuzzParse(f *testing.F) {
	for _, seed := range seeds(f, "verify") {
		f.Add(seed)
	}
	f.Add([]byte(mint(f, "ok").Text()))
	v, ctx := verifier(f), context.Background()
	f.Fuzz(func(t *testing.T, b []byte) {
		g, req := new(capability.Grant), &capability.Request{Now: now}
		tok, err := capability.Decode(b)
		code := capability.CodeOf(v.Verify(ctx, g, b, req))
		if err != nil && code != capability.CodeOf(err) {
			t.Fatalf("Decode says %v, Verify %q", err, code)
		}
		if err == nil {
			if _, err := tok.Inspect(); err != nil {
				t.Fatalf("decoded and not inspected: %v", err)
			}
			tok.Missing()
			if narrow, err := tok.Attenuate("ok"); err == nil && narrow.Branch() == tok.Branch() {
				t.Fatal("narrowing changed nothing")
			}
		}
		parsed, err := capability.Parse(string(b))
		code = capability.CodeOf(v.VerifyText(ctx, g, string(b), req))
		if err != nil && code != capability.CodeOf(err) {
			t.Fatalf("Parse says %v, VerifyText %q", err, code)
		}
		if err == nil && code != capability.CodeOf(v.Verify(ctx, g, parsed.Bytes(), req)) {
			t.Fatal("text and binary differ")
		}
	})
}

func FuzzIdentifier(f *testing.F) {
	id := testIdentifier()
	seed, err := id.AppendBinary(nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add(seed[:len(seed)-1])
	f.Fuzz(func(t *testing.T, b []byte) {
		id, err := capability.ParseIdentity(b)
		if err != nil {
			return
		}
		full := id.Identifier()
		again, err := full.AppendBinary(nil)
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%x reads as %+v, which writes as %x (%v)", b, full, again, err)
		}
	})
}

// someThirdParties has one of each shape.
func someThirdParties() []capability.ThirdParty {
	holder := &capability.HolderKey{Method: capability.HolderMTLS, Thumbprint: [32]byte{1}}
	device := &capability.DeviceID{2}
	return []capability.ThirdParty{
		approved("approved payments quarter end"),
		{Condition: "attested prod", Holder: holder},
		{Condition: "attested prod", Device: device},
		{Condition: "attested prod", Holder: holder, Device: device},
		{Condition: "attested prod", AnyMachine: true},
	}
}

func FuzzOpenCaveat(f *testing.F) {
	for _, seed := range seeds(f, "caveatid") {
		f.Add(seed, seed[:len(seed)/2])
	}
	for _, tp := range someThirdParties() {
		plain := capability.EncodeThirdParty(tp, testIdentifier())
		f.Add([]byte{0}, plain)
	}
	key := discharger(f, 1)
	f.Fuzz(func(t *testing.T, id, plain []byte) {
		if o, err := key.OpenCaveat(id); err == nil {
			if _, err := o.Discharge("ok"); err != nil {
				t.Fatalf("opened and not discharged: %v", err)
			}
		}
		// What is behind the seal is read as strictly.
		if again, ok := capability.RecodeThirdParty(plain); ok && !bytes.Equal(again, plain) {
			t.Fatalf("%x reads, and writes as %x", plain, again)
		}
	})
}

// What stands behind the seal of a caveat id has one encoding.
func TestThirdPartyPlaintextIsStrict(t *testing.T) {
	for i, tp := range someThirdParties() {
		good := capability.EncodeThirdParty(tp, testIdentifier())
		if again, ok := capability.RecodeThirdParty(good); !ok || !bytes.Equal(again, good) || len(good)%64 != 0 {
			t.Fatalf("%d: %d bytes do not survive", i, len(good))
		}
		padded := bytes.Clone(good)
		padded[len(padded)-1] = 1
		flagged := bytes.Clone(good)
		flagged[0] |= 0x80
		for name, bad := range map[string][]byte{
			"nothing": nil, "half": good[:len(good)/2], "a block less": good[:len(good)-64], "a byte less": good[:len(good)-1],
			"a byte more": append(bytes.Clone(good), 0), "a block more": append(bytes.Clone(good), make([]byte, 64)...),
			"padding that says something": padded, "an unknown flag": flagged,
		} {
			if _, ok := capability.RecodeThirdParty(bad); ok {
				t.Errorf("%d: %s is read", i, name)
			}
		}
	}
}
