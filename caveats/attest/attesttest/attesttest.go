// Package attesttest starts software TPMs (swtpm) for tests: each with a CA, an
// endorsement key certificate and a state of its own.
package attesttest

import (
	"testing"
)

// TPM is a running swtpm.
type TPM struct {
	Address string // as holder.Config.TPM takes it: "unix:PATH", or "tcp:127.0.0.1:PORT"
	Roots   []byte // the CA's certificates, in PEM
	Dir     string // the TPM's state
}

// Start manufactures and starts a TPM on a Unix socket. It is killed when the
// test ends. A test fails where swtpm is not installed.
func Start(t testing.TB) *TPM { t.Helper(); return nil }

// StartTCP is Start on a TCP port, as tpm2-tools need it.
func StartTCP(t testing.TB) *TPM { t.Helper(); return nil }

// Restart stops the TPM without warning and starts it again: a TPM reset.
func (p *TPM) Restart(t testing.TB) { t.Helper() }

// Clear runs TPM2_Clear.
func (p *TPM) Clear(t testing.TB) { t.Helper() }

// Extend extends a PCR of the SHA-256 bank.
func (p *TPM) Extend(t testing.TB, pcr int) { t.Helper() }
