package capability_test

import (
	"encoding/binary"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the seed corpora and the golden vectors")

// TestSeeds rewrites the corpora with -update, and otherwise holds that each is
// there and does its work: the one for verifying holds both answers.
func TestSeeds(t *testing.T) {
	if *update {
		rng := rand.New(rand.NewPCG(1, 2))
		counts := map[bool]int{}
		v := verifier(t)
		for counts[true] < 8 || counts[false] < 8 {
			script := make([]byte, 96)
			for i := 0; i < len(script); i += 8 {
				binary.LittleEndian.PutUint64(script[i:], rng.Uint64())
			}
			set := buildTree(&tape{append([]byte(nil), script...)})
			ok := same(t, v, v, set)
			if counts[ok]++; counts[ok] > 8 || len(set) == 0 {
				continue
			}
			writeSeed(t, "verify", fmt.Sprintf("%v-%d", ok, counts[ok]), set)
			writeSeed(t, "verify", fmt.Sprintf("script-%v-%d", ok, counts[ok]), script)
		}
		key := discharger(t, 1)
		for i, tp := range someThirdParties() {
			tok, err := mint(t, "ok").AddThirdParty(key.Public(), "", tp)
			if err != nil {
				t.Fatal(err)
			}
			writeSeed(t, "caveatid", fmt.Sprint(i), tok.Missing()[0].CaveatID)
		}
	}
	v, accepted, refused := verifier(t), 0, 0
	for _, s := range seeds(t, "verify") {
		if same(t, v, v, s) {
			accepted++
		} else {
			refused++
		}
	}
	if accepted < 3 || refused < 3 {
		t.Errorf("the corpus holds %d good sets and %d bad ones", accepted, refused)
	}
	key := discharger(t, 1)
	for i, s := range seeds(t, "caveatid") {
		if _, err := key.OpenCaveat(s); err != nil {
			t.Errorf("caveat id %d: %v", i, err)
		}
	}
}

func writeSeed(t *testing.T, corpus, name string, b []byte) {
	t.Helper()
	dir := filepath.Join("testdata", "seeds", corpus)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
		t.Fatal(err)
	}
}
