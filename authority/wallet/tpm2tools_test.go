package wallet_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats"
	"github.com/writ-dev/writ/caveats/attest"
	"github.com/writ-dev/writ/caveats/attest/attesttest"
)

// TestIndependentClient has Debian's tpm2-tools enroll, quote and certify against
// the same API: the shell script that docs/attestation.md shows.
func TestIndependentClient(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	tpm := attesttest.StartTCP(t)
	if _, err := r.root.SetRoots(t.Context(), "tools", api.RootsRequest{PEM: string(tpm.Roots)}); err != nil {
		t.Fatal(err)
	}
	document := policyOf(t, r.machine.holder, func(p *attest.Policy) { p.EKRoots = []string{"factory", "tools"} })
	if _, err := r.root.SetPolicy(t.Context(), api.PolicyRequest{Document: document}); err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(t.TempDir(), "root.token")
	if err := os.WriteFile(root, []byte(r.RootToken), 0o600); err != nil {
		t.Fatal(err)
	}
	host, port, _ := strings.Cut(strings.TrimPrefix(tpm.Address, "tcp:"), ":")
	dir := t.TempDir()
	script := func(stdin string, args ...string) (string, error) {
		cmd := exec.CommandContext(t.Context(), "sh", append([]string{"../../docs/attest-tpm2-tools.sh"}, args...)...)
		cmd.Env = append(os.Environ(), "WRIT_ADDR="+r.Addr, "WRIT_CA_FINGERPRINT="+r.CAFingerprint, "WRIT_TOKEN_FILE="+root,
			"WRIT_TPM2_DIR="+dir, "TPM2TOOLS_TCTI=swtpm:host="+host+",port="+port)
		cmd.Stdin = strings.NewReader(stdin)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			out = append(out, stderr.Bytes()...)
		}
		return strings.TrimSpace(string(out)), err
	}
	must := func(stdin string, args ...string) string {
		t.Helper()
		out, err := script(stdin, args...)
		if err != nil {
			t.Fatalf("%v: %v\n%s\n%s", args, err, out, r.log)
		}
		return out
	}

	ids := strings.Fields(must("", "id"))
	if len(ids) != 4 || ids[0] != "device" || ids[2] != "holder" {
		t.Fatalf("%q", ids)
	}
	device, err := capability.ParseDeviceID(ids[1])
	if err != nil {
		t.Fatal(err)
	}
	holderKey, err := capability.ParseHolderKey(ids[3])
	if err != nil {
		t.Fatal(err)
	}
	if out := must("", "enroll", "prod"); out != "enrolled "+ids[1] {
		t.Fatalf("%q", out)
	}
	if d, err := r.root.Device(t.Context(), device); err != nil || d.Holder != ids[3] || d.EK != string(attest.RSA2048) {
		t.Fatalf("%+v, %v", d, err)
	}

	token := r.mint(func(req *api.IssueRequest) { req.ThirdParty[0].Holder = ids[3] })
	d, err := capability.Parse(must(token.Text(), "discharge"))
	if err != nil {
		t.Fatal(err)
	}
	whole, err := token.WithDischarges(d)
	if err != nil {
		t.Fatal(err)
	}
	checker, err := caveats.Standard()
	if err != nil {
		t.Fatal(err)
	}
	v, err := r.Replica(t, "tools", audience).Verifier(checker)
	if err != nil {
		t.Fatal(err)
	}
	var g capability.Grant
	req := capability.Request{
		Now: time.Now(), Action: "read", Resource: []string{"files", "q3"}, Holder: holds(holderKey),
		Context: capability.Fields{{Name: "pop", Value: capability.StringValue("direct")}},
	}
	if err := v.Verify(t.Context(), &g, whole.Bytes(), &req); err != nil {
		t.Fatal(err)
	}
	if policy, ok := g.Declared(attest.FactPolicy); !ok || policy != "prod@2" {
		t.Errorf("declared %q, %v", policy, ok)
	}

	// A token for the other machine is refused, and the script says so.
	if out, err := script(r.mint(nil).Text(), "discharge"); err == nil || !strings.Contains(out, string(api.CodeAttestation)) {
		t.Errorf("%v: %s", err, out)
	}
}
