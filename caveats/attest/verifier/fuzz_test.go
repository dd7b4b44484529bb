package verifier

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/writ-dev/writ/caveats/attest"
	"github.com/writ-dev/writ/caveats/attest/internal/ek"
)

// seedAK is an attestation key: the public area around the base point of P-256.
const seedAK = "0023000b" + "00050072" + "0000" + "0010" + "0018000b" + "0003" + "0010" +
	"0020" + "6b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296" +
	"0020" + "4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5"

func seedKey(f *testing.F) []byte {
	b, err := hex.DecodeString(seedAK)
	if err != nil {
		f.Fatal(err)
	}
	return b
}

// A key that is accepted is what it says in its one encoding, and on the curve.
func FuzzKey(f *testing.F) {
	ak := seedKey(f)
	if _, err := parseKey(ak, true); err != nil {
		f.Fatalf("the seed is refused: %v", err)
	}
	f.Add(ak, true)
	holder := bytes.Clone(ak)
	holder[5] &^= 1 // restricted
	if _, err := parseKey(holder, false); err != nil {
		f.Fatalf("the seed is refused: %v", err)
	}
	f.Add(holder, false)
	f.Fuzz(func(t *testing.T, raw []byte, ak bool) {
		k, err := parseKey(raw, ak)
		if err != nil {
			if attest.ReasonOf(err) == "" {
				t.Fatalf("no reason: %v", err)
			}
			return
		}
		point, err := k.public.Bytes()
		if err != nil || !bytes.Equal(point[1:33], k.x) || !bytes.Equal(point[33:], k.y) {
			t.Fatalf("another point: %x, %v", point, err)
		}
		theirs, err := tpm2.Unmarshal[tpm2.TPMTPublic](raw)
		if err != nil || !bytes.Equal(tpm2.Marshal(*theirs), raw) {
			t.Fatalf("go-tpm reads something else: %v", err)
		}
		if theirs.ObjectAttributes.Restricted != ak || !theirs.ObjectAttributes.FixedTPM || theirs.ObjectAttributes.Decrypt {
			t.Fatalf("to go-tpm the key is %+v", theirs)
		}
		if sum := sha256.Sum256(raw); !bytes.Equal(k.name[2:], sum[:]) || len(k.name) != 34 {
			t.Fatalf("name %x", k.name)
		}
		if again, err := parseKey(raw, !ak); err == nil {
			t.Fatalf("one key is restricted and is not: %x", again.name)
		}
	})
}

// Whatever is read as an attestation go-tpm reads as the same, and writes the
// same again.
func FuzzAttest(f *testing.F) {
	head := tpm2.TPMSAttest{Magic: tpmGenerated, ExtraData: tpm2.TPM2BData{Buffer: make([]byte, 32)}}
	quote, certify := head, head
	quote.Type, certify.Type = tpm2.TPMSTAttestQuote, tpm2.TPMSTAttestCertify
	quote.Attested = tpm2.NewTPMUAttest(tpm2.TPMSTAttestQuote, &tpm2.TPMSQuoteInfo{
		PCRSelect: tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256, PCRSelect: []byte{1, 0, 0}}}},
	})
	certify.Attested = tpm2.NewTPMUAttest(tpm2.TPMSTAttestCertify, &tpm2.TPMSCertifyInfo{Name: tpm2.TPM2BName{Buffer: make([]byte, 34)}})
	for _, a := range []tpm2.TPMSAttest{quote, certify} {
		if _, ok := parseAttest(tpm2.Marshal(a), uint16(a.Type)); !ok {
			f.Fatalf("the seed is refused: %+v", a)
		}
		f.Add(tpm2.Marshal(a))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if len(raw) < 6 || len(raw) > attest.MaxAttest {
			return
		}
		kind := binary.BigEndian.Uint16(raw[4:])
		if kind != attestQuote && kind != attestCertify {
			return
		}
		a, ok := parseAttest(raw, kind)
		if !ok {
			return
		}
		theirs, err := tpm2.Unmarshal[tpm2.TPMSAttest](raw)
		if err != nil || !bytes.Equal(tpm2.Marshal(*theirs), raw) {
			t.Fatalf("go-tpm reads something else: %v", err)
		}
		clock := theirs.ClockInfo
		if !bytes.Equal(a.signer, theirs.QualifiedSigner.Buffer) || !bytes.Equal(a.extra, theirs.ExtraData.Buffer) || uint64(a.firmware) != theirs.FirmwareVersion ||
			a.counters != (attest.Counters{Reset: clock.ResetCount, Restart: clock.RestartCount, Clock: clock.Clock, Safe: bool(clock.Safe)}) {
			t.Fatalf("%+v, and to go-tpm %+v", a, theirs)
		}
		if info, err := theirs.Attested.Quote(); err == nil {
			if len(a.selections) != len(info.PCRSelect.PCRSelections) || !bytes.Equal(a.digest, info.PCRDigest.Buffer) {
				t.Fatalf("%+v, and to go-tpm %+v", a, info)
			}
			for i, s := range info.PCRSelect.PCRSelections {
				if a.selections[i].bank != uint16(s.Hash) || !bytes.Equal(a.selections[i].bitmap, s.PCRSelect) {
					t.Fatalf("%+v, and to go-tpm %+v", a, info)
				}
			}
		} else if info, err := theirs.Attested.Certify(); err != nil || !bytes.Equal(a.certified, info.Name.Buffer) {
			t.Fatalf("%+v, and to go-tpm %+v, %v", a, info, err)
		}
	})
}

// A signature has one encoding: what verifies is what was made.
func FuzzSignature(f *testing.F) {
	k, err := parseKey(seedKey(f), true)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(append([]byte{0x00, 0x18, 0x00, 0x0b, 0x00, 0x20}, make([]byte, 66)...), []byte("m"))
	f.Fuzz(func(t *testing.T, signature, message []byte) {
		if k.verify(message, signature) {
			t.Fatalf("forged: %x", signature) // the fuzzer has no private key
		}
	})
}

// No certificate brings the verifier down, and none that nobody signed is trusted.
func FuzzCertificate(f *testing.F) {
	policy := &attest.Policy{EKRoots: []string{"none"}}
	f.Add([]byte{0x30, 0x03, 0x02, 0x01, 0x01})
	f.Fuzz(func(t *testing.T, der []byte) {
		if c, err := ek.ParseCertificate(der); err == nil {
			_, _ = ek.Rebuild(c)
		}
		request := &attest.BeginRequest{EKCertificate: der}
		if _, err := endorse(policy, func(string) (*Roots, bool) { return nil, false }, request, time.Unix(1, 0)); err == nil {
			t.Fatal("trusted")
		}
	})
}

func FuzzRoots(f *testing.F) {
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nMAMCAQE=\n-----END CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, bundle []byte) {
		r, err := ParseRoots(bundle)
		if err != nil {
			return
		}
		again, err := ParseRoots(r.PEM())
		if err != nil || len(again.Certificates()) != len(r.Certificates()) {
			t.Fatalf("%d certificates, then %v", len(r.Certificates()), err)
		}
	})
}
