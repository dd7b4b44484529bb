package holder

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-tpm/tpm2"
)

// FuzzBlob: nothing panics, and a key that is read is one that was written so.
func FuzzBlob(f *testing.F) {
	f.Add([]byte(`{"format":1,"public":"AAA=","private":"AAA="}`))
	f.Add([]byte(`{"format":1,"public":"AAA=","private":"AAA="}x`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, content []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, blobName), content, 0o600); err != nil {
			t.Fatal(err)
		}
		b, err := readBlob(dir)
		if err != nil {
			return
		}
		if b == nil || b.Format != 1 || len(b.Private) == 0 || len(content) > maxBlob || !json.Valid(content) {
			t.Fatalf("%+v of %q", b, content)
		}
	})
}

// FuzzSealed: nothing panics, and what is taken apart is what was put together.
func FuzzSealed(f *testing.F) {
	object := tpm2.Marshal(signing(false))
	whole := append(binary.BigEndian.AppendUint16([]byte{sealVersion}, uint16(len(object))), object...)
	if _, _, err := parseSealed(append(whole, 1)); err != nil {
		f.Fatalf("the seed is refused: %v", err)
	}
	f.Add(append(whole, 1))
	f.Add(whole)
	f.Add([]byte{sealVersion, 0xff, 0xff, 0})
	f.Fuzz(func(t *testing.T, sealed []byte) {
		object, private, err := parseSealed(sealed)
		if err != nil {
			if !errors.Is(err, ErrSealed) {
				t.Fatal(err)
			}
			return
		}
		raw := object.Bytes()
		again := append(binary.BigEndian.AppendUint16([]byte{sealVersion}, uint16(len(raw))), raw...)
		if !bytes.Equal(append(again, private...), sealed) || len(private) == 0 {
			t.Fatalf("%x and %x of %x", raw, private, sealed)
		}
	})
}
