package chaos

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// planted are bugs that the campaign has to find, each with one of the first few seeds
// that have the fault that shows it.
// They are put into copies of the source, which the compiler reads in place of the
// files (-overlay), so that the product has none of this in it. One binary has all
// of them; the environment says which it shows.
var planted = []struct {
	name, file, old, bug string
	found                string // in what the campaign says
	fault                string // that shows it; empty: any seed does
}{
	{"lease not deducted", "authority/state/budget.go", "path[i].remaining -= granted",
		"if !PLANTED { path[i].remaining -= granted }", "to linearize", ""},
	{"return credited twice", "authority/state/budget.go", "b.remaining = min(b.limit, b.remaining+unspent)",
		"if PLANTED { b.remaining += unspent }; b.remaining = min(b.limit, b.remaining+unspent)", "to linearize", ""},
	{"returned calls still spent", "authority/replica/lease.go", "left := k.empty()",
		"left := k.empty(); if PLANTED { k.pool = left }", "were accepted", ""},
	{"freshness dated at receipt", "authority/replica/stream.go", "p, ok := s.waiting[e.Pong.Nonce]",
		"p, ok := s.waiting[e.Pong.Nonce]; if PLANTED { p.sent = r.clock() }", "after its revocation was acknowledged", "a guard hears late, then nothing"},
	{"a clock trusted for expiry", "authority/clocks.go", "if c.at == 0 {",
		"if c.at == 0 || PLANTED {", "which was acknowledged, is", "the leader's clock jumps ahead"},
	{"dedupe off", "authority/state/machine.go", "if earlier != nil || err != nil {",
		"if PLANTED { earlier, err = nil, nil }; if earlier != nil || err != nil {", "to linearize", ""},
	{"log not synced", "raftstore/log.go", "Timeout:        time.Second,",
		"Timeout: time.Second, NoSync: PLANTED,", "has not synced it", "kill the leader"},
	{"a restore that ends nothing", "authority/reborn.go", "b.Incarnation = nextIncarnation(before.Incarnation, r.Config.Clock())",
		"b.Incarnation = nextIncarnation(before.Incarnation, r.Config.Clock()); " +
			"if PLANTED { r.KeepEpochs = []uint32{1}; b.Keep = r.KeepEpochs }", "after its revocation was acknowledged", "a restore"},
	{"calls given out again", "authority/state/budget.go", "return token.Millis() <= m.meta.Revived",
		"return !PLANTED && token.Millis() <= m.meta.Revived", "calls of spent-", "a restore that keeps an epoch"},
	{"quorum check skipped", "authority/fresh.go", "ctx, cancel := context.WithTimeout(ctx, f.bound)",
		"ctx, cancel := context.WithTimeout(ctx, f.bound); " +
			"if PLANTED { f.quorum = func(context.Context) (uint64, error) { return 0, nil } }", "to linearize", "isolate the leader"},
}

// plantedSeeds is with how many seeds a planted bug has to be found.
const plantedSeeds = 6

// seedsWith returns the first seeds that have a fault, or an end, of a kind.
func seedsWith(kind string) (seeds []uint64) {
	for seed := uint64(1); len(seeds) < plantedSeeds; seed++ {
		if kind == "" || kind == endOf(seed).kind || slices.ContainsFunc(faultsOf(seed, faultsPerRun), func(f fault) bool { return f.kind == kind }) {
			seeds = append(seeds, seed)
		}
	}
	return seeds
}

// plantedEnv names the bug that is shown.
const plantedEnv = "CHAOS_PLANTED"

// plant adds all planted bugs to what an overlay replaces: sources by path.
func plant(files map[string]string) error {
	root, err := filepath.Abs("../..")
	if err != nil {
		return err
	}
	for _, p := range planted {
		shown := fmt.Sprintf("(plantedos.Getenv(%q) == %q)", plantedEnv, p.name)
		imported := [2]string{"import (", "import (\n\tplantedos \"os\""}
		if err := patch(files, filepath.Join(root, p.file), imported, [2]string{p.old, strings.ReplaceAll(p.bug, "PLANTED", shown)}); err != nil {
			return err
		}
	}
	return nil
}

// patch replaces the first of header by its second unless that is done already,
// and what is to be there exactly once.
func patch(files map[string]string, file string, header, change [2]string) error {
	source, ok := files[file]
	if !ok {
		b, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		source = strings.Replace(string(b), header[0], header[1], 1)
	}
	if n := strings.Count(source, change[0]); n != 1 {
		return fmt.Errorf("%s has %q %d times, not once", file, change[0], n)
	}
	files[file] = strings.Replace(source, change[0], change[1], 1)
	return nil
}
