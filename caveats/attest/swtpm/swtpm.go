// Package swtpm manufactures and runs software TPMs (the Debian packages swtpm
// and swtpm-tools), for tests and for trying things out. A software TPM proves
// nothing about the machine that it runs on.
package swtpm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// ErrNotInstalled is returned where swtpm or swtpm_setup is not in the PATH.
var ErrNotInstalled = errors.New("swtpm is not installed: apt-get install swtpm swtpm-tools")

// Manufacture makes a TPM's state in dir, with endorsement keys of RSA-2048 and
// ECC P-384 and their certificates. The certificates are made by a CA in the
// directory ca, which is made too if there is none. It takes a second.
func Manufacture(ctx context.Context, dir, ca string) error {
	for _, tool := range []string{"swtpm", "swtpm_setup", "swtpm_localca"} {
		if _, err := exec.LookPath(tool); err != nil {
			return ErrNotInstalled
		}
	}
	localca, _ := exec.LookPath("swtpm_localca")
	for _, d := range []string{dir, ca} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return err
		}
	}
	if err := makeCA(ca); err != nil {
		return err
	}
	localcaConf, setupConf := filepath.Join(ca, "localca.conf"), filepath.Join(ca, "setup.conf")
	for path, text := range map[string]string{
		localcaConf: lines("statedir = "+ca, "signingkey = "+filepath.Join(ca, keyFile),
			"issuercert = "+filepath.Join(ca, issuerFile), "certserial = "+filepath.Join(ca, "certserial")),
		setupConf: lines("create_certs_tool = "+localca, "create_certs_tool_config = "+localcaConf,
			"create_certs_tool_options = /dev/null", "active_pcr_banks = sha256"),
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			return err
		}
	}
	cmd := exec.CommandContext(ctx, "swtpm_setup", "--tpm2", "--tpmstate", dir, "--config", setupConf,
		"--create-ek-cert", "--lock-nvram", "--overwrite")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("swtpm_setup: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

func lines(l ...string) string { return strings.Join(l, "\n") + "\n" }

// Process is a running TPM. It serves one client at a time.
type Process struct {
	Address string // "unix:PATH" or "tcp:127.0.0.1:PORT", as holder.Config.TPM takes it

	cmd    *exec.Cmd
	exited chan struct{} // closed when the process has ended and err is set
	err    error
	stderr bytes.Buffer
}

// StartUnix runs the TPM of dir on a Unix socket at path, which must be short
// (at most 100 bytes). It answers when StartUnix returns.
func StartUnix(dir, path string) (*Process, error) {
	_ = os.Remove(path) // of one that was killed
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	defer l.Close()
	// The socket is handed over as it listens, so that a client can connect at
	// once and waits in its queue.
	f, err := l.File()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	p := &Process{Address: "unix:" + path}
	return p, p.start(f, "socket", "--tpm2", "--tpmstate", "dir="+dir, "--server", "type=unixio,fd=3", "--flags", "startup-clear")
}

// StartTCP runs the TPM of dir on two ports of 127.0.0.1, the second (of
// tpm2-tools) one above the first.
func StartTCP(ctx context.Context, dir string) (*Process, error) {
	var last error
	for range 10 { // another process may take the ports that were free
		port, err := freePorts()
		if err != nil {
			return nil, err
		}
		data, control := strconv.Itoa(port), strconv.Itoa(port+1)
		p := &Process{Address: "tcp:127.0.0.1:" + data}
		if err := p.start(nil, "socket", "--tpm2", "--tpmstate", "dir="+dir, "--flags", "startup-clear",
			"--server", "type=tcp,bindaddr=127.0.0.1,port="+data, "--ctrl", "type=tcp,bindaddr=127.0.0.1,port="+control); err != nil {
			return nil, err
		}
		if last = p.answers(ctx, "127.0.0.1:"+control); last == nil {
			return p, nil
		}
		p.Kill()
	}
	return nil, last
}

// freePorts returns a port such that it and the next are free.
func freePorts() (int, error) {
	for range 100 {
		a, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return 0, err
		}
		port := a.Addr().(*net.TCPAddr).Port
		b, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(port+1))
		a.Close()
		if err == nil {
			b.Close()
			return port, nil
		}
	}
	return 0, errors.New("swtpm: no two ports in a row are free")
}

func (p *Process) start(socket *os.File, args ...string) error {
	p.cmd = exec.Command("swtpm", args...)
	if socket != nil {
		p.cmd.ExtraFiles = []*os.File{socket}
	}
	p.cmd.Stderr = &p.stderr
	if err := p.cmd.Start(); errors.Is(err, exec.ErrNotFound) {
		return ErrNotInstalled
	} else if err != nil {
		return err
	}
	p.exited = make(chan struct{})
	go func() {
		p.err = p.cmd.Wait()
		close(p.exited)
	}()
	return nil
}

// answers waits until address accepts, for 10 seconds.
func (p *Process) answers(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
		if err == nil {
			return c.Close()
		}
		select {
		case <-tick.C:
		case <-p.exited:
			return fmt.Errorf("swtpm: %w: %s", p.err, bytes.TrimSpace(p.stderr.Bytes()))
		case <-ctx.Done():
			return fmt.Errorf("swtpm does not answer: %w", err)
		}
	}
}

// Kill ends the process, as a power failure would, and waits for it. The state
// stays. Killing it again does nothing.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill() // an error says that it has ended
	<-p.exited
}
