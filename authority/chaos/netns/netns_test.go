//go:build linux

package netns

import (
	"bufio"
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func newLab(t *testing.T) *Lab {
	t.Helper()
	l, err := New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func host(t *testing.T, l *Lab, name string) *Host {
	t.Helper()
	h, err := l.Host(name)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// link is a connection from one host to another, over which lines are echoed.
type link struct {
	net.Conn
	lines *bufio.Reader
}

func connect(t *testing.T, from, to *Host, port int) *link {
	t.Helper()
	ln, err := to.Listen(port)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				for r := bufio.NewReader(c); ; {
					line, err := r.ReadString('\n')
					if err != nil {
						return
					}
					if _, err := c.Write([]byte(line)); err != nil {
						return
					}
				}
			}()
		}
	}()
	c, err := from.DialContext(t.Context(), "tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &link{c, bufio.NewReader(c)}
}

// echo says a word and waits a while for it to come back.
func (l *link) echo(word string, wait time.Duration) error {
	if _, err := l.Write([]byte(word + "\n")); err != nil {
		return err
	}
	return l.hear(word, wait)
}

func (l *link) hear(word string, wait time.Duration) error {
	if err := l.SetReadDeadline(time.Now().Add(wait)); err != nil {
		return err
	}
	got, err := l.lines.ReadString('\n')
	if err == nil && strings.TrimSpace(got) != word {
		return errors.New("heard " + got)
	}
	return err
}

const long, short = 10 * time.Second, 200 * time.Millisecond

func TestCut(t *testing.T) {
	l := newLab(t)
	a, b, c := host(t, l, "a"), host(t, l, "b"), host(t, l, "c")
	there, apart := connect(t, a, b, 100), connect(t, c, b, 101)
	for _, link := range []*link{there, apart} {
		if err := link.echo("hello", long); err != nil {
			t.Fatal(err)
		}
	}
	for _, way := range [][2]*Host{{a, b}, {b, a}} {
		if err := l.Cut(way[0], way[1]); err != nil {
			t.Fatal(err)
		}
		if err := there.echo("lost", short); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("%s to %s is cut, and a connection that there was says %v", way[0].Name, way[1].Name, err)
		}
		if err := apart.echo("others", long); err != nil {
			t.Fatalf("a host that is not cut off: %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), short)
		if _, err := a.DialContext(ctx, "tcp", b.Join(100)); !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("%s to %s is cut, and dialing says %v", way[0].Name, way[1].Name, err)
		}
		cancel()
		if err := l.Mend(way[0], way[1]); err != nil {
			t.Fatal(err)
		}
		if err := there.hear("lost", long); err != nil {
			t.Fatalf("mended: %v", err)
		}
	}
}

// TestOneWay shows that only one direction is cut.
func TestOneWay(t *testing.T) {
	l := newLab(t)
	a, b := host(t, l, "a"), host(t, l, "b")
	ln, err := b.Listen(100)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	accepted := make(chan net.Conn, 1)
	go func() {
		if c, err := ln.Accept(); err == nil {
			accepted <- c
		}
	}()
	from, err := a.DialContext(t.Context(), "tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	to := &link{Conn: <-accepted}
	defer to.Close()
	to.lines = bufio.NewReader(to.Conn)
	if err := l.Cut(b, a); err != nil {
		t.Fatal(err)
	}
	if _, err := from.Write([]byte("request\n")); err != nil {
		t.Fatal(err)
	}
	if err := to.hear("request", long); err != nil {
		t.Errorf("the direction that is not cut: %v", err)
	}
}

func TestIsolateAndHeal(t *testing.T) {
	l := newLab(t)
	a, b := host(t, l, "a"), host(t, l, "b")
	inside, outside := connect(t, a, b, 100), connect(t, l.Switch(), b, 101)
	if err := l.Isolate(b); err != nil {
		t.Fatal(err)
	}
	for _, link := range []*link{inside, outside} {
		if err := link.echo("lost", short); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("from a host that is cut off: %v", err)
		}
	}
	if err := l.Heal(); err != nil {
		t.Fatal(err)
	}
	for _, link := range []*link{inside, outside} {
		if err := link.hear("lost", long); err != nil {
			t.Errorf("healed: %v", err)
		}
	}
}

func TestLimit(t *testing.T) {
	l := newLab(t)
	a, b := host(t, l, "a"), host(t, l, "b")
	c := connect(t, a, b, 100)
	if err := a.Limit(1_000_000); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	if err := c.echo(strings.Repeat("x", 50_000), long); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begun); took < 200*time.Millisecond { // 8 kB go at once
		t.Errorf("50 kB took %v at 1 Mbit/s", took)
	}
	if err := a.Limit(0); err != nil {
		t.Error(err)
	}
}

// TestApart shows that two labs, and the machine, do not meet.
func TestApart(t *testing.T) {
	one, other := newLab(t), newLab(t)
	a, b := host(t, one, "a"), host(t, other, "b")
	if a.Addr != b.Addr {
		t.Fatal("two labs have different addresses; the test wants one")
	}
	ln, err := a.Listen(100)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	ctx, cancel := context.WithTimeout(t.Context(), long)
	defer cancel()
	if err := one.Switch().Wait(ctx, ln.Addr().String()); err != nil {
		t.Error(err)
	}
	if c, err := other.Switch().DialContext(ctx, "tcp", ln.Addr().String()); err == nil {
		c.Close()
		t.Error("a lab reaches another one")
	}
}

// TestSweep leaves a lab of a process that has ended, and a process in it.
func TestSweep(t *testing.T) {
	l := newLab(t)
	left := &Host{Name: "left", lab: &Lab{id: prefix + "999999999-1-1-"}}
	if err := ip("netns", "add", left.namespace()); err != nil {
		t.Fatal(err)
	}
	sleeper := exec.Command("sleep", "600")
	if err := left.Start(sleeper); err != nil {
		t.Fatal(err)
	}
	if err := left.lab.Tmpfs(t.TempDir(), 1<<20); err != nil {
		t.Fatal(err)
	}
	newLab(t)
	if at, err := mounted(left.lab.id); err != nil || len(at) != 0 {
		t.Errorf("still mounted: %v, %v", at, err)
	}
	if err := sleeper.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("the process ended with %v", err)
	}
	if exists(left.namespace()) {
		t.Error("the namespace is still there")
	}
	if !exists(l.hub.namespace()) {
		t.Error("the lab of a process that lives is gone")
	}
}

func TestClose(t *testing.T) {
	l := newLab(t)
	a := host(t, l, "a")
	dir := t.TempDir()
	if err := l.Tmpfs(dir, 1<<20); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "large"), make([]byte, 2<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("2 MiB on a file system of one: %v", err)
	}
	sleeper := exec.Command("sleep", "600")
	if err := a.Start(sleeper); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := sleeper.Wait(); err == nil {
		t.Error("the process went on")
	}
	if at, err := mounted(l.id); err != nil || len(at) != 0 {
		t.Errorf("still mounted: %v, %v", at, err)
	}
	if names, err := namespaces(l.id); err != nil || len(names) != 0 {
		t.Errorf("left: %q, %v", names, err)
	}
}
