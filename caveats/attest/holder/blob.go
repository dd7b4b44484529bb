package holder

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/writ-dev/writ/caveats/attest"
)

// blobName is the file of the holder key in Config.Dir.
const blobName = "holder.tpm"

// maxBlob bounds the file, in bytes.
const maxBlob = 4096

// blob is a key outside its TPM, which alone can load it.
type blob struct {
	Format  int    `json:"format"`  // 1
	Public  []byte `json:"public"`  // TPMT_PUBLIC
	Private []byte `json:"private"` // TPM2B_PRIVATE without its size; encrypted by the TPM
}

// readBlob returns nil where there is no file.
func readBlob(dir string) (*blob, error) {
	path := filepath.Join(dir, blobName)
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s is of mode %#o: others than its owner can use it; chmod 600", path, info.Mode().Perm())
	}
	text, err := io.ReadAll(io.LimitReader(f, maxBlob+1))
	if err != nil {
		return nil, err
	}
	b := new(blob)
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	err = dec.Decode(b)
	if _, end := dec.Token(); err != nil || end != io.EOF || len(text) > maxBlob || b.Format != 1 || len(b.Public) > attest.MaxPublic || len(b.Private) == 0 {
		return nil, fmt.Errorf("%s is no holder key", path)
	}
	return b, nil
}

// writeBlob writes the file, durably, unless another process was first: then it
// returns what that one wrote.
func writeBlob(dir string, b *blob) (_ *blob, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	b.Format = 1
	text, err := json.Marshal(b)
	if err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(dir, blobName+".*") // mode 0600
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.Remove(f.Name())) }()
	if _, err = f.Write(append(text, '\n')); err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	// A link, unlike a rename, never replaces a key.
	if err := os.Link(f.Name(), filepath.Join(dir, blobName)); errors.Is(err, os.ErrExist) {
		return readBlob(dir)
	} else if err != nil {
		return nil, err
	}
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	return b, errors.Join(d.Sync(), d.Close())
}
