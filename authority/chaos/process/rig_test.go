//go:build linux

package process

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/chaos/check"
	"github.com/writ-dev/writ/authority/chaos/netns"
	"github.com/writ-dev/writ/authority/client"
)

const (
	audience = "corp"
	apiPort  = 7480
	peerPort = 7481
	diskSize = 192 << 20 // of a node's file system, bytes
	patience = 30 * time.Second
)

// now is CLOCK_MONOTONIC in nanoseconds: the same in all processes of the machine,
// and out of every fault's reach.
func now() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err)
	}
	return ts.Nano()
}

// binaries is the directory of what build makes: writ, and this package's tests,
// for the workers. Neither has the race detector unless it is asked for: two cores
// would then have little to spare for anything else.
var binaries string

var raced = flag.Bool("process.race", false, "run nodes and workers under the race detector")

var build = sync.OnceValue(func() error {
	for _, args := range [][]string{
		{"build", "-buildvcs=false", "-tags", "failpoints", "-o", filepath.Join(binaries, "writ"), "github.com/writ-dev/writ/cmd/writ"},
		{"test", "-c", "-o", filepath.Join(binaries, "worker"), "github.com/writ-dev/writ/authority/chaos/process"},
	} {
		if *raced {
			args = slices.Insert(args, 1, "-race")
		}
		if out, err := exec.Command("go", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("go %s: %w: %s", strings.Join(args, " "), err, out)
		}
	}
	return nil
})

// rig is a cluster of processes.
type rig struct {
	t       testing.TB
	dir     string        // stays with go test -artifacts
	sockets string        // a directory whose path is short
	bound   time.Duration // of the cluster
	lab     *netns.Lab
	log     *check.Log // of what the rig itself does and sees

	fingerprint, root string
	nodes             []*node // those that were removed included
	made              int     // nodes, ever
	links             []*link
	places            [places]*node // who is reached where
}

func newRig(t testing.TB, bound time.Duration) *rig {
	t.Helper()
	if err := build(); err != nil {
		t.Fatal(err)
	}
	dir := t.ArtifactDir()
	sockets, err := os.MkdirTemp(binaries, "")
	if err != nil {
		t.Fatal(err)
	}
	lab, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, dir: dir, sockets: sockets, bound: bound, lab: lab, log: check.NewLog(nil)}
	t.Cleanup(func() {
		r.inspectLogs()
		if err := lab.Close(); err != nil {
			t.Error(err)
		}
		for _, n := range r.nodes {
			if n.exited != nil {
				<-n.exited
			}
		}
	})
	return r
}

// starved is how late a thread of this machine may wake up. A message among nodes
// waits for several; where each is later than this, the timeouts of a local network
// are shorter than its way.
const starved = 30 * time.Millisecond

// recovery is how long after the machine was starved, or a quorum was missing, a
// guard may still be stale.
const recovery = 3 * time.Second

// watchMachine records when the machine did not run those who could, as a time in
// which no guard has a way to a node, until the function that it returns is called;
// that says for which part of the time freshness could be judged.
func (r *rig) watchMachine() (judged func() float64) {
	stop, stopped := make(chan struct{}), make(chan struct{})
	begun, excused, until := now(), int64(0), int64(0)
	go func() {
		defer close(stopped)
		for tick := time.NewTicker(5 * time.Millisecond); ; {
			at := now()
			select {
			case <-stop:
				tick.Stop()
				return
			case <-tick.C:
			}
			if woken := now(); woken-at > int64(5*time.Millisecond+starved) {
				_ = r.log.Add(check.Record{Op: check.OpCut, Begun: at, Ended: woken}) // in memory
				excused += woken + int64(recovery) - max(at, until)
				until = woken + int64(recovery)
			}
		}
	}()
	return func() float64 {
		close(stop)
		<-stopped
		return max(0, 1-float64(excused)/float64(now()-begun))
	}
}

// inspectLogs looks for what no node may ever say, and shows how a run ended that failed.
func (r *rig) inspectLogs() {
	for _, n := range r.nodes {
		b, err := os.ReadFile(n.logFile())
		if err != nil {
			continue
		}
		for _, word := range []string{"DATA RACE", "\npanic: ", "fatal error: "} {
			if i := bytes.Index(b, []byte(word)); i >= 0 {
				r.t.Errorf("VIOLATION: %s says %s: %.3000s", n.name, word, b[i:])
			}
		}
		if r.t.Failed() {
			r.t.Logf("the last that %s said:\n%s", n.name, b[max(0, len(b)-3000):])
		}
	}
}

// node is one node, running or not.
type node struct {
	r    *rig
	name string
	host *netns.Host
	dir  string // data, on a file system of its own; key; log

	cmd     *exec.Cmd     // nil: it does not run
	exited  chan struct{} // closed when it has ended
	frozen  bool
	removed bool
	clock   time.Duration // that it starts with
}

func (n *node) logFile() string { return filepath.Join(n.dir, "log") }
func (n *node) data() string    { return filepath.Join(n.dir, "data") }
func (n *node) key() string     { return filepath.Join(n.dir, "node.key") }
func (n *node) socket() string  { return filepath.Join(n.r.sockets, n.name) }
func (n *node) running() bool   { return n.cmd != nil }

// add makes the place for another node.
func (r *rig) add() (*node, error) {
	r.made++
	name := fmt.Sprintf("n%d", r.made)
	h, err := r.lab.Host(name)
	if err != nil {
		return nil, err
	}
	n := &node{r: r, name: name, host: h, dir: filepath.Join(r.dir, name)}
	if err := os.MkdirAll(n.data(), 0o700); err != nil {
		return nil, err
	}
	if err := r.lab.Tmpfs(n.data(), diskSize); err != nil {
		return nil, err
	}
	r.nodes = append(r.nodes, n)
	return n, nil
}

// ready is what writ prints once it serves.
type ready struct {
	Addr          string `json:"addr"`
	CAFingerprint string `json:"ca_fingerprint"`
}

// start runs writ as this node, and waits until it serves or has ended.
func (n *node) start(ctx context.Context, stdin string, command ...string) (*ready, error) {
	args := append(command, "--output", "json", "--node", n.name, "--listen", n.host.Join(apiPort), "--peer-listen", n.host.Join(peerPort),
		"--data-dir", filepath.Join(n.data(), "writ"), "--node-key", n.key(), "--log-level", "warn")
	log, err := os.OpenFile(n.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(binaries, "writ"), args...)
	cmd.Env = append(os.Environ(), "WRIT_FAILPOINTS="+n.socket(), "WRIT_FAILPOINTS_CLOCK="+n.clock.String(),
		"WRIT_FAILPOINTS_SNAPSHOTS=200")
	cmd.Stdin, cmd.Stderr = strings.NewReader(stdin), log
	out, in := io.Pipe()
	cmd.Stdout = in
	if err := n.host.Start(cmd); err != nil {
		return nil, err
	}
	exited := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		in.Close()
		close(exited)
	}()
	n.cmd, n.exited, n.frozen = cmd, exited, false
	said := make(chan *ready, 1)
	go func() {
		got := new(ready)
		if json.NewDecoder(out).Decode(got) == nil {
			said <- got
		}
		_, _ = io.Copy(io.Discard, out)
	}()
	select {
	case got := <-said:
		return got, nil
	case <-exited:
		n.cmd = nil
		return nil, &ended{n.name, cmd.ProcessState.ExitCode(), n.lastCode()}
	case <-ctx.Done():
		return nil, fmt.Errorf("%s is not ready: %w", n.name, ctx.Err())
	}
}

// ended says that a node has ended by itself.
type ended struct {
	node string
	exit int
	code string // that writ gave
}

func (e *ended) Error() string {
	return fmt.Sprintf("%s ended with exit code %d: %s", e.node, e.exit, e.code)
}

var codes = regexp.MustCompile(`"code":\s*"([a-z_]+)"`)

// lastCode is the code that writ ended with, as its log has it.
func (n *node) lastCode() string {
	b, err := os.ReadFile(n.logFile())
	if err != nil {
		return err.Error()
	}
	if all := codes.FindAllSubmatch(b, -1); len(all) > 0 {
		return string(all[len(all)-1][1])
	}
	return "no code"
}

// form forms a cluster of n nodes, all voters.
func (r *rig) form(ctx context.Context, n int) error {
	first, err := r.add()
	if err != nil {
		return err
	}
	token := filepath.Join(first.dir, "root.token")
	got, err := first.start(ctx, "", "cluster", "init", "--root-token", token, "--staleness-bound", r.bound.String())
	if err != nil {
		return err
	}
	b, err := os.ReadFile(token)
	if err != nil {
		return err
	}
	r.fingerprint, r.root = got.CAFingerprint, strings.TrimSpace(string(b))
	for range n - 1 {
		if _, err := r.join(ctx); err != nil {
			return err
		}
	}
	return r.settle(ctx)
}

// join adds a node to the cluster.
func (r *rig) join(ctx context.Context) (*node, error) {
	c := r.client()
	defer c.Close()
	token, err := c.ClusterToken(ctx, api.ClusterTokenRequest{})
	if err != nil {
		return nil, fmt.Errorf("a join token: %w", err)
	}
	n, err := r.add()
	if err != nil {
		return nil, err
	}
	var addrs []string
	for _, other := range r.nodes {
		if other.running() && other != n {
			addrs = append(addrs, other.host.Join(apiPort))
		}
	}
	_, err = n.start(ctx, token.Token, "cluster", "join", "--addr", strings.Join(addrs, ","), "--ca-fingerprint", r.fingerprint)
	return n, err
}

// restart starts a node that was there before.
func (n *node) restart(ctx context.Context) error {
	_, err := n.start(ctx, "", "serve")
	return err
}

// kill ends the process at once, with SIGKILL; quit in good order.
func (n *node) kill() { n.end(syscall.SIGKILL) }
func (n *node) quit() { n.end(syscall.SIGTERM) }

func (n *node) end(how syscall.Signal) {
	if n.cmd == nil {
		return
	}
	if n.frozen {
		_ = n.cmd.Process.Signal(syscall.SIGCONT)
	}
	_ = n.cmd.Process.Signal(how)
	select {
	case <-n.exited:
	case <-time.After(patience):
		n.r.t.Errorf("VIOLATION: %s does not end after %v", n.name, how)
		_ = n.cmd.Process.Kill()
		<-n.exited
	}
	n.cmd, n.frozen = nil, false
}

func (n *node) freeze() error {
	n.frozen = true
	return n.cmd.Process.Signal(syscall.SIGSTOP)
}

func (n *node) thaw() error {
	n.frozen = false
	return n.cmd.Process.Signal(syscall.SIGCONT)
}

// awaitEnd waits for a process that is to end by itself, and returns how it did.
func (n *node) awaitEnd(ctx context.Context) (*ended, error) {
	select {
	case <-n.exited:
		e := &ended{n.name, n.cmd.ProcessState.ExitCode(), n.lastCode()}
		n.cmd = nil
		return e, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("%s runs on: %w", n.name, ctx.Err())
	}
}

// control has a failpoint do something.
func (n *node) control(line string) (string, error) {
	conn, err := net.Dial("unix", n.socket())
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	if _, err := fmt.Fprintln(conn, line); err != nil {
		return "", err
	}
	answer, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return "", err
	}
	if problem, ok := strings.CutPrefix(answer, "error: "); ok {
		return "", fmt.Errorf("%s: %s: %s", n.name, line, problem)
	}
	return strings.TrimSpace(answer), nil
}

// members are the nodes that have not been removed.
func (r *rig) members() (all []*node) {
	for _, n := range r.nodes {
		if !n.removed {
			all = append(all, n)
		}
	}
	return all
}

// client is an operator's client, on a host that no fault touches.
func (r *rig) client(nodes ...*node) *client.Client {
	if len(nodes) == 0 {
		nodes = r.members()
	}
	cfg := client.Config{CAFingerprint: r.fingerprint, Token: r.root, Timeout: 2 * time.Second, DialContext: r.lab.Switch().DialContext}
	for _, n := range nodes {
		cfg.Addrs = append(cfg.Addrs, n.host.Join(apiPort))
	}
	c, err := client.New(cfg)
	if err != nil {
		panic(err) // the configuration is our own
	}
	return c
}

// until waits for something, and says what it last was that was missing.
func until(ctx context.Context, what string, done func() error) error {
	for {
		err := done()
		if err == nil {
			return nil
		}
		if !pause(ctx, 20*time.Millisecond) {
			return fmt.Errorf("waiting for %s: %w: %w", what, ctx.Err(), err)
		}
	}
}

// pause waits, and reports false when ctx has ended.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// settle waits until every member runs, votes, answers and has caught up.
func (r *rig) settle(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*patience)
	defer cancel()
	return until(ctx, "the cluster", func() error {
		for _, n := range r.members() {
			c := r.client(n)
			defer c.Close()
			asking, cancel := context.WithTimeout(ctx, 2*time.Second)
			defer cancel()
			s, err := c.Cluster(asking)
			if err != nil {
				return err
			}
			if s.Leader == "" {
				return fmt.Errorf("%s knows no leader", n.name)
			}
			active := 0
			for _, other := range s.Nodes {
				if other.State != "active" {
					continue
				}
				if active++; !other.Voter || !other.Answers {
					return fmt.Errorf("%s sees %+v", n.name, other)
				}
			}
			if active != len(r.members()) {
				return fmt.Errorf("%s sees %d nodes", n.name, active)
			}
		}
		return nil
	})
}

// leader asks who leads, and returns it and the other members that run.
func (r *rig) leader(ctx context.Context) (leader *node, others []*node, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err = until(ctx, "a leader", func() error {
		for _, n := range r.members() {
			if !n.running() || n.frozen {
				continue
			}
			c := r.client(n)
			defer c.Close()
			asking, cancel := context.WithTimeout(ctx, 2*time.Second)
			defer cancel()
			s, err := c.Cluster(asking)
			if err == nil && s.Leader == n.name {
				leader = n
				return nil
			}
		}
		return errors.New("nobody leads")
	})
	for _, n := range r.members() {
		if n != leader && n.running() && !n.frozen {
			others = append(others, n)
		}
	}
	return leader, others, err
}
