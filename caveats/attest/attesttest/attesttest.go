// Package attesttest starts software TPMs for tests: each with a CA, endorsement
// keys, certificates and a state of its own.
package attesttest

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/writ-dev/writ/caveats/attest/internal/tpm"
	"github.com/writ-dev/writ/caveats/attest/swtpm"
)

// TPM is a running swtpm.
type TPM struct {
	Address string // as holder.Config.TPM takes it: "unix:PATH", or "tcp:127.0.0.1:PORT"
	Roots   []byte // the CA's certificates, in PEM
	Dir     string // the TPM's state

	ca      string
	socket  string // "" for TCP
	process *swtpm.Process
}

// Start manufactures a TPM and starts it on a Unix socket. It is killed when
// the test ends. The test fails where swtpm is not installed.
func Start(t testing.TB) *TPM {
	t.Helper()
	dir := tempDir(t)
	return start(t, filepath.Join(dir, "ca"), filepath.Join(dir, "tpm"), filepath.Join(dir, "s"))
}

// StartTCP is Start on a TCP port, as tpm2-tools need it.
func StartTCP(t testing.TB) *TPM {
	t.Helper()
	dir := tempDir(t)
	return start(t, filepath.Join(dir, "ca"), filepath.Join(dir, "tpm"), "")
}

// Sibling is another TPM by the same CA.
func (p *TPM) Sibling(t testing.TB) *TPM {
	t.Helper()
	dir := tempDir(t)
	return start(t, p.ca, filepath.Join(dir, "tpm"), filepath.Join(dir, "s"))
}

// tempDir is not t.TempDir, whose paths are too long for a socket.
func tempDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "tpm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func start(t testing.TB, ca, dir, socket string) *TPM {
	t.Helper()
	if err := swtpm.Manufacture(t.Context(), dir, ca); err != nil {
		t.Fatal(err)
	}
	roots, err := swtpm.Roots(ca)
	if err != nil {
		t.Fatal(err)
	}
	p := &TPM{Roots: roots, Dir: dir, ca: ca, socket: socket}
	t.Cleanup(func() {
		if p.process != nil {
			p.process.Kill()
		}
	})
	p.run(t)
	return p
}

func (p *TPM) run(t testing.TB) {
	t.Helper()
	var err error
	if p.socket == "" {
		p.process, err = swtpm.StartTCP(context.WithoutCancel(t.Context()), p.Dir)
	} else {
		p.process, err = swtpm.StartUnix(p.Dir, p.socket)
	}
	if err != nil {
		t.Fatal(err)
	}
	p.Address = p.process.Address
}

// Restart kills the TPM and starts it again: a TPM reset after a power failure.
// On TCP, Address changes.
func (p *TPM) Restart(t testing.TB) {
	t.Helper()
	p.process.Kill()
	p.run(t)
}

// Shutdown is Restart after an orderly TPM2_Shutdown.
func (p *TPM) Shutdown(t testing.TB) {
	t.Helper()
	p.do(t, func(c *tpm.Conn) error {
		_, err := tpm2.Shutdown{ShutdownType: tpm2.TPMSUClear}.Execute(c)
		return err
	})
	p.Restart(t)
}

// Clear runs TPM2_Clear.
func (p *TPM) Clear(t testing.TB) {
	t.Helper()
	p.do(t, func(c *tpm.Conn) error {
		_, err := tpm2.Clear{AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHLockout, Auth: tpm2.PasswordAuth(nil)}}.Execute(c)
		return err
	})
}

// Extend extends a PCR of the SHA-256 bank.
func (p *TPM) Extend(t testing.TB, pcr int) {
	t.Helper()
	p.do(t, func(c *tpm.Conn) error {
		_, err := tpm2.PCRExtend{
			PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(pcr), Auth: tpm2.PasswordAuth(nil)},
			Digests:   tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: make([]byte, 32)}}},
		}.Execute(c)
		return err
	})
}

func (p *TPM) do(t testing.TB, f func(*tpm.Conn) error) {
	t.Helper()
	c, err := tpm.Open(p.Address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := f(c); err != nil {
		t.Fatal(err)
	}
}
