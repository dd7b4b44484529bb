package audit

import (
	"bytes"
	"encoding/hex"
	"errors"
	"slices"
	"testing"

	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"
)

// memory is a plain hash store, the slow oracle.
type memory []Hash

func (m memory) ReadHashes(indexes []int64) ([]Hash, error) {
	var out []Hash
	for _, i := range indexes {
		out = append(out, m[i])
	}
	return out, nil
}

func TestEdgeAgreesWithTlog(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var (
			e      Edge
			stored memory
			own    []byte
		)
		for n := range rapid.Int64Range(0, 200).Draw(t, "size") {
			r := rapid.SliceOfN(rapid.Byte(), 0, 20).Draw(t, "record")
			hashes, err := tlog.StoredHashes(n, r, stored)
			if err != nil {
				t.Fatal(err)
			}
			stored = append(stored, hashes...)
			own = e.append(RecordHash(r), own)
			want, err := tlog.TreeHash(n+1, stored)
			if err != nil {
				t.Fatal(err)
			}
			if e.Root() != want || e.Size() != n+1 {
				t.Fatalf("after %d records: root %v, tlog says %v", n+1, e.Root(), want)
			}
		}
		var flat []byte
		for _, h := range stored {
			flat = append(flat, h[:]...)
		}
		if !bytes.Equal(flat, own) {
			t.Fatal("stored hashes differ from tlog's")
		}
		b, err := e.MarshalBinary()
		if err != nil || len(b) > MaxEdgeSize {
			t.Fatal(len(b), err)
		}
		var again Edge
		if err := again.UnmarshalBinary(b); err != nil || again != e {
			t.Fatalf("round trip: %v", err)
		}
	})
}

// The roots of RFC 6962's reference tree (certificate-transparency, merkletree/merkle_tree_test.cc) over its eight leaves.
func TestEdgeKnownRoots(t *testing.T) {
	leaves := []string{"", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"}
	roots := []string{
		"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
		"6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
		"fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
		"aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
		"d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
		"4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
		"76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
		"ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
		"5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
	}
	var e Edge
	for i, want := range roots {
		if got := hex.EncodeToString(slices.Concat(hashBytes(e.Root()))); got != want {
			t.Errorf("root of %d leaves is %s, want %s", i, got, want)
		}
		if i < len(leaves) {
			leaf, _ := hex.DecodeString(leaves[i])
			e.Append(RecordHash(leaf))
		}
	}
}

func hashBytes(h Hash) []byte { return h[:] }

func TestEdgeIsAValue(t *testing.T) {
	var a Edge
	a.Append(RecordHash([]byte("a")))
	b := a
	b.Append(RecordHash([]byte("b")))
	if a.Size() != 1 || a == b || a.Root() != RecordHash([]byte("a")) {
		t.Error("appending to a copy changed the original")
	}
}

func TestEdgeUnmarshalRefuses(t *testing.T) {
	var e Edge
	for i := range 5 {
		e.Append(RecordHash([]byte{byte(i)}))
	}
	good, _ := e.MarshalBinary()
	for name, bad := range map[string][]byte{
		"empty":    nil,
		"version":  append([]byte{2}, good[1:]...),
		"short":    good[:len(good)-1],
		"trailing": append(slices.Clone(good), 0),
		"size":     append([]byte{1, 0, 0, 0, 0, 0, 0, 0, 7}, good[9:]...),
		"huge":     {1, 255, 255, 255, 255, 255, 255, 255, 255},
	} {
		before := e
		if err := e.UnmarshalBinary(bad); !errors.Is(err, ErrMalformed) || e != before {
			t.Errorf("%s: %v, changed %t", name, err, e != before)
		}
	}
}

func TestEdgeFullPanics(t *testing.T) {
	e := Edge{size: MaxSize}
	defer func() {
		if recover() == nil {
			t.Error("a full tree took a record")
		}
	}()
	e.Append(Hash{})
}

func FuzzEdge(f *testing.F) {
	var e Edge
	for range 6 {
		b, _ := e.MarshalBinary()
		f.Add(b)
		e.Append(RecordHash([]byte("x")))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var e Edge
		if e.UnmarshalBinary(b) != nil {
			return
		}
		if again, _ := e.MarshalBinary(); !bytes.Equal(again, b) {
			t.Fatalf("accepted %x, encodes as %x", b, again)
		}
		e.Root()
	})
}
