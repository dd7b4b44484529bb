package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/authority"
	"github.com/writ-dev/writ/authority/api"
)

// What a node needs free on its disk: it refuses issues below the first, and
// wants attention below the second.
const (
	diskRefuses = 32 << 20
	diskLow     = 1 << 30
)

// checkHere looks at the node of this machine without opening it, so that it
// works on one that runs and on one that will not.
func (a *app) checkHere(cmd *cobra.Command, o *doctorOptions, f *findings) {
	c, err := o.node.load(a, cmd)
	if err != nil {
		f.fail("node", err)
		return
	}
	f.ok("node", "%s, listening on %s", c.Node, c.Listen)
	a.checkDataDir(c.DataDir, f)
	if err := authority.CheckRemoved(c.DataDir); err != nil {
		f.fail("member", err)
	}
	if _, err := os.Stat(c.NodeKey); err == nil || o.node.file != "" || c.NodeKey != defaultNodeKey {
		checkSecret("key file", c.NodeKey, f)
	}
	if c.PassphraseFile != "" {
		checkSecret("passphrase", c.PassphraseFile, f)
	}
	checkPort(cmd.Context(), c.Listen, f)
	checkPeers(cmd.Context(), c, f)
	switch synchronized, err := a.clockKept(); {
	case err != nil:
		f.warn("clock", "", "whether it is kept in time cannot be told: %v", err)
	case !synchronized:
		f.warn("clock", "run chrony or systemd-timesyncd: nodes with clocks more than 1s apart do not lead", "nothing keeps it in time")
	default:
		f.ok("clock", "kept in time")
	}
}

func (a *app) checkDataDir(dir string, f *findings) {
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		f.fail("data dir", &failure{Message: dir + " is not there", Hint: "writ serve --init forms a new authority; or name another --data-dir"})
		return
	case err != nil:
		f.fail("data dir", err)
		return
	case !info.IsDir():
		f.fail("data dir", errors.New(dir+" is no directory"))
		return
	case info.Mode().Perm()&0o077 != 0:
		f.fail("data dir", &failure{Message: fmt.Sprintf("%s has mode %04o", dir, info.Mode().Perm()), Hint: "chmod 700 " + dir})
	default:
		f.ok("data dir", "%s has mode %04o", dir, info.Mode().Perm())
	}
	free, err := a.diskFree(dir)
	const hint = "the authority stops taking changes when the disk is full"
	switch {
	case err != nil:
		f.fail("disk", err)
	case free < diskRefuses:
		f.fail("disk", &failure{Message: fmt.Sprintf("%d MiB free", free>>20), Hint: "free some space: nothing is issued now"})
	case free < diskLow:
		f.warn("disk", hint, "%d MiB free", free>>20)
	default:
		f.ok("disk", "%d GiB free", free>>30)
	}
}

// checkSecret looks at a file that only its owner may read.
func checkSecret(check, path string, f *findings) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		f.fail(check, err)
	case !info.Mode().IsRegular():
		f.fail(check, errors.New(path+" is no file"))
	case info.Mode().Perm()&0o077 != 0:
		f.fail(check, &failure{Message: fmt.Sprintf("%s has mode %04o: others can reach it", path, info.Mode().Perm()), Hint: "chmod 600 " + path})
	default:
		f.ok(check, "%s has mode %04o", path, info.Mode().Perm())
	}
}

// checkPort says whether the node listens where it should, or who does instead.
func checkPort(ctx context.Context, addr string, f *findings) {
	ln, err := net.Listen("tcp", addr)
	switch {
	case err == nil:
		ln.Close()
		f.warn("port", "writ serve", "nothing listens on %s: the node does not run", addr)
	case errors.Is(err, syscall.EADDRINUSE):
		checkReady(ctx, "port", addr, f)
	default:
		f.fail("port", err)
	}
}

// checkPeers says whether the node listens for its peers, and whether they can be
// reached from here, each by the key that is pinned.
func checkPeers(ctx context.Context, c *config, f *findings) {
	if c.PeerListen == "" {
		return
	}
	own, peers, err := authority.KnownPeers(c.DataDir)
	if err != nil {
		f.fail("peers", err)
	}
	ln, err := net.Listen("tcp", c.PeerListen)
	switch {
	case err == nil:
		ln.Close()
		f.warn("peer port", "writ serve", "nothing listens on %s: the node does not run", c.PeerListen)
	case !errors.Is(err, syscall.EADDRINUSE):
		f.fail("peer port", err)
	default:
		if err := checkPeer(ctx, reachable(c.PeerListen), own); err != nil {
			f.fail("peer port", &failure{Message: lower(err.Error()), Hint: "is it another process that listens there? ss -ltnp tells"})
		} else {
			f.ok("peer port", "the node listens on %s", c.PeerListen)
		}
	}
	for _, p := range peers {
		if err := checkPeer(ctx, p.Raft, p.Key); err != nil {
			f.fail("peers", &failure{Message: p.Node + " at " + lower(err.Error()), Hint: "does it run, and is the port open from here?"})
			continue
		}
		f.ok("peers", "%s is reached at %s", p.Node, p.Raft)
	}
}

// checkPeer reports whether the node with a key, the SHA-256 of its SPKI, listens
// for its peers on addr. Who asks proves nothing himself and is shut out
// thereafter: in TLS 1.3 the server proves its key first.
func checkPeer(ctx context.Context, addr string, key []byte) error {
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: 3 * time.Second}, Config: &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true}}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("%s: %w", addr, err)
	}
	defer conn.Close()
	sum := sha256.Sum256(conn.(*tls.Conn).ConnectionState().PeerCertificates[0].RawSubjectPublicKeyInfo)
	if !bytes.Equal(sum[:], key) {
		return fmt.Errorf("%s: it is not the node's key that answers", addr)
	}
	return nil
}

// checkReady asks whoever listens on addr whether he is a node, and ready.
func checkReady(ctx context.Context, check, addr string, f *findings) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	resp, err := anyone(ctx, "https://"+reachable(addr)+"/readyz")
	if err != nil {
		f.fail(check, &failure{Message: addr + ": " + lower(err.Error()), Hint: "is it another process that listens there? ss -ltnp tells"})
		return
	}
	defer resp.Body.Close()
	says, err := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
	switch {
	case err != nil:
		f.fail(check, err)
	case resp.StatusCode == http.StatusOK && string(says) == "ok\n":
		f.ok(check, "a node on %s, ready", addr)
	default:
		why := fmt.Sprintf("HTTP %d: %s", resp.StatusCode, strings.TrimSpace(string(says)))
		var p api.Problem
		if api.Decode(says, &p) == nil && p.Detail != "" {
			why = p.Detail
		}
		f.fail(check, fmt.Errorf("%s is not ready: %s", addr, why))
	}
}

// reachable is where to call what listens on addr.
func reachable(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if ip := net.ParseIP(host); err == nil && (host == "" || ip != nil && ip.IsUnspecified()) {
		return net.JoinHostPort("localhost", port)
	}
	return addr
}
