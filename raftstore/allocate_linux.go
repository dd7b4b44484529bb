package raftstore

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// allocate lengthens f from one size to another, and takes the blocks for it
// where the file system can.
func allocate(f *os.File, from, to int64) error {
	for {
		err := unix.Fallocate(int(f.Fd()), 0, from, to-from)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS):
			return f.Truncate(to)
		default:
			return os.NewSyscallError("fallocate", err)
		}
	}
}
