// Package atomicfile replaces small files that hold secrets or state.
package atomicfile

import (
	"errors"
	"os"
	"path/filepath"
)

// Replace replaces a file, or makes it, with mode 0600, in one step and durably:
// whoever reads it meanwhile has the old content or the new, and so has
// whoever reads it after a power failure.
func Replace(path string, b []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*") // mode 0600
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return Rename(f.Name(), path)
}

// Rename gives a file whose content is synced its name, durably. Where it cannot,
// the file is removed.
func Rename(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return errors.Join(err, os.Remove(from))
	}
	dir, err := os.Open(filepath.Dir(to))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
