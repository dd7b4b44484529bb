package holder_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/writ-dev/writ/caveats/attest"
	"github.com/writ-dev/writ/caveats/attest/attesttest"
	"github.com/writ-dev/writ/caveats/attest/holder"
	"github.com/writ-dev/writ/caveats/attest/internal/tpm"
	"github.com/writ-dev/writ/caveats/pop"
)

func TestOneTPM(t *testing.T) {
	p := attesttest.StartTCP(t)
	for name, test := range map[string]func(*testing.T, *attesttest.TPM){
		"signs": testSigns, "keeps its key": testKeepsKey, "makes room": testMakesRoom, "is used by many": testUsedByMany,
		"finds no endorsement": testNoEndorsement, "passes errors on": testDischargerFails, "captures PCRs": testCapture,
	} {
		t.Run(name, func(t *testing.T) { test(t, p) })
	}
}

func open(t *testing.T, p *attesttest.TPM, dir string) *holder.Holder {
	t.Helper()
	h, err := holder.Open(holder.Config{TPM: p.Address, Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

// The key makes DPoP proofs, by itself and through a session.
func testSigns(t *testing.T, p *attesttest.TPM) {
	h := open(t, p, t.TempDir())
	digest := sha256.Sum256([]byte("message"))
	signature, err := h.Key().Sign(nil, digest[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	if !ecdsa.VerifyASN1(h.Key().Public().(*ecdsa.PublicKey), digest[:], signature) {
		t.Error("the signature does not match")
	}
	if _, err := h.Key().Sign(nil, digest[:20], crypto.SHA1); err == nil {
		t.Error("signs SHA-1")
	}
	key, err := pop.NewKey(h.Key())
	if err != nil {
		t.Fatal(err)
	}
	if key.HolderKey() != h.HolderKey() {
		t.Errorf("the key is %v, the holder %v", key, h.HolderKey())
	}
	call := pop.Call{Method: http.MethodGet, URI: "https://service.example/", Token: "writ_x"}
	for name, signer := range map[string]pop.Signer{"key": key, "session": pop.NewSession(key, 0, nil)} {
		if proof, err := signer.Prove(t.Context(), call); err != nil || strings.Count(proof, ".") < 2 {
			t.Errorf("%s: %q, %v", name, proof, err)
		}
	}
}

func testKeepsKey(t *testing.T, p *attesttest.TPM) {
	dir := filepath.Join(t.TempDir(), "made", "here")
	first := open(t, p, dir)
	path := filepath.Join(dir, "holder.tpm")
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("%v, %v", info, err)
	}
	if again := open(t, p, dir); again.HolderKey() != first.HolderKey() {
		t.Error("another key from the same directory")
	}
	if other := open(t, p, t.TempDir()); other.HolderKey() == first.HolderKey() || !slices.Equal(other.AKName(), first.AKName()) {
		t.Error("a fresh directory has the same holder key, or another attestation key")
	}
	if files, err := os.ReadDir(dir); err != nil || len(files) != 1 {
		t.Errorf("left behind: %v, %v", files, err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"empty": "", "another format": strings.Replace(string(good), `"format":1`, `"format":2`, 1), "large": string(good) + strings.Repeat(" ", 5000)} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := holder.Open(holder.Config{TPM: p.Address, Dir: dir}); err == nil {
			t.Errorf("%s: opened", name)
		}
	}
	if err := os.WriteFile(path, good, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := holder.Open(holder.Config{TPM: p.Address, Dir: dir}); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a file that others can read: %v", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	// The blob is worth nothing to another TPM.
	if _, err := holder.Open(holder.Config{TPM: p.Sibling(t).Address, Dir: dir}); !errors.Is(err, holder.ErrOtherTPM) {
		t.Errorf("another TPM: %v", err)
	}
}

// A TPM that is full with what a killed process left works all the same.
func testMakesRoom(t *testing.T, p *attesttest.TPM) {
	h := open(t, p, t.TempDir())
	c, err := tpm.Open(p.Address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	full := false
	for range 8 {
		if _, err := (tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}).Execute(c); errors.Is(err, tpm2.TPMRCObjectMemory) {
			full = true
			break
		}
	}
	if !full {
		t.Fatal("the TPM is not full, so that this tests nothing")
	}
	digest := sha256.Sum256(nil)
	if _, err := h.Key().Sign(nil, digest[:], crypto.SHA256); err != nil {
		t.Error(err)
	}
	// And nothing of ours stays.
	handles, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: 0x80000000, PropertyCount: 8}.Execute(c)
	if err != nil {
		t.Fatal(err)
	}
	if list, err := handles.CapabilityData.Data.Handles(); err != nil || len(list.Handle) != 0 {
		t.Errorf("left in the TPM: %v, %v", list, err)
	}
}

func testUsedByMany(t *testing.T, p *attesttest.TPM) {
	h := open(t, p, t.TempDir())
	public := h.Key().Public().(*ecdsa.PublicKey)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			digest := sha256.Sum256([]byte{byte(i)})
			if signature, err := h.Key().Sign(nil, digest[:], crypto.SHA256); err != nil || !ecdsa.VerifyASN1(public, digest[:], signature) {
				t.Errorf("%d: %v", i, err)
			}
			if _, err := h.CapturePCRs("x", []int{0}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func testNoEndorsement(t *testing.T, p *attesttest.TPM) {
	for _, kind := range []attest.Kind{attest.ECCP256, "rsa-4096"} {
		if _, err := holder.Open(holder.Config{TPM: p.Address, Dir: t.TempDir(), Kind: kind}); !errors.Is(err, holder.ErrNoEndorsement) {
			t.Errorf("%s: %v", kind, err)
		}
	}
	if _, err := holder.Open(holder.Config{TPM: "unix:" + filepath.Join(t.TempDir(), "nothing"), Dir: t.TempDir()}); err == nil {
		t.Error("opened nothing")
	}
}

type refusing struct{ err error }

func (r refusing) Begin(context.Context, *attest.BeginRequest) (*attest.Challenge, error) {
	return nil, r.err
}
func (r refusing) Finish(context.Context, *attest.FinishRequest) error { return r.err }

func testDischargerFails(t *testing.T, p *attesttest.TPM) {
	h := open(t, p, t.TempDir())
	want := errors.New("refused")
	if err := h.Attest(t.Context(), refusing{want}, holder.Want{Posture: attest.Posture{Agent: "a"}}); !errors.Is(err, want) {
		t.Error(err)
	}
	if err := h.Attest(t.Context(), refusing{want}, holder.Want{}); err == nil || errors.Is(err, want) {
		t.Errorf("a statement without an agent was sent: %v", err)
	}
}

func testCapture(t *testing.T, p *attesttest.TPM) {
	h := open(t, p, t.TempDir())
	all := make([]int, 24) // more than a TPM reads at once
	for i := range all {
		all[i] = i
	}
	before, err := h.CapturePCRs("all", all)
	if err != nil || len(before.Values) != 24 {
		t.Fatalf("%+v, %v", before, err)
	}
	p.Extend(t, 23)
	after, err := h.CapturePCRs("all", all)
	if err != nil {
		t.Fatal(err)
	}
	for i, v := range after.Values {
		if (v != before.Values[i]) != (i == "23") {
			t.Errorf("PCR %s: %s, then %s", i, before.Values[i], v)
		}
	}
}

func TestLocalPosture(t *testing.T) {
	p := holder.LocalPosture("agent", "1.0")
	text, err := p.Encode()
	if err != nil {
		t.Fatal(err)
	}
	exe, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if p.ProcessHash == nil || *p.ProcessHash != attest.Digest(sha256.Sum256(exe)) || p.OS == "" {
		t.Errorf("%s", text)
	}
}
