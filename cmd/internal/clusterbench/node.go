package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/chaos/netns"
	"github.com/writ-dev/writ/authority/client"
	"github.com/writ-dev/writ/cmd/internal/wait"
)

// startPatience is how long a node may take to serve. One with a large state
// reads all of it.
const startPatience = 4 * time.Minute

// node is one writ process.
type node struct {
	name, api, peer, metrics string // host:port each
	dir, key                 string
	host                     *netns.Host // nil: this process's network
	cmd                      *exec.Cmd
	ended                    chan error
}

// cluster is three of them.
type cluster struct {
	b           *bench
	dir         string
	nodes       []*node
	fingerprint string
	token       string     // the root token
	lab         *netns.Lab // nil: loopback
}

// ready is what writ prints once a node serves.
type ready struct {
	Addr          string `json:"addr"`
	CAFingerprint string `json:"ca_fingerprint"`
}

// newCluster forms a cluster, on loopback or on hosts of a lab, which it then owns.
func (b *bench) newCluster(ctx context.Context, name string, lab *netns.Lab) (*cluster, error) {
	c := &cluster{b: b, dir: filepath.Join(b.dir, name), lab: lab}
	for i := range 3 {
		if err := c.add(i + 1); err != nil {
			c.stop()
			return nil, err
		}
	}
	for i, n := range c.nodes {
		var err error
		if i == 0 {
			err = c.form(ctx, n)
		} else {
			err = c.join(ctx, n)
		}
		if err != nil {
			c.stop()
			return nil, fmt.Errorf("starting %s: %w", n.name, err)
		}
	}
	if err := c.wait(ctx); err != nil {
		c.stop()
		return nil, err
	}
	return c, nil
}

// add makes room for a node.
func (c *cluster) add(number int) error {
	name := fmt.Sprintf("n%d", number)
	n := &node{name: name, dir: filepath.Join(c.dir, name, "data"), key: filepath.Join(c.dir, name, "node.key")}
	c.nodes = append(c.nodes, n)
	if err := os.MkdirAll(filepath.Dir(n.key), 0o700); err != nil {
		return err
	}
	if c.lab != nil {
		var err error
		if n.host, err = c.lab.Host(name); err != nil {
			return err
		}
		n.api, n.peer, n.metrics = n.host.Join(7480), n.host.Join(7481), n.host.Join(7482)
		return nil
	}
	for _, addr := range []*string{&n.api, &n.peer, &n.metrics} {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		*addr = ln.Addr().String()
		ln.Close() // taken again in a moment, and after each restart
	}
	return nil
}

func (n *node) flags() []string {
	return []string{
		"--node", n.name, "--listen", n.api, "--peer-listen", n.peer, "--metrics-listen", n.metrics,
		"--data-dir", n.dir, "--node-key", n.key, "--log-level", "error", "--output", "json",
	}
}

func (c *cluster) form(ctx context.Context, n *node) error {
	token := filepath.Join(c.dir, "root.token")
	r, err := c.launch(ctx, n, append([]string{"cluster", "init", "--root-token", token}, n.flags()...), "")
	if err != nil {
		return err
	}
	b, err := os.ReadFile(token)
	c.fingerprint, c.token = r.CAFingerprint, strings.TrimSpace(string(b))
	return err
}

func (c *cluster) join(ctx context.Context, n *node) error {
	root := c.root()
	defer root.Close()
	made, err := root.ClusterToken(ctx, api.ClusterTokenRequest{})
	if err != nil {
		return err
	}
	args := append([]string{"cluster", "join", "--addr", c.nodes[0].api, "--ca-fingerprint", c.fingerprint}, n.flags()...)
	_, err = c.launch(ctx, n, args, made.Token)
	return err
}

// serve starts a node that has stopped.
func (c *cluster) serve(ctx context.Context, n *node) error {
	_, err := c.launch(ctx, n, append([]string{"serve"}, n.flags()...), "")
	return err
}

// launch starts the process and waits until it serves.
func (c *cluster) launch(ctx context.Context, n *node, args []string, input string) (*ready, error) {
	cmd := exec.Command(c.b.writ, args...)
	cmd.Stdin, cmd.Stderr = strings.NewReader(input), c.b.nodes
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	start := cmd.Start
	if n.host != nil {
		start = func() error { return n.host.Start(cmd) }
	}
	if err := start(); err != nil {
		return nil, err
	}
	n.cmd, n.ended = cmd, make(chan error, 1)
	first := make(chan string, 1)
	go func() {
		s := bufio.NewReader(out)
		text, _ := s.ReadString('}')
		first <- text
		_, _ = s.WriteTo(io.Discard)
		n.ended <- cmd.Wait()
	}()
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	select {
	case text := <-first:
		r := new(ready)
		if err := json.Unmarshal([]byte(text), r); err != nil {
			return nil, errors.Join(fmt.Errorf("node %s did not start", n.name), n.kill())
		}
		return r, nil
	case <-ctx.Done():
		return nil, errors.Join(ctx.Err(), n.kill())
	}
}

// kill is kill -9; it returns once the process is gone.
func (n *node) kill() error {
	if n.cmd == nil {
		return nil
	}
	err := n.cmd.Process.Kill()
	<-n.ended
	n.cmd = nil
	return err
}

// terminate has the node end in good order.
func (n *node) terminate() error {
	if n.cmd == nil {
		return nil
	}
	if err := n.cmd.Process.Signal(os.Interrupt); err != nil {
		return errors.Join(err, n.kill())
	}
	select {
	case err := <-n.ended:
		n.cmd = nil
		return err
	case <-time.After(startPatience):
		return errors.Join(fmt.Errorf("node %s does not end", n.name), n.kill())
	}
}

// stop ends everything and removes the data.
func (c *cluster) stop() {
	for _, n := range c.nodes {
		_ = n.kill()
	}
	if c.lab != nil {
		_ = c.lab.Close()
	}
	_ = os.RemoveAll(c.dir)
}

// config is a client's configuration, beginning with the i-th node.
func (c *cluster) config(token string, i int) client.Config {
	var addrs []string
	for k := range c.nodes {
		addrs = append(addrs, c.nodes[(i+k)%len(c.nodes)].api)
	}
	cfg := client.Config{Addrs: addrs, CAFingerprint: c.fingerprint, Token: token}
	if c.lab != nil {
		cfg.DialContext = c.lab.Switch().DialContext
	}
	return cfg
}

func (c *cluster) client(token string, i int) *client.Client {
	made, err := client.New(c.config(token, i))
	if err != nil {
		panic("clusterbench: " + err.Error()) // the configuration is our own
	}
	return made
}

func (c *cluster) root() *client.Client { return c.client(c.token, 0) }

// pids are the processes of the nodes.
func (c *cluster) pids() []int {
	var list []int
	for _, n := range c.nodes {
		list = append(list, n.cmd.Process.Pid)
	}
	return list
}

// wait waits until all nodes vote, answer and have caught up.
func (c *cluster) wait(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	root := c.root()
	defer root.Close()
	var last error
	err := wait.Until(ctx, 20*time.Millisecond, func() bool {
		s, err := root.Cluster(ctx)
		if last = err; err != nil {
			return false
		}
		well := 0
		for _, n := range s.Nodes {
			if n.Voter && n.Answers && n.Lag < 64 {
				well++
			}
		}
		last = fmt.Errorf("%d of %d nodes are as they should be", well, len(c.nodes))
		return well == len(c.nodes) && s.Leader != ""
	})
	if err != nil {
		return fmt.Errorf("waiting for the cluster: %w: %w", err, last)
	}
	return nil
}

// leader is the node that leads, which it waits for.
func (c *cluster) leader(ctx context.Context) (int, error) {
	root := c.root()
	defer root.Close()
	found := -1
	err := wait.Until(ctx, 20*time.Millisecond, func() bool {
		s, err := root.Cluster(ctx)
		if err != nil {
			return false
		}
		for i, n := range c.nodes {
			if n.name == s.Leader {
				found = i
			}
		}
		return found >= 0
	})
	return found, err
}

// usage is what a process has used.
type usage struct {
	resident  int64         // bytes
	mapped    int64         // of these, pages of files: the kernel takes them back when it needs room
	processor time.Duration // user and system
	written   int64         // bytes that went to the disk
}

func (n *node) usage() (usage, error) { return usageOf(n.cmd.Process.Pid) }

// usageOf reads /proc.
func usageOf(pid int) (usage, error) {
	var u usage
	proc := filepath.Join("/proc", strconv.Itoa(pid))
	status, err := os.ReadFile(filepath.Join(proc, "status"))
	if err != nil {
		return u, err
	}
	u.resident, u.mapped = field(string(status), "VmRSS:")<<10, field(string(status), "RssFile:")<<10
	io, err := os.ReadFile(filepath.Join(proc, "io"))
	if err != nil {
		return u, err
	}
	u.written = field(string(io), "write_bytes:")
	stat, err := os.ReadFile(filepath.Join(proc, "stat"))
	if err != nil {
		return u, err
	}
	_, after, _ := strings.Cut(string(stat), ") ")
	if f := strings.Fields(after); len(f) > 12 {
		user, _ := strconv.ParseInt(f[11], 10, 64)
		system, _ := strconv.ParseInt(f[12], 10, 64)
		u.processor = time.Duration(user+system) * (time.Second / 100) // USER_HZ is 100 on every Linux
	}
	return u, nil
}

// field is the number behind a name.
func field(text, name string) int64 {
	_, after, _ := strings.Cut(text, name)
	if f := strings.Fields(after); len(f) > 0 {
		v, _ := strconv.ParseInt(f[0], 10, 64)
		return v
	}
	return 0
}

// disk is how much space everything below a directory takes, the names that
// match aside, in bytes.
func disk(dir string, aside ...string) (int64, error) {
	var sum int64
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // a snapshot that was replaced
			}
			return err
		}
		for _, a := range aside {
			if d.Name() == a {
				return fs.SkipDir
			}
		}
		info, err := d.Info()
		if err != nil || d.IsDir() {
			return nil
		}
		sum += allocated(info)
		return nil
	})
	return sum, err
}
