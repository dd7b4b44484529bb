//go:build unix

package main

import "golang.org/x/sys/unix"

// diskFree is what this process may still write beneath dir, in bytes.
func diskFree(dir string) (uint64, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return 0, err
	}
	return s.Bavail * uint64(s.Bsize), nil
}
