package state

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"
)

// TestLeast: in whatever order the keys come, the same ones are taken.
func TestLeast(t *testing.T) {
	for _, n := range []int{0, 1, maxExpired, maxExpired + 1, 2 * maxExpired, 7 * maxExpired} {
		var all [][]byte
		for i := range n {
			prefix := []string{"branch\x00", "token\x00"}[i%2]
			all = append(all, binary.BigEndian.AppendUint32([]byte(prefix), uint32(i)))
		}
		want := slices.SortedFunc(slices.Values(all), bytes.Compare)
		want = want[:min(n, maxExpired)]
		for seed := range uint64(3) {
			r := rand.New(rand.NewPCG(seed, 0))
			if seed > 0 {
				r.Shuffle(n, func(i, j int) { all[i], all[j] = all[j], all[i] })
			}
			var l least
			for _, k := range all {
				prefix := bytes.IndexByte(k, 0) + 1
				l.add(string(k[:prefix]), k[prefix:])
			}
			if !slices.EqualFunc(l.sorted(), want, bytes.Equal) {
				t.Errorf("%d keys, order %d: others than the least", n, seed)
			}
		}
	}
}
