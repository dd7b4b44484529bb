package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/writ-dev/writ/caveats/attest/swtpm"
)

// TestNodeKeyInTPM: a node whose key file is sealed to a TPM starts with that TPM
// alone, and the file moves between protections and keys.
func TestNodeKeyInTPM(t *testing.T) {
	dir := t.TempDir()
	tpms, err := os.MkdirTemp("", "writ") // sockets have short paths
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(tpms) })
	env := []string{"WRIT_DATA_DIR=" + filepath.Join(dir, "data"), "WRIT_NODE_KEY=" + filepath.Join(dir, "node.key"), "WRIT_LISTEN=127.0.0.1:0"}
	for _, name := range []string{"A", "B"} {
		state := filepath.Join(tpms, name)
		if err := swtpm.Manufacture(t.Context(), state, filepath.Join(tpms, "ca")); err != nil {
			t.Fatal(err)
		}
		p, err := swtpm.StartUnix(state, state+".sock")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.Kill)
		env = append(env, name+"="+p.Address)
	}
	out, code := shell(t, bin(t), dir, env, `
trap 'kill -9 "$(cat pid)" 2>/dev/null || :' EXIT
refused() { if "$@"; then echo "not refused: $*"; exit 9; fi; }
run() { rm -f up; writ serve "$@" > up 2>> log & echo $! > pid; until test -s up; do kill -0 "$(cat pid)"; sleep 0.05; done; . ./up; }
end() { kill "$(cat pid)"; while kill -0 "$(cat pid)" 2>/dev/null; do sleep 0.05; done; }
WRIT_NODE_KEY_TPM=$A run --init --root-token root.token
grep '"kind": "tpm"' node.key
writ mint --audience corp --subject a --owner o --purpose p > t
writ keys reseal # which has the node open its key file again
writ mint --audience corp --subject a --owner o --purpose p > t
end
refused writ serve
refused writ serve --node-key-tpm "$B" 2> err; grep 'another machine' err
run --node-key-tpm "$A"; writ verify < t; end
writ keys passphrase --node-key-tpm "$A" --new-node-key-tpm "$B"
refused writ serve --node-key-tpm "$A"
run --node-key-tpm "$B"; writ verify < t; end
writ keys passphrase --node-key-tpm "$B" --no-passphrase
grep '"kind": "plain"' node.key
writ keys node --new-node-key next.key --new-node-key-tpm "$A"
refused writ serve
run --node-key next.key --node-key-tpm "$A"; writ verify < t; end
writ keys root --node-key next.key --node-key-tpm "$A" --out new.token
`)
	if code != 0 {
		log, _ := os.ReadFile(filepath.Join(dir, "log"))
		t.Errorf("exit code %d\n%s\n%s", code, out, log)
	}
}
