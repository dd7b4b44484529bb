package holder

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
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
