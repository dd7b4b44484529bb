//go:build failpoints

package main

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/writ-dev/writ/authority"
	"github.com/writ-dev/writ/raftstore/raftstoretest"
)

// failpoints are for a build that a fault campaign runs (authority/chaos/process):
// they let it break the node's disk and put off its clock, from outside, and ask
// the node for the hash of its state. WRIT_FAILPOINTS is the path of a Unix socket.
// Each line that comes there is a command, and is answered by one line:
//
//	disk slow 50ms | disk hang | disk fail | disk full | disk heal
//	clock 960h
//	state
//
// WRIT_FAILPOINTS_CLOCK is how far the clock is off from the start, and
// WRIT_FAILPOINTS_SNAPSHOTS how many log entries come between snapshots, and stay
// behind them.
type failpoints struct {
	disk  raftstoretest.Disk
	clock atomic.Int64 // nanoseconds ahead
	node  atomic.Pointer[authority.Authority]
}

// sabotage puts the failpoints into a node that is about to be opened.
func (n *node) sabotage(cfg *authority.Config) error {
	path := os.Getenv("WRIT_FAILPOINTS")
	if path == "" {
		return nil
	}
	f := new(failpoints)
	if text := os.Getenv("WRIT_FAILPOINTS_CLOCK"); text != "" {
		off, err := time.ParseDuration(text)
		if err != nil {
			return err
		}
		f.clock.Store(int64(off))
	}
	if text := os.Getenv("WRIT_FAILPOINTS_SNAPSHOTS"); text != "" {
		n, err := strconv.ParseUint(text, 10, 32)
		if err != nil {
			return err
		}
		cfg.SnapshotThreshold, cfg.TrailingLogs = n, n
	}
	n.now = func() time.Time { return time.Now().Add(time.Duration(f.clock.Load())) }
	n.opened = f.node.Store
	cfg.Clock, cfg.Faults = n.now, &f.disk
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	go f.serve(ln)
	return nil
}

func (f *failpoints) serve(ln net.Listener) {
	for {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			for lines := bufio.NewScanner(conn); lines.Scan(); {
				answer, err := f.do(lines.Text())
				if err != nil {
					answer = "error: " + err.Error()
				}
				if _, err := fmt.Fprintln(conn, answer); err != nil {
					return
				}
			}
		}()
	}
}

func (f *failpoints) do(line string) (string, error) {
	what, rest, _ := strings.Cut(line, " ")
	switch what {
	case "disk":
		return "ok", f.disk.Set(rest)
	case "clock":
		off, err := time.ParseDuration(rest)
		if err == nil {
			f.clock.Store(int64(off))
		}
		return "ok", err
	case "state":
		a := f.node.Load()
		if a == nil {
			return "", errors.New("not open yet")
		}
		index, hash := a.StateHash()
		return fmt.Sprintf("%d %x", index, hash), nil
	}
	return "", fmt.Errorf("no command %q", what)
}
