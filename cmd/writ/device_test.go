package main

import (
	"os"
	"strings"
	"testing"
)

// pasted are the blocks of a page that name no language: a person pastes them
// into a shell.
func pasted(page string) (blocks []string) {
	var block strings.Builder
	fence := "" // of the block that the line is in
	for line := range strings.Lines(page) {
		switch {
		case !strings.HasPrefix(line, "```") && fence == "```\n":
			block.WriteString(line)
		case strings.HasPrefix(line, "```") && fence == "":
			fence = line
		case strings.HasPrefix(line, "```"):
			if block.Len() > 0 {
				blocks = append(blocks, block.String())
			}
			block.Reset()
			fence = ""
		}
	}
	return blocks
}

// TestAttestationPage runs what docs/attestation.md has a person type, as it is
// printed there.
func TestAttestationPage(t *testing.T) {
	binDir := bin(t)
	text, err := os.ReadFile("../../docs/attestation.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := pasted(string(text))
	if len(blocks) != 3 {
		t.Fatalf("%d blocks, and the test knows 3: %q", len(blocks), blocks)
	}

	// In a minute: what is said of t and of whole is so.
	const stop = "writ dev --stop\n"
	minute, ok := strings.CutSuffix(blocks[0], stop)
	if !ok {
		t.Fatalf("the first block does not end with %s", stop)
	}
	dir := t.TempDir()
	script := minute + `set +e
U=https://files.corp.example/q3
writ verify --action read < t; echo "exit $?"
writ verify --action read --proof "$(writ proof --tpm-key --url $U < whole)" --url $U < whole; echo "exit $?"
writ key new --out other.key
writ verify --action read --proof "$(writ proof --key-file other.key --url $U < whole)" --url $U < whole; echo "exit $?"
` + stop
	out, code := shell(t, binDir, dir, nil, script)
	if code != 0 {
		t.Fatalf("exit code %d\n%s", code, out)
	}
	at := 0
	for _, want := range []string{" good ", "deny discharge_required", "exit 2", "allow", "exit 0", "deny holder_proof", "exit 2"} {
		i := strings.Index(out[at:], want)
		if i < 0 {
			t.Fatalf("no %q where it belongs:\n%s", want, out)
		}
		at += i + len(want)
	}

	// For real machines, with the software TPM's maker for theirs.
	env := devEnv(t, binDir)
	out, code = shell(t, binDir, t.TempDir(), env, "writ device roots show dev > maker.pem\n"+blocks[1])
	if code != 0 || !strings.Contains(out, "prod@1") || !strings.Contains(out, "discharged until") {
		t.Errorf("exit code %d\n%s", code, out)
	}

	// A discharger of its own, which would stay.
	last := strings.TrimSuffix(blocks[2], "\n") + " --listen 127.0.0.1:0 --until-eof < /dev/null\n"
	out, code = shell(t, binDir, t.TempDir(), env, last)
	if code != 0 || !strings.Contains(out, "public_key = ") {
		t.Errorf("exit code %d\n%s", code, out)
	}
}
