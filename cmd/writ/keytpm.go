package main

import (
	"github.com/writ-dev/writ/authority/seal"
	"github.com/writ-dev/writ/caveats/attest/holder"
)

// tpmProtector seals a node's key file to this machine's TPM, so that a copy of
// the file is worth nothing elsewhere.
type tpmProtector struct{ address string }

// Kind implements seal.Protector.
func (tpmProtector) Kind() string { return "tpm" }

// Protect implements seal.Protector.
func (p tpmProtector) Protect(recipient seal.Recipient, private []byte) ([]byte, error) {
	return holder.Seal(p.address, private, recipient.Bytes())
}

// Unprotect implements seal.Protector.
func (p tpmProtector) Unprotect(recipient seal.Recipient, protected []byte) ([]byte, error) {
	return holder.Unseal(p.address, protected, recipient.Bytes())
}

// protector is what seals a key file to the TPM at address, or nil for none.
func protector(address string) seal.Protector {
	if address == "" {
		return nil
	}
	return tpmProtector{address}
}
