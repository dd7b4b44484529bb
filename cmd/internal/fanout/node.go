package main

import (
	"bufio"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"strings"
	"syscall"
	"time"

	"github.com/writ-dev/writ/authority"
	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/authority/server"
	"github.com/writ-dev/writ/cmd/internal/wait"
)

// nodeRole is the first argument of this program where it is a node.
const nodeRole = "node"

// order is what a node is to be.
type order struct {
	Name, Dir string
	Bound     time.Duration // of the cluster that it forms
	Feeds     int           // that it takes
	Plain     bool          // no TLS on the API: what TLS takes is the difference
	// Join is the cluster that it joins; nil: it forms one.
	Join    *formed
	Replica bool // without a vote
}

// formed is what a node says once it serves: of itself, and of its cluster.
type formed struct {
	Addr        string `json:"addr"` // of the API
	Fingerprint string `json:"fingerprint"`
	Root        string `json:"root"`
}

// usage is what a node says of itself when it is asked.
type usage struct {
	Heap, Stack, Resident int64 // bytes; the heap's after a collection
	Processor             time.Duration
	Feeds                 int
	Pings, Reads          uint64
}

// nodeMain is a node in a process of its own: the authority and its server as they
// are, in the place of cmd/writ a reader of commands, each a line.
func nodeMain(args []string) error {
	var o order
	if len(args) != 1 {
		return errors.New("node ORDER")
	}
	if err := json.Unmarshal([]byte(args[0]), &o); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	peers, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	cfg := authority.Config{
		Dir: filepath.Join(o.Dir, "data"), KeyFile: filepath.Join(o.Dir, "node.key"), NodeID: o.Name, Bound: o.Bound, Version: "fanout",
		Peers: &authority.PeerConfig{Listener: peers, API: ln.Addr().String()},
	}
	said := formed{Addr: ln.Addr().String()}
	if o.Join == nil {
		cfg.Bootstrap = true
	} else {
		said.Fingerprint, said.Root = o.Join.Fingerprint, o.Join.Root
		if err := join(ctx, &cfg, &o); err != nil {
			return err
		}
	}
	a, made, err := authority.Open(ctx, cfg)
	if err != nil {
		return err
	}
	if made != nil {
		said.Fingerprint, said.Root = hex.EncodeToString(made.CAFingerprint[:]), made.RootToken
	}
	s, err := server.New(server.Config{Authority: a, Limits: server.Limits{Streams: o.Feeds, PerCaller: o.Feeds, Connections: o.Feeds + 512}})
	if err != nil {
		return err
	}
	serve := s.Serve
	if o.Plain {
		h := &http.Server{Handler: s.Handler(), ReadHeaderTimeout: 5 * time.Second}
		serve = func(_ context.Context, ln net.Listener) error { return h.Serve(ln) }
	}
	go func() {
		fmt.Fprintln(os.Stderr, "fanout node:", serve(context.Background(), ln))
		os.Exit(1)
	}()
	if err := json.NewEncoder(os.Stdout).Encode(said); err != nil {
		return err
	}
	return obey(a) // and then the process ends, as by a kill
}

// join has the cluster take in the node that cfg describes.
func join(ctx context.Context, cfg *authority.Config, o *order) error {
	root, err := client.New(client.Config{Addrs: []string{o.Join.Addr}, CAFingerprint: o.Join.Fingerprint, Token: o.Join.Root})
	if err != nil {
		return err
	}
	defer root.Close()
	token, err := root.ClusterToken(ctx, api.ClusterTokenRequest{Replica: o.Replica})
	if err != nil {
		return err
	}
	req, err := authority.PrepareJoin(*cfg, token.Token)
	if err != nil {
		return err
	}
	cfg.Joined, err = root.ClusterJoin(ctx, *req)
	return err
}

// obey answers until the input ends: "usage"; "rest", the same after a collection;
// "profile FILE" until the next "profiled".
func obey(a *authority.Authority) error {
	answers := json.NewEncoder(os.Stdout)
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		what, path, _ := strings.Cut(lines.Text(), " ")
		switch what {
		case "rest":
			debug.FreeOSMemory()
		case "profile":
			f, err := os.Create(path)
			if err != nil {
				return err
			}
			if err := pprof.StartCPUProfile(f); err != nil {
				return err
			}
		case "profiled":
			pprof.StopCPUProfile()
		}
		u, err := ownUsage(a)
		if err != nil {
			return err
		}
		if err := answers.Encode(u); err != nil {
			return err
		}
	}
	return nil
}

func ownUsage(a *authority.Authority) (*usage, error) {
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	var spent syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &spent); err != nil {
		return nil, err
	}
	statm, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return nil, err
	}
	var all, resident int64
	if _, err := fmt.Sscan(string(statm), &all, &resident); err != nil {
		return nil, err
	}
	m := a.Metrics()
	return &usage{
		Heap: int64(mem.HeapAlloc), Stack: int64(mem.StackInuse), Resident: resident * int64(os.Getpagesize()),
		Processor: time.Duration(spent.Utime.Nano() + spent.Stime.Nano()),
		Feeds:     m.Streams, Pings: m.Pings, Reads: m.ReadIndexes,
	}, nil
}

// node is this program's hold on one.
type node struct {
	name string
	formed
	cmd     *exec.Cmd
	in      io.WriteCloser
	answers *json.Decoder
}

// start starts a node and waits until it serves.
func start(o order) (*node, error) {
	text, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	n := &node{name: o.Name, cmd: exec.Command(self, nodeRole, string(text))}
	n.cmd.Stderr = os.Stderr
	if n.in, err = n.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := n.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := n.cmd.Start(); err != nil {
		return nil, err
	}
	n.answers = json.NewDecoder(out)
	if err := n.answers.Decode(&n.formed); err != nil {
		n.kill()
		return nil, fmt.Errorf("node %s did not start: %w", o.Name, err)
	}
	return n, nil
}

// ask gives a command.
func (n *node) ask(command string) (u usage, err error) {
	if _, err := io.WriteString(n.in, command+"\n"); err != nil {
		return u, fmt.Errorf("node %s: %w", n.name, err)
	}
	if err := n.answers.Decode(&u); err != nil {
		return u, fmt.Errorf("node %s: %w", n.name, err)
	}
	return u, nil
}

// kill is kill -9; it returns once the process is gone.
func (n *node) kill() {
	_ = n.cmd.Process.Kill()
	_ = n.cmd.Wait() // that it was killed
}

// cluster is voters, and read replicas that the feeds are at.
type cluster struct {
	voters, replicas []*node
	root             *client.Client
}

// newCluster starts a cluster in a directory.
func newCluster(ctx context.Context, dir string, voters, replicas int, o order) (c *cluster, err error) {
	c = new(cluster)
	defer func() {
		if err != nil {
			c.stop()
		}
	}()
	for i := range voters + replicas {
		o.Name = fmt.Sprintf("n%d", i+1)
		o.Dir = filepath.Join(dir, o.Name)
		each := o
		each.Replica = i >= voters
		each.Plain = o.Plain && each.Replica
		n, err := start(each)
		if err != nil {
			return nil, err
		}
		if each.Replica {
			c.replicas = append(c.replicas, n)
		} else {
			c.voters = append(c.voters, n)
		}
		o.Join = &c.voters[0].formed
	}
	first := c.voters[0]
	if c.root, err = client.New(client.Config{Addrs: []string{first.Addr}, CAFingerprint: first.Fingerprint, Token: first.Root}); err != nil {
		return nil, err
	}
	return c, c.ready(ctx)
}

// ready waits until every node has caught up, and votes if it is to.
func (c *cluster) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return wait.Until(ctx, 5*time.Millisecond, func() bool {
		s, err := c.root.Cluster(ctx)
		if err != nil {
			return false
		}
		for _, n := range s.Nodes {
			if n.State != "active" || n.Wanted != n.Voter || !n.Answers || n.Lag > 8 {
				return false
			}
		}
		return len(s.Nodes) == len(c.voters)+len(c.replicas)
	})
}

func (c *cluster) stop() {
	if c.root != nil {
		c.root.Close()
	}
	for _, n := range c.voters {
		n.kill()
	}
	for _, n := range c.replicas {
		n.kill()
	}
}
