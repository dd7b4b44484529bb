//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// ownSession has a child outlive the terminal that it was started from.
func ownSession() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setsid: true} }

// letGo has f lead nowhere from now on, so that whoever reads its other end
// sees the end of it.
func letGo(f *os.File) error {
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	return unix.Dup2(int(null.Fd()), int(f.Fd()))
}

// lockDev marks dir as in use by this process for as long as it lives: a lock
// file with its process id, which the kernel lets go of when it ends.
func lockDev(dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		_, err = fmt.Fprintln(f, os.Getpid())
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), f.Close())
	}
	return func() { _ = f.Close() }, nil
}

// stopDev ends the process that holds dir and waits until it is gone. It
// reports false if there is none. The id is trusted because the lock is held:
// it is not that of a later process.
func stopDev(ctx context.Context, dir string) (bool, error) {
	f, err := os.Open(filepath.Join(dir, "lock"))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	switch err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); {
	case err == nil:
		return false, nil
	case !errors.Is(err, unix.EWOULDBLOCK):
		return false, err
	}
	b, err := io.ReadAll(io.LimitReader(f, 32))
	if err != nil {
		return false, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || pid <= 1 {
		return false, fmt.Errorf("%s holds no process id", f.Name())
	}
	if err := unix.Kill(pid, unix.SIGTERM); err != nil {
		return false, err
	}
	gone := make(chan error, 1)
	go func() { gone <- unix.Flock(int(f.Fd()), unix.LOCK_SH) }()
	select {
	case err := <-gone:
		return true, err
	case <-ctx.Done():
		return false, fmt.Errorf("process %d does not end: %w", pid, ctx.Err())
	}
}
