//go:build linux

package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Host is one namespace with one address, and loopback.
type Host struct {
	Name string
	Addr netip.Addr

	lab *Lab
}

func (h *Host) namespace() string { return h.lab.id + h.Name }

// Join is an address on the host.
func (h *Host) Join(port int) string { return netip.AddrPortFrom(h.Addr, uint16(port)).String() }

// open brings loopback up and then what else there is.
func (h *Host) open(more ...[]string) error {
	for _, args := range append([][]string{
		{"link", "set", "lo", "up"},
		// What vanishes has to before it is found to be for this host.
		{"rule", "add", "pref", "100", "lookup", "local"}, {"rule", "del", "pref", "0"},
	}, more...) {
		if err := ip(append([]string{"-n", h.namespace()}, args...)...); err != nil {
			return err
		}
	}
	return nil
}

// rule adds or deletes the rule by which packets of from vanish here.
func (h *Host) rule(what string, from *Host) error {
	return ip("-n", h.namespace(), "rule", what, "pref", "50", "from", from.Addr.String(), "blackhole")
}

// Limit slows what the host sends down to so many bits a second; what does not fit
// waits in a queue of half a second, and the rest is dropped. 0 undoes it.
func (h *Host) Limit(bits int) error {
	if bits == 0 {
		return run("tc", "-n", h.namespace(), "qdisc", "del", "dev", "eth0", "root")
	}
	return run("tc", "-n", h.namespace(), "qdisc", "replace", "dev", "eth0", "root", "tbf",
		"rate", fmt.Sprintf("%dbit", bits), "burst", "8kb", "latency", "500ms")
}

// In calls f on a thread that is on the host: sockets and processes that f makes
// are there, for as long as they live. f must not leave the goroutine.
func (h *Host) In(f func() error) (err error) {
	there, err := os.Open(filepath.Join(mounts, h.namespace()))
	if err != nil {
		return err
	}
	defer there.Close()
	here, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer here.Close()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("netns: %s: %w", h.Name, err)
	}
	defer func() {
		if err := unix.Setns(int(here.Fd()), unix.CLONE_NEWNET); err != nil {
			panic(fmt.Sprintf("netns: a thread is stuck on %s: %v", h.Name, err))
		}
	}()
	return f()
}

// Start starts cmd on the host. It does not outlive this process.
func (h *Host) Start(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = new(syscall.SysProcAttr)
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	return h.In(cmd.Start)
}

// Listen listens on the host.
func (h *Host) Listen(port int) (ln net.Listener, err error) {
	err = h.In(func() error {
		ln, err = net.Listen("tcp4", h.Join(port))
		return err
	})
	return ln, err
}

// DialContext connects from the host. addr names a host by its address.
func (h *Host) DialContext(ctx context.Context, _, addr string) (conn net.Conn, err error) {
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil, err
	}
	d := net.Dialer{Timeout: dialTimeout}
	err = h.In(func() error {
		conn, err = d.DialContext(ctx, "tcp4", to.String())
		return err
	})
	return conn, err
}

// dialTimeout is what the client of the authority takes.
const dialTimeout = 5 * time.Second

// Wait waits until something listens at addr, as seen from the host.
func (h *Host) Wait(ctx context.Context, addr string) error {
	for {
		conn, err := h.DialContext(ctx, "tcp", addr)
		if err == nil {
			return conn.Close()
		}
		retry := time.NewTimer(5 * time.Millisecond)
		select {
		case <-retry.C:
		case <-ctx.Done():
			retry.Stop()
			return errors.Join(ctx.Err(), err)
		}
	}
}
