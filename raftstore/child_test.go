package raftstore

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// childMain is the test binary run again as a node of its own.
func childMain(role string) int {
	var err error
	switch role {
	case "load":
		err = childLoad(os.Getenv("RAFTSTORE_TEST_DIR"), os.Getenv("RAFTSTORE_TEST_ROUND"))
	case "node":
		err = childNode(os.Getenv("RAFTSTORE_TEST_DIR"), os.Getenv("RAFTSTORE_TEST_ID"))
	case "default-fatal":
		err = childDefaultFatal(os.Getenv("RAFTSTORE_TEST_DIR"))
	default:
		err = fmt.Errorf("no such role %q", role)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 4
	}
	return 0
}

// childLoad proposes from several goroutines until it is killed, and prints a
// line for each acknowledgment, written in one piece.
func childLoad(dir, round string) error {
	cfg := Config{Dir: dir, NodeID: "n1", Bootstrap: true, TrailingLogs: 50}
	s, err := Open(cfg, &ledger{})
	if err != nil {
		return err
	}
	ctx := context.Background()
	if _, err := s.WaitLeader(ctx); err != nil {
		return err
	}
	failed := make(chan error, 1)
	for g := range 8 {
		go func() {
			for i := 0; ; i++ {
				cmd := fmt.Sprintf("r%s-g%d-%d", round, g, i)
				r, err := s.Propose(ctx, []byte(cmd))
				if err != nil {
					failed <- err
					return
				}
				os.Stdout.WriteString(cmd + " " + strconv.FormatUint(r.Index, 10) + "\n")
				if i%20 == 19 && g == 0 {
					if err := s.Snapshot(ctx); err != nil {
						failed <- err
						return
					}
				}
			}
		}()
	}
	return <-failed
}

func child(t *testing.T, role, dir string, env ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(append(os.Environ(), "RAFTSTORE_TEST_CHILD="+role, "RAFTSTORE_TEST_DIR="+dir), env...)
	cmd.Stderr = os.Stderr
	return cmd
}

// TestKillDuringLoad kills a node with SIGKILL in the middle of load, again and
// again, also in the middle of snapshots and truncations. Whatever was
// acknowledged is there, at its index, once, and in order.
func TestKillDuringLoad(t *testing.T) {
	dir := t.TempDir()
	acked := map[string]uint64{}
	for round := range 5 {
		cmd := child(t, "load", dir, "RAFTSTORE_TEST_ROUND="+strconv.Itoa(round))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		seen := 0
		for lines.Scan() { // to the end, also after the kill: those count too
			name, index, ok := strings.Cut(lines.Text(), " ")
			n, err := strconv.ParseUint(index, 10, 64)
			if !ok || err != nil {
				t.Fatalf("line %q", lines.Text())
			}
			acked[name] = n
			if seen++; seen == 400+70*round {
				if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := cmd.Wait(); err == nil || cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Fatalf("round %d: child ended with %v", round, err)
		}
		sm := &ledger{}
		s := start(t, testConfig(t, dir), sm)
		have := map[string]uint64{}
		for i, c := range sm.commands() {
			if _, twice := have[c]; twice {
				t.Fatalf("%q applied twice", c)
			}
			have[c] = sm.Indexes[i]
		}
		for c, index := range acked {
			if have[c] != index {
				t.Fatalf("round %d: %q was acknowledged at %d, and is at %d", round, c, index, have[c])
			}
		}
		closeStore(t, s)
	}
	if len(acked) < 2000 {
		t.Errorf("only %d acknowledged", len(acked))
	}
	if files, _ := filepath.Glob(filepath.Join(dir, "snapshots", "*"+snapshotSuffix)); len(files) == 0 {
		t.Error("no snapshot was taken")
	}
}

// childDefaultFatal panics in Apply under the default OnFatal.
func childDefaultFatal(dir string) error {
	sm := &ledger{onApply: func([]Entry) { panic("invariant") }}
	s, err := Open(Config{Dir: dir, NodeID: "n1", Bootstrap: true}, sm)
	if err != nil {
		return err
	}
	if _, err := s.WaitLeader(context.Background()); err != nil {
		return err
	}
	var never sync.WaitGroup
	never.Add(1)
	s.Propose(context.Background(), nil)
	never.Wait()
	return nil
}

func TestFatalEndsTheProcess(t *testing.T) {
	cmd := child(t, "default-fatal", t.TempDir())
	err := cmd.Run()
	if cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("child ended with %v", err)
	}
}
