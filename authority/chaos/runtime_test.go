package chaos

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// toolchain is the Go whose runtime fixedRuntime changes. A go command that is another
// gets this one, as it would for go.mod, for the campaign's own binary alone.
const toolchain = "go1.26.8"

// goCommand is the go command of that toolchain.
func goCommand(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Env = append(slices.DeleteFunc(os.Environ(), func(s string) bool { return strings.HasPrefix(s, "GOROOT=") }), // which is of the other
		"GOTOOLCHAIN="+toolchain, "CGO_ENABLED=0") // C has threads of its own
	return cmd
}

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
func fix(ctx context.Context, files map[string]string) error {
	var said strings.Builder
	where := goCommand(ctx, "env", "GOROOT")
	where.Stderr = &said
	out, err := where.Output()
	if err != nil {
		return fmt.Errorf("the campaign's runtime is made of %s, and there is none: %w: %s", toolchain, err, said.String())
	}
	for _, p := range slices.Concat(fixedRuntime, toldToDisks) {
		file := filepath.Join(strings.TrimSpace(string(out)), "src", filepath.FromSlash(p.file))
		if err := patch(files, file, fixedRandom, [2]string{p.old, p.fixed}); err != nil {
			return fmt.Errorf("the campaign's runtime is made of %s, and this is another: %w", toolchain, err)
		}
	}
	here, err := filepath.Abs("told_test.go")
	files[here] = told
	return err
}
