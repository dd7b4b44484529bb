package main

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/writ-dev/writ/authority"
	"github.com/writ-dev/writ/authority/authoritytest"
)

// TestSaveSnapshot: what was not whole when it arrived is no backup, and is not
// left behind under its name or another.
func TestSaveSnapshot(t *testing.T) {
	n := authoritytest.Start(t)
	root := n.Root()
	defer root.Close()
	var whole bytes.Buffer
	if err := root.SaveSnapshot(t.Context(), &whole); err != nil {
		t.Fatal(err)
	}
	flipped := slices.Clone(whole.Bytes())
	flipped[len(flipped)/2] ^= 1
	failing := errors.New("the line went dead")
	out := filepath.Join(t.TempDir(), "writ.backup")
	for name, c := range map[string]struct {
		sent []byte
		err  error
		want error
	}{
		"cut off": {whole.Bytes()[:whole.Len()-1], nil, authority.ErrBackup},
		"flipped": {flipped, nil, authority.ErrBackup},
		"failed":  {whole.Bytes(), failing, failing},
	} {
		_, _, err := saveSnapshot(out, func(w io.Writer) error {
			_, err := w.Write(c.sent)
			return errors.Join(err, c.err)
		})
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
		if left, err := os.ReadDir(filepath.Dir(out)); err != nil || len(left) != 0 {
			t.Errorf("%s leaves %v, %v", name, left, err)
		}
	}
	save := func(w io.Writer) error { _, err := w.Write(whole.Bytes()); return err }
	h, size, err := saveSnapshot(out, save)
	if err != nil || h.Node != "n1" || size != int64(whole.Len()) {
		t.Errorf("%+v, %d bytes, %v", h, size, err)
	}
	var f *failure
	if _, _, err := saveSnapshot(out, save); !errors.As(err, &f) || f.Code != "exists" {
		t.Errorf("over another: %v", err)
	}
	info, err := os.Stat(out)
	if err != nil || info.Mode() != fs.FileMode(0o600) {
		t.Errorf("%v, %v", info, err)
	}
}
