package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/writ-dev/writ/authority"
	"github.com/writ-dev/writ/authority/authoritytest"
	"github.com/writ-dev/writ/raftstore/raftstoretest"
)

// doctor runs writ doctor at an hour that is off by ahead.
func doctor(t *testing.T, n *authoritytest.Node, ahead time.Duration, args ...string) (map[string]finding, int) {
	t.Helper()
	token := filepath.Join(t.TempDir(), "root.token")
	if err := os.WriteFile(token, []byte(n.RootToken+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	env := map[string]string{"WRIT_ADDR": n.Addr, "WRIT_CA_FINGERPRINT": n.CAFingerprint, "WRIT_TOKEN_FILE": token}
	var out, errOut bytes.Buffer
	a := newApp(strings.NewReader(""), &out, &errOut, func(key string) string { return env[key] })
	a.now = func() time.Time { return time.Now().Add(ahead) }
	code := a.run(t.Context(), append([]string{"doctor", "-o", "json"}, args...))
	var list findings
	if err := json.Unmarshal(out.Bytes(), &list); err != nil {
		t.Fatalf("%v: %s %s", err, out.String(), errOut.String())
	}
	found := map[string]finding{}
	for _, f := range list {
		found[f.Check] = f
	}
	return found, code
}

// The clock: in order, ten minutes off, and so far off that the certificate
// is not valid and the credential has ended.
func TestDoctorClock(t *testing.T) {
	n := authoritytest.Start(t)
	found, code := doctor(t, n, 0)
	if code != exitOK || found["clock"].Result != "ok" || found["reach"].Result != "ok" || found["credential"].Result != "ok" {
		t.Errorf("in order: exit code %d, %v", code, found)
	}
	found, code = doctor(t, n, 10*time.Minute)
	if code != exitOK || found["clock"].Result != "warn" || !strings.Contains(found["clock"].Detail, "differ by 10m") || found["clock"].Hint == "" {
		t.Errorf("ten minutes ahead: exit code %d, %v", code, found)
	}
	found, code = doctor(t, n, 50*365*24*time.Hour)
	if code != exitError || found["reach"].Result != "fail" || found["clock"].Result != "warn" || found["credential"].Result != "fail" ||
		!strings.Contains(found["credential"].Detail, "expired") {
		t.Errorf("fifty years ahead: exit code %d, %v", code, found)
	}
}

// Somebody else listens on the node's port.
func TestDoctorPort(t *testing.T) {
	n := authoritytest.Start(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte("220 mail.example ESMTP\r\n"))
			c.Close()
		}
	}()
	found, code := doctor(t, n, 0, "--data-dir", filepath.Join(n.Dir, "data"), "--node-key", filepath.Join(n.Dir, "node.key"), "--listen", ln.Addr().String())
	if code != exitError || found["port"].Result != "fail" || !strings.Contains(found["port"].Hint, "another process") || found["key file"].Result != "ok" {
		t.Errorf("exit code %d, %v", code, found)
	}
}

// here runs writ doctor about the node of this machine alone, with a disk and a
// clock as they are told.
func here(t *testing.T, free uint64, kept bool, args ...string) (all findings, code int) {
	t.Helper()
	var out, errOut bytes.Buffer
	a := newApp(strings.NewReader(""), &out, &errOut, func(string) string { return "" })
	a.diskFree = func(string) (uint64, error) { return free, nil }
	a.clockKept = func() (bool, error) { return kept, nil }
	code = a.run(t.Context(), append([]string{"doctor", "-o", "json"}, args...))
	if err := json.Unmarshal(out.Bytes(), &all); err != nil {
		t.Fatalf("%v: %s %s", err, out.String(), errOut.String())
	}
	return all, code
}

// about are the findings of one check.
func (f findings) about(check string) (all findings) {
	for _, x := range f {
		if x.Check == check {
			all = append(all, x)
		}
	}
	return all
}

// The disk that is full, low, and in order; the clock that nothing keeps.
func TestDoctorDiskAndClock(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		free         uint64
		kept         bool
		check        string
		result, says string
		hint         string
		code         int
	}{
		{31 << 20, true, "disk", "fail", "31 MiB free", "nothing is issued", exitError},
		{32 << 20, true, "disk", "warn", "32 MiB free", "stops taking changes", exitOK},
		{2 << 30, true, "disk", "ok", "2 GiB free", "", exitOK},
		{2 << 30, true, "clock", "ok", "kept in time", "", exitOK},
		{2 << 30, false, "clock", "warn", "nothing keeps it in time", "chrony", exitOK},
	} {
		all, code := here(t, c.free, c.kept, "--data-dir", dir, "--listen", "127.0.0.1:0")
		f := all.about(c.check)
		if code != c.code || len(f) != 1 || f[0].Result != c.result || !strings.Contains(f[0].Detail, c.says) || !strings.Contains(f[0].Hint, c.hint) {
			t.Errorf("%d bytes, %v: exit code %d, %+v", c.free, c.kept, code, f)
		}
	}
}

// The other nodes of a cluster: one whose clock is off, one whose disk is full,
// one that somebody else answers for, as the node and as an operator see them.
func TestDoctorNodes(t *testing.T) {
	var full raftstoretest.Disk
	c := authoritytest.StartCluster(t, 3, authoritytest.Options{Authority: func(cfg *authority.Config) {
		if cfg.NodeID == "n3" {
			cfg.Faults = &full
		}
	}})
	root := c.Root()
	defer root.Close()
	lead := func() *authoritytest.ClusterNode {
		t.Helper()
		// No leader with a clock like n2's, nor one that cannot write: both hand over.
		if _, err := root.LeadNode(t.Context(), "n1"); err != nil {
			t.Log(err)
		}
		n, err := c.Leader(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	// finds asks the leader until it has heard of it.
	finds := func(says, hint string) {
		t.Helper()
		var f findings
		for deadline := time.Now().Add(20 * time.Second); ; {
			n := lead()
			f = operatorsDoctor(t, c, n).about("nodes")
			for _, x := range f {
				if x.Result == "warn" && strings.Contains(x.Detail, says) && strings.Contains(x.Hint, hint) {
					return
				}
			}
			if time.Now().After(deadline) {
				t.Fatalf("%q is not found: %+v", says, f)
			}
		}
	}
	if f := operatorsDoctor(t, c, lead()).about("nodes"); len(f) != 1 || f[0].Result != "ok" {
		t.Errorf("in order: %+v", f)
	}
	c.Node("n2").Skew.Store(int64(700 * time.Millisecond))
	finds("the clock of n2 is 7", "timedatectl")
	c.Node("n2").Skew.Store(0)
	full.Full()
	c.Mint(t, "corp", "agent") // which it cannot write down
	finds("the disk of n3 is full", "free some space")
	full.Heal()

	// Of n1's own machine: its port for peers, and theirs, each by its key.
	n1 := c.Node("n1")
	args := []string{"--data-dir", filepath.Join(c.Dir, "n1", "data"), "--node-key", filepath.Join(c.Dir, "n1", "node.key"), "--listen", n1.Addr}
	all, _ := here(t, 2<<30, true, append(args, "--peer-listen", n1.PeerAddr)...)
	if f := append(all.about("peer port"), all.about("peers")...); len(f) != 3 || f[0].Result != "ok" || f[1].Result != "ok" || f[2].Result != "ok" {
		t.Errorf("in order: %+v", all)
	}
	for name, addr := range map[string]string{"another node": c.Node("n2").PeerAddr, "an API": n1.Addr} {
		all, code := here(t, 2<<30, true, append(args, "--peer-listen", addr)...)
		if f := all.about("peer port"); code != exitError || len(f) != 1 || f[0].Result != "fail" || !strings.Contains(f[0].Hint, "another process") {
			t.Errorf("%s on the peer port: exit code %d, %+v", name, code, f)
		}
	}
	n2 := c.Node("n2")
	if err := n2.Stop(); err != nil {
		t.Fatal(err)
	}
	peers := func(says string) {
		t.Helper()
		all, code := here(t, 2<<30, true, append(args, "--peer-listen", n1.PeerAddr)...)
		if f := all.about("peers"); code != exitError || len(f) != 2 || f[0].Result != "fail" || !strings.Contains(f[0].Detail, says) || f[1].Result != "ok" {
			t.Errorf("exit code %d, %+v", code, f)
		}
	}
	peers("refused")
	ln, err := net.Listen("tcp", n2.PeerAddr)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Write([]byte("220 mail.example ESMTP\r\n"))
			conn.Close()
		}
	}()
	peers("n2 at " + n2.PeerAddr + ": ")
	if err := errors.Join(ln.Close(), c.Node("n3").Stop()); err != nil {
		t.Error(err)
	}
	// Without a quorum the node says why it is not ready.
	for deadline := time.Now().Add(20 * time.Second); ; {
		all, code := here(t, 2<<30, true, args...)
		f := all.about("port")
		if code == exitError && len(f) == 1 && f[0].Detail == n1.Addr+" is not ready: no quorum has confirmed this node's state within the bound" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("without a quorum: exit code %d, %+v", code, f)
		}
	}
}

// operatorsDoctor is what writ doctor finds through one node.
func operatorsDoctor(t *testing.T, c *authoritytest.Cluster, n *authoritytest.ClusterNode) (all findings) {
	t.Helper()
	env := map[string]string{"WRIT_ADDR": n.Addr, "WRIT_CA_FINGERPRINT": c.CAFingerprint, "WRIT_TOKEN": c.RootToken}
	var out, errOut bytes.Buffer
	a := newApp(strings.NewReader(""), &out, &errOut, func(key string) string { return env[key] })
	a.run(t.Context(), []string{"doctor", "-o", "json"})
	if err := json.Unmarshal(out.Bytes(), &all); err != nil {
		t.Fatalf("%v: %s %s", err, out.String(), errOut.String())
	}
	return all
}
