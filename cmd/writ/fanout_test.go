package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/authority/replica"
)

var (
	fanoutFeeds    = flag.Int("fanout.feeds", 256, "how many idle feeds TestFanOut opens at one node")
	fanoutReplicas = flag.Int("fanout.replicas", 16, "how many replicas it attaches")
	fanoutTime     = flag.Duration("fanout.time", 3*time.Second, "how long it watches them")
)

// counted counts what goes over a connection, on top of TCP.
type counted struct {
	net.Conn
	n *atomic.Int64
}

// Read implements net.Conn.
func (c counted) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.n.Add(int64(n))
	return n, err
}

// Write implements net.Conn.
func (c counted) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.n.Add(int64(n))
	return n, err
}

// resident is the memory of a process, in bytes.
func resident(t *testing.T, pid int) (bytes int64) {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	if _, err := fmt.Sscan(rest, &bytes); err != nil {
		t.Fatal(err)
	}
	return bytes << 10
}

// TestFanOut measures what a verifier costs a node that has nothing to tell it:
// memory for a feed, bytes for the pings that keep it fresh. docs/operations.md
// reckons with these figures, and the test holds them to what it says there. With
//
//	go test ./cmd/writ -run TestFanOut -v -fanout.feeds 2000 -fanout.replicas 200 -fanout.time 20s
//
// it measures what the page quotes.
func TestFanOut(t *testing.T) {
	const (
		perFeed    = 256 << 10 // bytes of a node's memory, at most
		perReplica = 16 << 10  // bytes a second, at most
		ofCaller   = 50        // feeds; a node allows 64
	)
	dir := t.TempDir()
	node, r := startServe(t, "--init", "--staleness-bound", "2s", "--data-dir", filepath.Join(dir, "data"), "--node-key", filepath.Join(dir, "node.key"),
		"--listen", "127.0.0.1:0", "--root-token", filepath.Join(dir, "root"))
	cfg := client.Config{Addrs: []string{r.Addr}, CAFingerprint: r.CAFingerprint, TokenFile: filepath.Join(dir, "root")}
	open := func(cfg client.Config) *client.Client {
		c, err := client.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Close)
		return c
	}
	root := open(cfg)
	services := 0
	service := func() client.Config {
		services++
		name := fmt.Sprintf("svc-%d", services)
		added, err := root.AddService(t.Context(), api.ServiceRequest{Name: name, Audiences: []string{"corp"}})
		if err != nil {
			t.Fatal(err)
		}
		joined, err := root.Join(t.Context(), api.JoinRequest{Name: name, JoinSecret: added.JoinSecret})
		if err != nil {
			t.Fatal(err)
		}
		own := cfg
		own.TokenFile, own.Token = "", joined.Token
		return own
	}

	// Feeds, each on a connection of its own, that have taken in their snapshot.
	ctx, stop := context.WithCancel(t.Context())
	before := resident(t, node.Process.Pid)
	var own client.Config
	for i := range *fanoutFeeds {
		if i%ofCaller == 0 {
			own = service()
		}
		feed, err := open(own).Feed(ctx, client.FeedRequest{Audiences: []string{"corp"}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := feed.Next(); err != nil {
			t.Fatal(err)
		}
		defer feed.Close()
	}
	memory := (resident(t, node.Process.Pid) - before) / int64(*fanoutFeeds)
	stop()

	// Replicas, each with a feed and a warm one, both kept fresh by pings.
	var traffic atomic.Int64
	var opening sync.WaitGroup
	var dialer net.Dialer
	for i := range *fanoutReplicas {
		if i%(ofCaller/2) == 0 {
			own = service()
			own.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
				conn, err := dialer.DialContext(ctx, network, addr)
				return counted{conn, &traffic}, err
			}
		}
		c := open(own)
		opening.Go(func() {
			r, err := replica.Open(t.Context(), replica.Config{Client: c, Audiences: []string{"corp"}})
			if err != nil {
				t.Error(err)
				return
			}
			t.Cleanup(func() { _ = r.Close() })
		})
	}
	opening.Wait()
	begun, from := time.Now(), traffic.Load()
	<-time.After(*fanoutTime)
	bytes := float64(traffic.Load()-from) / time.Since(begun).Seconds() / float64(*fanoutReplicas)

	t.Logf("%d feeds: %d KiB of memory each; %d replicas: %.0f bytes a second each, both ways", *fanoutFeeds, memory>>10, *fanoutReplicas, bytes)
	if memory > perFeed {
		t.Errorf("a feed takes %d KiB of a node's memory, more than %d", memory>>10, perFeed>>10)
	}
	if bytes > perReplica || bytes < 100 {
		t.Errorf("an idle replica takes %.0f bytes a second, not up to %d", bytes, perReplica)
	}
}
