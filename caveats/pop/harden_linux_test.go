package pop_test

import (
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/writ-dev/writ/caveats/pop"
)

// A process that was hardened leaves no core and lets nobody look; in a child,
// for it cannot be undone.
func TestHardenProcess(t *testing.T) {
	if os.Getenv("WRIT_TEST_HARDEN") == "" {
		exe, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(exe, "-test.run=^TestHardenProcess$", "-test.count=1")
		cmd.Env = append(os.Environ(), "WRIT_TEST_HARDEN=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	if err := pop.HardenProcess(); err != nil {
		t.Fatal(err)
	}
	dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	if err != nil || dumpable != 0 {
		t.Errorf("dumpable %d, %v", dumpable, err)
	}
	var core unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &core); err != nil || core.Cur != 0 || core.Max != 0 {
		t.Errorf("core files of up to %d bytes, %v", core.Max, err)
	}
}
