package capability_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gopkg.in/macaroon.v2"

	"github.com/writ-dev/writ/capability"
)

// A tape is where a random token tree takes its choices from: the bytes that
// a fuzzer gives, or those of a seeded generator. Past its end it says 0.
type tape struct{ b []byte }

func (p *tape) n(below int) int {
	if len(p.b) == 0 {
		return 0
	}
	x := int(p.b[0])
	p.b = p.b[1:]
	return x % below
}

// branchID is a branch id by its definition.
func branchID(sig []byte) string {
	sum := sha256.Sum256(append([]byte("writ/v1/branch"), sig...))
	return hex.EncodeToString(sum[:16])
}

// slowChain is the signature at each point of a chain, by crypto/hmac.
func slowChain(key [32]byte, m *macaroon.Macaroon) [][32]byte {
	var generator [32]byte
	copy(generator[:], "macaroons-key-generator")
	sig := stdHMAC(stdHMAC(generator, key[:]), m.Id())
	sigs := [][32]byte{sig}
	for _, c := range m.Caveats() {
		if len(c.VerificationId) == 0 {
			sig = stdHMAC(sig, c.Id)
		} else {
			v, i := stdHMAC(sig, c.VerificationId), stdHMAC(sig, c.Id)
			sig = stdHMAC(sig, append(v[:], i[:]...))
		}
		sigs = append(sigs, sig)
	}
	return sigs
}

// treeBuilder builds a token set with macaroon.v2.
type treeBuilder struct {
	*tape
	points     []string // branch ids of the root so far
	discharges []*macaroon.Macaroon
	ids        int
}

var conditions = []string{"ok", "ok", "ok", "ok", "ok 2", "branch 0123", "", "deny", "boundless", "ok " + strings.Repeat("long ", 120)}

func (b *treeBuilder) macaroon(m *macaroon.Macaroon, root bool, depth int) {
	note := func() {
		if root {
			b.points = append(b.points, branchID(m.Signature()))
		}
	}
	note()
	for range b.n(5) {
		switch {
		case depth < 3 && b.n(3) == 0:
			b.ids++
			key := sha256.Sum256([]byte{byte(b.ids)})
			id := []byte{byte(b.n(20)), byte(b.ids)}
			if b.n(12) == 0 {
				id = []byte("same")
			}
			if err := m.AddThirdPartyCaveat(key[:], id, []string{"", "here"}[b.n(2)]); err != nil {
				panic(err)
			}
			note()
			if b.n(12) == 0 {
				continue // its discharge is missing
			}
			dkey := key[:]
			if b.n(12) == 0 {
				dkey = []byte("another key")
			}
			d, err := macaroon.New(dkey, id, []string{"", "there"}[b.n(2)], macaroon.V2)
			if err != nil {
				panic(err)
			}
			b.macaroon(d, false, depth+1)
			b.bound(d)
			b.discharges = append(b.discharges, d)
			if b.n(16) == 0 {
				b.discharges = append(b.discharges, d.Clone())
			}
		default:
			c := conditions[b.n(4)]
			if b.n(6) == 0 {
				c = conditions[b.n(len(conditions))]
			}
			if err := m.AddFirstPartyCaveat([]byte(c)); err != nil {
				panic(err)
			}
			note()
		}
	}
}

// bound gives a discharge none, one or several bound caveats, mostly good ones.
func (b *treeBuilder) bound(d *macaroon.Macaroon) {
	for range []int{1, 1, 1, 0, 2}[b.n(5)] {
		c := "bound " + b.points[b.n(len(b.points))]
		switch b.n(14) {
		case 0:
			c = "bound " + branchID([]byte("elsewhere"))
		case 1:
			c = strings.ToUpper(c[:6]) + c[6:] // not the word bound at all
		case 2:
			c += " "
		case 3:
			c = "bound"
		}
		if err := d.AddFirstPartyCaveat([]byte(c)); err != nil {
			panic(err)
		}
	}
}

// buildTree makes a token set from a tape, and then perhaps damages it.
func buildTree(p *tape) []byte {
	id := testIdentifier()
	id.Issued = p.n(2)
	raw, err := id.AppendBinary(nil)
	if err != nil {
		panic(err)
	}
	key := [32]byte{1, 2, 3}
	root, err := macaroon.New(key[:], raw, []string{"", "", "origin"}[p.n(3)], macaroon.V2)
	if err != nil {
		panic(err)
	}
	b := &treeBuilder{tape: p}
	b.macaroon(root, true, 0)
	for _, d := range b.discharges {
		if p.n(3) == 0 {
			d.Bind(root.Signature())
		}
	}
	if p.n(10) == 0 {
		_ = root.AddFirstPartyCaveat([]byte("ok narrowed"))
	}
	if n := len(b.discharges); n > 1 && p.n(4) == 0 {
		b.discharges[0], b.discharges[n-1] = b.discharges[n-1], b.discharges[0]
	}
	set, err := append(macaroon.Slice{root}, b.discharges...).MarshalBinary()
	if err != nil {
		panic(err)
	}
	return damage(p, set)
}

func damage(p *tape, set []byte) []byte {
	at := func() int { return (p.n(256)<<8 | p.n(256)) % len(set) }
	switch p.n(16) {
	case 1:
		set[at()] ^= 1 << p.n(8)
	case 2:
		set = set[:at()]
	case 3:
		i := at()
		set = append(set[:i:i], append([]byte{byte(p.n(8))}, set[i:]...)...)
	case 4: // an empty field where there was none
		if i := bytes.IndexByte(set[1:], 0) + 1; i > 0 {
			set = append(set[:i:i], append([]byte{byte(p.n(7)), 0}, set[i:]...)...)
		}
	case 5: // a length in more bytes than it needs
		i := at()
		set = append(set[:i:i], append([]byte{set[i] | 0x80, 0}, set[i+1:]...)...)
	case 6:
		i, j := at(), at()
		set[i], set[j] = set[j], set[i]
	}
	return set
}

// decodeAndVerify is what macaroon.v2 says of a set, with Writ's bounds, listed
// refusals and the one extension added around it, all the slow way.
func oracleAccepts(set []byte) bool {
	var ms macaroon.Slice
	if len(set) > capability.MaxTokenSize || ms.UnmarshalBinary(set) != nil || len(ms) == 0 || len(ms)-1 > capability.MaxDischarges {
		return false
	}
	if again, err := ms.MarshalBinary(); err != nil || !bytes.Equal(again, set) {
		return false // not the canonical encoding
	}
	n := 0
	for _, m := range ms {
		n += len(m.Caveats())
		if m.Version() != macaroon.V2 {
			return false
		}
	}
	root := ms[0]
	id, err := capability.ParseIdentity(root.Id())
	if err != nil || n > capability.MaxCaveats || int(id.Issued) > len(root.Caveats()) || string(id.Audience) != "corp" ||
		id.NotAfter <= now.UnixMilli() {
		return false
	}
	key := [32]byte{1, 2, 3}
	points := map[string]bool{}
	for _, sig := range slowChain(key, root) {
		points[branchID(sig[:])] = true
	}
	isBound := func(c string) bool { return c == "bound" || strings.HasPrefix(c, "bound ") }
	for _, c := range root.Caveats() {
		if len(c.VerificationId) == 0 && isBound(string(c.Id)) {
			return false
		}
	}
	// The extension: a discharge with a bound caveat may come unbound. Whether it
	// did, is found by binding it.
	var bindable []int
	for i, d := range ms[1:] {
		for _, c := range d.Caveats() {
			if len(c.VerificationId) == 0 && isBound(string(c.Id)) {
				bindable = append(bindable, i+1)
				break
			}
		}
	}
	check := func(c string) error {
		word, _, _ := strings.Cut(c, " ")
		if word == "ok" || word == "branch" || isBound(c) && len(c) == 38 && points[c[6:]] {
			return nil
		}
		return fmt.Errorf("denied")
	}
	for choice := range 1 << len(bindable) {
		try := make([]*macaroon.Macaroon, 0, len(ms))
		for _, m := range ms[1:] {
			try = append(try, m.Clone())
		}
		for bit, i := range bindable {
			if choice>>bit&1 == 1 {
				try[i-1].Bind(root.Signature())
			}
		}
		if root.Verify(key[:], check, try) == nil {
			return true
		}
	}
	return false
}

// same holds our verifiers against the oracle.
func same(t testing.TB, plain, cached *capability.Verifier, set []byte) (accepted bool) {
	t.Helper()
	req := &capability.Request{Now: now}
	g := new(capability.Grant)
	err := plain.Verify(t.Context(), g, set, req)
	if want := oracleAccepts(set); (err == nil) != want {
		t.Fatalf("we say %v, macaroon.v2 says %v, of\n%x", err, want, set)
	}
	if err == nil {
		// What is accepted has one encoding.
		var ms macaroon.Slice
		if err := ms.UnmarshalBinary(set); err != nil {
			t.Fatal(err)
		}
		if again, err := ms.MarshalBinary(); err != nil || !bytes.Equal(again, set) {
			t.Fatalf("accepted, and re-encodes to\n%x, not\n%x", again, set)
		}
		if got := g.AppendBranches(nil); got[len(got)-1].String() != branchID(ms[0].Signature()) {
			t.Fatalf("branch %v", got)
		}
	}
	// The prefix cache changes no answer, the first time or the second.
	for range 2 {
		if got := cached.Verify(t.Context(), g, set, req); capability.CodeOf(got) != capability.CodeOf(err) {
			t.Fatalf("with the prefix cache %v, without %v, of\n%x", got, err, set)
		}
	}
	return err == nil
}

// TestAgainstMacaroonV2 is a seeded campaign over random token trees.
func TestAgainstMacaroonV2(t *testing.T) {
	plain := verifier(t)
	cached := verifier(t, capability.UnsafeWithoutRevocations(), capability.WithPrefixCache(8))
	rng := rand.New(rand.NewPCG(20261124, 1))
	accepted, total := 0, 0
	for start := time.Now(); total < 20_000 && (total < 1000 || time.Since(start) < 4*time.Second); total++ {
		b := make([]byte, 120)
		for i := 0; i < len(b); i += 8 {
			binary.LittleEndian.PutUint64(b[i:], rng.Uint64())
		}
		if same(t, plain, cached, buildTree(&tape{b})) {
			accepted++
		}
	}
	if accepted < total/20 || accepted > total*19/20 {
		t.Errorf("%d of %d trees accepted: the campaign looks at one side only", accepted, total)
	}
}

func FuzzVerifyAgainstMacaroonV2(f *testing.F) {
	for _, seed := range seeds(f, "verify") {
		f.Add(seed, seed)
	}
	plain := verifier(f)
	cached := verifier(f, capability.UnsafeWithoutRevocations(), capability.WithPrefixCache(8))
	f.Fuzz(func(t *testing.T, set, script []byte) {
		var ms macaroon.Slice
		if ms.UnmarshalBinary(set) == nil && len(ms) > 8 {
			return // the oracle takes 2^n
		}
		same(t, plain, cached, set)
		if len(script) < 1000 {
			same(t, plain, cached, buildTree(&tape{script}))
		}
	})
}

// FuzzMalleability: a token has one encoding, binary and text.
func FuzzMalleability(f *testing.F) {
	for _, seed := range seeds(f, "verify") {
		f.Add(seed, capability.TextPrefix+"AgI")
	}
	f.Add(mint(f, "ok").Bytes(), mint(f, "ok").Text())
	f.Fuzz(func(t *testing.T, set []byte, text string) {
		if tok, err := capability.Decode(set); err == nil {
			var ms macaroon.Slice
			if err := ms.UnmarshalBinary(set); err != nil {
				t.Fatalf("macaroon.v2 cannot read what we can: %v", err)
			}
			if again, err := ms.MarshalBinary(); err != nil || !bytes.Equal(again, set) {
				t.Fatalf("re-encodes to %x, not %x", again, set)
			}
			if back, err := capability.Parse(tok.Text()); err != nil || !bytes.Equal(back.Bytes(), set) {
				t.Fatalf("does not survive its text form: %v", err)
			}
		}
		if tok, err := capability.Parse(text); err == nil && tok.Text() != text {
			t.Fatalf("%q is another spelling of %q", text, tok.Text())
		}
	})
}

// seeds reads a corpus that must be there: a fuzz target that finds nothing
// passes and proves nothing.
func seeds(t testing.TB, name string) [][]byte {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("testdata", "seeds", name, "*"))
	if err != nil || len(files) < 3 {
		t.Fatalf("the seed corpus %s has %d files (%v): regenerate it with go test -run TestSeeds -update", name, len(files), err)
	}
	var out [][]byte
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if len(b) == 0 {
			t.Fatalf("%s is empty", file)
		}
		out = append(out, b)
	}
	return out
}
