package state

import "golang.org/x/sys/unix"

// unmapPages has the kernel unmap the pages of a mapped file that it knows it can
// read again. It is advice: an error is no harm.
func unmapPages(start, size uintptr) {
	_, _, _ = unix.Syscall(unix.SYS_MADVISE, start, size, unix.MADV_DONTNEED)
}
