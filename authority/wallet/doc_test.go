package wallet_test

import (
	"os"
	"strings"
	"testing"
)

// TestDocumentationShowsTheScript: what docs/attestation.md prints is what the
// test of the independent client runs.
func TestDocumentationShowsTheScript(t *testing.T) {
	read := func(name string) string {
		b, err := os.ReadFile("../../docs/" + name)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	_, shown, ok := strings.Cut(read("attestation.md"), "```sh\n")
	shown, _, closed := strings.Cut(shown, "```")
	if !ok || !closed || len(shown) < 500 {
		t.Fatal("the documentation shows no script")
	}
	if !strings.Contains(read("attest-tpm2-tools.sh"), shown) {
		t.Error("docs/attestation.md shows another script than docs/attest-tpm2-tools.sh")
	}
}
