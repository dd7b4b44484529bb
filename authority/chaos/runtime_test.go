package chaos

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// change is one to a file of the standard library.
type change struct{ file, old, fixed string }

// fixedRuntime are changes to the Go runtime, in copies that only the campaign's
// binary is built with, that leave nothing to chance or to how busy the machine is.
// With them a seed reproduces its whole run, to the last goroutine and allocation:
// GOMAXPROCS is 1, so that goroutines run one at a time, and nothing but what they
// do themselves says which is next.
var fixedRuntime = []change{
	// What a program sees of chance comes from one sequence: the order of maps and
	// of select, math/rand, which of two timers fires first. What the runtime draws for
	// its own ends does not, since how often that is depends on its threads.
	{"runtime/rand.go", "func rand() uint64 {\n", "func rand() uint64 {\n\tif gp := getg(); gp == gp.m.curg { return chaosRand() }\n"},
	{"runtime/select.go", "cheaprandn(uint32(norder + 1))", "uint32(chaosRand()) % uint32(norder + 1)"},
	{"runtime/sema.go", "cheaprand() | 1", "uint32(chaosRand()) | 1"},
	{"runtime/time.go", "t.rand = cheaprand()", "t.rand = uint32(chaosRand())"},
	// Hashes, and where the heap begins, which is in the order of a map whose keys
	// are pointers.
	{"runtime/rand.go", "seed[i%len(seed)] ^= c", "seed[i%len(seed)] ^= c & 1 >> 1"},
	// Whether a mutex is handed over depends on how long somebody has waited.
	{"internal/sync/mutex.go", "runtime_nanotime()-waitStartTime > starvationThresholdNs", "runtime_nanotime()-waitStartTime > 1<<62"},
	// No goroutine is interrupted because it has run for long, and nobody else runs
	// while one is in a system call.
	{"runtime/proc.go", "func retake(now int64) uint32 {\n", "func retake(now int64) uint32 {\n\tif now != 0 { return 0 }\n"},
	// The main goroutine changes threads like any other while packages are initialized:
	// how many threads there are is on the heap, and would depend on time.
	{"runtime/proc.go", "\tlockOSThread()\n\n\tif mp", "\tif mp"},
	{"runtime/proc.go", "needUnlock := true", "needUnlock := false"},
	{"runtime/proc.go", "\tneedUnlock = false\n\tunlockOSThread()\n", ""},
}

// fixedRandom goes into runtime/rand.go: wyrand, as there, but one for all.
var fixedRandom = [2]string{"// globalRand holds the global random state.\n", `var chaosState uint64

//go:nosplit
func chaosRand() uint64 {
	chaosState += 0xa0761d6478bd642f
	hi, lo := math.Mul64(chaosState, chaosState^0xe7037ed1a0b428db)
	return hi ^ lo
}

// globalRand holds the global random state.
`}

// fixedEnv is all that a run has of an environment: its length alone would move what
// is allocated after it. Collecting garbage takes as long as it takes, and so does
// not happen.
var fixedEnv = []string{"GOMAXPROCS=1", "GOGC=off", "GODEBUG=asyncpreemptoff=1", "TMPDIR=."}

// fix adds the fixed runtime, and what tells disks, to what an overlay replaces.
func fix(t *testing.T, files map[string]string) error {
	out, err := exec.CommandContext(t.Context(), "go", "env", "GOROOT").Output()
	if err != nil {
		return err
	}
	for _, p := range slices.Concat(fixedRuntime, toldToDisks) {
		file := filepath.Join(strings.TrimSpace(string(out)), "src", filepath.FromSlash(p.file))
		if err := patch(files, file, fixedRandom, [2]string{p.old, p.fixed}); err != nil {
			return fmt.Errorf("another Go than the campaign's runtime was made for: %w", err)
		}
	}
	here, err := filepath.Abs("told_test.go")
	files[here] = told
	return err
}
