package pop

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// HardenProcess keeps the memory of this process, with its keys, from others as
// far as the operating system offers it. On Linux: no core dumps, and no
// process of the same user can attach a debugger or read /proc/PID/mem
// (prctl(2) PR_SET_DUMPABLE). What it does not do: it does not stop root, nor
// keep pages from being swapped out (encrypt swap). Locking the pages of a key
// alone would promise more than it keeps, since signing copies it about the
// heap. Call it early in main. Elsewhere it returns errors.ErrUnsupported.
func HardenProcess() error {
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("pop: no core dumps: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("pop: not dumpable: %w", err)
	}
	return nil
}
