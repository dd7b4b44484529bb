package holder_test

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/writ-dev/writ/caveats/attest/holder"
	"github.com/writ-dev/writ/caveats/attest/swtpm"
)

// TestSeal: a secret opens with the TPM and for the context that it was sealed
// for, after the TPM was off too, and with nothing else.
func TestSeal(t *testing.T) {
	dir := t.TempDir()
	start := func(name string) *swtpm.Process {
		p, err := swtpm.StartUnix(filepath.Join(dir, name), filepath.Join(dir, name+".sock"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.Kill)
		return p
	}
	for _, name := range []string{"a", "b"} {
		if err := swtpm.Manufacture(t.Context(), filepath.Join(dir, name), filepath.Join(dir, "ca")); err != nil {
			t.Fatal(err)
		}
	}
	a, b := start("a"), start("b")
	secret, context := bytes.Repeat([]byte("s"), 32), []byte("for n1")
	sealed, err := holder.Seal(a.Address, secret, context)
	if err != nil {
		t.Fatal(err)
	}
	// Of so many authorization values some would have a zero byte.
	for i := range 40 {
		at := fmt.Appendf(nil, "for n%d", i)
		sealed, err := holder.Seal(a.Address, secret, at)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := holder.Unseal(a.Address, sealed, at); err != nil || !bytes.Equal(got, secret) {
			t.Errorf("%s: %v", at, err)
		}
	}
	if bytes.Contains(sealed, secret) {
		t.Error("the secret is in what was sealed")
	}
	open := func(address string, sealed, context []byte, want error) {
		t.Helper()
		got, err := holder.Unseal(address, sealed, context)
		if want == nil && (err != nil || !bytes.Equal(got, secret)) || want != nil && (got != nil || !errors.Is(err, want)) {
			t.Errorf("%q, %v", got, err)
		}
	}
	for range 3 { // nothing is left in the TPM's few slots
		open(a.Address, sealed, context, nil)
		open(a.Address, sealed, []byte("for n2"), holder.ErrSealed)
	}
	open(b.Address, sealed, context, holder.ErrOtherTPM)
	for _, bad := range [][]byte{nil, sealed[:2], sealed[:20], append([]byte{2}, sealed[1:]...), bytes.Repeat([]byte{1}, 100)} {
		open(a.Address, bad, context, holder.ErrSealed)
	}
	damaged := bytes.Clone(sealed)
	damaged[len(damaged)-1] ^= 1
	open(a.Address, damaged, context, holder.ErrOtherTPM)
	if _, err := holder.Seal(a.Address, nil, context); err == nil {
		t.Error("sealed nothing")
	}
	a.Kill()
	a = start("a")
	open(a.Address, sealed, context, nil)
}
