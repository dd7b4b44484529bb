package wallet_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/writ-dev/writ/authority/wallet"
)

// FuzzFile: nothing panics, whatever is in a wallet's file; what cannot be read
// says so.
func FuzzFile(f *testing.F) {
	a := &fake{}
	token := a.token(f)
	f.Add([]byte(`{"discharges":[{"caveat":"00","discharge":"writ_AA","expires":"2099-01-01T00:00:00Z"}]}`))
	f.Add([]byte(`{"discharges":null}`))
	f.Add([]byte(`{"discharges":[],"discharges":[]}`))
	f.Fuzz(func(t *testing.T, content []byte) {
		path := filepath.Join(t.TempDir(), "wallet")
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		w, err := wallet.Open(wallet.Config{Attester: a, Dischargers: map[string]wallet.Discharger{"elsewhere": a}, File: path})
		if err != nil {
			if !errors.Is(err, wallet.ErrFile) {
				t.Fatal(err)
			}
			return
		}
		// The caveat is for nobody who is asked here: what comes out was in the file.
		if whole, _, err := w.Discharge(t.Context(), token); err == nil && len(whole.Missing()) != 0 {
			t.Fatal("a token that is not whole")
		}
	})
}
