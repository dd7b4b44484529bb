package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// envDevDir names the directory of a writ dev.
const envDevDir = "WRIT_DEV_DIR"

type devOptions struct {
	detach   bool
	stop     bool
	untilEOF bool
	tpm      bool
	life     time.Duration
	listen   string
	dir      string // of the parent's making, for a detached one
}

func newDev(a *app) *cobra.Command {
	var o devOptions
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "run a throw-away authority and print what to paste next",
		Long: `Run a throw-away authority of one node in a directory of its own, and print the
variables that point the other commands to it. What it runs is what writ serve runs:
Raft, TLS, sealed keys, the audit log. It listens on a loopback address, and it takes
its directory with it when it ends.

With --detach it goes on in the background, until writ dev --stop ends it, or --for is
over. With --tpm a software TPM runs beside it, so that attestation can be tried.`,
		Example: `  writ dev --detach > env && . ./env
  writ doctor
  writ dev --stop`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case o.stop:
				return a.devStop(cmd, &o)
			case o.detach && o.dir == "":
				return a.devDetach(cmd, &o)
			}
			return a.dev(cmd, &o)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.detach, "detach", false, "go on in the background")
	f.BoolVar(&o.stop, "stop", false, "end the one that WRIT_DEV_DIR names")
	f.DurationVar(&o.life, "for", 8*time.Hour, "end by itself after this `time`")
	f.StringVar(&o.listen, "listen", "127.0.0.1:0", "`HOST:PORT` on a loopback address; port 0 is any")
	f.BoolVar(&o.tpm, "tpm", false, "start a software TPM (swtpm) beside it, with a policy named dev that it satisfies")
	f.BoolVar(&o.untilEOF, "until-eof", false, "end when standard input does: for a parent process")
	f.StringVar(&o.dir, "dir", "", "the directory")
	_ = f.MarkHidden("dir")
	return cmd
}

// devReady is what --output json prints.
type devReady struct {
	Addr          string `json:"addr"`
	CAFingerprint string `json:"ca_fingerprint"`
	TokenFile     string `json:"token_file"`
	Dir           string `json:"dir"`
	TPM           string `json:"tpm,omitempty"`
	TPMDir        string `json:"tpm_dir,omitempty"`
}

func (r *devReady) print(p *printer) {
	p.line("export WRIT_ADDR=%s", r.Addr)
	p.line("export WRIT_CA_FINGERPRINT=%s", r.CAFingerprint)
	p.line("export WRIT_TOKEN_FILE=%s", shellQuote(r.TokenFile))
	p.line("export %s=%s", envDevDir, shellQuote(r.Dir))
	if r.TPM != "" {
		p.line("export %s=%s", envTPM, shellQuote(r.TPM))
		p.line("export %s=%s", envTPMDir, shellQuote(r.TPMDir))
	}
}

// shellQuote makes s one word of a shell.
func shellQuote(s string) string {
	if strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-:") == "" && s != "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

func newDevDir() (string, error) { return os.MkdirTemp("", "writ-dev-") }

// dev runs one in this process, until a signal, the end of its life, or the
// end of standard input.
func (a *app) dev(cmd *cobra.Command, o *devOptions) error {
	if o.life <= 0 {
		return usage(cmd, "--for %s is no time to live", o.life)
	}
	if host, _, err := net.SplitHostPort(o.listen); err != nil || net.ParseIP(host) == nil || !net.ParseIP(host).IsLoopback() {
		return usage(cmd, "--listen %q is no HOST:PORT on a loopback address: writ serve is for others", o.listen)
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), o.life)
	defer cancel()
	if o.untilEOF {
		go func() {
			_, _ = io.Copy(io.Discard, a.stdin)
			cancel()
		}()
	}
	dir := o.dir
	if dir == "" {
		var err error
		if dir, err = newDevDir(); err != nil {
			return err
		}
	}
	unlock, err := lockDev(dir)
	if err != nil {
		return errors.Join(err, os.RemoveAll(dir))
	}
	defer unlock() // last: who waits for it finds the directory gone
	defer os.RemoveAll(dir)
	ln, err := net.Listen("tcp", o.listen)
	if err != nil {
		return err
	}
	defer ln.Close()
	c := defaultConfig()
	c.Node, c.DataDir, c.NodeKey = "dev", filepath.Join(dir, "data"), filepath.Join(dir, "node.key")
	c.LogLevel = "warn"
	n, err := openNode(ctx, a, &c, c.logger(a.stderr), true)
	if err != nil {
		return err
	}
	r := devReady{Addr: ln.Addr().String(), CAFingerprint: n.fingerprint(), TokenFile: filepath.Join(dir, "root.token"), Dir: dir}
	if err := os.WriteFile(r.TokenFile, []byte(n.formed.RootToken+"\n"), 0o600); err != nil {
		return errors.Join(err, n.Close())
	}
	if o.tpm {
		t, err := startDevTPM(ctx, dir, n.Authority)
		if err != nil {
			return errors.Join(fail("starting a software TPM", err), n.Close())
		}
		defer t.stop()
		r.TPM, r.TPMDir = t.process.Address, t.dir
	}
	if !o.detach {
		a.say(cmd, "paste these where you work; this authority lives for %s, or until interrupted", o.life.String())
	}
	if err := a.emit(cmd, r, r.print); err != nil {
		return errors.Join(err, n.Close())
	}
	if o.detach {
		// Whoever waits for the answer has all of it.
		if f, ok := a.stdout.(*os.File); ok {
			if err := letGo(f); err != nil {
				return errors.Join(err, n.Close())
			}
		}
	}
	return n.serve(ctx, ln, nil)
}

// devDetach starts one in a process of its own and prints its answer.
func (a *app) devDetach(cmd *cobra.Command, o *devOptions) (err error) {
	if o.untilEOF {
		return usage(cmd, "--detach and --until-eof exclude each other")
	}
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	dir, err := newDevDir()
	if err != nil {
		return err
	}
	logFile, err := os.OpenFile(filepath.Join(dir, "log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return errors.Join(err, os.RemoveAll(dir))
	}
	defer logFile.Close()
	child := exec.Command(exe, "dev", "--detach", "--dir", dir, "--for", o.life.String(), "--listen", o.listen, "--output", a.output)
	if o.tpm {
		child.Args = append(child.Args, "--tpm")
	}
	child.Args[0] = os.Args[0]
	child.Stderr = logFile
	child.SysProcAttr = ownSession()
	answer, err := child.StdoutPipe()
	if err != nil {
		return errors.Join(err, os.RemoveAll(dir))
	}
	if err := child.Start(); err != nil {
		return errors.Join(err, os.RemoveAll(dir))
	}
	var buf bytes.Buffer
	_, err = io.Copy(&buf, io.LimitReader(answer, 64<<10))
	if err == nil && buf.Len() > 0 {
		a.say(cmd, "the authority lives for %s, or until writ dev --stop; its log is %s", o.life.String(), filepath.Join(dir, "log"))
		return writeAll(cmd.OutOrStdout(), buf.Bytes())
	}
	// It ended without an answer, and took the directory with it, but not the open log.
	waitErr := child.Wait()
	defer os.RemoveAll(dir)
	return &failure{Code: "dev", Message: "the authority did not start: " + lastLine(logFile, waitErr), Hint: "writ dev, without --detach, shows more"}
}

// lastLine is the last line that a process logged, or why it ended.
func lastLine(log *os.File, waitErr error) string {
	last := "it printed nothing"
	if waitErr != nil {
		last = waitErr.Error()
	}
	r, err := os.Open("/proc/self/fd/" + strconv.Itoa(int(log.Fd())))
	if err != nil {
		return last
	}
	defer r.Close()
	for s := bufio.NewScanner(io.LimitReader(r, 1<<20)); s.Scan(); {
		if line := strings.TrimSpace(s.Text()); line != "" && !strings.HasPrefix(line, "hint:") {
			last = strings.TrimPrefix(line, "writ: ")
		}
	}
	return last
}

// devStop ends the one that WRIT_DEV_DIR names, and waits for it to be gone.
func (a *app) devStop(cmd *cobra.Command, o *devOptions) error {
	dir := o.dir
	if dir == "" {
		dir = a.getenv(envDevDir)
	}
	if dir == "" {
		return &failure{Code: "config", Message: envDevDir + " is not set", Hint: "writ dev --detach > env && . ./env sets it"}
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), 15*time.Second)
	defer cancel()
	stopped, err := stopDev(ctx, dir)
	if err != nil {
		return err
	}
	if !stopped {
		return &failure{Code: "not_found", Message: "no writ dev runs in " + dir, Hint: "it has ended already; unset " + envDevDir}
	}
	return a.emit(cmd, map[string]string{"stopped": dir}, func(p *printer) { p.line("%s", fmt.Sprintf("stopped, and removed %s", dir)) })
}
