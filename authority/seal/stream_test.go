package seal

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"testing"
)

func sealStream(t *testing.T, k *ClusterKey, l Label, plain []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := k.SealStream(rand.Reader, &b, l, []byte("context"))
	if err != nil {
		t.Fatal(err)
	}
	for len(plain) > 0 {
		n := min(len(plain), 10_007)
		if m, err := w.Write(plain[:n]); m != n || err != nil {
			t.Fatal(m, err)
		}
		plain = plain[n:]
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("more")); err == nil {
		t.Error("written after the end")
	}
	return b.Bytes()
}

func openStream(k *ClusterKey, l Label, context string, sealed []byte) ([]byte, error) {
	r, err := k.OpenStream(bytes.NewReader(sealed), l, []byte(context))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

// TestStream: lengths around the chunk's come back, and nothing that was
// altered, cut, moved, repeated or is another's.
func TestStream(t *testing.T) {
	k, err := NewClusterKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	l := Label{Cluster: "c", Incarnation: 1, Purpose: "backup"}
	for _, n := range []int{0, 1, streamChunk - 1, streamChunk, streamChunk + 1, 3*streamChunk + 5} {
		plain := bytes.Repeat([]byte("0123456789abcdef"), n/16+1)[:n]
		sealed := sealStream(t, k, l, plain)
		if got, err := openStream(k, l, "context", sealed); err != nil || !bytes.Equal(got, plain) {
			t.Fatalf("%d bytes: %d, %v", n, len(got), err)
		}
		if n >= 16 && bytes.Contains(sealed, plain[:16]) {
			t.Errorf("%d bytes: readable", n)
		}
	}
	plain := bytes.Repeat([]byte("x"), 3*streamChunk)
	sealed := sealStream(t, k, l, plain)
	chunk := 4 + streamChunk + tagSize
	part := func(i int) []byte { return sealed[streamSalt+i*chunk:][:chunk] }
	other := l
	other.Incarnation = 2
	another, _ := NewClusterKey(rand.Reader)
	for name, try := range map[string]func() ([]byte, error){
		"another label":   func() ([]byte, error) { return openStream(k, other, "context", sealed) },
		"another context": func() ([]byte, error) { return openStream(k, l, "contexts", sealed) },
		"another key":     func() ([]byte, error) { return openStream(another, l, "context", sealed) },
		"a chunk cut off": func() ([]byte, error) { return openStream(k, l, "context", sealed[:streamSalt+2*chunk]) },
		"a byte cut off":  func() ([]byte, error) { return openStream(k, l, "context", sealed[:len(sealed)-1]) },
		"a byte more":     func() ([]byte, error) { return openStream(k, l, "context", append(bytes.Clone(sealed), 0)) },
		"moved": func() ([]byte, error) {
			return openStream(k, l, "context", bytes.Join([][]byte{sealed[:streamSalt], part(1), part(0), part(2)}, nil))
		},
		"repeated": func() ([]byte, error) {
			return openStream(k, l, "context", bytes.Join([][]byte{sealed[:streamSalt], part(0), part(0), part(1), part(2)}, nil))
		},
		"an end too early": func() ([]byte, error) {
			early := bytes.Clone(sealed[:streamSalt+chunk])
			early[streamSalt] |= 0x80
			return openStream(k, l, "context", early)
		},
		"nothing": func() ([]byte, error) { return openStream(k, l, "context", nil) },
	} {
		if got, err := try(); !errors.Is(err, ErrRefused) && !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	for i := 0; i < len(sealed); i += 4999 {
		bad := bytes.Clone(sealed)
		bad[i] ^= 4
		if _, err := openStream(k, l, "context", bad); err == nil {
			t.Errorf("byte %d altered, and read", i)
		}
	}
	k.Destroy()
	if _, err := openStream(k, l, "context", sealed); !errors.Is(err, ErrDestroyed) {
		t.Error(err)
	}
}
