package capability_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"

	"gopkg.in/macaroon.v2"

	"github.com/writ-dev/writ/capability"
)

// theirs is macaroon.v2's own verdict, with a check that clears everything.
func theirs(set []byte) error {
	var ms macaroon.Slice
	if err := ms.UnmarshalBinary(set); err != nil {
		// A lone macaroon may be followed by anything.
		var m macaroon.Macaroon
		if err := m.UnmarshalBinary(set); err != nil {
			return err
		}
		ms = macaroon.Slice{&m}
	}
	key := [32]byte{1, 2, 3}
	return ms[0].Verify(key[:], func(string) error { return nil }, ms[1:])
}

func marshal(t testing.TB, ms ...*macaroon.Macaroon) []byte {
	t.Helper()
	return must[[]byte](t)(macaroon.Slice(ms).MarshalBinary())
}

func newMacaroon(t testing.TB, id []byte, v macaroon.Version, conditions ...string) *macaroon.Macaroon {
	t.Helper()
	key := [32]byte{1, 2, 3}
	m := must[*macaroon.Macaroon](t)(macaroon.New(key[:], id, "", v))
	for _, c := range conditions {
		if err := m.AddFirstPartyCaveat([]byte(c)); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

// withDischarges adds n third-party caveats and their discharges, bound by signature.
func withDischarges(t testing.TB, root *macaroon.Macaroon, n int, v macaroon.Version) []*macaroon.Macaroon {
	t.Helper()
	set := []*macaroon.Macaroon{root}
	for i := range n {
		key, id := sha256.Sum256([]byte{byte(i)}), fmt.Appendf(nil, "third party %d", i)
		if err := root.AddThirdPartyCaveat(key[:], id, ""); err != nil {
			t.Fatal(err)
		}
		set = append(set, must[*macaroon.Macaroon](t)(macaroon.New(key[:], id, "", v)))
	}
	for _, d := range set[1:] {
		d.Bind(root.Signature())
	}
	return set
}

// TestListedRefusals pins, one by one, what macaroon.v2 accepts and Writ does
// not. Each has its twin within the rule, which both accept.
func TestListedRefusals(t *testing.T) {
	id := testIdentifier()
	raw := must[[]byte](t)(id.AppendBinary(nil))
	promising := id
	promising.Issued = 2
	rawPromising := must[[]byte](t)(promising.AppendBinary(nil))
	plain := marshal(t, newMacaroon(t, raw, macaroon.V2, "ok"))
	// The one caveat of plain is: 02 02 'o' 'k' 00, before the last 00 and the signature.
	caveat := bytes.Index(plain, []byte{2, 2, 'o', 'k', 0})
	splice := func(at, skip int, insert ...byte) []byte {
		return append(append(append([]byte(nil), plain[:at]...), insert...), plain[at+skip:]...)
	}
	caveats := func(n int) []byte {
		return marshal(t, newMacaroon(t, raw, macaroon.V2, strings.Split(strings.Repeat("ok ", n-1)+"ok", " ")...))
	}
	discharges := func(n int) []byte {
		return marshal(t, withDischarges(t, newMacaroon(t, raw, macaroon.V2), n, macaroon.V2)...)
	}
	sized := func(n int) []byte {
		build := func(long int) []byte {
			return marshal(t, newMacaroon(t, raw, macaroon.V2, "ok "+strings.Repeat("x", 8000), "ok "+strings.Repeat("x", long)))
		}
		return build(8000 + n - len(build(8000)))
	}
	for _, c := range []struct {
		name string
		set  []byte
		want capability.Code
	}{
		{"nothing unusual", plain, ""},
		{"trailing byte", append(bytes.Clone(plain), 0), capability.CodeMalformed},
		{"length in two bytes", splice(caveat+1, 1, 0x82, 0), capability.CodeMalformed},
		{"length in three bytes", splice(caveat+1, 1, 0x82, 0x80, 0), capability.CodeMalformed},
		{"field type in two bytes", splice(caveat, 1, 0x82, 0), capability.CodeMalformed},
		{"end of section in two bytes", splice(caveat+4, 1, 0x80, 0), capability.CodeMalformed},
		{"empty verification id", splice(caveat+4, 0, 4, 0), capability.CodeMalformed},
		{"empty verification id with a location", splice(caveat, 5, 1, 1, 'x', 2, 2, 'o', 'k', 4, 0, 0), capability.CodeMalformed},
		{"empty location of a caveat", splice(caveat, 0, 1, 0), capability.CodeMalformed},
		{"empty location of the root", splice(1, 0, 1, 0), capability.CodeMalformed},
		{"a discharge in version 1", marshal(t, withDischarges(t, newMacaroon(t, raw, macaroon.V2), 1, macaroon.V1)...), capability.CodeMalformed},
		{"a discharge in version 2", marshal(t, withDischarges(t, newMacaroon(t, raw, macaroon.V2), 1, macaroon.V2)...), ""},
		{"64 caveats", caveats(64), ""},
		{"65 caveats", caveats(65), capability.CodeTooLarge},
		{"16 discharges", discharges(16), ""},
		{"17 discharges", discharges(17), capability.CodeTooLarge},
		{"16 KiB", sized(capability.MaxTokenSize), ""},
		{"16 KiB and a byte", sized(capability.MaxTokenSize + 1), capability.CodeTooLarge},
		{"an identifier of another format", marshal(t, newMacaroon(t, []byte("id"), macaroon.V2)), capability.CodeMalformed},
		{"fewer caveats than were issued", marshal(t, newMacaroon(t, rawPromising, macaroon.V2, "ok")), capability.CodeMalformed},
		{"as many caveats as were issued", marshal(t, newMacaroon(t, rawPromising, macaroon.V2, "ok", "ok")), ""},
	} {
		if err := theirs(c.set); err != nil {
			t.Errorf("%s: macaroon.v2 refuses it as well: %v", c.name, err)
		}
		err := verifier(t).Verify(t.Context(), new(capability.Grant), c.set, &capability.Request{Now: now})
		if got := capability.CodeOf(err); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
	if len(sized(capability.MaxTokenSize)) != capability.MaxTokenSize {
		t.Fatal("the largest sample is not the largest")
	}
}

// Every truncation, and every single bit flipped, is refused, and before the
// MAC has succeeded with nothing that tells why.
func TestEveryTruncationAndFlip(t *testing.T) {
	k := discharger(t, 1)
	root := must[*capability.Token](t)(mint(t, "ok").AddThirdParty(k.Public(), "there", approved("x")))
	tok := with(t, root, discharge(t, k, root, 0, "ok"))
	v, set, g := verifier(t), tok.Bytes(), new(capability.Grant)
	req := &capability.Request{Now: now}
	rootLen := len(root.Bytes())
	for n := range set {
		err := v.Verify(t.Context(), g, set[:n], req)
		if err == nil || n != rootLen && capability.CodeOf(err) != capability.CodeMalformed {
			t.Errorf("%d of %d bytes: %v", n, len(set), err)
		}
	}
	hint := make([]bool, len(set)) // bytes of locations, which nobody vouches for
	for _, l := range []string{"\x01\x04writ", "\x01\x05there"} {
		for at := 0; ; {
			i := bytes.Index(set[at:], []byte(l))
			if i < 0 {
				break
			}
			for j := 2; j < len(l); j++ {
				hint[at+i+j] = true
			}
			at += i + len(l)
		}
	}
	for i := range set {
		if hint[i] {
			continue
		}
		for bit := range 8 {
			set[i] ^= 1 << bit
			switch code := capability.CodeOf(v.Verify(t.Context(), g, set, req)); code {
			case capability.CodeMalformed, capability.CodeUnknownKey, capability.CodeBadSignature, capability.CodeTooLarge:
			case capability.CodeDischargeInvalid, capability.CodeDischargeRequired:
				if i < rootLen {
					t.Errorf("byte %d bit %d: %q", i, bit, code)
				}
			default:
				t.Errorf("byte %d bit %d: %q", i, bit, code)
			}
			set[i] ^= 1 << bit
		}
	}
}

// Bad input costs next to nothing, whatever its size.
func TestHostileInput(t *testing.T) {
	v, g, req := verifier(t), new(capability.Grant), &capability.Request{Now: now}
	garbage := bytes.Repeat([]byte{0xa5}, 1<<20)
	wantCode(t, v.Verify(t.Context(), g, garbage, req), capability.CodeTooLarge)
	wantCode(t, v.VerifyText(t.Context(), g, string(garbage), req), capability.CodeTooLarge)
	wantCode(t, v.VerifyText(t.Context(), g, mint(t).Text(), req, string(garbage)), capability.CodeTooLarge)
	long := capability.TextPrefix + strings.Repeat("A", capability.MaxTextSize-len(capability.TextPrefix))
	wantCode(t, v.VerifyText(t.Context(), g, long, req), capability.CodeMalformed)
	wantCode(t, v.VerifyText(t.Context(), g, long+"A", req), capability.CodeTooLarge)
	many := make([]string, capability.MaxDischarges+1)
	for i := range many {
		many[i] = mint(t).Text()
	}
	wantCode(t, v.VerifyText(t.Context(), g, mint(t).Text(), req, many...), capability.CodeTooLarge)
	if _, err := capability.Decode(garbage); capability.CodeOf(err) != capability.CodeTooLarge {
		t.Errorf("decoding a mebibyte: %v", err)
	}
	conditions := make([]string, 65)
	for i := range conditions {
		conditions[i] = "ok"
	}
	if _, err := capability.Mint(testKey(), testIdentifier(), conditions...); capability.CodeOf(err) != capability.CodeTooLarge {
		t.Errorf("minting 65 caveats: %v", err)
	}
	if _, err := mint(t, conditions[:64]...).Attenuate("ok"); capability.CodeOf(err) != capability.CodeTooLarge {
		t.Errorf("narrowing past 64 caveats: %v", err)
	}
	if _, err := mint(t).Attenuate(strings.Repeat("x", capability.MaxTokenSize)); capability.CodeOf(err) != capability.CodeTooLarge {
		t.Errorf("narrowing past 16 KiB: %v", err)
	}
	if _, err := mint(t).Attenuate(""); capability.CodeOf(err) != capability.CodeMalformed {
		t.Errorf("an empty condition: %v", err)
	}
}

// Discharges may travel in a header of their own.
func TestDischargesBeside(t *testing.T) {
	k := discharger(t, 1)
	tok := must[*capability.Token](t)(mint(t, "ok").AddThirdParty(k.Public(), "", approved("x")))
	d := discharge(t, k, tok, 0)
	g, req := new(capability.Grant), &capability.Request{Now: now}
	wantCode(t, verifier(t).VerifyText(t.Context(), g, tok.Text(), req, d.Text()), "")
	if g.Token().Text() != with(t, tok, d).Text() {
		t.Error("the grant's token is not the whole set")
	}
	wantCode(t, verifier(t).VerifyText(t.Context(), g, tok.Text(), req), capability.CodeDischargeRequired)
	wantCode(t, verifier(t).VerifyText(t.Context(), g, tok.Text(), req, "writ_!!"), capability.CodeMalformed)
	root, ds := with(t, tok, d).Root()
	if root.Text() != tok.Text() || len(ds) != 1 || ds[0].Text() != d.Text() {
		t.Errorf("the set comes apart as %d discharges", len(ds))
	}
}
