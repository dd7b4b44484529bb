package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/writ-dev/writ/capability"
)

var update = flag.Bool("update", false, "rewrite the expected output in the scripts")

func TestMain(m *testing.M) {
	testscript.Main(cleaning{m}, map[string]func(){"writ": main})
}

// cleaning takes away what plain built.
type cleaning struct{ *testing.M }

func (c cleaning) Run() int {
	code := c.M.Run()
	if built.Load() {
		if dir, err := plain(); err == nil {
			_ = os.RemoveAll(dir)
		}
	}
	return code
}

var built atomic.Bool // plain has been asked for

// plain builds writ once without the race detector, under which a process
// takes several times as long to start: what runs for a moment is this one.
// The authorities that the tests start are the test binary itself.
var plain = sync.OnceValues(func() (string, error) {
	built.Store(true)
	dir, err := os.MkdirTemp("", "writ-test-")
	if err != nil {
		return "", err
	}
	return dir, build(filepath.Join(dir, "writ"))
})

// nextWrit builds, once, the program that stands in for the next version, and
// returns its path.
var nextWrit = sync.OnceValues(func() (string, error) {
	dir, err := plain()
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "writ-next")
	return path, build(path, "-tags", "writ_next")
})

func build(path string, flags ...string) error {
	out, err := exec.Command("go", append(append([]string{"build", "-o", path}, flags...), ".")...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("go build: %w\n%s", err, out)
	}
	return nil
}

// bin is the directory of the plain binary.
func bin(t *testing.T) string {
	t.Helper()
	dir, err := plain()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestScripts runs testdata/script: what a person types, and what comes out.
//
// Beside testscript's own commands there are
//
//	dev                    a throw-away authority, and the environment for it
//	forge FILE CONDITION…  a token that no authority issued
//	garbage FILE N         N random bytes
//	flip FILE              a bit in the middle of a file
//	exits N COMMAND…       runs a command that must exit with N
//	serving NAME ARG…      writ serve ARG…, in the background until kill NAME or
//	                       the end; waits until it serves. With cluster as the
//	                       first ARG, writ cluster ARG…
//	port NAME…             a port of its own, in $NAME
//	crash NAME             kill -9
//	finish NAME            SIGTERM, and its exit code must be 0
func TestScripts(t *testing.T) {
	binDir := bin(t)
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		UpdateScripts:       *update,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			e.Values[serversKey{}] = servers{}
			e.Setenv("RACY", e.Getenv("PATH"))
			e.Setenv("PATH", binDir+":"+e.Getenv("PATH"))
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"dev":     scriptDev,
			"forge":   scriptForge,
			"garbage": scriptGarbage,
			"flip":    scriptFlip,
			"exits":   scriptExits,
			"serving": scriptServing,
			"port":    scriptPort,
			"crash":   func(ts *testscript.TestScript, _ bool, args []string) { scriptEnd(ts, args, syscall.SIGKILL) },
			"finish":  func(ts *testscript.TestScript, _ bool, args []string) { scriptEnd(ts, args, syscall.SIGTERM) },
		},
	})
}

// run runs a command with the script's environment and directory.
func run(ts *testscript.TestScript, stdin string, name string, args ...string) (stdout, stderr string, code int) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	path, err := lookPath(ts.Getenv("PATH"), name)
	ts.Check(err)
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir, cmd.Env = ts.MkAbs("."), environ(ts)
	cmd.Stdin = strings.NewReader(stdin)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err = cmd.Run()
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
		ts.Fatalf("%s: %v", name, err)
	}
	return out.String(), errOut.String(), cmd.ProcessState.ExitCode()
}

func lookPath(path, name string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	for _, dir := range strings.Split(path, ":") {
		if info, err := os.Stat(dir + "/" + name); err == nil && info.Mode()&0o111 != 0 {
			return dir + "/" + name, nil
		}
	}
	return "", exec.ErrNotFound
}

// scriptVariables are what the scripts' processes see of the environment.
var scriptVariables = []string{
	"PATH", "HOME", "TMPDIR", "WORK", "GOCOVERDIR", "GORACE",
	"WRIT_ADDR", "WRIT_CA_FINGERPRINT", "WRIT_TOKEN_FILE", "WRIT_TOKEN", "WRIT_DEV_DIR",
}

func environ(ts *testscript.TestScript) []string {
	var out []string
	for _, key := range scriptVariables {
		if v := ts.Getenv(key); v != "" {
			out = append(out, key+"="+v)
		}
	}
	return out
}

func scriptDev(ts *testscript.TestScript, neg bool, args []string) {
	racy, err := lookPath(ts.Getenv("RACY"), "writ")
	ts.Check(err)
	out, errOut, code := run(ts, "", racy, append([]string{"dev", "--detach", "--for", "3m", "--output", "json"}, args...)...)
	if code != 0 {
		ts.Fatalf("writ dev: exit code %d\n%s", code, errOut)
	}
	var r devReady
	ts.Check(json.Unmarshal([]byte(out), &r))
	ts.Setenv("WRIT_ADDR", r.Addr)
	ts.Setenv("WRIT_CA_FINGERPRINT", r.CAFingerprint)
	ts.Setenv("WRIT_TOKEN_FILE", r.TokenFile)
	ts.Setenv("WRIT_DEV_DIR", r.Dir)
	ts.Defer(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if _, err := stopDev(ctx, r.Dir); err != nil {
			ts.Logf("writ dev in %s did not stop: %v", r.Dir, err)
		}
	})
}

// forgedKey is no key of any authority.
var forgedKey = [32]byte{1, 2, 3}

func scriptForge(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 1 {
		ts.Fatalf("usage: forge FILE CONDITION…")
	}
	id := capability.Identifier{
		ID:    capability.NewTokenID(time.Now().UnixMilli(), [10]byte{7}),
		Epoch: 1, NotAfter: time.Now().Add(5 * time.Minute), Audience: "corp", Subject: "mallory",
	}
	conditions := make([]string, len(args)-1)
	for i, c := range args[1:] {
		unquoted, err := strconv.Unquote(`"` + c + `"`)
		ts.Check(err)
		conditions[i] = unquoted
	}
	t, err := capability.Mint(capability.NewRootKey(forgedKey), id, conditions...)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(t.Text()+"\n"), 0o600))
}

func scriptGarbage(ts *testscript.TestScript, neg bool, args []string) {
	n, err := strconv.Atoi(args[1])
	ts.Check(err)
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{42})
	_, _ = r.Read(b)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), b, 0o600))
}

func scriptFlip(ts *testscript.TestScript, neg bool, args []string) {
	path := ts.MkAbs(args[0])
	b, err := os.ReadFile(path)
	ts.Check(err)
	if len(b) == 0 {
		ts.Fatalf("%s is empty", args[0])
	}
	at := len(b) / 2
	if len(args) > 1 {
		at, err = strconv.Atoi(args[1])
		ts.Check(err)
	}
	b[at] ^= 0x10
	ts.Check(os.WriteFile(path, b, 0o600))
}

// scriptExits runs a command through sh, so that scripts can redirect.
func scriptExits(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: exits N 'COMMAND'")
	}
	out, errOut, code := run(ts, "", "sh", "-c", args[1])
	ts.Check(os.WriteFile(ts.MkAbs("out"), []byte(out), 0o600))
	ts.Check(os.WriteFile(ts.MkAbs("err"), []byte(errOut), 0o600))
	if fmt.Sprint(code) != args[0] {
		ts.Fatalf("%s: exit code %d, not %s\n[stdout]\n%s[stderr]\n%s", args[1], code, args[0], out, errOut)
	}
}

func scriptPort(ts *testscript.TestScript, neg bool, args []string) {
	for _, name := range args {
		port, keeper, err := keepPort()
		ts.Check(err)
		ts.Defer(func() { keeper.Close() })
		ts.Setenv(name, port)
	}
}

// servers are the writ serve of one script, by name.
type (
	servers    map[string]*serving
	serversKey struct{}
)

type serving struct {
	cmd  *exec.Cmd
	log  *bytes.Buffer
	done chan error
}

func scriptServing(ts *testscript.TestScript, neg bool, args []string) {
	all := ts.Value(serversKey{}).(servers)
	path, err := lookPath(ts.Getenv("RACY"), "writ")
	ts.Check(err)
	s := &serving{log: &bytes.Buffer{}, done: make(chan error, 1)}
	words := append([]string{"serve"}, args[1:]...)
	if len(args) > 1 && args[1] == "cluster" {
		words = args[1:] // init and join run a node too
	}
	s.cmd = exec.Command(path, append(words, "--output", "json")...)
	s.cmd.Dir, s.cmd.Env = ts.MkAbs("."), environ(ts)
	s.cmd.Stderr = s.log
	out, err := s.cmd.StdoutPipe()
	ts.Check(err)
	ts.Check(s.cmd.Start())
	all[args[0]] = s
	ts.Defer(func() { _ = s.cmd.Process.Kill() })
	var r ready
	answered := make(chan error, 1)
	go func() {
		answered <- json.NewDecoder(out).Decode(&r)
		s.done <- s.cmd.Wait()
	}()
	select {
	case err := <-answered:
		if err != nil {
			<-s.done
			ts.Fatalf("writ serve %v did not answer: %v\n%s", args[1:], err, s.log)
		}
	case <-time.After(30 * time.Second):
		ts.Fatalf("writ serve %v does not answer", args[1:])
	}
	ts.Setenv("WRIT_ADDR", r.Addr)
	ts.Setenv("WRIT_CA_FINGERPRINT", r.CAFingerprint)
	if r.RootTokenFile != "" {
		ts.Setenv("WRIT_TOKEN_FILE", ts.MkAbs(r.RootTokenFile))
	}
}

func scriptEnd(ts *testscript.TestScript, args []string, signal syscall.Signal) {
	s := ts.Value(serversKey{}).(servers)[args[0]]
	if s == nil {
		ts.Fatalf("nothing is serving as %s", args[0])
	}
	ts.Check(s.cmd.Process.Signal(signal))
	select {
	case err := <-s.done:
		if signal == syscall.SIGTERM && err != nil {
			ts.Fatalf("writ serve ended with %v\n%s", err, s.log)
		}
	case <-time.After(30 * time.Second):
		ts.Fatalf("writ serve does not end\n%s", s.log)
	}
}
