//go:build chaos

package chaos

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// planted are bugs that the campaign has to find. They are put into a copy of the
// source, which the compiler reads in its place, so that the product has none of
// this in it.
var planted = []struct {
	name, file, old, bug string
	found                string // in what the campaign says
}{
	{"lease not deducted", "authority/state/budget.go", "path[i].remaining -= granted", "path[i].remaining -= 0 * granted", "were accepted"},
	{"return credited twice", "authority/state/budget.go", "b.remaining+unspent)", "b.remaining+2*unspent)", "were accepted"},
	{"quorum check skipped", "authority/fresh.go", "if _, err := f.quorum(ctx); err != nil {", "if err := ctx.Err(); err != nil {", "Illegal to linearize"},
}

// TestPlanted has the campaign find every planted bug, on one seed in 20 s.
func TestPlanted(t *testing.T) {
	for _, p := range planted {
		t.Run(p.name, func(t *testing.T) {
			root, err := filepath.Abs("../..")
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(root, p.file)
			source, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if n := strings.Count(string(source), p.old); n != 1 {
				t.Fatalf("%s has %q %d times, not once", p.file, p.old, n)
			}
			dir := t.TempDir()
			copied, overlay, binary := filepath.Join(dir, "bug.go"), filepath.Join(dir, "overlay.json"), filepath.Join(dir, "chaos.test")
			replaced, err := json.Marshal(map[string]any{"Replace": map[string]string{file: copied}})
			if err != nil {
				t.Fatal(err)
			}
			for name, data := range map[string][]byte{copied: []byte(strings.Replace(string(source), p.old, p.bug, 1)), overlay: replaced} {
				if err := os.WriteFile(name, data, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			build := exec.CommandContext(t.Context(), "go", "test", "-c", "-tags", "chaos", "-overlay", overlay, "-o", binary, ".")
			if out, err := build.CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			out, err := exec.CommandContext(t.Context(), binary, "-test.run", "TestCampaign", "-chaos.time", "20s").CombinedOutput()
			if err == nil || !strings.Contains(string(out), "VIOLATION") || !strings.Contains(string(out), p.found) {
				t.Errorf("not found (%v): %.4000s", err, out)
			}
		})
	}
}
