//go:build linux

package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrUnavailable says that this machine or this user cannot have namespaces.
var ErrUnavailable = errors.New("network namespaces need root and iproute2 on Linux")

const (
	prefix  = "writ-"      // of the names of namespaces
	mounts  = "/run/netns" // where iproute2 keeps them
	network = "10.77.0.%d/24"
	maxHost = 250
)

var labs atomic.Uint32 // made by this process

// Lab is a switch and the hosts on it. It is safe for concurrent use.
type Lab struct {
	id  string
	hub *Host

	mu    sync.Mutex
	hosts []*Host      // guarded by mu
	cuts  map[cut]bool // guarded by mu
}

// cut is a direction in which packets vanish.
type cut struct{ from, to *Host }

// New makes a lab without hosts. Errors wrap ErrUnavailable where there can be none.
func New() (*Lab, error) {
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("%w: not root", ErrUnavailable)
	}
	if _, err := exec.LookPath("ip"); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if err := sweep(); err != nil {
		return nil, err
	}
	since, err := started(os.Getpid())
	if err != nil {
		return nil, err
	}
	l := &Lab{id: fmt.Sprintf("%s%d-%s-%d-", prefix, os.Getpid(), since, labs.Add(1)), cuts: make(map[cut]bool)}
	hub := &Host{Name: "switch", Addr: address(1), lab: l}
	if err := ip("netns", "add", hub.namespace()); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	l.hub = hub
	err = hub.open(
		[]string{"link", "add", "br0", "type", "bridge"},
		[]string{"addr", "add", fmt.Sprintf(network, 1), "dev", "br0"},
		[]string{"link", "set", "br0", "up"},
	)
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func address(n int) netip.Addr { return netip.MustParsePrefix(fmt.Sprintf(network, n)).Addr() }

// Switch is a host that reaches every other one, and can be cut off from them too.
func (l *Lab) Switch() *Host { return l.hub }

// Host adds a host with the next address. Its name is for people.
func (l *Lab) Host(name string) (*Host, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := len(l.hosts) + 2
	if n > maxHost {
		return nil, fmt.Errorf("netns: more than %d hosts", maxHost)
	}
	h := &Host{Name: name, Addr: address(n), lab: l}
	if err := ip("netns", "add", h.namespace()); err != nil {
		return nil, err
	}
	l.hosts = append(l.hosts, h)
	port := fmt.Sprintf("p%d", n)
	if err := ip("link", "add", port, "netns", l.hub.namespace(), "type", "veth", "peer", "name", "eth0", "netns", h.namespace()); err != nil {
		return nil, err
	}
	if err := ip("-n", l.hub.namespace(), "link", "set", port, "master", "br0", "up"); err != nil {
		return nil, err
	}
	return h, h.open([]string{"addr", "add", fmt.Sprintf(network, n), "dev", "eth0"}, []string{"link", "set", "eth0", "up"})
}

// Cut makes what from sends to to vanish, without a word to either. The other
// direction goes on: what to sends still arrives, if not its acknowledgement.
func (l *Lab) Cut(from, to *Host) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cuts[cut{from, to}] {
		return nil
	}
	// At the receiver, since a sender without a route is told so. A rule as to the
	// source holds for connections that there are, too.
	if err := to.rule("add", from); err != nil {
		return err
	}
	l.cuts[cut{from, to}] = true
	return nil
}

// Mend undoes a Cut.
func (l *Lab) Mend(from, to *Host) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.cuts[cut{from, to}] {
		return nil
	}
	delete(l.cuts, cut{from, to})
	return to.rule("del", from)
}

// Isolate cuts h off from all other hosts, both ways.
func (l *Lab) Isolate(h *Host) error {
	l.mu.Lock()
	others := append([]*Host{l.hub}, l.hosts...)
	l.mu.Unlock()
	var errs []error
	for _, o := range others {
		if o != h {
			errs = append(errs, l.Cut(h, o), l.Cut(o, h))
		}
	}
	return errors.Join(errs...)
}

// Heal undoes every Cut.
func (l *Lab) Heal() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var errs []error
	for c := range l.cuts {
		errs = append(errs, c.to.rule("del", c.from))
	}
	clear(l.cuts)
	return errors.Join(errs...)
}

// Tmpfs mounts a file system of so many bytes at dir, for as long as the lab is
// there.
func (l *Lab) Tmpfs(dir string, bytes int64) error {
	if err := unix.Mount(l.id+"tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=700", bytes)); err != nil {
		return &fs.PathError{Op: "mount", Path: dir, Err: err}
	}
	return nil
}

// Close kills what still runs on the hosts and removes them.
func (l *Lab) Close() error { return remove(l.id) }

// sweep removes what processes that have ended left behind.
func sweep() error {
	left := make(map[string]bool)
	names, err := namespaces(prefix)
	if err != nil {
		return err
	}
	mounted, err := mounted(prefix)
	if err != nil {
		return err
	}
	for name := range mounted {
		names = append(names, name)
	}
	for _, name := range names {
		part := strings.SplitN(name, "-", 5) // writ, pid, since, lab, host
		if len(part) != 5 {
			continue
		}
		pid, err := strconv.Atoi(part[1])
		if err != nil {
			continue
		}
		if since, err := started(pid); err != nil || since != part[2] {
			left[strings.Join(part[:4], "-")+"-"] = true
		}
	}
	var errs []error
	for id := range left {
		errs = append(errs, remove(id))
	}
	return errors.Join(errs...)
}

// started tells two processes of one pid apart: the time since boot at which this
// one began (proc(5), field 22 of stat).
func started(pid int) (string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", err
	}
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:])) // from the third on
	if len(fields) < 20 {
		return "", fmt.Errorf("netns: /proc/%d/stat has %d fields", pid, len(fields))
	}
	return fields[19], nil
}

func namespaces(prefix string) (names []string, err error) {
	entries, err := os.ReadDir(mounts)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) {
			names = append(names, e.Name())
		}
	}
	return names, err
}

// mounted are the file systems of labs, and where they are.
func mounted(prefix string) (map[string][]string, error) {
	b, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return nil, err
	}
	at := make(map[string][]string)
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[0], prefix) {
			at[f[0]] = append(at[f[0]], f[1])
		}
	}
	return at, nil
}

// remove removes the lab that the id is of.
func remove(id string) error {
	names, err := namespaces(id)
	errs := []error{err}
	for _, name := range names {
		errs = append(errs, kill(name))
	}
	at, err := mounted(id)
	errs = append(errs, err)
	for _, dirs := range at {
		for _, dir := range dirs {
			if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) { // it is gone
				errs = append(errs, &fs.PathError{Op: "unmount", Path: dir, Err: err})
			}
		}
	}
	for _, name := range names {
		if err := ip("netns", "del", name); err != nil && exists(name) { // another sweep may be quicker
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func exists(name string) bool {
	_, err := os.Stat(filepath.Join(mounts, name))
	return err == nil
}

// kill kills what runs in a namespace, but not this process, whose threads may
// be there for a moment.
func kill(namespace string) error {
	out, err := exec.Command("ip", "netns", "pids", namespace).Output()
	if err != nil {
		if !exists(namespace) {
			return nil
		}
		return fmt.Errorf("ip netns pids %s: %w", namespace, err)
	}
	for _, field := range strings.Fields(string(out)) {
		if pid, err := strconv.Atoi(field); err == nil && pid != os.Getpid() {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				return err
			}
		}
	}
	return nil
}

func ip(args ...string) error { return run("ip", args...) }

func run(tool string, args ...string) error {
	if out, err := exec.Command(tool, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", tool, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
