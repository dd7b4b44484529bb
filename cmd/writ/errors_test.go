package main

import (
	"fmt"
	"io/fs"
	"strings"
	"syscall"
	"testing"

	"github.com/writ-dev/writ/raftstore"
)

// A node that ended for want of space says so, and not that its files are damaged
// and want a backup; one whose state machine failed otherwise does not speak of
// space.
func TestNodeThatEndedOnAFullDisk(t *testing.T) {
	ended := func(cause error) *failure {
		return explain(fatalError{fmt.Errorf("%w: panic in Apply: %w\ngoroutine 1 [running]:", raftstore.ErrStateMachine, cause)})
	}
	for _, errno := range []syscall.Errno{syscall.ENOSPC, syscall.EDQUOT} {
		f := ended(fmt.Errorf("audit trail: %w", &fs.PathError{Op: "write", Path: "/data/audit/1/bodies", Err: errno}))
		if f.Code != "disk_full" || !strings.Contains(f.Message, "/data/audit/1/bodies") || !strings.Contains(f.Hint, "free some space") ||
			strings.Contains(f.Message, "goroutine") {
			t.Errorf("%v: %+v", errno, f)
		}
	}
	if f := ended(syscall.EIO); f.Code != "state_machine" || strings.Contains(f.Message, "goroutine") {
		t.Errorf("%+v", f)
	}
}
